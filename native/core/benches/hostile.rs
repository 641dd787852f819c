//! What hostile blocks cost: built with two threads against built in order, in one interleaved run.
//!
//! `cargo bench -p shardyard-core --bench hostile -- [--count 2000] [--rounds 5] [--threads 2]`
//!
//! Wall time is what a block is late by; processor time is what an attacker burns, and what can be compared on a machine
//! that others use too. Both are medians over rounds, of the whole `Core::execute`.

#[path = "../tests/hostile/blocks.rs"]
mod blocks;

use std::time::{Duration, Instant};

use blocks::{core, execute, hostile_blocks};
use shardyard_core::block::Mode;

/// What a hostile block may cost, in order being one.
const LIMIT: f64 = 1.2;

fn option(name: &str, default: u64) -> u64 {
    let mut arguments = std::env::args().skip_while(|argument| argument != name);
    arguments.nth(1).map_or(default, |text| text.parse().expect("a number"))
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

fn main() {
    let (count, rounds, threads) = (option("--count", 2000), option("--rounds", 5), option("--threads", 2) as usize);
    let (in_order, parallel) = (core(1, count), core(threads, count));
    println!("{count} transactions a block, {rounds} rounds, {threads} threads against in order");
    println!("{:<30}{:>12}{:>12}{:>8}{:>12}{:>8}", "block", "in order us", "wall us", "ratio", "cpu us", "ratio");
    let mut worst = 0.0_f64;
    for block in hostile_blocks(count) {
        let mut figures = [const { Vec::new() }; 4];
        for _ in 0..rounds {
            for (place, core) in [&in_order, &parallel].into_iter().enumerate() {
                let (started, used) = (Instant::now(), cpu());
                let result = execute(core, &block, Mode::Build).expect("a builder leaves out what cannot be in");
                drop(result);
                figures[2 * place].push(started.elapsed().as_secs_f64() * 1e6);
                figures[2 * place + 1].push((cpu() - used).as_secs_f64() * 1e6);
            }
        }
        let [order_wall, order_cpu, wall, cpu] = figures.map(|mut values| median(&mut values));
        let (late, burnt) = (wall / order_wall, cpu / order_cpu);
        worst = worst.max(late);
        let verdict = if late > LIMIT { "  over" } else { "" };
        println!("{:<30}{order_wall:>12.0}{wall:>12.0}{late:>8.2}{cpu:>12.0}{burnt:>8.2}{verdict}", block.name);
    }
    println!("worst {worst:.2}, allowed {LIMIT}");
}
