//! Blocks too small for any worker to have much to do, and one of a hundred thousand transactions, end as in order.

use std::sync::PoisonError;

use super::world::{COUNTER, TOKEN, USERS, contract, user};
use super::{Call, Case, Dice, TURN, Workload, differences, digest, stat, store};

const LARGE: usize = 100_000;

/// A little of everything: payments, tokens, an account that everybody pays, senders that send again and again, refusals.
fn mixed(count: usize) -> Workload {
    let (mut dice, mut workload) = (Dice(100_000), Workload::default());
    while workload.entries.len() < count {
        let (from, to) = (dice.roll(USERS), dice.roll(USERS));
        match dice.roll(20) {
            0..=8 => workload.push(from, Call::pay(user(to), dice.roll(1000))),
            9..=13 => workload.token(from, to, dice.roll(100)),
            14..=15 => workload.push(from, Call::pay(user(0), 1)),
            16 => (0..8).for_each(|_| workload.push(from, Call::pay(user(to), 3))),
            17 => workload.push_with_nonce(from, 1 << 40, Call::pay(user(to), 1)),
            18 => workload.push(from, Call::to(contract(COUNTER))),
            _ => workload.push(from, Call { gas: 100_000, ..Call::to(contract(TOKEN)) }),
        }
    }
    workload.entries.truncate(count);
    workload
}

#[test]
fn a_block_of_a_hundred_thousand_ends_as_in_order() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let case = Case::new(&store(), mixed(LARGE));
    let expected = case.run(1, false).map(|result| digest(&result));
    let known = expected.as_ref().expect("builders leave out what is invalid");
    assert_eq!(known.included.len() + known.skipped.len(), LARGE);
    assert!(known.included.len() > LARGE / 2 && known.skipped.len() > LARGE / 20, "{} left out", known.skipped.len());
    for threads in [2, 4] {
        let found = case.run(threads, true);
        assert_eq!(found.as_ref().map(|result| stat(result, "workers")), Ok(threads as u64));
        let found = found.map(|result| digest(&result));
        assert!(found == expected, "threads {threads}: {}", differences(&found, &expected));
    }
}

/// A shard executes such blocks in order: here workers are forced on them, more than there are items among them.
#[test]
fn workers_end_blocks_that_leave_most_of_them_nothing_as_in_order() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let store = store();
    for count in 0..=10 {
        let case = Case::new(&store, mixed(count));
        let expected = case.run(1, false).map(|result| digest(&result));
        for threads in [2, 3, 4, 8, 16] {
            let found = case.run(threads, true);
            assert_eq!(found.as_ref().map(|result| stat(result, "workers")), Ok(threads as u64));
            let found = found.map(|result| digest(&result));
            assert!(found == expected, "{count} items, threads {threads}: {}", differences(&found, &expected));
        }
    }
}
