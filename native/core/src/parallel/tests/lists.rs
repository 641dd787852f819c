//! Claims about access lists: a block that comes with its list is executed as in order, and a list with a lie is refused.

use alloy_primitives::{Address, U256};

use super::{Case, Dice, Digest, Workload, digest, store};
use crate::access_list::{AccessList, AccountAccess, decode, encode};
use crate::batch::{Batch, Entry};
use crate::block::Mode;
use crate::error::CoreError;

impl Case {
    /// The block as others get it, with its access list beside it.
    pub(super) fn made(&self, built: &Digest) -> Self {
        let entry = |index: &u32| {
            let Entry { hash, transaction, refusal } = &self.batch.entries[*index as usize];
            Entry { hash: *hash, transaction: transaction.clone(), refusal: refusal.clone() }
        };
        let batch = Batch { entries: built.included.iter().map(entry).collect() };
        let (view, env, inbox) = (self.view.clone(), self.env.clone(), self.inbox.clone());
        Self { view, env, batch, mode: Mode::Validate, inbox, access_list: Some(built.access_list.clone()) }
    }

    pub(super) fn check_replay(&self, built: &Digest) {
        let made = self.made(built);
        for (threads, fast_path) in [(1, true), (2, true), (3, false), (4, true), (8, false), (16, true)] {
            let found = made.run(threads, fast_path).map(|result| digest(&result)).expect("the list is the block's");
            assert_eq!(found.roots, built.roots, "replayed by {threads}");
            assert_eq!(found.sums, built.sums);
            assert!(found.diff == built.diff && found.outcomes == built.outcomes && found.outbox == built.outbox);
            assert_eq!(found.access_list, built.access_list);
        }
    }
}

/// Where the access lists part.
pub(super) fn unlike_lists(found: &Digest, expected: &Digest) -> String {
    let lists =
        [expected, found].map(|digest| decode(&digest.access_list, u32::MAX, false).expect("lists are canonical"));
    format!("; lists: {:?}", lists[0].check(&lists[1]).err())
}

/// A list with one lie in it.
type Lie = fn(&mut AccessList);

const LIES: [(&str, Lie); 8] = [
    ("a value", |list| {
        let changed = list.accounts.iter_mut().find(|account| !account.balance_changes.is_empty());
        changed.expect("somebody pays").balance_changes[0].1 += U256::from(1);
    }),
    ("a last value", |list| {
        let changed = list.accounts.iter_mut().rev().find(|account| !account.balance_changes.is_empty());
        changed.expect("somebody pays").balance_changes.last_mut().expect("it changes").1 += U256::from(1);
    }),
    ("a missing change", |list| {
        let changed = list.accounts.iter_mut().find(|account| !account.nonce_changes.is_empty());
        changed.expect("somebody sends").nonce_changes.remove(0);
    }),
    ("a change too many", |list| list.accounts[0].nonce_changes.push((u32::MAX, 9))),
    ("a read too many", |list| {
        let read = list.accounts.iter_mut().find(|account| account.storage_reads.is_empty());
        read.expect("not all are read").storage_reads.push(U256::MAX);
    }),
    ("a missing account", |list| {
        list.accounts.remove(list.accounts.len() / 2);
    }),
    ("an account too many", |list| {
        list.accounts.push(AccountAccess { address: Address::repeat_byte(0xff), ..AccountAccess::default() });
    }),
    ("another index", |list| {
        let changed = list.accounts.iter_mut().find(|account| account.balance_changes.len() == 1);
        changed.expect("somebody pays once").balance_changes[0].0 += 1;
    }),
];

#[test]
fn a_list_with_a_lie_is_refused_and_nothing_panics() {
    let store = store();
    for seed in 1..4 {
        let (mut dice, mut workload) = (Dice(seed), Workload::default());
        (0..150).for_each(|_| workload.random(&mut dice, 30));
        let case = Case::new(&store, workload);
        let built = digest(&case.run(1, true).expect("builders leave out what is invalid"));
        let made = case.made(&built);
        let last = made.batch.entries.len() as u32 + 1;
        let good = decode(&built.access_list, last, false).expect("the list is canonical");
        for (name, lie) in LIES {
            let mut list = good.clone();
            lie(&mut list);
            let access_list = Some(encode(&list));
            let case = Case { access_list, ..case.made(&built) };
            for threads in [1, 2, 4] {
                let refused = case.run(threads, true).expect_err(name);
                assert!(matches!(refused, CoreError::InvalidBlock(_)), "{name}, {threads} threads: {refused}");
            }
        }
        for place in (0..built.access_list.len()).step_by(37) {
            let mut bytes = built.access_list.clone();
            bytes[place] ^= 1;
            let case = Case { access_list: Some(bytes), ..case.made(&built) };
            let refused = case.run(2, true).expect_err("a bit is flipped");
            assert!(matches!(refused, CoreError::InvalidBlock(_)), "byte {place}: {refused}");
        }
    }
}
