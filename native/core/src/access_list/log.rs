//! What engines saw of a block.
//!
//! An engine leaves the locations that its items looked at and the values they left, as it goes and in any grouping.

use alloy_primitives::{Address, B256, U256};

use crate::error::{CoreError, Result};
use crate::evm::Bytecode;
use crate::ledger::Ledger;
use crate::parallel::Value;
use crate::state::{Account, Key, Map, View};

/// One location as an item left it.
#[derive(Debug, Clone, Copy)]
pub struct Change {
    pub index: u32,
    pub location: u32,
    pub value: Value,
}

impl Change {
    pub fn place(&self) -> u32 {
        self.location
    }
}

/// What the items of a block looked at and changed. Locations are numbers that a `Places` knows.
#[derive(Debug, Default)]
pub struct AccessLog {
    pub(super) changes: Vec<Vec<Change>>,
    pub(super) touched: Vec<Vec<u32>>,
    /// (index, fees of the beneficiary that its logged value lacks from there on)
    pub(super) fees: Vec<(u32, U256)>,
}

impl AccessLog {
    /// Takes over what some items did; of one location, what comes later was done later.
    pub fn add(&mut self, touched: impl Iterator<Item = u32>, changes: Vec<Change>) {
        match self.touched.last_mut() {
            Some(last) => last.extend(touched),
            None => self.touched.push(touched.collect()),
        }
        self.changes.push(changes);
    }

    /// As `add`, for few changes.
    pub fn note(&mut self, touched: impl Iterator<Item = u32>, changes: impl Iterator<Item = Change>) {
        if self.changes.is_empty() {
            self.changes.push(Vec::new());
        }
        if let Some(last) = self.changes.last_mut() {
            last.extend(changes);
        }
        match self.touched.last_mut() {
            Some(last) => last.extend(touched),
            None => self.touched.push(touched.collect()),
        }
    }

    /// Items get their places in the block instead of those in the batch that the builder chose from.
    pub fn renumber(&mut self, ledger: &Ledger<'_>) {
        let Some(places) = ledger.places() else { return };
        self.changes.iter_mut().flatten().for_each(|change| change.index = places[change.index as usize]);
        self.fees.iter_mut().for_each(|(index, _)| *index = places[*index as usize]);
    }

    /// From item `index` on the beneficiary owns so much more than its logged value says; told in order.
    pub fn owe(&mut self, index: u32, fees: U256) {
        self.fees.push((index, fees));
    }
}

/// What the numbers of locations stand for.
pub trait Places: Sync {
    /// One more than the highest.
    fn count(&self) -> u32;
    fn key(&self, location: u32) -> Key;
    /// The number of an account, none if it has none.
    fn find(&self, address: &Address) -> Result<Option<u32>>;
    /// The value before the block.
    fn parent(&self, location: u32) -> Result<Value>;
    /// The account before the block.
    fn parent_account(&self, address: &Address) -> Result<Option<Account>>;
    fn code(&self, hash: &B256) -> Result<Bytecode>;
}

/// Locations numbered as they come, over the state before the block.
#[derive(Debug)]
pub struct Numbered {
    view: View,
    keys: Vec<Key>,
    numbers: Map<Key, u32>,
    codes: Map<B256, Bytecode>,
}

impl Numbered {
    pub fn new(view: View) -> Self {
        Self { view, keys: Vec::new(), numbers: Map::default(), codes: Map::default() }
    }

    pub fn number(&mut self, key: &Key) -> u32 {
        let next = self.keys.len() as u32;
        let number = *self.numbers.entry(*key).or_insert(next);
        if number == next {
            self.keys.push(*key);
        }
        number
    }

    pub fn add_codes(&mut self, codes: &Map<B256, Bytecode>) {
        self.codes.extend(codes.iter().map(|(hash, code)| (*hash, code.clone())));
    }
}

impl Places for Numbered {
    fn count(&self) -> u32 {
        self.keys.len() as u32
    }

    fn key(&self, location: u32) -> Key {
        self.keys[location as usize]
    }

    fn find(&self, address: &Address) -> Result<Option<u32>> {
        Ok(self.numbers.get(&Key::Account(*address)).copied())
    }

    fn parent(&self, location: u32) -> Result<Value> {
        match self.key(location) {
            Key::Account(address) => Ok(Value::Account(self.view.account(&address)?)),
            Key::Slot(address, slot) => Ok(Value::Slot(self.view.slot(&address, &slot)?)),
        }
    }

    fn parent_account(&self, address: &Address) -> Result<Option<Account>> {
        self.view.account(address)
    }

    fn code(&self, hash: &B256) -> Result<Bytecode> {
        let held = self.codes.get(hash).cloned().or_else(|| self.view.code(hash));
        held.ok_or_else(|| CoreError::Internal(format!("code {hash} is not held")))
    }
}
