//! The executor's table: raw transfers, tokens, swaps, mixes, sends and chains, against the fastest sequential revm there is.
//!
//! `cargo bench -p shardyard-core --bench executor -- [--blocks 1000,10000] [--threads 2] [--rounds 12] [--only PART]
//! [--variants PART] [--json PATH]`
//!
//! Within a round all variants of a workload run one after the other, the machine's own ceilings first, so that what
//! disturbs the machine disturbs all. Times are medians over rounds; ratios are medians of the ratios of neighbouring rounds:
//! sequential variants, and the one thread that the ceilings are over, run on one core in the one and on the next in the
//! other, because cores of a shared machine differ in speed from second to second. Senders are recovered before the timer starts.
//! Sequential is the fastest of three: "revm" is revm on this store with one journal for the whole block, "revm CacheDB" is
//! revm on its own cache, committing every transaction, neither with outcomes or commitment; "in order" is this core on
//! one thread without the fast path. `execute` ends with the last state change, `total` includes outcomes, all roots and
//! the diff. With `--json` the table is left to whoever reads the file.

mod baseline;
#[path = "../measure/cores.rs"]
mod cores;
mod machine;
#[path = "../measure/mod.rs"]
mod measure;
mod workloads;

use std::collections::BTreeMap;
use std::hint::black_box;
use std::time::{Duration, Instant};

use alloy_primitives::{Address, B256};
use serde_json::json;
use shardyard_core::block::{BlockEnv, BlockResult, Chain, Mode};
use shardyard_core::codec::Reader;
use shardyard_core::core::Core;
use shardyard_core::evm::Revision;

use cores::on_core;
use machine::{Ceilings, resident_mb};
use measure::{median, processor_time};
use workloads::Workload;

const PARENT: B256 = B256::repeat_byte(1);
pub const CHAIN_ID: u64 = 31_337;
pub const BASE_FEE: u64 = 1_000_000_000;

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
    let (only, variants) = (String::new(), String::new());
    let mut options = Options { blocks: vec![1000, 10_000], rounds: 12, threads: vec![2], json: None, only, variants };
    let numbers = |text: &str| text.split(',').map(|part| part.parse().expect("a number")).collect::<Vec<u64>>();
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        match name.as_str() {
            "--blocks" => options.blocks = numbers(&arguments.next().expect("--blocks N,N")),
            "--threads" => {
                let wanted = numbers(&arguments.next().expect("--threads N,N"));
                // One thread is always measured.
                options.threads = wanted.into_iter().map(|n| n as usize).filter(|n| *n > 1).collect();
            }
            "--rounds" => options.rounds = numbers(&arguments.next().expect("--rounds N"))[0].max(1) as usize,
            "--json" => options.json = arguments.next(),
            "--only" => options.only = arguments.next().expect("--only PART"),
            "--variants" => options.variants = arguments.next().expect("--variants PART"),
            _ => {}
        }
    }
    options
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

fn chain(threads: usize, fast_path: bool) -> Chain {
    Chain { chain_id: CHAIN_ID, shard: 0, threads, fast_path, revision: Revision::PRAGUE }
}

fn core(threads: usize, fast_path: bool, snapshot: &[Vec<u8>]) -> Core {
    let core = Core::new(chain(threads, fast_path), 1);
    core.restore(snapshot).expect("the snapshot is whole");
    core.set_base(PARENT, 0);
    core
}

/// The numbers of a block's statistics.
fn stats(result: &BlockResult) -> BTreeMap<String, u64> {
    let mut reader = Reader::new(&result.stats);
    let count = reader.map().expect("stats are a map");
    let mut found = BTreeMap::new();
    // Numbers come before lists.
    for _ in 0..count {
        let key = reader.text().expect("keys are text").to_owned();
        let Ok(value) = reader.uint() else { break };
        found.insert(key, value);
    }
    found
}

/// The value that a share of the values does not exceed.
fn quantile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or_default()
}

/// Time on the clock, and of the processor.
type Spent = (Duration, Duration);

