//! The state as one block (or one item of it) sees it while it executes: reads are remembered with their first value,
//! writes stay here.
//!
//! Remembering the first value makes the commitment's updates, the diff and the supply identity one walk at the end.

use alloy_primitives::{Address, B256, U256};

use super::{Account, Changes, Key, Map, Sink, Slots, Source, Update, View};
use crate::error::{CoreError, Result};
use crate::evm::Bytecode;
use crate::parallel::Value;

#[derive(Debug, Default)]
struct Cached {
    original: Option<Account>,
    present: Option<Account>,
    /// slot → (value before the block, value now)
    slots: Map<U256, (U256, U256)>,
    /// Every non-zero slot is in `slots` already, so others need no look-up.
    storage_complete: bool,
}

#[derive(Debug)]
pub struct BlockState<S = View> {
    source: S,
    cache: Map<Address, Cached>,
    codes: Map<B256, Bytecode>,
    new_codes: Map<B256, Bytecode>,
    /// What was asked for or set since it was last told, if somebody wants to know.
    touched: Option<Vec<Key>>,
}

/// One location that differs from what it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Touched {
    Account(Address, Option<Account>),
    Slot(Address, U256, U256),
}

/// What a block did to the state.
#[derive(Debug, Default)]
pub struct Finished {
    pub parts: Vec<Part>,
    pub codes: Map<B256, Bytecode>,
}

/// Some of the locations that changed.
#[derive(Debug, Default)]
pub struct Part {
    pub updates: Vec<Update>,
    /// Sums of the balances of the accounts that changed, before and after the block.
    pub supply_before: U256,
    pub supply_after: U256,
}

impl Part {
    pub fn with_capacity(capacity: usize) -> Self {
        Self { updates: Vec::with_capacity(capacity), ..Self::default() }
    }

    /// # Errors
    /// `Internal` when a sum of balances exceeds 256 bits.
    pub fn push(&mut self, update: Update) -> Result<()> {
        if let Update::Account(_, before, after) = &update {
            self.supply_before = add(self.supply_before, balance(before))?;
            self.supply_after = add(self.supply_after, balance(after))?;
        }
        self.updates.push(update);
        Ok(())
    }
}

fn balance(account: &Option<Account>) -> U256 {
    account.map_or(U256::ZERO, |account| account.balance)
}

fn add(sum: U256, balance: U256) -> Result<U256> {
    sum.checked_add(balance).ok_or_else(|| CoreError::Internal("the sum of balances exceeds 256 bits".into()))
}

impl Finished {
    /// Sums of the balances of the accounts that changed, before and after the block.
    ///
    /// # Errors
    /// `Internal` when a sum exceeds 256 bits.
    pub fn supplies(&self) -> Result<(U256, U256)> {
        self.parts.iter().try_fold((U256::ZERO, U256::ZERO), |(before, after), part| {
            Ok((add(before, part.supply_before)?, add(after, part.supply_after)?))
        })
    }

    pub fn count(&self) -> usize {
        self.parts.iter().map(|part| part.updates.len()).sum()
    }

    /// The new values alone.
    pub fn changes(&self) -> Changes {
        let mut changes = Changes { codes: self.codes.clone(), ..Changes::default() };
        changes.accounts.reserve(self.count());
        for update in self.parts.iter().flat_map(|part| &part.updates) {
            match update {
                Update::Account(address, _, after) => {
                    changes.accounts.insert(*address, *after);
                }
                Update::Slot(address, slot, _, after) => {
                    changes.storage.entry(*address).or_default().insert(*slot, *after);
                }
            }
        }
        changes
    }
}

impl<S: Source> BlockState<S> {
    pub fn new(source: S) -> Self {
        Self { source, cache: Map::default(), codes: Map::default(), new_codes: Map::default(), touched: None }
    }

    /// A state that keeps what is asked for or set, for `take_touched`.
    pub fn watched(source: S) -> Self {
        Self { touched: Some(Vec::new()), ..Self::new(source) }
    }

    /// What was asked for or set since the last call; several times if it was.
    pub fn take_touched(&mut self) -> Vec<Key> {
        self.touched.as_mut().map(std::mem::take).unwrap_or_default()
    }

    fn touch(&mut self, key: Key) {
        if let Some(touched) = &mut self.touched {
            touched.push(key);
        }
    }

    /// A location that was asked for or set, as it is now.
    pub fn present(&self, key: &Key) -> Option<Value> {
        match key {
            Key::Account(address) => Some(Value::Account(self.cache.get(address)?.present)),
            Key::Slot(address, slot) => Some(Value::Slot(self.cache.get(address)?.slots.get(slot)?.1)),
        }
    }

    /// The codes added so far.
    pub fn new_codes(&self) -> &Map<B256, Bytecode> {
        &self.new_codes
    }

    pub fn source(&mut self) -> &mut S {
        &mut self.source
    }

    fn cached(&mut self, address: &Address) -> Result<&mut Cached> {
        if !self.cache.contains_key(address) {
            let account = self.source.account(address)?;
            let cached = Cached { original: account, present: account, ..Cached::default() };
            self.cache.insert(*address, cached);
        }
        self.cache.get_mut(address).ok_or_else(|| CoreError::Internal("account vanished from the cache".into()))
    }

