//! The list made of what was logged.
//!
//! Every location is encoded by itself first, in the order of the numbers, where what belongs to neighbours lies together
//! in memory; then the locations are sorted, and the list is put together from the pieces. Who changed a value and put it
//! back within one item is found out here, so engines need not agree on what they write down.

use alloy_primitives::{Address, B256, Bytes, U256};
use alloy_rlp::{Encodable, Header, length_of_length};
use rayon::prelude::*;
use smallvec::SmallVec;

use super::encoding::{EMPTY_LIST, change, join, list};
use super::log::{AccessLog, Change, Places};
use crate::error::Result;
use crate::parallel::Value;
use crate::state::{Account, Key};

/// Numbers of locations that one worker encodes at once.
const LOCATIONS_AT_ONCE: u32 = 1024;
/// Locations of whole accounts that one worker lays out at once.
const LAID_OUT_AT_ONCE: usize = 2048;
/// An address in RLP.
const ADDRESS_BYTES: usize = 21;
/// A header in RLP is at most so long, where what it heads is shorter than 4 GiB.
const MAX_HEAD_BYTES: usize = 5;

/// What a location was changed to, by index; mostly once.
type Changed = SmallVec<[(u32, Value); 1]>;

/// Every change of a block, by location and then by index.
struct Sorted<'a> {
    changes: Vec<&'a Change>,
    /// Where each location's begin.
    starts: Vec<u32>,
}

impl<'a> Sorted<'a> {
    fn of(log: &'a AccessLog, count: usize) -> Self {
        let all = || log.changes.iter().flatten();
        let mut starts = vec![0_u32; count + 2];
        all().for_each(|change| starts[change.location as usize + 2] += 1);
        for location in 2..starts.len() {
            starts[location] += starts[location - 1];
        }
        let (mut changes, mut next) = (all().collect::<Vec<_>>(), starts);
        for change in all() {
            let place = &mut next[change.location as usize + 1];
            changes[*place as usize] = change;
            *place += 1;
        }
        // Lanes leave their changes task by task.
        let mut sorted = Self { changes, starts: next };
        for location in 0..count {
            let (start, end) = (sorted.starts[location] as usize, sorted.starts[location + 1] as usize);
            let changes = &mut sorted.changes[start..end];
            if changes.len() > 1 && !changes.is_sorted_by_key(|change| change.index) {
                changes.sort_by_key(|change| change.index);
            }
        }
        sorted
    }

    fn at(&self, location: u32) -> &[&'a Change] {
        &self.changes[self.starts[location as usize] as usize..self.starts[location as usize + 1] as usize]
    }
}

/// Adds to the beneficiary's logged values what they lack.
fn with_fees(base: Value, changes: &[&Change], fees: &[(u32, U256)]) -> Changed {
    let mut indices: Vec<u32> =
        changes.iter().map(|change| change.index).chain(fees.iter().map(|(index, _)| *index)).collect();
    indices.sort_unstable();
    indices.dedup();
    let upto = |index: u32| changes.partition_point(|change| change.index <= index);
    let owed = |index: u32| fees.partition_point(|(owed, _)| *owed <= index);
    let full = indices.into_iter().map(|index| {
        let value = upto(index).checked_sub(1).map_or(base, |last| changes[last].value);
        let fees = owed(index).checked_sub(1).map_or(U256::ZERO, |last| fees[last].1);
        let Value::Account(account) = value else { return (index, value) };
        let account = account.unwrap_or_default();
        let account = Account { balance: account.balance.saturating_add(fees), ..account };
        (index, Value::Account(Some(account).filter(|account| !account.is_empty())))
    });
    full.collect()
}

