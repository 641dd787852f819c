//! The journal as revm calls it.

use alloy_primitives::{Address, B256, KECCAK256_EMPTY, Log, U256};
use revm::context::journaled_state::account::JournaledAccountTr;
use revm::context::journaled_state::{
    AccountInfoLoad, AccountLoad, JournalCheckpoint, JournalLoadError, JournalTr, TransferError,
};
use revm::context_interface::ErasedError;
use revm::context_interface::context::{SStoreResult, SelfDestructResult, StateLoad};
use revm::context_interface::journaled_state::JournalLoadErasedError;
use revm::primitives::hardfork::SpecId;
use revm::primitives::{AddressMap, AddressSet, HashSet};
use revm::state::{Account as EvmAccount, EvmState, EvmStorageSlot};

use super::{Entry, Load, Numbering, StepJournal, is_padded};
use crate::evm::{Bytecode, Db, StateError};

/// An account of the journal, to be changed.
#[derive(Debug)]
pub struct Loaded<'a, S> {
    journal: &'a mut StepJournal<S>,
    row: u32,
}

impl<'a, S> Loaded<'a, S> {
    fn into_account(self) -> &'a EvmAccount {
        &self.journal.accounts[self.row as usize].account
    }

    fn change_code(&mut self, code_hash: B256, code: Option<Bytecode>) {
        self.journal.touch(self.row);
        let info = &mut self.journal.accounts[self.row as usize].account.info;
        let before = Box::new(revm::state::AccountInfo { code: info.code.take(), ..info.clone() });
        (info.code_hash, info.code) = (code_hash, code);
        self.journal.entries.push(Entry::Code { account: self.row, before });
    }
}

impl<S: Numbering> JournaledAccountTr for Loaded<'_, S> {
    fn account(&self) -> &EvmAccount {
        &self.journal.accounts[self.row as usize].account
    }

    fn sload(
        &mut self,
        key: U256,
        skip_cold_load: bool,
    ) -> Result<StateLoad<&mut EvmStorageSlot>, JournalLoadErasedError> {
        let load = self.journal.load_slot(self.row, &key, skip_cold_load);
        let load = load.map_err(|error| error.map(ErasedError::new))?;
        Ok(load.map(|row| &mut self.journal.slots[row as usize].slot))
    }

    fn sstore(
        &mut self,
        key: U256,
        new: U256,
        skip_cold_load: bool,
    ) -> Result<StateLoad<SStoreResult>, JournalLoadErasedError> {
        self.journal.store(self.row, &key, new, skip_cold_load).map_err(|error| error.map(ErasedError::new))
    }

    fn load_code(&mut self) -> Result<&Bytecode, JournalLoadErasedError> {
        self.journal.load_code(self.row).map_err(|error| JournalLoadError::DBError(ErasedError::new(error)))
    }

    fn balance(&self) -> &U256 {
        &self.account().info.balance
    }

    fn nonce(&self) -> u64 {
        self.account().info.nonce
    }

    fn code_hash(&self) -> &B256 {
        &self.account().info.code_hash
    }

    fn code(&self) -> Option<&Bytecode> {
        self.account().info.code.as_ref()
    }

    fn touch(&mut self) {
        self.journal.touch(self.row);
    }

    fn unsafe_mark_cold(&mut self) {
        self.journal.account(self.row).mark_cold();
    }

    fn set_balance(&mut self, balance: U256) {
        self.journal.touch(self.row);
        let before = std::mem::replace(&mut self.journal.account(self.row).info.balance, balance);
        if before != balance {
            self.journal.entries.push(Entry::Balance { account: self.row, before });
        }
    }

    fn incr_balance(&mut self, balance: U256) -> bool {
        self.journal.touch(self.row);
        let sum = self.balance().checked_add(balance);
        sum.map(|balance| self.set_balance(balance)).is_some()
    }

    fn decr_balance(&mut self, balance: U256) -> bool {
        self.journal.touch(self.row);
        let rest = self.balance().checked_sub(balance);
        rest.map(|balance| self.set_balance(balance)).is_some()
    }

    fn bump_nonce(&mut self) -> bool {
        self.journal.touch(self.row);
        let next = self.nonce().checked_add(1);
        next.map(|nonce| self.set_nonce(nonce)).is_some()
    }

    fn set_nonce(&mut self, nonce: u64) {
        self.journal.touch(self.row);
        let before = std::mem::replace(&mut self.journal.account(self.row).info.nonce, nonce);
        self.journal.entries.push(Entry::Nonce { account: self.row, before });
    }

    fn unsafe_set_nonce(&mut self, nonce: u64) {
        self.journal.account(self.row).info.nonce = nonce;
    }

    fn set_code(&mut self, code_hash: B256, code: Bytecode) {
        self.change_code(code_hash, Some(code));
    }

    fn set_code_and_hash_slow(&mut self, code: Bytecode) {
        self.change_code(code.hash_slow(), Some(code));
    }

    /// EIP-7702: naming nobody ends the delegation.
    fn delegate(&mut self, address: Address) {
        let (hash, code) = if address.is_zero() {
            (KECCAK256_EMPTY, Bytecode::default())
        } else {
            let code = Bytecode::new_eip7702(address);
            (code.hash_slow(), code)
        };
        self.change_code(hash, Some(code));
        self.bump_nonce();
    }
}

