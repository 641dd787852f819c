//! How the workers of a block keep out of each other's way: who takes which item, who waits for whom, who commits, who
//! sleeps, and who wakes whom. What an item does is its `Job`'s.
//!
//! - An item is run by one worker at a time; who took it leaves it done, parked behind an earlier item, or to its turn.
//! - Items commit in order, each once, by whoever holds the committer. Who leaves the committer looks again, for what was
//!   done meanwhile by workers that found it taken.
//! - Who sleeps looks for work once more with the bed locked and itself counted; who rings takes that lock first. So a
//!   worker either sees what there is to do or is woken for it, and no worker ever spins.
//!
//! `native/model` holds this file and `status` to these rules over many schedules.

use std::ops::Range;
use std::sync::PoisonError;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use super::status::{Schedule, State};
use super::sync::{AtomicBool, AtomicUsize, Condvar, Mutex, lock, yield_now};

/// What became of an item that ran ahead of its turn.
pub enum Outcome {
    /// It came to its end; the worker holds the result until it is published.
    Ran,
    /// It needs what this item has yet to write.
    Blocked(usize),
    /// It can only run at its turn.
    NotYet,
}

/// What there is to do with the lowest item that is not committed.
pub enum Turn {
    /// It ran: validate it.
    Done,
    /// It is the caller's to run, as this incarnation.
    Run(u32),
    /// Someone else has it.
    NotYet,
}

/// What the items of a block are to the crew.
pub trait Job {
    type Worker;
    type Committer;
    type Error;

    /// The item that this one needs for certain, 0 for none.
    fn previous(&self, index: usize) -> usize;

    /// Whether running an item ahead of its turn may be a lot of work for nothing.
    fn must_wait(&self, index: usize) -> bool;

    /// Runs an item ahead of its turn.
    fn attempt(&self, worker: &mut Self::Worker, index: usize) -> Result<Outcome, Self::Error>;

    /// An attempt that needs another item was given up.
    fn parked(&self, index: usize);

    /// Lets later items see what the worker's last attempt did.
    fn publish(&self, worker: &mut Self::Worker, index: usize, incarnation: u32);

    fn committer(&self) -> &Mutex<Self::Committer>;

    /// Commits item `next`, and maybe some after it; one past the last committed, none when someone else has the item.
    fn commit(
        &self,
        committer: &mut Self::Committer,
        worker: &mut Self::Worker,
        next: usize,
    ) -> Result<Option<usize>, Self::Error>;

    /// A worker found nothing to do and slept so long, maybe not at all.
    fn rested(&self, slept: Duration);
}

/// How far workers run ahead of the commits.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// Items, until speculation has paid.
    pub narrow: usize,
    /// Items, once it has.
    pub wide: usize,
    /// Items that a worker takes at once while they do not get into each other's way.
    pub run_length: usize,
}

#[derive(Debug)]
pub struct Crew {
    pub schedule: Schedule,
    pub last: usize,
    pace: Pace,
    /// One past the last committed item.
    committed: AtomicUsize,
    /// Someone holds the committer and will look again before letting go of it.
    is_committing: AtomicBool,
    window: AtomicUsize,
    run_length: AtomicUsize,
    /// Only the committer runs: speculation did not pay.
    is_solo: AtomicBool,
    is_over: AtomicBool,
    sleepers: AtomicUsize,
    bed: Mutex<()>,
    bell: Condvar,
}

impl Crew {
    /// For the items from `next` to `last`; those before are committed.
    pub fn new(next: usize, last: usize, pace: Pace, is_solo: bool) -> Self {
        Self {
            schedule: Schedule::new(next, last),
            last,
            pace,
            committed: AtomicUsize::new(next),
            is_committing: AtomicBool::new(false),
            window: AtomicUsize::new(pace.narrow),
            run_length: AtomicUsize::new(pace.run_length),
            is_solo: AtomicBool::new(is_solo),
            is_over: AtomicBool::new(next > last),
            sleepers: AtomicUsize::new(0),
            bed: Mutex::new(()),
            bell: Condvar::new(),
        }
    }

    pub fn committed(&self) -> usize {
        self.committed.load(SeqCst)
    }

    pub fn is_solo(&self) -> bool {
        self.is_solo.load(SeqCst)
    }

    fn is_over(&self) -> bool {
        self.is_over.load(SeqCst)
    }

    /// One past the last item that workers may take.
    fn reach(&self) -> usize {
        (self.committed() + self.window.load(SeqCst)).min(self.last + 1)
    }

    pub fn widen_window(&self, are_in_the_way: bool) {
        self.window.store((2 * self.window.load(SeqCst)).min(self.pace.wide), SeqCst);
        self.run_length.store(if are_in_the_way { 1 } else { self.pace.run_length }, SeqCst);
    }

    /// From here on only the committer runs, once what was taken is committed.
    pub fn go_alone(&self) {
        self.window.store(self.pace.narrow, SeqCst);
        self.is_solo.store(true, SeqCst);
    }

    /// Takes a stretch of items for the committer alone; false while any before them is in flight.
    pub fn reserve_alone(&self, items: Range<usize>) -> bool {
        self.is_solo() && !items.is_empty() && self.schedule.reserve(items)
    }

    /// From `next` on all workers run again.
    pub fn end_alone(&self, next: usize) {
        self.schedule.skip_to(next);
        self.is_solo.store(false, SeqCst);
        self.ring();
    }

