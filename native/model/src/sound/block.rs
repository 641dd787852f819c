//! A block of a few items for the crew: what each needs and which stumble is drawn anew for every schedule. The items watch
//! for what must never happen: two workers in one, one committed twice or before its turn or with something stale in it,
//! one that runs ahead of its turn too often.
//!
//! Its items read what earlier items wrote, through versions like the executor's, with the incarnation for a value. What
//! the book holds is the checker's own: it is looked at and changed in one go, and no other worker goes on meanwhile.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize as Count, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::{Mutex as Plain, MutexGuard as Held};
use std::time::Duration;

use shuttle::rand::{RngCore, thread_rng};
use shuttle::thread;

use super::crew::{Crew, Job, Outcome, Pace, Turn};
use super::status::State;
use crate::sync::{AtomicUsize, Mutex};

/// Incarnations that may run ahead of their turn.
const MOST_AHEAD: u32 = 3;
const PACE: Pace = Pace { narrow: 4, wide: 8, run_length: 2 };

/// How often what the rules are about came up.
#[derive(Debug)]
pub struct Seen {
    pub aborted: Count,
    pub parked: Count,
    pub worn_out: Count,
    pub alone: Count,
    pub rested: Count,
    pub failed: Count,
}

pub static SEEN: Seen = Seen {
    aborted: Count::new(0),
    parked: Count::new(0),
    worn_out: Count::new(0),
    alone: Count::new(0),
    rested: Count::new(0),
    failed: Count::new(0),
};

struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        (self.0 >> 33) as usize % sides
    }
}

/// What items have to do with each other.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    /// A little of everything.
    Mixed,
    /// Every other item changes at its turn what all behind it saw: they are aborted again and again.
    Late,
    /// Each needs the one before; one worker soon goes on alone.
    Chain,
}

/// What an item does.
#[derive(Default)]
struct Item {
    previous: usize,
    reads: Vec<usize>,
    must_wait: bool,
    only_at_turn: bool,
    fails: bool,
}

/// What an item has written.
#[derive(Clone, Copy, Default)]
struct Version {
    incarnation: Option<u32>,
    is_estimate: bool,
}

type Reads = Vec<(usize, Option<u32>)>;

#[derive(Default)]
struct Book {
    versions: Vec<Version>,
    /// What each item read when it ran last.
    reads: Vec<Reads>,
    /// Who is running each item.
    holders: Vec<Option<usize>>,
    committed: Vec<usize>,
}

pub struct Worker {
    id: usize,
    reads: Reads,
}

/// Drawn failures of an item.
pub struct Failed;

pub struct Block {
    crew: Crew,
    items: Vec<Item>,
    book: Plain<Book>,
    committer: Mutex<()>,
    /// After item `start` is committed one worker goes alone to the end.
    alone: Range<usize>,
    /// Touched where others may go on in the middle of an item.
    pause: AtomicUsize,
}

/// Runs a block that is drawn, on two to four workers.
pub fn run_any() {
    let mut dice = Dice(thread_rng().next_u64());
    let block = Arc::new(Block::draw(&mut dice));
    let workers: Vec<_> = (0..2 + dice.roll(3))
        .map(|id| {
            let block = block.clone();
            thread::spawn(move || {
                if block.crew.work(&*block, &mut Worker { id, reads: Reads::new() }, id).is_err() {
                    block.crew.stop();
                }
            })
        })
        .collect();
    workers.into_iter().for_each(|worker| worker.join().expect("workers do not panic"));
    block.check_end();
}

