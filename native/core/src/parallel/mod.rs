//! Executing a block on several workers with exactly the result of executing it in order.
//!
//! Deliveries run speculatively against a multi-version memory (Block-STM). Items commit in order: what an item read is
//! compared with what is there now that everything before it is committed; if it differs, the item runs again, at its turn,
//! where nothing can change under it. So the lowest item always makes progress and no item waits for a later one. Fees of
//! the beneficiary and both sides of plain transfers are changes that commute.
//!
//! Transactions of which it can be told beforehand that they will not meet do without versions: they run in `lanes`, each on
//! a journal of its own, and only whether they met is checked. Where lanes break, one worker goes on `alone`, or, where
//! there are more than two, speculation does. A block that came with its access list needs neither: `replay` runs the rest.
//!
//! `locations` numbers what the block touches, a `cell` is what lies at one, `memory` keeps versions, `reader` is one
//! item's view of them, `attempt` runs an item, `status` hands out work, `crew` is the protocol between workers,
//! `speculation` is what they do with a range of items, `committer` validates and commits; `plan` divides a window into the
//! tasks of lanes by what is known beforehand and what `habits` remember, a `lane` is one journal, `upcoming` what was read
//! ahead for it, `marks` tell where two met, `team` holds the lanes' workers together; `replay` runs neighbours on lanes
//! without marks, by the block's access list, which `expected` looks up; `after` is what a block's access list is made of;
//! `codes` are those that a worker has met; `stats` tells people what happened; this module holds the workers together.

mod after;
mod alone;
mod attempt;
mod cell;
mod codes;
mod committer;
mod crew;
mod expected;
mod habits;
mod lane;
mod lanes;
mod locations;
mod marks;
mod memory;
mod plan;
mod reader;
mod replay;
mod speculation;
mod stats;
mod status;
mod sync;
mod team;
mod upcoming;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use rayon::ThreadPool;

use crate::access_list::build;
use crate::block::{Block, Ended};
use crate::error::{CoreError, Result};
use crate::near::bring_near;
use crate::pool::lead;
use crate::state::{Finished, Part, View};

use after::Done;
use attempt::Worker;
use committer::Committer;
use expected::Expected;
use habits::Habits;
use lanes::execute_in_lanes;
pub use memory::Value;
use memory::{First, Memory, Spare};
use replay::run_listed;
use speculation::speculate;
pub use stats::RunStats;
use stats::WorkTime;
use sync::lock;

/// Deliveries that are worth reading a block's access list for.
const LEAST_LISTED: usize = 32;
/// Locations looked through at once when the changes are gathered.
const GATHERED: usize = 2048;

/// What a core keeps from block to block: it makes them faster, never different.
#[derive(Debug, Default)]
pub struct Between {
    habits: Habits,
    spare: Arc<Spare>,
}

/// A block in the hands of its workers.
pub(crate) struct Run<'a> {
    block: &'a Block<'a>,
    /// The block's access list, encoded, if it came with one.
    given: Option<&'a [u8]>,
    /// What it says, once somebody had to know.
    expected: OnceLock<Arc<Expected>>,
    memory: Arc<Memory>,
    last: usize,
    committer: Mutex<Committer<'a>>,
    /// Where lanes were the first to change something.
    firsts: Mutex<Vec<Vec<First>>>,
    /// Gas limits of all items before each, once somebody had to know of all.
    reserved: OnceLock<Vec<u64>>,
    /// One past the last item that is accounted for.
    committed: AtomicUsize,
    /// By the items before that.
    gas_used: AtomicU64,
    /// Windows of lanes so far.
    windows: AtomicU32,
    time: WorkTime,
    gathering: Gathering,
}

/// The changes of a block that is closed, gathered piece by piece by whoever has time.
#[derive(Debug, Default)]
struct Gathering {
    firsts: OnceLock<Vec<Vec<First>>>,
    next: AtomicUsize,
    parts: Mutex<Vec<Part>>,
}

