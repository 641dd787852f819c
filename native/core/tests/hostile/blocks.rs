//! Blocks made to hurt a parallel executor: what each attacks is said where it is made.
//!
//! Transactions are built without signatures: what is attacked comes after recovery. Shared by the test of what they may do
//! and the bench of what they may cost; both go through `Core::execute` alone.

use std::collections::BTreeMap;
use std::sync::Arc;

use alloy_eips::eip7702::{Authorization, RecoveredAuthority, RecoveredAuthorization, SignedAuthorization};
use alloy_primitives::{Address, B256, Bytes, Signature, TxKind, U256, hex, keccak256};
use shardyard_core::batch::{Batch, Entry};
use shardyard_core::block::{BlockEnv, BlockResult, Chain, Mode};
use shardyard_core::core::Core;
use shardyard_core::error::Result;
use shardyard_core::evm::Revision;
use shardyard_core::gateway::{GATEWAY, MAX_PAYLOAD_BYTES, OUTBOX_TOPIC};
use shardyard_core::transaction::Transaction;

const PARENT: B256 = B256::repeat_byte(1);
const CHAIN_ID: u64 = 31_337;
const BASE_FEE: u64 = 1_000_000_000;
const PRICE: u64 = 2 * BASE_FEE;
const TRANSFER_GAS: u64 = 21_000;
const RICH: u128 = 1 << 80;

/// Works for input[0] rounds of 26 gas, then adds one to slot 0: speculation is found wrong only after all the work.
const LATE: &str = "5f355b6001900380600257505f546001015f5500";
/// Adds one to slot 0, then works.
const EARLY: &str = "5f546001015f555f355b600190038060095700";
/// Works, then stores what the beneficiary owns, which only the commit order knows.
const LATE_COINBASE: &str = "5f355b600190038060025750413133 5500";
/// Works only.
const BURNER: &str = "5f355b60019003806002575000";
/// Stores 1 at the slot named by the input.
const STORER: &str = "60015f355500";
/// Calls itself input[0] levels deep, then adds one to slot 0 on every level.
const DEEP: &str = "5f358015601857600190038 05f525f5f60205f5f305af1505b505f546001015f5500";
/// Creates a contract at the same address each time, which destroys itself within the call.
const PHOENIX: &str = "6a6133ff6000526002601ef35f525f35600b60155ff55f5f5f5f5f855af15050 5f546001015f5500";

/// Stores what it counts down from input[0], and who called, in six slots again and again.
const CYCLE: &str = "5f355b8033015f55803301600155803301600255803301600355803301600455803301600555600190038060025700";

/// One hostile block: its transactions, and the gas they may use together.
pub struct Hostile {
    pub name: &'static str,
    pub batch: Batch,
    pub gas_limit: u64,
    pub beneficiary: Address,
}

pub fn user(number: u64) -> Address {
    Address::from_slice(&keccak256(number.to_be_bytes())[12..])
}

fn contract(number: u8) -> Address {
    Address::repeat_byte(0xa0 + number)
}

fn codes() -> [&'static str; 8] {
    [LATE, EARLY, LATE_COINBASE, BURNER, STORER, DEEP, PHOENIX, CYCLE]
}

struct Writer {
    nonces: BTreeMap<Address, u64>,
    entries: Vec<Entry>,
}

impl Writer {
    fn new() -> Self {
        Self { nonces: BTreeMap::new(), entries: Vec::new() }
    }

    fn next_nonce(&mut self, of: Address) -> u64 {
        let nonce = self.nonces.entry(of).or_default();
        *nonce += 1;
        *nonce - 1
    }

