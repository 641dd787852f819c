//! What the machine itself can do: memory in use, and how much more work several threads do than one.

use std::hint::black_box;
use std::time::Instant;

const ARITHMETIC_STEPS: u64 = 10_000_000;
const MEMORY_STEPS: usize = 600_000;
/// 32 MB of words, which no cache of a core holds.
const WORDS: usize = 1 << 22;

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

    pub fn measure(&mut self) {
        self.alu.push(self.compare(&|| {
            let mut x = 1_u64;
            for step in 0..ARITHMETIC_STEPS {
                x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(step) ^ (x >> 17);
            }
            black_box(x);
        }));
        self.memory.push(self.compare(&|| {
            let mut place = 0_usize;
            for _ in 0..MEMORY_STEPS {
                place = (self.table[place] as usize ^ place.rotate_left(7)) % WORDS;
            }
            black_box(place);
        }));
    }

    fn compare(&self, work: &(dyn Fn() + Sync)) -> f64 {
        let started = Instant::now();
        work();
        let alone = started.elapsed();
        let started = Instant::now();
        std::thread::scope(|scope| {
            for nth in 0..self.threads {
                scope.spawn(move || {
                    keep_to_core(nth);
                    work();
                });
            }
        });
        self.threads as f64 * alone.as_secs_f64() / started.elapsed().as_secs_f64()
    }
}

/// Keeps the calling thread to the nth core that this process may use: threads that have just begun often share one until the
/// kernel moves them, and what is asked for is what the cores can do.
#[cfg(target_os = "linux")]
fn keep_to_core(nth: usize) {
    // SAFETY: plain data, of which zero is a value.
    let mut allowed: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the set is as large as is said; a refusal leaves it empty.
    unsafe { libc::sched_getaffinity(0, size_of_val(&allowed), &raw mut allowed) };
    // SAFETY: only looks into the set.
    let is_allowed = |core: &usize| unsafe { libc::CPU_ISSET(*core, &allowed) };
    let Some(core) = (0..libc::CPU_SETSIZE as usize).filter(is_allowed).nth(nth) else { return };
    // SAFETY: as above; writes into a set of its own, and a refusal leaves the thread where it may run already.
    unsafe {
        let mut own: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(core, &mut own);
        libc::sched_setaffinity(0, size_of_val(&own), &raw const own);
    }
}

#[cfg(not(target_os = "linux"))]
fn keep_to_core(_: usize) {}
