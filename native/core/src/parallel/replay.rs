//! Validating a block with its access list (EIP-7928): every item finds in the list what those before it left, so all of
//! them run side by side, each once, with no versions and no aborts.
//!
//! Transactions run in runs of neighbours, each run on a journal of its own: what a location holds is asked of the list
//! when an item of the run is the first to look there, and from then on the journal knows.
//!
//! A wrong list cannot pass. Say every value that execution in order gives before index i stands in the list, and nothing
//! else does, and the items before i ran as in order. Then item i finds what it would in order: in the list, or in its
//! journal, where items before it put it, or left it as they found it. So it runs as in order, and looks at and leaves the
//! same. The list made of what was really executed thus has at i what execution in order gives, and the lowest index at
//! which the list given has anything else is an index at which the two lists differ. Reads have no index; once all indices
//! are right, all items ran as in order, so what they looked at is right as well. Whatever depends on order beside the
//! state (gas, the outbox, outcomes) is accounted for afterwards, in order.
//!
//! Nonsense in a list may look like a fault of our own state on the way. Only then the block is executed without it, which
//! tells whose fault it is.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use alloy_primitives::{Address, B256, U256};
use rayon::ThreadPool;
use rayon::prelude::*;

use super::after::Done as Settled;
use super::execute_in_parallel;
use super::expected::{Expected, word};
use super::lane::{Lane, Ran};
use super::memory::{Key, Memory, Numbers, Value};
use super::stats::RunStats;
use crate::access_list::{AccessLog, Change, build};
use crate::block::{Block, Ended, last_seq};
use crate::error::{CoreError, Result};
use crate::evm::{Bytecode, Machine, NotExecuted};
use crate::ledger::{Done, Ledger, deliver};
use crate::state::{Account, BlockState, Finished, Slots, Source, Touched, View};

/// Runs that each worker has to take: enough that none waits long for the last.
const RUNS_PER_WORKER: usize = 8;
/// A journal larger than this many items leaves the processor's cache.
const LONGEST_RUN: usize = 512;
/// Items whose accounts are read at once before they run.
const WARMED: usize = 16;

/// The state as one item finds it, by the list; for what runs by itself.
#[derive(Debug)]
struct ListReader {
    memory: Arc<Memory>,
    expected: Arc<Expected>,
    numbers: Numbers,
    index: u32,
}

impl ListReader {
    fn look(&mut self, key: &Key) -> Result<Value> {
        let (location, parent) = self.memory.look(key, &mut self.numbers)?;
        Ok(self.expected.before(location, parent, self.index))
    }
}

impl Source for ListReader {
    fn account(&mut self, address: &Address) -> Result<Option<Account>> {
        match self.look(&Key::Account(*address))? {
            Value::Account(account) => Ok(account),
            Value::Slot(_) => Err(CoreError::Internal("a location changed its kind".into())),
        }
    }

    fn slot(&mut self, address: &Address, slot: &U256) -> Result<U256> {
        word(self.look(&Key::Slot(*address, *slot))?)
    }

    /// See `Reader::slots`.
    fn slots(&mut self, _: &Address) -> Result<Slots> {
        Ok(Slots::default())
    }

    fn code(&mut self, hash: &B256) -> Result<Bytecode> {
        self.memory.code(hash)
    }
}

type ListMachine = Machine<BlockState<ListReader>>;

/// What some items did, in order.
#[derive(Default)]
struct Left {
    results: Vec<Result<Did, NotExecuted>>,
    touched: Vec<u32>,
    changes: Vec<Change>,
}

/// What one item did.
struct Did {
    done: Done,
    /// The beneficiary's account was changed, and what is noted of it holds all fees up to this item's own.
    has_settled_fees: bool,
}

struct Replay<'a> {
    block: &'a Block<'a>,
    memory: Arc<Memory>,
    expected: Arc<Expected>,
    beneficiary: u32,
    gas_used: AtomicU64,
}