impl<S: Numbering> StepJournal<S> {
    fn store(&mut self, owner: u32, key: &U256, new: U256, skip_cold: bool) -> Load<StateLoad<SStoreResult>> {
        self.touch(owner);
        let load = self.load_slot(owner, key, skip_cold)?;
        let slot = &mut self.slots[load.data as usize].slot;
        let present = std::mem::replace(&mut slot.present_value, new);
        let result = SStoreResult { original_value: slot.original_value, present_value: present, new_value: new };
        if present != new {
            self.entries.push(Entry::Slot { slot: load.data, before: present });
        }
        Ok(StateLoad::new(result, load.is_cold))
    }

    fn load_mut(&mut self, address: &Address, with_code: bool, skip_cold: bool) -> Load<StateLoad<Loaded<'_, S>>> {
        let (row, is_cold) = self.load(address, skip_cold)?;
        if with_code {
            self.load_code(row)?;
        }
        Ok(StateLoad::new(Loaded { journal: self, row }, is_cold))
    }

    /// # Errors
    /// That of the source alone: nothing is skipped.
    fn load_any(&mut self, address: &Address, with_code: bool) -> Result<StateLoad<Loaded<'_, S>>, StateError> {
        self.load_mut(address, with_code, false).map_err(JournalLoadError::unwrap_db_error)
    }

    /// The nonce was raised by somebody else.
    fn note_bump(&mut self, account: u32) {
        let before = self.account(account).info.nonce.saturating_sub(1);
        self.entries.push(Entry::Nonce { account, before });
    }

    fn transient_row(&mut self, address: &Address, key: U256) -> u32 {
        let owner = self.loaded(address);
        *self.transient_rows.entry((owner, key)).or_insert_with(|| {
            self.transient.push(U256::ZERO);
            self.transient.len() as u32 - 1
        })
    }
}

impl<S: Numbering> JournalTr for StepJournal<S> {
    type Database = Db<S>;
    type State = EvmState;
    type JournaledAccount<'a>
        = Loaded<'a, S>
    where
        S: 'a;

    fn new(database: Db<S>) -> Self {
        Self::new(database)
    }

    fn db_and_state(&self) -> (&Db<S>, &EvmState) {
        (&self.db, &self.none)
    }

    fn db_and_state_mut(&mut self) -> (&mut Db<S>, &mut EvmState) {
        (&mut self.db, &mut self.none)
    }

    fn sload_skip_cold_load(&mut self, address: Address, key: U256, skip_cold_load: bool) -> Load<StateLoad<U256>> {
        let Some(owner) = self.find(&address) else { return Err(JournalLoadError::ColdLoadSkipped) };
        let load = self.load_slot(owner, &key, skip_cold_load)?;
        Ok(load.map(|row| self.slots[row as usize].slot.present_value))
    }

    fn sstore_skip_cold_load(
        &mut self,
        address: Address,
        key: U256,
        value: U256,
        skip_cold_load: bool,
    ) -> Load<StateLoad<SStoreResult>> {
        let Some(owner) = self.find(&address) else { return Err(JournalLoadError::ColdLoadSkipped) };
        self.store(owner, &key, value, skip_cold_load)
    }

    fn tload(&mut self, address: Address, key: U256) -> U256 {
        let owner = self.loaded(&address);
        self.transient_rows.get(&(owner, key)).map_or(U256::ZERO, |row| self.transient[*row as usize])
    }

