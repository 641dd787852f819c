//! Claims about lanes: what shares nothing runs in them without a break, and what broke them once is known from then on.

use std::sync::Arc;

use super::*;
use crate::access_list::Change;
use crate::error::Result;
use crate::evm::{Bytecode, Numbering};
use crate::parallel::{Between, Value};
use crate::state::{Account, Key, Slots, Source};

/// A block's statistics on so many threads, with what earlier blocks left.
fn run(case: &Case, threads: usize, between: &Arc<Between>) -> BlockResult {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let mut block =
        Block::new(chain(threads, true), &case.env, &case.batch, case.mode, &case.inbox).expect("a sound block");
    block.between = between.clone();
    execute_on(pool(threads).as_deref(), &block, case.view.clone(), PARENT).expect("all are valid")
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
    assert!(stat(&first, "at_turn") > 0, "nothing broke");
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
    let alone = stat(&result, "at_turn");
    assert!(alone > 0, "nothing broke");
    assert!(alone <= 40, "{alone} items ran alone");
    assert_eq!(digest(&result), case.check().expect("all are valid"));
}

#[test]
fn cells_of_the_block_before_are_new_to_the_next() {
    let between = Arc::default();
    // All on one state: what a block left at a location must not be what the next one finds there.
    for (round, count) in [500, 120, 700, 500].into_iter().enumerate() {
        let mut workload = Workload::default();
        let step = round as u64 + 1;
        (0..count).for_each(|n| workload.token(rich(2 * n), rich(2 * (n * step % count) + 1), 1));
        let case = Case::new(&store(), workload);
        assert_eq!(digest(&run(&case, 2, &between)), digest(&run(&case, 2, &Arc::default())), "round {round}");
    }
}

#[test]
fn what_an_item_sees_of_the_next_ones_sender_counts_as_its_own_look() {
    let filler = |workload: &mut Workload, from: u64, count: u64| {
        (from..from + count).for_each(|n| workload.token(rich(2 * n), rich(2 * n + 1), 1));
    };
    // As many between the two as bring them into tasks that begin together.
    for between in [10, 14, 18, 24] {
        let (mut workload, seen) = (Workload::default(), rich(999));
        // Both inputs hide from the plan whom they are about.
        workload.push(1000, Call { value: 77, ..Call::to(contract(FORWARD)) }.words([word(user(seen))]));
        filler(&mut workload, 0, between);
        workload.push(1001, Call::to(contract(ASK_BALANCE)).words([word(user(seen))]));
        workload.push(seen, Call::pay(user(1002), 5));
        filler(&mut workload, between, 300 - between);
        Case::new(&store(), workload).check().expect("all are valid");
    }
}

fn sweep(words: [u64; 2]) -> Call {
    Call::to(contract(SWEEP)).words(words.map(U256::from))
}

/// A state, and what was read of it.
struct Listed(View, Vec<Key>);

impl Source for Listed {
    fn account(&mut self, address: &Address) -> Result<Option<Account>> {
        self.1.push(Key::Account(*address));
        self.0.account(address)
    }

    fn slot(&mut self, address: &Address, slot: &U256) -> Result<U256> {
        self.1.push(Key::Slot(*address, *slot));
        self.0.slot(address, slot)
    }

    fn slots(&mut self, address: &Address) -> Result<Slots> {
        self.0.slots(address)
    }

    fn code(&mut self, hash: &B256) -> Result<Bytecode> {
        Source::code(&mut self.0, hash)
    }
}

impl Numbering for Listed {
    fn place(&self) -> u32 {
        self.1.len() as u32 - 1
    }
}

/// The slots that a block's only transaction changed, as its step notes them.
fn slots_of_step(call: Call) -> Vec<(U256, U256)> {
    let mut workload = Workload::default();
    workload.push(0, Call { gas: 10_000_000, ..call });
    let case = Case::new(&store(), workload);
    let block = Block::new(chain(1, true), &case.env, &case.batch, case.mode, &case.inbox).expect("a sound block");
    let mut machine = block.stepper(Listed(case.view.clone(), Vec::new()));
    let effect = machine.step(block.transaction(0).expect("it was read")).expect("it is valid");
    assert!(effect.is_success(), "{:?}", effect.status);
    let values = std::mem::take(&mut machine.changes().values);
    let read = &machine.state().1;
    let slot = |change: &Change| match (read[change.location as usize], change.value) {
        (Key::Slot(_, slot), Value::Slot(value)) => Some((slot, value)),
        _ => None,
    };
    let mut slots: Vec<(U256, U256)> = values.iter().filter_map(slot).collect();
    slots.sort_unstable();
    slots
}

#[test]
fn slots_written_in_turn_are_noted_once() {
    // Fifty times the same six slots.
    let last = word(user(0)) + U256::from(1);
    let six = (0..6).map(|slot| (U256::from(slot), last)).collect::<Vec<_>>();
    assert_eq!(slots_of_step(Call::to(contract(CYCLE)).words([U256::from(50)])), six);
    let swept = |from, to| slots_of_step(sweep([from, to]));
    // All but one of 128 slots are as they were before.
    assert_eq!(swept(3000, 0), [(U256::ZERO, U256::from(1))]);
    let left = (0..128).map(|slot| (U256::from(slot), U256::from(if slot > 22 { 1 } else { 2 }))).collect::<Vec<_>>();
    assert_eq!(swept(3000, 150), left);
}

#[test]
fn blocks_of_long_steps_are_the_same_on_every_path() {
    let mut workload = Workload::default();
    for n in 0..60 {
        let words = [200 + 40 * n, 7 * (n % 3) * n];
        let call = if n % 4 == 3 { Call::to(contract(CYCLE)).words([U256::from(n)]) } else { sweep(words) };
        workload.push(rich(n), Call { gas: 10_000_000, ..call });
    }
    let digest = Case::new(&store(), workload).check().expect("builders leave out what is invalid");
    assert_eq!(digest.skipped.len(), 0);
}

#[test]
fn a_tip_above_the_fee_is_refused_on_every_path() {
    let mut workload = Workload::default();
    for n in 0..100 {
        workload.push(rich(n), Call::pay(user(500 + n), 1));
        if n == 70 {
            workload.last().tip = Some(FEE + 1);
        }
    }
    let digest = Case::new(&store(), workload).check().expect("builders leave out what is invalid");
    assert_eq!(digest.skipped.iter().map(|(place, _)| *place).collect::<Vec<_>>(), [70]);
}
