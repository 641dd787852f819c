//! The boundary to Python: `shardyard._native`. It translates types, releases the GIL and lets no panic through;
//! it decides nothing.

mod access_list;
mod conformance;
mod core;
mod crypto;
mod errors;
mod mempool;

use pyo3::prelude::*;

#[pymodule]
fn _native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    errors::register(module)?;
    crypto::register(module)?;
    access_list::register(module)?;
    core::register(module)?;
    conformance::register(module)?;
    mempool::register(module)?;
    module.add("SEQUENTIAL_SOURCES", env!("SEQUENTIAL_SOURCES"))
}