/// Runs something; what it gives is dropped by the caller, outside the timer.
fn timed<T>(work: impl FnOnce() -> T) -> (Spent, T) {
    let (started, before) = (Instant::now(), processor_time());
    let given = work();
    ((started.elapsed(), processor_time() - before), given)
}

enum Way {
    /// revm on this store, one journal.
    Bare(Core),
    /// revm's own cache, and the transactions in revm's form: laid out before the round begins, so that what the processor
    /// still holds of them helps no more than it does the others.
    CacheDb(Option<(baseline::State, Vec<baseline::TxEnv>)>),
    Ours(Core),
    /// Validation of the block with its access list, which is made outside the timer.
    Replay(Core, Vec<u8>),
}

struct Variant {
    name: String,
    threads: usize,
    has_fast_path: bool,
    way: Way,
    execute_us: Vec<f64>,
    /// Processor time of execution.
    cpu_us: Vec<f64>,
    total_us: Vec<f64>,
    cores: Vec<f64>,
    /// Work over execution, as the block's own statistics have it.
    estimates: Vec<f64>,
    /// Of the round with the most aborts.
    counts: BTreeMap<String, u64>,
}

impl Variant {
    fn new(name: impl Into<String>, threads: usize, has_fast_path: bool, way: Way) -> Self {
        Self {
            name: name.into(),
            threads,
            has_fast_path,
            way,
            execute_us: Vec::new(),
            cpu_us: Vec::new(),
            total_us: Vec::new(),
            cores: Vec::new(),
            estimates: Vec::new(),
            counts: BTreeMap::new(),
        }
    }

    fn is_sequential(&self) -> bool {
        self.threads == 1 && !self.has_fast_path
    }
}

/// What all workloads of one block size share.
struct Setting<'a> {
    options: &'a Options,
    block: u64,
    snapshot: Vec<Vec<u8>>,
    state: baseline::State,
}

impl<'a> Setting<'a> {
    fn new(options: &'a Options, block: u64) -> Self {
        let alloc = workloads::genesis(2 * block);
        let origin = Core::new(chain(1, true), 1);
        origin.init_genesis(&serde_json::to_vec(&alloc).expect("plain data")).expect("the allocation parses");
        Self { options, block, snapshot: origin.snapshot(), state: baseline::state(&alloc) }
    }

    fn variants(&self, workload: &Workload) -> Vec<Variant> {
        let core = |threads, fast_path| core(threads, fast_path, &self.snapshot);
        let mut variants = vec![
            Variant::new("revm", 1, false, Way::Bare(core(1, false))),
            Variant::new("revm CacheDB", 1, false, Way::CacheDb(None)),
            Variant::new("in order", 1, false, Way::Ours(core(1, false))),
        ];
        if workload.has_transfers {
            variants.push(Variant::new("1, fast path", 1, true, Way::Ours(core(1, true))));
        }
        for threads in &self.options.threads {
            variants.push(Variant::new(format!("{threads}, EVM"), *threads, false, Way::Ours(core(*threads, false))));
            if workload.has_transfers {
                let name = format!("{threads}, fast path");
                variants.push(Variant::new(name, *threads, true, Way::Ours(core(*threads, true))));
            }
            let replay = core(*threads, true);
            let built = replay.execute::<&[u8]>(PARENT, &workload.batch, &env(), Mode::Build, &[]);
            let list = built.expect("all are valid").access_list;
            variants.push(Variant::new(
                format!("{threads}, access-list replay"),
                *threads,
                true,
                Way::Replay(replay, list),
            ));
        }
        variants.retain(|variant| variant.is_sequential() || variant.name.contains(&self.options.variants));
        variants
    }

