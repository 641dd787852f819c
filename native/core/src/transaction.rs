//! Signed transactions: what decodes, what is refused before any state is looked at, and who sent it.
//!
//! Refusals speak geth's words, because wallets match on them. Transactions without EIP-155 would replay on every shard
//! and are refused, as are EIP-7702 authorizations for every chain (P1); blob transactions (type 3) are not supported. The
//! authorities of set-code transactions (type 4) are recovered here too, once per process and not before a transaction is in
//! the mempool or in a block: it may bring thousands. One that cannot be recovered is skipped by the EVM, as the EIP says.

use std::sync::{Arc, OnceLock};

use alloy_consensus::transaction::RlpEcdsaDecodableTx;
use alloy_consensus::{SignableTransaction, TxEip1559, TxEip2930, TxEip7702, TxLegacy};
use alloy_eips::eip2930::AccessList;
use alloy_eips::eip7702::{RecoveredAuthority, RecoveredAuthorization, SignedAuthorization};
use alloy_primitives::{Address, B256, Bytes, Signature, TxKind, U256, keccak256, uint};
use secp256k1::Message;
use secp256k1::ecdsa::{RecoverableSignature, RecoveryId};

use crate::codec::Writer;

/// Largest encoded transaction (geth's, and the bus's).
pub const MAX_TRANSACTION_BYTES: usize = 128 * 1024;
/// EIP-3860.
pub const MAX_INITCODE_BYTES: usize = 49_152;
/// EIP-2: half the group order; a larger s is the same signature written differently.
const MAX_S: U256 = uint!(0x7FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF5D576E7357A4501DDFE92F46681B20A0_U256);
const GROUP_ORDER: U256 = uint!(0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141_U256);

/// Why a transaction can never enter a block of this chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    Rlp(String),
    UnsupportedType,
    Unprotected,
    ChainId {
        have: u64,
        want: u64,
    },
    SignatureValues,
    Sender,
    IntrinsicGas {
        have: u64,
        want: u64,
    },
    FloorGas {
        have: u64,
        want: u64,
    },
    Oversized {
        size: usize,
    },
    TipAboveFee,
    Initcode {
        size: usize,
    },
    NoAuthorization,
    ReplayableAuthorization {
        index: usize,
        want: u64,
    },
    /// Pays no more than the cheapest that waits in a full mempool; found out before its sender is.
    PoolFull,
}

impl Refusal {
    /// A number for packed arrays; 0 is "accepted".
    pub fn code(&self) -> u8 {
        match self {
            Self::Rlp(_) => 1,
            Self::UnsupportedType => 2,
            Self::Unprotected => 3,
            Self::ChainId { .. } => 4,
            Self::SignatureValues => 5,
            Self::Sender => 6,
            Self::IntrinsicGas { .. } => 7,
            Self::Oversized { .. } => 8,
            Self::TipAboveFee => 9,
            Self::Initcode { .. } => 10,
            Self::FloorGas { .. } => 11,
            Self::NoAuthorization => 12,
            Self::ReplayableAuthorization { .. } => 13,
            Self::PoolFull => 14,
        }
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Rlp(reason) => write!(f, "rlp: {reason}"),
            Self::UnsupportedType => f.write_str("transaction type not supported"),
            Self::Unprotected => f.write_str("only replay-protected (EIP-155) transactions allowed over RPC"),
            Self::ChainId { have, want } => write!(f, "invalid chain id for signer: have {have} want {want}"),
            Self::SignatureValues => f.write_str("invalid transaction v, r, s values"),
            Self::Sender => f.write_str("invalid sender"),
            Self::IntrinsicGas { have, want } => write!(f, "intrinsic gas too low: have {have}, want {want}"),
            Self::FloorGas { have, want } => {
                write!(f, "insufficient gas for floor data gas cost: have {have}, want {want}")
            }
            Self::Oversized { size } => {
                write!(f, "oversized data: transaction size {size}, limit {MAX_TRANSACTION_BYTES}")
            }
            Self::NoAuthorization => f.write_str("EIP-7702 transaction with empty auth list"),
            Self::ReplayableAuthorization { index, want } => {
                write!(
                    f,
                    "authorization {index} is for every chain (chain id 0) and would replay on all: sign it for {want}"
                )
            }
            Self::PoolFull => f.write_str("txpool is full"),
            Self::TipAboveFee => f.write_str("max priority fee per gas higher than max fee per gas"),
            Self::Initcode { size } => {
                write!(f, "max initcode size exceeded: code size {size}, limit {MAX_INITCODE_BYTES}")
            }
        }
    }
}

