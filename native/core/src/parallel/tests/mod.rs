//! Claims about parallel blocks: whatever they hold, however workers stumble, the result is that of executing in order.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use alloy_eips::eip7702::{Authorization, RecoveredAuthority, RecoveredAuthorization};
use alloy_primitives::{Address, B256, Bytes, TxKind, U256, keccak256};

use crate::batch::{Batch, Entry};
use crate::block::{Block, BlockEnv, BlockResult, Mode, execute_on};
use crate::codec::Reader;
use crate::error::{CoreError, Result};
use crate::gateway::{GATEWAY, OUTBOX_TOPIC};
use crate::pool::pool;
use crate::receipt::{Kind, Origin, Receipt};
use crate::state::{Store, View, parse_genesis};
use crate::transaction::Transaction;

mod lanes;
mod lists;
mod programs;
mod sizes;
mod world;

use lists::unlike_lists;
use world::*;

static STUMBLES: AtomicU64 = AtomicU64::new(0);
static STARTS_ALONE: AtomicBool = AtomicBool::new(false);
static RUNS_IN_LANES: AtomicBool = AtomicBool::new(true);
/// Perturbed schedules are chosen per test, so tests that stumble take turns.
static TURN: Mutex<()> = Mutex::new(());

fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

pub(super) fn perturb() {
    let step = STUMBLES.load(Relaxed);
    if step == 0 {
        return;
    }
    STUMBLES.store(step.wrapping_add(0x9e37_79b9_7f4a_7c15) | 1, Relaxed);
    let dice = mix(step);
    if dice.is_multiple_of(5) {
        for _ in 0..dice % 7 {
            std::thread::yield_now();
        }
    }
}

pub(super) fn starts_alone() -> bool {
    STARTS_ALONE.load(Relaxed)
}

pub(super) fn runs_in_lanes() -> bool {
    RUNS_IN_LANES.load(Relaxed)
}

/// Deterministic choices of a workload.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0) % sides
    }
}

/// Perturbed schedules of every workload.
const SCHEDULES: u64 = 20;
fn store() -> Arc<Store> {
    store_with([])
}

/// With these accounts beside, or instead of, those of the genesis.
fn store_with(accounts: impl IntoIterator<Item = (Address, serde_json::Value)>) -> Arc<Store> {
    let mut alloc = genesis();
    alloc.extend(accounts.into_iter().map(|(address, account)| (hex(address.as_slice()), account)));
    let store = Arc::new(Store::new(4));
    store.replace(parse_genesis(&serde_json::to_vec(&alloc).expect("plain data")).expect("it parses"), 1);
    store.set_base(PARENT, 0);
    store
}

fn env() -> BlockEnv {
    BlockEnv {
        number: 1,
        timestamp: 1_700_000_000,
        gas_limit: 30_000_000_000,
        base_fee: BASE_FEE,
        beneficiary: BENEFICIARY,
        prevrandao: B256::ZERO,
        parent_hash: PARENT,
        beacon_root: B256::repeat_byte(2),
        beacon_height: 7,
        inbox_gas: 1_000_000_000,
        link_base_fees: vec![(1, 5), (2, 6)],
    }
}

/// A block in the making; nonces are counted per user.
#[derive(Default)]
struct Workload {
    entries: Vec<Entry>,
    nonces: std::collections::BTreeMap<u64, u64>,
}

struct Call {
    to: Option<Address>,
    value: u64,
    input: Vec<u8>,
    gas: u64,
}

impl Call {
    fn to(to: Address) -> Self {
        Self { to: Some(to), value: 0, input: Vec::new(), gas: 200_000 }
    }

    fn pay(to: Address, value: u64) -> Self {
        Self { value, gas: 21_000, ..Self::to(to) }
    }

    fn words<const N: usize>(self, words: [U256; N]) -> Self {
        Self { input: words.iter().flat_map(|word| word.to_be_bytes::<32>()).collect(), ..self }
    }
}

fn word(address: Address) -> U256 {
    U256::from_be_slice(address.as_slice())
}

impl Workload {
    fn push(&mut self, from: u64, call: Call) {
        let nonce = self.nonces.entry(from).or_default();
        let used = *nonce;
        *nonce += 1;
        self.push_with_nonce(from, used, call);
    }