    /// Runs a variant once and gives the roots of what executed a whole block.
    fn run(&self, variant: &mut Variant, workload: &Workload, is_counted: bool) -> Option<(B256, B256)> {
        let batch = &workload.batch;
        let (spent, result) = match &mut variant.way {
            Way::Bare(core) => {
                let (spent, kept) = timed(|| core.run_bare(PARENT, batch, &env()).expect("all are valid"));
                drop(black_box(kept));
                (spent, None)
            }
            Way::CacheDb(prepared) => {
                let (state, transactions) = prepared.take().expect("prepared before the round");
                let (spent, state) = timed(|| baseline::run(state, &env(), transactions));
                drop(black_box(state));
                (spent, None)
            }
            Way::Replay(core, list) => {
                let replay =
                    || core.execute_with::<&[u8]>(PARENT, batch, &env(), Mode::Validate, &[], Some(list.as_slice()));
                let (spent, result) = timed(|| replay().expect("the list is the block's"));
                (spent, Some(result))
            }
            Way::Ours(core) => {
                let execute = || core.execute::<&[u8]>(PARENT, batch, &env(), Mode::Build, &[]);
                let (spent, result) = timed(|| execute().expect("all are valid"));
                (spent, Some(result))
            }
        };
        if is_counted {
            variant.count(batch.entries().len() as f64, spent, result.as_ref());
        }
        result.map(|result| {
            assert!(result.skipped.is_empty(), "{:?}", result.skipped.first());
            (result.state_root, result.outcomes_root)
        })
    }

    fn measure(&self, workload: &Workload, ceilings: &mut [Ceilings]) -> Vec<serde_json::Value> {
        let mut variants = self.variants(workload);
        // The first round warms caches and allocators, and counts for nothing.
        let first = ceilings.first().map_or(0, |found| found.alu.len()) + 1;
        for round in 0..=self.options.rounds {
            for variant in &mut variants {
                if let Way::CacheDb(prepared) = &mut variant.way {
                    *prepared = Some((self.state.clone(), baseline::transactions(&workload.batch)));
                }
            }
            ceilings.iter_mut().for_each(|found| found.measure(round));
            let run = |variant: &mut Variant| match variant.is_sequential() {
                true => on_core(round, || self.run(variant, workload, round > 0)),
                false => self.run(variant, workload, round > 0),
            };
            let roots: Vec<_> = variants.iter_mut().filter_map(run).collect();
            assert!(roots.windows(2).all(|pair| pair[0] == pair[1]), "variants disagree on {}", workload.name);
        }
        let sequential = variants.iter().filter(|variant| variant.is_sequential());
        let baseline = sequential
            .min_by(|a, b| median(&a.execute_us).total_cmp(&median(&b.execute_us)))
            .expect("there are sequential variants");
        let row = |variant: &Variant| {
            let found = ceilings.iter().find(|found| found.threads == variant.threads);
            let (alu, memory) = found.map_or((&[][..], &[][..]), |found| (&found.alu[first..], &found.memory[first..]));
            self.report(workload, variant, baseline, alu, memory)
        };
        variants.iter().map(row).collect()
    }

    /// The row of a variant; `alu` and `memory` are the ceilings of its number of threads in the same rounds.
    fn report(
        &self,
        workload: &Workload,
        variant: &Variant,
        baseline: &Variant,
        alu: &[f64],
        memory: &[f64],
    ) -> serde_json::Value {
        let (execute, total) = (median(&variant.execute_us), median(&variant.total_us));
        let (cores, core_us) = (median(&variant.cores), median(&variant.cpu_us));
        let speed_ups = pairs(&baseline.execute_us, &variant.execute_us);
        let ceilings: Vec<f64> = alu.iter().zip(memory).map(|(alu, memory)| (alu + memory) / 2.0).collect();
        let ceilings = pairs(&ceilings, &vec![1.0; ceilings.len()]);
        let shares: Vec<f64> = speed_ups.iter().zip(&ceilings).map(|(speed_up, ceiling)| speed_up / ceiling).collect();
        let count = |name: &str| variant.counts.get(name).copied().unwrap_or_default();
        if self.options.json.is_none() {
            println!(
                "{:<30} {:<22} {:>8.2} {:>8.2} {:>6.2}x {:>5.2} {:>7.2} {:>8.2} {:>10.0} {:>5.2} {:>7} {:>7.2}x",
                workload.name,
                variant.name,
                execute,
                quantile(&variant.execute_us, 0.95),
                median(&speed_ups),
                median(&shares),
                core_us,
                total,
                1e6 / total,
                cores,
                count("aborts"),
                median(&variant.estimates),
            );
        }
        json!({
            "block": self.block, "transactions": workload.batch.entries().len(), "workload": workload.name,
            "variant": variant.name, "threads": variant.threads, "fast_path": variant.has_fast_path,
            "execute_us": execute, "execute_p95_us": quantile(&variant.execute_us, 0.95), "core_us": core_us,
            "total_us": total, "total_p95_us": quantile(&variant.total_us, 0.95), "cores": cores,
            "sequential": baseline.name, "speed_up": median(&speed_ups), "ceiling_share": median(&shares),
            "alu": median(alu), "memory": median(memory), "estimate": median(&variant.estimates),
            "aborts": count("aborts"), "incarnations": count("incarnations"), "at_turn": count("at_turn"),
            "solos": count("solos"), "rss_mb": resident_mb(),
        })
    }
}

