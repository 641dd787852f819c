//! Ethereum's state tests, run by the conformance crate.

use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::PyBytes;
use shardyard_conformance::{Mode, encode_reports, run_document};

use crate::errors::{Failure, guarded};

/// Runs every vector of one state test document, each alone (`threads` of 0) or in a block on that many threads.
#[pyfunction]
fn run_state_tests<'py>(py: Python<'py>, document: PyBackedBytes, threads: usize) -> PyResult<Bound<'py, PyBytes>> {
    let mode = match threads {
        0 => Mode::Alone,
        1 => {
            return Err(
                Failure::Argument("threads is 0 (alone) or at least 2 (in a parallel block), got 1".into()).into()
            );
        }
        threads => Mode::Parallel(threads),
    };
    let reports = guarded(py, || Ok(encode_reports(&run_document(&document, &[mode])?)))?;
    Ok(PyBytes::new(py, &reports))
}

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(run_state_tests, module)?)
}
