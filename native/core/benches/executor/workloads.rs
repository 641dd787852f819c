//! The workloads of the executor's table, and the state they start from: users rich in ether and in every token and pair
//! they use. All choices come from one seed, so every run measures the same blocks.

use std::collections::HashMap;
use std::sync::Arc;

use alloy_primitives::{Address, Signature, TxKind, U256, hex, keccak256};
use shardyard_core::batch::{Batch, Entry};
use shardyard_core::gateway::GATEWAY;
use shardyard_core::transaction::Transaction;

use crate::{BASE_FEE, CHAIN_ID};

const TOKENS: u64 = 100;
const ERC20: &str = include_str!("../../../../node/artifacts/erc20.json");
const PAIR: &str = include_str!("../../../../node/artifacts/pair.json");
const GATEWAY_CODE: &str = include_str!("../../../../node/artifacts/gateway.json");
const TOKEN: u8 = 0x70;
const POOL: u8 = 0x71;
/// slot 0 += 1
const COUNTER: u8 = 0x72;
/// slot (input word 0) := slot (input word 1) + 1
const CHAIN: u8 = 0x73;

/// A block to measure.
pub struct Workload {
    pub name: String,
    pub batch: Batch,
    /// Some of it are transfers that the fast path takes.
    pub has_transfers: bool,
}

fn user(number: u64) -> Address {
    Address::from_slice(&keccak256(number.to_be_bytes())[12..])
}

fn contract(kind: u8, number: u64) -> Address {
    let mut address = Address::repeat_byte(kind);
    address[12..].copy_from_slice(&number.to_be_bytes());
    address
}

fn runtime(artifact: &str) -> String {
    let artifact: serde_json::Value = serde_json::from_str(artifact).expect("artifacts are JSON");
    artifact["runtime"].as_str().expect("artifacts have a runtime").to_owned()
}

fn slot_of(artifact: &str, name: &str) -> u64 {
    let artifact: serde_json::Value = serde_json::from_str(artifact).expect("artifacts are JSON");
    artifact["storage"][name].as_u64().expect("artifacts know their slots")
}

fn map_slot(slot: u64, key: Address) -> String {
    let words = [U256::from(slot).to_be_bytes::<32>(), U256::from_be_slice(key.as_slice()).to_be_bytes::<32>()];
    U256::from_be_bytes(keccak256(words.concat()).0).to_string()
}

/// User n uses token and pair n modulo their number.
pub fn genesis(users: u64) -> serde_json::Map<String, serde_json::Value> {
    let mut alloc = serde_json::Map::new();
    for number in 0..users {
        let entry = serde_json::json!({ "balance": "0x3635c9adc5dea00000" });
        alloc.insert(hex::encode_prefixed(user(number)), entry);
    }
    let balances = slot_of(ERC20, "balanceOf");
    for token in 0..TOKENS {
        let mut storage = serde_json::Map::new();
        for number in (0..users).filter(|number| token == 0 || number % TOKENS == token) {
            storage.insert(map_slot(balances, user(number)), "0xffffffffff".into());
        }
        let entry = serde_json::json!({ "nonce": "0x1", "code": runtime(ERC20), "storage": storage });
        alloc.insert(hex::encode_prefixed(contract(TOKEN, token)), entry);
    }
    for pair in 0..TOKENS {
        let mut storage = serde_json::Map::new();
        for name in ["reserve0", "reserve1"] {
            storage.insert(U256::from(slot_of(PAIR, name)).to_string(), "0xffffffffffffffffff".into());
        }
        for number in (0..users).filter(|number| pair < 10 || number % TOKENS == pair) {
            for name in ["balance0", "balance1"] {
                storage.insert(map_slot(slot_of(PAIR, name), user(number)), "0xffffffffff".into());
            }
        }
        let entry = serde_json::json!({ "nonce": "0x1", "code": runtime(PAIR), "storage": storage });
        alloc.insert(hex::encode_prefixed(contract(POOL, pair)), entry);
    }
    for (kind, code) in [(COUNTER, "0x5f546001015f5500"), (CHAIN, "0x6020355460010160003555")] {
        let entry = serde_json::json!({ "nonce": "0x1", "code": code });
        alloc.insert(hex::encode_prefixed(contract(kind, 0)), entry);
    }
    // Slot 4 of the gateway counts the shards.
    let entry = serde_json::json!({ "nonce": "0x1", "code": runtime(GATEWAY_CODE), "storage": { "0x4": "0x8" } });
    alloc.insert(hex::encode_prefixed(GATEWAY), entry);
    alloc
}

struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((x ^ (x >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    }

    fn below(&mut self, sides: u64) -> u64 {
        (self.roll() * sides as f64) as u64
    }
}

/// Ranks drawn with probability proportional to 1 / rank^exponent.
struct Zipf(Vec<f64>);

impl Zipf {
    fn new(count: u64, exponent: f64) -> Self {
        let mut sum = 0.0;
        Self(
            (1..=count)
                .map(|rank| {
                    sum += (rank as f64).powf(-exponent);
                    sum
                })
                .collect(),
        )
    }

    fn draw(&self, dice: &mut Dice) -> u64 {
        let target = dice.roll() * self.0.last().copied().unwrap_or(1.0);
        self.0.partition_point(|sum| *sum < target) as u64
    }
}

struct Draft {
    from: u64,
    to: Address,
    value: u64,
    input: Vec<u8>,
    gas: u64,
}

fn pay(from: u64, to: u64) -> Draft {
    Draft { from, to: user(to), value: 1, input: Vec::new(), gas: 21_000 }
}

fn call(from: u64, to: Address, signature: &str, words: &[U256]) -> Draft {
    let mut input = keccak256(signature)[..4].to_vec();
    words.iter().for_each(|word| input.extend_from_slice(&word.to_be_bytes::<32>()));
    Draft { from, to, value: 0, input, gas: 300_000 }
}

fn token(from: u64, to: u64, token: u64) -> Draft {
    let words = [U256::from_be_slice(user(to).as_slice()), U256::from(1)];
    call(from, contract(TOKEN, token), "transfer(address,uint256)", &words)
}

fn swap(from: u64, pair: u64, direction: u64) -> Draft {
    let words = [U256::from(1000), U256::ZERO, U256::from(direction % 2)];
    call(from, contract(POOL, pair), "swap(uint256,uint256,bool)", &words)
}

/// A transfer to another shard through the gateway.
fn send(from: u64, dst: u64) -> Draft {
    let words = [U256::from(dst), U256::from_be_slice(user(from).as_slice())];
    Draft { value: 1000, ..call(from, GATEWAY, "transfer(uint256,address)", &words) }
}

fn batch(drafts: Vec<Draft>) -> Batch {
    let mut nonces = HashMap::new();
    let entries = drafts.into_iter().enumerate().map(|(number, draft)| {
        let nonce = nonces.entry(draft.from).or_insert(0);
        let hash = keccak256((number as u64).to_be_bytes());
        let transaction = Transaction {
            hash,
            sender: user(draft.from),
            tx_type: 2,
            chain_id: Some(CHAIN_ID),
            nonce: *nonce,
            gas_limit: draft.gas,
            max_fee: 2 * u128::from(BASE_FEE),
            tip: Some(1_000_000),
            to: TxKind::Call(draft.to),
            value: U256::from(draft.value),
            input: draft.input.into(),
            access_list: Default::default(),
            authorizations: Default::default(),
            signed_authorizations: Vec::new(),
            blobs: None,
            signature: Signature::new(U256::ZERO, U256::ZERO, false),
            intrinsic: Default::default(),
        };
        *nonce += 1;
        Entry { hash, transaction: Some(Arc::new(transaction)), refusal: None }
    });
    entries.collect()
}

fn raw(count: u64, users: u64, dice: &mut Dice) -> Vec<(String, Vec<Draft>)> {
    let mut made = vec![("raw, disjoint".into(), (0..count).map(|n| pay(2 * n, 2 * n + 1)).collect())];
    for exponent in [0.8, 1.0, 1.2] {
        let zipf = Zipf::new(users, exponent);
        let drafts = (0..count).map(|n| pay(n, zipf.draw(dice))).collect();
        made.push((format!("raw, Zipf {exponent:.1} recipients"), drafts));
    }
    for accounts in [2, 10, 100, 1000, 10_000].into_iter().filter(|accounts| *accounts <= users) {
        let drafts = (0..count).map(|_| pay(dice.below(accounts), dice.below(accounts))).collect();
        made.push((format!("raw, {accounts} accounts"), drafts));
    }
    made
}

fn contracts(count: u64, users: u64, dice: &mut Dice) -> Vec<(String, Vec<Draft>)> {
    let mut made: Vec<(String, Vec<Draft>)> = vec![
        ("ERC-20, disjoint, 1 token".into(), (0..count).map(|n| token(2 * n, 2 * n + 1, 0)).collect()),
        ("ERC-20, disjoint, 100 tokens".into(), (0..count).map(|n| token(2 * n, 2 * n + 1, 2 * n % TOKENS)).collect()),
    ];
    let zipf = Zipf::new(users, 1.0);
    made.push(("ERC-20, Zipf 1.0 recipients".into(), (0..count).map(|n| token(n, zipf.draw(dice), 0)).collect()));
    for pairs in [1, 10, TOKENS] {
        let pair = |n: u64, dice: &mut Dice| if pairs == TOKENS { n % TOKENS } else { dice.below(pairs) };
        let drafts = (0..count).map(|n| swap(n, pair(n, dice), n / 7)).collect();
        made.push((format!("swaps, {pairs} pools"), drafts));
    }
    for hot in [0, 10, 50] {
        let drafts = (0..count).map(|n| {
            let is_hot = dice.below(100) < hot;
            match dice.below(10) {
                0..=5 => pay(n, if is_hot { 0 } else { dice.below(users) }),
                6..=7 => token(n, if is_hot { 0 } else { dice.below(users) }, 0),
                _ => swap(n, if is_hot { 0 } else { n % TOKENS }, n),
            }
        });
        made.push((format!("hybrid 60/20/20, {hot} % hot"), drafts.collect()));
    }
    made
}

fn dependent(count: u64) -> Vec<(String, Vec<Draft>)> {
    let bump = |n| Draft { gas: 60_000, ..call(n, contract(COUNTER, 0), "", &[]) };
    let link = |n| {
        let input = [n + 1, n].map(|slot| U256::from(slot).to_be_bytes::<32>()).concat();
        Draft { input, gas: 60_000, ..call(n, contract(CHAIN, 0), "", &[]) }
    };
    vec![
        ("counter, plain (one slot)".into(), (0..count).map(bump).collect()),
        ("counter, delta (credits)".into(), (0..count).map(|n| pay(1 + n, 0)).collect()),
        ("dependent chain".into(), (0..count).map(link).collect()),
        ("one sender".into(), (0..count).map(|n| token(0, 1 + n % 50, 0)).collect()),
        ("sends on one link".into(), (0..count.min(1000)).map(|n| send(n, 1)).collect()),
    ]
}

/// All workloads of up to `count` transactions, by `users` users.
pub fn workloads(count: u64, users: u64) -> Vec<Workload> {
    let mut dice = Dice(7);
    let mut made = raw(count, users, &mut dice);
    made.extend(contracts(count, users, &mut dice));
    made.extend(dependent(count));
    let finish = |(name, drafts): (String, Vec<Draft>)| {
        let has_transfers = drafts.iter().any(|draft| draft.input.is_empty() && draft.gas == 21_000);
        Workload { name, batch: batch(drafts), has_transfers }
    };
    made.into_iter().map(finish).collect()
}
