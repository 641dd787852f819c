//! What the machine itself can do: memory in use, and how much more work several threads do than one.

use std::hint::black_box;
use std::time::{Duration, Instant};

use crate::cores::on_core;

const ARITHMETIC_STEPS: u64 = 10_000_000;
const MEMORY_STEPS: usize = 600_000;
/// 32 MB of words, which no cache of a core holds.
const WORDS: usize = 1 << 22;
/// What threads that ended have used is told a little after they ended: without a pause the next timer would have it.
const PAUSE: Duration = Duration::from_millis(1);

/// Resident memory of this process in MB; 0 where the system does not say.
pub fn resident_mb() -> f64 {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: f64 = pages.split_whitespace().nth(1).and_then(|word| word.parse().ok()).unwrap_or_default();
    pages * 4096.0 / 1e6
}

/// Ceilings of a number of threads, measured again and again between the blocks, so that what slows them slows these too.
pub struct Ceilings {
    pub threads: usize,
    table: Vec<u64>,
    pub alu: Vec<f64>,
    pub memory: Vec<f64>,
}

impl Ceilings {
    pub fn new(threads: usize) -> Self {
        let table = (0..WORDS as u64).map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15)).collect();
        Self { threads, table, alu: Vec::new(), memory: Vec::new() }
    }

    /// Measures once; one thread alone runs on the nth core.
    pub fn measure(&mut self, nth: usize) {
        let alu = self.compare(nth, &|| {
            let mut x = 1_u64;
            for step in 0..ARITHMETIC_STEPS {
                x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(step) ^ (x >> 17);
            }
            black_box(x);
        });
        let memory = self.compare(nth, &|| {
            let mut place = 0_usize;
            for _ in 0..MEMORY_STEPS {
                place = (self.table[place] as usize ^ place.rotate_left(7)) % WORDS;
            }
            black_box(place);
        });
        self.alu.push(alu);
        self.memory.push(memory);
        std::thread::sleep(PAUSE);
    }

    /// The sum of what all threads do beside each other, each on a core of its own, one thread alone being one. A core that
    /// something else slows counts for what it still does: work that is shared out as it comes can use that.
    fn compare(&self, nth: usize, work: &(dyn Fn() + Sync)) -> f64 {
        let timed = |core: usize| {
            on_core(core, || {
                let started = Instant::now();
                work();
                started.elapsed().as_secs_f64()
            })
        };
        let alone = timed(nth);
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..self.threads).map(|core| scope.spawn(move || timed(core))).collect();
            threads.into_iter().map(|thread| alone / thread.join().expect("only computes")).sum()
        })
    }
}
