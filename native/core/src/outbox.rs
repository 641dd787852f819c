//! What a block sends (X1, X3): sequence numbers per link, a root per link, one root over all links.

use std::collections::BTreeMap;

use alloy_primitives::{B256, U256};

use crate::codec::Writer;
use crate::error::{CoreError, Result};
use crate::merkle::merkle_root;
use crate::receipt::Receipt;

#[derive(Debug, Default)]
struct Link {
    first_seq: u64,
    receipts: Vec<Vec<u8>>,
    escrow: U256,
    bytes: u64,
}

/// Receipts in commit order, gathered while a block executes.
#[derive(Debug, Default)]
pub struct Outbox {
    links: BTreeMap<u32, Link>,
    pub receipts: Vec<Vec<u8>>,
    pub escrow: U256,
    /// Encoded size of all receipts.
    pub bytes: u64,
}

/// What `receipts` will weigh in an outbox at most; their sequence numbers are not assigned yet.
pub fn weigh(receipts: &[Receipt]) -> u64 {
    receipts.iter().map(|receipt| receipt.encode().len() as u64 + SEQUENCE_BYTES).sum()
}

/// A sequence number takes up to nine bytes, zero takes one.
const SEQUENCE_BYTES: u64 = 8;

impl Outbox {
    /// The next sequence number towards `dst`, which starts after `last_seq` of the state.
    pub fn next_seq(&self, dst: u32, last_seq: impl FnOnce() -> Result<u64>) -> Result<u64> {
        match self.links.get(&dst) {
            Some(link) => Ok(link.first_seq + link.receipts.len() as u64),
            None => Ok(last_seq()? + 1),
        }
    }

    /// Appends a receipt whose sequence number is set.
    ///
    /// # Errors
    /// `Malformed` when the sums overflow.
    pub fn push(&mut self, receipt: &Receipt) -> Result<()> {
        let escrow = receipt.escrow()?;
        let overflow = || CoreError::Malformed("escrow of an outbox exceeds 256 bits".into());
        self.escrow = self.escrow.checked_add(escrow).ok_or_else(overflow)?;
        let encoded = receipt.encode();
        let link = self.links.entry(receipt.dst).or_insert_with(|| Link { first_seq: receipt.seq, ..Link::default() });
        link.escrow = link.escrow.checked_add(escrow).ok_or_else(overflow)?;
        link.bytes += encoded.len() as u64;
        self.bytes += encoded.len() as u64;
        link.receipts.push(encoded.clone());
        self.receipts.push(encoded);
        Ok(())
    }

    /// (destination, last sequence number) of every link used.
    pub fn last_seqs(&self) -> impl Iterator<Item = (u32, u64)> {
        self.links.iter().map(|(dst, link)| (*dst, link.first_seq + link.receipts.len() as u64 - 1))
    }

    /// (outbox root, the encoded list of its entries): [dst, first seq, last seq, link root, count, escrow, bytes].
    pub fn commit(&self) -> (B256, Vec<u8>) {
        let entries: Vec<Vec<u8>> = self.links.iter().map(|(dst, link)| link.entry(*dst)).collect();
        let mut list = Writer::new();
        list.array(entries.len());
        entries.iter().for_each(|entry| {
            list.encoded(entry);
        });
        (merkle_root(&entries), list.finish())
    }
}

impl Link {
    fn entry(&self, dst: u32) -> Vec<u8> {
        let count = self.receipts.len() as u64;
        let mut writer = Writer::with_capacity(96);
        writer.array(7).uint(dst.into()).uint(self.first_seq).uint(self.first_seq + count - 1);
        writer.bytes(merkle_root(&self.receipts).as_slice()).uint(count).u256(&self.escrow).uint(self.bytes);
        writer.finish()
    }
}