    fn push(&mut self, from: Address, nonce: u64, to: Address, value: U256, gas: u64, input: U256) {
        let input = if gas == TRANSFER_GAS { Bytes::new() } else { Bytes::from(input.to_be_bytes::<32>().to_vec()) };
        let hash = keccak256((self.entries.len() as u64).to_be_bytes());
        let transaction = Transaction {
            hash,
            sender: from,
            tx_type: 2,
            chain_id: Some(CHAIN_ID),
            nonce,
            gas_limit: gas,
            max_fee: PRICE.into(),
            tip: Some(BASE_FEE.into()),
            to: TxKind::Call(to),
            value,
            input,
            access_list: Default::default(),
            authorizations: Default::default(),
            signed_authorizations: Vec::new(),
            blobs: None,
            signature: Signature::new(U256::ZERO, U256::ZERO, false),
            intrinsic: Default::default(),
        };
        self.entries.push(Entry { hash, transaction: Some(Arc::new(transaction)), refusal: None });
    }

    fn call(&mut self, from: u64, to: Address, gas: u64, input: impl TryInto<U256>) {
        let nonce = self.next_nonce(user(from));
        let input = input.try_into().unwrap_or(U256::MAX);
        self.push(user(from), nonce, to, U256::ZERO, gas, input);
    }

    fn pay(&mut self, from: u64, to: Address, value: U256) {
        let nonce = self.next_nonce(user(from));
        self.push(user(from), nonce, to, value, TRANSFER_GAS, U256::ZERO);
    }

    /// The last transaction also delegates `authority` to `to`.
    fn delegate(&mut self, authority: Address, to: Address) {
        let inner = Authorization { chain_id: U256::from(CHAIN_ID), address: to, nonce: self.next_nonce(authority) };
        let signed = SignedAuthorization::new_unchecked(inner.clone(), 0, U256::ONE, U256::ONE);
        let entry = self.entries.last_mut().expect("a transaction was pushed");
        let transaction = Arc::make_mut(entry.transaction.as_mut().expect("it was read"));
        transaction.tx_type = 4;
        transaction.signed_authorizations.push(signed);
        let valid = RecoveredAuthority::Valid(authority);
        let mut found = transaction.authorizations.take().unwrap_or_default();
        found.push(RecoveredAuthorization::new_unchecked(inner, valid));
        transaction.authorizations = found.into();
    }

    fn finish(self, name: &'static str) -> Hostile {
        let beneficiary = Address::repeat_byte(0xcc);
        Hostile { name, batch: self.entries.into_iter().collect(), gas_limit: u64::MAX / 4, beneficiary }
    }
}

/// All of them, of `count` transactions each.
pub fn hostile_blocks(count: u64) -> Vec<Hostile> {
    vec![
        conflicts("hot slot after work", count, 0),
        conflicts("hot slot before work", count, 1),
        conflicts("beneficiary read after work", count, 2),
        alternating(count),
        colliding_keys(count),
        broke_senders(count),
        nonce_storm(count),
        gas_limit_edge(count),
        deep_calls(count),
        phoenix(count),
        redelegation(count),
        cycling_slots(count),
        one_sender(count),
        short_lived_beneficiary(count, count / 2),
        full_outbox(count),
    ]
}

/// Every transaction works for a while and depends on the one before.
fn conflicts(name: &'static str, count: u64, kind: u8) -> Hostile {
    let mut writer = Writer::new();
    (0..count).for_each(|number| writer.call(number, contract(kind), 200_000, 1000_u64));
    writer.finish(name)
}

/// Independent just long enough to be trusted, then a burst of conflicts, again and again.
fn alternating(count: u64) -> Hostile {
    let mut writer = Writer::new();
    for number in 0..count {
        let target = if number % 128 < 70 { contract(3) } else { contract(0) };
        writer.call(number, target, 200_000, 1000_u64);
    }
    writer.finish("conflicts in bursts")
}

/// Slots and accounts that are alike in most of their bits: a weak hash would put them together.
fn colliding_keys(count: u64) -> Hostile {
    let mut writer = Writer::new();
    for number in 0..count {
        if number % 2 == 0 {
            writer.call(number, contract(4), 100_000, U256::from(number) << 192);
        } else {
            let mut to = Address::ZERO;
            to[4..12].copy_from_slice(&number.to_be_bytes());
            to[0] = 0xee;
            writer.pay(number, to, U256::ONE);
        }
    }
    writer.finish("keys that collide")
}

