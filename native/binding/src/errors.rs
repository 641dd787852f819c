//! Exceptions, and the guard every slow call goes through: GIL released, panics turned into `CoreError`.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use pyo3::create_exception;
use pyo3::exceptions::{PyException, PyValueError};
use pyo3::prelude::*;
use shardyard_core::bls::BlsError as NativeBlsError;
use shardyard_core::error::CoreError as NativeError;

create_exception!(shardyard._native, CoreError, PyException, "The native core refused or failed.");
create_exception!(shardyard._native, InvalidBlock, CoreError, "The block breaks a validity rule.");
create_exception!(shardyard._native, UnknownParent, CoreError, "The parent state is not held here.");
create_exception!(shardyard._native, MissingState, CoreError, "The state asked for is not held any more.");
create_exception!(shardyard._native, BlsError, PyException, "A key, signature or proof was refused.");

/// What can go wrong in a native call, before it has a Python form.
pub enum Failure {
    Core(NativeError),
    Bls(NativeBlsError),
    Argument(String),
    Panic(String),
}

impl From<NativeError> for Failure {
    fn from(error: NativeError) -> Self {
        Self::Core(error)
    }
}

impl From<NativeBlsError> for Failure {
    fn from(error: NativeBlsError) -> Self {
        Self::Bls(error)
    }
}

impl From<Failure> for PyErr {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Core(error) => match &error {
                NativeError::InvalidBlock(text) => InvalidBlock::new_err(text.clone()),
                NativeError::UnknownParent(text) => UnknownParent::new_err(text.clone()),
                NativeError::MissingState(text) => MissingState::new_err(text.clone()),
                NativeError::Malformed(_) | NativeError::Internal(_) => CoreError::new_err(error.to_string()),
            },
            Failure::Bls(error) => BlsError::new_err(error.0),
            Failure::Argument(text) => PyValueError::new_err(text),
            Failure::Panic(text) => CoreError::new_err(format!("native panic: {text}")),
        }
    }
}

/// Runs `work` without the GIL; a panic inside becomes a `CoreError` and never unwinds into Python.
pub fn guarded<T: Send>(py: Python<'_>, work: impl FnOnce() -> Result<T, Failure> + Send) -> PyResult<T> {
    py.detach(|| {
        catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|payload| Err(Failure::Panic(panic_text(payload))))
    })
    .map_err(PyErr::from)
}

fn panic_text(payload: Box<dyn Any + Send>) -> String {
    match payload.downcast::<String>() {
        Ok(text) => *text,
        Err(payload) => payload.downcast::<&str>().map_or_else(|_| "unknown".to_owned(), |text| (*text).to_owned()),
    }
}

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let py = module.py();
    module.add("CoreError", py.get_type::<CoreError>())?;
    module.add("InvalidBlock", py.get_type::<InvalidBlock>())?;
    module.add("UnknownParent", py.get_type::<UnknownParent>())?;
    module.add("MissingState", py.get_type::<MissingState>())?;
    module.add("BlsError", py.get_type::<BlsError>())
}