/// How many times the one is the other, of each two rounds that follow each other.
fn pairs(one: &[f64], other: &[f64]) -> Vec<f64> {
    let sums =
        |values: &[f64]| values.windows(values.len().clamp(1, 2)).map(|pair| pair.iter().sum()).collect::<Vec<f64>>();
    sums(one).iter().zip(sums(other)).map(|(one, other)| one / other).collect()
}

impl Variant {
    fn count(&mut self, transactions: f64, (elapsed, cpu): Spent, result: Option<&BlockResult>) {
        let stats = result.map(stats).unwrap_or_default();
        let us = |time: Duration| time.as_secs_f64() * 1e6;
        let stat = |name: &str, otherwise: f64| stats.get(name).map_or(otherwise, |value| *value as f64);
        let execute = stat("execute_us", us(elapsed));
        self.execute_us.push(execute / transactions);
        self.cpu_us.push(stat("execute_cpu_us", us(cpu)) / transactions);
        self.total_us.push(us(elapsed) / transactions);
        self.cores.push(cpu.as_secs_f64() / elapsed.as_secs_f64());
        self.estimates.push(stat("work_us", execute) / execute);
        if self.counts.is_empty() || stats.get("aborts") > self.counts.get("aborts") {
            self.counts = stats;
        }
    }
}

fn print_head(block: u64, rounds: usize) {
    println!("\nblocks of {block}; µs per transaction: median of {rounds} rounds");
    println!(
        "{:<30} {:<22} {:>8} {:>8} {:>7} {:>5} {:>7} {:>8} {:>10} {:>5} {:>7} {:>8}",
        "workload",
        "variant",
        "execute",
        "p95",
        "x",
        "share",
        "core-µs",
        "total",
        "total TPS",
        "cores",
        "aborts",
        "estimate"
    );
}

fn main() {
    let options = options();
    let mut ceilings: Vec<Ceilings> = options.threads.iter().map(|threads| Ceilings::new(*threads)).collect();
    let mut rows = Vec::new();
    for block in &options.blocks {
        let setting = Setting::new(&options, *block);
        let is_table = options.json.is_none();
        if is_table {
            print_head(*block, options.rounds);
        }
        let chosen = workloads::workloads(*block, 2 * block).into_iter();
        for workload in chosen.filter(|workload| workload.name.contains(&options.only)) {
            let found = setting.measure(&workload, &mut ceilings);
            if !is_table {
                println!("measured blocks of {block}: {}", workload.name);
            }
            rows.extend(found);
        }
    }
    let mut reported = Vec::new();
    for (threads, found) in options.threads.iter().zip(&ceilings) {
        let (alu, memory) = (median(&found.alu), median(&found.memory));
        println!("{threads} threads do {alu:.2}x the arithmetic and {memory:.2}x the memory work of one");
        reported.push(json!({ "threads": threads, "alu": alu, "memory": memory, "samples": found.alu.len() }));
    }
    if let Some(path) = options.json {
        let report = json!({ "rounds": options.rounds, "ceilings": reported, "rows": rows });
        std::fs::write(path, serde_json::to_vec_pretty(&report).expect("plain data")).expect("the path is writable");
    }
}