    fn push_with_nonce(&mut self, from: u64, nonce: u64, call: Call) {
        let transaction = Transaction {
            hash: keccak256((self.entries.len() as u64).to_be_bytes()),
            sender: user(from),
            tx_type: 2,
            nonce,
            gas_limit: call.gas,
            max_fee: FEE,
            tip: Some(1_000_000 + u128::from(from)),
            to: call.to.map_or(TxKind::Create, TxKind::Call),
            value: U256::from(call.value),
            input: call.input.into(),
            ..Transaction::unsigned(0)
        };
        let transaction = Some(Arc::new(transaction));
        self.entries.push(Entry { hash: B256::ZERO, transaction, refusal: None });
    }

    /// The transaction that was pushed last.
    fn last(&mut self) -> &mut Transaction {
        let transaction = self.entries.last_mut().and_then(|entry| entry.transaction.as_mut()).and_then(Arc::get_mut);
        transaction.expect("it was just pushed")
    }

    /// `from` brings an authorization by which `authority`, at this nonce, delegates to `to`.
    fn delegate(&mut self, from: u64, authority: Address, nonce: u64, to: Address) {
        self.push(from, Call { gas: 100_000, ..Call::pay(user(from), 0) });
        let signed = Authorization { chain_id: U256::from(31_337), address: to, nonce };
        let authorization = RecoveredAuthorization::new_unchecked(signed, RecoveredAuthority::Valid(authority));
        let transaction = self.last();
        (transaction.tx_type, transaction.authorizations) = (4, vec![authorization].into());
    }

    fn token(&mut self, from: u64, to: u64, amount: u64) {
        let mut call = Call { gas: 100_000, ..Call::to(contract(TOKEN)) }.words([word(user(to)), U256::from(amount)]);
        call.input.splice(0..0, keccak256("transfer(address,uint256)")[..4].iter().copied());
        self.push(from, call);
    }

    /// A transfer to another shard through the gateway.
    fn send(&mut self, from: u64, dst: u64) {
        let mut call =
            Call { value: 1000 + from, gas: 200_000, ..Call::to(GATEWAY) }.words([U256::from(dst), word(user(3))]);
        call.input.splice(0..0, keccak256("transfer(uint256,address)")[..4].iter().copied());
        self.push(from, call);
    }

    fn random(&mut self, dice: &mut Dice, users: u64) {
        let from = dice.roll(users);
        let to = dice.roll(users);
        match dice.roll(20) {
            0..=4 => self.push(from, Call::pay(user(to), dice.roll(1000))),
            5 => self.push(from, Call::pay(Address::repeat_byte(dice.roll(200) as u8), dice.roll(2))),
            6 => self.push(from, Call::to(contract(COUNTER))),
            7 => self.push(from, Call::to(contract(ASK_BALANCE)).words([word(user(to))])),
            8 => self.push(from, Call::to(contract(ASK_BALANCE)).words([word(BENEFICIARY)])),
            9 => self.push(from, Call { value: 77, ..Call::to(contract(FORWARD)) }.words([word(user(to))])),
            10 => {
                let input = if dice.roll(2) == 0 { Vec::new() } else { vec![1] };
                self.push(from, Call { input, ..Call::to(contract(FACTORY)) });
            }
            11 => self.push(from, Call::to(contract(REVERTER))),
            12 => {
                // Init code that stores and returns nothing: an account without code, then one with.
                let input = if dice.roll(2) == 0 { vec![0x60, 1, 0x5f, 0x55] } else { vec![0x60, 1, 0x5f, 0xf3] };
                self.push(from, Call { to: None, value: 0, input, gas: 200_000 });
            }
            13 => {
                let nonce = dice.roll(4);
                self.push_with_nonce(from, nonce, Call::pay(user(to), 1));
            }
            14 => self.push(from, Call::pay(user(to), 50_000_000_000_000 + dice.roll(60_000_000_000_000))),
            15..=16 => self.token(from, to, dice.roll(100)),
            17 => self.send(from, 1 + dice.roll(3)),
            18 => self.push(from, Call::pay(BENEFICIARY, dice.roll(9))),
            _ => {
                let slots = [U256::from(dice.roll(5)), U256::from(dice.roll(5))];
                self.push(from, Call::to(contract(DIAMOND)).words(slots));
            }
        }
    }
}

