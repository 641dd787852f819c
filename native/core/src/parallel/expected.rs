//! What a block's access list says: what every location holds before any item.

use alloy_primitives::{Address, B256, U256};
use rayon::prelude::*;

use super::memory::{Key, Memory, Numbers, Value};
use crate::access_list::{AccessList, AccountAccess, Changes, before};
use crate::error::{CoreError, Result};
use crate::evm::Bytecode;
use crate::state::{Account, Finished, Map, Part, Update};

/// Locations that one worker takes at once.
const AT_ONCE: usize = 1024;

/// Where the list has a location's history.
#[derive(Debug, Clone, Copy)]
enum History {
    Account(u32),
    /// Of this account the slot that stands here.
    Slot(u32, u32),
}

/// A list with its codes ready to run, by the numbers that a memory has for its locations.
#[derive(Debug)]
pub struct Expected {
    list: AccessList,
    code_hashes: Map<Address, Changes<B256>>,
    codes: Map<B256, Bytecode>,
    /// What the list has changes of.
    changed: Vec<(u32, History)>,
    by_location: Vec<Option<History>>,
}

impl Expected {
    /// Numbers what is listed; shared among the workers of the pool it is called in.
    ///
    /// # Errors
    /// `InvalidBlock` for a code that cannot be one.
    pub fn new(list: AccessList, memory: &Memory) -> Result<Self> {
        let (code_hashes, codes) = prepare_codes(&list)?;
        for (hash, code) in &codes {
            memory.add_code(*hash, code.clone());
        }
        let histories: Vec<History> =
            (0..).zip(&list.accounts).flat_map(|(place, access)| histories(place, access)).collect();
        let numbered = histories.par_chunks(AT_ONCE).map(|histories| {
            let mut numbers = Numbers::default();
            let number = |history: &History| Ok((memory.locate_with(&key(&list, *history), &mut numbers)?, *history));
            histories.iter().map(number).collect::<Result<Vec<_>>>()
        });
        let changed = numbered.collect::<Result<Vec<_>>>()?.concat();
        let mut by_location = vec![None; memory.count() as usize];
        changed.iter().for_each(|(location, history)| by_location[*location as usize] = Some(*history));
        Ok(Self { list, code_hashes, codes, changed, by_location })
    }

    /// What a location holds before item `index`; `parent` is what the block found there.
    pub fn before(&self, location: u32, parent: Value, index: u32) -> Value {
        match (self.by_location.get(location as usize).copied().flatten(), parent) {
            (Some(History::Account(place)), Value::Account(parent)) => {
                Value::Account(self.account(&self.list.accounts[place as usize], parent, index))
            }
            (Some(History::Slot(account, place)), Value::Slot(parent)) => {
                let (_, changes) = &self.list.accounts[account as usize].storage_changes[place as usize];
                Value::Slot(before(changes, index).copied().unwrap_or(parent))
            }
            _ => parent,
        }
    }

    fn account(&self, access: &AccountAccess, parent: Option<Account>, index: u32) -> Option<Account> {
        let mut account = parent.unwrap_or_default();
        if let Some(balance) = before(&access.balance_changes, index) {
            account.balance = *balance;
        }
        if let Some(nonce) = before(&access.nonce_changes, index) {
            account.nonce = *nonce;
        }
        if !access.code_changes.is_empty()
            && let Some(hash) = self.code_hashes.get(&access.address).and_then(|hashes| before(hashes, index))
        {
            account.code_hash = *hash;
        }
        Some(account).filter(|account| !account.is_empty())
    }

    /// What the block changes, if the list is its; gathered by the workers of the pool it is called in.
    ///
    /// # Errors
    /// Those of reading the state.
    pub fn finish(&self, memory: &Memory) -> Result<Finished> {
        let parts = self.changed.par_chunks(AT_ONCE).map(|changed| self.updates(memory, changed));
        Ok(Finished { parts: parts.collect::<Result<_>>()?, codes: self.codes.clone() })
    }

    fn updates(&self, memory: &Memory, changed: &[(u32, History)]) -> Result<Part> {
        let mut part = Part::with_capacity(changed.len());
        for (location, history) in changed {
            let parent = memory.parent(*location)?;
            let after = self.before(*location, parent, u32::MAX);
            if parent == after {
                continue;
            }
            match (key(&self.list, *history), parent, after) {
                (Key::Account(address), Value::Account(old), Value::Account(new)) => {
                    part.push(Update::Account(address, old, new))?;
                }
                (Key::Slot(address, slot), Value::Slot(old), Value::Slot(new)) => {
                    part.push(Update::Slot(address, slot, old, new))?;
                }
                _ => return Err(CoreError::Internal("a location changed its kind".into())),
            }
        }
        Ok(part)
    }
}

type Codes = (Map<Address, Changes<B256>>, Map<B256, Bytecode>);

fn prepare_codes(list: &AccessList) -> Result<Codes> {
    let (mut code_hashes, mut codes) = (Map::default(), Map::default());
    for account in list.accounts.iter().filter(|account| !account.code_changes.is_empty()) {
        let mut hashes = Vec::with_capacity(account.code_changes.len());
        for (index, bytes) in &account.code_changes {
            if bytes.is_empty() {
                hashes.push((*index, Account::default().code_hash));
                continue;
            }
            let code = Bytecode::new_raw_checked(bytes.clone()).map_err(|reason| {
                CoreError::InvalidBlock(format!("access list: code of {} refused: {reason}", account.address))
            })?;
            let hash = code.hash_slow();
            hashes.push((*index, hash));
            codes.insert(hash, code);
        }
        code_hashes.insert(account.address, hashes);
    }
    Ok((code_hashes, codes))
}

fn histories(place: u32, access: &AccountAccess) -> impl Iterator<Item = History> {
    let is_changed =
        !(access.balance_changes.is_empty() && access.nonce_changes.is_empty() && access.code_changes.is_empty());
    let slots = (0..access.storage_changes.len() as u32).map(move |slot| History::Slot(place, slot));
    is_changed.then_some(History::Account(place)).into_iter().chain(slots)
}

fn key(list: &AccessList, history: History) -> Key {
    match history {
        History::Account(place) => Key::Account(list.accounts[place as usize].address),
        History::Slot(account, place) => {
            let access = &list.accounts[account as usize];
            Key::Slot(access.address, access.storage_changes[place as usize].0)
        }
    }
}

/// A value as `Source` wants it.
pub fn word(value: Value) -> Result<U256> {
    match value {
        Value::Slot(word) => Ok(word),
        Value::Account(_) => Err(CoreError::Internal("a location changed its kind".into())),
    }
}
