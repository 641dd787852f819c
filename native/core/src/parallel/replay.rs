//! Items by their block's access list (EIP-7928): every item finds in the list what those before it left, so all of them run
//! side by side, each once, with no versions and no aborts.
//!
//! A block that came with its list needs this where lanes do not pay: where transactions are bound to meet. They run in
//! stretches of neighbours, each on a journal of its own: what a location holds is asked of the list when an item of the
//! stretch is the first to look there, and from then on the journal knows. What they changed goes into the memory when all
//! have run, and whoever runs after them finds it there.
//!
//! A wrong list cannot pass. Say every value that execution in order gives before index i stands in the list, and nothing
//! else does, and the items before i ran as in order. Then item i finds what it would in order: in the list, where the list
//! has nothing before it in the memory, which holds what the lanes before have left, the fees of the beneficiary added, or
//! in its journal, where items before it put it, or left it as they found it. So it runs as in
//! order, and looks at and leaves the same. The list made of what was really executed thus has at i what execution in order
//! gives, and the lowest index at which the list given has anything else is an index at which the two lists differ. Reads
//! have no index; once all indices are right, all items ran as in order, so what they looked at is right as well. Whatever
//! depends on order beside the state (gas, the outbox, outcomes) is accounted for in order.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use alloy_primitives::{Address, B256, U256};

use super::committer::Committer;
use super::expected::{Expected, Listing, word};
use super::lane::{Lane, Ran, WARMED};
use super::memory::{Key, Memory, Numbers, Stamp, Value, wrong_kind};
use super::{Run, lock};
use crate::access_list::Change;
use crate::block::Block;
use crate::error::{CoreError, Result};
use crate::evm::{Bytecode, Machine, NotExecuted};
use crate::ledger::{Done, deliver};
use crate::pool::broadcast;
use crate::state::{Account, BlockState, Slots, Source, Touched};

/// Stretches that each worker has to take: enough that none waits long for the last.
const STRETCHES_PER_WORKER: usize = 8;
/// A journal larger than this many items leaves the processor's cache.
const LONGEST_STRETCH: usize = 512;
/// Locations remembered when a stretch's changes are looked through for those that are followed by others.
const SEEN: usize = 256;

/// The state as one item finds it, by the list; for what runs by itself.
#[derive(Debug)]
struct ListReader {
    memory: Arc<Memory>,
    listing: Arc<Listing>,
    numbers: Numbers,
    index: u32,
}

impl ListReader {
    fn look(&mut self, key: &Key) -> Result<Value> {
        let (location, present) = self.memory.look(key, &mut self.numbers)?;
        Ok(self.listing.before(location, present, self.index))
    }
}