    fn tstore(&mut self, address: Address, key: U256, value: U256) {
        let row = self.transient_row(&address, key);
        let before = std::mem::replace(&mut self.transient[row as usize], value);
        if before != value {
            self.entries.push(Entry::Transient { row, before });
        }
    }

    fn log(&mut self, log: Log) {
        self.logs.push(log);
    }

    fn take_logs(&mut self) -> Vec<Log> {
        std::mem::take(&mut self.logs)
    }

    fn logs(&self) -> &[Log] {
        &self.logs
    }

    /// EIP-6780: only what the transaction itself created is gone.
    fn selfdestruct(
        &mut self,
        address: Address,
        target: Address,
        skip_cold_load: bool,
    ) -> Load<StateLoad<SelfDestructResult>> {
        let (to, is_cold) = self.load(&target, skip_cold_load)?;
        let target_exists = !self.account(to).is_empty();
        let from = self.loaded(&address);
        let balance = self.account(from).info.balance;
        if from != to {
            self.touch(to);
            self.account(to).info.balance += balance;
        }
        let account = self.account(from);
        let before = account.status;
        let previously_destroyed = account.is_selfdestructed() && account.is_selfdestructed_locally();
        if account.is_created_locally() {
            account.mark_selfdestructed_locally();
            account.info.balance = U256::ZERO;
            self.entries.push(Entry::Destroyed { account: from, target: to, before, balance });
        } else if from != to {
            account.info.balance = U256::ZERO;
            self.entries.push(Entry::Paid { from, to, amount: balance });
        }
        let result = SelfDestructResult { had_value: !balance.is_zero(), target_exists, previously_destroyed };
        Ok(StateLoad::new(result, is_cold))
    }

    fn warm_access_list(&mut self, access_list: AddressMap<HashSet<U256>>) {
        self.warm.listed = access_list;
    }

    fn warm_coinbase_account(&mut self, address: Address) {
        self.warm.coinbase = Some(address);
    }

    fn warm_precompiles(&mut self, addresses: &AddressSet) {
        self.warm.are_padded = addresses.iter().all(is_padded);
        self.warm.precompiles.clone_from(addresses);
    }

    fn precompile_addresses(&self) -> &AddressSet {
        &self.warm.precompiles
    }

    /// The rules are the same from Cancun on, as far as a journal knows them.
    fn set_spec_id(&mut self, _: SpecId) {}

    /// Both are of Amsterdam.
    fn set_eip7708_config(&mut self, _: bool, _: bool) {}

    fn touch_account(&mut self, address: Address) {
        if let Some(row) = self.find(&address) {
            self.touch(row);
        }
    }

    fn transfer(&mut self, from: Address, to: Address, balance: U256) -> Result<Option<TransferError>, StateError> {
        self.load_any(&from, false)?;
        self.load_any(&to, false)?;
        Ok(self.transfer_loaded(from, to, balance))
    }

    fn transfer_loaded(&mut self, from: Address, to: Address, amount: U256) -> Option<TransferError> {
        let (from, to) = (self.loaded(&from), self.loaded(&to));
        let have = self.account(from).info.balance;
        if from == to {
            return if amount > have { Some(TransferError::OutOfFunds) } else { None };
        }
        if amount.is_zero() {
            self.touch(to);
            return None;
        }
        self.touch(from);
        let Some(rest) = have.checked_sub(amount) else { return Some(TransferError::OutOfFunds) };
        self.account(from).info.balance = rest;
        self.touch(to);
        let Some(sum) = self.account(to).info.balance.checked_add(amount) else {
            return Some(TransferError::OverflowPayment);
        };
        self.account(to).info.balance = sum;
        self.entries.push(Entry::Paid { from, to, amount });
        None
    }

    fn caller_accounting_journal_entry(&mut self, address: Address, before: U256, bump_nonce: bool) {
        let account = self.loaded(&address);
        self.entries.extend([Entry::Balance { account, before }, Entry::Touched(account)]);
        if bump_nonce {
            self.note_bump(account);
        }
    }

    fn balance_incr(&mut self, address: Address, balance: U256) -> Result<(), StateError> {
        self.load_any(&address, false)?.data.incr_balance(balance);
        Ok(())
    }

