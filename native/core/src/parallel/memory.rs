//! Multi-version memory: what every item of a block wrote, so that any item can read what those before it left.
//!
//! A location is an account or a storage slot by its full key, interned once per block under a hasher seeded per process:
//! keys that collide cost a comparison and never share a value. Each location keeps its versions sorted by index. A
//! version is an absolute value, a change that commutes with others, or an estimate: the writer was aborted and will
//! likely write again, so readers wait for it instead of guessing. At commit a change becomes an absolute value; a read
//! therefore never looks further back than the items in flight.

use std::hash::BuildHasher;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use alloy_primitives::{Address, B256, U256};
use hashbrown::HashTable;

use crate::error::{CoreError, Result};
use crate::evm::Bytecode;
use crate::state::{Account, Map, Update, View};

/// Enough that two of a few workers seldom want the same one.
const SHARDS: usize = 128;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Key {
    Account(Address),
    Slot(Address, U256),
}

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

#[derive(Debug, Clone, Copy)]
enum Version {
    Written(Written),
    Estimate,
}

#[derive(Debug)]
struct Entry {
    index: u32,
    incarnation: u32,
    version: Version,
}

#[derive(Debug, Default)]
struct Versions {
    /// The value before the block, once anybody asked.
    base: Option<Value>,
    entries: Vec<Entry>,
}

#[derive(Debug)]
pub struct Location {
    pub key: Key,
    hash: u64,
    versions: Mutex<Versions>,
    /// How many executions were aborted because this location had changed.
    pub conflicts: AtomicU32,
}

/// What an item finds at a location.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    Value(Value),
    /// The item that will write it has to run first.
    Blocked(u32),
}

pub struct Memory {
    view: View,
    hasher: foldhash::fast::RandomState,
    shards: Vec<Mutex<HashTable<Arc<Location>>>>,
    /// Codes that items of this block brought, committed or not: content has no versions.
    codes: RwLock<Map<B256, Bytecode>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Value {
    fn with(self, delta: &Delta) -> Option<Self> {
        let Self::Account(account) = self else { return None };
        let mut account = account.unwrap_or_default();
        account.nonce = account.nonce.checked_add(delta.nonces)?;
        account.balance = account.balance.checked_sub(delta.debit)?.checked_add(delta.credit)?;
        Some(Self::Account(Some(account).filter(|account| !account.is_empty())))
    }
}

impl Delta {
    fn merge(&mut self, other: &Self) {
        self.nonces = self.nonces.saturating_add(other.nonces);
        self.credit = self.credit.saturating_add(other.credit);
        self.debit = self.debit.saturating_add(other.debit);
    }
}

impl Versions {
    /// The value that the item `index` sees.
    fn read(&mut self, index: u32, base: impl FnOnce() -> Result<Value>) -> Result<Found> {
        let end = self.entries.partition_point(|entry| entry.index < index);
        let mut later = Delta::default();
        let mut is_changed = false;
        for entry in self.entries[..end].iter().rev() {
            match &entry.version {
                Version::Estimate => return Ok(Found::Blocked(entry.index)),
                Version::Written(Written::Value(value)) => {
                    return Ok(Found::Value(changed(*value, &later, is_changed)));
                }
                Version::Written(Written::Delta(delta)) => {
                    later.merge(delta);
                    is_changed = true;
                }
            }
        }
        let value = match self.base {
            Some(value) => value,
            None => *self.base.insert(base()?),
        };
        Ok(Found::Value(changed(value, &later, is_changed)))
    }
}

/// A sum of changes in flight need not make sense: a debit may be seen before the credit that covers it. Whoever reads
/// nonsense is validated against the committed value before it can matter.
fn changed(value: Value, delta: &Delta, is_changed: bool) -> Value {
    if !is_changed {
        return value;
    }
    value.with(delta).unwrap_or(match value {
        Value::Account(account) => {
            let account = account.unwrap_or_default();
            let nonce = account.nonce.saturating_add(delta.nonces);
            let balance = account.balance.saturating_add(delta.credit).saturating_sub(delta.debit);
            Value::Account(Some(Account { nonce, balance, ..account }).filter(|account| !account.is_empty()))
        }
        slot @ Value::Slot(_) => slot,
    })
}

impl Memory {
    pub fn new(view: View, expected: usize) -> Self {
        let room = expected.div_ceil(SHARDS) + 4;
        Self {
            view,
            hasher: foldhash::fast::RandomState::default(),
            shards: (0..SHARDS).map(|_| Mutex::new(HashTable::with_capacity(room))).collect(),
            codes: RwLock::default(),
        }
    }

