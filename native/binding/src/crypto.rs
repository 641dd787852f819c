//! Hashes, Merkle trees and BLS signatures for Python.

use pyo3::exceptions::{PyIndexError, PyValueError};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::PyBytes;
use shardyard_core::{bls, hash, merkle};

use crate::errors::{Failure, guarded};

/// A fixed-size argument, with got and expected in the error.
pub fn fixed<const N: usize>(name: &str, bytes: &[u8]) -> PyResult<[u8; N]> {
    bytes.try_into().map_err(|_| PyValueError::new_err(format!("{name}: expected {N} bytes, got {}", bytes.len())))
}

#[pyfunction]
fn keccak256<'py>(py: Python<'py>, data: &[u8]) -> Bound<'py, PyBytes> {
    PyBytes::new(py, hash::keccak256(data).as_slice())
}

#[pyfunction]
fn keccak256_many<'py>(py: Python<'py>, blob: PyBackedBytes, offsets: Vec<usize>) -> PyResult<Bound<'py, PyBytes>> {
    let digests = guarded(py, || hash::keccak256_pieces(&blob, &offsets).map_err(Failure::Argument))?;
    Ok(PyBytes::new(py, &digests))
}

#[pyfunction]
fn blake3<'py>(py: Python<'py>, data: &[u8]) -> Bound<'py, PyBytes> {
    PyBytes::new(py, &hash::blake3(data))
}

#[pyfunction]
fn merkle_root<'py>(py: Python<'py>, leaves: Vec<PyBackedBytes>) -> PyResult<Bound<'py, PyBytes>> {
    let root = guarded(py, || Ok(merkle::merkle_root(&leaves)))?;
    Ok(PyBytes::new(py, root.as_slice()))
}

#[pyfunction]
fn merkle_proof<'py>(
    py: Python<'py>,
    leaves: Vec<PyBackedBytes>,
    index: usize,
) -> PyResult<Vec<(bool, Bound<'py, PyBytes>)>> {
    let proof = guarded(py, || Ok(merkle::merkle_proof(&leaves, index)))?
        .ok_or_else(|| PyIndexError::new_err(format!("leaf {index} of {}", leaves.len())))?;
    Ok(proof.iter().map(|(is_right, hash)| (*is_right, PyBytes::new(py, hash.as_slice()))).collect())
}

#[pyfunction]
fn verify_merkle_proof(leaf: &[u8], proof: Vec<(bool, PyBackedBytes)>, root: &[u8]) -> bool {
    let (Ok(root), Some(path)) = (
        <[u8; 32]>::try_from(root),
        proof
            .iter()
            .map(|(is_right, hash)| <[u8; 32]>::try_from(&hash[..]).ok().map(|hash| (*is_right, hash.into())))
            .collect::<Option<Vec<_>>>(),
    ) else {
        return false;
    };
    merkle::verify_merkle_proof(leaf, &path, &root.into())
}

#[pyfunction]
fn bls_secret_key<'py>(py: Python<'py>, ikm: &[u8]) -> PyResult<Bound<'py, PyBytes>> {
    let secret = bls::secret_key(ikm).map_err(Failure::from)?;
    Ok(PyBytes::new(py, &secret))
}

#[pyfunction]
fn bls_public_key<'py>(py: Python<'py>, secret: PyBackedBytes) -> PyResult<Bound<'py, PyBytes>> {
    let key = guarded(py, || Ok(bls::public_key(&secret)?))?;
    Ok(PyBytes::new(py, &key))
}

#[pyfunction]
fn bls_sign<'py>(py: Python<'py>, secret: PyBackedBytes, message: PyBackedBytes) -> PyResult<Bound<'py, PyBytes>> {
    let signature = guarded(py, || Ok(bls::sign(&secret, &message)?))?;
    Ok(PyBytes::new(py, &signature))
}

#[pyfunction]
fn bls_sign_many<'py>(
    py: Python<'py>,
    secrets: Vec<PyBackedBytes>,
    message: PyBackedBytes,
) -> PyResult<Vec<Bound<'py, PyBytes>>> {
    let signatures =
        guarded(py, || Ok(secrets.iter().map(|secret| bls::sign(secret, &message)).collect::<Result<Vec<_>, _>>()?))?;
    Ok(signatures.iter().map(|signature| PyBytes::new(py, signature)).collect())
}

#[pyfunction]
fn bls_prove_possession<'py>(py: Python<'py>, secret: PyBackedBytes) -> PyResult<Bound<'py, PyBytes>> {
    let proof = guarded(py, || Ok(bls::prove_possession(&secret)?))?;
    Ok(PyBytes::new(py, &proof))
}

#[pyfunction]
fn bls_verify_possession(py: Python<'_>, public_key: PyBackedBytes, proof: PyBackedBytes) -> PyResult<bool> {
    guarded(py, || Ok(bls::verify_possession(&public_key, &proof)))
}

#[pyfunction]
fn bls_aggregate<'py>(py: Python<'py>, signatures: Vec<PyBackedBytes>) -> PyResult<Bound<'py, PyBytes>> {
    let sum = guarded(py, || Ok(bls::aggregate(&signatures)?))?;
    Ok(PyBytes::new(py, &sum))
}

#[pyclass(frozen, module = "shardyard._native")]
struct BlsKeySet(bls::KeySet);

#[pymethods]
impl BlsKeySet {
    #[new]
    fn new(
        py: Python<'_>,
        public_keys: Vec<PyBackedBytes>,
        possession_proofs: Option<Vec<PyBackedBytes>>,
    ) -> PyResult<Self> {
        guarded(py, || Ok(Self(bls::KeySet::new(&public_keys, possession_proofs.as_deref())?)))
    }

    fn __len__(&self) -> usize {
        self.0.len()
    }

    fn verify(
        &self,
        py: Python<'_>,
        bitmap: PyBackedBytes,
        message: PyBackedBytes,
        signature: PyBackedBytes,
    ) -> PyResult<bool> {
        guarded(py, || Ok(self.0.verify(&bitmap, &message, &signature)))
    }

    fn verify_votes(&self, py: Python<'_>, items: Vec<(usize, PyBackedBytes, PyBackedBytes)>) -> PyResult<Vec<bool>> {
        guarded(py, || {
            let votes: Vec<bls::Vote<'_>> = items.iter().map(|(i, m, s)| (*i, &m[..], &s[..])).collect();
            Ok(self.0.verify_votes(&votes))
        })
    }
}

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(keccak256, module)?)?;
    module.add_function(wrap_pyfunction!(keccak256_many, module)?)?;
    module.add_function(wrap_pyfunction!(blake3, module)?)?;
    module.add_function(wrap_pyfunction!(merkle_root, module)?)?;
    module.add_function(wrap_pyfunction!(merkle_proof, module)?)?;
    module.add_function(wrap_pyfunction!(verify_merkle_proof, module)?)?;
    module.add_function(wrap_pyfunction!(bls_secret_key, module)?)?;
    module.add_function(wrap_pyfunction!(bls_public_key, module)?)?;
    module.add_function(wrap_pyfunction!(bls_sign, module)?)?;
    module.add_function(wrap_pyfunction!(bls_sign_many, module)?)?;
    module.add_function(wrap_pyfunction!(bls_prove_possession, module)?)?;
    module.add_function(wrap_pyfunction!(bls_verify_possession, module)?)?;
    module.add_function(wrap_pyfunction!(bls_aggregate, module)?)?;
    module.add_class::<BlsKeySet>()
}
