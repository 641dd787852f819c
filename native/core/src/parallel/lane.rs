//! One journal, and transactions that run on it one after the other: what a worker runs alone, and what each task of a
//! window of lanes is.
//!
//! A journal reads each location through the memory, once unless what read it was refused. Nothing is in flight there; in a
//! window, what other tasks changed appears there when they end, and whoever sees it clashes. What the items changed is noted
//! item by item, so that any number of them from the first on can be kept, and the rest dropped.

use std::ops::Range;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

use alloy_primitives::{Address, B256, U256};

use super::codes::Codes;
use super::expected::Listing;
use super::lock;
use super::marks::{Clash, Visit};
use super::memory::{Key, Memory, Numbers, Value, wrong_kind};
use super::perturb;
use super::upcoming::Upcoming;
use crate::access_list::Change;
use crate::block::Block;
use crate::error::{CoreError, Result};
use crate::evm::{Bytecode, NOWHERE, NotExecuted, Numbering, Stepper};
use crate::gateway::GATEWAY;
use crate::ledger::Done;
use crate::state::{Account, Slots, Source};
use crate::transaction::Transaction;

/// Changes and visits that room is made for, per item, as long as it is not known how many they are.
const ROOM: usize = 4;
/// More than this is not made room for at once: what one item notes is bounded by its gas alone.
const MOST_ROOM: usize = 1 << 16;
/// Pieces that the allocator of most systems takes from what the thread itself has let go are smaller.
const OWN_BYTES: usize = 1280;
/// Items whose accounts are read at once before they run.
pub const WARMED: usize = 16;
/// Clashes of one window that are remembered, to learn from.
const MAX_CLASHES: usize = 1024;

/// What the tasks of one window share.
#[derive(Debug)]
pub struct Shared {
    window: u32,
    start: u32,
    /// The lowest item that may be wrong.
    limit: AtomicU32,
    /// By location: the two items that met.
    clashes: Mutex<Vec<(u32, [u32; 2])>>,
}

impl Shared {
    pub fn new(window: u32, items: &Range<usize>) -> Self {
        let limit = AtomicU32::new(items.end as u32);
        Self { window, start: items.start as u32, limit, clashes: Mutex::default() }
    }

    pub fn visit(&self, task: usize, index: u32) -> Visit {
        // No window has more items, and so tasks, than marks can count.
        Visit { window: self.window, task: task as u16, index: (index - self.start) as u16 }
    }

    pub fn limit(&self) -> usize {
        self.limit.load(SeqCst) as usize
    }

    /// Nothing from this item on may be kept.
    pub fn stop_at(&self, index: u32) {
        self.limit.fetch_min(index, SeqCst);
    }

    pub fn note(&self, location: u32, clash: Option<Clash>) {
        if let Some(clash) = clash {
            self.stop_at(self.start + u32::from(clash.from));
            let mut clashes = lock(&self.clashes);
            if clashes.len() < MAX_CLASHES {
                let items = [clash.reader, clash.writer].map(|index| self.start + u32::from(index));
                clashes.push((location, items));
            }
        }
    }

    pub fn take_clashes(&self) -> Vec<(u32, [u32; 2])> {
        std::mem::take(&mut lock(&self.clashes))
    }
}

/// How an item may run.
#[derive(Debug, Clone)]
enum Standing {
    /// Everything before it is committed or on this journal; these fees of the items before are not in the memory yet.
    Alone(U256),
    /// As an item of a task beside others.
    Beside(Arc<Shared>, usize),
    /// What is not on this journal is as the block's access list has it.
    Listed(Arc<Listing>),
}

#[derive(Debug)]
pub struct LaneReader {
    memory: Arc<Memory>,
    beneficiary: Address,
    index: u32,
    standing: Standing,
    /// The item asked for the beneficiary's account and saw it with all its fees.
    saw_tips: bool,
    /// It asked for that and there is no answer yet.
    is_stopped: bool,
    /// Locations in the order in which they were first read on this journal, with the item that did.
    touched: Vec<(u32, u32)>,
    /// Where what was looked at last lies.
    place: u32,
    /// Where the accounts lie that the next items send from and pay, and what is there.
    upcoming: Upcoming<(u32, Option<Account>)>,
    numbers: Numbers,
    codes: Codes,
}