    /// # Errors
    /// `Internal` when the balance would exceed 256 bits, which no conserved supply can.
    pub fn credit(&mut self, address: &Address, amount: U256) -> Result<()> {
        if amount.is_zero() {
            return Ok(());
        }
        let mut account = self.account(address)?.unwrap_or_default();
        account.balance = account
            .balance
            .checked_add(amount)
            .ok_or_else(|| CoreError::Internal(format!("balance of {address} exceeds 256 bits")))?;
        self.set_account(address, Some(account))
    }

    /// # Errors
    /// `Internal` when the balance does not cover the amount.
    pub fn debit(&mut self, address: &Address, amount: U256) -> Result<()> {
        let mut account = self.account(address)?.unwrap_or_default();
        account.balance = account
            .balance
            .checked_sub(amount)
            .ok_or_else(|| CoreError::Internal(format!("balance of {address} does not cover {amount}")))?;
        self.set_account(address, Some(account))
    }

    pub fn balance(&mut self, address: &Address) -> Result<U256> {
        Ok(self.account(address)?.unwrap_or_default().balance)
    }

    pub fn has_code(&mut self, address: &Address) -> Result<bool> {
        Ok(self.account(address)?.is_some_and(|account| account.has_code()))
    }

    /// What changed since this state was made or last taken from, with the codes added; forgets everything.
    pub fn take_changes(&mut self) -> (Vec<Touched>, Map<B256, Bytecode>) {
        let mut touched = Vec::new();
        for (address, cached) in self.cache.drain() {
            if cached.original != cached.present {
                touched.push(Touched::Account(address, cached.present));
            }
            let changed = cached.slots.into_iter().filter(|(_, (before, after))| before != after);
            touched.extend(changed.map(|(slot, (_, after))| Touched::Slot(address, slot, after)));
        }
        self.codes.clear();
        (touched, std::mem::take(&mut self.new_codes))
    }

    /// # Errors
    /// `Internal` when a sum of balances exceeds 256 bits.
    pub fn finish(self) -> Result<Finished> {
        let mut part = Part::with_capacity(self.cache.len());
        for (address, cached) in self.cache {
            let Cached { original, present, slots, .. } = cached;
            if original != present {
                part.push(Update::Account(address, original, present))?;
            }
            for (slot, (before, after)) in slots {
                if before != after {
                    part.push(Update::Slot(address, slot, before, after))?;
                }
            }
        }
        Ok(Finished { parts: vec![part], codes: self.new_codes })
    }
}

impl<S: Source> Source for BlockState<S> {
    fn account(&mut self, address: &Address) -> Result<Option<Account>> {
        self.touch(Key::Account(*address));
        if let Some(cached) = self.cache.get(address) {
            return Ok(cached.present);
        }
        Ok(self.cached(address)?.present)
    }

    fn slot(&mut self, address: &Address, slot: &U256) -> Result<U256> {
        self.touch(Key::Slot(*address, *slot));
        if let Some(cached) = self.cache.get(address) {
            if let Some((_, present)) = cached.slots.get(slot) {
                return Ok(*present);
            }
            if cached.storage_complete {
                return Ok(U256::ZERO);
            }
        }
        let value = self.source.slot(address, slot)?;
        self.cached(address)?.slots.insert(*slot, (value, value));
        Ok(value)
    }

    fn slots(&mut self, address: &Address) -> Result<Slots> {
        let mut slots = self.source.slots(address)?;
        let cached = self.cached(address)?;
        slots.extend(cached.slots.iter().map(|(slot, (_, present))| (*slot, *present)));
        slots.retain(|_, value| !value.is_zero());
        Ok(slots)
    }

    fn code(&mut self, hash: &B256) -> Result<Bytecode> {
        if let Some(code) = self.codes.get(hash) {
            return Ok(code.clone());
        }
        let code = self.source.code(hash)?;
        self.codes.insert(*hash, code.clone());
        Ok(code)
    }
}

impl<S: Source> Sink for BlockState<S> {
    fn set_account(&mut self, address: &Address, account: Option<Account>) -> Result<()> {
        self.touch(Key::Account(*address));
        self.cached(address)?.present = account.filter(|account| !account.is_empty());
        Ok(())
    }

    fn set_slot(&mut self, address: &Address, slot: &U256, value: U256) -> Result<()> {
        self.slot(address, slot)?;
        self.cached(address)?.slots.entry(*slot).or_default().1 = value;
        Ok(())
    }

    fn wipe_storage(&mut self, address: &Address) -> Result<()> {
        if !self.cached(address)?.storage_complete {
            let stored: Slots = self.source.slots(address)?;
            let cached = self.cached(address)?;
            for (slot, value) in stored {
                cached.slots.entry(slot).or_insert((value, value));
            }
            cached.storage_complete = true;
        }
        self.cached(address)?.slots.values_mut().for_each(|(_, present)| *present = U256::ZERO);
        Ok(())
    }

    fn add_code(&mut self, hash: B256, code: Bytecode) {
        self.new_codes.entry(hash).or_insert_with(|| code.clone());
        self.codes.entry(hash).or_insert(code);
    }
}
