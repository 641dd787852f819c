//! A list in RLP. Its bytes have one form: whatever decodes encodes to the same bytes again.

use alloy_primitives::{Address, Bytes, U256};
use alloy_rlp::{Decodable, Encodable, Header};
use rayon::prelude::*;
use smallvec::SmallVec;

use super::{AccessList, AccountAccess, Changes};
use crate::error::{CoreError, Result};

/// No list is longer: more than any block's gas can fill.
pub const MAX_ACCESS_LIST_BYTES: usize = 1 << 28;
/// Elements that one worker reads at once.
const READ_AT_ONCE: usize = 256;
/// A list of nothing.
pub(super) const EMPTY_LIST: u8 = 0xc0;
/// No code is longer (EIP-170), nor a delegation.
const MAX_CODE_BYTES: usize = 24_576;

/// Appends a list whose elements `body` appends.
pub(super) fn list<T>(out: &mut Vec<u8>, body: impl FnOnce(&mut Vec<u8>) -> T) -> T {
    let start = out.len();
    // Most lists are short, and their header is one byte.
    out.push(EMPTY_LIST);
    let given = body(out);
    let payload_length = out.len() - start - 1;
    if payload_length < 56 {
        out[start] += payload_length as u8;
        return given;
    }
    let mut header = Vec::with_capacity(9);
    Header { list: true, payload_length }.encode(&mut header);
    out.splice(start..=start, header);
    given
}

/// Appends what a location holds from an index on.
pub(super) fn change<T: Encodable>(out: &mut Vec<u8>, index: u32, value: &T) {
    list(out, |out| {
        index.encode(out);
        value.encode(out);
    });
}

fn changes<T: Encodable>(out: &mut Vec<u8>, changes: &[(u32, T)]) {
    list(out, |out| changes.iter().for_each(|(index, value)| change(out, *index, value)));
}

impl AccountAccess {
    fn encode(&self, out: &mut Vec<u8>) {
        list(out, |out| {
            self.address.encode(out);
            list(out, |out| {
                for (slot, values) in &self.storage_changes {
                    list(out, |out| {
                        slot.encode(out);
                        changes(out, values);
                    });
                }
            });
            list(out, |out| self.storage_reads.iter().for_each(|slot| slot.encode(out)));
            changes(out, &self.balance_changes);
            changes(out, &self.nonce_changes);
            changes(out, &self.code_changes);
        });
    }
}

/// Puts encoded accounts into one list.
pub(super) fn join(parts: &[Vec<u8>]) -> Vec<u8> {
    let payload_length = parts.iter().map(Vec::len).sum();
    let mut out = Vec::with_capacity(payload_length + 9);
    Header { list: true, payload_length }.encode(&mut out);
    parts.iter().for_each(|part| out.extend_from_slice(part));
    out
}

pub fn encode(accounts: &AccessList) -> Vec<u8> {
    let mut out = Vec::new();
    accounts.accounts.iter().for_each(|account| account.encode(&mut out));
    join(&[out])
}

fn malformed(reason: impl std::fmt::Display) -> CoreError {
    CoreError::Malformed(format!("access list: {reason}"))
}

/// The elements of a list.
fn elements<'a>(bytes: &mut &'a [u8]) -> Result<&'a [u8]> {
    Header::decode_bytes(bytes, true).map_err(malformed)
}

fn value<T: Decodable>(bytes: &mut &[u8]) -> Result<T> {
    T::decode(bytes).map_err(malformed)
}

/// A list of at least one change, indices ascending and no higher than `last`.
fn read_changes<T>(mut bytes: &[u8], last: u32, mut read: impl FnMut(&mut &[u8]) -> Result<T>) -> Result<Changes<T>> {
    let mut changes: Changes<T> = SmallVec::new();
    while !bytes.is_empty() {
        let mut pair = elements(&mut bytes)?;
        let index: u32 = value(&mut pair)?;
        let changed = read(&mut pair)?;
        end(pair)?;
        if index > last || changes.last().is_some_and(|(before, _)| *before >= index) {
            return Err(malformed(format!("index {index} is out of order, or beyond the block's last, {last}")));
        }
        changes.push((index, changed));
    }
    Ok(changes)
}

fn end(rest: &[u8]) -> Result<()> {
    if rest.is_empty() { Ok(()) } else { Err(malformed(format!("{} bytes too many", rest.len()))) }
}

