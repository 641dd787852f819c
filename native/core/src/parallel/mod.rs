//! Executing a block on several workers with exactly the result of executing it in order (Block-STM).
//!
//! Every item of a block (deliveries, then transactions) runs speculatively against a multi-version memory. Items commit
//! in order: what an item read is compared with what is there now that everything before it is committed; if it differs,
//! the item runs again, at its turn, where nothing can change under it. So the lowest item always makes progress and no
//! item waits for a later one. Fees of the beneficiary and both sides of plain transfers are changes that commute.
//!
//! Transactions of which it can be told beforehand that they will not meet do without versions: they run in `lanes`, each on
//! a journal of its own, and only whether they met is checked. Where lanes break, one worker goes on `alone`, or, where
//! there are more than two, speculation does.
//!
//! `locations` numbers what the block touches, `memory` keeps versions, `reader` is one item's view of them, `attempt`
//! runs an item, `status` hands out work, `committer` validates and commits; `plan` divides a window into the tasks of
//! lanes by what is known beforehand and what `habits` remember, a `lane` is one journal, `marks` tell where two met;
//! `replay` needs none of this: it has the block's
//! access list; `stats` tells people what happened; this module holds the workers together.

mod alone;
mod attempt;
mod codes;
mod committer;
mod crew;
mod habits;
mod lane;
mod lanes;
mod locations;
mod marks;
mod memory;
mod plan;
mod reader;
mod replay;
mod stats;
mod status;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use alloy_primitives::Address;
use rayon::ThreadPool;
use rayon::prelude::*;

use crate::access_list::{Places, build};
use crate::block::{Block, Ended};
use crate::error::{CoreError, Result};
use crate::state::{Finished, Map, Part, View};

use attempt::{Outcome, Work, Worker};
use committer::Committer;
pub use habits::Habits;
use lanes::execute_in_lanes;
use memory::Memory;
pub use memory::Value;
pub use replay::replay;
pub use stats::RunStats;
use stats::WorkTime;
use status::{Schedule, State};

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
    /// What speculation needs, once there is any.
    speculative: OnceLock<Speculative>,
    last: usize,
    /// The last item that speculation is to commit.
    until: AtomicUsize,
    committer: Mutex<Committer<'a>>,
    /// Someone holds the committer and will look again before letting go of it.
    is_committing: AtomicBool,
    /// Work that was stopped before its end since the last look at what speculation gained.
    wasted: AtomicU32,
    /// Gas limits of all items before each.
    reserved: Vec<u64>,
    /// One past the last committed item.
    committed: AtomicUsize,
    /// By the committed items.
    gas_used: AtomicU64,
    /// Windows of lanes so far.
    windows: AtomicU32,
    window: AtomicUsize,
    run_length: AtomicUsize,
    /// Only the committer runs: speculation did not pay.
    is_solo: AtomicBool,
    halt: Mutex<Option<CoreError>>,
    is_over: AtomicBool,
    sleepers: AtomicUsize,
    bed: Mutex<()>,
    bell: Condvar,
    time: WorkTime,
}

/// The items of a block as those who run them ahead of their turn see them.
struct Speculative {
    schedule: Schedule,
    /// What the items in flight left, each at its index modulo the length.
    works: Vec<Mutex<Work>>,
    /// For each item the last one before it with the same sender, 0 for none: its nonce depends on it.
    previous: Vec<u32>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// # Errors
/// Those of executing in order, for the same item.
pub fn execute_in_parallel<'a>(block: &'a Block<'a>, view: View, workers: &ThreadPool) -> Result<Ended<'a>> {
    let run = Run::new(block, view)?;
    workers.install(|| run.execute())?;
    run.finish(workers)
}

/// A panic ends the block with a typed error, never another worker's wait.
fn guard<T>(work: impl FnOnce() -> T) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|_| CoreError::Internal("a worker panicked".into()))
}