impl LaneReader {
    fn look(&mut self, key: &Key) -> Result<Value> {
        perturb();
        let visit = match &self.standing {
            Standing::Alone(_) | Standing::Listed(_) => None,
            Standing::Beside(shared, task) => Some(shared.visit(*task, self.index)),
        };
        let visited = match key {
            Key::Account(address) => self.upcoming.recall(self.index, address),
            Key::Slot(..) => None,
        };
        let (location, mut value) = match visited {
            Some((location, account)) => (location, Value::Account(account)),
            None => {
                let location = self.memory.locate_with(key, &mut self.numbers)?;
                let (value, clash) = self.memory.visit(location, key, visit)?;
                if let Standing::Beside(shared, _) = &self.standing {
                    shared.note(location, clash);
                }
                (location, value)
            }
        };
        if let Standing::Listed(listing) = &self.standing {
            value = listing.before(location, value, self.index);
        }
        self.touched.push((location, self.index));
        self.place = location;
        Ok(value)
    }
}

impl Numbering for LaneReader {
    fn place(&self) -> u32 {
        self.place
    }
}

impl Source for LaneReader {
    /// Every item pays the beneficiary, so its balance is known only once all before are committed.
    fn account(&mut self, address: &Address) -> Result<Option<Account>> {
        let is_beneficiary = *address == self.beneficiary;
        if is_beneficiary && matches!(self.standing, Standing::Beside(..)) {
            self.is_stopped = true;
            return Err(CoreError::Internal("the beneficiary's account is not settled".into()));
        }
        let Value::Account(mut account) = self.look(&Key::Account(*address))? else { return wrong_kind() };
        self.saw_tips |= is_beneficiary;
        if let (true, Standing::Alone(tips)) = (is_beneficiary, &self.standing)
            && !tips.is_zero()
        {
            let mut paid = account.unwrap_or_default();
            paid.balance = paid
                .balance
                .checked_add(*tips)
                .ok_or_else(|| CoreError::Internal(format!("balance of {address} exceeds 256 bits")))?;
            account = Some(paid);
        }
        Ok(account)
    }

    fn slot(&mut self, address: &Address, slot: &U256) -> Result<U256> {
        match self.look(&Key::Slot(*address, *slot))? {
            Value::Slot(word) => Ok(word),
            Value::Account(_) => wrong_kind(),
        }
    }

    /// See `Reader::slots`.
    fn slots(&mut self, _: &Address) -> Result<Slots> {
        Ok(Slots::default())
    }

    fn code(&mut self, hash: &B256) -> Result<Bytecode> {
        self.codes.get(&self.memory, hash)
    }
}

/// What the items on a journal did, in order.
#[derive(Debug, Default)]
pub struct Trail {
    pub changes: Vec<Change>,
    pub codes: Vec<(u32, B256, Bytecode)>,
    pub touched: Vec<(u32, u32)>,
}

impl Trail {
    pub fn clear(&mut self) {
        self.changes.clear();
        self.codes.clear();
        self.touched.clear();
    }

    /// Forgets the items from `end` on.
    pub fn truncate(&mut self, end: u32) {
        self.changes.truncate(self.changes.partition_point(|change| change.index < end));
        self.codes.truncate(self.codes.partition_point(|(index, ..)| *index < end));
        self.touched.truncate(self.touched.partition_point(|(_, index)| *index < end));
    }
}

/// What became of an item.
#[derive(Debug)]
pub enum Ran {
    Done(Done),
    /// It cannot be in this block, and left nothing.
    Refused(NotExecuted),
    /// It cannot be in this block, and the journal holds what it did.
    Spoilt(NotExecuted),
    /// Beside others it cannot be run, and the journal is of no more use.
    Stopped,
}

pub struct Lane<'a> {
    block: &'a Block<'a>,
    memory: Arc<Memory>,
    machine: Stepper<'a, LaneReader>,
    trail: Trail,
    /// Items refused since others were read ahead.
    refused: usize,
    /// How many items room was made for, and how many changes and visits each of those before them made, about.
    items: usize,
    room: (usize, usize),
}