/// What a blob transaction adds to the others (EIP-4844).
#[derive(Debug, Clone)]
pub struct Blobs {
    pub hashes: Vec<B256>,
    pub max_fee: u128,
}

/// A decoded transaction with its sender.
#[derive(Debug, Clone)]
pub struct Transaction {
    pub hash: B256,
    pub sender: Address,
    pub tx_type: u8,
    /// None only in a legacy transaction from before EIP-155, which is refused.
    pub chain_id: Option<u64>,
    pub nonce: u64,
    pub gas_limit: u64,
    /// Gas price of types 0 and 1, fee cap of type 2, in wei.
    pub max_fee: u128,
    /// Priority fee cap of type 2.
    pub tip: Option<u128>,
    pub to: TxKind,
    pub value: U256,
    pub input: Bytes,
    pub access_list: AccessList,
    /// Of type 4, each with the account that signed it, if any did; `recover_authorizations` fills it.
    pub authorizations: Recovered,
    /// The authorizations as they were signed, for those who ask.
    pub signed_authorizations: Vec<SignedAuthorization>,
    /// Of type 3, which no encoding is read of: these chains carry no blobs, their EVM knows what such transactions do.
    pub blobs: Option<Arc<Blobs>>,
    pub signature: Signature,
    pub intrinsic: Intrinsic,
}

/// Authorizations, once somebody had to know who signed them: each costs as much as a sender.
pub type Recovered = OnceLock<Vec<RecoveredAuthorization>>;

/// (intrinsic gas, EIP-7623 floor), once somebody had to know: counting the bytes of the input is work.
pub type Intrinsic = OnceLock<(u64, u64)>;

#[cfg(test)]
impl Transaction {
    /// Nobody's, with a hash of its own.
    pub fn unsigned(number: u64) -> Self {
        Self {
            hash: U256::from(number).into(),
            sender: Address::ZERO,
            tx_type: 0,
            chain_id: Some(31_337),
            nonce: number,
            gas_limit: 0,
            max_fee: 0,
            tip: None,
            to: TxKind::Create,
            value: U256::ZERO,
            input: Bytes::new(),
            access_list: AccessList::default(),
            authorizations: Recovered::new(),
            signed_authorizations: Vec::new(),
            blobs: None,
            signature: Signature::new(U256::ZERO, U256::ZERO, false),
            intrinsic: Intrinsic::new(),
        }
    }
}

impl Transaction {
    /// Decodes and recovers the sender; what depends on the chain is `check_chain`'s.
    ///
    /// # Errors
    /// The first refusal, cheapest checks first: recovery is the expensive one.
    pub fn decode(raw: &[u8], hash: B256) -> Result<Self, Refusal> {
        Self::decode_paying(raw, hash, 0)
    }

    /// `decode` for a mempool that is full: what offers less than `least_fee` per gas costs no recovery.
    ///
    /// # Errors
    /// As `decode`.
    pub fn decode_paying(raw: &[u8], hash: B256, least_fee: u128) -> Result<Self, Refusal> {
        if raw.len() > MAX_TRANSACTION_BYTES {
            return Err(Refusal::Oversized { size: raw.len() });
        }
        let (mut transaction, signing_hash) = match raw.first() {
            None => return Err(Refusal::Rlp("empty transaction".into())),
            Some(0xc0..) => from_legacy(raw)?,
            Some(1) => from_eip2930(&raw[1..])?,
            Some(2) => from_eip1559(&raw[1..])?,
            Some(4) => from_eip7702(&raw[1..])?,
            Some(0..=0x7f) => return Err(Refusal::UnsupportedType),
            Some(_) => return Err(Refusal::Rlp("expected input list for transaction".into())),
        };
        transaction.hash = hash;
        transaction.check_form()?;
        if transaction.max_fee < least_fee {
            return Err(Refusal::PoolFull);
        }
        transaction.sender = recover(&transaction.signature, &signing_hash)?;
        Ok(transaction)
    }

