//! Transactions one after the other on one journal (`journal`). What each of them changed is noted as it ends.

use std::marker::PhantomData;

use alloy_primitives::{Address, B256, U256};
use revm::context::ContextSetters;
use revm::context::JournalTr;
use revm::context::result::EVMError;
use revm::handler::Handler;
use revm::state::{Account as EvmAccount, EvmState};

use super::foresight::Slots;
use super::journal::{Numbering, StepJournal};
use super::{Bytecode, Executed, Machine, NotExecuted, StateError, Tx, Unrewarded, failure, translate};
use crate::error::{CoreError, Result};
use crate::state::Account;
use crate::transaction::Transaction;
use crate::transfer::Transfer;

/// What one step changed, less what it put back itself: each location once, with the place where its source has it.
#[derive(Debug, Default)]
pub struct StepChanges {
    pub accounts: Vec<(u32, Address, Option<Account>)>,
    pub slots: Vec<(u32, Address, U256, U256)>,
    pub codes: Vec<(B256, Bytecode)>,
    /// It ended an account: nothing may run on this journal after it.
    pub has_destroyed: bool,
}

impl StepChanges {
    pub fn clear(&mut self) {
        self.accounts.clear();
        self.slots.clear();
        self.codes.clear();
        self.has_destroyed = false;
    }

    /// Takes an account in, if it is not as it was before.
    pub(super) fn note(&mut self, place: u32, address: &Address, account: &EvmAccount, was: &Account) {
        let present = present(account);
        if present == Some(*was).filter(|account| !account.is_empty()) {
            return;
        }
        let hash = present.unwrap_or_default().code_hash;
        if hash != was.code_hash
            && let Some(code) = account.info.code.as_ref().filter(|code| !code.is_empty())
        {
            self.codes.push((hash, code.clone()));
        }
        self.accounts.push((place, *address, present));
    }
}

fn present(account: &EvmAccount) -> Option<Account> {
    let info = &account.info;
    let present = Account { nonce: info.nonce, balance: info.balance, code_hash: info.code_hash };
    Some(present).filter(|present| !present.is_empty() && !account.is_selfdestructed())
}

/// An EVM whose transactions run on what those before them left.
pub type Stepper<'t, S> = Machine<'t, S, StepJournal<S>>;

impl<'t, S: Numbering> Stepper<'t, S> {
    fn journal(&mut self) -> &mut StepJournal<S> {
        &mut self.evm.ctx.journaled_state
    }

    /// What is read from here on can be forgotten with `forget_step`.
    pub fn begin_step(&mut self) {
        self.journal().changes.clear();
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

    /// What the last step changed.
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