/// A buffer that grew from a few bytes would begin in a piece that this thread let go some time, but another may have taken
/// from the system: it would then lie between that one's buffers however far it grows, and each core wait for the other's
/// lines. Measured: 1.3 to 1.4 times the time of transfers, from the third block or so on. Much more room than is used costs
/// as well, in pages.
pub fn make_room<T>(buffer: &mut Vec<T>, wanted: usize) {
    buffer.reserve(wanted.clamp(OWN_BYTES / size_of::<T>(), MOST_ROOM));
}

impl<'a> Lane<'a> {
    pub fn new(block: &'a Block<'a>, memory: &Arc<Memory>) -> Self {
        let reader = LaneReader {
            memory: memory.clone(),
            beneficiary: block.env.beneficiary,
            index: 0,
            standing: Standing::Alone(U256::ZERO),
            saw_tips: false,
            is_stopped: false,
            touched: Vec::new(),
            place: NOWHERE,
            upcoming: Upcoming::default(),
            numbers: Numbers::default(),
            codes: Codes::default(),
        };
        let machine = block.stepper(reader);
        Self {
            block,
            memory: memory.clone(),
            machine,
            trail: Trail::default(),
            refused: 0,
            items: 0,
            room: (ROOM, ROOM),
        }
    }

    /// What comes next runs with everything before it committed or on this journal; `tips` are the fees not yet in memory.
    pub fn stand_alone(&mut self, tips: U256) {
        self.machine.state().standing = Standing::Alone(tips);
    }

    /// What comes next is a task of a window, on an empty journal.
    pub fn stand_beside(&mut self, shared: &Arc<Shared>, task: usize) {
        self.machine.state().standing = Standing::Beside(shared.clone(), task);
    }

    /// What comes next is a run of neighbours, on an empty journal.
    pub fn stand_listed(&mut self, listing: &Arc<Listing>) {
        self.machine.state().standing = Standing::Listed(listing.clone());
    }

    /// The last item saw the beneficiary's account with all its fees.
    pub fn saw_tips(&mut self) -> bool {
        self.machine.state().saw_tips
    }

    /// The last item ended an account: nothing may run on this journal after it.
    pub fn has_destroyed(&mut self) -> bool {
        self.machine.changes().has_destroyed
    }

    /// Drops what the last item did, and the journal with it: nothing may run on it before `take_trail`.
    pub fn drop_from(&mut self, index: usize) {
        let reader = self.machine.state();
        reader.saw_tips = false;
        reader.touched.truncate(reader.touched.partition_point(|(_, by)| *by < index as u32));
        self.machine.changes().truncate(index as u32);
    }

    /// So many items come next, and what they change is kept.
    pub fn make_room(&mut self, items: usize) {
        let (changes, touched) = self.room;
        self.items = items;
        make_room(&mut self.machine.changes().values, changes.saturating_mul(items));
        make_room(&mut self.machine.state().touched, touched.saturating_mul(items));
    }

    /// Takes what the items since the last call did; the journal is empty then.
    pub fn take_trail(&mut self) -> &mut Trail {
        self.machine.end_steps();
        self.trail.clear();
        let changes = self.machine.changes();
        std::mem::swap(&mut self.trail.changes, &mut changes.values);
        std::mem::swap(&mut self.trail.codes, &mut changes.codes);
        let reader = self.machine.state();
        let of_items = |count: usize| count.div_ceil(self.items.max(1)).max(1);
        self.room = (of_items(self.trail.changes.len()), of_items(reader.touched.len()));
        std::mem::swap(&mut self.trail.touched, &mut reader.touched);
        // Read before what the journal held was written.
        reader.upcoming.clear();
        reader.saw_tips = false;
        &mut self.trail
    }

