//! The locations of a block that is done, as its access list asks for them.

use alloy_primitives::{Address, B256};

use super::memory::{First, Key, Memory, Value};
use crate::access_list::Places;
use crate::error::Result;
use crate::evm::Bytecode;
use crate::state::Account;

/// A memory after its block, with what was there before where that changed.
pub struct Done<'a> {
    memory: &'a Memory,
    before: Vec<Option<&'a Value>>,
}

impl<'a> Done<'a> {
    pub fn new(memory: &'a Memory, firsts: &'a [Vec<First>]) -> Self {
        let mut before = vec![None; memory.count() as usize];
        firsts.iter().flatten().for_each(|(location, value)| before[*location as usize] = Some(value));
        Self { memory, before }
    }
}

impl Places for Done<'_> {
    fn count(&self) -> u32 {
        self.memory.count()
    }

    fn key(&self, location: u32) -> Key {
        self.memory.key(location)
    }

    fn find(&self, address: &Address) -> Result<Option<u32>> {
        self.memory.locate(&Key::Account(*address)).map(Some)
    }

    fn parent(&self, location: u32) -> Result<Value> {
        match self.before.get(location as usize).copied().flatten() {
            Some(value) => Ok(*value),
            // Nothing was changed here.
            None => self.memory.parent(location),
        }
    }

    fn parent_account(&self, address: &Address) -> Result<Option<Account>> {
        self.memory.parent_account(address)
    }

    fn code(&self, hash: &B256) -> Result<Bytecode> {
        self.memory.code(hash)
    }
}