impl<'a> Run<'a> {
    fn new(block: &'a Block<'a>, view: View) -> Result<Self> {
        let (receipts, entries) = (block.receipts.len(), block.batch.entries.len());
        let last = receipts + entries;
        let memory = Arc::new(Memory::new(view, last));
        let mut committer = Committer::new(block, &memory)?;
        let mut worker = Worker::new(block, &memory, 0);
        committer.write_outside(&memory, &mut worker, 0, |machine| block.open(machine))?;
        Ok(Self {
            block,
            memory,
            speculative: OnceLock::new(),
            last,
            until: AtomicUsize::new(0),
            committer: Mutex::new(committer),
            is_committing: AtomicBool::new(false),
            wasted: AtomicU32::new(0),
            reserved: sum_gas_limits(block),
            committed: AtomicUsize::new(1),
            gas_used: AtomicU64::new(0),
            windows: AtomicU32::new(0),
            window: AtomicUsize::new(NARROW_WINDOW * block.chain.threads),
            run_length: AtomicUsize::new(RUN_LENGTH),
            is_solo: AtomicBool::new(starts_alone()),
            halt: Mutex::new(None),
            is_over: AtomicBool::new(last == 0),
            sleepers: AtomicUsize::new(0),
            bed: Mutex::new(()),
            bell: Condvar::new(),
            time: WorkTime::default(),
        })
    }

    /// Deliveries speculate: what they run is not known before. Transactions run in lanes.
    fn execute(&self) -> Result<()> {
        let deliveries = self.block.receipts.len();
        if !runs_in_lanes() {
            return self.speculate(self.last);
        }
        self.speculate(deliveries)?;
        if deliveries == self.last { Ok(()) } else { execute_in_lanes(self) }
    }

    /// Executes and commits the items up to `until` with all workers, each as far ahead of its turn as pays.
    fn speculate(&self, until: usize) -> Result<()> {
        if self.committed.load(SeqCst) > until {
            return Ok(());
        }
        self.until.store(until, SeqCst);
        self.is_over.store(false, SeqCst);
        self.speculative.get_or_init(|| Speculative::new(self.block, self.committed.load(SeqCst)));
        rayon::broadcast(|context| self.help(context.index()));
        lock(&self.halt).take().map_or(Ok(()), Err)
    }

    fn schedule(&self) -> &Schedule {
        &self.speculative().schedule
    }

    fn speculative(&self) -> &Speculative {
        self.speculative.get_or_init(|| Speculative::new(self.block, self.committed.load(SeqCst)))
    }

    /// The item before this one with the same sender, 0 for none.
    fn previous(&self, index: usize) -> usize {
        self.speculative().previous[index] as usize
    }

    fn number_window(&self) -> u32 {
        self.windows.fetch_add(1, SeqCst) + 1
    }

    fn until(&self) -> usize {
        self.until.load(SeqCst)
    }

    /// Everything before `next` was committed without speculation.
    fn advance(&self, committer: &Committer<'a>, next: usize) {
        if let Some(speculative) = self.speculative.get() {
            (self.committed.load(SeqCst)..next).for_each(|index| speculative.schedule.commit(index));
            speculative.schedule.skip_to(next);
        }
        self.gas_used.store(committer.gas_used(), SeqCst);
        self.committed.store(next, SeqCst);
    }

    /// One past the last item that workers may take.
    fn reach(&self) -> usize {
        (self.committed.load(SeqCst) + self.window.load(SeqCst)).min(self.until() + 1)
    }

    fn narrow_window(&self) {
        self.window.store(NARROW_WINDOW * self.block.chain.threads, SeqCst);
    }

    fn widen_window(&self, are_in_the_way: bool) {
        let widest = WINDOW * self.block.chain.threads;
        self.window.store((2 * self.window.load(SeqCst)).min(widest), SeqCst);
        self.run_length.store(if are_in_the_way { 1 } else { RUN_LENGTH }, SeqCst);
    }

    fn work(&self, index: usize) -> &Mutex<Work> {
        let works = &self.speculative().works;
        &works[index & (works.len() - 1)]
    }

