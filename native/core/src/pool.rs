//! Worker threads: one process-wide pool per size, made on first use and kept, niced below the thread that runs the event
//! loop. A core with one thread works on its caller's thread, so hundreds of simulated shards cost no threads at all.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use rayon::{BroadcastContext, ThreadPool};

use crate::seats::{Seats, leave, settle, spread};

static POOLS: OnceLock<Mutex<BTreeMap<usize, Arc<ThreadPool>>>> = OnceLock::new();
/// Nice value of the workers: votes and timers must run while a block executes.
const WORKER_NICE: libc::c_int = 5;

/// The pool of `threads` workers; none when one thread is wanted or the system grants no threads.
pub fn pool(threads: usize) -> Option<Arc<ThreadPool>> {
    if threads <= 1 {
        return None;
    }
    let mut pools = POOLS.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(pool) = pools.get(&threads) {
        return Some(pool.clone());
    }
    keep_memory();
    let seats = Seats::new(threads);
    let built = rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .thread_name(|index| format!("shardyard-{index}"))
        .start_handler(move |index| {
            be_nice();
            seats.take(index);
        })
        .build()
        .ok()?;
    let pool = Arc::new(built);
    pools.insert(threads, pool.clone());
    Some(pool)
}

/// Runs `work` on every worker of the calling worker's pool, each on a core of its own where there are enough.
pub fn broadcast<T: Send>(work: impl Fn(BroadcastContext<'_>) -> T + Sync) -> Vec<T> {
    spread();
    rayon::broadcast(|context| {
        settle();
        let done = work(context);
        leave();
        done
    })
}

/// Runs `lead` here, and `help` meanwhile on as many other workers of the calling worker's pool as have nothing else to do, each
/// on a core of its own where there are enough. Nobody is waited for who has not begun when `lead` ends; who comes later
/// must find nothing to do.
pub fn lead<R>(helpers: usize, help: impl Fn() + Sync, lead: impl FnOnce() -> R) -> R {
    spread();
    rayon::in_place_scope(|scope| {
        for _ in 0..helpers {
            scope.spawn(|_| {
                settle();
                help();
                leave();
            });
        }
        lead()
    })
}

/// Bytes at the top of an arena that are kept when they are free, and the largest piece that is taken from an arena.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const KEPT_BYTES: libc::c_int = 64 << 20;
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const PIECE_BYTES: libc::c_int = 32 << 20;

/// What one block needed the next will need: glibc would return it to the system in between, and every page of it would be
/// handed out, and cleared, anew. Measured: a tenth of the time of executing token calls.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn keep_memory() {
    // SAFETY: glibc sets both numbers under the lock of its main arena, as whole words; a refusal changes nothing.
    unsafe {
        libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT_BYTES);
        libc::mallopt(libc::M_MMAP_THRESHOLD, PIECE_BYTES);
    }
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn keep_memory() {}

#[cfg(target_os = "linux")]
fn be_nice() {
    // SAFETY: both calls take plain integers; on Linux priorities are per thread. A refusal changes nothing.
    unsafe {
        let thread = libc::syscall(libc::SYS_gettid) as libc::id_t;
        libc::setpriority(libc::PRIO_PROCESS, thread, WORKER_NICE);
    }
}

#[cfg(not(target_os = "linux"))]
fn be_nice() {
    let _ = WORKER_NICE;
}
