//! Transactions one after the other on one journal, as fast as revm goes by itself: what they changed is read once, at the
//! end, instead of after each.

use std::marker::PhantomData;

use alloy_primitives::{Address, U256};
use revm::ExecuteEvm;
use revm::context::result::{EVMError, ExecutionResult, HaltReason, ResultGas};
use revm::context::{ContextSetters, JournalEntry, JournalTr};
use revm::handler::{FrameResult, Handler, MainnetHandler};
use revm::state::EvmState;

use super::{Bytecode, Executed, Inner, Machine, NotExecuted, StateError, failure, translate, tx_env};
use crate::error::{CoreError, Result};
use crate::state::{Account, Source};
use crate::transaction::Transaction;
use crate::transfer::Transfer;

/// The same for transactions that run one after the other on one journal; notices accounts that end, because only the
/// transaction that ends one knows it from the journal.
#[derive(Default)]
struct Stepping<S> {
    has_destroyed: bool,
    state: PhantomData<S>,
}

impl<S: Source> Handler for Stepping<S> {
    type Evm = Inner<S>;
    type Error = EVMError<StateError>;
    type HaltReason = HaltReason;

    fn reward_beneficiary(&self, _: &mut Self::Evm, _: &mut FrameResult) -> Result<(), Self::Error> {
        Ok(())
    }

    fn execution_result(
        &mut self,
        evm: &mut Self::Evm,
        result: FrameResult,
        gas: ResultGas,
    ) -> Result<ExecutionResult<HaltReason>, Self::Error> {
        let journal = &evm.ctx.journaled_state.inner.journal;
        self.has_destroyed = journal.iter().any(|entry| matches!(entry, JournalEntry::AccountDestroyed { .. }));
        MainnetHandler::default().execution_result(evm, result, gas)
    }
}

/// A location that steps touched, and what they left there.
pub enum Stepped<'a> {
    /// With its code, if that was loaded or is new.
    Account(&'a Address, Option<(Account, Option<Bytecode>)>),
    Slot(&'a Address, &'a U256, U256),
}

impl<S: Source> Machine<S> {
    /// Runs a user transaction on what the steps before it left in the journal, and leaves what it changes there too; also
    /// says whether an account ended, after which `end_steps` must come first.
    ///
    /// # Errors
    /// `Invalid` when it cannot be in this block; then it leaves nothing.
    pub fn step(&mut self, transaction: &Transaction) -> Result<(Executed, bool), NotExecuted> {
        self.evm.ctx.set_tx(tx_env(transaction));
        let mut handler = Stepping { has_destroyed: false, state: PhantomData };
        match handler.run(&mut self.evm) {
            Ok(result) => Ok((translate(result, EvmState::default()), handler.has_destroyed)),
            Err(EVMError::Transaction(reason)) => Err(NotExecuted::Invalid(self.geth_words(&reason))),
            Err(other) => Err(NotExecuted::Failed(failure(other))),
        }
    }

    /// A plain transfer as a step, without the interpreter; false, and nothing done, if it needs it after all.
    pub fn step_transfer(&mut self, transfer: &Transfer) -> Result<bool> {
        let journal = &mut self.evm.ctx.journaled_state;
        let mut load = |address| match journal.load_account(address) {
            Ok(load) => {
                let info = &load.data.info;
                Ok(Account { nonce: info.nonce, balance: info.balance, code_hash: info.code_hash })
            }
            Err(StateError(error)) => Err(error),
        };
        let (sender, to) = (load(transfer.sender)?, load(transfer.to)?);
        let is_own = transfer.to == transfer.sender;
        let credited = to.balance.checked_add(transfer.value).filter(|_| !to.has_code());
        let (true, Some(credited)) = (transfer.predicate.holds(Some(&sender)), credited) else {
            // What was loaded is cold again.
            journal.inner.discard_tx();
            return Ok(false);
        };
        let mut set = |address, nonce, balance| {
            if let Some(account) = journal.inner.state.get_mut(address) {
                account.mark_touch();
                (account.info.nonce, account.info.balance) = (nonce, balance);
            }
        };
        if is_own {
            set(&transfer.sender, sender.nonce + 1, sender.balance - transfer.fee);
        } else {
            set(&transfer.sender, sender.nonce + 1, sender.balance - transfer.fee - transfer.value);
            set(&transfer.to, to.nonce, credited);
        }
        journal.inner.commit_tx();
        Ok(true)
    }

    /// Whether the steps so far ended an account.
    pub fn has_destroyed(&self, address: &Address) -> bool {
        let account = self.evm.ctx.journaled_state.inner.state.get(address);
        account.is_some_and(|account| account.is_touched() && account.is_selfdestructed())
    }

    /// Takes from an account that a step has called.
    ///
    /// # Errors
    /// `Internal` when the balance does not cover the amount.
    pub fn debit_step(&mut self, address: &Address, amount: U256) -> Result<()> {
        let account = self.evm.ctx.journaled_state.inner.state.get_mut(address);
        let account = account.ok_or_else(|| CoreError::Internal(format!("{address} sent without being called")))?;
        account.mark_touch();
        account.info.balance = account
            .info
            .balance
            .checked_sub(amount)
            .ok_or_else(|| CoreError::Internal(format!("balance of {address} does not cover {amount}")))?;
        Ok(())
    }

    /// What all steps changed together, whether or not it differs from what was there before them; the journal is empty then.
    pub fn end_steps(&mut self, sink: &mut impl FnMut(Stepped<'_>) -> Result<()>) -> Result<()> {
        let mut writes = self.evm.finalize();
        for (address, mut account) in writes.drain().filter(|(_, account)| account.is_touched()) {
            if account.is_selfdestructed() {
                // It was made by the last step, so it has no storage (EIP-6780).
                sink(Stepped::Account(&address, None))?;
                continue;
            }
            let code = account.info.code.take().filter(|code| !code.is_empty());
            let info = &account.info;
            let present = Account { nonce: info.nonce, balance: info.balance, code_hash: info.code_hash };
            sink(Stepped::Account(&address, Some((present, code))))?;
            for (slot, value) in &account.storage {
                sink(Stepped::Slot(&address, slot, value.present_value))?;
            }
        }
        self.recycle(writes);
        Ok(())
    }

    /// Forgets what the steps changed.
    pub fn drop_steps(&mut self) {
        drop(self.evm.finalize());
    }
}