/// What two executions of a block must agree on.
#[derive(Debug, PartialEq, Eq)]
struct Digest {
    roots: [B256; 4],
    bloom: alloy_primitives::Bloom,
    gas_used: u64,
    sums: [U256; 2],
    included: Vec<u32>,
    skipped: Vec<(u32, String)>,
    outcomes: Vec<u8>,
    outbox: Vec<Vec<u8>>,
    diff: Vec<u8>,
    access_list: Vec<u8>,
}

fn digest(result: &BlockResult) -> Digest {
    Digest {
        roots: [result.state_root, result.transactions_root, result.outcomes_root, result.outbox_root],
        bloom: result.logs_bloom,
        gas_used: result.gas_used,
        sums: [result.burnt, result.tips],
        included: result.included.clone(),
        skipped: result.skipped.clone(),
        outcomes: result.outcomes.clone(),
        outbox: result.outbox.clone(),
        diff: result.diff.clone(),
        access_list: result.access_list.clone(),
    }
}

struct Case {
    view: View,
    env: BlockEnv,
    batch: Batch,
    mode: Mode,
    inbox: Vec<Vec<u8>>,
    access_list: Option<Vec<u8>>,
}

impl Case {
    fn new(store: &Arc<Store>, workload: Workload) -> Self {
        let view = store.view(&PARENT).expect("the base is held");
        let batch: Batch = workload.entries.into_iter().collect();
        Self { view, env: env(), batch, mode: Mode::Build, inbox: Vec::new(), access_list: None }
    }

    fn run(&self, threads: usize, fast_path: bool) -> Result<BlockResult> {
        let mut block = Block::new(chain(threads, fast_path), &self.env, &self.batch, self.mode, &self.inbox)?;
        block.access_list = self.access_list.as_deref();
        execute_on(pool(threads).as_deref(), &block, self.view.clone(), PARENT)
    }

    /// Claims that every way of executing gives what the EVM gives in order, and returns that.
    fn check(&self) -> Result<Digest, CoreError> {
        let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let expected = self.run(1, false).map(|result| digest(&result));
        assert_eq!(self.run(1, true).map(|result| digest(&result)), expected, "the fast path in order");
        for seed in 1..=SCHEDULES {
            STUMBLES.store(seed, Relaxed);
            for threads in [2, 3, 4, 8, 16] {
                for (fast_path, in_lanes) in [(true, true), (false, true), (true, false), (false, false)] {
                    RUNS_IN_LANES.store(in_lanes, Relaxed);
                    let found = self.run(threads, fast_path).map(|result| digest(&result));
                    assert!(
                        found == expected,
                        "threads {threads}, seed {seed}, fast path {fast_path}, lanes {in_lanes}: {}",
                        differences(&found, &expected)
                    );
                }
            }
        }
        STUMBLES.store(0, Relaxed);
        STARTS_ALONE.store(true, Relaxed);
        for fast_path in [true, false] {
            let found = self.run(2, fast_path).map(|result| digest(&result));
            assert!(found == expected, "alone, fast path {fast_path}: {}", differences(&found, &expected));
        }
        STARTS_ALONE.store(false, Relaxed);
        RUNS_IN_LANES.store(true, Relaxed);
        if let Ok(built) = &expected {
            self.check_replay(built);
        }
        expected
    }
}

fn differences(found: &Result<Digest>, expected: &Result<Digest>) -> String {
    match (found, expected) {
        (Ok(found), Ok(expected)) => {
            let mut text = format!("gas {} {}; ", found.gas_used, expected.gas_used);
            text += &format!("skipped {:?} {:?}; ", found.skipped, expected.skipped);
            text += &format!("roots {:?} {:?}; sums {:?} {:?}", found.roots, expected.roots, found.sums, expected.sums);
            text += &format!("; outcomes equal {}", found.outcomes == expected.outcomes);
            text += &unlike_lists(found, expected);
            text
        }
        (found, expected) => format!("{:?} {:?}", found.as_ref().err(), expected.as_ref().err()),
    }
}

