//! A list in RLP. Its bytes have one form: whatever decodes encodes to the same bytes again.

use alloy_primitives::{Address, Bytes, U256};
use alloy_rlp::{Decodable, Encodable, Header};

use super::{AccessList, AccountAccess, Changes};
use crate::error::{CoreError, Result};

/// No list is longer: more than any block's gas can fill.
pub const MAX_ACCESS_LIST_BYTES: usize = 1 << 28;
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
    let mut changes: Changes<T> = Vec::new();
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

fn read_account(mut bytes: &[u8], last: u32) -> Result<AccountAccess> {
    let mut account = AccountAccess { address: value::<Address>(&mut bytes)?, ..AccountAccess::default() };
    let address = account.address;
    let mut slots = elements(&mut bytes)?;
    while !slots.is_empty() {
        let mut pair = elements(&mut slots)?;
        let slot: U256 = value(&mut pair)?;
        let changes = read_changes(elements(&mut pair)?, last, value)?;
        end(pair)?;
        if changes.is_empty() || account.storage_changes.last().is_some_and(|(before, _)| *before >= slot) {
            return Err(malformed(format!("slot {slot} of {address} is out of order, or has no change")));
        }
        account.storage_changes.push((slot, changes));
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

/// Reads a list of a block whose last index is `last`.
///
/// # Errors
/// `Malformed` when the bytes are not the one form of any list.
pub fn decode(mut bytes: &[u8], last: u32) -> Result<AccessList> {
    if bytes.len() > MAX_ACCESS_LIST_BYTES {
        return Err(malformed(format!("{} bytes, expected {MAX_ACCESS_LIST_BYTES} at most", bytes.len())));
    }
    let mut rest = elements(&mut bytes)?;
    end(bytes)?;
    let mut found = AccessList::default();
    while !rest.is_empty() {
        let account = read_account(elements(&mut rest)?, last)?;
        if found.accounts.last().is_some_and(|before| before.address >= account.address) {
            return Err(malformed(format!("{} is out of order", account.address)));
        }
        found.accounts.push(account);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> AccessList {
        let account = |byte: u8| AccountAccess {
            address: Address::repeat_byte(byte),
            storage_changes: vec![
                (U256::ZERO, vec![(1, U256::from(7)), (300, U256::ZERO)]),
                (U256::MAX, vec![(0, U256::MAX)]),
            ],
            storage_reads: vec![U256::from(3), U256::from(200)],
            balance_changes: vec![(2, U256::from(1_u64 << 40))],
            nonce_changes: vec![(1, 1), (2, 2)],
            code_changes: vec![(9, Bytes::new()), (10, Bytes::from(vec![0x60; 70]))],
        };
        let read = AccountAccess { address: Address::repeat_byte(2), ..AccountAccess::default() };
        AccessList { accounts: vec![account(1), read, account(3)] }
    }

    #[test]
    fn what_is_encoded_decodes_to_the_same() {
        for list in [AccessList::default(), sample()] {
            assert_eq!(decode(&encode(&list), 300), Ok(list));
        }
        assert_eq!(encode(&AccessList::default()), [0xc0]);
    }

    #[test]
    fn an_account_has_the_six_fields_of_the_eip() {
        let account = AccountAccess { address: Address::ZERO, nonce_changes: vec![(1, 5)], ..AccountAccess::default() };
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
                if let Ok(list) = decode(&bytes, 300) {
                    assert_eq!(encode(&list), bytes, "byte {place} flipped by {flip}");
                }
            }
            assert!(decode(&good[..place], 300).is_err(), "cut at {place}");
        }
        assert!(decode(&[good, vec![0]].concat(), 300).is_err(), "a byte too many");
    }

    #[test]
    fn other_forms_of_a_list_are_refused() {
        let spoil = |change: fn(&mut AccessList)| {
            let mut list = sample();
            change(&mut list);
            assert!(matches!(decode(&encode(&list), 300), Err(CoreError::Malformed(_))));
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
            let _ = decode(&bytes, 9);
            bytes.splice(0..0, [0xfb, 0xff, 0xff, 0xff, 0xff]);
            assert!(decode(&bytes, 9).is_err());
        }
        assert!(decode(&vec![0xc1; 100_000], 9).is_err(), "nested without end");
    }
}
