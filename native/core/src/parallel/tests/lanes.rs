//! Claims about lanes: what shares nothing runs in them without a break, and what broke them once is known from then on.

use std::sync::Arc;

use super::*;
use crate::parallel::Between;

/// A block's statistics on so many threads, with what earlier blocks left.
fn run(case: &Case, threads: usize, between: &Arc<Between>) -> BlockResult {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let chain = Chain { chain_id: 31_337, shard: SHARD, threads, fast_path: true, revision: Revision::PRAGUE };
    let mut block = Block::new(chain, &case.env, &case.batch, case.mode, &case.inbox).expect("a sound block");
    block.between = between.clone();
    execute_on(pool(threads).as_deref(), &block, case.view.clone(), PARENT).expect("all are valid")
}

/// Users who are not poor.
fn rich(number: u64) -> u64 {
    number / 9 * 10 + number % 9
}

#[test]
fn what_shares_nothing_runs_in_lanes_alone() {
    let mut workload = Workload::default();
    (0..500).for_each(|n| workload.token(rich(2 * n), rich(2 * n + 1), 1));
    let case = Case::new(&store(), workload);
    for threads in [2, 4] {
        let result = run(&case, threads, &Arc::default());
        assert_eq!((stat(&result, "aborts"), stat(&result, "at_turn")), (0, 0), "{threads} threads");
        assert_eq!(stat(&result, "incarnations"), 500);
    }
}

#[test]
fn callers_that_clashed_once_run_in_order_from_then_on() {
    let mut workload = Workload::default();
    // The input hides from the plan that all of them count in one slot.
    (0..500).for_each(|n| workload.push(rich(n), Call { input: vec![1], ..Call::to(contract(COUNTER)) }));
    let case = Case::new(&store(), workload);
    let between = Arc::default();
    let first = run(&case, 2, &between);
    assert!(stat(&first, "aborts") > 0, "nothing broke");
    let second = run(&case, 2, &between);
    assert_eq!((stat(&second, "aborts"), stat(&second, "at_turn")), (0, 500));
    assert_eq!(digest(&first), digest(&second));
}

#[test]
fn a_clash_late_in_a_window_keeps_what_came_before_it() {
    let mut workload = Workload::default();
    (0..200).for_each(|n| workload.token(rich(2 * n), rich(2 * n + 1), 1));
    // Slot 1 := slot 0 + 1 by one user, slot 2 := slot 1 + 1 by another: small numbers look like amounts.
    (0..40).for_each(|n| {
        let slots = [U256::from(n + 1), U256::from(n)];
        workload.push(rich(400 + n), Call::to(contract(DIAMOND)).words(slots));
    });
    let case = Case::new(&store(), workload);
    let result = run(&case, 2, &Arc::default());
    assert!(stat(&result, "aborts") > 0, "nothing broke");
    assert!(stat(&result, "at_turn") <= 40, "{} items ran alone", stat(&result, "at_turn"));
    assert_eq!(digest(&result), case.check().expect("all are valid"));
}