    /// Visits who sends and who is paid, and reads the slots that calls will likely look at, for items that will run soon: one
    /// after the other they would each wait for memory, together they wait at the same time.
    pub fn warm<'t>(&mut self, items: impl Iterator<Item = (usize, &'t Transaction)> + Clone) {
        // What is refused needs its sender alone, and whoever sends such things sends many.
        if 2 * std::mem::take(&mut self.refused) > WARMED {
            return self.machine.state().upcoming.clear();
        }
        let slots = self.machine.look_ahead(items.clone().map(|(_, transaction)| transaction));
        let LaneReader { memory, standing, upcoming, numbers, .. } = self.machine.state();
        let standing = &*standing;
        let visit = |index: u32| match standing {
            Standing::Alone(_) | Standing::Listed(_) => None,
            Standing::Beside(shared, task) => Some(shared.visit(*task, index)),
        };
        let visits = items.flat_map(|(index, transaction)| {
            let paid = transaction.to.to().filter(|_| transaction.input.is_empty());
            std::iter::once(&transaction.sender).chain(paid).map(move |address| (index as u32, address))
        });
        let visits = visits.map(|(index, address)| (index, address, visit(index)));
        upcoming.clear();
        // What cannot be read now is an error of the item that needs it.
        let _ = memory.visit_accounts(visits, numbers, |index, address, location, account, clash| {
            upcoming.push(index, *address, (location, account));
            if let Standing::Beside(shared, _) = standing {
                shared.note(location, clash);
            }
        });
        let _ = memory.warm_slots(&slots, numbers, |_| ());
    }

    /// Runs an item.
    ///
    /// # Errors
    /// Those of reading the state.
    pub fn run(&mut self, index: usize, transaction: &'a Transaction) -> Result<Ran> {
        perturb();
        self.machine.begin_step(index as u32);
        let reader = self.machine.state();
        (reader.index, reader.saw_tips) = (index as u32, false);
        reader.upcoming.come_to(index as u32);
        let known = reader.touched.len();
        match self.execute(transaction) {
            Ok(done) => {
                let changes = self.machine.changes();
                if changes.has_destroyed && matches!(self.machine.state().standing, Standing::Beside(..)) {
                    self.machine.changes().truncate(index as u32);
                    return Ok(Ran::Stopped);
                }
                if !self.machine.changes().unplaced.is_empty() {
                    self.place_rest()?;
                }
                Ok(Ran::Done(done))
            }
            Err(Failure::State(_)) if std::mem::take(&mut self.machine.state().is_stopped) => Ok(Ran::Stopped),
            Err(Failure::State(error)) => Err(error),
            Err(Failure::Refused(refusal)) => {
                self.refused += 1;
                // What it was the first to look at, nobody has looked at.
                self.machine.forget_step();
                self.machine.state().touched.truncate(known);
                Ok(Ran::Refused(refusal))
            }
            Err(Failure::Spoilt(refusal)) => {
                self.machine.changes().truncate(index as u32);
                Ok(Ran::Spoilt(refusal))
            }
        }
    }

    fn execute(&mut self, transaction: &'a Transaction) -> Result<Done, Failure> {
        let block = self.block;
        if let Some(transfer) = block.plan(transaction)
            && self.machine.step_transfer(&transfer)?
        {
            return Ok(Done::of_transfer(transaction, block.env.base_fee));
        }
        let mut executed = match self.machine.step(transaction) {
            Ok(executed) => executed,
            Err(NotExecuted::Failed(error)) => return Err(error.into()),
            Err(refusal) => return Err(Failure::Refused(refusal)),
        };
        let is_tip_lost = self.has_destroyed() && self.machine.has_destroyed(&block.env.beneficiary);
        let done = Done::of_executed(block, transaction, &mut executed, is_tip_lost).map_err(Failure::Spoilt)?;
        if !done.messages.is_empty() {
            self.machine.debit_step(&GATEWAY, done.escrow()?)?;
        }
        Ok(done)
    }

    /// Has numbers given to what the item changed without reading it.
    fn place_rest(&mut self) -> Result<()> {
        let mut unplaced = std::mem::take(&mut self.machine.changes().unplaced);
        for (at, key) in unplaced.drain(..) {
            let location = self.memory.locate_with(&key, &mut self.machine.state().numbers)?;
            self.machine.changes().values[at].location = location;
        }
        self.machine.changes().unplaced = unplaced;
        Ok(())
    }
}

enum Failure {
    State(CoreError),
    Refused(NotExecuted),
    Spoilt(NotExecuted),
}

impl From<CoreError> for Failure {
    fn from(error: CoreError) -> Self {
        Self::State(error)
    }
}