    /// One worker's part of speculating, until it is over.
    #[inline(never)]
    fn help(&self, id: usize) {
        let shift = self.time.begin();
        let ended = guard(|| self.help_until_over(id)).and_then(|ended| ended);
        drop(shift);
        if let Err(error) = ended {
            self.stop(Some(error));
        }
    }

    fn help_until_over(&self, id: usize) -> Result<()> {
        let mut worker = Worker::new(self.block, &self.memory, id);
        while !self.is_over.load(SeqCst) {
            let is_idle = !self.run_some(&mut worker)?;
            self.commit_all(&mut worker, is_idle)?;
            if is_idle {
                self.rest();
            }
        }
        Ok(())
    }

    /// Runs the next items, if there are any to take.
    fn run_some(&self, worker: &mut Worker<'a>) -> Result<bool> {
        if self.is_solo.load(SeqCst) {
            return Ok(false);
        }
        if let Some((index, incarnation)) = self.schedule().claim_retry(worker.id) {
            self.run_item(worker, index, incarnation)?;
            return Ok(true);
        }
        let items = self.schedule().claim(self.reach(), self.run_length.load(SeqCst));
        let is_any = !items.is_empty();
        for index in items {
            if let Some(incarnation) = self.schedule().start(index, State::Ready, worker.id) {
                self.run_item(worker, index, incarnation)?;
            }
        }
        Ok(is_any)
    }

    fn is_heavy(&self, index: usize) -> bool {
        self.reserved[index + 1] - self.reserved[index] >= HEAVY_GAS
    }

    /// Whether the item fits into the block even if all before it use all the gas they may.
    fn fits_surely(&self, index: usize) -> bool {
        // Read in this order, what is committed meanwhile counts twice and never not at all.
        let committed = self.committed.load(SeqCst).min(index);
        let most = self.reserved[index + 1] - self.reserved[committed];
        self.gas_used.load(SeqCst).saturating_add(most) <= self.block.env.gas_limit
    }

    /// Whether the lowest item that is not committed waits for a committer; a done item is left to the worker that ran it,
    /// on whose core everything about it lies, unless this one has nothing else to do.
    fn can_commit(&self, next: usize, id: usize, is_idle: bool) -> bool {
        next <= self.until()
            && match self.schedule().state(next) {
                State::Done => is_idle || self.schedule().worker(next) == id,
                State::Awaiting => true,
                State::Ready => self.is_solo.load(SeqCst),
                State::Running | State::Blocked | State::Committed => false,
            }
    }

    /// Runs an item, and again at once if it stopped for a writer that is ready by now.
    fn run_item(&self, worker: &mut Worker<'a>, index: usize, incarnation: u32) -> Result<()> {
        let previous = self.previous(index);
        if previous > 0 && self.schedule().block(index, previous, worker.id) {
            return Ok(());
        }
        if self.is_heavy(index) && !self.fits_surely(index) {
            self.schedule().defer(index);
            return Ok(());
        }
        loop {
            perturb();
            match worker.attempt(index, None, self.gas_used.load(SeqCst), true)? {
                Outcome::Blocked(writer) if self.schedule().block(index, writer, worker.id) => {
                    self.wasted.fetch_add(u32::from(self.is_heavy(index)), SeqCst);
                    return Ok(());
                }
                Outcome::Blocked(_) => {}
                Outcome::NotYet => {
                    self.wasted.fetch_add(1, SeqCst);
                    self.schedule().defer(index);
                    return Ok(());
                }
                Outcome::Ran => {
                    worker.publish(&mut lock(self.work(index)), index, incarnation);
                    if self.schedule().finish(index, incarnation, worker.id) {
                        self.ring();
                    }
                    return Ok(());
                }
            }
        }
    }

