//! Hostile blocks have one result, whatever the number of threads; as a block to validate they get a typed error.

mod blocks;

use blocks::{Hostile, core, execute, hostile_blocks, short_lived_beneficiary};
use shardyard_core::block::{BlockResult, Mode};
use shardyard_core::error::CoreError;

const COUNT: u64 = 400;

fn essence(result: &BlockResult) -> impl PartialEq + std::fmt::Debug + use<> {
    (
        result.state_root,
        result.outcomes_root,
        result.transactions_root,
        result.gas_used,
        result.tips,
        result.included.clone(),
        result.skipped.clone(),
        result.outbox_root,
        result.logs_bloom,
        result.access_list.clone(),
        result.diff.clone(),
    )
}

#[test]
fn hostile_blocks_have_one_result_for_any_number_of_threads() {
    let in_order = core(1, COUNT);
    let cores: Vec<_> = [2, 3, 4, 8].map(|threads| core(threads, COUNT)).into();
    for block in hostile_blocks(COUNT) {
        let wanted = essence(&execute(&in_order, &block, Mode::Build).expect("a builder leaves out what cannot be in"));
        for core in &cores {
            let result = execute(core, &block, Mode::Build).expect("a builder leaves out what cannot be in");
            assert_eq!(essence(&result), wanted, "{}", block.name);
        }
    }
}

/// Wherever it happens: in items that ran ahead of their turn, at their turn, or one after the other on one worker.
#[test]
fn fees_of_an_account_made_and_gone_in_one_transaction_are_paid_once() {
    let (in_order, parallel) = (core(1, COUNT), core(2, COUNT));
    for at in (10..COUNT).step_by(20) {
        let block = short_lived_beneficiary(COUNT, at);
        let wanted = essence(&execute(&in_order, &block, Mode::Build).expect("a builder leaves out what cannot be in"));
        let result = execute(&parallel, &block, Mode::Build).expect("a builder leaves out what cannot be in");
        assert_eq!(essence(&result), wanted, "after item {at}");
    }
}

#[test]
fn hostile_blocks_do_what_they_were_made_for() {
    let core = core(2, COUNT);
    for block in hostile_blocks(COUNT) {
        let result = execute(&core, &block, Mode::Build).expect("a builder leaves out what cannot be in");
        let (included, skipped) = (result.included.len() as u64, result.skipped.len() as u64);
        assert_eq!(included + skipped, block.batch.entries().len() as u64, "{}", block.name);
        match block.name {
            "broke senders" => assert_eq!((included, skipped), (COUNT / 2, COUNT / 2 - 1)),
            "nonce storm" => assert!(included >= 8 && skipped > COUNT / 2, "{included} {skipped}"),
            "sends until the outbox is full" => {
                assert!(included > 500 && skipped > 50, "{included} {skipped}");
                assert!(result.skipped.iter().all(|(_, reason)| reason == "outbox limit reached"));
            }
            "gas-limit edge" => assert!(included <= 4, "{included}"),
            name => assert_eq!(skipped, 0, "{name}: {:?}", result.skipped.first()),
        }
    }
}

#[test]
fn blocks_that_carry_what_cannot_be_in_are_invalid_and_the_rest_is_valid() {
    let core = core(2, COUNT);
    for block in hostile_blocks(COUNT) {
        let built = execute(&core, &block, Mode::Build).expect("a builder leaves out what cannot be in");
        if !built.skipped.is_empty() {
            let error = execute(&core, &block, Mode::Validate).expect_err(block.name);
            assert!(matches!(error, CoreError::InvalidBlock(_)), "{}: {error}", block.name);
        }
        let kept = built.included.iter().map(|index| block.batch.entries()[*index as usize].clone());
        let kept = Hostile { batch: kept.collect(), ..block };
        let validated = execute(&core, &kept, Mode::Validate).expect("what was built is valid");
        assert_eq!(validated.state_root, built.state_root, "{}", kept.name);
        assert_eq!(validated.outcomes_root, built.outcomes_root, "{}", kept.name);
    }
}
