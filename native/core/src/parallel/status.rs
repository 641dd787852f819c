//! What each item of a parallel block is doing, packed into one atomic word, and who waits for whom.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering::SeqCst};
use std::sync::{Mutex, MutexGuard, PoisonError};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// May run.
    Ready,
    Running,
    /// Ran; valid as far as anybody knows.
    Done,
    /// Waits for the item whose list it is on.
    Blocked,
    /// Runs only when everything before it is committed.
    Awaiting,
    Committed,
}

const STATES: [State; 6] =
    [State::Ready, State::Running, State::Done, State::Blocked, State::Awaiting, State::Committed];

/// After this many aborts an item waits for its turn, where nothing can abort it: progress is guaranteed.
const MAX_INCARNATIONS: u32 = 3;

#[derive(Debug, Default)]
struct Item {
    /// State in the low three bits, incarnation above them.
    word: AtomicU32,
    waiters: Mutex<Vec<u32>>,
}

/// Claims are handed out in order: aborted and unblocked items first, lowest first, then fresh ones.
#[derive(Debug)]
pub struct Schedule {
    items: Vec<Item>,
    retries: Mutex<BinaryHeap<Reverse<u32>>>,
    retry_count: AtomicUsize,
    cursor: AtomicUsize,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn pack(state: State, incarnation: u32) -> u32 {
    incarnation << 3 | state as u32
}

impl Schedule {
    /// Items 1 to `last`; item 0, what opens the block, is committed already.
    pub fn new(last: usize) -> Self {
        let items: Vec<Item> = (0..=last).map(|_| Item::default()).collect();
        items[0].word.store(pack(State::Committed, 0), SeqCst);
        Self { items, retries: Mutex::default(), retry_count: AtomicUsize::new(0), cursor: AtomicUsize::new(1) }
    }

    pub fn state(&self, index: usize) -> State {
        STATES[(self.items[index].word.load(SeqCst) & 7) as usize]
    }

    fn incarnation(&self, index: usize) -> u32 {
        self.items[index].word.load(SeqCst) >> 3
    }

    fn set(&self, index: usize, state: State, incarnation: u32) {
        self.items[index].word.store(pack(state, incarnation), SeqCst);
    }

    /// Takes an item to run it; the incarnation, or none when someone else has it.
    pub fn start(&self, index: usize, from: State) -> Option<u32> {
        let incarnation = self.incarnation(index);
        let (old, new) = (pack(from, incarnation), pack(State::Running, incarnation));
        self.items[index].word.compare_exchange(old, new, SeqCst, SeqCst).ok().map(|_| incarnation)
    }

    /// The next item to run, not beyond `end`.
    pub fn claim(&self, end: usize) -> Option<(usize, u32)> {
        while self.retry_count.load(SeqCst) > 0 {
            let mut retries = lock(&self.retries);
            let Some(Reverse(index)) = retries.pop() else { break };
            self.retry_count.store(retries.len(), SeqCst);
            drop(retries);
            if let Some(incarnation) = self.start(index as usize, State::Ready) {
                return Some((index as usize, incarnation));
            }
        }
        let end = end.min(self.items.len());
        loop {
            let index = self.cursor.load(SeqCst);
            if index >= end {
                return None;
            }
            if self.cursor.compare_exchange(index, index + 1, SeqCst, SeqCst).is_ok()
                && let Some(incarnation) = self.start(index, State::Ready)
            {
                return Some((index, incarnation));
            }
        }
    }

    /// Whether `claim` might find something.
    pub fn has_work(&self, end: usize) -> bool {
        self.retry_count.load(SeqCst) > 0 || self.cursor.load(SeqCst) < end.min(self.items.len())
    }

    pub fn skip_to(&self, index: usize) {
        self.cursor.fetch_max(index, SeqCst);
    }

    /// One past the last item that anybody took.
    pub fn taken(&self) -> usize {
        self.cursor.load(SeqCst).min(self.items.len())
    }

    fn retry(&self, index: usize) {
        let mut retries = lock(&self.retries);
        retries.push(Reverse(index as u32));
        self.retry_count.store(retries.len(), SeqCst);
    }

    /// Marks a running item as done and lets those run that waited for it.
    pub fn finish(&self, index: usize) {
        self.set(index, State::Done, self.incarnation(index));
        for waiter in std::mem::take(&mut *lock(&self.items[index].waiters)) {
            let waiter = waiter as usize;
            self.set(waiter, State::Ready, self.incarnation(waiter));
            self.retry(waiter);
        }
    }

    /// Parks a running item until `writer` has run; false when it has, and the item may go on.
    pub fn block(&self, index: usize, writer: usize) -> bool {
        let mut waiters = lock(&self.items[writer].waiters);
        if matches!(self.state(writer), State::Done | State::Committed) {
            return false;
        }
        self.set(index, State::Blocked, self.incarnation(index));
        waiters.push(index as u32);
        true
    }

    /// Leaves a running item to its turn to commit.
    pub fn defer(&self, index: usize) {
        self.set(index, State::Awaiting, self.incarnation(index));
    }

    /// Makes a done item run again, now (by the caller) or when a worker comes to it; only the committer aborts.
    pub fn abort(&self, index: usize, now: bool) -> u32 {
        let incarnation = self.incarnation(index) + 1;
        if now {
            self.set(index, State::Running, incarnation);
        } else if incarnation >= MAX_INCARNATIONS {
            self.set(index, State::Awaiting, incarnation);
        } else {
            self.set(index, State::Ready, incarnation);
            self.retry(index);
        }
        incarnation
    }

    pub fn commit(&self, index: usize) {
        self.set(index, State::Committed, self.incarnation(index));
    }
}