/// Appends the list of the states of one field after each index that changed it; whether there is any.
fn push_net<T: PartialEq + Copy>(
    out: &mut Vec<u8>,
    before: T,
    values: impl Iterator<Item = (u32, T)>,
    mut push: impl FnMut(&mut Vec<u8>, u32, T) -> Result<()>,
) -> Result<bool> {
    let (mut present, mut has_changed) = (before, false);
    let mut values = values.peekable();
    list(out, |out| {
        while let Some((index, value)) = values.next() {
            // Of one index the last counts.
            if values.peek().is_some_and(|(next, _)| *next == index) || value == present {
                continue;
            }
            (present, has_changed) = (value, true);
            push(out, index, value)?;
        }
        Ok(has_changed)
    })
}

fn push_change<T: Encodable>(out: &mut Vec<u8>, index: u32, value: T) -> Result<()> {
    change(out, index, &value);
    Ok(())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// The account itself: its balances, nonces and codes.
    Account,
    Change,
    Read,
}

/// Bytes of the list, in one of the buffers that workers filled.
#[derive(Debug, Clone, Copy)]
struct Piece {
    buffer: u32,
    start: u32,
    length: u32,
}

/// A location that stands in the list.
#[derive(Debug, Clone, Copy)]
struct Listed {
    /// The address as numbers, so that it compares as they do.
    address: (u64, u64, u32),
    /// The upper part of the slot: it mostly tells the order.
    slot: u64,
    location: u32,
    kind: Kind,
    piece: Piece,
}

impl Listed {
    fn new(key: &Key, location: u32, kind: Kind, piece: Piece) -> Self {
        let (Key::Account(address) | Key::Slot(address, _)) = key;
        let word = |at: usize| u64::from_be_bytes(std::array::from_fn(|byte| address[at + byte]));
        let rest = u32::from_be_bytes(std::array::from_fn(|byte| address[16 + byte]));
        let slot = if let Key::Slot(_, slot) = key { slot.as_limbs()[3] } else { 0 };
        Self { address: (word(0), word(8), rest), slot, location, kind, piece }
    }

    fn address(&self) -> Address {
        let (first, second, rest) = self.address;
        let mut bytes = [0; 20];
        bytes[..8].copy_from_slice(&first.to_be_bytes());
        bytes[8..16].copy_from_slice(&second.to_be_bytes());
        bytes[16..].copy_from_slice(&rest.to_be_bytes());
        Address::new(bytes)
    }
}

struct Builder<'a, P> {
    has_workers: bool,
    log: &'a AccessLog,
    is_touched: Vec<bool>,
    places: &'a P,
    sorted: Sorted<'a>,
    /// The beneficiary's number, if it earned anything.
    paid: Option<u32>,
}