/// First a chain of payments in the wrong order, so that nobody can pay; then in the right one, each from what came just
/// before.
fn broke_senders(count: u64) -> Hostile {
    let mut writer = Writer::new();
    let (fee, links) = (U256::from(TRANSFER_GAS * PRICE), count / 2);
    let amount = |link: u64| fee * U256::from(links - link);
    let poor = |link: u64| 1_000_000 + link;
    for link in (1..links).rev() {
        writer.push(user(poor(link)), 0, user(poor(link + 1)), amount(link + 1), TRANSFER_GAS, U256::ZERO);
    }
    writer.pay(0, user(poor(1)), amount(1) + fee);
    for link in 1..links {
        writer.pay(poor(link), user(poor(link + 1)), amount(link + 1));
    }
    writer.finish("broke senders")
}

/// A few senders with all their nonces in a scrambled order: most cannot be in the block, some can.
fn nonce_storm(count: u64) -> Hostile {
    let mut writer = Writer::new();
    for number in 0..count {
        let (sender, nonce) = (number % 8, (number.wrapping_mul(0x9e37_79b9) >> 7) % (count / 8 + 1));
        let nonce = if number % 5 == 0 { writer.next_nonce(user(sender)) } else { nonce };
        writer.push(user(sender), nonce, contract(0), U256::ZERO, 200_000, U256::from(100));
    }
    writer.finish("nonce storm")
}

/// Room for a few, then many that would be a lot of work and do not fit: they must be refused unexecuted.
fn gas_limit_edge(count: u64) -> Hostile {
    let mut writer = Writer::new();
    (0..count).for_each(|number| writer.call(number, contract(3), 5_000_000, 100_000_u64));
    Hostile { gas_limit: 12_000_000, ..writer.finish("gas-limit edge") }
}

fn deep_calls(count: u64) -> Hostile {
    let mut writer = Writer::new();
    (0..count).for_each(|number| writer.call(number, contract(5), 1_000_000, 100_u64));
    writer.finish("deep call chains")
}

fn phoenix(count: u64) -> Hostile {
    let mut writer = Writer::new();
    (0..count).for_each(|number| writer.call(number, contract(6), 300_000, number % 3));
    writer.finish("self-destruct and re-create")
}

fn cycling_slots(count: u64) -> Hostile {
    let mut writer = Writer::new();
    (0..count).for_each(|number| writer.call(number, contract(7), 500_000, 200_u64));
    writer.finish("a few slots written again and again")
}

/// Four accounts change the code they run while others call them.
fn redelegation(count: u64) -> Hostile {
    let mut writer = Writer::new();
    for number in 0..count {
        let authority = user(2_000_000 + number % 4);
        writer.call(number, authority, 300_000, 50_u64);
        if number % 3 == 0 {
            writer.delegate(authority, contract((number % 2) as u8));
        }
    }
    writer.finish("EIP-7702 re-delegation")
}

fn one_sender(count: u64) -> Hostile {
    let mut writer = Writer::new();
    (0..count).for_each(|number| writer.call(0, contract(3 + (number % 2) as u8), 200_000, 100 + number));
    writer.finish("one sender")
}

/// Who is paid for the block comes into being after item `at`, with all fees so far, and is gone in the same transaction:
/// those fees go where it sends them, once.
pub fn short_lived_beneficiary(count: u64, at: u64) -> Hostile {
    let mut writer = Writer::new();
    for number in 0..count {
        writer.call(number, contract(0), 200_000, 100_u64);
        if number == at {
            let nonce = writer.next_nonce(user(0));
            writer.push(user(0), nonce, Address::ZERO, U256::ZERO, 200_000, U256::ZERO);
            let entry = writer.entries.last_mut().expect("a transaction was pushed");
            let transaction = Arc::make_mut(entry.transaction.as_mut().expect("it was read"));
            transaction.to = TxKind::Create;
            transaction.input = Bytes::from_static(&[0x32, 0xff]);
        }
    }
    Hostile { beneficiary: user(0).create(1), ..writer.finish("short-lived beneficiary") }
}