    fn check_form(&self) -> Result<(), Refusal> {
        if self.chain_id.is_none() {
            return Err(Refusal::Unprotected);
        }
        if self.to.is_create() && self.input.len() > MAX_INITCODE_BYTES {
            return Err(Refusal::Initcode { size: self.input.len() });
        }
        if self.tx_type == 4 && self.signed_authorizations.is_empty() {
            return Err(Refusal::NoAuthorization);
        }
        if self.tip.is_some_and(|tip| tip > self.max_fee) {
            return Err(Refusal::TipAboveFee);
        }
        let (intrinsic, floor) = self.intrinsic_gas();
        if self.gas_limit < intrinsic {
            return Err(Refusal::IntrinsicGas { have: self.gas_limit, want: intrinsic });
        }
        if self.gas_limit < floor {
            return Err(Refusal::FloorGas { have: self.gas_limit, want: floor });
        }
        let (r, s) = (self.signature.r(), self.signature.s());
        if r.is_zero() || s.is_zero() || s > MAX_S || r >= GROUP_ORDER {
            return Err(Refusal::SignatureValues);
        }
        Ok(())
    }

    /// (intrinsic gas, EIP-7623 floor) by the rules of our chains.
    pub fn intrinsic_gas(&self) -> (u64, u64) {
        let count = || {
            let authorizations = self.signed_authorizations.len();
            crate::evm::intrinsic_gas(&self.input, self.to.is_create(), &self.access_list, authorizations)
        };
        *self.intrinsic.get_or_init(count)
    }

    /// # Errors
    /// When the transaction was signed for another chain, or one of its authorizations for all of them (P1). Those for
    /// one other chain do nothing here, so they may stay.
    pub fn check_chain(&self, chain_id: u64) -> Result<(), Refusal> {
        match self.chain_id {
            Some(have) if have == chain_id => {}
            Some(have) => return Err(Refusal::ChainId { have, want: chain_id }),
            None => return Err(Refusal::Unprotected),
        }
        match self.signed_authorizations.iter().position(|signed| signed.chain_id.is_zero()) {
            Some(index) => Err(Refusal::ReplayableAuthorization { index, want: chain_id }),
            None => Ok(()),
        }
    }

    /// The authorizations with those who signed them.
    pub fn recover_authorizations(&self) -> &[RecoveredAuthorization] {
        match self.authorizations.get() {
            Some(found) => found,
            None if self.signed_authorizations.is_empty() => &[],
            None => {
                self.authorizations.get_or_init(|| self.signed_authorizations.iter().map(recover_authority).collect())
            }
        }
    }

    /// Bytes of its access list and authorizations as they are held: what came as 100 kB may take a megabyte.
    pub fn size_of_lists(&self) -> usize {
        let authorization = size_of::<SignedAuthorization>() + size_of::<RecoveredAuthorization>();
        self.access_list.size() + authorization * self.signed_authorizations.capacity()
    }

    /// The most this transaction can take from its sender; saturates, which no balance reaches.
    pub fn cost(&self) -> U256 {
        U256::from(self.gas_limit).saturating_mul(U256::from(self.max_fee)).saturating_add(self.value)
    }

    /// Price per gas actually paid in a block of this base fee.
    pub fn effective_gas_price(&self, base_fee: u64) -> u128 {
        match self.tip {
            None => self.max_fee,
            Some(tip) => self.max_fee.min(tip.saturating_add(u128::from(base_fee))),
        }
    }

