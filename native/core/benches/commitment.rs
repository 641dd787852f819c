//! What committing to a block costs: the hashes by themselves, then all hashing of blocks of transfers and of token calls.
//!
//! `cargo bench -p shardyard-core --bench commitment -- [--blocks 1000,10000] [--rounds 9] [--threads 1,2] [--json PATH]`
//!
//! All rows of a block size run one after the other within a round, so that what disturbs the machine disturbs all; figures
//! are medians over rounds. `wall` is what a block waits, `cpu` what all threads spent. Inputs are made before the timer
//! starts: no execution, no encoding of outcomes, no look-up of state is inside. A plain transfer touches two accounts (four
//! set elements) and has an outcome of 110 bytes; a token call touches its sender's account and two slots (six elements) and
//! has an outcome of 300.

mod measure;

use std::hint::black_box;
use std::time::Instant;

use alloy_primitives::{Address, B256, Bloom, Bytes, KECCAK256_EMPTY, Log, U256, keccak256};
use measure::{median, processor_time};
use shardyard_core::bloom::bloom_of;
use shardyard_core::hash::{keccak256_many, keccak256_many_tagged};
use shardyard_core::lthash::{LtHash, Sum};
use shardyard_core::merkle::merkle_root_on;
use shardyard_core::state::{Account, Update, commit};

/// Encoded outcomes of a plain transfer, and of a call with one log of three topics.
const OUTCOME_BYTES: usize = 110;
const LOGGED_OUTCOME_BYTES: usize = 300;
/// Two accounts with a balance each, and one nonce, in EIP-7928's encoding.
const ACCESS_BYTES: usize = 110;
/// The element of an account in the state commitment.
const ELEMENT_BYTES: usize = 93;

struct Options {
    blocks: Vec<u64>,
    rounds: usize,
    threads: Vec<usize>,
    json: Option<String>,
}

fn options() -> Options {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let mut options = Options { blocks: vec![1000, 10_000], rounds: 9, threads: (1..=cores).collect(), json: None };
    let numbers = |text: &str| text.split(',').map(|part| part.parse().expect("a number")).collect::<Vec<u64>>();
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        match name.as_str() {
            "--blocks" => options.blocks = numbers(&arguments.next().expect("--blocks N,N")),
            "--threads" => {
                let wanted = numbers(&arguments.next().expect("--threads N,N"));
                options.threads = wanted.into_iter().map(|threads| threads as usize).collect();
            }
            "--rounds" => options.rounds = numbers(&arguments.next().expect("--rounds N"))[0] as usize,
            "--json" => options.json = arguments.next(),
            _ => {}
        }
    }
    options
}

/// Everything that the hashing of one block reads.
struct Inputs {
    hashes: Vec<B256>,
    outcomes: Vec<Vec<u8>>,
    logged_outcomes: Vec<Vec<u8>>,
    elements: Vec<Vec<u8>>,
    /// One transfer of one token each.
    logs: Vec<Log>,
    access_list: Vec<u8>,
    accumulator: LtHash,
    accounts: Vec<Update>,
    accounts_and_slots: Vec<Update>,
}

fn inputs(count: u64) -> Inputs {
    let bytes = |number: u64, length: usize| -> Vec<u8> {
        let seed = keccak256(number.to_be_bytes());
        (0..length).map(|i| seed[i % 32] ^ (i / 32) as u8).collect()
    };
    let user = |number: u64| Address::from_slice(&keccak256(number.to_be_bytes())[12..]);
    let account =
        |nonce: u64| Account { nonce, balance: U256::from(1_000_000_007 * nonce), code_hash: KECCAK256_EMPTY };
    let touch = |number: u64| Update::Account(user(number), Some(account(number + 1)), Some(account(number + 2)));
    let slot = |number: u64| {
        let (before, after) = (U256::from(number + 1), U256::from(number + 2));
        Update::Slot(Address::repeat_byte(0x70), keccak256(number.to_le_bytes()).into(), before, after)
    };
    let log = |number: u64| {
        let topics = vec![B256::repeat_byte(1), user(number).into_word(), user(number + 1).into_word()];
        Log::new_unchecked(Address::repeat_byte(0x70), topics, Bytes::new())
    };
    let mut accumulator = LtHash::default();
    accumulator.add(b"what the state holds besides");
    Inputs {
        hashes: (0..count).map(|number| keccak256(number.to_be_bytes())).collect(),
        outcomes: (0..count).map(|number| bytes(number, OUTCOME_BYTES)).collect(),
        logged_outcomes: (0..count).map(|number| bytes(number, LOGGED_OUTCOME_BYTES)).collect(),
        elements: (0..count).map(|number| bytes(number, ELEMENT_BYTES)).collect(),
        logs: (0..count).map(log).collect(),
        access_list: bytes(count, ACCESS_BYTES * count as usize),
        accumulator,
        accounts: (0..2 * count).map(touch).collect(),
        accounts_and_slots: (0..count)
            .flat_map(|number| [touch(number), slot(2 * number), slot(2 * number + 1)])
            .collect(),
    }
}

type Work<'a> = Box<dyn Fn() + 'a>;