    /// One worker's part, until the block is done.
    ///
    /// # Errors
    /// What the job answers; the caller then stops the others.
    pub fn work<J: Job>(&self, job: &J, worker: &mut J::Worker, id: usize) -> Result<(), J::Error> {
        while !self.is_over() {
            let is_idle = !self.run_some(job, worker, id)?;
            self.commit_all(job, worker, id, is_idle)?;
            if is_idle {
                job.rested(self.rest());
            }
        }
        Ok(())
    }

    /// Runs the next items, if there are any to take.
    fn run_some<J: Job>(&self, job: &J, worker: &mut J::Worker, id: usize) -> Result<bool, J::Error> {
        if self.is_solo() {
            return Ok(false);
        }
        if let Some((index, incarnation)) = self.schedule.claim_retry(id) {
            self.run_item(job, worker, id, index, incarnation)?;
            return Ok(true);
        }
        let items = self.schedule.claim(self.reach(), self.run_length.load(SeqCst));
        let is_any = !items.is_empty();
        for index in items {
            if let Some(incarnation) = self.schedule.start(index, State::Ready, id) {
                self.run_item(job, worker, id, index, incarnation)?;
            }
        }
        Ok(is_any)
    }

    /// Runs an item, and again at once if it stopped for a writer that is ready by now.
    fn run_item<J: Job>(
        &self,
        job: &J,
        worker: &mut J::Worker,
        id: usize,
        index: usize,
        incarnation: u32,
    ) -> Result<(), J::Error> {
        let previous = job.previous(index);
        if previous > 0 && self.schedule.block(index, previous, id) {
            return Ok(());
        }
        if job.must_wait(index) {
            self.schedule.defer(index);
            return Ok(());
        }
        loop {
            match job.attempt(worker, index)? {
                Outcome::Blocked(writer) if self.schedule.block(index, writer, id) => {
                    job.parked(index);
                    return Ok(());
                }
                // Done meanwhile; or found stale and about to be aborted, by a committer that needs a core for it.
                Outcome::Blocked(_) => yield_now(),
                Outcome::NotYet => {
                    self.schedule.defer(index);
                    return Ok(());
                }
                Outcome::Ran => {
                    job.publish(worker, index, incarnation);
                    self.finish(index, incarnation, id);
                    return Ok(());
                }
            }
        }
    }

    /// Marks an item as done and wakes whom that concerns.
    pub fn finish(&self, index: usize, incarnation: u32, id: usize) {
        if self.schedule.finish(index, incarnation, id) {
            self.ring();
        }
    }

    /// Whether the lowest item that is not committed waits for a committer; a done item is left to the worker that ran it,
    /// on whose core everything about it lies, unless this one has nothing else to do.
    fn can_commit(&self, next: usize, id: usize, is_idle: bool) -> bool {
        next <= self.last
            && match self.schedule.state(next) {
                State::Done => is_idle || self.schedule.worker(next) == id,
                State::Awaiting => true,
                State::Ready => self.is_solo(),
                State::Running | State::Blocked | State::Committed => false,
            }
    }

    /// For the committer: the item whose turn it is.
    pub fn take_turn(&self, index: usize, id: usize) -> Turn {
        match self.schedule.state(index) {
            State::Done => Turn::Done,
            State::Running | State::Blocked | State::Committed => Turn::NotYet,
            from @ (State::Ready | State::Awaiting) => {
                self.schedule.start(index, from, id).map_or(Turn::NotYet, Turn::Run)
            }
        }
    }

    /// Commits as far as items are done; whoever holds the committer does it for all.
    fn commit_all<J: Job>(&self, job: &J, worker: &mut J::Worker, id: usize, is_idle: bool) -> Result<(), J::Error> {
        while !self.is_over() && self.can_commit(self.committed(), id, is_idle) {
            let Ok(mut committer) = job.committer().try_lock() else { return Ok(()) };
            self.is_committing.store(true, SeqCst);
            let before = self.committed();
            let mut next = before;
            while self.can_commit(next, id, is_idle) && !self.is_over() {
                let after = match job.commit(&mut committer, worker, next) {
                    Ok(Some(after)) => after,
                    Ok(None) => break,
                    Err(error) => {
                        // While nobody else can come to the committer: what is half done must not be done again.
                        self.stop();
                        return Err(error);
                    }
                };
                next = after;
                self.committed.store(next, SeqCst);
            }
            self.is_committing.store(false, SeqCst);
            drop(committer);
            if next > self.last {
                self.stop();
                return Ok(());
            }
            // Sleepers may take what the window now reaches, or commit what this worker leaves to them.
            if next > before && !self.is_solo() {
                self.ring();
            }
        }
        Ok(())
    }

    /// Sleeps until there may be something to do; how long.
    pub fn rest(&self) -> Duration {
        let guard = lock(&self.bed);
        self.sleepers.fetch_add(1, SeqCst);
        let mut slept = Duration::ZERO;
        if !self.is_over() && !self.has_commits() && !self.has_work() {
            let lay_down = Instant::now();
            drop(self.bell.wait(guard).unwrap_or_else(PoisonError::into_inner));
            slept = lay_down.elapsed();
        }
        self.sleepers.fetch_sub(1, SeqCst);
        slept
    }

    fn has_work(&self) -> bool {
        !self.is_solo() && self.schedule.has_work(self.reach())
    }

    fn has_commits(&self) -> bool {
        self.can_commit(self.committed(), usize::MAX, true) && !self.is_committing.load(SeqCst)
    }

    fn ring(&self) {
        if self.sleepers.load(SeqCst) > 0 {
            drop(lock(&self.bed));
            self.bell.notify_all();
        }
    }

    /// Ends everybody's part.
    pub fn stop(&self) {
        self.is_over.store(true, SeqCst);
        self.ring();
    }
}
