//! Snapshots: the base state as chunks of at most 1 MiB, the same bytes on every node that holds the same state.
//!
//! A chunk is an array of entries in a fixed order (code by hash, accounts by address, slots by address and slot), each
//! chunk readable by itself, so chunks can be fetched from different peers and a wrong one names its sender.

use super::{
    Changes, decode_account, decode_code, decode_slots, encode_account, encode_slots, sorted_accounts, sorted_slots,
};
use crate::codec::{Reader, Writer};
use crate::error::{CoreError, Result};

const CHUNK_BYTES: usize = 1 << 20;
/// Slots of one account per entry: an entry of full words stays well below a chunk.
const SLOTS_PER_ENTRY: usize = 4096;

const CODE: u64 = 0;
const ACCOUNT: u64 = 1;
const SLOTS: u64 = 2;

struct Chunker {
    chunks: Vec<Vec<u8>>,
    entries: usize,
    body: Writer,
}

impl Chunker {
    fn push(&mut self, entry: &[u8]) {
        // Five bytes are the widest array header.
        if self.entries > 0 && self.body.len() + entry.len() + 5 > CHUNK_BYTES {
            self.cut();
        }
        self.body.encoded(entry);
        self.entries += 1;
    }

    fn cut(&mut self) {
        let body = std::mem::take(&mut self.body).finish();
        let mut chunk = Writer::with_capacity(body.len() + 5);
        chunk.array(std::mem::take(&mut self.entries)).encoded(&body);
        self.chunks.push(chunk.finish());
    }
}

pub fn write_snapshot(state: &Changes) -> Vec<Vec<u8>> {
    let mut chunker = Chunker { chunks: Vec::new(), entries: 0, body: Writer::new() };
    let mut codes: Vec<_> = state.codes.iter().collect();
    codes.sort_unstable_by_key(|(hash, _)| **hash);
    for (_, code) in codes {
        let mut entry = Writer::new();
        entry.array(2).uint(CODE).bytes(code.original_byte_slice());
        chunker.push(&entry.finish());
    }
    for (address, account) in sorted_accounts(&state.accounts) {
        let mut entry = Writer::new();
        entry.array(2).uint(ACCOUNT);
        encode_account(&mut entry, address, account.as_ref());
        chunker.push(&entry.finish());
    }
    let mut storage: Vec<_> = state.storage.iter().collect();
    storage.sort_unstable_by_key(|(address, _)| **address);
    for (address, slots) in storage {
        for part in sorted_slots(slots).chunks(SLOTS_PER_ENTRY) {
            let mut entry = Writer::new();
            entry.array(3).uint(SLOTS).bytes(address.as_slice());
            encode_slots(&mut entry, part);
            chunker.push(&entry.finish());
        }
    }
    if chunker.entries > 0 || chunker.chunks.is_empty() {
        chunker.cut();
    }
    chunker.chunks
}

/// # Errors
/// `Malformed` when a chunk does not decode, names something twice or lacks a code that an account uses.
pub fn read_snapshot<T: AsRef<[u8]>>(chunks: &[T]) -> Result<Changes> {
    let mut state = Changes::default();
    for chunk in chunks {
        let mut reader = Reader::new(chunk.as_ref());
        for _ in 0..reader.array()? {
            read_entry(&mut reader, &mut state)?;
        }
        reader.finish()?;
    }
    let mut used = state.accounts.values().flatten().filter(|account| account.has_code());
    if let Some(account) = used.find(|account| !state.codes.contains_key(&account.code_hash)) {
        return Err(CoreError::Malformed(format!("snapshot lacks code {}", account.code_hash)));
    }
    Ok(state)
}

fn read_entry(reader: &mut Reader<'_>, state: &mut Changes) -> Result<()> {
    let twice = || CoreError::Malformed("snapshot names an entry twice".into());
    match (reader.array()?, reader.uint()?) {
        (2, CODE) => {
            let code = decode_code(reader.bytes()?)?;
            state.codes.insert(code.hash_slow(), code).map_or(Ok(()), |_| Err(twice()))
        }
        (2, ACCOUNT) => match decode_account(reader)? {
            (_, None) => Err(CoreError::Malformed("snapshot names an account that is gone".into())),
            (address, account) => state.accounts.insert(address, account).map_or(Ok(()), |_| Err(twice())),
        },
        (3, SLOTS) => {
            let slots = state.storage.entry(reader.address()?).or_default();
            for (slot, value) in decode_slots(reader)? {
                if value.is_zero() || slots.insert(slot, value).is_some() {
                    return Err(CoreError::Malformed("snapshot slot is zero or named twice".into()));
                }
            }
            Ok(())
        }
        (fields, kind) => Err(CoreError::Malformed(format!("unknown snapshot entry {kind} with {fields} fields"))),
    }
}
