//! Claims about access lists: a block that comes with its list is executed as in order, and a list with a lie is refused.

use std::sync::PoisonError;
use std::sync::atomic::Ordering::Relaxed;

use alloy_primitives::{Address, U256};

use super::world::{hex, user};
use super::{Call, Case, Dice, Digest, RUNS_IN_LANES, STUMBLES, TURN, Workload, digest, receipt, store, store_with};
use crate::access_list::{AccessList, AccountAccess, decode, encode};
use crate::batch::{Batch, Entry};
use crate::block::Mode;
use crate::error::CoreError;
use crate::receipt::Kind;

impl Case {
    /// The block as others get it, with its access list beside it.
    pub(super) fn made(&self, built: &Digest) -> Self {
        let entry = |index: &u32| {
            let Entry { hash, transaction, refusal } = &self.batch.entries()[*index as usize];
            Entry { hash: *hash, transaction: transaction.clone(), refusal: refusal.clone() }
        };
        let batch: Batch = built.included.iter().map(entry).collect();
        let (view, env, inbox) = (self.view.clone(), self.env.clone(), self.inbox.clone());
        Self { view, env, batch, mode: Mode::Validate, inbox, access_list: Some(built.access_list.clone()) }
    }

    pub(super) fn check_replay(&self, built: &Digest) {
        let made = self.made(built);
        let variants = [(1, true), (2, true), (3, false), (4, true), (8, false), (16, true)];
        for (seed, (threads, fast_path)) in (0..3).flat_map(|seed| variants.map(|variant| (seed, variant))) {
            for in_lanes in [true, false] {
                STUMBLES.store(seed, Relaxed);
                RUNS_IN_LANES.store(in_lanes, Relaxed);
                let found =
                    made.run(threads, fast_path).map(|result| digest(&result)).expect("the list is the block's");
                assert_eq!(found.roots, built.roots, "replayed by {threads}, lanes {in_lanes}");
                assert_eq!(found.sums, built.sums);
                assert!(found.diff == built.diff && found.outcomes == built.outcomes && found.outbox == built.outbox);
                assert_eq!(found.access_list, built.access_list);
            }
        }
        STUMBLES.store(0, Relaxed);
        RUNS_IN_LANES.store(true, Relaxed);
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
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    // Few deliveries speculate, many go by the list; lanes follow, and the list again where they break.
    for (seed, transactions, deliveries) in [(1, 150, 0), (2, 150, 0), (3, 420, 5), (4, 420, 40)] {
        let (mut dice, mut workload) = (Dice(seed), Workload::default());
        (0..transactions).for_each(|_| workload.random(&mut dice, 30));
        let mut case = Case::new(&store, workload);
        let kinds = [Kind::Call, Kind::Transfer, Kind::Bounce];
        case.inbox.extend((0..deliveries).map(|n| receipt(n, kinds[dice.roll(3) as usize], user(n))));
        let built = digest(&case.run(1, true).expect("builders leave out what is invalid"));
        case.check_replay(&built);
        let made = case.made(&built);
        let last = (made.inbox.len() + made.batch.entries().len()) as u32 + 1;
        let good = decode(&built.access_list, last, false).expect("the list is canonical");
        for (name, lie) in LIES {
            let mut list = good.clone();
            lie(&mut list);
            let access_list = Some(encode(&list));
            let case = Case { access_list, ..case.made(&built) };
            for (threads, in_lanes) in [(1, true), (2, true), (2, false), (4, true), (4, false)] {
                RUNS_IN_LANES.store(in_lanes, Relaxed);
                let refused = case.run(threads, true).expect_err(name);
                assert!(matches!(refused, CoreError::InvalidBlock(_)), "{name}, {threads} threads: {refused}");
            }
        }
        for place in (0..built.access_list.len()).step_by(97) {
            let mut bytes = built.access_list.clone();
            bytes[place] ^= 1;
            let case = Case { access_list: Some(bytes), ..case.made(&built) };
            RUNS_IN_LANES.store(place % 2 == 0, Relaxed);
            let refused = case.run(2, true).expect_err("a bit is flipped");
            assert!(matches!(refused, CoreError::InvalidBlock(_)), "byte {place}: {refused}");
        }
        RUNS_IN_LANES.store(true, Relaxed);
    }
}

/// A contract that accepts messages, and pays out what they bring and so much more.
fn spender(more: U256) -> (Address, serde_json::Value) {
    let mut code = alloy_primitives::hex!("5f5f5f5f5f54340173").to_vec();
    code.extend(user(700).as_slice());
    code.extend(alloy_primitives::hex!("5af150632432ef2660e01b5f5260205ff3"));
    let storage = serde_json::json!({ "0x0": format!("{more:#x}") });
    let account = serde_json::json!({ "balance": "0xffffffffffffffff", "code": hex(&code), "storage": storage });
    (Address::repeat_byte(0x77), account)
}

#[test]
fn fees_that_were_paid_out_at_once_are_found_though_no_list_tells_of_them() {
    let case = |more: U256, deliveries: u64, transactions: u64| {
        let (beneficiary, account) = spender(more);
        let store = store_with([(beneficiary, account)]);
        let mut workload = Workload::default();
        // The first asks what lanes do not know, and leaves the rest to the list.
        (0..transactions.min(1)).for_each(|_| workload.push(1, Call { value: 9, ..Call::to(beneficiary) }));
        (1..transactions).for_each(|n| workload.push(20 + n, Call::pay(user(600 + n), n)));
        let mut case = Case::new(&store, workload);
        case.env.beneficiary = beneficiary;
        case.inbox.push(receipt(0, Kind::Call, beneficiary));
        (1..deliveries).for_each(|n| case.inbox.push(receipt(n, Kind::Transfer, user(n))));
        case
    };
    let earned = case(U256::from(1), 1, 0).run(1, true).expect("a delivery is never invalid").tips;
    assert!(!earned.is_zero());
    for deliveries in [1, 40] {
        let case = case(earned, deliveries, 500);
        let built = case.check().expect("builders leave out what is invalid");
        let list = decode(&built.access_list, u32::MAX, false).expect("lists are canonical");
        let changes = &list.account(&case.env.beneficiary).expect("it earns").balance_changes;
        let first = deliveries as u32 + 1;
        assert_eq!(changes[0].0, first, "what it earned by the first delivery it has paid out in it");
    }
}