impl Source for ListReader {
    fn account(&mut self, address: &Address) -> Result<Option<Account>> {
        match self.look(&Key::Account(*address))? {
            Value::Account(account) => Ok(account),
            Value::Slot(_) => wrong_kind(),
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

type ListMachine<'a> = Machine<'a, BlockState<ListReader>>;

/// What a stretch did, in order.
#[derive(Default)]
struct Left {
    results: Vec<Result<Did, NotExecuted>>,
    touched: Vec<u32>,
    changes: Vec<Change>,
    codes: Vec<(B256, Bytecode)>,
    took: Duration,
}

/// What one item did.
struct Did {
    done: Done,
    /// The beneficiary's account was changed, and what is noted of it holds all fees up to this item's own.
    has_settled_fees: bool,
}

/// The stretches that are accounted for.
#[derive(Default)]
struct Books {
    next: usize,
    error: Option<CoreError>,
}

struct Replay<'r, 'a> {
    run: &'r Run<'a>,
    block: &'a Block<'a>,
    listing: Arc<Listing>,
    stretches: Vec<Range<usize>>,
    next: AtomicUsize,
    /// By stretch, once it has run.
    left: Vec<Mutex<Option<Result<Left>>>>,
    books: Mutex<Books>,
    gas_used: AtomicU64,
}

/// Executes and commits the items up to `last` that are not committed. Runs on one of the block's workers.
///
/// # Errors
/// `InvalidBlock` when a transaction cannot be in the block if the list is right; `Internal` for a list that makes no sense,
/// or for what any execution fails of.
pub fn run_listed(run: &Run<'_>, given: &[u8], last: usize) -> Result<()> {
    let expected = match run.expected.get() {
        Some(expected) => expected.clone(),
        None => {
            let list = run.block.decode_access_list(given, true)?;
            let expected = Arc::new(Expected::new(list, &run.memory)?);
            run.expected.get_or_init(|| expected).clone()
        }
    };
    let stretches = cut(run, last);
    let listing = {
        let committer = lock(&run.committer);
        Listing { expected, beneficiary: committer.beneficiary(), tips: committer.tips() }
    };
    let replay = Replay {
        run,
        block: run.block,
        listing: Arc::new(listing),
        left: stretches.iter().map(|_| Mutex::default()).collect(),
        stretches,
        next: AtomicUsize::new(0),
        books: Mutex::default(),
        gas_used: AtomicU64::new(run.gas_used.load(SeqCst)),
    };
    broadcast(|_| replay.help());
    replay.account()?;
    replay.next.store(0, SeqCst);
    broadcast(|_| replay.write()).into_iter().collect::<Result<Vec<()>>>()?;
    replay.log();
    Ok(())
}

/// Neighbours that run on one journal: deliveries have none, and are only handed out together.
fn cut(run: &Run<'_>, last: usize) -> Vec<Range<usize>> {
    let (next, first) = (run.committed.load(SeqCst), run.block.receipts.len() + 1);
    let of = |items: Range<usize>, length: usize| {
        let end = items.end;
        items.step_by(length).map(move |start| start..end.min(start + length))
    };
    let transactions = next.max(first)..last + 1;
    let length = transactions.len().div_ceil(STRETCHES_PER_WORKER * run.block.chain.threads).clamp(1, LONGEST_STRETCH);
    of(next..first.min(last + 1), WARMED).chain(of(transactions, length)).collect()
}

impl<'a> Replay<'_, 'a> {
    /// One worker's part: stretch after stretch, and the accounts of those before if nobody else is at them.
    fn help(&self) {
        let _shift = self.run.time.begin();
        let mut lane = Lane::new(self.block, &self.run.memory);
        while let Some((nth, items)) = self.take_stretch() {
            let began = Instant::now();
            let mut left =
                if items.start <= self.block.receipts.len() { self.deliver(items) } else { self.run(&mut lane, items) };
            if let Ok(left) = &mut left {
                left.took = began.elapsed();
            }
            *lock(&self.left[nth]) = Some(left);
            if let Ok(mut books) = self.books.try_lock() {
                self.account_ready(&mut books);
            }
        }
    }

    fn take_stretch(&self) -> Option<(usize, Range<usize>)> {
        let nth = self.next.fetch_add(1, SeqCst);
        Some((nth, self.stretches.get(nth)?.clone()))
    }

    /// Takes what a machine's item `index` did.
    fn take(&self, machine: &mut ListMachine<'_>, index: u32, left: &mut Left) -> Result<bool> {
        let memory = &self.run.memory;
        let beneficiary = Key::Account(self.block.env.beneficiary);
        let state = machine.state();
        let touched: HashSet<Key, foldhash::fast::RandomState> = state.take_touched().into_iter().collect();
        let mut has_settled_fees = false;
        let (changes, codes) = state.take_changes();
        for changed in changes {
            let (key, value) = match changed {
                Touched::Account(address, account) => (Key::Account(address), Value::Account(account)),
                Touched::Slot(address, slot, value) => (Key::Slot(address, slot), Value::Slot(value)),
            };
            has_settled_fees |= key == beneficiary;
            left.changes.push(Change { index, location: memory.locate(&key)?, value });
        }
        for key in &touched {
            left.touched.push(memory.locate(key)?);
        }
        left.codes.extend(codes);
        Ok(has_settled_fees)
    }

    /// Some consecutive deliveries.
    fn deliver(&self, items: Range<usize>) -> Result<Left> {
        let (memory, listing) = (self.run.memory.clone(), self.listing.clone());
        let reader = ListReader { memory, listing, numbers: Numbers::default(), index: 0 };
        let (mut machine, mut left) = (self.block.machine(BlockState::watched(reader)), Left::default());
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
        lane.make_room(items.len());
        lane.stand_listed(&self.listing);
        for index in items.clone() {
            if (index - items.start).is_multiple_of(WARMED) {
                let soon = index..items.end.min(index + WARMED);
                lane.warm(
                    soon.filter_map(|index| {
                        Some((index, block.batch.entries()[index - first].transaction.as_deref()?))
                    }),
                );
            }
            let result = block.transaction(index - first).and_then(|transaction| {
                // See `commit_next`.
                if transaction.tx_type == 4 {
                    end_journal(lane, &mut left);
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
                    end_journal(lane, &mut left);
                }
                let beneficiary = self.listing.beneficiary;
                let settles = |change: &Change| change.index as usize == index && change.location == beneficiary;
                Did { done, has_settled_fees: saw_fees && left.changes[kept..].iter().any(settles) }
            });
            let sum = result.as_ref().map_or(0, |did| self.count_gas(&did.done));
            // Or a block full of what does not fit would be work for nothing.
            if sum > block.env.gas_limit {
                end_journal(lane, &mut left);
                return Err(refused(index - first, "gas limit reached"));
            }
            let is_failed = result.is_err();
            left.results.push(result);
            if is_failed {
                break;
            }
        }
        end_journal(lane, &mut left);
        Ok(left)
    }

    /// Accounts for what has run by now, in order.
    fn account_ready(&self, books: &mut Books) {
        let mut committer = lock(&self.run.committer);
        while books.error.is_none()
            && let Some(left) = self.left.get(books.next)
            && let Some(left) = lock(left).as_mut()
        {
            let accounted = match left {
                Ok(left) => self.account_for(&mut committer, self.stretches[books.next].start, left),
                Err(error) => Err(error.clone()),
            };
            books.next += 1;
            if let Err(error) = accounted {
                books.error = Some(error);
                // What is left runs for nothing.
                self.next.store(self.stretches.len(), SeqCst);
            }
        }
    }

    /// Accounts for all that nobody has accounted for while the stretches ran.
    fn account(&self) -> Result<()> {
        let mut books = lock(&self.books);
        self.account_ready(&mut books);
        match books.error.take() {
            Some(error) => Err(error),
            None if books.next == self.stretches.len() => Ok(()),
            None => Err(CoreError::Internal("a stretch was lost".into())),
        }
    }

    fn account_for(&self, committer: &mut Committer<'a>, start: usize, left: &mut Left) -> Result<()> {
        let (first, mut next) = (self.block.receipts.len() + 1, start);
        committer.count_window(left.results.len(), 0, left.took);
        for result in std::mem::take(&mut left.results) {
            let place = next.checked_sub(first);
            let did = self.check(committer, place, result)?;
            if did.has_settled_fees {
                committer.take_tips();
            }
            committer.record(self.run, next, did.done, place.map(|place| place as u32))?;
            next += 1;
        }
        left.codes.iter().for_each(|(hash, code)| committer.add_code(*hash, code.clone()));
        self.run.advance(committer, next);
        Ok(())
    }

    /// What every item is asked in order.
    fn check(&self, committer: &Committer<'a>, place: Option<usize>, result: Result<Did, NotExecuted>) -> Result<Did> {
        let checked = result.and_then(|did| {
            if let Some(place) = place {
                committer.check_gas(self.block.transaction(place)?)?;
                committer.check_outbox(&did.done)?;
            }
            Ok(did)
        });
        checked.map_err(|refusal| match refusal {
            NotExecuted::Failed(error) => error,
            NotExecuted::Invalid(reason) => refused(place.unwrap_or_default(), &reason),
        })
    }

    /// One worker's part in writing what was changed.
    fn write(&self) -> Result<()> {
        let memory = &self.run.memory;
        while let Some((nth, _)) = self.take_stretch() {
            let mut left = lock(&self.left[nth]);
            let Some(Ok(Left { changes, codes, .. })) = left.as_mut() else { continue };
            let last = find_last(changes);
            let mut firsts = Vec::with_capacity(last.len());
            memory.walk(
                &last,
                |change| change.location,
                |change| {
                    let stamp = Stamp { index: change.index, incarnation: 0 };
                    memory.set(change.location, stamp, change.value, &mut firsts)
                },
            )?;
            codes.drain(..).for_each(|(hash, code)| memory.add_code(hash, code));
            lock(&self.run.firsts).push(firsts);
        }
        Ok(())
    }

    /// Keeps what was done, for the access list.
    fn log(self) {
        let mut committer = lock(&self.run.committer);
        for left in self.left {
            if let Some(Ok(left)) = left.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner) {
                committer.log().add(left.touched.into_iter(), left.changes);
            }
        }
    }
}

/// The changes but for most of those that a later one of the same location follows: where all items meet, few are left.
fn find_last(changes: &[Change]) -> Vec<&Change> {
    let mut seen = [u32::MAX; SEEN];
    let is_last = |change: &&Change| {
        let seen = &mut seen[change.location as usize % SEEN];
        std::mem::replace(seen, change.location) != change.location
    };
    changes.iter().rev().filter(is_last).collect()
}

fn end_journal(lane: &mut Lane<'_>, left: &mut Left) {
    let trail = lane.take_trail();
    if left.changes.is_empty() {
        std::mem::swap(&mut left.changes, &mut trail.changes);
    } else {
        left.changes.append(&mut trail.changes);
    }
    left.touched.extend(trail.touched.iter().map(|(location, _)| *location));
    left.codes.extend(trail.codes.drain(..).map(|(_, hash, code)| (hash, code)));
    trail.clear();
}

fn refused(place: usize, reason: &str) -> CoreError {
    CoreError::InvalidBlock(format!("transaction {place}, by the access list: {reason}"))
}
