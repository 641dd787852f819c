//! A block's access list for Python, which shows it to people.

use std::borrow::Cow;

use alloy_primitives::U256;
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use shardyard_core::access_list::{self, AccountAccess};

use crate::errors::guarded;

type Bytes = Cow<'static, [u8]>;
type Changes<T> = Vec<(u32, T)>;
/// Address, slots with their changes, slots only read, changes of balance, nonce and code; words are 32 bytes.
type Account = (Bytes, Vec<(Bytes, Changes<Bytes>)>, Vec<Bytes>, Changes<Bytes>, Changes<u64>, Changes<Bytes>);

fn word(value: &U256) -> Bytes {
    Cow::Owned(value.to_be_bytes::<32>().to_vec())
}

fn account(access: AccountAccess) -> Account {
    let words = |changes: &access_list::Changes<U256>| {
        changes.iter().map(|(index, value)| (*index, word(value))).collect::<Vec<_>>()
    };
    (
        Cow::Owned(access.address.to_vec()),
        access.storage_changes.iter().map(|(slot, changes)| (word(slot), words(changes))).collect(),
        access.storage_reads.iter().map(word).collect(),
        words(&access.balance_changes),
        access.nonce_changes.into_vec(),
        access.code_changes.into_iter().map(|(index, code)| (index, Cow::Owned(code.to_vec()))).collect(),
    )
}

#[pyfunction]
fn decode_access_list(py: Python<'_>, encoded: PyBackedBytes) -> PyResult<Vec<Account>> {
    guarded(py, || {
        let list = access_list::decode(&encoded, u32::MAX, false)?;
        Ok(list.accounts.into_iter().map(account).collect())
    })
}

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(decode_access_list, module)?)
}
