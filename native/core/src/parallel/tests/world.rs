//! The state that the workloads start from: users, poor ones among them, and contracts that get into each other's way.

use alloy_primitives::{Address, B256, U256, keccak256};

use crate::block::Chain;
use crate::evm::Revision;
use crate::gateway::GATEWAY;

pub(super) const USERS: u64 = 1200;
pub(super) const BASE_FEE: u64 = 1_000_000_000;
pub(super) const FEE: u128 = 2_000_000_000;
pub(super) const BENEFICIARY: Address = Address::repeat_byte(0xcc);
pub(super) const PARENT: B256 = B256::repeat_byte(1);
pub(super) const SHARD: u32 = 0;

pub(super) fn chain(threads: usize, fast_path: bool) -> Chain {
    Chain { chain_id: 31_337, shard: SHARD, threads, fast_path, revision: Revision::PRAGUE }
}

pub(super) fn user(number: u64) -> Address {
    let mut address = Address::repeat_byte(0xaa);
    address[12..].copy_from_slice(&(number + 1).to_be_bytes());
    address
}

/// Users who are not poor.
pub(super) fn rich(number: u64) -> u64 {
    number / 9 * 10 + number % 9
}

pub(super) fn contract(number: u8) -> Address {
    Address::repeat_byte(number)
}

pub(super) const COUNTER: u8 = 0x31;
pub(super) const ASK_BALANCE: u8 = 0x32;
pub(super) const FORWARD: u8 = 0x33;
pub(super) const FACTORY: u8 = 0x34;
pub(super) const REVERTER: u8 = 0x35;
pub(super) const BURNER: u8 = 0x36;
pub(super) const TOKEN: u8 = 0x37;
pub(super) const ACCEPTER: u8 = 0x38;
pub(super) const DIAMOND: u8 = 0x39;
pub(super) const CYCLE: u8 = 0x3a;
pub(super) const SWEEP: u8 = 0x3b;

/// Deployed code of a contract as the node ships it.
pub(super) fn artifact(text: &str) -> String {
    let value: serde_json::Value = serde_json::from_str(text).expect("artifacts are JSON");
    value["runtime"].as_str().expect("artifacts have a runtime").to_owned()
}

pub(super) fn hex(bytes: &[u8]) -> String {
    alloy_primitives::hex::encode_prefixed(bytes)
}

pub(super) fn map_slot(slot: u64, key: &[u8]) -> U256 {
    keccak256([&U256::from(slot).to_be_bytes::<32>()[..], &U256::from_be_slice(key).to_be_bytes::<32>()[..]].concat())
        .into()
}

/// CREATE2 with salt 0 of a child that destroys itself when called; stores the child's address in slot 0, calls it
/// if the input is not empty.
pub(super) fn factory_code() -> Vec<u8> {
    // Child init code: returns `33ff` (CALLER SELFDESTRUCT): 6133ff5f526002601ef3, 10 bytes.
    let mut code = alloy_primitives::hex!("696133ff5f526002601ef35f52").to_vec();
    // CREATE2(value 0, offset 22, size 10, salt 0) → address; SSTORE(0, address); if calldatasize: CALL(address).
    code.extend(alloy_primitives::hex!("5f600a60165ff5805f55"));
    code.extend(alloy_primitives::hex!("36601e57")); // JUMPI to 0x1e when there is input
    code.resize(0x1e, 0x00);
    code.extend(alloy_primitives::hex!("5b5f5f5f5f5f855af100"));
    code
}

pub(super) fn genesis() -> serde_json::Map<String, serde_json::Value> {
    let mut alloc = serde_json::Map::new();
    for number in 0..USERS {
        // Every tenth user is poor: enough for one transfer's gas and little more.
        let balance = if number % 10 == 9 { "0x5af3107a4000" } else { "0x3635c9adc5dea00000" };
        alloc.insert(hex(user(number).as_slice()), serde_json::json!({ "balance": balance }));
    }
    let mut code = |address: Address, code: String, storage: serde_json::Value| {
        alloc.insert(hex(address.as_slice()), serde_json::json!({ "nonce": "0x1", "code": code, "storage": storage }));
    };
    let none = || serde_json::json!({});
    // slot 0 += 1
    code(contract(COUNTER), "0x5f546001015f5500".into(), none());
    // slot 1 := BALANCE(input word)
    code(contract(ASK_BALANCE), "0x5f353160015500".into(), none());
    // passes its value on to the address in the input
    code(contract(FORWARD), "0x5f5f5f5f345f355af15000".into(), none());
    // counts the input down in slots 0 to 5, the caller's address added
    let cycle = "0x5f355b8033015f55803301600155803301600255803301600355803301600455803301600555600190038060025700";
    code(contract(CYCLE), cycle.into(), none());
    // counts input word 0 down to word 1: slot (n mod 128) := n / 128
    code(contract(SWEEP), "0x5f355b8060071c81607f165560019003806020351060025700".into(), none());
    code(contract(FACTORY), hex(&factory_code()), none());
    code(contract(REVERTER), "0x5f546001015f5563deadbeef5f526004601cfd".into(), none());
    code(contract(BURNER), "0xfe".into(), none());
    code(contract(ACCEPTER), "0x632432ef2660e01b5f5260205ff3".into(), none());
    // slot (input word 0) := slot (input word 1) + 1
    code(contract(DIAMOND), "0x6020355460010160003555".into(), none());
    let mut held = serde_json::Map::new();
    for number in 0..USERS {
        held.insert(map_slot(5, user(number).as_slice()).to_string(), "0xffffffff".into());
    }
    code(contract(TOKEN), artifact(include_str!("../../../../../node/artifacts/erc20.json")), held.into());
    let gateway = artifact(include_str!("../../../../../node/artifacts/gateway.json"));
    code(GATEWAY, gateway, serde_json::json!({ "0x4": "0x8" }));
    let mut burner = Address::ZERO;
    burner[18..].copy_from_slice(&[0x5a, 0x7e]);
    code(burner, "0xfe".into(), none());
    alloc
}
