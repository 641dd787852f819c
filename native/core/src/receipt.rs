//! Cross-shard messages, "receipts" (X1): their one encoding, their ids, and what they hold in escrow (X2).

use alloy_primitives::{Address, B256, Keccak256, U256};

use crate::codec::{Reader, Writer};
use crate::error::{CoreError, Result};

pub const VERSION: u64 = 1;
/// The beacon as an endpoint of links.
pub const BEACON: u32 = u32::MAX;
/// Chain ID of shard 0 (P1); shard i's is this plus i.
pub const FIRST_CHAIN_ID: u64 = 31_337;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Call = 1,
    Transfer = 2,
    Result = 3,
    Bounce = 4,
    Deposit = 5,
    Exit = 6,
    Govern = 7,
    Withdrawal = 8,
}

impl TryFrom<u64> for Kind {
    type Error = CoreError;

    fn try_from(value: u64) -> Result<Self> {
        Ok(match value {
            1 => Self::Call,
            2 => Self::Transfer,
            3 => Self::Result,
            4 => Self::Bounce,
            5 => Self::Deposit,
            6 => Self::Exit,
            7 => Self::Govern,
            8 => Self::Withdrawal,
            other => return Err(CoreError::Malformed(format!("receipt kind {other} is unknown"))),
        })
    }
}

/// The user transaction that a chain of messages goes back to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin {
    pub tx_hash: B256,
    pub initiator: Address,
    pub depth: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receipt {
    pub kind: Kind,
    pub src: u32,
    pub dst: u32,
    pub seq: u64,
    pub id: B256,
    pub origin: Origin,
    /// Zero for a message that answers nothing and was not sent while handling another.
    pub parent_id: B256,
    pub sender: Address,
    pub target: Address,
    pub value: U256,
    pub gas_limit: u64,
    pub gas_price: u64,
    pub reply_gas: u64,
    pub refund_to: Address,
    /// Last beacon height at which a CALL may still run; 0 for none.
    pub deadline: u64,
    pub payload: Vec<u8>,
}

impl Receipt {
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::with_capacity(320 + self.payload.len());
        writer.array(17).uint(VERSION).uint(self.kind as u64).uint(self.src.into()).uint(self.dst.into());
        writer.uint(self.seq).bytes(self.id.as_slice());
        writer.array(3).bytes(self.origin.tx_hash.as_slice());
        writer.bytes(self.origin.initiator.as_slice()).uint(self.origin.depth);
        writer.bytes(self.parent_id.as_slice());
        writer.bytes(self.sender.as_slice()).bytes(self.target.as_slice()).u256(&self.value);
        writer.uint(self.gas_limit).uint(self.gas_price).uint(self.reply_gas);
        writer.bytes(self.refund_to.as_slice()).uint(self.deadline).bytes(&self.payload);
        writer.finish()
    }

    /// # Errors
    /// `Malformed` when the bytes are not the canonical encoding of a receipt of this version.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let mut reader = Reader::new(bytes);
        reader.array_of(17)?;
        let version = reader.uint()?;
        if version != VERSION {
            return Err(CoreError::Malformed(format!("receipt version {version}, expected {VERSION}")));
        }
        let receipt = Self {
            kind: reader.uint()?.try_into()?,
            src: reader.small()?,
            dst: reader.small()?,
            seq: reader.uint()?,
            id: reader.hash()?,
            origin: {
                reader.array_of(3)?;
                Origin { tx_hash: reader.hash()?, initiator: reader.address()?, depth: reader.uint()? }
            },
            parent_id: reader.hash()?,
            sender: reader.address()?,
            target: reader.address()?,
            value: reader.u256()?,
            gas_limit: reader.uint()?,
            gas_price: reader.uint()?,
            reply_gas: reader.uint()?,
            refund_to: reader.address()?,
            deadline: reader.uint()?,
            payload: reader.bytes()?.to_vec(),
        };
        reader.finish()?;
        Ok(receipt)
    }

    /// X2: everything the message carries, out of every account of the source until it is consumed.
    ///
    /// # Errors
    /// `Malformed` when the sum does not fit 256 bits.
    pub fn escrow(&self) -> Result<U256> {
        U256::from(self.gas_limit)
            .checked_add(U256::from(self.reply_gas))
            .and_then(|gas| gas.checked_mul(U256::from(self.gas_price)))
            .and_then(|fees| fees.checked_add(self.value))
            .ok_or_else(|| CoreError::Malformed(format!("escrow of receipt {} exceeds 256 bits", self.id)))
    }
}

