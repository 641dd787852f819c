//! Multi-version memory: what every item of a block wrote, so that any item can read what those before it left.
//!
//! A location holds the value that is committed so far and, sorted by index, the versions of items in flight. A version
//! is an absolute value, a change that commutes with others, or an estimate: the writer was aborted and will likely
//! write again, so readers wait for it instead of guessing. Committing folds a version into the committed value, so a
//! read looks at few versions however long the block is.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use alloy_primitives::{Address, B256, U256};
use smallvec::SmallVec;

use super::cell::{Cell, Entry, Version};
use super::locations::Locations;
pub use super::locations::{Key, Numbers};
use super::lock;
use super::marks::{Clash, Visit};
use super::perturb;
use crate::access_list::Change;
use crate::error::{CoreError, Result};
use crate::evm::Bytecode;
use crate::state::{Account, Map, Part, Update, View};
use crate::transfer::Predicate;

/// A change to an account that needs no absolute value: transfers make two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Delta {
    pub nonces: u64,
    pub credit: U256,
    pub debit: U256,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Value {
    Account(Option<Account>),
    Slot(U256),
}

#[derive(Debug, Clone, Copy)]
pub enum Written {
    Value(Value),
    Delta(Delta),
}

/// Which execution left a value: an item's incarnation; index 0 is the state before the block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stamp {
    pub index: u32,
    pub incarnation: u32,
}

/// So many locations ahead of where somebody works, what lies there is brought near.
const AHEAD: usize = 8;

/// Where a block changed something first, and what was there before it.
pub type First = (u32, Value);

/// What a task of a window of lanes has written over.
#[derive(Debug, Default)]
pub struct Replaced {
    pub firsts: Vec<First>,
    /// Where the block had changed something before.
    pub again: Vec<(u32, Stamp, Value)>,
}

/// What an item finds at a location.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// The stamp is missing when several versions add up.
    Value(Value, Option<Stamp>),
    /// The item that will write it has to run first.
    Blocked(u32),
}

/// What an execution relies on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    Stamp(Stamp),
    Value(Value),
    Sender(Predicate),
    NoCode,
}

pub struct Memory {
    view: View,
    cells: Locations<Mutex<Cell>>,
    /// Cells of another block count as new.
    block: u32,
    /// Locations that caused aborts.
    blamed: Mutex<Vec<u32>>,
    spare: Arc<Spare>,
    /// Codes that items of this block brought, committed or not: content has no versions.
    codes: RwLock<Map<B256, Bytecode>>,
}

/// The cells of a block that is done, and its number among those that had them, for the next one.
#[derive(Default)]
pub struct Spare(Mutex<Option<(Locations<Mutex<Cell>>, u32)>>);

impl std::fmt::Debug for Spare {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Spare")
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        *lock(&self.spare.0) = Some((std::mem::replace(&mut self.cells, Locations::none()), self.block));
    }
}

/// # Errors
/// `Internal`: what lies at a location is of another kind than its key.
pub fn wrong_kind<T>() -> Result<T> {
    Err(CoreError::Internal("a location changed its kind".into()))
}

impl Value {
    pub fn with(self, delta: &Delta) -> Option<Self> {
        let Self::Account(account) = self else { return None };
        let mut account = account.unwrap_or_default();
        account.nonce = account.nonce.checked_add(delta.nonces)?;
        account.balance = account.balance.checked_sub(delta.debit)?.checked_add(delta.credit)?;
        Some(Self::Account(Some(account).filter(|account| !account.is_empty())))
    }

    fn has_code(&self) -> bool {
        matches!(self, Self::Account(Some(account)) if account.has_code())
    }
}

impl Delta {
    pub fn merge(&mut self, other: &Self) {
        self.nonces = self.nonces.saturating_add(other.nonces);
        self.credit = self.credit.saturating_add(other.credit);
        self.debit = self.debit.saturating_add(other.debit);
    }
}

impl Memory {
    pub fn new(view: View, items: usize, spare: &Arc<Spare>) -> Self {
        let kept = lock(&spare.0).take().and_then(|(mut cells, block)| {
            cells.renew(items);
            // None of them can be taken for one of a block long gone.
            Some((cells, block.checked_add(1)?))
        });
        let (cells, block) = kept.unwrap_or_else(|| (Locations::new(items), 1));
        Self { view, cells, block, blamed: Mutex::default(), spare: spare.clone(), codes: RwLock::default() }
    }

