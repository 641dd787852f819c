//! Asking the processor for memory ahead of its use.

/// Bytes of a line of the cache.
#[cfg(target_arch = "x86_64")]
const LINE: usize = 64;

/// Has what lies at a place brought into the cache, for whoever will soon look there.
#[inline]
pub fn bring_near<T>(place: *const T) {
    #[cfg(target_arch = "x86_64")]
    for_lines(place, |line| {
        // SAFETY: a hint for any address; it reads nothing and cannot fault.
        unsafe { core::arch::x86_64::_mm_prefetch::<{ core::arch::x86_64::_MM_HINT_T0 }>(line) };
    });
    #[cfg(not(target_arch = "x86_64"))]
    let _ = place;
}

/// As `bring_near`, for whoever will write there: no other core keeps a copy that it would have to be told of.
#[inline]
pub fn bring_near_to_write<T>(place: *const T) {
    #[cfg(target_arch = "x86_64")]
    for_lines(place, |line| {
        // SAFETY: as above; where the processor does not know it, it does nothing.
        unsafe { core::arch::x86_64::_mm_prefetch::<{ core::arch::x86_64::_MM_HINT_ET0 }>(line) };
    });
    #[cfg(not(target_arch = "x86_64"))]
    let _ = place;
}

#[cfg(target_arch = "x86_64")]
#[inline]
fn for_lines<T>(place: *const T, ask: impl Fn(*const i8)) {
    (0..size_of::<T>().div_ceil(LINE)).for_each(|line| ask(place.wrapping_byte_add(line * LINE).cast()));
}
