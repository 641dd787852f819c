//! The primitives that the workers' protocol stands on: the standard library's here. `native/model` compiles the same
//! protocol over those of a model checker, so `crew` and `status` take them from nowhere else.

pub use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize};
pub use std::sync::{Condvar, Mutex, MutexGuard};
pub use std::thread::yield_now;

use std::sync::PoisonError;

/// Takes a lock that a panic may have left poisoned: a worker that panics ends the block, and the others must end too.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
