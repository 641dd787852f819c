//! Unrelated transactions around a vector's own, so that the block runs on several workers.
//!
//! They touch accounts that no test knows, in ways that keep workers busy with one another: transfers to one account and
//! along chains, a counter that all of them raise, contracts created, runs of one sender, and some that cannot be in the
//! block. They pay the base fee and no tip, so the beneficiary gains from the vector's transaction alone.

use std::collections::HashSet;
use std::sync::{Arc, OnceLock};

use alloy_primitives::{Address, B256, Bytes, Signature, TxKind, U256, keccak256};
use shardyard_core::batch::{Batch, Entry};
use shardyard_core::block::BlockEnv;
use shardyard_core::evm::Bytecode;
use shardyard_core::state::{Account, Changes};
use shardyard_core::transaction::Transaction;

/// Before the vector's transaction and after it; together more than a block needs to run on several workers.
const BEFORE: usize = 40;
const AFTER: usize = 40;
const SENDERS: usize = 16;
/// Enough for each of these transactions.
const GAS: u64 = 100_000;
/// Adds one to slot 0, the caller to slot CALLER, and logs.
const COUNTER: [u8; 17] =
    [0x60, 0x01, 0x60, 0x00, 0x54, 0x01, 0x60, 0x00, 0x55, 0x34, 0x33, 0x55, 0x60, 0x00, 0x60, 0x00, 0xa0];
/// Returns one zero byte as code.
const CREATION: [u8; 5] = [0x60, 0x01, 0x60, 0x00, 0xf3];

fn address(role: &str, number: usize) -> Address {
    Address::from_slice(&keccak256(format!("unrelated {role} {number}"))[12..])
}

fn sender(number: usize) -> Address {
    address("sender", number % SENDERS)
}

/// Whether the account is one of theirs.
pub fn is_filler(wanted: &Address) -> bool {
    static KNOWN: OnceLock<HashSet<Address>> = OnceLock::new();
    let collect = || {
        let fixed = (0..SENDERS).map(sender).chain([address("counter", 0), address("collector", 0)]);
        let nonces = 1..=(BEFORE + AFTER) as u64;
        let created = nonces.flat_map(|nonce| (0..SENDERS).map(move |number| sender(number).create(nonce)));
        fixed.chain(created).collect()
    };
    KNOWN.get_or_init(collect).contains(wanted)
}

/// What they own before the block, beside a test that owns `supply`. Some tests own nearly all there can be: what is left
/// to these transactions then does not pay for them, and they are refused.
pub fn state(env: &BlockEnv, supply: U256) -> Changes {
    let mut changes = Changes::default();
    let need = U256::from(env.base_fee) * U256::from(GAS) * U256::from(BEFORE + AFTER) + U256::from(1_000_000);
    let purse = need.min((U256::MAX - supply) / U256::from(SENDERS));
    for number in 0..SENDERS {
        changes.accounts.insert(sender(number), Some(Account { nonce: 1, balance: purse, ..Account::default() }));
    }
    let code = Bytecode::new_raw(Bytes::from_static(&COUNTER));
    let code_hash = code.hash_slow();
    changes.codes.insert(code_hash, code);
    changes.accounts.insert(address("counter", 0), Some(Account { nonce: 1, balance: U256::ZERO, code_hash }));
    changes
}

/// The block: fillers, the vector's transaction, fillers. Gives the transaction's place.
pub fn surround(transaction: Transaction, env: &BlockEnv) -> (Batch, usize) {
    let mut room = env.gas_limit.saturating_sub(transaction.gas_limit);
    let mut nonces = [1; SENDERS];
    let mut entries = Vec::with_capacity(BEFORE + AFTER + 1);
    for number in 0..BEFORE + AFTER {
        if number == BEFORE {
            entries.push(entry(transaction.clone()));
            room = env.gas_limit;
        }
        // Before the vector's transaction only as much gas may go as leaves it its own; the rest of these have a
        // nonce that is not theirs yet, are refused, and use none.
        let is_refused = number % 11 == 5 || room < GAS;
        let nonce = nonces[number % SENDERS];
        if !is_refused {
            room -= GAS;
            nonces[number % SENDERS] += 1;
        }
        entries.push(entry(filler(number, if is_refused { nonce + 1000 } else { nonce }, env)));
    }
    (entries.into_iter().collect(), BEFORE)
}

pub fn alone(transaction: Transaction) -> (Batch, usize) {
    (std::iter::once(entry(transaction)).collect(), 0)
}

fn entry(transaction: Transaction) -> Entry {
    Entry { hash: transaction.hash, transaction: Some(Arc::new(transaction)), refusal: None }
}

fn filler(number: usize, nonce: u64, env: &BlockEnv) -> Transaction {
    let (to, value, input) = match number % 4 {
        0 => (TxKind::Call(address("collector", 0)), 1, Bytes::new()),
        1 => (TxKind::Call(sender(number + 1)), 2, Bytes::new()),
        2 => (TxKind::Call(address("counter", 0)), 3, Bytes::new()),
        _ => (TxKind::Create, 0, Bytes::from_static(&CREATION)),
    };
    Transaction {
        hash: B256::from(U256::from(number + 1)),
        sender: sender(number),
        tx_type: 0,
        chain_id: None,
        nonce,
        gas_limit: GAS,
        max_fee: env.base_fee.into(),
        tip: None,
        to,
        value: U256::from(value),
        input,
        access_list: Default::default(),
        authorizations: Default::default(),
        signed_authorizations: Vec::new(),
        blobs: None,
        signature: Signature::new(U256::ZERO, U256::ZERO, false),
        intrinsic: Default::default(),
    }
}
