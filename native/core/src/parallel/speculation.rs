//! Items that run ahead of their turn, with versions: what a crew does with a range of a block (Block-STM).

use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::time::{Duration, Instant};

use alloy_primitives::Address;

use super::attempt::{Work, Worker};
use super::committer::Committer;
use super::crew::{Crew, Job, Outcome, Pace};
use super::{Run, guard, lock, perturb, starts_alone};
use crate::block::Block;
use crate::error::{CoreError, Result};
use crate::pool::broadcast;
use crate::state::Map;

/// How far workers run ahead of the commits, per worker, once that has paid: bounds what a read has to add up and what an
/// abort can waste.
const WINDOW: usize = 64;
/// How far they do until then.
const NARROW_WINDOW: usize = 8;
/// Items a worker takes at once while they do not get into each other's way: neighbours then stay on one core.
const RUN_LENGTH: usize = 8;

/// A transaction with so much gas is not worth running when it may turn out not to fit into the block.
const HEAVY_GAS: u64 = 1_000_000;

/// A range of a block's items in the hands of its workers.
pub struct Speculation<'r, 'a> {
    pub run: &'r Run<'a>,
    pub crew: Crew,
    /// What the items in flight left, each at its index modulo the length.
    works: Vec<Mutex<Work>>,
    /// For each item the last one before it with the same sender that is not committed, 0 for none: its nonce depends on it.
    previous: Vec<u32>,
    /// Work that was stopped before its end since the last look at what speculation gained.
    pub wasted: AtomicU32,
    halt: Mutex<Option<CoreError>>,
}

/// Executes and commits the items from `next` to `last` with all workers, each as far ahead of its turn as pays. Runs on one
/// of the block's workers.
///
/// # Errors
/// Those of executing in order, for the same item.
pub fn speculate(run: &Run<'_>, next: usize, last: usize) -> Result<()> {
    if next > last {
        return Ok(());
    }
    let threads = run.block.chain.threads;
    let pace = Pace { narrow: NARROW_WINDOW * threads, wide: WINDOW * threads, run_length: RUN_LENGTH };
    let speculation = Speculation {
        run,
        crew: Crew::new(next, last, pace, starts_alone()),
        works: (0..(WINDOW * threads).next_power_of_two()).map(|_| Mutex::default()).collect(),
        previous: find_previous(run.block, next, last),
        wasted: AtomicU32::new(0),
        halt: Mutex::new(None),
    };
    broadcast(|context| speculation.help(context.index()));
    let error = lock(&speculation.halt).take();
    error.map_or(Ok(()), Err)
}

impl<'a> Speculation<'_, 'a> {
    pub fn work(&self, index: usize) -> &Mutex<Work> {
        &self.works[index & (self.works.len() - 1)]
    }

    /// One worker's part, until it is over.
    #[inline(never)]
    fn help(&self, id: usize) {
        let shift = self.run.time.begin();
        let ended = guard(|| {
            let mut worker = Worker::new(self.run.block, &self.run.memory, id);
            self.crew.work(self, &mut worker, id)
        });
        drop(shift);
        if let Err(error) = ended.and_then(|ended| ended) {
            lock(&self.halt).get_or_insert(error);
            self.crew.stop();
        }
    }

    fn is_heavy(&self, index: usize) -> bool {
        self.run.reserved()[index + 1] - self.run.reserved()[index] >= HEAVY_GAS
    }

    /// Whether the item fits into the block even if all before it use all the gas they may.
    fn fits_surely(&self, index: usize) -> bool {
        // Read in this order, what is committed meanwhile counts twice and never not at all.
        let committed = self.crew.committed().min(index);
        let most = self.run.reserved()[index + 1] - self.run.reserved()[committed];
        self.run.gas_used.load(SeqCst).saturating_add(most) <= self.run.block.env.gas_limit
    }
}

impl<'a> Job for Speculation<'_, 'a> {
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
        let outcome = worker.attempt(index, None, self.run.gas_used.load(SeqCst), true)?;
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
        &self.run.committer
    }

    fn commit(&self, committer: &mut Committer<'a>, worker: &mut Worker<'a>, next: usize) -> Result<Option<usize>> {
        let after = if let Some(stretch) = committer.stretch(self, next) {
            let (after, began) = (stretch.end, Instant::now());
            committer.commit_alone(self.run, worker.lane(), stretch.clone())?;
            stretch.for_each(|index| self.crew.schedule.commit(index));
            committer.add_alone(began.elapsed());
            after
        } else if committer.commit(self, worker, next)? {
            next + 1
        } else {
            return Ok(None);
        };
        committer.adapt(self, after - 1);
        // Before the items count as committed: see `fits_surely`.
        self.run.advance(committer, after);
        Ok(Some(after))
    }

    fn rested(&self, slept: Duration) {
        self.run.time.sleep(slept);
    }
}

fn find_previous(block: &Block<'_>, next: usize, last: usize) -> Vec<u32> {
    let first = block.receipts.len() + 1;
    let mut previous = vec![0; last + 1];
    let mut seen: Map<Address, u32> = Map::default();
    let entries = block.batch.entries();
    for index in next.max(first)..=last {
        let Some(transaction) = &entries[index - first].transaction else { continue };
        previous[index] = seen.insert(transaction.sender, index as u32).unwrap_or_default();
    }
    previous
}
