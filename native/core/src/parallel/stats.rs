//! What people may want to know of a parallel run: how often items ran, what they fought over, and how long the work alone
//! would have taken. Never part of consensus.
//!
//! The work alone: of every sixteenth item, chosen by its index, the clock is read around the execution that counted, so
//! neither aborted executions nor validating, committing and waiting are in it; what one worker does alone counts whole, of a
//! window of lanes that broke the share of the executions that were kept. A
//! worker that had to wait for a core would look as if it had worked, so the sum is scaled by the share of their waking
//! time that workers had a core.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use super::memory::Key;
use crate::codec::Writer;

/// Reading the clock costs about as much as a tenth of a plain transfer.
const SAMPLED_OF: u64 = 16;

#[derive(Debug, Default)]
pub struct RunStats {
    /// Workers that took part; 0 when the block ran in order.
    pub workers: u64,
    /// Executions of items, repeated ones included.
    pub incarnations: u64,
    /// Executions thrown away because what they had read was changed.
    pub aborts: u64,
    /// Items that ran only at their turn to commit.
    pub at_turn: u64,
    /// How often one worker went on alone, because nothing else paid.
    pub solos: u64,
    /// Of the sampled items, the executions that counted.
    pub sampled: Duration,
    /// What one worker took that went on alone, and all workers together for the tasks of lanes.
    pub alone: Duration,
    /// Share of their waking time that workers had a core.
    pub on_core: f64,
    /// Locations by the aborts they caused.
    pub hottest: Vec<(Key, u32)>,
}

impl RunStats {
    pub const FIELDS: usize = 7;

    /// What the items would have taken one after the other; `execute` itself for a block that ran so.
    fn work(&self, execute: Duration) -> Duration {
        if self.workers == 0 {
            return execute;
        }
        (self.sampled.mul_f64(SAMPLED_OF as f64) + self.alone).mul_f64(self.on_core)
    }

    /// `hottest` is [[address, slot or nil, aborts]…].
    pub fn write(&self, writer: &mut Writer, execute: Duration) {
        writer.text("workers").uint(self.workers).text("incarnations").uint(self.incarnations);
        writer.text("aborts").uint(self.aborts).text("at_turn").uint(self.at_turn);
        writer.text("solos").uint(self.solos).text("work_us").uint(self.work(execute).as_micros() as u64);
        writer.text("hottest").array(self.hottest.len());
        for (key, conflicts) in &self.hottest {
            writer.array(3);
            match key {
                Key::Account(address) => writer.bytes(address.as_slice()).nil(),
                Key::Slot(address, slot) => writer.bytes(address.as_slice()).u256(slot),
            };
            writer.uint(u64::from(*conflicts));
        }
    }
}

/// Starts the clock for a sampled item. Consecutive indices are spread, so that no period of a block decides who is in.
#[inline]
pub fn begin_sample(index: usize) -> Option<Instant> {
    let is_sampled = (index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32 & (SAMPLED_OF - 1) == 0;
    is_sampled.then(Instant::now)
}

/// How long all workers were awake, and how much of it they had a core.
#[derive(Debug, Default)]
pub struct WorkTime {
    awake_ns: AtomicU64,
    on_core_ns: AtomicU64,
}

/// One worker's part of a block.
pub struct Shift<'a> {
    total: &'a WorkTime,
    began: Instant,
    on_core: Duration,
}

impl WorkTime {
    pub fn begin(&self) -> Shift<'_> {
        Shift { total: self, began: Instant::now(), on_core: thread_time() }
    }

    /// Time that a worker lay asleep inside its shift.
    pub fn sleep(&self, time: Duration) {
        self.awake_ns.fetch_sub(time.as_nanos() as u64, Relaxed);
    }

    pub fn on_core(&self) -> f64 {
        let (on_core, awake) = (self.on_core_ns.load(Relaxed) as f64, self.awake_ns.load(Relaxed) as i64 as f64);
        if awake > 0.0 { (on_core / awake).min(1.0) } else { 1.0 }
    }
}

impl Drop for Shift<'_> {
    fn drop(&mut self) {
        self.total.awake_ns.fetch_add(self.began.elapsed().as_nanos() as u64, Relaxed);
        let on_core = thread_time().saturating_sub(self.on_core);
        self.total.on_core_ns.fetch_add(on_core.as_nanos() as u64, Relaxed);
    }
}

/// Processor time of this thread so far.
fn thread_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call writes to the struct it is given; a refusal leaves it zero.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sixteenth_of_the_items_is_sampled_whatever_their_period() {
        for period in [1, 2, 7, 16, 100] {
            let sampled = (0..16_000).filter(|n| begin_sample(n * period).is_some()).count();
            assert!((800..1200).contains(&sampled), "{sampled} of 16000 with period {period}");
        }
    }

    #[test]
    fn sleeping_is_neither_awake_nor_work() {
        let time = WorkTime::default();
        let shift = time.begin();
        let slept = Instant::now();
        while slept.elapsed() < Duration::from_millis(5) {
            std::thread::park_timeout(Duration::from_millis(5));
        }
        time.sleep(slept.elapsed());
        drop(shift);
        assert!((time.awake_ns.load(Relaxed) as i64) < 4_000_000);
    }
}