/// Sends as large as they may be: after some five hundred there is no room, and what finds none was executed for nothing.
fn full_outbox(count: u64) -> Hostile {
    let mut writer = Writer::new();
    for number in 0..count.max(600) {
        let sender = user(number % count);
        let nonce = writer.next_nonce(sender);
        writer.push(sender, nonce, GATEWAY, U256::from(1000), 3_000_000, U256::ZERO);
        let entry = writer.entries.last_mut().expect("a transaction was pushed");
        Arc::make_mut(entry.transaction.as_mut().expect("it was read")).input = message(number).into();
    }
    writer.finish("sends until the outbox is full")
}

/// Topic and data of an `Outbox` log that transfers 1000 wei to shard 1 with the largest payload.
fn message(number: u64) -> Vec<u8> {
    let receiver = U256::from_be_slice(user(number).as_slice());
    let numbers = [number, 1, 5, 0, 0, 1000, 0, 0, 0, 0, 0, 11 * 32, MAX_PAYLOAD_BYTES as u64].map(U256::from);
    let mut words = numbers.to_vec();
    (words[3], words[4], words[9]) = (receiver, receiver, receiver);
    let mut input: Vec<u8> = words.iter().flat_map(|word| word.to_be_bytes::<32>()).collect();
    input.resize(input.len() + MAX_PAYLOAD_BYTES, 0x5a);
    input
}

/// A gateway that emits whatever message it is told to: LOG2(topic, first word of the input) over the rest of it.
fn echo() -> String {
    format!("365f5f375f517f{OUTBOX_TOPIC:x}602036036020a200")
}

fn genesis(users: u64) -> Vec<u8> {
    let mut alloc = serde_json::Map::new();
    for number in 0..users {
        let entry = serde_json::json!({ "balance": RICH.to_string() });
        alloc.insert(hex::encode_prefixed(user(number)), entry);
    }
    for (number, code) in codes().iter().enumerate() {
        let entry = serde_json::json!({ "nonce": "0x1", "code": format!("0x{}", code.replace(' ', "")) });
        alloc.insert(hex::encode_prefixed(contract(number as u8)), entry);
    }
    alloc.insert(hex::encode_prefixed(GATEWAY), serde_json::json!({ "nonce": "0x1", "code": format!("0x{}", echo()) }));
    serde_json::to_vec(&alloc).expect("an allocation is JSON")
}

/// A core whose state knows the users and contracts of these blocks.
pub fn core(threads: usize, users: u64) -> Core {
    let chain = Chain { chain_id: CHAIN_ID, shard: 0, threads, fast_path: true, revision: Revision::PRAGUE };
    let core = Core::new(chain, 1);
    core.init_genesis(&genesis(users)).expect("the allocation parses");
    core.set_base(PARENT, 0);
    core
}

/// # Errors
/// Whatever the executor answers; it must never panic.
pub fn execute(core: &Core, block: &Hostile, mode: Mode) -> Result<BlockResult> {
    let env = BlockEnv {
        number: 1,
        timestamp: 1_700_000_000,
        gas_limit: block.gas_limit,
        base_fee: BASE_FEE,
        beneficiary: block.beneficiary,
        prevrandao: B256::ZERO,
        parent_hash: PARENT,
        beacon_root: B256::ZERO,
        beacon_height: 1,
        inbox_gas: 0,
        link_base_fees: vec![(1, 5)],
    };
    let no_inbox: [&[u8]; 0] = [];
    core.execute(PARENT, &block.batch, &env, mode, &no_inbox)
}