impl Block {
    fn draw(dice: &mut Dice) -> Self {
        let last = 2 + dice.roll(8);
        let kind = [Kind::Mixed, Kind::Mixed, Kind::Late, Kind::Chain][dice.roll(4)];
        let mut items = vec![Item::default()];
        for index in 1..=last {
            // Mostly what came just before: that is where items get into each other's way.
            let mut is_read = |read: usize| match kind {
                Kind::Mixed => dice.roll(1 + index - read) == 0,
                Kind::Late => true,
                Kind::Chain => false,
            };
            let reads = (1..index).filter(|read| is_read(*read)).collect();
            let previous = match kind {
                Kind::Mixed if dice.roll(3) == 0 => dice.roll(index),
                Kind::Mixed | Kind::Late => 0,
                Kind::Chain => index - 1,
            };
            let only_at_turn = dice.roll(10) == 0 || kind == Kind::Late && index % 2 == 1;
            items.push(Item {
                previous,
                reads,
                must_wait: dice.roll(10) == 0,
                only_at_turn,
                fails: dice.roll(60) == 0,
            });
        }
        let start = if kind == Kind::Chain { dice.roll(3) } else { dice.roll(3 * last) };
        let book = Book {
            versions: vec![Version::default(); last + 1],
            reads: vec![Reads::new(); last + 1],
            holders: vec![None; last + 1],
            committed: Vec::new(),
        };
        Self {
            crew: Crew::new(1, last, PACE, start == 0),
            items,
            book: Plain::new(book),
            committer: Mutex::new(()),
            alone: start..start + 1 + dice.roll(4),
            pause: AtomicUsize::new(0),
        }
    }

    fn book(&self) -> Held<'_, Book> {
        self.book.try_lock().expect("nobody stops with the book open")
    }

    /// Others may go on.
    fn pause(&self) {
        self.pause.load(SeqCst);
    }

    fn begin(&self, index: usize, id: usize) {
        let holder = self.book().holders[index].replace(id);
        assert!(holder.is_none(), "worker {id} runs item {index} while worker {holder:?} does");
        assert!(!self.book().committed.contains(&index), "worker {id} runs item {index}, which is committed");
    }

    fn end(&self, index: usize, id: usize) {
        let holder = self.book().holders[index].take();
        assert_eq!(holder, Some(id), "who ends item {index}");
    }

    /// Puts what an item did where others see it.
    fn write(&self, worker: &mut Worker, index: usize, incarnation: u32) {
        self.pause();
        let state = self.crew.schedule.state(index);
        assert_eq!(state, State::Running, "item {index}, which worker {} ran", worker.id);
        self.end(index, worker.id);
        let mut book = self.book();
        let before = book.versions[index].incarnation;
        assert!(before < Some(incarnation), "item {index} ran as incarnation {incarnation} after {before:?}");
        book.versions[index] = Version { incarnation: Some(incarnation), is_estimate: false };
        book.reads[index] = std::mem::take(&mut worker.reads);
    }

    fn still_holds(&self, index: usize) -> bool {
        let book = self.book();
        book.reads[index].iter().all(|(read, seen)| {
            let version = book.versions[*read];
            version.incarnation == *seen && !version.is_estimate
        })
    }

    fn estimate(&self, index: usize) {
        self.book().versions[index].is_estimate = true;
        SEEN.aborted.fetch_add(1, Relaxed);
    }

    fn run_at_turn(&self, worker: &mut Worker, index: usize, incarnation: u32) {
        self.begin(index, worker.id);
        if incarnation >= MOST_AHEAD {
            SEEN.worn_out.fetch_add(1, Relaxed);
        }
        self.read_final(worker, index);
        self.write(worker, index, incarnation);
        self.crew.finish(index, incarnation, worker.id);
    }

    /// Reads what is committed.
    fn read_final(&self, worker: &mut Worker, index: usize) {
        worker.reads.clear();
        for read in self.items[index].reads.iter().copied() {
            self.pause();
            let book = self.book();
            assert!(book.committed.contains(&read), "item {index} is at its turn before item {read}");
            worker.reads.push((read, book.versions[read].incarnation));
        }
    }

    /// Aborts items behind an aborted one that saw what it wrote.
    fn look_ahead(&self, id: usize, index: usize) {
        for later in index + 1..self.crew.schedule.taken() {
            if self.crew.schedule.state(later) == State::Done && !self.still_holds(later) {
                self.estimate(later);
                self.crew.schedule.abort(later, false, id);
            }
        }
    }

    fn note_commit(&self, index: usize) {
        let mut book = self.book();
        assert_eq!(index, book.committed.len() + 1, "commits in order, each once: {:?}", book.committed);
        book.committed.push(index);
    }

    /// What one worker does with a stretch: nobody else has any of it.
    fn commit_alone(&self, worker: &mut Worker, items: Range<usize>) -> Result<(), Failed> {
        for index in items {
            self.begin(index, worker.id);
            if self.items[index].fails {
                return Err(Failed);
            }
            self.read_final(worker, index);
            self.end(index, worker.id);
            self.book().versions[index].incarnation = Some(0);
            self.note_commit(index);
            self.crew.schedule.commit(index);
            SEEN.alone.fetch_add(1, Relaxed);
        }
        Ok(())
    }

    fn commit_one(&self, worker: &mut Worker, index: usize) -> Result<bool, Failed> {
        match self.crew.take_turn(index, worker.id) {
            Turn::NotYet => return Ok(false),
            Turn::Run(_) if self.items[index].fails => return Err(Failed),
            Turn::Run(incarnation) => self.run_at_turn(worker, index, incarnation),
            Turn::Done => {}
        }
        if !self.still_holds(index) {
            self.estimate(index);
            let incarnation = self.crew.schedule.abort(index, true, worker.id);
            self.run_at_turn(worker, index, incarnation);
            self.look_ahead(worker.id, index);
        }
        assert!(self.still_holds(index), "item {index} is committed with something stale in it");
        let version = self.book().versions[index];
        assert!(version.incarnation.is_some() && !version.is_estimate, "item {index} is committed, and did not run");
        self.note_commit(index);
        self.crew.schedule.commit(index);
        Ok(true)
    }

    fn check_end(&self) {
        let book = self.book();
        if self.items.iter().any(|item| item.fails) {
            SEEN.failed.fetch_add(1, Relaxed);
        } else {
            assert_eq!(book.committed, (1..self.items.len()).collect::<Vec<_>>(), "all items are committed in order");
            assert!(book.holders.iter().all(Option::is_none), "nobody has an item: {:?}", book.holders);
        }
    }
}