/// # Errors
/// Those of executing in order, for the same item.
pub fn execute_in_parallel<'a>(block: &'a Block<'a>, view: View, workers: &ThreadPool) -> Result<Ended<'a>> {
    execute(block, view, workers, None)
}

/// Validates a block that came with its access list, encoded. Whether that is the block's is found out when the block is
/// finished.
///
/// # Errors
/// `InvalidBlock` when a transaction cannot be in the block, or cannot if the list is right: callers know beforehand that it
/// is the one the header names, so the block is invalid whichever of the two is wrong.
pub fn replay<'a>(block: &'a Block<'a>, view: View, workers: &ThreadPool, given: &'a [u8]) -> Result<Ended<'a>> {
    match guard(|| execute(block, view.clone(), workers, Some(given))).and_then(|ended| ended) {
        // Nonsense in a list may look like a fault of our own state. Only then the block is executed without it, which tells
        // whose fault it is.
        Err(CoreError::Internal(_)) => execute(block, view, workers, None),
        ended => ended,
    }
}

fn execute<'a>(block: &'a Block<'a>, view: View, workers: &ThreadPool, given: Option<&'a [u8]>) -> Result<Ended<'a>> {
    let run = Run::new(block, view, given)?;
    workers.install(|| run.execute())?;
    run.finish(workers)
}

/// A panic ends the block with a typed error, never another worker's wait.
fn guard<T>(work: impl FnOnce() -> T) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|_| CoreError::Internal("a worker panicked".into()))
}

impl<'a> Run<'a> {
    fn new(block: &'a Block<'a>, view: View, given: Option<&'a [u8]>) -> Result<Self> {
        let (receipts, entries) = (block.receipts.len(), block.batch.entries().len());
        let last = receipts + entries;
        let memory = Arc::new(Memory::new(view, last, &block.between.spare));
        let mut committer = Committer::new(block, &memory)?;
        let mut worker = Worker::new(block, &memory, 0);
        committer.write_outside(&memory, &mut worker, 0, |machine| block.open(machine))?;
        Ok(Self {
            block,
            given,
            expected: OnceLock::new(),
            memory,
            last,
            committer: Mutex::new(committer),
            firsts: Mutex::default(),
            reserved: OnceLock::new(),
            committed: AtomicUsize::new(1),
            gas_used: AtomicU64::new(0),
            windows: AtomicU32::new(0),
            time: WorkTime::default(),
            gathering: Gathering::default(),
        })
    }

    /// Deliveries speculate, or find in the list what they need: what they run is not known before. Transactions run in
    /// lanes.
    fn execute(&self) -> Result<()> {
        let deliveries = self.block.receipts.len();
        match self.given {
            Some(given) if !runs_in_lanes() => return run_listed(self, given, self.last),
            Some(given) if deliveries >= LEAST_LISTED => run_listed(self, given, deliveries)?,
            None if !runs_in_lanes() => return speculate(self, 1, self.last),
            _ => speculate(self, 1, deliveries)?,
        }
        if deliveries == self.last { Ok(()) } else { execute_in_lanes(self) }
    }

    /// Gas limits of all items before each.
    fn reserved(&self) -> &[u64] {
        self.reserved.get_or_init(|| {
            let mut sums = vec![0];
            sum_gas_limits(self.block, 0, self.last + 1, &mut sums);
            sums
        })
    }

    fn number_window(&self) -> u32 {
        self.windows.fetch_add(1, SeqCst) + 1
    }

    /// Everything before `next` is committed.
    fn advance(&self, committer: &Committer<'a>, next: usize) {
        // In this order: who adds what is used to what is not committed counts an item twice rather than not at all.
        self.gas_used.store(committer.gas_used(), SeqCst);
        self.committed.store(next, SeqCst);
    }