fn read_code(bytes: &mut &[u8]) -> Result<Bytes> {
    let code = Header::decode_bytes(bytes, false).map_err(malformed)?;
    if code.len() > MAX_CODE_BYTES {
        return Err(malformed(format!("code of {} bytes, expected {MAX_CODE_BYTES} at most", code.len())));
    }
    Ok(Bytes::copy_from_slice(code))
}

/// Reads every element of a list; shared among the workers of the pool it is called in, if there are any.
fn read_each<'a, T: Send>(
    mut bytes: &'a [u8],
    has_workers: bool,
    read: impl Fn(&'a [u8]) -> Result<T> + Sync + Send,
) -> Result<Vec<T>> {
    let mut found = Vec::new();
    while !bytes.is_empty() {
        found.push(elements(&mut bytes)?);
    }
    if has_workers && found.len() > READ_AT_ONCE {
        return found.into_par_iter().with_min_len(READ_AT_ONCE).map(read).collect();
    }
    found.into_iter().map(read).collect()
}

fn read_slot(mut pair: &[u8], last: u32) -> Result<(U256, Changes<U256>)> {
    let slot: U256 = value(&mut pair)?;
    let changes = read_changes(elements(&mut pair)?, last, value)?;
    end(pair)?;
    if changes.is_empty() {
        return Err(malformed(format!("slot {slot} has no change")));
    }
    Ok((slot, changes))
}

fn read_account(mut bytes: &[u8], last: u32, has_workers: bool) -> Result<AccountAccess> {
    let mut account = AccountAccess { address: value::<Address>(&mut bytes)?, ..AccountAccess::default() };
    let address = account.address;
    account.storage_changes = read_each(elements(&mut bytes)?, has_workers, |slot| read_slot(slot, last))?;
    if let Some(pair) = account.storage_changes.windows(2).find(|pair| pair[0].0 >= pair[1].0) {
        return Err(malformed(format!("slot {} of {address} is out of order", pair[1].0)));
    }
    let mut reads = elements(&mut bytes)?;
    while !reads.is_empty() {
        let slot: U256 = value(&mut reads)?;
        let is_changed = account.storage_changes.binary_search_by_key(&slot, |(slot, _)| *slot).is_ok();
        if is_changed || account.storage_reads.last().is_some_and(|before| *before >= slot) {
            return Err(malformed(format!("read of slot {slot} of {address} is out of order, or also a change")));
        }
        account.storage_reads.push(slot);
    }
    account.balance_changes = read_changes(elements(&mut bytes)?, last, value)?;
    account.nonce_changes = read_changes(elements(&mut bytes)?, last, value)?;
    account.code_changes = read_changes(elements(&mut bytes)?, last, read_code)?;
    end(bytes)?;
    Ok(account)
}

/// Reads a list of a block whose last index is `last`; shared among the workers of the pool it is called in, if there are
/// any.
///
/// # Errors
/// `Malformed` when the bytes are not the one form of any list.
pub fn decode(mut bytes: &[u8], last: u32, has_workers: bool) -> Result<AccessList> {
    if bytes.len() > MAX_ACCESS_LIST_BYTES {
        return Err(malformed(format!("{} bytes, expected {MAX_ACCESS_LIST_BYTES} at most", bytes.len())));
    }
    let rest = elements(&mut bytes)?;
    end(bytes)?;
    let accounts = read_each(rest, has_workers, |account| read_account(account, last, has_workers))?;
    if let Some(pair) = accounts.windows(2).find(|pair| pair[0].address >= pair[1].address) {
        return Err(malformed(format!("{} is out of order", pair[1].address)));
    }
    Ok(AccessList { accounts })
}

#[cfg(test)]
mod tests {
    use smallvec::smallvec;

    use super::*;

    fn sample() -> AccessList {
        let account = |byte: u8| AccountAccess {
            address: Address::repeat_byte(byte),
            storage_changes: vec![
                (U256::ZERO, smallvec![(1, U256::from(7)), (300, U256::ZERO)]),
                (U256::MAX, smallvec![(0, U256::MAX)]),
            ],
            storage_reads: vec![U256::from(3), U256::from(200)],
            balance_changes: smallvec![(2, U256::from(1_u64 << 40))],
            nonce_changes: smallvec![(1, 1), (2, 2)],
            code_changes: smallvec![(9, Bytes::new()), (10, Bytes::from(vec![0x60; 70]))],
        };
        let read = AccountAccess { address: Address::repeat_byte(2), ..AccountAccess::default() };
        AccessList { accounts: vec![account(1), read, account(3)] }
    }

