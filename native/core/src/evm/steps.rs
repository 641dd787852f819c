//! Transactions one after the other on one journal (`journal`). What each of them changed is noted as it ends.

use std::marker::PhantomData;

use alloy_primitives::{Address, B256, U256};
use revm::context::ContextSetters;
use revm::context::JournalTr;
use revm::context::result::EVMError;
use revm::handler::Handler;
use revm::state::{Account as EvmAccount, EvmState};

use super::foresight::Slots;
use super::journal::{NOWHERE, Numbering, StepJournal, present};
use super::{Bytecode, Executed, Machine, NotExecuted, StateError, Tx, Unrewarded, failure, translate};
use crate::access_list::Change;
use crate::error::{CoreError, Result};
use crate::parallel::Value;
use crate::state::{Account, Key};
use crate::transaction::Transaction;
use crate::transfer::Transfer;

/// What steps changed, in order, less what each put back itself: each location once a step. Written where it stays: what
/// is moved right after it was written piece by piece waits for the memory of all that was written before.
#[derive(Debug, Default)]
pub struct StepChanges {
    pub values: Vec<Change>,
    pub codes: Vec<(u32, B256, Bytecode)>,
    /// Which of the values lie `NOWHERE` yet, and what they are of.
    pub unplaced: Vec<(usize, Key)>,
    /// The last step ended an account: nothing may run on this journal after it.
    pub has_destroyed: bool,
    /// The last step, and where its values begin.
    index: u32,
    first: usize,
}

impl StepChanges {
    pub fn begin(&mut self, index: u32) {
        (self.index, self.first, self.has_destroyed) = (index, self.values.len(), false);
    }

    /// Forgets the steps from `end` on.
    pub fn truncate(&mut self, end: u32) {
        self.values.truncate(self.values.partition_point(|change| change.index < end));
        self.codes.truncate(self.codes.partition_point(|(index, ..)| *index < end));
        let left = self.values.len();
        self.unplaced.retain(|(at, _)| *at < left);
    }

    /// Takes an account in, if it is not as it was before.
    pub(super) fn note(&mut self, place: u32, account: &EvmAccount, was: &Account) {
        let left = present(account);
        let is_gone = account.is_selfdestructed() || left.is_empty();
        let is_same = if is_gone { was.is_empty() } else { left == *was };
        if is_same {
            return;
        }
        if !is_gone
            && left.code_hash != was.code_hash
            && let Some(code) = account.info.code.as_ref().filter(|code| !code.is_empty())
        {
            self.codes.push((self.index, left.code_hash, code.clone()));
        }
        self.push(place, Value::Account((!is_gone).then_some(left)));
    }

    pub(super) fn push(&mut self, location: u32, value: Value) {
        self.values.push(Change { index: self.index, location, value });
    }

    /// Notes an account anew that the last step has told of.
    pub(super) fn note_again(&mut self, place: u32, account: &EvmAccount, was: &Account) {
        if let Some(told) = self.values[self.first..].iter().position(|change| change.location == place) {
            self.values.remove(self.first + told);
        }
        self.note(place, account, was);
    }

    /// A slot that nobody had to read.
    pub(super) fn push_unplaced(&mut self, address: &Address, slot: &U256, value: U256) {
        self.unplaced.push((self.values.len(), Key::Slot(*address, *slot)));
        self.push(NOWHERE, Value::Slot(value));
    }
}

/// An EVM whose transactions run on what those before them left.
pub type Stepper<'t, S> = Machine<'t, S, StepJournal<S>>;

impl<'t, S: Numbering> Stepper<'t, S> {
    fn journal(&mut self) -> &mut StepJournal<S> {
        &mut self.evm.ctx.journaled_state
    }

    /// Step `index` begins: what is read from here on can be forgotten with `forget_step`.
    pub fn begin_step(&mut self, index: u32) {
        self.journal().changes.begin(index);
        self.journal().mark();
    }

    /// Runs a user transaction on what the steps before it left in the journal, leaves what it changes there, and notes it.
    ///
    /// # Errors
    /// `Invalid` when it cannot be in this block; then it leaves nothing.
    pub fn step(&mut self, transaction: &'t Transaction) -> Result<Executed, NotExecuted> {
        self.journal().db.mappings.foresight.begin(transaction);
        self.evm.ctx.set_tx(Tx::Signed(transaction));
        match Unrewarded(PhantomData).run(&mut self.evm) {
            Ok(result) => Ok(translate(result, EvmState::default())),
            Err(EVMError::Transaction(reason)) => Err(NotExecuted::Invalid(self.geth_words(&reason))),
            Err(other) => Err(NotExecuted::Failed(failure(other))),
        }
    }

    /// Thinks ahead for transactions that will be steps; returns the slots that they will likely look at.
    pub fn look_ahead<'l>(&mut self, transactions: impl Iterator<Item = &'l Transaction>) -> Slots {
        self.journal().db.mappings.foresight.look_ahead(transactions)
    }

    /// A plain transfer as a step, without the interpreter; false, and nothing done, if it needs it after all.
    ///
    /// # Errors
    /// Those of reading the state.
    pub fn step_transfer(&mut self, transfer: &Transfer) -> Result<bool> {
        self.journal().transfer_plainly(transfer).map_err(|StateError(error)| error)
    }

    /// What the steps changed.
    pub fn changes(&mut self) -> &mut StepChanges {
        &mut self.journal().changes
    }

    /// Whether the last step ended this account.
    pub fn has_destroyed(&mut self, address: &Address) -> bool {
        self.journal().peek(address).is_some_and(|account| account.is_touched() && account.is_selfdestructed())
    }

    /// Takes from an account that the last step has called.
    ///
    /// # Errors
    /// `Internal` when the balance does not cover the amount, or the account was not called.
    pub fn debit_step(&mut self, address: &Address, amount: U256) -> Result<()> {
        self.journal()
            .debit(address, amount)
            .ok_or_else(|| CoreError::Internal(format!("{address} was not called, or does not cover {amount}")))
    }

    /// Forgets what was read since the step began, so that whoever asks for it next reads it anew.
    pub fn forget_step(&mut self) {
        self.journal().forget_new();
    }

    /// Empties the journal, keeping its room.
    pub fn end_steps(&mut self) {
        self.journal().finalize();
    }
}