    fn nonce_bump_journal_entry(&mut self, address: Address) {
        let account = self.loaded(&address);
        self.note_bump(account);
    }

    fn load_account(&mut self, address: Address) -> Result<StateLoad<&EvmAccount>, StateError> {
        Ok(self.load_any(&address, false)?.map(Loaded::into_account))
    }

    fn load_account_with_code(&mut self, address: Address) -> Result<StateLoad<&EvmAccount>, StateError> {
        Ok(self.load_any(&address, true)?.map(Loaded::into_account))
    }

    /// EIP-7702: whom the account delegates to is loaded as well.
    fn load_account_delegated(&mut self, address: Address) -> Result<StateLoad<AccountLoad>, StateError> {
        let load = self.load_any(&address, true)?;
        let is_cold = load.is_cold;
        let account = load.data.into_account();
        let is_empty = account.is_empty();
        let delegate = account.info.code.as_ref().and_then(Bytecode::eip7702_address);
        let is_delegate_account_cold = match delegate {
            Some(delegate) => Some(self.load_any(&delegate, true)?.is_cold),
            None => None,
        };
        Ok(StateLoad::new(AccountLoad { is_delegate_account_cold, is_empty }, is_cold))
    }

    fn load_account_mut_skip_cold_load(
        &mut self,
        address: Address,
        skip_cold_load: bool,
    ) -> Load<StateLoad<Loaded<'_, S>>> {
        self.load_mut(&address, false, skip_cold_load)
    }

    fn load_account_mut_optional_code(
        &mut self,
        address: Address,
        load_code: bool,
    ) -> Result<StateLoad<Loaded<'_, S>>, StateError> {
        self.load_any(&address, load_code)
    }

    fn set_code_with_hash(&mut self, address: Address, code: Bytecode, hash: B256) {
        let row = self.loaded(&address);
        Loaded { journal: self, row }.change_code(hash, Some(code));
    }

    fn checkpoint(&mut self) -> JournalCheckpoint {
        self.depth += 1;
        JournalCheckpoint { log_i: self.logs.len(), journal_i: self.entries.len(), selfdestructed_i: 0 }
    }

    fn checkpoint_commit(&mut self) {
        self.depth = self.depth.saturating_sub(1);
    }

    fn checkpoint_revert(&mut self, checkpoint: JournalCheckpoint) {
        self.checkpoint_commit();
        self.logs.truncate(checkpoint.log_i);
        self.revert(checkpoint.journal_i);
    }

    fn create_account_checkpoint(
        &mut self,
        caller: Address,
        address: Address,
        balance: U256,
        _: SpecId,
    ) -> Result<JournalCheckpoint, TransferError> {
        let checkpoint = self.checkpoint();
        let (from, created) = (self.loaded(&caller), self.loaded(&address));
        let account = self.account(created);
        if account.info.code_hash != KECCAK256_EMPTY || account.info.nonce != 0 {
            self.checkpoint_revert(checkpoint);
            return Err(TransferError::CreateCollision);
        }
        let is_first = account.mark_created_locally();
        account.info.code = None;
        // EIP-161.
        account.info.nonce = 1;
        self.entries.push(Entry::Created { account: created, is_first });
        self.touch(created);
        if balance.is_zero() {
            return Ok(checkpoint);
        }
        let Some(sum) = self.account(created).info.balance.checked_add(balance) else {
            self.checkpoint_revert(checkpoint);
            return Err(TransferError::OverflowPayment);
        };
        self.account(created).info.balance = sum;
        self.account(from).info.balance -= balance;
        self.entries.push(Entry::Paid { from, to: created, amount: balance });
        Ok(checkpoint)
    }

    fn depth(&self) -> usize {
        self.depth
    }

    fn commit_tx(&mut self) {
        self.end_step();
    }

    fn discard_tx(&mut self) {
        self.revert(0);
        self.begin();
    }

    fn finalize(&mut self) -> EvmState {
        self.clear();
        EvmState::default()
    }

    fn load_account_info_skip_cold_load(
        &mut self,
        address: Address,
        load_code: bool,
        skip_cold_load: bool,
    ) -> Load<AccountInfoLoad<'_>> {
        let load = self.load_mut(&address, load_code, skip_cold_load)?;
        let account = load.data.into_account();
        Ok(AccountInfoLoad::new(&account.info, load.is_cold, account.is_empty()))
    }
}