impl<P: Places> Builder<'_, P> {
    fn build(&self, count: u32) -> Result<Vec<u8>> {
        let encode = |number: u32| self.encode_some(number, count);
        let parts = 0..count.div_ceil(LOCATIONS_AT_ONCE);
        let encoded: Vec<(Vec<u8>, Vec<Listed>)> = if self.has_workers {
            parts.into_par_iter().map(encode).collect::<Result<_>>()?
        } else {
            parts.map(encode).collect::<Result<_>>()?
        };
        let mut all: Vec<Listed> = Vec::with_capacity(encoded.iter().map(|(_, listed)| listed.len()).sum());
        encoded.iter().for_each(|(_, listed)| all.extend_from_slice(listed));
        let buffers: Vec<Vec<u8>> = encoded.into_iter().map(|(bytes, _)| bytes).collect();
        self.sort(&mut all);
        let accounts: Vec<&[Listed]> = whole_accounts(&all).collect();
        let lay_out = |listed: &&[Listed]| self.lay_out(&buffers, listed);
        let laid_out: Vec<Vec<u8>> = if self.has_workers {
            accounts.par_iter().map(lay_out).collect::<Result<_>>()?
        } else {
            accounts.iter().map(lay_out).collect::<Result<_>>()?
        };
        Ok(join(&laid_out))
    }

    /// Encodes some locations, each by itself.
    fn encode_some(&self, number: u32, count: u32) -> Result<(Vec<u8>, Vec<Listed>)> {
        let start = number * LOCATIONS_AT_ONCE;
        let locations = start..count.min(start + LOCATIONS_AT_ONCE);
        let mut listed: Vec<Listed> = Vec::with_capacity(locations.len());
        let mut bytes = Vec::with_capacity(48 * locations.len());
        for location in locations {
            let is_touched = self.is_touched[location as usize];
            let changes = self.sorted.at(location);
            // Only what was logged is asked for: some numbers below the highest may stand for nothing.
            if !is_touched && changes.is_empty() && self.paid != Some(location) {
                continue;
            }
            let (key, from) = (self.places.key(location), bytes.len());
            let kind = match key {
                Key::Account(_) if self.push_account(&mut bytes, location, changes)? || is_touched => Kind::Account,
                Key::Slot(_, slot) if self.push_slot(&mut bytes, location, slot, changes)? => Kind::Change,
                Key::Slot(_, slot) if is_touched => {
                    bytes.truncate(from);
                    slot.encode(&mut bytes);
                    Kind::Read
                }
                _ => {
                    bytes.truncate(from);
                    continue;
                }
            };
            let piece = Piece { buffer: number, start: from as u32, length: (bytes.len() - from) as u32 };
            listed.push(Listed::new(&key, location, kind, piece));
        }
        Ok((bytes, listed))
    }

    /// Appends a slot with its changes; whether there are any.
    fn push_slot(&self, out: &mut Vec<u8>, location: u32, slot: U256, changes: &[&Change]) -> Result<bool> {
        if changes.is_empty() {
            return Ok(false);
        }
        let word = |value: &Value| if let Value::Slot(word) = value { *word } else { U256::ZERO };
        let before = word(&self.places.parent(location)?);
        list(out, |out| {
            slot.encode(out);
            push_net(out, before, changes.iter().map(|change| (change.index, word(&change.value))), push_change)
        })
    }

    /// Appends balances, nonces and codes of an account; whether any changed.
    fn push_account(&self, out: &mut Vec<u8>, location: u32, changes: &[&Change]) -> Result<bool> {
        let is_paid = self.paid == Some(location);
        if changes.is_empty() && !is_paid {
            out.extend([EMPTY_LIST; 3]);
            return Ok(false);
        }
        let before = self.places.parent(location)?;
        if is_paid {
            let changed = with_fees(before, changes, &self.log.fees);
            return self.push_changed(out, before, || changed.iter().map(|(index, value)| (*index, value)));
        }
        self.push_changed(out, before, || changes.iter().map(|change| (change.index, &change.value)))
    }

    fn push_changed<'v, I: Iterator<Item = (u32, &'v Value)>>(
        &self,
        out: &mut Vec<u8>,
        before: Value,
        values: impl Fn() -> I,
    ) -> Result<bool> {
        fn account(value: &Value) -> Account {
            if let Value::Account(account) = value { *account } else { None }.unwrap_or_default()
        }
        let before = account(&before);
        let fields = |field: fn(&Account) -> U256| values().map(move |(index, value)| (index, field(&account(value))));
        let is_paid = push_net(out, before.balance, fields(|account| account.balance), push_change)?;
        let nonces = values().map(|(index, value)| (index, account(value).nonce));
        let is_used = push_net(out, before.nonce, nonces, push_change)?;
        let hashes = values().map(|(index, value)| (index, account(value).code_hash));
        let is_recoded =
            push_net(out, before.code_hash, hashes, |out, index, hash| push_change(out, index, self.code(&hash)?))?;
        Ok(is_paid || is_used || is_recoded)
    }

    fn code(&self, hash: &B256) -> Result<Bytes> {
        if *hash == Account::default().code_hash {
            return Ok(Bytes::new());
        }
        Ok(Bytes::copy_from_slice(self.places.code(hash)?.original_byte_slice()))
    }

    fn sort(&self, listed: &mut [Listed]) {
        // An account's own key comes before those of its slots.
        let slot = |listed: &Listed| match self.places.key(listed.location) {
            Key::Account(_) => None,
            Key::Slot(_, slot) => Some(slot),
        };
        let order =
            |a: &Listed, b: &Listed| (a.address, a.slot).cmp(&(b.address, b.slot)).then_with(|| slot(a).cmp(&slot(b)));
        if self.has_workers { listed.par_sort_unstable_by(order) } else { listed.sort_unstable_by(order) }
    }

    /// Puts whole accounts together from their pieces.
    fn lay_out(&self, buffers: &[Vec<u8>], listed: &[Listed]) -> Result<Vec<u8>> {
        let bytes: usize = listed.iter().map(|listed| listed.piece.length as usize).sum();
        let accounts = || listed.chunk_by(|a, b| a.address == b.address);
        let mut out = Vec::with_capacity(bytes + accounts().count() * (ADDRESS_BYTES + 3 * MAX_HEAD_BYTES));
        for account in accounts() {
            self.push_listed(&mut out, buffers, account)?;
        }
        Ok(out)
    }

    /// Appends an account of which something is listed.
    fn push_listed(&self, out: &mut Vec<u8>, buffers: &[Vec<u8>], listed: &[Listed]) -> Result<()> {
        let of = |kind: Kind| listed.iter().filter(move |listed| listed.kind == kind).map(|listed| listed.piece);
        let length = |kind: Kind| of(kind).map(|piece| piece.length as usize).sum::<usize>();
        let (changes, mut reads) = (length(Kind::Change), length(Kind::Read));
        // What an account holds that the block itself gave its code, EVMs do not ask the state for.
        if reads > 0 && !self.has_code(listed[0].address())? {
            reads = 0;
        }
        let bytes = |piece: Piece| {
            let start = piece.start as usize;
            &buffers[piece.buffer as usize][start..start + piece.length as usize]
        };
        let fields = of(Kind::Account).next().map_or(&[EMPTY_LIST; 3][..], bytes);
        let whole = |payload: usize| payload + length_of_length(payload);
        let head = |out: &mut Vec<u8>, payload_length: usize| Header { list: true, payload_length }.encode(out);
        head(out, ADDRESS_BYTES + whole(changes) + whole(reads) + fields.len());
        listed[0].address().encode(out);
        head(out, changes);
        of(Kind::Change).for_each(|piece| out.extend_from_slice(bytes(piece)));
        head(out, reads);
        if reads > 0 {
            of(Kind::Read).for_each(|piece| out.extend_from_slice(bytes(piece)));
        }
        out.extend_from_slice(fields);
        Ok(())
    }

    fn has_code(&self, address: Address) -> Result<bool> {
        Ok(self.places.parent_account(&address)?.is_some_and(|account| account.has_code()))
    }
}

