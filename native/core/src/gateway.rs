//! What the core knows of the gateway contract: its address, its `Outbox` log, its storage, and the two calls it makes.

use alloy_primitives::{Address, B256, Bytes, Keccak256, Log, U256, address, b256};

use crate::error::{CoreError, Result};
use crate::receipt::{Kind, Origin, Receipt};

pub const GATEWAY: Address = address!("0x0000000000000000000000000000000000005a7d");
/// keccak256("Outbox(bytes32,uint8,uint32,address,address,uint256,uint64,uint64,uint64,address,uint64,bytes)")
pub const OUTBOX_TOPIC: B256 = b256!("0xafd68f0cb33cc4d711d7235b39cd4f0a2f06f069dd585669e9cbfc84588a946d");
/// `receiveMessage(bytes32,bytes,bytes)`, which is also its answer (ERC-7786).
const RECEIVE_MESSAGE: [u8; 4] = [0x24, 0x32, 0xef, 0x26];
/// `receiveReply(bytes32,bool,bytes)`
const RECEIVE_REPLY: [u8; 4] = [0x18, 0xcd, 0xf4, 0x7c];

/// Flat gas of a plain transfer's delivery (X7).
pub const TRANSFER_GAS: u64 = 21_000;
/// Receipts one block takes from its inbox at most: half an outbox holds a reply to each, the other half what they send on
/// (X5, X10).
pub const MAX_DELIVERIES: usize = 4096;
/// Bytes of receipts one block may emit: what a crosslink can carry (X10). The presets name the same number.
pub const MAX_OUTBOX_BYTES: u64 = 8 * 1024 * 1024;
/// X5: no receipt can block the head of an inbox.
pub const MAX_RECEIPT_GAS: u64 = 16_000_000;
pub const MAX_PAYLOAD_BYTES: usize = 16 * 1024;

const SLOT_BASE_FEES: u64 = 1;
const SLOT_CLAIMABLE: u64 = 2;
const SLOT_LAST_SEQ: u64 = 3;

/// Vyper's layout: the value of `map[key]` lies at keccak256(slot ‖ key).
fn map_slot(slot: u64, key: &U256) -> U256 {
    let mut hasher = Keccak256::new();
    hasher.update(U256::from(slot).to_be_bytes::<32>());
    hasher.update(key.to_be_bytes::<32>());
    hasher.finalize().into()
}

pub fn base_fee_slot(dst: u32) -> U256 {
    map_slot(SLOT_BASE_FEES, &U256::from(dst))
}

pub fn last_seq_slot(dst: u32) -> U256 {
    map_slot(SLOT_LAST_SEQ, &U256::from(dst))
}

pub fn claimable_slot(owner: &Address) -> U256 {
    map_slot(SLOT_CLAIMABLE, &U256::from_be_slice(owner.as_slice()))
}

/// What a message emitted in some transaction inherits from it.
#[derive(Debug, Clone, Copy)]
pub struct Emission {
    pub src: u32,
    pub origin: Origin,
    pub parent_id: B256,
}

/// The receipts of a transaction's logs, in order, with no sequence numbers yet.
///
/// # Errors
/// `Malformed` when the gateway logged what is no message, or a message no shard may send.
pub fn emitted(logs: &[Log], emission: &Emission) -> Result<Vec<Receipt>> {
    logs.iter()
        .filter(|log| log.address == GATEWAY && log.topics().first() == Some(&OUTBOX_TOPIC))
        .map(|log| parse_log(log, emission))
        .collect()
}

fn parse_log(log: &Log, emission: &Emission) -> Result<Receipt> {
    let [_, id] = log.topics() else {
        return Err(malformed("an outbox log has two topics"));
    };
    let words = AbiWords(&log.data.data);
    let receipt = Receipt {
        kind: words.integer::<u64>(0)?.try_into()?,
        src: emission.src,
        dst: words.integer(1)?,
        seq: 0,
        id: *id,
        origin: emission.origin,
        parent_id: emission.parent_id,
        sender: words.address(2)?,
        target: words.address(3)?,
        value: words.word(4)?,
        gas_limit: words.integer(5)?,
        gas_price: words.integer(6)?,
        reply_gas: words.integer(7)?,
        refund_to: words.address(8)?,
        deadline: words.integer(9)?,
        payload: words.bytes(10)?.to_vec(),
    };
    check_emission(&receipt)?;
    Ok(receipt)
}

/// The contract enforces these too; here they protect other shards from a gateway that was tampered with at genesis.
fn check_emission(receipt: &Receipt) -> Result<()> {
    let no_gas = receipt.gas_limit == 0 && receipt.gas_price == 0 && receipt.reply_gas == 0;
    match receipt.kind {
        Kind::Call => {}
        Kind::Transfer if no_gas => {}
        Kind::Transfer => return Err(malformed("a transfer buys no gas")),
        other => return Err(malformed(format!("a shard's users cannot send {other:?}"))),
    }
    if receipt.dst == receipt.src {
        return Err(malformed("a message to the own shard"));
    }
    if receipt.gas_limit > MAX_RECEIPT_GAS || receipt.reply_gas > MAX_RECEIPT_GAS {
        return Err(malformed(format!("gas above {MAX_RECEIPT_GAS}")));
    }
    if receipt.payload.len() > MAX_PAYLOAD_BYTES {
        return Err(malformed(format!("payload of {} bytes, limit {MAX_PAYLOAD_BYTES}", receipt.payload.len())));
    }
    receipt.escrow().map(drop)
}

