//! `Submission`, `Mempool`, `Admitted` and the signer for Python.

use std::sync::{Mutex, MutexGuard, PoisonError};

use alloy_primitives::{Address, B256, U256};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::{PyBytes, PyList};
use shardyard_core::ingress::{self, Submission as NativeSubmission};
use shardyard_core::mempool::{Limits, Mempool as NativeMempool, Waiting};
use shardyard_core::raw::RawList;
use shardyard_core::{places, signer};

use crate::core::{Batch, Core, address, hash, read_indices};
use crate::crypto::fixed;
use crate::errors::guarded;

/// JSON-RPC: the server understood and refuses.
const SERVER_ERROR: i32 = -32000;

/// What Python makes a `MempoolEntry` of: hash, sender, nonce, gas limit, highest fee, tip, cost, raw.
type Fields<'py> =
    (Bound<'py, PyBytes>, Bound<'py, PyBytes>, u64, u64, u64, u64, Bound<'py, PyBytes>, Bound<'py, PyBytes>);

fn describe<'py>(py: Python<'py>, entry: &Waiting) -> Fields<'py> {
    (
        PyBytes::new(py, entry.hash.as_slice()),
        PyBytes::new(py, entry.sender.as_slice()),
        entry.nonce,
        entry.gas_limit,
        entry.max_fee,
        entry.tip,
        PyBytes::new(py, &entry.cost.to_be_bytes::<32>()),
        PyBytes::new(py, &entry.raw),
    )
}

fn join<'py>(py: Python<'py>, hashes: &[B256]) -> Bound<'py, PyBytes> {
    PyBytes::new(py, &hashes.iter().flat_map(|hash| hash.0).collect::<Vec<u8>>())
}

fn cut(blob: &[u8]) -> impl Iterator<Item = B256> {
    blob.as_chunks::<32>().0.iter().map(|bytes| B256::new(*bytes))
}

#[pyclass(frozen, module = "shardyard._native")]
pub struct Submission(NativeSubmission);

impl Submission {
    pub fn list(&self) -> &RawList {
        &self.0.list
    }
}

#[pymethods]
impl Submission {
    #[new]
    fn new(raw: PyBackedBytes, offsets: Vec<usize>) -> PyResult<Self> {
        let list = RawList::cut(&raw, &offsets).map_err(crate::errors::Failure::from)?;
        Ok(Self(NativeSubmission::of_list(list)))
    }

    fn __len__(&self) -> usize {
        self.0.list.len()
    }

    #[getter]
    fn size(&self) -> usize {
        self.0.list.bytes().len()
    }

    #[getter]
    fn raw<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, self.0.list.bytes())
    }

    #[getter]
    fn ends(&self) -> Vec<usize> {
        self.0.list.ends().to_vec()
    }

    /// The answer to the request that brought this, which begins at `first` of what was admitted together.
    fn encode_answers<'py>(
        &self,
        py: Python<'py>,
        admitted: &Bound<'py, Admitted>,
        first: usize,
    ) -> Bound<'py, PyBytes> {
        let Admitted { hashes, problems } = admitted.get();
        let outcomes = hashes.iter().zip(problems).skip(first);
        let outcomes =
            outcomes.map(|(hash, problem)| problem.as_deref().map_or(Ok(hash), |problem| Err((SERVER_ERROR, problem))));
        PyBytes::new(py, &self.0.write_answers(outcomes))
    }

    /// The answer that refuses all of it in the same words.
    fn encode_refusal<'py>(&self, py: Python<'py>, code: i32, message: &str) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.0.write_answers(std::iter::repeat(Err((code, message)))))
    }

    /// The JSON-RPC batch that hands in the transactions from `start` to `stop`.
    fn encode_request<'py>(&self, py: Python<'py>, start: usize, stop: usize) -> Bound<'py, PyBytes> {
        let list = &self.0.list;
        let raws: Vec<&[u8]> = (start..stop.min(list.len())).filter_map(|index| list.get(index)).collect();
        PyBytes::new(py, &ingress::write_request(&raws))
    }
}

#[pyfunction]
fn read_submission(py: Python<'_>, body: PyBackedBytes, max_calls: usize) -> PyResult<Option<Submission>> {
    guarded(py, || Ok(NativeSubmission::read(&body, max_calls).map(Submission)))
}

#[pyclass(frozen, module = "shardyard._native")]
pub struct Admitted {
    hashes: Vec<B256>,
    problems: Vec<Option<String>>,
}

