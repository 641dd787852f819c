//! What a block's access list says: what every location holds before any item.

use std::sync::Arc;

use alloy_primitives::{Address, B256, U256};
use rayon::prelude::*;
use smallvec::SmallVec;

use super::memory::{Delta, Key, Memory, Numbers, Value, wrong_kind};
use crate::access_list::{AccessList, AccountAccess, Changes, before};
use crate::error::{CoreError, Result};
use crate::evm::Bytecode;
use crate::state::{Account, Map};

/// Locations that one worker takes at once.
const AT_ONCE: usize = 1024;
/// Locations whose values are read together.
const TOGETHER: usize = 16;

/// The list, from where its block has come to.
#[derive(Debug)]
pub struct Listing {
    pub expected: Arc<Expected>,
    /// Where the account lies that fees go to.
    pub beneficiary: u32,
    /// Fees earned so far that the memory does not have: of an item that paid out just what it earned, no list tells.
    pub tips: U256,
}

impl Listing {
    /// What a location holds before item `index`; `present` is what was committed there when the list was turned to.
    pub fn before(&self, location: u32, present: Value, index: u32) -> Value {
        if location != self.beneficiary || self.tips.is_zero() {
            return self.expected.before(location, present, index);
        }
        let paid = present.with(&Delta { credit: self.tips, ..Delta::default() });
        self.expected.before(location, paid.unwrap_or(present), index)
    }
}

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
    by_location: Vec<Option<Listed>>,
}

/// A location's history, and the first index in it: nothing more need be looked at before that.
#[derive(Debug, Clone, Copy)]
struct Listed {
    first: u32,
    history: History,
}

impl Expected {
    /// Numbers what is listed, and reads what the block finds there; shared among the workers of the pool it is called in.
    ///
    /// # Errors
    /// `InvalidBlock` for a code that cannot be one; those of reading the state.
    pub fn new(list: AccessList, memory: &Memory) -> Result<Self> {
        let (code_hashes, codes) = prepare_codes(&list)?;
        for (hash, code) in codes {
            memory.add_code(hash, code);
        }
        let mut expected = Self { list, code_hashes, by_location: Vec::new() };
        let listed = by_first_index(&expected.list);
        let numbered = listed.par_chunks(AT_ONCE).map(|listed| expected.number(memory, listed));
        let numbered: Vec<Vec<(Listed, u32)>> = numbered.collect::<Result<_>>()?;
        let mut by_location = vec![None; memory.count() as usize];
        for (listed, location) in numbered.into_iter().flatten() {
            by_location[location as usize] = Some(listed);
        }
        expected.by_location = by_location;
        Ok(expected)
    }

    /// The numbers of some locations, whose values are read into the memory.
    fn number(&self, memory: &Memory, listed: &[Listed]) -> Result<Vec<(Listed, u32)>> {
        let (mut numbers, mut numbered) = (Numbers::default(), Vec::with_capacity(listed.len()));
        for listed in listed.chunks(TOGETHER) {
            let (mut accounts, mut slots): (Few<Address>, Few<(Address, U256)>) = (Few::new(), Few::new());
            let (mut of_accounts, mut of_slots): (Few<Listed>, Few<Listed>) = (Few::new(), Few::new());
            for listed in listed {
                match self.key(listed.history) {
                    Key::Account(address) => (accounts.push(address), of_accounts.push(*listed)),
                    Key::Slot(address, slot) => (slots.push((address, slot)), of_slots.push(*listed)),
                };
            }
            let mut of_accounts = of_accounts.into_iter();
            let unseen = accounts.iter().map(|address| (0, address, None));
            memory.visit_accounts(unseen, &mut numbers, |_, _, location, _, _| {
                numbered.extend(of_accounts.next().map(|listed| (listed, location)));
            })?;
            let mut of_slots = of_slots.into_iter();
            memory.warm_slots(&slots, &mut numbers, |location| {
                numbered.extend(of_slots.next().map(|listed| (listed, location)));
            })?;
        }
        Ok(numbered)
    }

    /// What a location holds before item `index`; `parent` is what the block found there.
    fn before(&self, location: u32, parent: Value, index: u32) -> Value {
        match self.by_location.get(location as usize).copied().flatten() {
            Some(listed) if listed.first < index => self.at(listed.history, parent, index),
            _ => parent,
        }
    }

    fn at(&self, history: History, parent: Value, index: u32) -> Value {
        match (history, parent) {
            (History::Account(place), Value::Account(parent)) => {
                Value::Account(self.account(&self.list.accounts[place as usize], parent, index))
            }
            (History::Slot(account, place), Value::Slot(parent)) => {
                let (_, changes) = &self.list.accounts[account as usize].storage_changes[place as usize];
                Value::Slot(before(changes, index).copied().unwrap_or(parent))
            }
            (_, parent) => parent,
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

    fn key(&self, history: History) -> Key {
        match history {
            History::Account(place) => Key::Account(self.list.accounts[place as usize].address),
            History::Slot(account, place) => {
                let access = &self.list.accounts[account as usize];
                Key::Slot(access.address, access.storage_changes[place as usize].0)
            }
        }
    }
}

/// As many as are read together.
type Few<T> = SmallVec<[T; TOGETHER]>;
type Codes = (Map<Address, Changes<B256>>, Map<B256, Bytecode>);

fn prepare_codes(list: &AccessList) -> Result<Codes> {
    let (mut code_hashes, mut codes) = (Map::default(), Map::default());
    for account in list.accounts.iter().filter(|account| !account.code_changes.is_empty()) {
        let mut hashes = Changes::with_capacity(account.code_changes.len());
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

/// The histories in the order in which execution comes to them, so that neighbours in time lie together in memory.
fn by_first_index(list: &AccessList) -> Vec<Listed> {
    let mut starts: Vec<u32> = Vec::new();
    let mut listed: Vec<Listed> = Vec::new();
    for found in (0..).zip(&list.accounts).flat_map(|(place, access)| histories(place, access)) {
        let place = found.first as usize;
        if starts.len() < place + 2 {
            starts.resize(place + 2, 0);
        }
        starts[place + 1] += 1;
        listed.push(found);
    }
    for place in 1..starts.len() {
        starts[place] += starts[place - 1];
    }
    let mut sorted = listed.clone();
    for found in listed {
        let place = &mut starts[found.first as usize];
        sorted[*place as usize] = found;
        *place += 1;
    }
    sorted
}

fn histories(place: u32, access: &AccountAccess) -> impl Iterator<Item = Listed> {
    fn first<T>(changes: &Changes<T>) -> Option<u32> {
        changes.first().map(|(index, _)| *index)
    }
    let fields = [first(&access.balance_changes), first(&access.nonce_changes), first(&access.code_changes)];
    let account = fields.into_iter().flatten().min().map(|first| Listed { first, history: History::Account(place) });
    let slots = (0..).zip(&access.storage_changes).filter_map(move |(slot, (_, changes))| {
        Some(Listed { first: first(changes)?, history: History::Slot(place, slot) })
    });
    account.into_iter().chain(slots)
}

/// A value as `Source` wants it.
pub fn word(value: Value) -> Result<U256> {
    match value {
        Value::Slot(word) => Ok(word),
        Value::Account(_) => wrong_kind(),
    }
}
