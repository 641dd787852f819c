//! The state as one block sees it while it executes: reads are remembered with their first value, writes stay here.
//!
//! Remembering the first value makes the commitment's updates, the diff and the supply identity one walk at the end.

use alloy_primitives::{Address, B256, U256};

use super::{Account, Changes, Map, Slots, Update, View};
use crate::error::{CoreError, Result};
use crate::evm::Bytecode;

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
pub struct BlockState {
    view: View,
    cache: Map<Address, Cached>,
    codes: Map<B256, Bytecode>,
    new_codes: Map<B256, Bytecode>,
}

/// What a block did to the state.
#[derive(Debug)]
pub struct Finished {
    pub changes: Changes,
    pub updates: Vec<Update>,
    /// Sums of the balances of the accounts that changed, before and after the block.
    pub supply_before: U256,
    pub supply_after: U256,
}

impl BlockState {
    pub fn new(view: View) -> Self {
        Self { view, cache: Map::default(), codes: Map::default(), new_codes: Map::default() }
    }

    fn cached(&mut self, address: &Address) -> Result<&mut Cached> {
        if !self.cache.contains_key(address) {
            let account = self.view.account(address)?;
            let cached = Cached { original: account, present: account, ..Cached::default() };
            self.cache.insert(*address, cached);
        }
        self.cache.get_mut(address).ok_or_else(|| CoreError::Internal("account vanished from the cache".into()))
    }

    pub fn account(&mut self, address: &Address) -> Result<Option<Account>> {
        if let Some(cached) = self.cache.get(address) {
            return Ok(cached.present);
        }
        Ok(self.cached(address)?.present)
    }

    /// Sets an account; an empty one is gone (EIP-161).
    pub fn set_account(&mut self, address: &Address, account: Option<Account>) -> Result<()> {
        self.cached(address)?.present = account.filter(|account| !account.is_empty());
        Ok(())
    }

    pub fn slot(&mut self, address: &Address, slot: &U256) -> Result<U256> {
        if let Some(cached) = self.cache.get(address) {
            if let Some((_, present)) = cached.slots.get(slot) {
                return Ok(*present);
            }
            if cached.storage_complete {
                return Ok(U256::ZERO);
            }
        }
        let value = self.view.slot(address, slot)?;
        self.cached(address)?.slots.insert(*slot, (value, value));
        Ok(value)
    }

    pub fn set_slot(&mut self, address: &Address, slot: &U256, value: U256) -> Result<()> {
        self.slot(address, slot)?;
        self.cached(address)?.slots.entry(*slot).or_default().1 = value;
        Ok(())
    }

    /// Clears an account's storage: it was destroyed, or created anew.
    pub fn wipe_storage(&mut self, address: &Address) -> Result<()> {
        if !self.cached(address)?.storage_complete {
            let stored: Slots = self.view.slots(address)?;
            let cached = self.cached(address)?;
            for (slot, value) in stored {
                cached.slots.entry(slot).or_insert((value, value));
            }
            cached.storage_complete = true;
        }
        self.cached(address)?.slots.values_mut().for_each(|(_, present)| *present = U256::ZERO);
        Ok(())
    }

    /// # Errors
    /// `Internal` when an account names a code nobody stored.
    pub fn code(&mut self, hash: &B256) -> Result<Bytecode> {
        if let Some(code) = self.codes.get(hash) {
            return Ok(code.clone());
        }
        let code = self.view.code(hash).ok_or_else(|| CoreError::Internal(format!("code {hash} is not held")))?;
        self.codes.insert(*hash, code.clone());
        Ok(code)
    }

    pub fn add_code(&mut self, hash: B256, code: Bytecode) {
        self.new_codes.entry(hash).or_insert_with(|| code.clone());
        self.codes.entry(hash).or_insert(code);
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

    /// # Errors
    /// `Internal` when a sum of balances exceeds 256 bits.
    pub fn finish(self) -> Result<Finished> {
        let mut changes = Changes { codes: self.new_codes, ..Changes::default() };
        let mut updates = Vec::new();
        let (mut supply_before, mut supply_after) = (U256::ZERO, U256::ZERO);
        let overflow = || CoreError::Internal("the sum of balances exceeds 256 bits".into());
        for (address, cached) in self.cache {
            let Cached { original, present, slots, .. } = cached;
            if original != present {
                let balance = |account: &Option<Account>| account.map_or(U256::ZERO, |account| account.balance);
                supply_before = supply_before.checked_add(balance(&original)).ok_or_else(overflow)?;
                supply_after = supply_after.checked_add(balance(&present)).ok_or_else(overflow)?;
                changes.accounts.insert(address, present);
                updates.push(Update::Account(address, original, present));
            }
            let mut changed = Slots::default();
            for (slot, (before, after)) in slots {
                if before != after {
                    changed.insert(slot, after);
                    updates.push(Update::Slot(address, slot, before, after));
                }
            }
            if !changed.is_empty() {
                changes.storage.insert(address, changed);
            }
        }
        Ok(Finished { changes, updates, supply_before, supply_after })
    }
}