    /// What lies at a location, as new for whoever of this block comes first.
    fn cell(&self, location: u32) -> MutexGuard<'_, Cell> {
        let mut cell = lock(self.cells.get(location));
        if cell.block != self.block {
            *cell = Cell::of_block(self.block);
        }
        cell
    }

    /// # Errors
    /// `Internal` when there are more locations than any block can touch.
    pub fn locate(&self, key: &Key) -> Result<u32> {
        self.cells.locate(key)
    }

    /// As `locate`, for a worker that has numbers of its own.
    pub fn locate_with(&self, key: &Key, numbers: &mut Numbers) -> Result<u32> {
        self.cells.locate_with(key, numbers)
    }

    /// What is committed here, and the number of the location.
    ///
    /// # Errors
    /// Those of reading the state.
    pub fn look(&self, key: &Key, numbers: &mut Numbers) -> Result<(u32, Value)> {
        let location = self.cells.locate_with(key, numbers)?;
        Ok((location, self.cell(location).present(|| self.base(key))?))
    }

    /// What a task of a window of lanes finds here, and leaves word that it was: everything before the window is committed,
    /// and what another task changes meanwhile is a clash. `None` for a visit that no other task can get in the way of.
    ///
    /// # Errors
    /// Those of reading the state.
    pub fn visit(&self, location: u32, key: &Key, visit: Option<Visit>) -> Result<(Value, Option<Clash>)> {
        let mut cell = self.cell(location);
        let value = cell.present(|| self.base(key))?;
        Ok((value, visit.and_then(|visit| cell.marks.touch(visit))))
    }

    /// Visits several accounts for items, as `visit` does; tells for each the item, where it lies, what is there and who clashed.
    ///
    /// # Errors
    /// Those of reading the state.
    pub fn visit_accounts<'k>(
        &self,
        visits: impl Iterator<Item = (u32, &'k Address, Option<Visit>)> + Clone,
        numbers: &mut Numbers,
        mut tell: impl FnMut(u32, &'k Address, u32, Option<Account>, Option<Clash>),
    ) -> Result<()> {
        let mut places: SmallVec<[(u32, bool); 32]> = SmallVec::new();
        let keys = visits.clone().map(|(_, address, _)| Key::Account(*address));
        self.cells.locate_all(keys, numbers, |location, is_new| places.push((location, is_new)))?;
        // Filled in once the store is let go: everybody else has a location when they turn to the store.
        let mut found: SmallVec<[Option<Account>; 32]> = SmallVec::new();
        let of_new = visits.clone().zip(&places).filter(|(_, (_, is_new))| *is_new);
        let unknown = of_new.map(|((_, address, _), _)| address);
        self.view.accounts(unknown, |account| found.push(account))?;
        let mut found = found.into_iter();
        for ((index, address, visit), (location, is_new)) in visits.zip(places) {
            let mut cell = self.cell(location);
            let read = if is_new { found.next() } else { None };
            let value = cell
                .present(|| read.map_or_else(|| self.base(&Key::Account(*address)), |read| Ok(Value::Account(read))))?;
            let clash = visit.and_then(|visit| cell.marks.touch(visit));
            drop(cell);
            let Value::Account(account) = value else { continue };
            tell(index, address, location, account, clash);
        }
        Ok(())
    }

    /// Reads slots ahead of whoever will visit them; tells where they lie.
    ///
    /// # Errors
    /// Those of reading the state.
    pub fn warm_slots(
        &self,
        slots: &[(Address, U256)],
        numbers: &mut Numbers,
        mut tell: impl FnMut(u32),
    ) -> Result<()> {
        let mut unknown: SmallVec<[(Address, U256); 32]> = SmallVec::new();
        let mut places: SmallVec<[u32; 32]> = SmallVec::new();
        let mut rest = slots.iter();
        let keys = slots.iter().map(|(address, slot)| Key::Slot(*address, *slot));
        self.cells.locate_all(keys, numbers, |location, is_new| {
            tell(location);
            if let (Some(slot), true) = (rest.next(), is_new) {
                unknown.push(*slot);
                places.push(location);
            }
        })?;
        let mut found: SmallVec<[U256; 32]> = SmallVec::new();
        self.view.words(&unknown, |word| found.push(word))?;
        for (location, word) in places.into_iter().zip(found) {
            self.cell(location).present.get_or_insert(Value::Slot(word));
        }
        Ok(())
    }

    /// Does something at many locations, one after the other. Those it comes to next are brought near meanwhile: every lock
    /// that is taken waits for what was asked for before it, so nothing else would have two of them on their way at once.
    ///
    /// # Errors
    /// The first of `work`.
    pub fn walk<T>(&self, all: &[T], place: impl Fn(&T) -> u32, mut work: impl FnMut(&T) -> Result<()>) -> Result<()> {
        all.iter().take(AHEAD).for_each(|next| self.cells.expect(place(next)));
        for (nth, one) in all.iter().enumerate() {
            if let Some(next) = all.get(nth + AHEAD) {
                self.cells.expect(place(next));
            }
            work(one)?;
        }
        Ok(())
    }

    /// Writes what a task of a window of lanes changed, and leaves word of it. Where another task was first, nothing is
    /// written: the window breaks there, and what can be kept is written anew.
    ///
    /// # Errors
    /// Those of reading the state.
    pub fn write_beside(&self, change: &Change, visit: Visit, replaced: &mut Replaced) -> Result<Option<Clash>> {
        perturb();
        let Change { index, location, value } = *change;
        let mut cell = self.cell(location);
        let is_late = cell.marks.is_written_beside(visit);
        let clash = cell.marks.write(visit);
        let present = cell.present(|| self.base_at(location))?;
        if present != value && !is_late {
            if cell.is_changed {
                replaced.again.push((location, cell.stamp, present));
            }
            cell.settle(location, Stamp { index, incarnation: 0 }, present, value, &mut replaced.firsts);
        }
        Ok(clash)
    }

    /// Takes back what a task wrote in a window that broke.
    pub fn take_back(&self, replaced: &mut Replaced) {
        perturb();
        for (location, stamp, value) in replaced.again.drain(..).rev() {
            let mut cell = self.cell(location);
            (cell.stamp, cell.present) = (stamp, Some(value));
        }
        for (location, value) in replaced.firsts.drain(..) {
            let mut cell = self.cell(location);
            (cell.stamp, cell.present, cell.is_changed) = (Stamp::default(), Some(value), false);
        }
    }

    /// Counts an execution that was thrown away because of this location.
    pub fn blame(&self, location: u32) {
        if self.cell(location).blame() {
            lock(&self.blamed).push(location);
        }
    }

    /// The value before the block.
    fn base(&self, key: &Key) -> Result<Value> {
        match key {
            Key::Account(address) => Ok(Value::Account(self.view.account(address)?)),
            Key::Slot(address, slot) => Ok(Value::Slot(self.view.slot(address, slot)?)),
        }
    }

    /// The value before the block, of a location that nothing was committed to.
    pub fn parent(&self, location: u32) -> Result<Value> {
        self.cell(location).present(|| self.base_at(location))
    }

    /// The account before the block.
    ///
    /// # Errors
    /// Those of reading the state.
    pub fn parent_account(&self, address: &Address) -> Result<Option<Account>> {
        self.view.account(address)
    }

    /// One past the highest number of a location.
    pub fn count(&self) -> u32 {
        self.cells.count()
    }

    fn base_at(&self, location: u32) -> Result<Value> {
        self.base(&self.cells.key(location))
    }

    pub fn read(&self, location: u32, index: u32) -> Result<Found> {
        self.cell(location).read(index, || self.base_at(location))
    }

    pub fn write(&self, location: u32, stamp: Stamp, written: Written) {
        let mut cell = self.cell(location);
        let mut entry = Entry { stamp, version: Version::Written(written) };
        match cell.place(stamp.index) {
            Ok(place) => {
                // Who read the value before the abort read what is true again.
                let held = &mut cell.flight_mut()[place];
                if let (Version::Estimate(Some(old)), Written::Value(new)) = (held.version, written)
                    && old == new
                {
                    entry.stamp = held.stamp;
                }
                *held = entry;
            }
            Err(place) => cell.flight_mut().insert(place, entry),
        }
    }

    /// Takes back what item `index` wrote here.
    pub fn retract(&self, location: u32, index: u32) {
        let mut cell = self.cell(location);
        if let Ok(place) = cell.place(index) {
            cell.flight_mut().remove(place);
        }
    }

    /// From now on readers wait for item `index` to run again.
    pub fn estimate(&self, location: u32, index: u32) {
        let mut cell = self.cell(location);
        if let Ok(place) = cell.place(index) {
            let held = &mut cell.flight_mut()[place].version;
            *held = match *held {
                Version::Written(Written::Value(value)) => Version::Estimate(Some(value)),
                Version::Written(Written::Delta(_)) => Version::Estimate(None),
                estimate @ Version::Estimate(_) => estimate,
            };
        }
    }

    /// Whether what item `index` saw is still there; unknown counts as yes, the turn to commit will tell.
    pub fn still_holds(&self, location: u32, seen: &Seen, index: u32) -> Result<bool> {
        let mut cell = self.cell(location);
        let is_committed = cell.flight().first().is_none_or(|entry| entry.stamp.index >= index);
        if let (true, Seen::Stamp(seen)) = (is_committed, seen) {
            return Ok(cell.stamp == *seen);
        }
        let Found::Value(now, stamp) = cell.read(index, || self.base_at(location))? else { return Ok(true) };
        Ok(match seen {
            Seen::Stamp(seen) => stamp == Some(*seen),
            Seen::Value(seen) => *seen == now,
            Seen::Sender(predicate) => match now {
                Value::Account(account) => predicate.holds(account.as_ref()),
                Value::Slot(_) => false,
            },
            Seen::NoCode => !now.has_code(),
        })
    }

    /// Makes what item `index` wrote here the committed value, now that all before it are; none if the change does not fit,
    /// else the value there now.
    pub fn commit(&self, location: u32, index: u32, firsts: &mut Vec<First>) -> Result<Option<Value>> {
        let mut cell = self.cell(location);
        let first =
            cell.flight().first().filter(|entry| entry.stamp.index == index).map(|entry| (entry.stamp, entry.version));
        let Some((stamp, Version::Written(written))) = first else {
            return Err(CoreError::Internal(format!("item {index} commits what it did not write")));
        };
        let present = cell.present(|| self.base_at(location))?;
        let after = match written {
            Written::Value(value) => value,
            Written::Delta(delta) => match present.with(&delta) {
                Some(value) => value,
                None => return Ok(None),
            },
        };
        cell.flight_mut().remove(0);
        cell.settle(location, stamp, present, after, firsts);
        Ok(Some(after))
    }

    /// Sets what is committed at a location that no item in flight has to do with, unless a later item has: any order will do.
    ///
    /// # Errors
    /// Those of reading the state.
    pub fn set(&self, location: u32, stamp: Stamp, value: Value, firsts: &mut Vec<First>) -> Result<()> {
        perturb();
        let mut cell = self.cell(location);
        let present = cell.present(|| self.base_at(location))?;
        // Also where the value stays: what an earlier item left must not come over it.
        if cell.stamp.index <= stamp.index {
            cell.settle(location, stamp, present, value, firsts);
        }
        Ok(())
    }

    /// Of what is committed so far; that of no code where there is no account.
    ///
    /// # Errors
    /// Those of reading the state.
    pub fn code_hash(&self, address: &Address) -> Result<B256> {
        match self.look(&Key::Account(*address), &mut Numbers::default())?.1 {
            Value::Account(account) => Ok(account.unwrap_or_default().code_hash),
            Value::Slot(_) => wrong_kind(),
        }
    }

    pub fn code(&self, hash: &B256) -> Result<Bytecode> {
        if let Some(code) = self.codes.read().unwrap_or_else(PoisonError::into_inner).get(hash) {
            return Ok(code.clone());
        }
        self.view.code(hash).ok_or_else(|| CoreError::Internal(format!("code {hash} is not held")))
    }

    pub fn add_code(&self, hash: B256, code: Bytecode) {
        self.codes.write().unwrap_or_else(PoisonError::into_inner).entry(hash).or_insert(code);
    }

    pub fn key(&self, location: u32) -> Key {
        self.cells.key(location)
    }

    /// What the block changed at some of the locations where it changed something, once everything is committed.
    pub fn updates(&self, firsts: &[First]) -> Result<Part> {
        let mut part = Part::with_capacity(firsts.len());
        let place = |first: &First| first.0;
        self.walk(firsts, place, |(location, before)| {
            let cell = self.cell(*location);
            if !cell.flight().is_empty() {
                return Err(CoreError::Internal("a version survived the block".into()));
            }
            if Some(*before) == cell.present {
                return Ok(());
            }
            match (self.cells.key(*location), *before, cell.present) {
                (Key::Account(address), Value::Account(old), Some(Value::Account(new))) => {
                    part.push(Update::Account(address, old, new))
                }
                (Key::Slot(address, slot), Value::Slot(old), Some(Value::Slot(new))) => {
                    part.push(Update::Slot(address, slot, old, new))
                }
                _ => wrong_kind(),
            }
        })?;
        Ok(part)
    }

    /// The locations with the most aborts, most first.
    pub fn hottest(&self, count: usize) -> Vec<(Key, u32)> {
        let conflicts = |location| {
            let cell = self.cell(location);
            (self.cells.key(location), cell.conflicts())
        };
        let mut hot: Vec<_> = lock(&self.blamed).iter().copied().map(conflicts).collect();
        hot.sort_unstable_by_key(|(key, conflicts)| (std::cmp::Reverse(*conflicts), sort_key(key)));
        hot.truncate(count);
        hot
    }
}

fn sort_key(key: &Key) -> (Address, Option<U256>) {
    match key {
        Key::Account(address) => (*address, None),
        Key::Slot(address, slot) => (*address, Some(*slot)),
    }
}

impl std::fmt::Debug for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Memory")
    }
}