    /// The map that JSON-RPC's transaction objects are made of.
    pub fn describe(&self) -> Vec<u8> {
        let dynamic = self.tip.is_some();
        let typed = self.tx_type != 0;
        let mut writer = Writer::with_capacity(256 + self.input.len());
        let sets_code = self.tx_type == 4;
        writer.map(13 + usize::from(dynamic) + 2 * usize::from(typed) + usize::from(sets_code));
        writer.text("type").uint(self.tx_type.into()).text("hash").bytes(self.hash.as_slice());
        writer.text("from").bytes(self.sender.as_slice()).text("chainId").uint(self.chain_id.unwrap_or_default());
        writer.text("nonce").uint(self.nonce).text("gas").uint(self.gas_limit);
        if let Some(tip) = self.tip {
            write_wide(writer.text("maxFeePerGas"), self.max_fee);
            write_wide(writer.text("maxPriorityFeePerGas"), tip);
        } else {
            write_wide(writer.text("gasPrice"), self.max_fee);
        }
        match self.to {
            TxKind::Call(to) => writer.text("to").bytes(to.as_slice()),
            TxKind::Create => writer.text("to").nil(),
        };
        writer.text("value").u256(&self.value).text("input").bytes(&self.input);
        let parity = u64::from(self.signature.v());
        if typed {
            writer.text("accessList").array(self.access_list.len());
            for item in self.access_list.iter() {
                writer.array(2).bytes(item.address.as_slice()).array(item.storage_keys.len());
                item.storage_keys.iter().for_each(|key| {
                    writer.bytes(key.as_slice());
                });
            }
            writer.text("yParity").uint(parity).text("v").uint(parity);
        } else {
            // EIP-155; a chain ID too large for its v was refused with the chain check.
            writer.text("v").uint(self.chain_id.unwrap_or_default().saturating_mul(2).saturating_add(35 + parity));
        }
        if sets_code {
            // [[chain id, address, nonce, y parity, r, s]…]
            writer.text("authorizationList").array(self.signed_authorizations.len());
            for signed in &self.signed_authorizations {
                writer.array(6).u256(&signed.chain_id).bytes(signed.address.as_slice()).uint(signed.nonce);
                writer.uint(signed.y_parity().into()).u256(&signed.r()).u256(&signed.s());
            }
        }
        writer.text("r").u256(&self.signature.r()).text("s").u256(&self.signature.s());
        writer.finish()
    }
}

/// A fee: an integer while it fits 64 bits, 32 bytes beyond.
fn write_wide(writer: &mut Writer, value: u128) {
    match u64::try_from(value) {
        Ok(small) => writer.uint(small),
        Err(_) => writer.u256(&U256::from(value)),
    };
}

/// Decodes the signed list and refuses trailing bytes: two encodings of one transaction would have two hashes.
fn decode_list<T: RlpEcdsaDecodableTx>(mut list: &[u8]) -> Result<(T, Signature), Refusal> {
    let decoded = T::rlp_decode_with_signature(&mut list).map_err(|error| match error {
        alloy_rlp::Error::Custom("invalid parity value") => Refusal::SignatureValues,
        other => Refusal::Rlp(other.to_string()),
    })?;
    if list.is_empty() { Ok(decoded) } else { Err(Refusal::Rlp(format!("{} trailing bytes", list.len()))) }
}

fn from_legacy(raw: &[u8]) -> Result<(Transaction, B256), Refusal> {
    let (tx, signature) = decode_list::<TxLegacy>(raw)?;
    let signing_hash = tx.signature_hash();
    let TxLegacy { chain_id, nonce, gas_price, gas_limit, to, value, input } = tx;
    let transaction = Transaction {
        hash: B256::ZERO,
        sender: Address::ZERO,
        tx_type: 0,
        chain_id,
        nonce,
        gas_limit,
        max_fee: gas_price,
        tip: None,
        to,
        value,
        input,
        access_list: AccessList::default(),
        authorizations: Recovered::new(),
        signed_authorizations: Vec::new(),
        blobs: None,
        signature,
        intrinsic: Intrinsic::new(),
    };
    Ok((transaction, signing_hash))
}

