//! The state root as Ethereum makes it: a Merkle-Patricia trie of accounts, each with a trie of its storage.

use std::collections::BTreeMap;

use alloy_primitives::{Address, B256, U256};
use alloy_trie::TrieAccount;
use alloy_trie::root::{state_root_unhashed, storage_root_unhashed};
use shardyard_core::state::{Account, Changes};

/// A whole state, small enough to be made into a trie at once.
#[derive(Debug, Clone, Default)]
pub struct WorldState {
    accounts: BTreeMap<Address, Account>,
    storage: BTreeMap<Address, BTreeMap<U256, U256>>,
}

impl WorldState {
    /// Sets what the changes set, but nothing of the accounts that are to be left out.
    pub fn apply(&mut self, changes: &Changes, is_left_out: impl Fn(&Address) -> bool) {
        for (address, account) in changes.accounts.iter().filter(|(address, _)| !is_left_out(address)) {
            match account {
                Some(account) => self.accounts.insert(*address, *account),
                None => self.accounts.remove(address),
            };
        }
        for (address, slots) in changes.storage.iter().filter(|(address, _)| !is_left_out(address)) {
            let present = self.storage.entry(*address).or_default();
            for (slot, value) in slots {
                if value.is_zero() {
                    present.remove(slot)
                } else {
                    present.insert(*slot, *value)
                };
            }
        }
    }

    pub fn root(&self) -> B256 {
        state_root_unhashed(self.accounts.iter().map(|(address, account)| {
            let slots = self.storage.get(address).into_iter().flatten();
            let storage_root = storage_root_unhashed(slots.map(|(slot, value)| (B256::from(*slot), *value)));
            (*address, TrieAccount::new(account.nonce, account.balance, storage_root, account.code_hash))
        }))
    }

    /// What all accounts own; no test owns more than 256 bits.
    pub fn supply(&self) -> U256 {
        self.accounts.values().fold(U256::ZERO, |sum, account| sum.saturating_add(account.balance))
    }

    /// For a person who looks for the difference: the accounts with nonce, balance, code hash and storage.
    pub fn describe(&self) -> String {
        let account = |(address, account): (&Address, &Account)| {
            let slots: Vec<_> = self.storage.get(address).into_iter().flatten().take(8).collect();
            format!(
                "{address}: nonce {} balance {} code {} slots {slots:?}",
                account.nonce, account.balance, account.code_hash
            )
        };
        self.accounts.iter().take(24).map(account).collect::<Vec<_>>().join("; ")
    }
}