fn stat(result: &BlockResult, name: &str) -> u64 {
    let mut reader = Reader::new(&result.stats);
    for _ in 0..reader.map().expect("stats are a map") {
        let key = reader.text().expect("keys are text").to_owned();
        if key == "hottest" {
            break;
        }
        let value = reader.uint().expect("values are numbers");
        if key == name {
            return value;
        }
    }
    panic!("no {name} in the stats");
}

#[test]
fn mixed_blocks_end_as_in_order_whatever_the_schedule() {
    let store = store();
    for (seed, users, count) in [(1, 400, 600), (2, 40, 400), (3, 5, 200), (4, 2, 100), (5, 400, 64), (6, 12, 300)] {
        let (mut dice, mut workload) = (Dice(seed), Workload::default());
        (0..count).for_each(|_| workload.random(&mut dice, users));
        Case::new(&store, workload).check().expect("builders leave out what is invalid");
    }
}

#[test]
fn blocks_of_no_to_ten_transactions_end_as_in_order() {
    let store = store();
    for count in 0..=10 {
        let (mut dice, mut workload) = (Dice(100 + count), Workload::default());
        (0..count).for_each(|_| workload.random(&mut dice, 3));
        Case::new(&store, workload).check().expect("builders leave out what is invalid");
    }
}

#[test]
fn the_gas_limit_cuts_at_the_same_transaction() {
    let store = store();
    for limit in [0, 21_000, 777_777, 3_000_000] {
        let (mut dice, mut workload) = (Dice(limit), Workload::default());
        (0..300).for_each(|_| workload.random(&mut dice, 60));
        let mut case = Case::new(&store, workload);
        case.env.gas_limit = limit;
        let digest = case.check().expect("builders leave out what does not fit");
        assert!(digest.skipped.iter().any(|(_, reason)| reason == "gas limit reached"));
        assert!(digest.gas_used <= limit);
        case.mode = Mode::Validate;
        assert!(matches!(case.check(), Err(CoreError::InvalidBlock(_))));
    }
}

#[test]
fn validators_refuse_the_same_transaction_for_the_same_reason() {
    let store = store();
    for bad in [0, 1, 99, 198] {
        let mut workload = Workload::default();
        for place in 0..199 {
            if place == bad {
                workload.push_with_nonce(7, 55, Call::pay(user(8), 1));
            } else {
                workload.push(place % 90 + 10, Call::pay(user(place), 1));
            }
        }
        let mut case = Case::new(&store, workload);
        case.mode = Mode::Validate;
        let error = case.check().expect_err("its nonce is too high");
        assert!(error.to_string().starts_with(&format!("invalid block: transaction {bad}: nonce too high")), "{error}");
    }
}

#[test]
fn funds_that_arrive_within_the_block_count_from_there_on() {
    let store = store();
    let mut workload = Workload::default();
    // User 9 cannot pay 10^15 before user 0 sends it, and can after.
    workload.push_with_nonce(9, 0, Call::pay(user(20), 1_000_000_000_000_000));
    (0..70).for_each(|n| workload.push(10 + n % 5, Call::pay(user(200 + n), 5)));
    workload.push(0, Call::pay(user(9), 2_000_000_000_000_000));
    workload.push_with_nonce(9, 0, Call::pay(user(20), 1_000_000_000_000_000));
    workload.push_with_nonce(9, 1, Call::pay(user(21), 1_000_000_000_000_000));
    workload.push_with_nonce(9, 2, Call::pay(user(21), 1_000_000_000_000_000));
    let digest = Case::new(&store, workload).check().expect("builders leave out what is invalid");
    assert_eq!(digest.skipped.iter().map(|(place, _)| *place).collect::<Vec<_>>(), [0, 74]);
    assert!(digest.skipped.iter().all(|(_, reason)| reason.starts_with("insufficient funds")));
}

