//! The state as one item of a block reads it: through the multi-version memory, remembering what it saw and why.
//!
//! What was seen is checked again when the item's turn to commit comes. A transfer relies on less than it reads: a
//! predicate on the sender, the absence of code at the recipient; credits that others give them meanwhile do no harm.

use std::sync::Arc;

use alloy_primitives::{Address, B256, U256};

use super::memory::{Found, Key, Location, Memory, Value};
use crate::error::{CoreError, Result};
use crate::evm::Bytecode;
use crate::state::{Account, Slots, Source};
use crate::transfer::Predicate;

/// Why an execution stopped before its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// The item of this index has to run first.
    Blocked(u32),
    /// Only at its turn to commit is there an answer: it asks what the beneficiary owns.
    NotYet,
}

/// What an execution relies on.
#[derive(Debug, Clone, Copy)]
pub enum Seen {
    Value(Value),
    Sender(Predicate),
    NoCode,
}

#[derive(Debug)]
pub struct Read {
    pub location: Arc<Location>,
    pub seen: Seen,
}

#[derive(Debug)]
pub struct Reader {
    memory: Arc<Memory>,
    beneficiary: Address,
    index: u32,
    /// Everything before this item is committed: what it reads is final.
    is_final: bool,
    /// Fees of the items before that are not in the memory yet; known only when `is_final`.
    tips: U256,
    pub reads: Vec<Read>,
    pub stop: Option<Stop>,
}

impl Reader {
    pub fn new(memory: Arc<Memory>, beneficiary: Address) -> Self {
        Self { memory, beneficiary, index: 0, is_final: false, tips: U256::ZERO, reads: Vec::new(), stop: None }
    }

    /// Starts over as item `index`; `tips` when everything before it is committed.
    pub fn reset(&mut self, index: u32, tips: Option<U256>) {
        self.index = index;
        self.is_final = tips.is_some();
        self.tips = tips.unwrap_or_default();
        self.reads.clear();
        self.stop = None;
    }

    fn halt<T>(&mut self, stop: Stop) -> Result<T> {
        self.stop.get_or_insert(stop);
        Err(CoreError::Internal("execution stopped".into()))
    }

    fn look(&mut self, key: Key) -> Result<(Arc<Location>, Value)> {
        let location = self.memory.locate(&key);
        super::perturb();
        match self.memory.read(&location, self.index)? {
            Found::Value(value) => Ok((location, value)),
            Found::Blocked(writer) => self.halt(Stop::Blocked(writer)),
        }
    }

    /// Every item pays the beneficiary, so its balance is known only once all before are committed.
    fn look_account(&mut self, address: &Address) -> Result<(Arc<Location>, Option<Account>)> {
        let is_beneficiary = *address == self.beneficiary;
        if is_beneficiary && !self.is_final {
            return self.halt(Stop::NotYet);
        }
        let (location, value) = self.look(Key::Account(*address))?;
        let Value::Account(mut account) = value else { return wrong_kind() };
        if is_beneficiary && !self.tips.is_zero() {
            let mut paid = account.unwrap_or_default();
            paid.balance = paid
                .balance
                .checked_add(self.tips)
                .ok_or_else(|| CoreError::Internal(format!("balance of {address} exceeds 256 bits")))?;
            account = Some(paid);
        }
        Ok((location, account))
    }

    fn remember(&mut self, location: Arc<Location>, seen: Seen) {
        self.reads.push(Read { location, seen });
    }

    /// Where the sender's account lies, if the predicate holds; only the predicate is relied on.
    pub fn sender(&mut self, address: &Address, predicate: Predicate) -> Result<Option<Arc<Location>>> {
        let (location, account) = self.look_account(address)?;
        if !predicate.holds(account.as_ref()) {
            return Ok(None);
        }
        self.remember(location.clone(), Seen::Sender(predicate));
        Ok(Some(location))
    }

    /// Where the recipient's account lies, if it has no code; only that is relied on.
    pub fn recipient(&mut self, address: &Address) -> Result<Option<Arc<Location>>> {
        let (location, value) = self.look(Key::Account(*address))?;
        if matches!(value, Value::Account(Some(account)) if account.has_code()) {
            return Ok(None);
        }
        self.remember(location.clone(), Seen::NoCode);
        Ok(Some(location))
    }
}

/// Whether what was seen is still there for item `index`; unknown counts as yes, the turn to commit will tell.
pub fn still_holds(memory: &Memory, read: &Read, index: u32) -> Result<bool> {
    let Found::Value(now) = memory.read(&read.location, index)? else { return Ok(true) };
    Ok(match (&read.seen, now) {
        (Seen::Value(seen), now) => *seen == now,
        (Seen::Sender(predicate), Value::Account(account)) => predicate.holds(account.as_ref()),
        (Seen::NoCode, Value::Account(account)) => !account.is_some_and(|account| account.has_code()),
        (_, Value::Slot(_)) => false,
    })
}

fn wrong_kind<T>() -> Result<T> {
    Err(CoreError::Internal("a location changed its kind".into()))
}

impl Source for Reader {
    fn account(&mut self, address: &Address) -> Result<Option<Account>> {
        let (location, account) = self.look_account(address)?;
        self.remember(location, Seen::Value(Value::Account(account)));
        Ok(account)
    }

    fn slot(&mut self, address: &Address, slot: &U256) -> Result<U256> {
        let (location, value) = self.look(Key::Slot(*address, *slot))?;
        let Value::Slot(word) = value else { return wrong_kind() };
        self.remember(location, Seen::Value(value));
        Ok(word)
    }

    /// Asked only of accounts created (or created and destroyed) in this very item, which had neither nonce nor code
    /// before. Such an account has no storage: genesis refuses it, since EIP-6780 no account loses its code without its
    /// storage, and a delegating account (EIP-7702) has a nonce.
    fn slots(&mut self, _: &Address) -> Result<Slots> {
        Ok(Slots::default())
    }

    fn code(&mut self, hash: &B256) -> Result<Bytecode> {
        self.memory.code(hash)
    }
}
