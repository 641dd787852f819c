//! Which core a measurement runs on: cores of a shared machine differ in speed from second to second.

/// Runs something on the nth core that this process may use, counted round and round, and leaves the thread as free as it was.
/// Threads that have just begun often share a core until the kernel moves them.
#[cfg(target_os = "linux")]
pub fn on_core<T>(nth: usize, work: impl FnOnce() -> T) -> T {
    // SAFETY: plain data, of which zero is a value.
    let (mut allowed, mut own): (libc::cpu_set_t, libc::cpu_set_t) =
        unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
    // SAFETY: the set is as large as is said; a refusal leaves it empty.
    unsafe { libc::sched_getaffinity(0, size_of_val(&allowed), &raw mut allowed) };
    // SAFETY: only looks into the set.
    let cores: Vec<usize> =
        (0..libc::CPU_SETSIZE as usize).filter(|core| unsafe { libc::CPU_ISSET(*core, &allowed) }).collect();
    let Some(core) = cores.get(nth % cores.len().max(1)) else { return work() };
    // SAFETY: the core is in range; a refusal leaves the thread where it may run already.
    unsafe {
        libc::CPU_SET(*core, &mut own);
        libc::sched_setaffinity(0, size_of_val(&own), &raw const own);
    }
    let given = work();
    // SAFETY: as above, with the set that was given.
    unsafe { libc::sched_setaffinity(0, size_of_val(&allowed), &raw const allowed) };
    given
}

#[cfg(not(target_os = "linux"))]
pub fn on_core<T>(_: usize, work: impl FnOnce() -> T) -> T {
    work()
}