/// # Errors
/// `InvalidBlock` when a transaction cannot be in the block if the list is right: callers know beforehand that it is the one
/// the header names, so the block is invalid whichever of the two is wrong. Whether the list is the block's is found out when
/// the block is finished.
pub fn replay<'a>(block: &'a Block<'a>, view: View, workers: &ThreadPool, given: &[u8]) -> Result<Ended<'a>> {
    let replay = || {
        let list = block.decode_access_list(given, true)?;
        let memory = Arc::new(Memory::new(view.clone(), block.last(), &block.between.spare));
        let beneficiary = memory.locate(&Key::Account(block.env.beneficiary))?;
        let (expected, finished) = Expected::new(list, &memory)?;
        let (expected, gas_used) = (Arc::new(expected), AtomicU64::new(0));
        Replay { block, memory, expected, beneficiary, gas_used }.execute(finished)
    };
    match super::guard(|| workers.install(replay)).and_then(|ended| ended) {
        Err(CoreError::Internal(_)) => execute_in_parallel(block, view, workers),
        ended => ended,
    }
}

impl<'a> Replay<'a> {
    fn machine(&self) -> ListMachine {
        let (memory, expected) = (self.memory.clone(), self.expected.clone());
        let reader = ListReader { memory, expected, numbers: Numbers::default(), index: 0 };
        self.block.machine(BlockState::watched(reader))
    }