#[pymethods]
impl Admitted {
    fn __len__(&self) -> usize {
        self.hashes.len()
    }

    #[getter]
    fn hashes<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        join(py, &self.hashes)
    }

    fn error(&self, i: usize) -> Option<&str> {
        self.problems.get(i)?.as_deref()
    }

    /// Positions from `start` to `stop` that the pool took, as packed u32.
    fn accepted<'py>(&self, py: Python<'py>, start: usize, stop: usize) -> Bound<'py, PyBytes> {
        let taken = (start..stop.min(self.problems.len())).filter(|index| self.problems[*index].is_none());
        PyBytes::new(py, &taken.flat_map(|index| (index as u32).to_ne_bytes()).collect::<Vec<u8>>())
    }
}

#[pyclass(frozen, module = "shardyard._native")]
pub struct Mempool(Mutex<NativeMempool>);

impl Mempool {
    /// Never taken while the GIL is held: whoever has the lock may need the GIL to come to its end.
    fn lock(&self) -> MutexGuard<'_, NativeMempool> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with<T: Send>(&self, py: Python<'_>, work: impl FnOnce(&mut NativeMempool) -> T + Send) -> PyResult<T> {
        guarded(py, || Ok(work(&mut self.lock())))
    }
}

#[pymethods]
impl Mempool {
    #[new]
    #[pyo3(signature = (*, max_transactions, max_bytes, max_per_sender, max_gap, max_gas, min_fee))]
    fn new(
        max_transactions: usize,
        max_bytes: usize,
        max_per_sender: usize,
        max_gap: u64,
        max_gas: u64,
        min_fee: u64,
    ) -> Self {
        let limits = Limits { max_transactions, max_bytes, max_per_sender, max_gap, max_gas, min_fee };
        Self(Mutex::new(NativeMempool::new(limits)))
    }

    fn __len__(&self, py: Python<'_>) -> PyResult<usize> {
        self.with(py, |pool| pool.len())
    }

    #[getter]
    fn size_bytes(&self, py: Python<'_>) -> PyResult<usize> {
        self.with(py, |pool| pool.size_bytes())
    }