    /// Commits as far as items are done; whoever holds the committer does it for all.
    fn commit_all(&self, worker: &mut Worker<'a>, is_idle: bool) -> Result<()> {
        while !self.is_over.load(SeqCst) && self.can_commit(self.committed.load(SeqCst), worker.id, is_idle) {
            let Ok(mut committer) = self.committer.try_lock() else { return Ok(()) };
            self.is_committing.store(true, SeqCst);
            let before = self.committed.load(SeqCst);
            let mut next = before;
            while self.can_commit(next, worker.id, is_idle) && !self.is_over.load(SeqCst) {
                if let Some(stretch) = committer.stretch(self, next) {
                    next = stretch.end;
                    let began = Instant::now();
                    committer.commit_alone(self, worker.lane(), stretch.clone())?;
                    stretch.for_each(|index| self.schedule().commit(index));
                    committer.add_alone(began.elapsed());
                    committer.adapt(self, next - 1);
                    self.gas_used.store(committer.gas_used(), SeqCst);
                    self.committed.store(next, SeqCst);
                    continue;
                }
                if !committer.commit(self, worker, next)? {
                    break;
                }
                committer.adapt(self, next);
                next += 1;
                self.gas_used.store(committer.gas_used(), SeqCst);
                self.committed.store(next, SeqCst);
            }
            self.is_committing.store(false, SeqCst);
            drop(committer);
            if next > self.until() {
                self.stop(None);
                return Ok(());
            }
            // Sleepers may take what the window now reaches, or commit what this worker leaves to them.
            if next > before && !self.is_solo.load(SeqCst) {
                self.ring();
            }
        }
        Ok(())
    }

    /// Sleeps until there may be something to do; no worker ever spins.
    fn rest(&self) {
        let guard = lock(&self.bed);
        self.sleepers.fetch_add(1, SeqCst);
        let next = self.committed.load(SeqCst);
        let has_work = !self.is_solo.load(SeqCst) && self.schedule().has_work(self.reach());
        let has_commits = self.can_commit(next, usize::MAX, true) && !self.is_committing.load(SeqCst);
        if !self.is_over.load(SeqCst) && !has_commits && !has_work {
            let lay_down = Instant::now();
            drop(self.bell.wait(guard).unwrap_or_else(PoisonError::into_inner));
            self.time.sleep(lay_down.elapsed());
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
    fn finish(self, workers: &ThreadPool) -> Result<Ended<'a>> {
        let mut committer = self.committer.into_inner().unwrap_or_else(PoisonError::into_inner);
        let mut worker = Worker::new(self.block, &self.memory, 0);
        committer.close(&self.memory, &mut worker, self.last + 1)?;
        let count = self.memory.count();
        let parts: Vec<Part> = workers.install(|| {
            let starts: Vec<u32> = (0..count).step_by(GATHERED as usize).collect();
            let gather = |start: u32| self.memory.updates(start..(start + GATHERED).min(count));
            starts.into_par_iter().map(gather).collect::<Result<_>>()
        })?;
        let (ledger, codes, mut log, mut stats) = committer.into_parts(&self.memory);
        log.renumber(&ledger);
        let beneficiary = self.block.env.beneficiary;
        let access_list = workers.install(|| build(&log, &*self.memory, beneficiary, true))?;
        stats.on_core = self.time.on_core();
        Ok(Ended { ledger, finished: Finished { parts, codes }, stats, access_list })
    }
}

impl Speculative {
    /// Everything before `next` is committed.
    fn new(block: &Block<'_>, next: usize) -> Self {
        let last = block.receipts.len() + block.batch.entries.len();
        Self {
            schedule: Schedule::new(last, next),
            works: (0..(WINDOW * block.chain.threads).next_power_of_two()).map(|_| Mutex::default()).collect(),
            previous: find_previous(block),
        }
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

/// Tests may have a block speculated whole, and by one worker alone from its first transaction on.
#[cfg(not(test))]
#[inline]
fn starts_alone() -> bool {
    false
}

#[cfg(not(test))]
#[inline]
fn runs_in_lanes() -> bool {
    true
}

#[cfg(test)]
use tests::{perturb, runs_in_lanes, starts_alone};

#[cfg(test)]
mod tests;
