//! Codes in a worker's own memory: the shared ones have a reference count that every call would write to, and that would
//! travel between the workers' cores.

use alloy_primitives::{B256, Bytes};

use super::memory::Memory;
use crate::error::Result;
use crate::evm::Bytecode;
use crate::state::Map;

/// A copy is made when a code is needed a second time.
#[derive(Debug)]
enum Code {
    Shared(Bytecode),
    Own(Bytecode),
}

#[derive(Debug, Default)]
pub struct Codes(Map<B256, Code>);

impl Codes {
    /// # Errors
    /// `Internal` when nobody holds the code.
    pub fn get(&mut self, memory: &Memory, hash: &B256) -> Result<Bytecode> {
        match self.0.get_mut(hash) {
            Some(Code::Own(code)) => Ok(code.clone()),
            Some(held @ Code::Shared(_)) => {
                let Code::Shared(code) = &*held else { return memory.code(hash) };
                let own = copy(code);
                *held = Code::Own(own.clone());
                Ok(own)
            }
            None => {
                let code = memory.code(hash)?;
                self.0.insert(*hash, Code::Shared(code.clone()));
                Ok(code)
            }
        }
    }
}

/// The same code in memory of its own.
fn copy(code: &Bytecode) -> Bytecode {
    if code.is_eip7702() {
        return code.clone();
    }
    Bytecode::new_legacy(Bytes::copy_from_slice(code.original_byte_slice()))
}