/// (what, what is inside the timer, per what, the work): the hashes by themselves, on one thread.
fn singles<'a>(inputs: &'a Inputs) -> Vec<(&'static str, &'static str, &'static str, Work<'a>)> {
    let one_by_one = || inputs.hashes.iter().for_each(|hash| keep(keccak256(hash)));
    let single_blooms = || {
        let mut bloom = Bloom::ZERO;
        inputs.logs.iter().for_each(|log| bloom.accrue_log(log));
        keep(bloom);
    };
    let single_elements = || {
        let mut sum = LtHash::default();
        inputs.elements.iter().for_each(|element| sum.add(element));
        keep(sum);
    };
    let elements = || {
        let mut sum = Sum::default();
        inputs.elements.iter().for_each(|element| sum.add(element));
        keep(sum.finish());
    };
    vec![
        ("keccak256, one by one", "32 bytes each, one permutation", "message", Box::new(one_by_one)),
        ("keccak256_many", "the same messages", "message", Box::new(|| keep(keccak256_many(&inputs.hashes)))),
        (
            "leaf of an outcome",
            "110 bytes and the tag, one permutation",
            "leaf",
            Box::new(|| keep(keccak256_many_tagged(0, &inputs.outcomes))),
        ),
        (
            "leaf of an outcome with a log",
            "300 bytes and the tag, three permutations",
            "leaf",
            Box::new(|| keep(keccak256_many_tagged(0, &inputs.logged_outcomes))),
        ),
        ("blooms, log by log", "an address and three topics", "log", Box::new(single_blooms)),
        ("bloom_of", "the same logs", "log", Box::new(|| keep(bloom_of(inputs.logs.iter())))),
        ("LtHash::add", "one element of 93 bytes", "element", Box::new(single_elements)),
        ("Sum::add", "the same elements, gathered", "element", Box::new(elements)),
    ]
}

/// The parts of committing to a block of `count` transactions, and whole blocks.
fn parts<'a>(inputs: &'a Inputs, threads: usize) -> Vec<(&'static str, &'static str, &'static str, Work<'a>)> {
    let state = move |updates: &[Update]| keep(commit(&inputs.accumulator, &[updates], threads).root());
    let tree = move |outcomes: &[Vec<u8>]| keep(merkle_root_on(outcomes, threads));
    let hashes = move || keep(merkle_root_on(&inputs.hashes, threads));
    let access_list = move || keep(keccak256(&inputs.access_list));
    vec![
        (
            "state, transfers",
            "LtHash: 2 accounts, 4 elements",
            "transaction",
            Box::new(move || state(&inputs.accounts)),
        ),
        ("transactions_root", "Merkle tree over hashes", "transaction", Box::new(hashes)),
        ("outcomes_root", "Merkle tree over 110 bytes each", "transaction", Box::new(move || tree(&inputs.outcomes))),
        ("access list", "one keccak256 over 110 bytes each, one thread", "transaction", Box::new(access_list)),
        (
            "block of transfers",
            "all of the above",
            "transaction",
            Box::new(move || {
                state(&inputs.accounts);
                hashes();
                tree(&inputs.outcomes);
                access_list();
            }),
        ),
        (
            "block of token calls",
            "6 elements, outcomes of 300 bytes and their bloom, else the same",
            "transaction",
            Box::new(move || {
                state(&inputs.accounts_and_slots);
                hashes();
                tree(&inputs.logged_outcomes);
                keep(bloom_of(inputs.logs.iter()));
                access_list();
            }),
        ),
    ]
}

/// Takes a result so that computing it is not optimised away.
fn keep<T>(result: T) {
    black_box(result);
}

fn measure(options: &Options, count: u64, threads: usize, report: &mut Vec<serde_json::Value>, inputs: &Inputs) {
    let mut rows = if threads == 1 { singles(inputs) } else { Vec::new() };
    rows.extend(parts(inputs, threads));
    let mut figures = vec![(Vec::new(), Vec::new()); rows.len()];
    for round in 0..=options.rounds {
        for ((_, _, _, work), (wall, spent)) in rows.iter().zip(&mut figures) {
            let (started, before) = (Instant::now(), processor_time());
            work();
            // The first round warms caches, allocators and the pool.
            if round > 0 {
                wall.push(started.elapsed().as_secs_f64() * 1e6 / count as f64);
                spent.push((processor_time() - before).as_secs_f64() * 1e6 / count as f64);
            }
        }
    }
    for ((what, inside, unit, _), (wall, spent)) in rows.iter().zip(&mut figures) {
        let (wall, spent) = (median(wall), median(spent));
        println!("{what:<30} {threads:>7} {count:>6} {wall:>9.3} {spent:>9.3}  {unit:<12} {inside}");
        report.push(serde_json::json!({
            "what": what, "inside": inside, "per": unit, "threads": threads, "block": count,
            "wall_us": wall, "cpu_us": spent,
        }));
    }
}

fn main() {
    let options = options();
    let mut report = Vec::new();
    println!(
        "{:<30} {:>7} {:>6} {:>9} {:>9}  {:<12} inside the timer",
        "what", "threads", "block", "wall µs", "cpu µs", "per"
    );
    for count in &options.blocks {
        let inputs = inputs(*count);
        for threads in &options.threads {
            measure(&options, *count, *threads, &mut report, &inputs);
        }
    }
    if let Some(path) = options.json {
        std::fs::write(path, serde_json::to_vec_pretty(&report).expect("plain data")).expect("the path is writable");
    }
}
