//! The executor's table: raw transfers, tokens, swaps, mixes and chains, against the fastest sequential revm there is.
//!
//! `cargo bench -p shardyard-core --bench executor -- [--blocks 1000,10000] [--rounds 5] [--threads 2] [--json PATH]`
//!
//! Within a round all variants of a workload run one after the other, so that what disturbs the machine disturbs all;
//! figures are medians over rounds. Senders are recovered before the timer starts. "bare" is revm by itself: one journal,
//! no outcomes, no commitment. "in order" is one thread without the fast path; the others are the parallel executor.
//! `execute` ends with the last state change, `total` includes outcomes, all roots and the diff.

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use alloy_primitives::{Address, B256, Signature, TxKind, U256, hex, keccak256};
use shardyard_core::batch::{Batch, Entry};
use shardyard_core::block::{BlockEnv, BlockResult, Chain, Mode};
use shardyard_core::codec::Reader;
use shardyard_core::core::Core;
use shardyard_core::evm::Revision;
use shardyard_core::transaction::Transaction;

const PARENT: B256 = B256::repeat_byte(1);
const CHAIN_ID: u64 = 31_337;
const BASE_FEE: u64 = 1_000_000_000;
const TOKENS: u64 = 100;
const ERC20: &str = include_str!("../../../node/artifacts/erc20.json");
const PAIR: &str = include_str!("../../../node/artifacts/pair.json");

struct Options {
    blocks: Vec<u64>,
    rounds: usize,
    threads: Vec<usize>,
    json: Option<String>,
    /// Parts of the names of the workloads and variants to run; all when empty.
    only: String,
    variants: String,
}

fn options() -> Options {
    let mut options = Options {
        blocks: vec![1000, 10_000],
        rounds: 5,
        threads: vec![2],
        json: None,
        only: String::new(),
        variants: String::new(),
    };
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
            "--only" => options.only = arguments.next().expect("--only PART"),
            "--variants" => options.variants = arguments.next().expect("--variants PART"),
            _ => {}
        }
    }
    options
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

/// Users rich in ether and in every token and pair they use; user n uses token and pair n modulo their number.
fn genesis(users: u64) -> Vec<u8> {
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
        alloc.insert(hex::encode_prefixed(contract(0x70, token)), entry);
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
        alloc.insert(hex::encode_prefixed(contract(0x71, pair)), entry);
    }
    // slot 0 += 1: every call depends on the one before.
    let counter = serde_json::json!({ "nonce": "0x1", "code": "0x5f546001015f5500" });
    alloc.insert(hex::encode_prefixed(contract(0x72, 0)), counter);
    serde_json::to_vec(&alloc).expect("an allocation is JSON")
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
    call(from, contract(0x70, token), "transfer(address,uint256)", &words)
}

fn swap(from: u64, pair: u64, direction: u64) -> Draft {
    let words = [U256::from(1000), U256::ZERO, U256::from(direction % 2)];
    call(from, contract(0x71, pair), "swap(uint256,uint256,bool)", &words)
}

fn batch(drafts: Vec<Draft>) -> Batch {
    let mut nonces = std::collections::HashMap::new();
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
            authorizations: Vec::new(),
            signed_authorizations: Vec::new(),
            blobs: None,
            signature: Signature::new(U256::ZERO, U256::ZERO, false),
        };
        *nonce += 1;
        Entry { hash, transaction: Some(Arc::new(transaction)), refusal: None }
    });
    Batch { entries: entries.collect() }
}

