//! Executing a block on several workers with exactly the result of executing it in order (Block-STM).
//!
//! Every item of a block (deliveries, then transactions) runs speculatively against a multi-version memory. Items commit
//! in order: what an item read is compared with what is there now that everything before it is committed; if it differs,
//! the item runs again, at its turn, where nothing can change under it. So the lowest item always makes progress and no
//! item waits for a later one. Fees of the beneficiary and both sides of plain transfers are changes that commute.
//!
//! `locations` numbers what the block touches, `memory` keeps versions, `reader` is one item's view of them, `attempt`
//! runs an item, `status` hands out work, `crew` is the protocol between workers, `committer` validates and commits, `alone`
//! goes on where that does not pay, `stats` tells people what happened; this module brings block and crew together.

mod alone;
mod attempt;
mod committer;
mod crew;
mod locations;
mod memory;
mod reader;
mod stats;
mod status;
mod sync;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use alloy_primitives::Address;
use rayon::ThreadPool;
use rayon::prelude::*;

use crate::block::Block;
use crate::error::{CoreError, Result};
use crate::ledger::Ledger;
use crate::state::{Finished, Map, Part, View};

use attempt::{Work, Worker};
use committer::Committer;
use crew::{Crew, Job, Outcome, Pace};
use memory::Memory;
pub use stats::RunStats;
use stats::WorkTime;
use sync::lock;

/// How far workers run ahead of the commits, per worker, once that has paid: bounds what a read has to add up and what an
/// abort can waste.
const WINDOW: usize = 64;
/// How far they do until then.
const NARROW_WINDOW: usize = 8;
/// Items a worker takes at once while they do not get into each other's way: neighbours then stay on one core.
const RUN_LENGTH: usize = 8;

/// A transaction with so much gas is not worth running when it may turn out not to fit into the block.
const HEAVY_GAS: u64 = 1_000_000;
/// Locations looked through at once when the changes are gathered.
const GATHERED: u32 = 2048;

/// A block in the hands of its workers.
pub(crate) struct Run<'a> {
    block: &'a Block<'a>,
    memory: Arc<Memory>,
    crew: Crew,
    /// What the items in flight left, each at its index modulo the length.
    works: Vec<Mutex<Work>>,
    /// For each item the last one before it with the same sender, 0 for none: its nonce depends on it.
    previous: Vec<u32>,
    committer: Mutex<Committer<'a>>,
    /// Work that was stopped before its end since the last look at what speculation gained.
    wasted: AtomicU32,
    /// Gas limits of all items before each.
    reserved: Vec<u64>,
    /// By the committed items.
    gas_used: AtomicU64,
    halt: Mutex<Option<CoreError>>,
    time: WorkTime,
}

/// # Errors
/// Those of executing in order, for the same item.
pub fn execute_in_parallel<'a>(
    block: &'a Block<'a>,
    view: View,
    workers: &ThreadPool,
) -> Result<(Ledger<'a>, Finished, RunStats)> {
    let run = Run::new(block, view)?;
    let threads = workers.current_num_threads();
    workers.install(|| {
        rayon::scope(|scope| {
            for id in 0..threads {
                scope.spawn({
                    let run = &run;
                    move |_| run.help(id)
                });
            }
        });
    });
    run.finish(workers)
}

impl<'a> Run<'a> {
    fn new(block: &'a Block<'a>, view: View) -> Result<Self> {
        let (receipts, entries) = (block.receipts.len(), block.batch.entries.len());
        let last = receipts + entries;
        let memory = Arc::new(Memory::new(view, last));
        let mut committer = Committer::new(block, &memory)?;
        let mut worker = Worker::new(block, &memory, 0);
        committer.write_outside(&memory, &mut worker, 0, |machine| block.open(machine))?;
        let threads = block.chain.threads;
        let pace = Pace { narrow: NARROW_WINDOW * threads, wide: WINDOW * threads, run_length: RUN_LENGTH };
        Ok(Self {
            block,
            memory,
            crew: Crew::new(last, pace, starts_alone()),
            works: (0..(WINDOW * threads).next_power_of_two()).map(|_| Mutex::default()).collect(),
            previous: find_previous(block),
            committer: Mutex::new(committer),
            wasted: AtomicU32::new(0),
            reserved: sum_gas_limits(block),
            gas_used: AtomicU64::new(0),
            halt: Mutex::new(None),
            time: WorkTime::default(),
        })
    }

    fn work(&self, index: usize) -> &Mutex<Work> {
        &self.works[index & (self.works.len() - 1)]
    }

    /// One worker's part, until the block is done. A panic ends the block with a typed error, never another worker's wait.
    #[inline(never)]
    fn help(&self, id: usize) {
        let shift = self.time.begin();
        let ended = catch_unwind(AssertUnwindSafe(|| {
            let mut worker = Worker::new(self.block, &self.memory, id);
            self.crew.work(self, &mut worker, id)
        }));
        drop(shift);
        match ended {
            Ok(Ok(())) => {}
            Ok(Err(error)) => self.stop(error),
            Err(_) => self.stop(CoreError::Internal("a worker panicked".into())),
        }
    }