impl Job for Block {
    type Worker = Worker;
    type Committer = ();
    type Error = Failed;

    fn previous(&self, index: usize) -> usize {
        self.items[index].previous
    }

    fn must_wait(&self, index: usize) -> bool {
        self.items[index].must_wait
    }

    fn attempt(&self, worker: &mut Worker, index: usize) -> Result<Outcome, Failed> {
        self.begin(index, worker.id);
        worker.reads.clear();
        let item = &self.items[index];
        for read in item.reads.iter().copied() {
            self.pause();
            let version = self.book().versions[read];
            if version.is_estimate {
                self.end(index, worker.id);
                return Ok(Outcome::Blocked(read));
            }
            worker.reads.push((read, version.incarnation));
        }
        if item.fails {
            return Err(Failed);
        }
        if item.only_at_turn {
            self.end(index, worker.id);
            return Ok(Outcome::NotYet);
        }
        Ok(Outcome::Ran)
    }

    fn parked(&self, _: usize) {
        SEEN.parked.fetch_add(1, Relaxed);
    }

    fn publish(&self, worker: &mut Worker, index: usize, incarnation: u32) {
        assert!(incarnation < MOST_AHEAD, "item {index} runs ahead of its turn as incarnation {incarnation}");
        self.write(worker, index, incarnation);
    }

    fn committer(&self) -> &Mutex<()> {
        &self.committer
    }

    fn commit(&self, (): &mut (), worker: &mut Worker, next: usize) -> Result<Option<usize>, Failed> {
        let stretch = next..self.alone.end.min(self.crew.last + 1);
        let after = if self.crew.reserve_alone(stretch.clone()) {
            let after = stretch.end;
            self.commit_alone(worker, stretch)?;
            after
        } else if self.commit_one(worker, next)? {
            next + 1
        } else {
            return Ok(None);
        };
        if self.crew.is_solo() {
            if after >= self.alone.end {
                self.crew.end_alone(after);
            }
        } else if self.alone.contains(&(after - 1)) {
            self.crew.go_alone();
        } else {
            self.crew.widen_window(after.is_multiple_of(2));
        }
        Ok(Some(after))
    }

    fn rested(&self, slept: Duration) {
        if !slept.is_zero() {
            SEEN.rested.fetch_add(1, Relaxed);
        }
        // A scheduler that prefers some workers must not keep this one looking for work that another is about to leave.
        thread::yield_now();
    }
}
