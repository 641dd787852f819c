//! Asking the processor for memory ahead of its use.

/// Bytes of a line of the cache.
#[cfg(target_arch = "x86_64")]
const LINE: usize = 64;

/// Has what lies at a place brought into the cache, for whoever will soon be there.
#[cfg(target_arch = "x86_64")]
#[inline]
pub fn bring_near<T>(place: *const T) {
    use core::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
    for line in 0..size_of::<T>().div_ceil(LINE) {
        // SAFETY: a hint for any address; it reads nothing and cannot fault.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(place.wrapping_byte_add(line * LINE).cast()) };
    }
}

#[cfg(not(target_arch = "x86_64"))]
#[inline]
pub fn bring_near<T>(_: *const T) {}