    #[test]
    fn what_is_encoded_decodes_to_the_same() {
        for list in [AccessList::default(), sample()] {
            assert_eq!(decode(&encode(&list), 300, false), Ok(list));
        }
        assert_eq!(encode(&AccessList::default()), [0xc0]);
    }

    #[test]
    fn an_account_has_the_six_fields_of_the_eip() {
        let account =
            AccountAccess { address: Address::ZERO, nonce_changes: smallvec![(1, 5)], ..AccountAccess::default() };
        let mut expected = vec![0xde, 0xdd, 0x94];
        expected.extend([0; 20]);
        expected.extend([0xc0, 0xc0, 0xc0, 0xc3, 0xc2, 1, 5, 0xc0]);
        expected[0] = 0xc0 + (expected.len() as u8 - 1);
        expected[1] = 0xc0 + (expected.len() as u8 - 2);
        assert_eq!(encode(&AccessList { accounts: vec![account] }), expected);
    }

    #[test]
    fn whatever_decodes_encodes_to_the_same_bytes() {
        let good = encode(&sample());
        for place in 0..good.len() {
            for flip in [1_u8, 0x40, 0x80, 0xff] {
                let mut bytes = good.clone();
                bytes[place] ^= flip;
                if let Ok(list) = decode(&bytes, 300, false) {
                    assert_eq!(encode(&list), bytes, "byte {place} flipped by {flip}");
                }
            }
            assert!(decode(&good[..place], 300, false).is_err(), "cut at {place}");
        }
        assert!(decode(&[good, vec![0]].concat(), 300, false).is_err(), "a byte too many");
    }

    #[test]
    fn other_forms_of_a_list_are_refused() {
        let spoil = |change: fn(&mut AccessList)| {
            let mut list = sample();
            change(&mut list);
            assert!(matches!(decode(&encode(&list), 300, false), Err(CoreError::Malformed(_))));
        };
        spoil(|list| list.accounts.swap(0, 1));
        spoil(|list| list.accounts[1].address = Address::repeat_byte(1));
        spoil(|list| list.accounts[0].storage_changes.swap(0, 1));
        spoil(|list| list.accounts[0].storage_changes[0].1.clear());
        spoil(|list| list.accounts[0].storage_changes[0].1[1].0 = 301);
        spoil(|list| list.accounts[0].storage_reads[0] = U256::ZERO);
        spoil(|list| list.accounts[0].storage_reads.swap(0, 1));
        spoil(|list| list.accounts[0].nonce_changes[1].0 = 1);
        spoil(|list| list.accounts[0].code_changes[1].1 = vec![0; MAX_CODE_BYTES + 1].into());
    }

    #[test]
    fn hostile_bytes_are_refused_without_a_panic() {
        let mut dice = 1_u64;
        for length in 0..400 {
            let mut bytes: Vec<u8> = (0..length)
                .map(|_| {
                    dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    (dice >> 56) as u8
                })
                .collect();
            let _ = decode(&bytes, 9, false);
            bytes.splice(0..0, [0xfb, 0xff, 0xff, 0xff, 0xff]);
            assert!(decode(&bytes, 9, false).is_err());
        }
        assert!(decode(&vec![0xc1; 100_000], 9, false).is_err(), "nested without end");
    }

    #[test]
    fn workers_read_what_one_reads() {
        let workers = rayon::ThreadPoolBuilder::new().num_threads(3).build().expect("threads");
        let mut list = sample();
        list.accounts[0].storage_changes =
            (0..2000).map(|slot| (U256::from(slot), smallvec![(1, U256::MAX)])).collect();
        list.accounts[0].storage_reads.clear();
        let bytes = encode(&list);
        assert_eq!(workers.install(|| decode(&bytes, 300, true)), Ok(list.clone()));
        list.accounts[0].storage_changes.swap(1400, 1401);
        let bytes = encode(&list);
        assert_eq!(workers.install(|| decode(&bytes, 300, true)), decode(&bytes, 300, false));
        assert!(decode(&bytes, 300, false).is_err());
    }
}