#[test]
fn one_broke_sender_costs_its_own_transaction_only() {
    let store = store();
    let mut workload = Workload::default();
    for place in 0..200 {
        let value = if place == 100 { u64::MAX } else { 1 };
        workload.push(if place == 100 { 19 } else { place % 9 }, Call::pay(user(300), value));
    }
    let digest = Case::new(&store, workload).check().expect("builders leave out what is invalid");
    assert_eq!(digest.skipped.len(), 1);
}

#[test]
fn nonce_storms_end() {
    let store = store();
    let mut workload = Workload::default();
    (0..300).for_each(|n| workload.push_with_nonce(n % 3, (300 - n) % 7, Call::pay(user(n % 3), 1)));
    Case::new(&store, workload).check().expect("builders leave out what is invalid");
}

#[test]
fn two_accounts_that_pay_each_other_make_one_chain_of_balances() {
    let store = store();
    let mut workload = Workload::default();
    (0..400).for_each(|n| workload.push(n % 2, Call::pay(user(1 - n % 2), n)));
    Case::new(&store, workload).check().expect("all are valid");
}

#[test]
fn every_transaction_in_the_way_of_the_next_still_ends() {
    let store = store();
    let mut workload = Workload::default();
    (0..300).for_each(|n| workload.push(n, Call::to(contract(COUNTER))));
    let case = Case::new(&store, workload);
    case.check().expect("all are valid");
    let result = case.run(4, true).expect("all are valid");
    assert!(stat(&result, "incarnations") < 2 * 300);
}

#[test]
fn contracts_that_come_and_go_are_seen_so() {
    let store = store();
    let mut workload = Workload::default();
    for n in 0..200_u64 {
        let input = if n % 3 == 0 { Vec::new() } else { vec![1] };
        workload.push(n % 50, Call { input, ..Call::to(contract(FACTORY)) });
        if n % 4 == 0 {
            workload.push(60 + n % 50, Call::pay(contract(FACTORY).create2(B256::ZERO, child_hash()), n));
        }
    }
    Case::new(&store, workload).check().expect("all are valid");
}

#[test]
fn accounts_that_delegate_cost_the_same_whoever_touched_them_before() {
    let store = store();
    let mut workload = Workload::default();
    for n in 0..80_u64 {
        let mut authority = Address::repeat_byte(0xde);
        authority[12..].copy_from_slice(&n.to_be_bytes());
        // Touched but not there: whoever sets its code is paid nothing back.
        workload.push(3 * n % 40, Call::pay(authority, n % 2));
        workload.delegate((3 * n + 1) % 40, authority, 0, contract(COUNTER));
        workload.push((3 * n + 2) % 40, Call::to(authority));
        if n % 3 == 0 {
            let next = if n % 2 == 0 { Address::ZERO } else { contract(REVERTER) };
            workload.delegate(41 + n % 9, authority, 1, next);
            workload.delegate(41 + n % 9, authority, 2, contract(COUNTER));
        }
    }
    Case::new(&store, workload).check().expect("all are valid");
}

/// A gateway that emits whatever message it is told to: LOG2(topic, first word of the input) over the rest of it.
fn store_with_echo() -> Arc<Store> {
    let mut code = alloy_primitives::hex!("365f5f375f517f").to_vec();
    code.extend_from_slice(OUTBOX_TOPIC.as_slice());
    code.extend(alloy_primitives::hex!("602036036020a200"));
    store_with([(GATEWAY, serde_json::json!({ "nonce": "0x1", "code": hex(&code) }))])
}

/// What came before a sender without room has filled the outbox itself: repeating it must not ask for room again.
#[test]
fn senders_that_fill_the_outbox_leave_what_came_before_them_as_it_was() {
    let payload = 16 * 1024_u64;
    let message = |number: u64| {
        let receiver = word(user(3));
        let numbers = [number, 1, 5, 0, 0, 1000, 0, 0, 0, 0, 0, 11 * 32, payload].map(U256::from);
        let mut words = numbers.to_vec();
        (words[3], words[4], words[9]) = (receiver, receiver, receiver);
        let mut input: Vec<u8> = words.iter().flat_map(|word| word.to_be_bytes::<32>()).collect();
        input.resize(input.len() + payload as usize, 0x5a);
        Call { input, value: 1000, gas: 3_000_000, ..Call::to(GATEWAY) }
    };
    // Every tenth user is poor.
    let rich = |number: u64| number / 9 * 10 + number % 9;
    let mut workload = Workload::default();
    for n in 0..540_u64 {
        workload.push(rich(n), message(n));
        // Enough of one chain for one worker to go alone.
        workload.push(rich(540 + n), Call { gas: 1_000_000, ..Call::to(contract(COUNTER)) });
    }
    let digest = Case::new(&store_with_echo(), workload).check().expect("builders leave out what finds no room");
    let has = |wanted: &str| digest.skipped.iter().any(|(_, reason)| reason == wanted);
    assert!(has("outbox limit reached"), "{:?}", digest.skipped.first());
}

