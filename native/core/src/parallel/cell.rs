//! What lies at one location of a block: the value committed so far, the versions in flight, and who was there.

use std::sync::Mutex;

use super::marks::Marks;
use super::memory::{Delta, First, Found, Stamp, Value, Written};
use crate::error::Result;
use crate::state::Account;

#[derive(Debug, Clone, Copy)]
pub enum Version {
    Written(Written),
    Estimate(Option<Value>),
}

#[derive(Debug)]
pub struct Entry {
    pub stamp: Stamp,
    pub version: Version,
}

/// Small, because a block touches many: what few of them need lies apart.
#[derive(Debug, Default)]
pub struct Cell {
    /// The block that it is of, among those that had these cells.
    pub block: u32,
    /// The committed value; none until somebody asks.
    pub present: Option<Value>,
    pub stamp: Stamp,
    /// Something was committed here, and the value before the block is with whoever did that.
    pub is_changed: bool,
    /// Which tasks of the present window of lanes were here.
    pub marks: Marks,
    speculation: Option<Box<Speculation>>,
}

/// Three lines of the cache with the key that stands before it.
const _: () = assert!(std::mem::size_of::<Mutex<Cell>>() <= 136, "a cell has grown");

#[derive(Debug, Default)]
struct Speculation {
    flight: Vec<Entry>,
    /// How many executions were aborted because this location had changed.
    conflicts: u32,
}

/// A sum of changes in flight need not make sense: a debit may be seen before the credit that covers it. Whoever reads
/// nonsense is validated against the committed value before it can matter.
fn changed(value: Value, delta: &Delta) -> Value {
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

impl Cell {
    pub fn of_block(block: u32) -> Self {
        Self { block, ..Self::default() }
    }

    pub fn present(&mut self, base: impl FnOnce() -> Result<Value>) -> Result<Value> {
        match self.present {
            Some(value) => Ok(value),
            None => Ok(*self.present.insert(base()?)),
        }
    }

    pub fn flight(&self) -> &[Entry] {
        self.speculation.as_ref().map_or(&[], |speculation| &speculation.flight)
    }

    pub fn flight_mut(&mut self) -> &mut Vec<Entry> {
        &mut self.speculation.get_or_insert_default().flight
    }

    /// Counts an execution that was thrown away because of this location; whether it is the first.
    pub fn blame(&mut self) -> bool {
        let conflicts = &mut self.speculation.get_or_insert_default().conflicts;
        *conflicts += 1;
        *conflicts == 1
    }

    /// Makes a value the committed one.
    pub fn settle(&mut self, location: u32, stamp: Stamp, present: Value, after: Value, firsts: &mut Vec<First>) {
        if !self.is_changed {
            self.is_changed = true;
            firsts.push((location, present));
        }
        (self.stamp, self.present) = (stamp, Some(after));
    }

    /// The value that the item `index` sees.
    pub fn read(&mut self, index: u32, base: impl FnOnce() -> Result<Value>) -> Result<Found> {
        let mut later: Option<Delta> = None;
        for entry in self.flight().iter().rev().filter(|entry| entry.stamp.index < index) {
            match &entry.version {
                Version::Estimate(_) => return Ok(Found::Blocked(entry.stamp.index)),
                Version::Written(Written::Value(value)) => {
                    return Ok(match later {
                        Some(later) => Found::Value(changed(*value, &later), None),
                        None => Found::Value(*value, Some(entry.stamp)),
                    });
                }
                Version::Written(Written::Delta(delta)) => later.get_or_insert_default().merge(delta),
            }
        }
        let value = self.present(base)?;
        Ok(match later {
            Some(later) => Found::Value(changed(value, &later), None),
            None => Found::Value(value, Some(self.stamp)),
        })
    }

    pub fn place(&self, index: u32) -> Result<usize, usize> {
        self.flight().binary_search_by_key(&index, |entry| entry.stamp.index)
    }

    /// Executions that were thrown away because of this location.
    pub fn conflicts(&self) -> u32 {
        self.speculation.as_ref().map_or(0, |speculation| speculation.conflicts)
    }
}
