//! Transactions one after the other on one journal, as fast as revm goes by itself. What each of them changed is read from
//! the journal's entries before the next one begins: there are few of them, while the journal's state grows.

use std::hash::{BuildHasher, Hasher};
use std::marker::PhantomData;

use alloy_primitives::{Address, B256, U256};
use revm::ExecuteEvm;
use revm::context::result::{EVMError, ExecutionResult, HaltReason, ResultGas};
use revm::context::{ContextSetters, JournalEntry, JournalInner, JournalTr};
use revm::handler::{FrameResult, Handler, MainnetHandler};
use revm::interpreter::InitialAndFloorGas;
use revm::state::{Account as EvmAccount, EvmState};

use super::foresight::Slots;
use super::{Bytecode, Executed, Inner, Machine, NotExecuted, StateError, Tx, Unrewarded, failure, translate};
use crate::error::{CoreError, Result};
use crate::state::{Account, Source, Word};
use crate::transaction::Transaction;
use crate::transfer::Transfer;

/// Slots noted of one step before it is looked whether they are different ones.
const MANY_SLOTS: usize = 64;
/// Entries of a journal above which slots are likely written more than once; a power of two.
const MANY_ENTRIES: usize = 64;
/// Bounds what is remembered of them.
const MOST_PLACES: usize = 1 << 16;

/// What one step changed, less what it put back itself.
#[derive(Debug, Default)]
pub struct StepChanges {
    pub accounts: Vec<(Address, Option<Account>)>,
    pub slots: Vec<(Address, U256, U256)>,
    pub codes: Vec<(B256, Bytecode)>,
    /// It ended an account: nothing may run on this journal after it.
    pub has_destroyed: bool,
    lately: Lately,
}

/// Where a step's journal has its slots, by a hash under a seed: of what is written again and again most is passed over
/// without asking the state.
#[derive(Debug, Default)]
struct Lately {
    hasher: foldhash::fast::RandomState,
    places: Vec<u32>,
}

impl Lately {
    fn make_room(&mut self, entries: usize) {
        let wanted = (entries / 4).next_power_of_two().clamp(MANY_ENTRIES, MOST_PLACES);
        self.places.resize(wanted.max(self.places.len()), 0);
    }

    /// Whether an entry before the `nth` was seen to change this slot, and this one is known from now on.
    fn is_again(&mut self, journal: &[JournalEntry], nth: usize, address: &Address, slot: &U256) -> bool {
        let mut hasher = self.hasher.build_hasher();
        address.feed(&mut hasher);
        slot.feed(&mut hasher);
        let place = hasher.finish() as usize & (self.places.len() - 1);
        // What another step left here is some entry of this one, or none: all before the `nth` have been seen.
        let before = std::mem::replace(&mut self.places[place], nth as u32) as usize;
        let entry = if before < nth { journal.get(before) } else { None };
        matches!(entry, Some(JournalEntry::StorageChanged { address: owner, key, .. }) if owner == address && key == slot)
    }
}

impl StepChanges {
    pub fn clear(&mut self) {
        self.accounts.clear();
        self.slots.clear();
        self.codes.clear();
        self.has_destroyed = false;
    }

    /// Leaves each slot noted once; noted again, it has the same value.
    fn unite_slots(&mut self) {
        self.slots.sort_unstable_by_key(|(address, slot, _)| (*address, *slot));
        self.slots.dedup_by_key(|(address, slot, _)| (*address, *slot));
    }