    /// What closes the block, once all its items are committed.
    ///
    /// # Errors
    /// Those of reading the state.
    fn close(&self) -> Result<()> {
        let mut committer = lock(&self.committer);
        let mut worker = Worker::new(self.block, &self.memory, 0);
        committer.close(&self.memory, &mut worker, self.last + 1)?;
        let mut firsts = std::mem::take(&mut *lock(&self.firsts));
        firsts.push(committer.take_firsts());
        self.gathering.firsts.get_or_init(|| firsts);
        Ok(())
    }

    /// One worker's part in gathering the changes of a closed block.
    ///
    /// # Errors
    /// `Internal` when the memory holds what no block can leave there.
    fn gather(&self) -> Result<()> {
        let Gathering { firsts, next, parts } = &self.gathering;
        let pieces = firsts.get().into_iter().flatten().flat_map(|firsts| firsts.chunks(GATHERED));
        let mut own = next.fetch_add(1, SeqCst);
        for (nth, piece) in pieces.enumerate() {
            if nth == own {
                let part = self.memory.updates(piece)?;
                lock(parts).push(part);
                own = next.fetch_add(1, SeqCst);
            }
        }
        Ok(())
    }

    /// What the block leaves; closed and gathered here unless the lanes have done that.
    fn finish(self, workers: &ThreadPool) -> Result<Ended<'a>> {
        if self.gathering.firsts.get().is_none() {
            self.close()?;
            let ended = Mutex::new(Ok(()));
            let gather = || {
                let gathered = guard(|| self.gather()).and_then(|gathered| gathered);
                gathered.unwrap_or_else(|error| *lock(&ended) = Err(error));
            };
            workers.install(|| lead(self.block.chain.threads - 1, gather, gather));
            ended.into_inner().unwrap_or_else(PoisonError::into_inner)?;
        }
        let committer = self.committer.into_inner().unwrap_or_else(PoisonError::into_inner);
        let Gathering { firsts, parts, .. } = self.gathering;
        let firsts = firsts.into_inner().unwrap_or_default();
        let parts = parts.into_inner().unwrap_or_else(PoisonError::into_inner);
        let (ledger, codes, mut log, mut stats) = committer.into_parts(&self.memory);
        log.renumber(&ledger);
        let beneficiary = self.block.env.beneficiary;
        stats.on_core = self.time.on_core();
        // What is told of a block is how its proposer's threads got on with what nobody knew.
        if self.given.is_some() {
            stats = RunStats::default();
        }
        let memory = self.memory;
        let listing = Box::new(move || build(&log, &Done::new(&memory, &firsts), beneficiary, true));
        Ok(Ended { ledger, finished: Finished { parts, codes }, stats, listing })
    }
}

/// So many transactions ahead of the one that is looked at, they are brought near.
const AHEAD: usize = 16;

/// Whoever looks at this transaction will come to those behind it, which lie anywhere.
#[inline]
fn expect_transaction(block: &Block<'_>, place: usize) {
    if let Some(transaction) = block.batch.entries().get(place + AHEAD).and_then(|entry| entry.transaction.as_deref()) {
        bring_near(transaction);
    }
}

/// Continues the sums of the gas limits of the items from `first` on, up to that of all before `end`. Deliveries count once
/// they are committed: this is for guessing.
fn sum_gas_limits(block: &Block<'_>, first: usize, end: usize, sums: &mut Vec<u64>) {
    // No more than does not fit anyway: a limit that no block grants must not use up the sum's range.
    let most = block.env.gas_limit.saturating_add(1);
    let mut sum = sums.last().copied().unwrap_or_default();
    for index in first + sums.len() - 1..end {
        let place = index.checked_sub(block.receipts.len() + 1);
        let transaction = place.and_then(|place| {
            expect_transaction(block, place);
            block.batch.entries()[place].transaction.as_ref()
        });
        sum = sum.saturating_add(transaction.map_or(0, |transaction| transaction.gas_limit.min(most)));
        sums.push(sum);
    }
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
