//! The state as one item of a block reads it: through the multi-version memory, remembering what it saw and why.
//!
//! What was seen is checked again when the item's turn to commit comes. A transfer relies on less than it reads: a
//! predicate on the sender, the absence of code at the recipient; credits that others give them meanwhile do no harm.

use std::sync::Arc;

use alloy_primitives::{Address, B256, U256};

use super::codes::Codes;
use super::locations::FirstFound;
use super::memory::{Found, Key, Memory, Seen, Stamp, Value, wrong_kind};
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

/// What one item relies on, location by location; kept small, because the committer reads it again.
#[derive(Debug, Default)]
pub struct Reads {
    stamps: Vec<(u32, Stamp)>,
    others: Vec<(u32, Seen)>,
}

impl Reads {
    pub fn clear(&mut self) {
        self.stamps.clear();
        self.others.clear();
    }

    /// Whether everything seen is still there for item `index`.
    pub fn still_hold(&self, memory: &Memory, index: u32) -> Result<bool> {
        for (location, stamp) in &self.stamps {
            if !memory.still_holds(*location, &Seen::Stamp(*stamp), index)? {
                memory.blame(*location);
                return Ok(false);
            }
        }
        for (location, seen) in &self.others {
            if !memory.still_holds(*location, seen, index)? {
                memory.blame(*location);
                return Ok(false);
            }
        }
        Ok(true)
    }
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
    pub reads: Reads,
    /// The item asked for the beneficiary's account and saw it with all its fees.
    pub saw_tips: bool,
    /// The last item before this one that left what it read; 0 when that is older than the block.
    pub nearest: u32,
    pub stop: Option<Stop>,
    /// Every location that the item asked for.
    pub touched: Vec<u32>,
    codes: Codes,
    found: FirstFound,
}

impl Reader {
    pub fn new(memory: Arc<Memory>, beneficiary: Address) -> Self {
        Self {
            memory,
            beneficiary,
            index: 0,
            is_final: false,
            tips: U256::ZERO,
            reads: Reads::default(),
            saw_tips: false,
            nearest: 0,
            stop: None,
            touched: Vec::new(),
            codes: Codes::default(),
            found: FirstFound::default(),
        }
    }

    /// Starts over as item `index`; `tips` when everything before it is committed.
    pub fn reset(&mut self, index: u32, tips: Option<U256>) {
        self.index = index;
        self.is_final = tips.is_some();
        self.tips = tips.unwrap_or_default();
        self.reads.clear();
        self.saw_tips = false;
        self.nearest = 0;
        self.stop = None;
        self.touched.clear();
        self.found.clear();
    }

    fn halt<T>(&mut self, stop: Stop) -> Result<T> {
        self.stop.get_or_insert(stop);
        Err(CoreError::Internal("execution stopped".into()))
    }

    /// Where a location lies that the item likely looked at before.
    pub fn locate(&self, key: &Key) -> Result<u32> {
        match self.found.get(key) {
            Some(location) => Ok(location),
            None => self.memory.locate(key),
        }
    }

    fn look(&mut self, key: Key) -> Result<(u32, Value, Option<Stamp>)> {
        let location = self.memory.locate(&key)?;
        self.found.note(&key, location);
        self.touched.push(location);
        super::perturb();
        match self.memory.read(location, self.index)? {
            Found::Value(value, stamp) => {
                self.nearest = self.nearest.max(stamp.map_or(0, |stamp| stamp.index));
                Ok((location, value, stamp))
            }
            Found::Blocked(writer) => self.halt(Stop::Blocked(writer)),
        }
    }

    /// At its turn an item sees what is committed, and nothing is checked again.
    fn remember(&mut self, location: u32, value: impl FnOnce() -> Value, stamp: Option<Stamp>) {
        match stamp {
            _ if self.is_final => {}
            Some(stamp) => self.reads.stamps.push((location, stamp)),
            None => self.reads.others.push((location, Seen::Value(value()))),
        }
    }

    fn rely(&mut self, location: u32, seen: Seen) {
        if !self.is_final {
            self.reads.others.push((location, seen));
        }
    }

    /// Every item pays the beneficiary, so its balance is known only once all before are committed.
    fn look_account(&mut self, address: &Address) -> Result<(u32, Option<Account>, Option<Stamp>)> {
        let is_beneficiary = *address == self.beneficiary;
        if is_beneficiary && !self.is_final {
            return self.halt(Stop::NotYet);
        }
        let (location, value, stamp) = self.look(Key::Account(*address))?;
        let Value::Account(mut account) = value else { return wrong_kind() };
        if is_beneficiary {
            self.saw_tips = true;
            if !self.tips.is_zero() {
                let mut paid = account.unwrap_or_default();
                paid.balance = paid
                    .balance
                    .checked_add(self.tips)
                    .ok_or_else(|| CoreError::Internal(format!("balance of {address} exceeds 256 bits")))?;
                account = Some(paid);
            }
        }
        Ok((location, account, stamp))
    }

    /// Where the sender's account lies, if the predicate holds; only the predicate is relied on.
    pub fn sender(&mut self, address: &Address, predicate: Predicate) -> Result<Option<u32>> {
        let (location, account, _) = self.look_account(address)?;
        if !predicate.holds(account.as_ref()) {
            return Ok(None);
        }
        self.rely(location, Seen::Sender(predicate));
        Ok(Some(location))
    }

    /// Where the recipient's account lies, if it has no code; only that is relied on.
    pub fn recipient(&mut self, address: &Address) -> Result<Option<u32>> {
        let (location, value, _) = self.look(Key::Account(*address))?;
        if matches!(value, Value::Account(Some(account)) if account.has_code()) {
            return Ok(None);
        }
        self.rely(location, Seen::NoCode);
        Ok(Some(location))
    }
}

impl Source for Reader {
    fn account(&mut self, address: &Address) -> Result<Option<Account>> {
        let (location, account, stamp) = self.look_account(address)?;
        self.remember(location, || Value::Account(account), stamp);
        Ok(account)
    }

    fn slot(&mut self, address: &Address, slot: &U256) -> Result<U256> {
        let (location, value, stamp) = self.look(Key::Slot(*address, *slot))?;
        let Value::Slot(word) = value else { return wrong_kind() };
        self.remember(location, || value, stamp);
        Ok(word)
    }

    /// Asked only of accounts created (or created and destroyed) in this very item, which had neither nonce nor code
    /// before. Such an account has no storage: genesis refuses it, since EIP-6780 no account loses its code without its
    /// storage, and a delegating account (EIP-7702) has a nonce.
    fn slots(&mut self, _: &Address) -> Result<Slots> {
        Ok(Slots::default())
    }

    fn code(&mut self, hash: &B256) -> Result<Bytecode> {
        self.codes.get(&self.memory, hash)
    }
}
