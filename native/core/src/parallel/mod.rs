//! Executing a block on several workers with exactly the result of executing it in order (Block-STM).
//!
//! Every item of a block (deliveries, then transactions) runs speculatively against a multi-version memory. Items commit
//! in order: what an item read is compared with what is there now that everything before it is committed; if it differs,
//! the item runs again, at its turn, where nothing can change under it. So the lowest item always makes progress and no
//! item waits for a later one. Fees of the beneficiary and both sides of plain transfers are changes that commute.
//!
//! `memory` keeps versions, `reader` is one item's view of them, `attempt` runs an item, `status` hands out work,
//! `committer` validates and commits, `stats` tells people what happened; this module holds the workers together.

mod attempt;
mod committer;
mod memory;
mod reader;
mod stats;
mod status;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use alloy_primitives::Address;
use rayon::ThreadPool;
use rayon::prelude::*;

use crate::block::Block;
use crate::error::{CoreError, Result};
use crate::ledger::Ledger;
use crate::state::{Finished, Map, Update, View};

use attempt::{Outcome, Work, Worker};
use committer::Committer;
use memory::Memory;
pub use stats::RunStats;
use status::{Schedule, State};

/// How far workers run ahead of the commits, per worker: bounds what a read has to add up and what an abort can waste.
const WINDOW: usize = 64;