fn malformed(text: impl Into<String>) -> CoreError {
    CoreError::Malformed(format!("gateway: {}", text.into()))
}

/// The head words of ABI-encoded arguments.
struct AbiWords<'a>(&'a [u8]);

impl AbiWords<'_> {
    fn word(&self, index: usize) -> Result<U256> {
        let bytes = self.0.get(32 * index..32 * (index + 1)).ok_or_else(|| malformed("log data is too short"))?;
        Ok(U256::from_be_slice(bytes))
    }

    fn integer<T: TryFrom<u64>>(&self, index: usize) -> Result<T> {
        let word = self.word(index)?;
        let narrow = u64::try_from(word).ok().and_then(|value| T::try_from(value).ok());
        narrow.ok_or_else(|| malformed(format!("argument {index} is out of range: {word}")))
    }

    fn address(&self, index: usize) -> Result<Address> {
        let bytes = self.word(index)?.to_be_bytes::<32>();
        if bytes[..12].iter().any(|byte| *byte != 0) {
            return Err(malformed(format!("argument {index} is no address")));
        }
        Ok(Address::from_slice(&bytes[12..]))
    }

    fn bytes(&self, index: usize) -> Result<&[u8]> {
        let short = || malformed("log data is too short");
        let offset: u64 = self.integer(index)?;
        let tail = self.0.get(usize::try_from(offset).map_err(|_| short())?..).ok_or_else(short)?;
        let length: u64 = AbiWords(tail).integer(0)?;
        let end = usize::try_from(length).ok().and_then(|length| length.checked_add(32)).ok_or_else(short)?;
        tail.get(32..end).ok_or_else(short)
    }
}

fn push_bytes(data: &mut Vec<u8>, bytes: &[u8]) {
    data.extend_from_slice(&U256::from(bytes.len()).to_be_bytes::<32>());
    data.extend_from_slice(bytes);
    data.resize(data.len().next_multiple_of(32), 0);
}

/// ERC-7930 address of an account on an EVM chain: version 1, chain type 0, chain ID without leading zeros, address.
pub fn interoperable_address(chain_id: u64, account: &Address) -> Vec<u8> {
    let chain = chain_id.to_be_bytes();
    let reference = &chain[chain_id.leading_zeros() as usize / 8..];
    let mut bytes = vec![0, 1, 0, 0, reference.len() as u8];
    bytes.extend_from_slice(reference);
    bytes.push(20);
    bytes.extend_from_slice(account.as_slice());
    bytes
}

/// `receiveMessage(bytes32 receiveId, bytes sender, bytes payload)`
pub fn receive_message_call(id: &B256, sender: &[u8], payload: &[u8]) -> Bytes {
    let mut tail = Vec::with_capacity(payload.len() + 192);
    push_bytes(&mut tail, sender);
    let second = 96 + tail.len();
    push_bytes(&mut tail, payload);
    // Selector and head are 100 bytes; the body starts on a word boundary behind the selector.
    let mut data = RECEIVE_MESSAGE.to_vec();
    data.extend_from_slice(id.as_slice());
    data.extend_from_slice(&U256::from(96).to_be_bytes::<32>());
    data.extend_from_slice(&U256::from(second).to_be_bytes::<32>());
    data.extend_from_slice(&tail);
    data.into()
}

/// `receiveReply(bytes32 id, bool ok, bytes data)`
pub fn receive_reply_call(id: &B256, ok: bool, data: &[u8]) -> Bytes {
    let mut call = RECEIVE_REPLY.to_vec();
    call.extend_from_slice(id.as_slice());
    call.extend_from_slice(&U256::from(u8::from(ok)).to_be_bytes::<32>());
    call.extend_from_slice(&U256::from(96).to_be_bytes::<32>());
    let mut tail = Vec::with_capacity(data.len() + 64);
    push_bytes(&mut tail, data);
    call.extend_from_slice(&tail);
    call.into()
}

/// The one answer that accepts a message: its selector, left-aligned in a word.
pub fn is_acceptance(output: &[u8]) -> bool {
    output.len() == 32 && output[..4] == RECEIVE_MESSAGE && output[4..].iter().all(|byte| *byte == 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloy_primitives::{hex, keccak256};

    #[test]
    fn the_constants_are_the_hashes_they_claim_to_be() {
        let event = "Outbox(bytes32,uint8,uint32,address,address,uint256,uint64,uint64,uint64,address,uint64,bytes)";
        assert_eq!(OUTBOX_TOPIC, keccak256(event));
        assert_eq!(RECEIVE_MESSAGE, keccak256("receiveMessage(bytes32,bytes,bytes)")[..4]);
        assert_eq!(RECEIVE_REPLY, keccak256("receiveReply(bytes32,bool,bytes)")[..4]);
    }

    #[test]
    fn interoperable_addresses_have_no_leading_zeros_in_the_chain() {
        let expected = hex!("00010000027a6914" "0101010101010101010101010101010101010101");
        assert_eq!(interoperable_address(31_337, &Address::repeat_byte(1)), expected);
        assert_eq!(interoperable_address(1, &Address::ZERO)[4..6], [1, 1]);
    }

    #[test]
    fn only_the_exact_word_accepts_a_message() {
        let mut word = [0; 32];
        word[..4].copy_from_slice(&RECEIVE_MESSAGE);
        assert!(is_acceptance(&word));
        assert!(!is_acceptance(&word[..4]));
        word[31] = 1;
        assert!(!is_acceptance(&word));
    }
}