    fn is_heavy(&self, index: usize) -> bool {
        self.reserved[index + 1] - self.reserved[index] >= HEAVY_GAS
    }

    /// Whether the item fits into the block even if all before it use all the gas they may.
    fn fits_surely(&self, index: usize) -> bool {
        // Read in this order, what is committed meanwhile counts twice and never not at all.
        let committed = self.crew.committed().min(index);
        let most = self.reserved[index + 1] - self.reserved[committed];
        self.gas_used.load(SeqCst).saturating_add(most) <= self.block.env.gas_limit
    }

    fn stop(&self, error: CoreError) {
        lock(&self.halt).get_or_insert(error);
        self.crew.stop();
    }

    /// What closes the block, then its changes, gathered by all workers.
    fn finish(self, workers: &ThreadPool) -> Result<(Ledger<'a>, Finished, RunStats)> {
        if let Some(error) = lock(&self.halt).take() {
            return Err(error);
        }
        let mut committer = self.committer.into_inner().unwrap_or_else(PoisonError::into_inner);
        let mut worker = Worker::new(self.block, &self.memory, 0);
        committer.close(&self.memory, &mut worker, self.crew.last + 1)?;
        let count = self.memory.count();
        let parts: Vec<Part> = workers.install(|| {
            let starts: Vec<u32> = (0..count).step_by(GATHERED as usize).collect();
            let gather = |start: u32| self.memory.updates(start..(start + GATHERED).min(count));
            starts.into_par_iter().map(gather).collect::<Result<_>>()
        })?;
        let (ledger, codes, mut stats) = committer.into_parts(&self.memory);
        stats.on_core = self.time.on_core();
        Ok((ledger, Finished { parts, codes }, stats))
    }
}

impl<'a> Job for Run<'a> {
    type Worker = Worker<'a>;
    type Committer = Committer<'a>;
    type Error = CoreError;

    /// The last item of the same sender: the nonce depends on it.
    fn previous(&self, index: usize) -> usize {
        self.previous[index] as usize
    }

    fn must_wait(&self, index: usize) -> bool {
        self.is_heavy(index) && !self.fits_surely(index)
    }

    fn attempt(&self, worker: &mut Worker<'a>, index: usize) -> Result<Outcome> {
        perturb();
        let outcome = worker.attempt(index, None, self.gas_used.load(SeqCst), true)?;
        if matches!(outcome, Outcome::NotYet) {
            self.wasted.fetch_add(1, SeqCst);
        }
        Ok(outcome)
    }

    fn parked(&self, index: usize) {
        self.wasted.fetch_add(u32::from(self.is_heavy(index)), SeqCst);
    }

    fn publish(&self, worker: &mut Worker<'a>, index: usize, incarnation: u32) {
        worker.publish(&mut lock(self.work(index)), index, incarnation);
    }

    fn committer(&self) -> &Mutex<Committer<'a>> {
        &self.committer
    }

    fn commit(&self, committer: &mut Committer<'a>, worker: &mut Worker<'a>, next: usize) -> Result<Option<usize>> {
        let after = if let Some(stretch) = committer.stretch(self, next) {
            let (after, began) = (stretch.end, Instant::now());
            committer.commit_alone(self, worker, stretch)?;
            committer.add_alone(began.elapsed());
            after
        } else if committer.commit(self, worker, next)? {
            next + 1
        } else {
            return Ok(None);
        };
        committer.adapt(self, after - 1);
        // Before the items count as committed: see `fits_surely`.
        self.gas_used.store(committer.gas_used(), SeqCst);
        Ok(Some(after))
    }

    fn rested(&self, slept: Duration) {
        self.time.sleep(slept);
    }
}

/// Deliveries count once they are committed: this is for guessing.
fn sum_gas_limits(block: &Block<'_>) -> Vec<u64> {
    let transactions = block.batch.entries.iter().map(|entry| entry.transaction.as_ref());
    // No more than does not fit anyway: a limit that no block grants must not use up the sum's range.
    let most = block.env.gas_limit.saturating_add(1);
    let limits = transactions.map(|transaction| transaction.map_or(0, |transaction| transaction.gas_limit.min(most)));
    let mut sum = 0_u64;
    let mut sums = vec![0; block.receipts.len() + 2];
    sums.extend(limits.map(|limit| {
        sum = sum.saturating_add(limit);
        sum
    }));
    sums
}

fn find_previous(block: &Block<'_>) -> Vec<u32> {
    let first = block.receipts.len() + 1;
    let mut previous = vec![0; first + block.batch.entries.len()];
    let mut seen: Map<Address, u32> = Map::default();
    for (place, entry) in block.batch.entries.iter().enumerate() {
        let Some(transaction) = &entry.transaction else { continue };
        let index = first + place;
        previous[index] = seen.insert(transaction.sender, index as u32).unwrap_or_default();
    }
    previous
}

/// Tests let workers stumble here, differently for each seed.
#[cfg(not(test))]
#[inline]
fn perturb() {}

/// Tests may have a block executed by one worker alone from its first transaction on.
#[cfg(not(test))]
#[inline]
fn starts_alone() -> bool {
    false
}

#[cfg(test)]
use tests::{perturb, starts_alone};

#[cfg(test)]
mod tests;