    fn collect(&mut self, journal: &mut JournalInner<JournalEntry>) {
        let state = &mut journal.state;
        let mut most = MANY_SLOTS;
        let entries = &journal.journal;
        let is_long = entries.len() > MANY_ENTRIES;
        if is_long {
            self.lately.make_room(entries.len());
        }
        for (nth, entry) in entries.iter().enumerate() {
            match entry {
                JournalEntry::BalanceChange { address, .. }
                | JournalEntry::NonceChange { address, .. }
                | JournalEntry::NonceBump { address }
                | JournalEntry::AccountCreated { address, .. }
                | JournalEntry::CodeChange { address, .. } => self.note(state, address),
                JournalEntry::BalanceTransfer { from, to, .. } => {
                    self.note(state, from);
                    self.note(state, to);
                }
                JournalEntry::AccountDestroyed { address, target, .. } => {
                    self.has_destroyed = true;
                    self.note(state, address);
                    self.note(state, target);
                }
                JournalEntry::StorageChanged { address, key, .. } => {
                    if is_long && self.lately.is_again(entries, nth, address, key) {
                        continue;
                    }
                    let slot = state.get(address).filter(|account| !account.is_selfdestructed());
                    if let Some(slot) = slot.and_then(|account| account.storage.get(key))
                        && slot.is_changed()
                        && !ends_with(&self.slots, |(owner, slot, _)| owner == address && slot == key)
                    {
                        self.slots.push((*address, *key, slot.present_value));
                    }
                    // Writing to a few slots in turn is cheap, and would be noted each time.
                    if self.slots.len() > most {
                        self.unite_slots();
                        most = MANY_SLOTS + 2 * self.slots.len();
                    }
                }
                JournalEntry::AccountWarmed { .. }
                | JournalEntry::AccountTouched { .. }
                | JournalEntry::StorageWarmed { .. }
                | JournalEntry::TransientStorageChange { .. } => {}
            }
        }
        // Slots that share a place in `lately` displace each other, and are noted again.
        if is_long {
            self.unite_slots();
        }
    }

    /// Takes an account in, if the step left it otherwise than it was; noted twice in a while it stands there twice.
    fn note(&mut self, state: &mut EvmState, address: &Address) {
        if ends_with(&self.accounts, |(noted, _)| noted == address) {
            return;
        }
        let Some(account) = state.get_mut(address) else { return };
        let present = present(account);
        let before = account.original_info_mut();
        let was = Account { nonce: before.nonce, balance: before.balance, code_hash: before.code_hash };
        let was_there = Some(was).filter(|account| !account.is_empty());
        if present == was_there {
            return;
        }
        let hash = present.unwrap_or_default().code_hash;
        if hash != was.code_hash
            && let Some(code) = account.info.code.as_ref().filter(|code| !code.is_empty())
        {
            self.codes.push((hash, code.clone()));
        }
        self.accounts.push((*address, present));
    }
}

/// Entries of one location mostly stand close together.
fn ends_with<T>(noted: &[T], is_same: impl Fn(&T) -> bool) -> bool {
    noted.iter().rev().take(4).any(is_same)
}

fn present(account: &EvmAccount) -> Option<Account> {
    let info = &account.info;
    let present = Account { nonce: info.nonce, balance: info.balance, code_hash: info.code_hash };
    Some(present).filter(|present| !present.is_empty() && !account.is_selfdestructed())
}

/// Mainnet's rules without the payment to the beneficiary, for transactions that run one after the other on one journal.
struct Stepping<'a, 't, S> {
    changes: &'a mut StepChanges,
    state: PhantomData<(&'t (), S)>,
}

impl<'t, S: Source> Handler for Stepping<'_, 't, S> {
    type Evm = Inner<'t, S>;
    type Error = EVMError<StateError>;
    type HaltReason = HaltReason;

    fn reward_beneficiary(&self, _: &mut Self::Evm, _: &mut FrameResult) -> Result<(), Self::Error> {
        Ok(())
    }

    fn validate_initial_tx_gas(&self, evm: &mut Self::Evm) -> Result<InitialAndFloorGas, Self::Error> {
        Unrewarded(PhantomData).validate_initial_tx_gas(evm)
    }

    fn execution_result(
        &mut self,
        evm: &mut Self::Evm,
        result: FrameResult,
        gas: ResultGas,
    ) -> Result<ExecutionResult<HaltReason>, Self::Error> {
        self.changes.collect(&mut evm.ctx.journaled_state.inner);
        MainnetHandler::default().execution_result(evm, result, gas)
    }
}

