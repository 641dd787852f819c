//! What each item of a parallel block is doing, packed into one atomic word, and who waits for whom.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::ops::Range;
use std::sync::atomic::Ordering::SeqCst;

use super::sync::{AtomicU32, AtomicUsize, Mutex, lock};

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

const STATE_MASK: u32 = 7;
/// Somebody is, or was, on the item's list of waiters.
const IS_AWAITED: u32 = 1 << 3;
const WORKER_SHIFT: u32 = 4;
const WORKER_MASK: u32 = 0xff;
const INCARNATION_SHIFT: u32 = 12;

#[derive(Debug, Default)]
struct Item {
    /// State, whether it is awaited, the worker that has it or had it last, and above them the incarnation.
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

fn pack(state: State, incarnation: u32, worker: usize) -> u32 {
    incarnation << INCARNATION_SHIFT | (worker as u32 & WORKER_MASK) << WORKER_SHIFT | state as u32
}

fn unpack(word: u32) -> (State, u32) {
    (STATES[(word & STATE_MASK) as usize], word >> INCARNATION_SHIFT)
}

impl Schedule {
    /// Items from `next` to `last`; those before are committed already.
    pub fn new(next: usize, last: usize) -> Self {
        let items: Vec<Item> = (0..=last).map(|_| Item::default()).collect();
        items[..next].iter().for_each(|item| item.word.store(pack(State::Committed, 0, 0), SeqCst));
        Self { items, retries: Mutex::default(), retry_count: AtomicUsize::new(0), cursor: AtomicUsize::new(next) }
    }

    pub fn state(&self, index: usize) -> State {
        unpack(self.items[index].word.load(SeqCst)).0
    }

    /// The worker that ran a done item (modulo 256).
    pub fn worker(&self, index: usize) -> usize {
        (self.items[index].word.load(SeqCst) >> WORKER_SHIFT & WORKER_MASK) as usize
    }

    fn incarnation(&self, index: usize) -> u32 {
        unpack(self.items[index].word.load(SeqCst)).1
    }

    /// Moves an item that only the caller may move; who waits for it keeps waiting.
    fn set(&self, index: usize, state: State, incarnation: u32, worker: usize) {
        let next = |old: u32| Some(pack(state, incarnation, worker) | old & IS_AWAITED);
        let _ = self.items[index].word.fetch_update(SeqCst, SeqCst, next);
    }

    /// Takes an item to run it; the incarnation, or none when someone else has it.
    pub fn start(&self, index: usize, from: State, worker: usize) -> Option<u32> {
        let word = &self.items[index].word;
        let old = word.load(SeqCst);
        let (state, incarnation) = unpack(old);
        if state != from {
            return None;
        }
        let new = pack(State::Running, incarnation, worker) | old & IS_AWAITED;
        match word.compare_exchange(old, new, SeqCst, SeqCst) {
            Ok(_) => Some(incarnation),
            // Only a new waiter is no reason to leave it.
            Err(changed) if unpack(changed) == (state, incarnation) => {
                let new = new | IS_AWAITED;
                word.compare_exchange(changed, new, SeqCst, SeqCst).ok().map(|_| incarnation)
            }
            Err(_) => None,
        }
    }

    /// An item to run again.
    pub fn claim_retry(&self, worker: usize) -> Option<(usize, u32)> {
        while self.retry_count.load(SeqCst) > 0 {
            let mut retries = lock(&self.retries);
            let Some(Reverse(index)) = retries.pop() else { break };
            self.retry_count.store(retries.len(), SeqCst);
            drop(retries);
            if let Some(incarnation) = self.start(index as usize, State::Ready, worker) {
                return Some((index as usize, incarnation));
            }
        }
        None
    }

    /// At most `count` fresh items, not beyond `end`; each has yet to be started.
    pub fn claim(&self, end: usize, count: usize) -> Range<usize> {
        let end = end.min(self.items.len());
        let taken = self
            .cursor
            .fetch_update(SeqCst, SeqCst, |cursor| if cursor < end { Some((cursor + count).min(end)) } else { None });
        match taken {
            Ok(start) => start..(start + count).min(end),
            Err(_) => 0..0,
        }
    }

    /// Whether a claim might find something.
    pub fn has_work(&self, end: usize) -> bool {
        self.retry_count.load(SeqCst) > 0 || self.cursor.load(SeqCst) < end.min(self.items.len())
    }

    pub fn skip_to(&self, index: usize) {
        self.cursor.fetch_max(index, SeqCst);
    }

    /// Takes items that nobody took, nor any before them; false when somebody did.
    pub fn reserve(&self, items: Range<usize>) -> bool {
        let is_free = |cursor| (cursor <= items.start).then_some(items.end);
        self.cursor.fetch_update(SeqCst, SeqCst, is_free).is_ok()
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

    /// Marks a running item as done and lets those run that waited for it; whether anybody did.
    pub fn finish(&self, index: usize, incarnation: u32, worker: usize) -> bool {
        self.settle(index, pack(State::Done, incarnation, worker))
    }

    /// Sets the word of an item that others need not wait for any more; whether anybody did.
    fn settle(&self, index: usize, word: u32) -> bool {
        let before = self.items[index].word.swap(word, SeqCst);
        if before & IS_AWAITED == 0 {
            return false;
        }
        let waiters = std::mem::take(&mut *lock(&self.items[index].waiters));
        for waiter in &waiters {
            let waiter = *waiter as usize;
            self.set(waiter, State::Ready, self.incarnation(waiter), 0);
            self.retry(waiter);
        }
        !waiters.is_empty()
    }

    /// Parks a running item until `writer` has run; false when it has, and the item may go on.
    pub fn block(&self, index: usize, writer: usize, worker: usize) -> bool {
        let mut waiters = lock(&self.items[writer].waiters);
        let (state, _) = unpack(self.items[writer].word.fetch_or(IS_AWAITED, SeqCst));
        if matches!(state, State::Done | State::Committed) {
            return false;
        }
        self.set(index, State::Blocked, self.incarnation(index), worker);
        waiters.push(index as u32);
        true
    }

    /// Leaves a running item to its turn to commit.
    pub fn defer(&self, index: usize) {
        self.set(index, State::Awaiting, self.incarnation(index), 0);
    }

    /// Makes a done item run again, now (by the caller) or when a worker comes to it; only the committer aborts.
    pub fn abort(&self, index: usize, now: bool, worker: usize) -> u32 {
        let incarnation = self.incarnation(index) + 1;
        if now {
            self.set(index, State::Running, incarnation, worker);
        } else if incarnation >= MAX_INCARNATIONS {
            self.set(index, State::Awaiting, incarnation, worker);
        } else {
            self.set(index, State::Ready, incarnation, worker);
            self.retry(index);
        }
        incarnation
    }

    /// An item of a stretch was not done before it is committed, and a worker that took an item behind the stretch just
    /// before everybody was to stop may have parked it there.
    pub fn commit(&self, index: usize) {
        self.settle(index, pack(State::Committed, self.incarnation(index), 0));
    }
}