/// A reply's id follows from what it answers, so the sender can know it beforehand.
pub fn reply_id(parent_id: &B256) -> B256 {
    let mut hasher = Keccak256::new();
    hasher.update(b"shardyard/reply/v1");
    hasher.update(parent_id);
    hasher.finalize()
}

/// The id the gateway contract gives a first message.
pub fn message_id(src_chain_id: u64, sender: &Address, nonce: &U256) -> B256 {
    let mut hasher = Keccak256::new();
    hasher.update(b"shardyard/message/v1");
    hasher.update(U256::from(src_chain_id).to_be_bytes::<32>());
    hasher.update(sender);
    hasher.update(nonce.to_be_bytes::<32>());
    hasher.finalize()
}

/// What a reply's payload says: [ok, refund, data].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    pub ok: bool,
    /// The part of the reply's value that is unused gas of the delivery.
    pub refund: U256,
    pub data: Vec<u8>,
}

/// Return data or revert reason kept in a reply: enough for a reason, bounded for the link.
pub const MAX_REPLY_DATA: usize = 512;
/// More than a reply with that much data weighs, encoded; a test pins it.
pub const MAX_REPLY_BYTES: u64 = 1024;

impl Reply {
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::with_capacity(40 + self.data.len());
        let data = &self.data[..self.data.len().min(MAX_REPLY_DATA)];
        writer.array(3).boolean(self.ok).u256(&self.refund).bytes(data);
        writer.finish()
    }

    /// # Errors
    /// `Malformed` when the payload is not a reply.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let mut reader = Reader::new(bytes);
        reader.array_of(3)?;
        let reply = Self { ok: reader.boolean()?, refund: reader.u256()?, data: reader.bytes()?.to_vec() };
        reader.finish()?;
        Ok(reply)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub fn sample() -> Receipt {
        Receipt {
            kind: Kind::Call,
            src: 1,
            dst: 2,
            seq: 300,
            id: B256::repeat_byte(7),
            origin: Origin { tx_hash: B256::repeat_byte(8), initiator: Address::repeat_byte(9), depth: 0 },
            parent_id: B256::ZERO,
            sender: Address::repeat_byte(1),
            target: Address::repeat_byte(2),
            value: U256::from(5),
            gas_limit: 200_000,
            gas_price: 1_000_000_000,
            reply_gas: 100_000,
            refund_to: Address::repeat_byte(3),
            deadline: 0,
            payload: vec![1, 2, 3],
        }
    }

    #[test]
    fn a_receipt_survives_its_encoding_and_nothing_else_decodes_to_it() {
        let receipt = sample();
        let bytes = receipt.encode();
        assert_eq!(Receipt::decode(&bytes), Ok(receipt.clone()));
        for cut in 0..bytes.len() {
            assert!(Receipt::decode(&bytes[..cut]).is_err());
        }
        for position in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[position] ^= 0x41;
            assert_ne!(Receipt::decode(&changed), Ok(receipt.clone()));
        }
    }

    #[test]
    fn escrow_is_value_and_both_gas_allowances_and_never_wraps() {
        let mut receipt = sample();
        assert_eq!(receipt.escrow(), Ok(U256::from(5_u64 + 300_000 * 1_000_000_000)));
        receipt.value = U256::MAX;
        assert!(receipt.escrow().is_err());
    }
}