impl<'t, S: Source> Machine<'t, S> {
    /// Runs a user transaction on what the steps before it left in the journal, leaves what it changes there, and tells it.
    ///
    /// # Errors
    /// `Invalid` when it cannot be in this block; then it leaves nothing.
    pub fn step(&mut self, transaction: &'t Transaction, changes: &mut StepChanges) -> Result<Executed, NotExecuted> {
        self.evm.ctx.journaled_state.database.mappings.foresight.begin(transaction);
        self.evm.ctx.set_tx(Tx::Signed(transaction));
        match (Stepping { changes, state: PhantomData }).run(&mut self.evm) {
            Ok(result) => Ok(translate(result, EvmState::default())),
            Err(EVMError::Transaction(reason)) => Err(NotExecuted::Invalid(self.geth_words(&reason))),
            Err(other) => Err(NotExecuted::Failed(failure(other))),
        }
    }

    /// Thinks ahead for transactions that will be steps; returns the slots that they will likely look at.
    pub fn look_ahead<'l>(&mut self, transactions: impl Iterator<Item = &'l Transaction>) -> Slots {
        self.evm.ctx.journaled_state.database.mappings.foresight.look_ahead(transactions)
    }

    /// A plain transfer as a step, without the interpreter; false, and nothing done, if it needs it after all.
    pub fn step_transfer(&mut self, transfer: &Transfer, changes: &mut StepChanges) -> Result<bool> {
        let journal = &mut self.evm.ctx.journaled_state;
        let mut load = |address| match journal.load_account(address) {
            Ok(load) => {
                let info = &load.data.info;
                Ok(Account { nonce: info.nonce, balance: info.balance, code_hash: info.code_hash })
            }
            Err(StateError(error)) => Err(error),
        };
        let sender = load(transfer.sender)?;
        // Whoever cannot pay is refused, and nobody looks at whom they meant to pay.
        let to = if transfer.predicate.holds(Some(&sender)) { Some(load(transfer.to)?) } else { None };
        let is_own = transfer.to == transfer.sender;
        let paid = to.filter(|to| !to.has_code()).and_then(|to| Some((to, to.balance.checked_add(transfer.value)?)));
        let Some((to, credited)) = paid else {
            // What was loaded is cold again.
            journal.inner.discard_tx();
            return Ok(false);
        };
        let mut set = |address, present: Account| {
            if let Some(account) = journal.inner.state.get_mut(address) {
                account.mark_touch();
                (account.info.nonce, account.info.balance) = (present.nonce, present.balance);
            }
            changes.accounts.push((*address, Some(present).filter(|account| !account.is_empty())));
        };
        let nonce = sender.nonce + 1;
        if is_own {
            set(&transfer.sender, Account { nonce, balance: sender.balance - transfer.fee, ..sender });
        } else {
            let balance = sender.balance - transfer.fee - transfer.value;
            set(&transfer.sender, Account { nonce, balance, ..sender });
            if !transfer.value.is_zero() {
                set(&transfer.to, Account { balance: credited, ..to });
            }
        }
        journal.inner.commit_tx();
        Ok(true)
    }

    /// Whether the last step ended this account.
    pub fn has_destroyed(&self, address: &Address) -> bool {
        let account = self.evm.ctx.journaled_state.inner.state.get(address);
        account.is_some_and(|account| account.is_touched() && account.is_selfdestructed())
    }

    /// Takes from an account that the last step has called; `changes` are that step's.
    ///
    /// # Errors
    /// `Internal` when the balance does not cover the amount.
    pub fn debit_step(&mut self, address: &Address, amount: U256, changes: &mut StepChanges) -> Result<()> {
        let state = &mut self.evm.ctx.journaled_state.inner.state;
        let account = state
            .get_mut(address)
            .ok_or_else(|| CoreError::Internal(format!("{address} sent without being called")))?;
        account.mark_touch();
        account.info.balance = account
            .info
            .balance
            .checked_sub(amount)
            .ok_or_else(|| CoreError::Internal(format!("balance of {address} does not cover {amount}")))?;
        changes.accounts.retain(|(noted, _)| noted != address);
        changes.note(state, address);
        Ok(())
    }

    /// Forgets an account, so that whoever asks for it next reads it anew.
    pub fn forget_step(&mut self, address: &Address) {
        self.evm.ctx.journaled_state.inner.state.remove(address);
    }

    /// Empties the journal, keeping its room.
    pub fn end_steps(&mut self) {
        let mut writes = self.evm.finalize();
        writes.clear();
        self.recycle(writes);
    }
}