    fn execute(self, finished: Finished) -> Result<Ended<'a>> {
        let (block, last) = (self.block, self.block.last());
        let receipts = block.receipts.len();
        let mut machine = self.machine();
        block.open(&mut machine)?;
        let mut opened = Left::default();
        self.take(&mut machine, 0, &mut opened)?;
        let length = block.batch.entries.len().div_ceil(RUNS_PER_WORKER * block.chain.threads).clamp(1, LONGEST_RUN);
        let cut = |items: Range<usize>, length| {
            let end = items.end;
            items.step_by(length).map(move |start| start..end.min(start + length)).collect::<Vec<_>>()
        };
        let deliveries = cut(1..receipts + 1, WARMED).into_par_iter().map(|items| self.deliver(items));
        let mut ran = vec![Ok(opened)];
        ran.extend(deliveries.collect::<Vec<_>>());
        let lane = || Lane::new(block, &self.memory);
        let runs =
            cut(receipts + 1..last + 1, length).into_par_iter().map_init(lane, |lane, items| self.run(lane, items));
        ran.extend(runs.collect::<Vec<_>>());
        let (mut ledger, mut log) = (Ledger::new(block), AccessLog::default());
        self.account(ran, &mut machine, &mut ledger, &mut log)?;
        machine.state().source().index = last as u32 + 1;
        block.close(&mut machine, U256::ZERO, &ledger.outbox)?;
        let mut closed = Left::default();
        if self.take(&mut machine, last as u32 + 1, &mut closed)? {
            log.owe(last as u32 + 1, U256::ZERO);
        }
        log.add(closed.touched.into_iter(), closed.changes);
        let memory = self.memory;
        let listing = Box::new(move || build(&log, &Settled::new(&memory, &[]), block.env.beneficiary, true));
        Ok(Ended { ledger, finished, stats: RunStats::default(), listing })
    }

    /// Takes what a machine's item `index` did.
    fn take(&self, machine: &mut ListMachine, index: u32, left: &mut Left) -> Result<bool> {
        let state = machine.state();
        let touched: HashSet<Key, foldhash::fast::RandomState> = state.take_touched().into_iter().collect();
        let mut has_settled_fees = false;
        for changed in state.take_changes().0 {
            let (key, value) = match changed {
                Touched::Account(address, account) => (Key::Account(address), Value::Account(account)),
                Touched::Slot(address, slot, value) => (Key::Slot(address, slot), Value::Slot(value)),
            };
            let location = self.memory.locate(&key)?;
            has_settled_fees |= location == self.beneficiary;
            left.changes.push(Change { index, location, value });
        }
        for key in &touched {
            left.touched.push(self.memory.locate(key)?);
        }
        Ok(has_settled_fees)
    }

    /// Some consecutive deliveries.
    fn deliver(&self, items: Range<usize>) -> Result<Left> {
        let (mut machine, mut left) = (self.machine(), Left::default());
        for index in items {
            machine.state().source().index = index as u32;
            let done = deliver(&mut machine, self.block, &self.block.receipts[index - 1])?;
            self.count_gas(&done);
            let has_settled_fees = self.take(&mut machine, index as u32, &mut left)?;
            left.results.push(Ok(Did { done, has_settled_fees }));
        }
        Ok(left)
    }

    fn count_gas(&self, done: &Done) -> u64 {
        self.gas_used.fetch_add(done.gas_used, Relaxed).saturating_add(done.gas_used)
    }

    /// Some consecutive transactions.
    fn run(&self, lane: &mut Lane<'a>, items: Range<usize>) -> Result<Left> {
        let block = self.block;
        let first = block.receipts.len() + 1;
        let mut left = Left::default();
        left.results.reserve(items.len());
        lane.stand_listed(&self.expected);
        for index in items.clone() {
            if (index - items.start).is_multiple_of(WARMED) {
                let soon = index..items.end.min(index + WARMED);
                lane.warm(soon.filter_map(|index| block.batch.entries[index - first].transaction.as_deref()));
            }
            let result = block.transaction(index - first).and_then(|transaction| {
                // See `commit_next`.
                if transaction.tx_type == 4 {
                    self.end_journal(lane, &mut left);
                }
                let result = match lane.run(index, transaction)? {
                    Ran::Done(done) => Ok(done),
                    Ran::Refused(refusal) | Ran::Spoilt(refusal) => Err(refusal),
                    Ran::Stopped => Err(CoreError::Internal(format!("item {index} was stopped")).into()),
                };
                Ok((result?, lane.has_destroyed() || transaction.tx_type == 4))
            });
            let result = result.map(|(done, ends)| {
                let saw_fees = lane.saw_tips();
                let kept = left.changes.len();
                if ends || saw_fees {
                    self.end_journal(lane, &mut left);
                }
                let settles = |change: &Change| change.index as usize == index && change.location == self.beneficiary;
                Did { done, has_settled_fees: saw_fees && left.changes[kept..].iter().any(settles) }
            });
            let sum = result.as_ref().map_or(0, |did| self.count_gas(&did.done));
            // Or a block full of what does not fit would be work for nothing.
            if sum > block.env.gas_limit {
                return Err(refused(index - first, "gas limit reached"));
            }
            let is_failed = result.is_err();
            left.results.push(result);
            if is_failed {
                break;
            }
        }
        self.end_journal(lane, &mut left);
        Ok(left)
    }

    fn end_journal(&self, lane: &mut Lane<'a>, left: &mut Left) {
        let trail = lane.take_trail();
        if left.changes.is_empty() {
            std::mem::swap(&mut left.changes, &mut trail.changes);
        } else {
            left.changes.append(&mut trail.changes);
        }
        left.touched.extend(trail.touched.iter().map(|(location, _)| *location));
        trail.clear();
    }

    /// What every item is asked in order.
    fn account(
        &self,
        ran: Vec<Result<Left>>,
        machine: &mut ListMachine,
        ledger: &mut Ledger<'_>,
        log: &mut AccessLog,
    ) -> Result<()> {
        let (mut tips, mut index) = (U256::ZERO, 0);
        let receipts = self.block.receipts.len();
        for left in ran {
            let Left { results, touched, changes } = left?;
            log.add(touched.into_iter(), changes);
            for result in results {
                index += 1;
                let place = usize::checked_sub(index, receipts + 1);
                let did = self.check(ledger, place, result)?;
                if did.has_settled_fees {
                    tips = U256::ZERO;
                }
                if !did.done.is_tip_lost {
                    tips = tips
                        .checked_add(did.done.tip)
                        .ok_or_else(|| CoreError::Internal("the beneficiary's balance exceeds 256 bits".into()))?;
                }
                log.owe(index as u32, tips);
                ledger.record(did.done, place.map(|place| place as u32), |dst| {
                    machine.state().source().index = index as u32;
                    last_seq(machine.state().source(), dst)
                })?;
            }
        }
        Ok(())
    }

    fn check(&self, ledger: &Ledger<'_>, place: Option<usize>, result: Result<Did, NotExecuted>) -> Result<Did> {
        let checked = result.and_then(|did| {
            if let Some(place) = place {
                ledger.check_gas(self.block.transaction(place)?)?;
                ledger.check_outbox(&did.done)?;
            }
            Ok(did)
        });
        checked.map_err(|refusal| match refusal {
            NotExecuted::Failed(error) => error,
            NotExecuted::Invalid(reason) => refused(place.unwrap_or_default(), &reason),
        })
    }
}

fn refused(place: usize, reason: &str) -> CoreError {
    CoreError::InvalidBlock(format!("transaction {place}, by the access list: {reason}"))
}