fn workloads(count: u64, users: u64) -> Vec<(String, Batch)> {
    let mut dice = Dice(7);
    let mut made: Vec<(String, Vec<Draft>)> = Vec::new();
    made.push(("raw, disjoint".into(), (0..count).map(|n| pay(2 * n, 2 * n + 1)).collect()));
    for exponent in [0.8, 1.0, 1.2] {
        let zipf = Zipf::new(users, exponent);
        let drafts = (0..count).map(|n| pay(n, zipf.draw(&mut dice))).collect();
        made.push((format!("raw, Zipf {exponent} recipients"), drafts));
    }
    for accounts in [2, 10, 100, 1000] {
        let drafts = (0..count).map(|_| pay(dice.below(accounts), dice.below(accounts))).collect();
        made.push((format!("raw, {accounts} accounts"), drafts));
    }
    made.push(("ERC-20, disjoint, 1 token".into(), (0..count).map(|n| token(2 * n, 2 * n + 1, 0)).collect()));
    made.push((
        "ERC-20, disjoint, 100 tokens".into(),
        (0..count).map(|n| token(2 * n, 2 * n + 1, 2 * n % 100)).collect(),
    ));
    let zipf = Zipf::new(users, 1.0);
    made.push(("ERC-20, Zipf 1.0 recipients".into(), (0..count).map(|n| token(n, zipf.draw(&mut dice), 0)).collect()));
    for pairs in [1, 10, 100] {
        let drafts =
            (0..count).map(|n| swap(n, if pairs == 100 { n % 100 } else { dice.below(pairs) }, n / 7)).collect();
        made.push((format!("swaps, {pairs} pools"), drafts));
    }
    for hot in [0, 10, 50] {
        let drafts = (0..count).map(|n| {
            let is_hot = dice.below(100) < hot;
            match dice.below(10) {
                0..=5 => pay(n, if is_hot { 0 } else { dice.below(users) }),
                6..=7 => token(n, if is_hot { 0 } else { dice.below(users) }, 0),
                _ => swap(n, if is_hot { 0 } else { n % 100 }, n),
            }
        });
        made.push((format!("hybrid 60/20/20, {hot} % hot"), drafts.collect()));
    }
    let chain = (0..count).map(|n| Draft { from: n, to: contract(0x72, 0), value: 0, input: Vec::new(), gas: 60_000 });
    made.push(("dependent chain".into(), chain.collect()));
    made.push(("one sender".into(), (0..count).map(|n| token(0, 1 + n % 50, 0)).collect()));
    made.into_iter().map(|(name, drafts)| (name, batch(drafts))).collect()
}

fn env() -> BlockEnv {
    BlockEnv {
        number: 1,
        timestamp: 1_700_000_000,
        gas_limit: u64::MAX / 4,
        base_fee: BASE_FEE,
        beneficiary: Address::repeat_byte(0xcc),
        prevrandao: B256::ZERO,
        parent_hash: PARENT,
        beacon_root: B256::ZERO,
        beacon_height: 1,
        inbox_gas: 0,
        link_base_fees: Vec::new(),
    }
}

fn core(threads: usize, fast_path: bool, snapshot: &[Vec<u8>]) -> Core {
    let core = Core::new(Chain { chain_id: CHAIN_ID, shard: 0, threads, fast_path, revision: Revision::PRAGUE }, 1);
    core.restore(snapshot).expect("the snapshot is whole");
    core.set_base(PARENT, 0);
    core
}

fn stat(result: &BlockResult, name: &str) -> u64 {
    let mut reader = Reader::new(&result.stats);
    for _ in 0..reader.map().expect("stats are a map") {
        let key = reader.text().expect("keys are text").to_owned();
        let value = reader.uint().expect("counts come before lists");
        if key == name {
            return value;
        }
    }
    0
}

/// Processor time of this process so far.
fn cpu() -> Duration {
    // SAFETY: getrusage fills the struct it is given.
    let usage = unsafe {
        let mut usage = std::mem::zeroed::<libc::rusage>();
        libc::getrusage(libc::RUSAGE_SELF, &mut usage);
        usage
    };
    let time = |time: libc::timeval| Duration::new(time.tv_sec as u64, time.tv_usec as u32 * 1000);
    time(usage.ru_utime) + time(usage.ru_stime)
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}

#[derive(Default)]
struct Variant {
    name: String,
    execute_us: Vec<f64>,
    /// Processor time of execution.
    cpu_us: Vec<f64>,
    total_us: Vec<f64>,
    cores: Vec<f64>,
    aborts: u64,
}

/// How much more work two threads do than one: arithmetic, then memory that no cache holds.
fn ceilings(threads: usize) -> (f64, f64) {
    let alu = || {
        let mut x = 1_u64;
        for step in 0..40_000_000_u64 {
            x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(step) ^ (x >> 17);
        }
        black_box(x);
    };
    let memory = || {
        let words = 1 << 22;
        let table: Vec<u64> = (0..words as u64).map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15)).collect();
        let mut place = 0_usize;
        for _ in 0..3_000_000 {
            place = (table[place] as usize ^ place.rotate_left(7)) % words;
        }
        black_box(place);
    };
    let measure = |work: &(dyn Fn() + Sync)| {
        let mut ratios = Vec::new();
        for _ in 0..5 {
            let started = Instant::now();
            work();
            let alone = started.elapsed();
            let started = Instant::now();
            std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(work))));
            ratios.push(threads as f64 * alone.as_secs_f64() / started.elapsed().as_secs_f64());
        }
        median(&mut ratios)
    };
    (measure(&alu), measure(&memory))
}

