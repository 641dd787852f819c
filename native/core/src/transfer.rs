//! The fast path: a transfer of value between accounts without code, done without the interpreter.
//!
//! Such a transaction has one possible course: the sender pays value and 21,000 gas, its nonce rises by one, the
//! recipient gains the value. Whatever could make it take another course (code, input, an access list, a precompile, a
//! missing nonce or wei) sends it to the EVM, which then also finds the words of the refusal. Equality with the EVM is
//! a property test.

use alloy_primitives::{Address, TxKind, U256};

use crate::error::Result;
use crate::state::{Account, BlockState, Sink, Source};
use crate::transaction::Transaction;

/// Gas of a transfer without input; EIP-7623's floor is the same.
pub const GAS: u64 = 21_000;

/// What a sender must have for a transaction to be valid: exactly this nonce, at least this balance, no code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Predicate {
    pub nonce: u64,
    pub need: U256,
}

impl Predicate {
    pub fn holds(&self, account: Option<&Account>) -> bool {
        let account = account.copied().unwrap_or_default();
        account.nonce == self.nonce && account.balance >= self.need && !account.has_code()
    }
}

/// A transfer that is valid if the sender's predicate holds and the recipient has no code.
#[derive(Debug, Clone, Copy)]
pub struct Transfer {
    pub sender: Address,
    pub to: Address,
    pub value: U256,
    /// Wei the sender pays for gas.
    pub fee: U256,
    pub predicate: Predicate,
}

impl Transfer {
    /// The transfer that this transaction is, if it can be nothing else whatever the state.
    pub fn plan(transaction: &Transaction, base_fee: u64) -> Option<Self> {
        let TxKind::Call(to) = transaction.to else { return None };
        let is_plain = transaction.tx_type <= 2 && transaction.input.is_empty() && transaction.access_list.is_empty();
        // Precompiles, present and to come, have addresses of two bytes.
        let may_be_precompile = to[..18].iter().all(|byte| *byte == 0);
        let is_in_range = transaction.max_fee >= u128::from(base_fee)
            && transaction.tip.is_none_or(|tip| tip <= transaction.max_fee)
            && transaction.nonce < u64::MAX;
        if !is_plain || may_be_precompile || !is_in_range || transaction.gas_limit < GAS {
            return None;
        }
        let most = U256::from(transaction.gas_limit).checked_mul(U256::from(transaction.max_fee))?;
        let need = most.checked_add(transaction.value)?;
        let fee = U256::from(GAS).checked_mul(U256::from(transaction.effective_gas_price(base_fee)))?;
        let predicate = Predicate { nonce: transaction.nonce, need };
        Some(Self { sender: transaction.sender, to, value: transaction.value, fee, predicate })
    }

    /// Does the transfer; false, and nothing done, if it needs the EVM after all.
    pub fn apply<S: Source>(&self, state: &mut BlockState<S>) -> Result<bool> {
        let sender = state.account(&self.sender)?;
        if !self.predicate.holds(sender.as_ref()) {
            return Ok(false);
        }
        let mut sender = sender.unwrap_or_default();
        sender.nonce += 1;
        sender.balance -= self.fee;
        if self.to == self.sender {
            state.set_account(&self.sender, Some(sender))?;
            return Ok(true);
        }
        sender.balance -= self.value;
        let mut to = state.account(&self.to)?.unwrap_or_default();
        let Some(balance) = to.balance.checked_add(self.value).filter(|_| !to.has_code()) else {
            return Ok(false);
        };
        to.balance = balance;
        state.set_account(&self.sender, Some(sender))?;
        state.set_account(&self.to, Some(to))?;
        Ok(true)
    }
}
