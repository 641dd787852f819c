//! What hostile blocks cost: built with several threads against built in order, in one interleaved run.
//!
//! `cargo bench -p shardyard-core --bench hostile -- [--count 2000] [--rounds 15] [--threads 2] [--only PART] [--json PATH]`
//!
//! Wall time is what a block is late by; processor time is what an attacker burns. Both are of the whole `Core::execute`, and
//! both ratios are medians of the rounds' own: within a round both ways run one after the other, in turn the one and the
//! other first, so what disturbs the machine disturbs both; in order is the mean of two cores, each timed alone, for cores of a
//! shared machine differ in speed. A tiny block is executed several times within a timing.

#[path = "../tests/hostile/blocks.rs"]
mod blocks;
#[path = "measure/cores.rs"]
mod cores;
mod measure;

use std::time::{Duration, Instant};

use blocks::{Hostile, core, execute, hostile_blocks};
use cores::on_core;
use measure::{median, processor_time};
use shardyard_core::block::Mode;
use shardyard_core::core::Core;

/// What a hostile block may cost, in order being one.
const LIMIT: f64 = 1.2;
/// A timing is at least so long: processor time is told in microseconds, and every start of a pool has its jitter.
const SHORTEST: Duration = Duration::from_millis(10);

fn option(name: &str) -> Option<String> {
    std::env::args().skip_while(|argument| argument != name).nth(1)
}

fn number(name: &str, default: u64) -> u64 {
    let Some(text) = option(name) else { return default };
    text.parse().unwrap_or_else(|_| panic!("{name}: got {text:?}, expected a number. try: {name} {default}"))
}

/// Rounds after which both ways get a new state.
const ROUNDS_PER_STATE: u64 = 3;

/// Time on the clock and of the processor per block, in microseconds.
type Spent = [f64; 2];

fn timed(core: &Core, block: &Hostile, times: u32) -> Spent {
    let (started, used) = (Instant::now(), processor_time());
    for _ in 0..times {
        drop(execute(core, block, Mode::Build).expect("a builder leaves out what cannot be in"));
    }
    [started.elapsed(), processor_time() - used].map(|time| time.as_secs_f64() * 1e6 / f64::from(times))
}

struct Figures {
    in_order: Spent,
    parallel: Spent,
    ratios: [f64; 2],
}

/// Both ways, each on a state of its own.
struct Pair {
    in_order: Core,
    parallel: Core,
    times: u32,
}

impl Pair {
    fn new(block: &Hostile, count: u64, threads: usize) -> Self {
        let (in_order, parallel) = (core(1, count), core(threads, count));
        // The first executions warm caches, allocators and the pool.
        let [once, _] = timed(&in_order, block, 1);
        timed(&parallel, block, 1);
        let times = (SHORTEST.as_secs_f64() * 1e6 / once).ceil().clamp(1.0, 1000.0) as u32;
        Self { in_order, parallel, times }
    }

    fn compare(&self, is_first: bool, block: &Hostile) -> (Spent, Spent) {
        let in_order = || {
            let [one, other] = [0, 1].map(|core| on_core(core, || timed(&self.in_order, block, self.times)));
            [0, 1].map(|kind| (one[kind] + other[kind]) / 2.0)
        };
        if is_first {
            return (in_order(), timed(&self.parallel, block, self.times));
        }
        let other = timed(&self.parallel, block, self.times);
        (in_order(), other)
    }
}

fn compare(block: &Hostile, count: u64, threads: usize, rounds: u64) -> Figures {
    let mut rows = Vec::new();
    let mut pair = Pair::new(block, count, threads);
    for round in 0..rounds {
        if round > 0 && round % ROUNDS_PER_STATE == 0 {
            pair = Pair::new(block, count, threads);
        }
        rows.push(pair.compare(round % 2 == 0, block));
    }
    let middle = |figure: &dyn Fn(&(Spent, Spent)) -> f64| median(&rows.iter().map(figure).collect::<Vec<_>>());
    Figures {
        in_order: [0, 1].map(|kind| middle(&|(one, _)| one[kind])),
        parallel: [0, 1].map(|kind| middle(&|(_, other)| other[kind])),
        ratios: [0, 1].map(|kind| middle(&|(one, other)| other[kind] / one[kind].max(1.0))),
    }
}

fn main() {
    let (count, rounds, threads) = (number("--count", 2000), number("--rounds", 15).max(1), number("--threads", 2));
    let only = option("--only").unwrap_or_default();
    println!("{count} transactions a block, {rounds} rounds, {threads} threads against in order");
    println!("{:<34}{:>12}{:>12}{:>8}{:>12}{:>8}", "block", "in order µs", "wall µs", "ratio", "cpu µs", "ratio");
    let mut rows = Vec::new();
    for block in hostile_blocks(count).iter().filter(|block| block.name.contains(&only)) {
        let Figures { in_order: [order_wall, order_cpu], parallel: [wall, cpu], ratios: [late, burnt] } =
            compare(block, count, threads as usize, rounds);
        let over = [(late, " late"), (burnt, " burns")].map(|(ratio, word)| if ratio > LIMIT { word } else { "" });
        println!(
            "{:<34}{order_wall:>12.0}{wall:>12.0}{late:>8.2}{cpu:>12.0}{burnt:>8.2} {}{}",
            block.name, over[0], over[1]
        );
        rows.push(serde_json::json!({
            "block": block.name, "in_order_wall_us": order_wall, "in_order_cpu_us": order_cpu,
            "wall_us": wall, "cpu_us": cpu, "wall_ratio": late, "cpu_ratio": burnt,
        }));
    }
    if let Some(path) = option("--json") {
        let report = serde_json::json!({
            "transactions": count, "rounds": rounds, "threads": threads, "limit": LIMIT, "rows": rows,
        });
        std::fs::write(path, serde_json::to_vec_pretty(&report).expect("plain data")).expect("the path is writable");
    }
}