fn main() {
    let options = options();
    let mut report = Vec::new();
    for threads in &options.threads {
        let (alu, memory) = ceilings(*threads);
        println!("{threads} threads do {alu:.2}x the arithmetic and {memory:.2}x the memory work of one");
        report.push(serde_json::json!({ "threads": threads, "alu": alu, "memory": memory }));
    }
    for count in &options.blocks {
        let users = 2 * count;
        let origin = Core::new(
            Chain { chain_id: CHAIN_ID, shard: 0, threads: 1, fast_path: true, revision: Revision::PRAGUE },
            1,
        );
        origin.init_genesis(&genesis(users)).expect("the allocation parses");
        let snapshot = origin.snapshot();
        println!("\nblocks of {count}; µs per transaction: median of {} rounds (speed-up over bare)", options.rounds);
        println!(
            "{:<32} {:<14} {:>9} {:>7} {:>7} {:>9} {:>10} {:>6} {:>7}",
            "workload", "variant", "execute", "x", "core-µs", "total", "total TPS", "cores", "aborts"
        );
        for (name, batch) in workloads(*count, users).into_iter().filter(|(name, _)| name.contains(&options.only)) {
            report.extend(measure(&options, &name, *count, &batch, &snapshot));
        }
    }
    if let Some(path) = options.json {
        std::fs::write(path, serde_json::to_vec_pretty(&report).expect("plain data")).expect("the path is writable");
    }
}

fn measure(options: &Options, name: &str, count: u64, batch: &Batch, snapshot: &[Vec<u8>]) -> Vec<serde_json::Value> {
    let mut machines =
        vec![("in order".to_owned(), core(1, false, snapshot)), ("1, fast path".to_owned(), core(1, true, snapshot))];
    for threads in &options.threads {
        machines.push((format!("{threads}, EVM"), core(*threads, false, snapshot)));
        machines.push((format!("{threads}, fast path"), core(*threads, true, snapshot)));
    }
    machines.retain(|(name, _)| name == "in order" || name.contains(&options.variants));
    let mut variants: Vec<Variant> = std::iter::once("bare".to_owned())
        .chain(machines.iter().map(|(name, _)| name.clone()))
        .map(|name| Variant { name, ..Variant::default() })
        .collect();
    for round in 0..=options.rounds {
        let mut roots = Vec::new();
        for (place, variant) in variants.iter_mut().enumerate() {
            let (started, before) = (Instant::now(), cpu());
            let (execute_us, execute_cpu_us, total_us, aborts) = if place == 0 {
                let kept = machines[0].1.run_bare(PARENT, batch, &env()).expect("all are valid");
                let elapsed = started.elapsed().as_secs_f64() * 1e6;
                drop(black_box(kept));
                (elapsed, (cpu() - before).as_secs_f64() * 1e6, elapsed, 0)
            } else {
                let result = machines[place - 1]
                    .1
                    .execute::<&[u8]>(PARENT, batch, &env(), Mode::Build, &[])
                    .expect("all are valid");
                let elapsed = started.elapsed().as_secs_f64() * 1e6;
                assert!(result.skipped.is_empty(), "{:?}", result.skipped.first());
                roots.push((result.state_root, result.outcomes_root));
                let aborts = stat(&result, "aborts");
                (stat(&result, "execute_us") as f64, stat(&result, "execute_cpu_us") as f64, elapsed, aborts)
            };
            // The first round warms caches and allocators.
            if round > 0 {
                variant.execute_us.push(execute_us / count as f64);
                variant.cpu_us.push(execute_cpu_us / count as f64);
                variant.total_us.push(total_us / count as f64);
                variant.cores.push((cpu() - before).as_secs_f64() / started.elapsed().as_secs_f64());
                variant.aborts = variant.aborts.max(aborts);
            }
        }
        assert!(roots.windows(2).all(|pair| pair[0] == pair[1]), "variants disagree on {name}");
    }
    // The fastest sequential revm: by itself, or on this store.
    let baseline = variants[..2].iter_mut().map(|variant| median(&mut variant.execute_us)).fold(f64::MAX, f64::min);
    let mut rows = Vec::new();
    for variant in &mut variants {
        let (execute, total) = (median(&mut variant.execute_us), median(&mut variant.total_us));
        let (cores, core_us) = (median(&mut variant.cores), median(&mut variant.cpu_us));
        println!(
            "{:<32} {:<14} {:>9.2} {:>6.2}x {:>7.2} {:>9.2} {:>10.0} {:>6.2} {:>7}",
            name,
            variant.name,
            execute,
            baseline / execute,
            core_us,
            total,
            1e6 / total,
            cores,
            variant.aborts
        );
        rows.push(serde_json::json!({
            "block": count, "workload": name, "variant": variant.name, "execute_us": execute, "core_us": core_us, "total_us": total,
            "speed_up": baseline / execute, "cores": cores, "aborts": variant.aborts,
        }));
    }
    rows
}