/// A block in the hands of its workers.
pub(crate) struct Run<'a> {
    block: &'a Block<'a>,
    memory: Arc<Memory>,
    schedule: Schedule,
    works: Vec<Mutex<Work>>,
    /// For each item the last one before it with the same sender, 0 for none: its nonce depends on it.
    previous: Vec<u32>,
    committer: Mutex<Committer<'a>>,
    /// Someone holds the committer and will look again before letting go of it.
    is_committing: AtomicBool,
    /// Items parked for a writer since the last look at what speculation gained.
    parked: AtomicU32,
    /// One past the last committed item.
    committed: AtomicUsize,
    window: usize,
    /// Only the committer runs: speculation did not pay.
    is_solo: AtomicBool,
    halt: Mutex<Option<CoreError>>,
    is_over: AtomicBool,
    sleepers: AtomicUsize,
    bed: Mutex<()>,
    bell: Condvar,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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
                    move |_| run.work(id)
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
        let memory = Arc::new(Memory::new(view, 2 * last));
        let mut committer = Committer::new(block);
        let mut worker = Worker::new(block, &memory, 0);
        committer.write_outside(&memory, &mut worker, 0, |machine| block.open(machine))?;
        Ok(Self {
            block,
            memory,
            schedule: Schedule::new(last),
            works: (0..=last).map(|_| Mutex::default()).collect(),
            previous: find_previous(block),
            committer: Mutex::new(committer),
            is_committing: AtomicBool::new(false),
            parked: AtomicU32::new(0),
            committed: AtomicUsize::new(1),
            window: WINDOW * block.chain.threads,
            is_solo: AtomicBool::new(false),
            halt: Mutex::new(None),
            is_over: AtomicBool::new(last == 0),
            sleepers: AtomicUsize::new(0),
            bed: Mutex::new(()),
            bell: Condvar::new(),
        })
    }

    fn last(&self) -> usize {
        self.works.len() - 1
    }

    /// One worker's part, until the block is done. A panic ends the block with a typed error, never another worker's wait.
    fn work(&self, id: usize) {
        let ended = catch_unwind(AssertUnwindSafe(|| self.work_until_over(id)));
        match ended {
            Ok(Ok(())) => {}
            Ok(Err(error)) => self.stop(Some(error)),
            Err(_) => self.stop(Some(CoreError::Internal("a worker panicked".into()))),
        }
    }

    fn work_until_over(&self, id: usize) -> Result<()> {
        let mut worker = Worker::new(self.block, &self.memory, id);
        while !self.is_over.load(SeqCst) {
            match self.claim() {
                Some((index, incarnation)) => self.run_item(&mut worker, index, incarnation)?,
                None => self.rest(),
            }
            self.commit_all(&mut worker)?;
        }
        Ok(())
    }

    fn claim(&self) -> Option<(usize, u32)> {
        if self.is_solo.load(SeqCst) {
            return None;
        }
        self.schedule.claim(self.committed.load(SeqCst) + self.window)
    }

    /// Whether the lowest item that is not committed waits for a committer.
    fn can_commit(&self) -> bool {
        let next = self.committed.load(SeqCst);
        next <= self.last()
            && match self.schedule.state(next) {
                State::Done | State::Awaiting => true,
                State::Ready => self.is_solo.load(SeqCst),
                State::Running | State::Blocked | State::Committed => false,
            }
    }

    /// Runs an item, and again at once if it stopped for a writer that is ready by now.
    fn run_item(&self, worker: &mut Worker<'a>, index: usize, incarnation: u32) -> Result<()> {
        let previous = self.previous[index] as usize;
        if previous > 0 && self.park(index, previous) {
            return Ok(());
        }
        loop {
            perturb();
            match worker.attempt(index, None, true)? {
                Outcome::Blocked(writer) if self.park(index, writer) => return Ok(()),
                Outcome::Blocked(_) => {}
                Outcome::NotYet => {
                    self.schedule.defer(index);
                    return Ok(());
                }
                Outcome::Ran => {
                    worker.publish(&self.works[index], index, incarnation);
                    self.schedule.finish(index);
                    return Ok(());
                }
            }
        }
    }

    fn park(&self, index: usize, writer: usize) -> bool {
        let is_parked = self.schedule.block(index, writer);
        self.parked.fetch_add(u32::from(is_parked), SeqCst);
        is_parked
    }

    /// Commits as far as items are done; whoever holds the committer does it for all.
    fn commit_all(&self, worker: &mut Worker<'a>) -> Result<()> {
        while self.can_commit() && !self.is_over.load(SeqCst) {
            let Ok(mut committer) = self.committer.try_lock() else { return Ok(()) };
            self.is_committing.store(true, SeqCst);
            let before = self.committed.load(SeqCst);
            while self.can_commit() && !self.is_over.load(SeqCst) {
                let next = self.committed.load(SeqCst);
                if !committer.commit(self, worker, next)? {
                    break;
                }
                self.committed.store(next + 1, SeqCst);
                committer.adapt(self, next);
            }
            let next = self.committed.load(SeqCst);
            self.is_committing.store(false, SeqCst);
            drop(committer);
            if next > self.last() {
                self.stop(None);
                return Ok(());
            }
            if next > before && !self.is_solo.load(SeqCst) && self.schedule.has_work(next + self.window / 2) {
                self.ring();
            }
        }
        Ok(())
    }

    /// Sleeps until there may be something to do; no worker ever spins.
    fn rest(&self) {
        let guard = lock(&self.bed);
        self.sleepers.fetch_add(1, SeqCst);
        let has_work = !self.is_solo.load(SeqCst) && self.schedule.has_work(self.committed.load(SeqCst) + self.window);
        let has_commits = self.can_commit() && !self.is_committing.load(SeqCst);
        if !self.is_over.load(SeqCst) && !has_commits && !has_work {
            drop(self.bell.wait(guard).unwrap_or_else(PoisonError::into_inner));
        }
        self.sleepers.fetch_sub(1, SeqCst);
    }

    fn ring(&self) {
        if self.sleepers.load(SeqCst) > 0 {
            drop(lock(&self.bed));
            self.bell.notify_all();
        }
    }

    fn stop(&self, error: Option<CoreError>) {
        if let Some(error) = error {
            lock(&self.halt).get_or_insert(error);
        }
        self.is_over.store(true, SeqCst);
        self.ring();
    }

    /// What closes the block, then its changes, gathered by all workers.
    fn finish(self, workers: &ThreadPool) -> Result<(Ledger<'a>, Finished, RunStats)> {
        if let Some(error) = lock(&self.halt).take() {
            return Err(error);
        }
        let last = self.last();
        let mut committer = self.committer.into_inner().unwrap_or_else(PoisonError::into_inner);
        let mut worker = Worker::new(self.block, &self.memory, 0);
        committer.close(&self.memory, &mut worker, last + 1)?;
        let parts: Vec<Vec<Update>> = workers.install(|| {
            (0..Memory::shard_count()).into_par_iter().map(|shard| self.memory.updates(shard)).collect::<Result<_>>()
        })?;
        let (ledger, codes, stats) = committer.into_parts(&self.memory);
        Ok((ledger, Finished::of(parts.concat(), codes)?, stats))
    }
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

#[cfg(test)]
use tests::perturb;

#[cfg(test)]
mod tests;