    fn get<'py>(&self, py: Python<'py>, tx_hash: &[u8]) -> PyResult<Option<Fields<'py>>> {
        let tx_hash = hash("tx_hash", tx_hash)?;
        let found = self.with(py, |pool| pool.get(&tx_hash).cloned())?;
        Ok(found.map(|entry| describe(py, &entry)))
    }

    fn get_by_nonce<'py>(&self, py: Python<'py>, sender: &[u8], nonce: u64) -> PyResult<Option<Fields<'py>>> {
        let sender = address("sender", sender)?;
        let found = self.with(py, |pool| pool.get_by_nonce(&sender, nonce).cloned())?;
        Ok(found.map(|entry| describe(py, &entry)))
    }

    fn next_nonce(&self, py: Python<'_>, sender: &[u8], account_nonce: u64) -> PyResult<u64> {
        let sender = address("sender", sender)?;
        self.with(py, |pool| pool.next_nonce(&sender, account_nonce))
    }

    fn status(&self, py: Python<'_>) -> PyResult<(usize, usize)> {
        self.with(py, |pool| pool.status())
    }

    fn entries<'py>(&self, py: Python<'py>) -> PyResult<Vec<Fields<'py>>> {
        let all = self.with(py, |pool| pool.list())?;
        Ok(all.iter().map(|entry| describe(py, entry)).collect())
    }

    fn senders<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyBytes>>> {
        let senders = self.with(py, |pool| pool.senders())?;
        Ok(senders.iter().map(|sender| PyBytes::new(py, sender.as_slice())).collect())
    }

    /// All raw transactions in order of arrival, encoded as bodies of at most about `max_bytes` each.
    fn encode_bodies<'py>(&self, py: Python<'py>, max_bytes: usize) -> PyResult<Vec<Bound<'py, PyBytes>>> {
        let bodies = guarded(py, || {
            let all = self.lock().list();
            let mut lists = vec![RawList::default()];
            for entry in all {
                if lists.last().is_some_and(|list| list.bytes().len() >= max_bytes) {
                    lists.push(RawList::default());
                }
                lists.iter_mut().next_back().into_iter().for_each(|list| list.push(&entry.raw));
            }
            Ok(lists.iter().filter(|list| !list.is_empty()).map(RawList::encode).collect::<Vec<_>>())
        })?;
        Ok(bodies.iter().map(|body| PyBytes::new(py, body)).collect())
    }

    fn least_fee(&self, py: Python<'_>) -> PyResult<u64> {
        self.with(py, |pool| pool.least_fee())
    }

    #[expect(clippy::too_many_arguments, reason = "the fields of an entry")]
    fn add<'py>(
        &self,
        py: Python<'py>,
        tx_hash: &[u8],
        sender: &[u8],
        nonce: u64,
        gas_limit: u64,
        max_fee: u64,
        tip: u64,
        cost: &[u8],
        raw: &[u8],
        account_nonce: u64,
        balance: &[u8],
    ) -> PyResult<(Bound<'py, PyBytes>, &'static str, String)> {
        let entry = Waiting {
            hash: hash("tx_hash", tx_hash)?,
            sender: address("sender", sender)?,
            nonce,
            gas_limit,
            max_fee,
            tip,
            cost: U256::from_be_bytes::<32>(fixed("cost", cost)?),
            raw: raw.into(),
            transaction: None,
            arrival: 0,
        };
        let balance = U256::from_be_bytes::<32>(fixed("balance", balance)?);
        Ok(match self.with(py, |pool| pool.add(entry, account_nonce, balance))? {
            Ok(removed) => (join(py, &removed), "", String::new()),
            Err(rejection) => (PyBytes::new(py, b""), rejection.reason, rejection.detail),
        })
    }

    fn admit(&self, py: Python<'_>, core: &Bound<'_, Core>, batch: &Bound<'_, Batch>) -> PyResult<Admitted> {
        let (core, batch) = (&core.get().0, batch.get());
        guarded(py, || {
            let problems = self.lock().admit(&batch.0, &batch.1, |at| core.view(at))?;
            // Here, where several workers do it, and not one by one when a block has them.
            core.recover_authorizations(&batch.0, |place| problems.get(place).is_some_and(Option::is_none));
            Ok(Admitted { hashes: batch.0.entries().iter().map(|entry| entry.hash).collect(), problems })
        })
    }

    fn select(
        &self,
        py: Python<'_>,
        base_fee: u64,
        gas_limit: u64,
        max_bytes: usize,
        ancestors: Vec<PyBackedBytes>,
    ) -> PyResult<Batch> {
        let ancestors = ancestors.iter().map(|block| hash("ancestor", block)).collect::<PyResult<Vec<B256>>>()?;
        self.with(py, |pool| {
            let (batch, raws) = pool.select(base_fee, gas_limit, max_bytes, &ancestors);
            Batch(batch, raws)
        })
    }

    fn mark_included(&self, py: Python<'_>, block_hash: &[u8], hashes: PyBackedBytes) -> PyResult<()> {
        let block = hash("block_hash", block_hash)?;
        self.with(py, |pool| pool.mark_included(block, cut(&hashes)))
    }

    fn mark_batch(
        &self,
        py: Python<'_>,
        block_hash: &[u8],
        batch: &Bound<'_, Batch>,
        indices: PyBackedBytes,
    ) -> PyResult<()> {
        let (block, batch) = (hash("block_hash", block_hash)?, &batch.get().0);
        self.with(py, |pool| pool.mark_batch(block, batch, &read_indices(&indices)))
    }

    fn on_discarded(&self, py: Python<'_>, block_hash: &[u8]) -> PyResult<()> {
        let block = hash("block_hash", block_hash)?;
        self.with(py, |pool| pool.on_discarded(&block))
    }

    fn on_final<'py>(
        &self,
        py: Python<'py>,
        block_hash: &[u8],
        accounts: Vec<(PyBackedBytes, u64, PyBackedBytes)>,
    ) -> PyResult<Bound<'py, PyBytes>> {
        let block = hash("block_hash", block_hash)?;
        let read = |(sender, nonce, balance): &(PyBackedBytes, u64, PyBackedBytes)| -> PyResult<(Address, u64, U256)> {
            Ok((address("sender", sender)?, *nonce, U256::from_be_bytes::<32>(fixed("balance", balance)?)))
        };
        let accounts = accounts.iter().map(read).collect::<PyResult<Vec<_>>>()?;
        let removed = self.with(py, |pool| pool.on_final(&block, &accounts))?;
        Ok(join(py, &removed))
    }

    fn settle<'py>(&self, py: Python<'py>, core: &Bound<'_, Core>, block_hash: &[u8]) -> PyResult<Bound<'py, PyBytes>> {
        let (core, block) = (&core.get().0, hash("block_hash", block_hash)?);
        let removed = guarded(py, || Ok(self.lock().settle(&block, |at| core.view(at))?))?;
        Ok(join(py, &removed))
    }

    fn refresh<'py>(
        &self,
        py: Python<'py>,
        core: &Bound<'_, Core>,
        batch: &Bound<'_, Batch>,
        indices: PyBackedBytes,
    ) -> PyResult<Bound<'py, PyBytes>> {
        let (core, batch) = (&core.get().0, &batch.get().0);
        let indices = read_indices(&indices);
        let removed = guarded(py, || Ok(self.lock().refresh(batch, &indices, |at| core.view(at))?))?;
        Ok(join(py, &removed))
    }

    fn start_at(&self, py: Python<'_>, block_hash: &[u8]) -> PyResult<()> {
        let block = hash("block_hash", block_hash)?;
        self.with(py, |pool| pool.start_at(block))
    }

    fn remove(&self, py: Python<'_>, hashes: PyBackedBytes) -> PyResult<()> {
        self.with(py, |pool| pool.remove(cut(&hashes)))
    }
}