fn child_hash() -> B256 {
    keccak256(alloy_primitives::hex!("6133ff5f526002601ef3"))
}

#[test]
fn a_beneficiary_that_is_a_hot_account_earns_the_same() {
    let store = store();
    for beneficiary in [user(0), contract(COUNTER), contract(FACTORY).create2(B256::ZERO, child_hash()), GATEWAY] {
        let (mut dice, mut workload) = (Dice(9), Workload::default());
        (0..250).for_each(|_| workload.random(&mut dice, 20));
        (0..5).for_each(|_| workload.push(0, Call::pay(user(1), 3)));
        let mut case = Case::new(&store, workload);
        case.env.beneficiary = beneficiary;
        case.check().expect("builders leave out what is invalid");
    }
}

fn receipt(number: u64, kind: Kind, target: Address) -> Vec<u8> {
    let gas_limit = if kind == Kind::Transfer { 0 } else { 100_000 };
    Receipt {
        kind,
        src: 1 + (number % 2) as u32,
        dst: SHARD,
        seq: number,
        id: keccak256(number.to_be_bytes()),
        origin: Origin { tx_hash: B256::ZERO, initiator: user(1), depth: 0 },
        parent_id: keccak256("parent"),
        sender: user(2),
        target,
        value: U256::from(1000 + number),
        gas_limit,
        gas_price: if gas_limit == 0 { 0 } else { FEE as u64 },
        reply_gas: if kind == Kind::Call { 50_000 } else { 0 },
        refund_to: user(number % 4),
        deadline: 0,
        payload: Bytes::from(vec![7; (number % 40) as usize]).to_vec(),
    }
    .encode()
}

#[test]
fn deliveries_go_through_the_same_machinery() {
    let store = store();
    let targets = [contract(ACCEPTER), contract(REVERTER), contract(BURNER), user(3), GATEWAY, BENEFICIARY];
    for seed in 0..4 {
        let (mut dice, mut workload) = (Dice(seed), Workload::default());
        (0..150).for_each(|_| workload.random(&mut dice, 60));
        let mut case = Case::new(&store, workload);
        for number in 0..80 {
            let kind =
                [Kind::Call, Kind::Transfer, Kind::Result, Kind::Bounce, Kind::Withdrawal][dice.roll(5) as usize];
            case.inbox.push(receipt(number, kind, targets[dice.roll(6) as usize]));
        }
        let digest = case.check().expect("builders leave out what is invalid");
        assert!(!digest.outbox.is_empty());
    }
}

#[test]
fn senders_on_one_link_do_not_conflict() {
    let store = store();
    let mut sends = Workload::default();
    (0..USERS).filter(|n| n % 10 != 9).for_each(|n| sends.send(n, 1));
    let case = Case::new(&store, sends);
    assert_eq!(case.check().expect("all are valid").outbox.len(), 1080);
    let result = case.run(2, true).expect("all are valid");
    assert!(stat(&result, "aborts") * 100 <= 1080, "{} aborts", stat(&result, "aborts"));
}

#[test]
fn a_failing_store_is_an_error_and_no_hang() {
    let store = store();
    let mut workload = Workload::default();
    (0..200).for_each(|n| workload.push(n, Call::pay(user(n), 1)));
    let case = Case::new(&store, workload);
    // Views taken before a replacement answer `MissingState`.
    store.replace(Default::default(), 1);
    for threads in [1, 2, 8] {
        assert!(matches!(case.run(threads, true), Err(CoreError::MissingState(_))));
    }
}