fn from_eip2930(list: &[u8]) -> Result<(Transaction, B256), Refusal> {
    let (tx, signature) = decode_list::<TxEip2930>(list)?;
    let signing_hash = tx.signature_hash();
    let TxEip2930 { chain_id, nonce, gas_price, gas_limit, to, value, access_list, input } = tx;
    let transaction = Transaction {
        hash: B256::ZERO,
        sender: Address::ZERO,
        tx_type: 1,
        chain_id: Some(chain_id),
        nonce,
        gas_limit,
        max_fee: gas_price,
        tip: None,
        to,
        value,
        input,
        access_list,
        authorizations: Recovered::new(),
        signed_authorizations: Vec::new(),
        blobs: None,
        signature,
        intrinsic: Intrinsic::new(),
    };
    Ok((transaction, signing_hash))
}

fn from_eip1559(list: &[u8]) -> Result<(Transaction, B256), Refusal> {
    let (tx, signature) = decode_list::<TxEip1559>(list)?;
    let signing_hash = tx.signature_hash();
    let TxEip1559 {
        chain_id,
        nonce,
        gas_limit,
        max_fee_per_gas,
        max_priority_fee_per_gas,
        to,
        value,
        access_list,
        input,
    } = tx;
    let transaction = Transaction {
        hash: B256::ZERO,
        sender: Address::ZERO,
        tx_type: 2,
        chain_id: Some(chain_id),
        nonce,
        gas_limit,
        max_fee: max_fee_per_gas,
        tip: Some(max_priority_fee_per_gas),
        to,
        value,
        input,
        access_list,
        authorizations: Recovered::new(),
        signed_authorizations: Vec::new(),
        blobs: None,
        signature,
        intrinsic: Intrinsic::new(),
    };
    Ok((transaction, signing_hash))
}

fn from_eip7702(list: &[u8]) -> Result<(Transaction, B256), Refusal> {
    let (tx, signature) = decode_list::<TxEip7702>(list)?;
    let signing_hash = tx.signature_hash();
    let transaction = Transaction {
        hash: B256::ZERO,
        sender: Address::ZERO,
        tx_type: 4,
        chain_id: Some(tx.chain_id),
        nonce: tx.nonce,
        gas_limit: tx.gas_limit,
        max_fee: tx.max_fee_per_gas,
        tip: Some(tx.max_priority_fee_per_gas),
        to: TxKind::Call(tx.to),
        value: tx.value,
        input: tx.input,
        access_list: tx.access_list,
        authorizations: Recovered::new(),
        signed_authorizations: tx.authorization_list,
        blobs: None,
        signature,
        intrinsic: Intrinsic::new(),
    };
    Ok((transaction, signing_hash))
}

/// Who signed an authorization; the EVM passes over one that nobody did.
pub fn recover_authority(signed: &SignedAuthorization) -> RecoveredAuthorization {
    let (parity, r, s) = (signed.y_parity(), signed.r(), signed.s());
    let is_well_formed = parity <= 1 && !r.is_zero() && r < GROUP_ORDER && !s.is_zero() && s <= MAX_S;
    let signature = Signature::new(r, s, parity == 1);
    let authority = is_well_formed.then(|| recover(&signature, &signed.signature_hash()).ok()).flatten();
    let authority = authority.map_or(RecoveredAuthority::Invalid, RecoveredAuthority::Valid);
    RecoveredAuthorization::new_unchecked(signed.inner().clone(), authority)
}

fn recover(signature: &Signature, signing_hash: &B256) -> Result<Address, Refusal> {
    let mut compact = [0; 64];
    compact[..32].copy_from_slice(&signature.r().to_be_bytes::<32>());
    compact[32..].copy_from_slice(&signature.s().to_be_bytes::<32>());
    let parity = if signature.v() { RecoveryId::One } else { RecoveryId::Zero };
    let signature = RecoverableSignature::from_compact(&compact, parity).map_err(|_| Refusal::SignatureValues)?;
    let message = Message::from_digest(signing_hash.0);
    let key = signature.recover_ecdsa(message).map_err(|_| Refusal::Sender)?;
    Ok(Address::from_slice(&keccak256(&key.serialize_uncompressed()[1..])[12..]))
}