/// Secret, nonce, tip, highest fee, gas limit, receiver (empty: creation), value, data.
type Draft = (PyBackedBytes, u64, u128, u128, u64, PyBackedBytes, PyBackedBytes, PyBackedBytes);

#[pyfunction]
#[pyo3(signature = (chain_id, drafts, threads = 1))]
fn sign_transactions(py: Python<'_>, chain_id: u64, drafts: Vec<Draft>, threads: usize) -> PyResult<Submission> {
    let read = |draft: &Draft| -> PyResult<([u8; 32], Option<Address>, U256)> {
        let (secret, to, value) = (&draft.0, &draft.5, &draft.6);
        let to = if to.is_empty() { None } else { Some(address("to", to)?) };
        Ok((fixed("secret", secret)?, to, U256::from_be_bytes::<32>(fixed("value", value)?)))
    };
    let fields = drafts.iter().map(read).collect::<PyResult<Vec<_>>>()?;
    let drafts: Vec<signer::Draft<'_>> = drafts
        .iter()
        .zip(fields)
        .map(|((_, nonce, tip, max_fee, gas_limit, _, _, data), (secret, to, value))| signer::Draft {
            secret,
            nonce: *nonce,
            tip: *tip,
            max_fee: *max_fee,
            gas_limit: *gas_limit,
            to,
            value,
            data,
        })
        .collect();
    guarded(py, || Ok(Submission(NativeSubmission::of_list(signer::sign(chain_id, &drafts, threads)?))))
}

#[pyfunction]
fn compute_address<'py>(py: Python<'py>, secret: &[u8]) -> PyResult<Bound<'py, PyBytes>> {
    let secret = fixed("secret", secret)?;
    let found = signer::address(&secret).map_err(crate::errors::Failure::from)?;
    Ok(PyBytes::new(py, found.as_slice()))
}

#[pyfunction]
fn read_outcome_hashes<'py>(py: Python<'py>, outcomes: PyBackedBytes) -> PyResult<Bound<'py, PyBytes>> {
    let hashes = guarded(py, || Ok(places::read_outcome_hashes(&outcomes)?))?;
    Ok(PyBytes::new(py, &hashes))
}

#[pyfunction]
fn build_run<'py>(py: Python<'py>, hashes: PyBackedBytes, height: u32) -> PyResult<Bound<'py, PyBytes>> {
    let run = guarded(py, || Ok(places::build_run(&hashes, height)))?;
    Ok(PyBytes::new(py, &run))
}

#[pyfunction]
fn merge_runs<'py>(py: Python<'py>, runs: &Bound<'py, PyList>, last_height: u32) -> PyResult<Bound<'py, PyBytes>> {
    let runs: Vec<PyBackedBytes> = runs.extract()?;
    let run = guarded(py, || Ok(places::merge_runs(&runs, last_height)))?;
    Ok(PyBytes::new(py, &run))
}

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(read_submission, module)?)?;
    module.add_function(wrap_pyfunction!(sign_transactions, module)?)?;
    module.add_function(wrap_pyfunction!(compute_address, module)?)?;
    module.add_function(wrap_pyfunction!(read_outcome_hashes, module)?)?;
    module.add_function(wrap_pyfunction!(build_run, module)?)?;
    module.add_function(wrap_pyfunction!(merge_runs, module)?)?;
    module.add_class::<Submission>()?;
    module.add_class::<Admitted>()?;
    module.add_class::<Mempool>()
}
