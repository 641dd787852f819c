//! Where the workers of a pool stand: a worker that wakes another one has it woken on another core than its own.
//!
//! Left to itself the kernel often wakes a worker on the very core of the one that woke it: of a machine that is not idle it
//! does not look for an idle core (Linux' `SIS_UTIL`). There the woken one waits, until the next balancing, which is 3 ms of
//! every block, or for good, which is half the machine. Whoever has woken may go wherever it likes again, so that workers
//! of several processes share the cores as ever.

#[cfg(target_os = "linux")]
pub use linux::{Seats, leave, rest, settle, spread};
#[cfg(not(target_os = "linux"))]
pub use other::{Seats, leave, rest, settle, spread};

#[cfg(target_os = "linux")]
mod linux {
    use std::cell::OnceCell;
    use std::sync::atomic::AtomicI32;
    use std::sync::atomic::Ordering::Relaxed;
    use std::sync::{Arc, Mutex, OnceLock, PoisonError};

    use libc::{c_int, cpu_set_t, pid_t};

    /// It sleeps, or will soon, but on which core is not known.
    const SOMEWHERE: c_int = -1;
    const AWAKE: c_int = -2;

    /// One place per worker of a pool.
    #[derive(Clone)]
    pub struct Seats(Arc<[Seat]>);

    struct Seat {
        thread: OnceLock<pid_t>,
        /// The core it sleeps on, or one of the above. A guess: who is wrong about it wakes somebody late, or for nothing.
        core: AtomicI32,
        /// Where the worker may run, while it is kept from one of those cores.
        allowed: Mutex<Option<cpu_set_t>>,
    }

    thread_local! {
        static OWN: OnceCell<(Seats, usize)> = const { OnceCell::new() };
    }

    impl Seats {
        pub fn new(workers: usize) -> Self {
            let seat = || Seat { thread: OnceLock::new(), core: AtomicI32::new(SOMEWHERE), allowed: Mutex::default() };
            Self((0..workers).map(|_| seat()).collect())
        }

        /// The calling thread is this worker, for as long as it lives.
        pub fn take(&self, worker: usize) {
            // SAFETY: takes nothing, returns a number.
            let thread = unsafe { libc::syscall(libc::SYS_gettid) } as pid_t;
            let _ = self.0[worker].thread.set(thread);
            OWN.with(|own| drop(own.set((self.clone(), worker))));
        }
    }

    fn with_own(work: impl FnOnce(&[Seat], usize)) {
        OWN.with(|own| {
            if let Some((seats, worker)) = own.get() {
                work(&seats.0, *worker);
            }
        });
    }

    /// Those of the caller's pool that sleep where it runs will wake elsewhere, where there is another core. Comes before
    /// waking them.
    pub fn spread() {
        with_own(|seats, worker| {
            let core = get_core();
            for (other, seat) in seats.iter().enumerate() {
                let found = seat.core.load(Relaxed);
                if other != worker && (found == core || found == SOMEWHERE) {
                    seat.keep_from(core);
                }
            }
        });
    }

    /// The caller is about to sleep, until somebody who spreads wakes it.
    pub fn rest() {
        with_own(|seats, worker| seats[worker].core.store(get_core(), Relaxed));
    }

    /// The caller is about to leave, and will sleep somewhere.
    pub fn leave() {
        with_own(|seats, worker| seats[worker].core.store(SOMEWHERE, Relaxed));
    }

    /// The caller has woken, and may run wherever it might before it was spread.
    pub fn settle() {
        with_own(|seats, worker| {
            let seat = &seats[worker];
            seat.core.store(AWAKE, Relaxed);
            let mut allowed = seat.allowed.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(cores) = allowed.take() {
                set_cores(0, &cores);
            }
        });
    }

    impl Seat {
        /// What the system refuses changes nothing: the worker may only be late.
        fn keep_from(&self, core: c_int) {
            let (Some(thread), Ok(core)) = (self.thread.get(), usize::try_from(core)) else { return };
            let mut allowed = self.allowed.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(before) = allowed.or_else(|| get_cores(*thread)) else { return };
            let mut cores = before;
            // SAFETY: both work on a set of this function's own, the first with a number that it has.
            let is_empty = core >= libc::CPU_SETSIZE as usize
                || unsafe {
                    libc::CPU_CLR(core, &mut cores);
                    libc::CPU_COUNT(&cores) == 0
                };
            if !is_empty && set_cores(*thread, &cores) {
                *allowed = Some(before);
            }
        }
    }

    fn get_core() -> c_int {
        // SAFETY: takes nothing, returns a number.
        unsafe { libc::sched_getcpu() }
    }

    fn get_cores(thread: pid_t) -> Option<cpu_set_t> {
        // SAFETY: a set of bits, for which zero is a value; the call writes at most its size.
        unsafe {
            let mut cores: cpu_set_t = std::mem::zeroed();
            (libc::sched_getaffinity(thread, size_of::<cpu_set_t>(), &raw mut cores) == 0).then_some(cores)
        }
    }

    fn set_cores(thread: pid_t, cores: &cpu_set_t) -> bool {
        // SAFETY: reads a set of the given size.
        unsafe { libc::sched_setaffinity(thread, size_of::<cpu_set_t>(), cores) == 0 }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        fn count(cores: &cpu_set_t) -> c_int {
            // SAFETY: counts bits.
            unsafe { libc::CPU_COUNT(cores) }
        }

        fn own_cores() -> c_int {
            count(&get_cores(0).expect("a thread may ask where it runs"))
        }

        #[test]
        fn who_sleeps_is_kept_from_the_callers_core_until_it_settles() {
            let seats = Seats::new(3);
            let pool = rayon::ThreadPoolBuilder::new().num_threads(3).start_handler({
                let seats = seats.clone();
                move |worker| seats.take(worker)
            });
            let pool = pool.build().expect("threads");
            let all = pool.broadcast(|_| own_cores())[0];
            for round in 0..3 {
                pool.broadcast(|_| leave());
                // Twice is as good as once.
                let caller = pool.install(|| {
                    spread();
                    spread();
                    rayon::current_thread_index().expect("a worker")
                });
                let woken = pool.broadcast(|_| {
                    let before = own_cores();
                    settle();
                    assert_eq!(own_cores(), all);
                    before
                });
                let expected = |worker| if all == 1 || worker == caller { all } else { all - 1 };
                assert_eq!(woken, (0..3).map(expected).collect::<Vec<_>>(), "round {round}");
                // Nobody sleeps, so nobody is moved.
                pool.install(spread);
                assert_eq!(pool.broadcast(|_| own_cores()), [all; 3]);
            }
        }

        #[test]
        fn a_thread_of_no_pool_changes_nothing() {
            let before = own_cores();
            rest();
            spread();
            settle();
            leave();
            assert_eq!(own_cores(), before);
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod other {
    #[derive(Clone)]
    pub struct Seats;

    impl Seats {
        pub fn new(_: usize) -> Self {
            Self
        }

        pub fn take(&self, _: usize) {}
    }

    pub fn spread() {}

    pub fn rest() {}

    pub fn leave() {}

    pub fn settle() {}
}
