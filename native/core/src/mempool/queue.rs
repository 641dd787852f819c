//! The queue of one sender: transactions by nonce, and the unbroken run of them that the account can execute now.

use std::collections::BTreeMap;
use std::sync::Arc;

use alloy_primitives::{Address, B256, U256};

use crate::transaction::Transaction;

/// A transaction that waits; fees in wei per gas, `cost` = value + gas limit · highest fee.
#[derive(Debug, Clone)]
pub struct Waiting {
    pub hash: B256,
    pub sender: Address,
    pub nonce: u64,
    pub gas_limit: u64,
    pub max_fee: u64,
    pub tip: u64,
    pub cost: U256,
    pub raw: Box<[u8]>,
    /// What a block executes; none when only its numbers were given.
    pub transaction: Option<Arc<Transaction>>,
    /// Order of arrival, given by the pool.
    pub arrival: u64,
}

impl Waiting {
    /// What the pool keeps of a decoded transaction. Fees beyond 64 bits, which nobody can pay, saturate.
    pub fn of(transaction: &Arc<Transaction>, raw: &[u8]) -> Self {
        let saturated = |fee: u128| u64::try_from(fee).unwrap_or(u64::MAX);
        Self {
            hash: transaction.hash,
            sender: transaction.sender,
            nonce: transaction.nonce,
            gas_limit: transaction.gas_limit,
            max_fee: saturated(transaction.max_fee),
            tip: saturated(transaction.tip.unwrap_or(transaction.max_fee)),
            cost: transaction.cost(),
            raw: raw.into(),
            transaction: Some(transaction.clone()),
            arrival: 0,
        }
    }

    /// Bytes that it counts as.
    pub fn weight(&self) -> usize {
        self.raw.len() + self.transaction.as_ref().map_or(0, |transaction| transaction.size_of_lists())
    }

    /// What it leaves to the proposer at this base fee; none when it cannot pay even that.
    pub fn effective_tip(&self, base_fee: u64) -> Option<u64> {
        Some(self.tip.min(self.max_fee.checked_sub(base_fee)?))
    }
}

#[derive(Debug)]
pub struct Queue {
    pub account_nonce: u64,
    pub balance: U256,
    pub by_nonce: BTreeMap<u64, Arc<Waiting>>,
    /// First nonce that is missing.
    pub run_end: u64,
    /// Never above a balance that once covered it, so sums do not wrap.
    pub total_cost: U256,
}

impl Queue {
    pub fn new(account_nonce: u64, balance: U256) -> Self {
        Self { account_nonce, balance, by_nonce: BTreeMap::new(), run_end: account_nonce, total_cost: U256::ZERO }
    }

    pub fn put(&mut self, entry: Arc<Waiting>) {
        self.total_cost = self.total_cost.saturating_add(entry.cost);
        self.by_nonce.insert(entry.nonce, entry);
        self.extend_run();
    }

    pub fn take(&mut self, nonce: u64) -> Option<Arc<Waiting>> {
        let entry = self.by_nonce.remove(&nonce)?;
        self.total_cost = self.total_cost.saturating_sub(entry.cost);
        if (self.account_nonce..self.run_end).contains(&nonce) {
            self.run_end = nonce;
        }
        Some(entry)
    }

    /// The transaction with the `offset`-th highest nonce.
    pub fn get_from_end(&self, offset: usize) -> Option<&Arc<Waiting>> {
        self.by_nonce.values().nth_back(offset)
    }

    /// Follows the account; gives what can never run any more: used nonces and what the balance cannot pay.
    pub fn move_to(&mut self, account_nonce: u64, balance: U256) -> Vec<Arc<Waiting>> {
        self.balance = balance;
        let mut gone = Vec::new();
        if account_nonce != self.account_nonce {
            let kept = self.by_nonce.split_off(&account_nonce);
            for entry in std::mem::replace(&mut self.by_nonce, kept).into_values() {
                self.total_cost = self.total_cost.saturating_sub(entry.cost);
                gone.push(entry);
            }
            self.account_nonce = account_nonce;
            self.run_end = account_nonce;
            self.extend_run();
        }
        if self.total_cost > balance {
            let unpayable = self.by_nonce.values().filter(|entry| entry.cost > balance);
            let nonces: Vec<u64> = unpayable.map(|entry| entry.nonce).collect();
            gone.extend(nonces.into_iter().filter_map(|nonce| self.take(nonce)));
        }
        gone
    }

    fn extend_run(&mut self) {
        while self.by_nonce.contains_key(&self.run_end) {
            self.run_end += 1;
        }
    }
}