/// Cuts what is sorted into runs of whole accounts.
fn whole_accounts(listed: &[Listed]) -> impl Iterator<Item = &[Listed]> {
    let mut rest = listed;
    std::iter::from_fn(move || {
        let least = LAID_OUT_AT_ONCE.min(rest.len());
        let last = rest.get(least.checked_sub(1)?)?;
        let more = rest[least..].partition_point(|listed| listed.address == last.address);
        let (run, left) = rest.split_at(least + more);
        rest = left;
        Some(run)
    })
}

/// The list of what was logged, encoded; shared among the workers of the pool it is called in, if there are any.
///
/// # Errors
/// Those of reading the state before the block.
pub fn build<P: Places>(log: &AccessLog, places: &P, beneficiary: Address, has_workers: bool) -> Result<Vec<u8>> {
    let is_paid = log.fees.iter().any(|(_, fees)| !fees.is_zero());
    let paid = if is_paid { places.find(&beneficiary)? } else { None };
    let count = places.count();
    let sorted = Sorted::of(log, count as usize);
    let mut is_touched = vec![false; count as usize];
    log.touched.iter().flatten().for_each(|location| is_touched[*location as usize] = true);
    Builder { has_workers, log, is_touched, places, sorted, paid }.build(count)
}

#[cfg(test)]
mod tests;