    pub fn locate(&self, key: &Key) -> Arc<Location> {
        let hash = self.hasher.hash_one(key);
        let mut shard = lock(&self.shards[(hash >> 57) as usize % SHARDS]);
        let entry = shard.entry(hash, |location| location.key == *key, |location| location.hash);
        let made = || Arc::new(Location { key: *key, hash, versions: Mutex::default(), conflicts: AtomicU32::new(0) });
        entry.or_insert_with(made).get().clone()
    }

    fn base(&self, key: &Key) -> Result<Value> {
        match key {
            Key::Account(address) => Ok(Value::Account(self.view.account(address)?)),
            Key::Slot(address, slot) => Ok(Value::Slot(self.view.slot(address, slot)?)),
        }
    }

    pub fn read(&self, location: &Location, index: u32) -> Result<Found> {
        lock(&location.versions).read(index, || self.base(&location.key))
    }

    pub fn write(&self, location: &Location, index: u32, incarnation: u32, written: Written) {
        let mut versions = lock(&location.versions);
        let entry = Entry { index, incarnation, version: Version::Written(written) };
        let place = versions.entries.partition_point(|entry| entry.index < index);
        match versions.entries.get_mut(place).filter(|present| present.index == index) {
            Some(present) => *present = entry,
            None => versions.entries.insert(place, entry),
        }
    }

    /// Takes back what item `index` wrote here in any incarnation but the one named.
    pub fn retract(&self, location: &Location, index: u32, incarnation: Option<u32>) {
        let mut versions = lock(&location.versions);
        if let Ok(place) = versions.entries.binary_search_by_key(&index, |entry| entry.index)
            && Some(versions.entries[place].incarnation) != incarnation
        {
            versions.entries.remove(place);
        }
    }

    /// From now on readers wait for item `index` to run again.
    pub fn estimate(&self, location: &Location, index: u32) {
        let mut versions = lock(&location.versions);
        if let Ok(place) = versions.entries.binary_search_by_key(&index, |entry| entry.index) {
            versions.entries[place].version = Version::Estimate;
        }
    }

    /// Makes what item `index` wrote here absolute, now that all before it are; false if the change does not fit.
    pub fn settle(&self, location: &Location, index: u32) -> Result<bool> {
        let mut versions = lock(&location.versions);
        let Ok(place) = versions.entries.binary_search_by_key(&index, |entry| entry.index) else { return Ok(true) };
        let Version::Written(Written::Delta(delta)) = versions.entries[place].version else { return Ok(true) };
        let Found::Value(before) = versions.read(index, || self.base(&location.key))? else { return Ok(false) };
        let Some(after) = before.with(&delta) else { return Ok(false) };
        versions.entries[place].version = Version::Written(Written::Value(after));
        Ok(true)
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

    /// What the block changed at the locations of one shard, once everything is committed.
    pub fn updates(&self, shard: usize) -> Result<Vec<Update>> {
        let mut updates = Vec::new();
        for location in lock(&self.shards[shard]).iter() {
            let mut versions = lock(&location.versions);
            let Some(last) = versions.entries.last().map(|entry| entry.index) else { continue };
            let before = versions.read(0, || self.base(&location.key))?;
            let after = versions.read(last + 1, || self.base(&location.key))?;
            match (&location.key, before, after) {
                (_, before, after) if before == after => {}
                (Key::Account(address), Found::Value(Value::Account(old)), Found::Value(Value::Account(new))) => {
                    updates.push(Update::Account(*address, old, new));
                }
                (Key::Slot(address, slot), Found::Value(Value::Slot(old)), Found::Value(Value::Slot(new))) => {
                    updates.push(Update::Slot(*address, *slot, old, new));
                }
                _ => return Err(CoreError::Internal("an estimate survived the block".into())),
            }
        }
        Ok(updates)
    }

    pub const fn shard_count() -> usize {
        SHARDS
    }

    /// The locations with the most aborts, most first.
    pub fn hottest(&self, count: usize) -> Vec<(Key, u32)> {
        let mut hot = Vec::new();
        for shard in &self.shards {
            let conflicts = |location: &Arc<Location>| (location.key, location.conflicts.load(Ordering::Relaxed));
            hot.extend(lock(shard).iter().map(conflicts).filter(|(_, conflicts)| *conflicts > 0));
        }
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
