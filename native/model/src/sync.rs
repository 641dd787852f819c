//! The primitives that the workers' protocol stands on, as the model checker makes them: at each use it decides who goes on.
//! They are sequentially consistent, which is what the protocol asks for everywhere.

pub use shuttle::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize};
pub use shuttle::sync::{Condvar, Mutex, MutexGuard};
pub use shuttle::thread::yield_now;

use std::sync::PoisonError;

/// As in the core.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
