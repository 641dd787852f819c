//! `Core`, `Batch`, `BlockEnv`, `BlockResult` and `CallResult` for Python.

use alloy_primitives::{Address, B256, U256};
use pyo3::exceptions::{PyIndexError, PyValueError};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::PyBytes;
use shardyard_core::batch::Batch as NativeBatch;
use shardyard_core::block::{self, Chain, Mode};
use shardyard_core::call::CallResult as NativeCallResult;
use shardyard_core::codec::Writer;
use shardyard_core::core::Core as NativeCore;
use shardyard_core::evm::{Revision, Status};
use shardyard_core::gateway::{GATEWAY, MAX_DELIVERIES, MAX_OUTBOX_BYTES};
use shardyard_core::ledger::write_logs;
use shardyard_core::raw::RawList;
use shardyard_core::receipt::BEACON;

use crate::crypto::fixed;
use crate::errors::guarded;
use crate::mempool::Submission;

pub fn hash(name: &str, bytes: &[u8]) -> PyResult<B256> {
    Ok(B256::new(fixed(name, bytes)?))
}

pub fn address(name: &str, bytes: &[u8]) -> PyResult<Address> {
    Ok(Address::new(fixed(name, bytes)?))
}

#[pyclass(frozen, module = "shardyard._native")]
pub struct Batch(pub NativeBatch, pub RawList);

#[pymethods]
impl Batch {
    fn __len__(&self) -> usize {
        self.0.entries().len()
    }

    #[getter]
    fn hashes<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.0.entries().iter().flat_map(|entry| entry.hash.0).collect::<Vec<u8>>())
    }

    #[getter]
    fn senders<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.0.pack(|transaction| transaction.sender.into_array()))
    }

    #[getter]
    fn status<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        let codes = self.0.entries().iter().map(|entry| entry.refusal.as_ref().map_or(0, |refusal| refusal.code()));
        PyBytes::new(py, &codes.collect::<Vec<u8>>())
    }

    #[getter]
    fn nonces<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.0.pack(|transaction| transaction.nonce.to_le_bytes()))
    }

    #[getter]
    fn gas_limits<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.0.pack(|transaction| transaction.gas_limit.to_le_bytes()))
    }

    #[getter]
    fn max_fees<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.0.pack(|transaction| saturated(transaction.max_fee)))
    }

    #[getter]
    fn tips<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.0.pack(|transaction| saturated(transaction.tip.unwrap_or(transaction.max_fee))))
    }

    #[getter]
    fn types<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.0.pack(|transaction| [transaction.tx_type]))
    }

    #[getter]
    fn costs<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.0.pack(|transaction| transaction.cost().to_be_bytes::<32>()))
    }

    #[getter]
    fn raw<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, self.1.bytes())
    }

    #[getter]
    fn ends(&self) -> Vec<usize> {
        self.1.ends().to_vec()
    }

    /// The canonical block body of the transactions at `indices`, packed u32.
    fn encode_body<'py>(&self, py: Python<'py>, indices: PyBackedBytes) -> PyResult<Bound<'py, PyBytes>> {
        let body = guarded(py, || Ok(self.1.pick(&read_indices(&indices)).encode()))?;
        Ok(PyBytes::new(py, &body))
    }

    fn error(&self, i: usize) -> PyResult<Option<String>> {
        Ok(self.entry(i)?.refusal.as_ref().map(ToString::to_string))
    }

    fn describe<'py>(&self, py: Python<'py>, i: usize) -> PyResult<Bound<'py, PyBytes>> {
        let transaction = self.entry(i)?.transaction.as_ref();
        let transaction =
            transaction.ok_or_else(|| PyValueError::new_err(format!("transaction {i} could not be decoded")))?;
        Ok(PyBytes::new(py, &transaction.describe()))
    }
}

impl Batch {
    fn entry(&self, i: usize) -> PyResult<&shardyard_core::batch::Entry> {
        let entries = self.0.entries();
        entries.get(i).ok_or_else(|| PyIndexError::new_err(format!("transaction {i} of {}", entries.len())))
    }
}

/// What Python packs as `array("I")`.
pub fn read_indices(packed: &[u8]) -> Vec<u32> {
    packed.as_chunks::<4>().0.iter().map(|bytes| u32::from_ne_bytes(*bytes)).collect()
}

fn saturated(fee: u128) -> [u8; 8] {
    u64::try_from(fee).unwrap_or(u64::MAX).to_le_bytes()
}

#[pyclass(frozen, module = "shardyard._native")]
struct BlockEnv(block::BlockEnv);

#[pymethods]
impl BlockEnv {
    #[new]
    #[pyo3(signature = (
        *, number, timestamp, gas_limit, base_fee, beneficiary, prevrandao, parent_hash, beacon_root, beacon_height,
        inbox_gas, link_base_fees = Vec::new()
    ), text_signature = "(*, number, timestamp, gas_limit, base_fee, beneficiary, prevrandao, parent_hash, \
        beacon_root, beacon_height, inbox_gas, link_base_fees=())")]
    #[expect(clippy::too_many_arguments, reason = "a block's environment, all by keyword")]
    fn new(
        number: u64,
        timestamp: u64,
        gas_limit: u64,
        base_fee: u64,
        beneficiary: &[u8],
        prevrandao: &[u8],
        parent_hash: &[u8],
        beacon_root: &[u8],
        beacon_height: u64,
        inbox_gas: u64,
        link_base_fees: Vec<(u32, u64)>,
    ) -> PyResult<Self> {
        Ok(Self(block::BlockEnv {
            number,
            timestamp,
            gas_limit,
            base_fee,
            beneficiary: address("beneficiary", beneficiary)?,
            prevrandao: hash("prevrandao", prevrandao)?,
            parent_hash: hash("parent_hash", parent_hash)?,
            beacon_root: hash("beacon_root", beacon_root)?,
            beacon_height,
            inbox_gas,
            link_base_fees,
        }))
    }
}

#[pyclass(frozen, module = "shardyard._native")]
struct BlockResult(block::BlockResult);

#[pymethods]
impl BlockResult {
    #[getter]
    fn state_root(&self) -> &[u8] {
        self.0.state_root.as_slice()
    }

    #[getter]
    fn transactions_root(&self) -> &[u8] {
        self.0.transactions_root.as_slice()
    }

    #[getter]
    fn outcomes_root(&self) -> &[u8] {
        self.0.outcomes_root.as_slice()
    }

    #[getter]
    fn outbox_root(&self) -> &[u8] {
        self.0.outbox_root.as_slice()
    }

    #[getter]
    fn logs_bloom(&self) -> &[u8] {
        self.0.logs_bloom.as_slice()
    }

    #[getter]
    fn gas_used(&self) -> u64 {
        self.0.gas_used
    }

    #[getter]
    fn burnt<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.0.burnt.to_be_bytes::<32>())
    }

    #[getter]
    fn tips<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.0.tips.to_be_bytes::<32>())
    }

    #[getter]
    fn included<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.0.included.iter().flat_map(|index| index.to_le_bytes()).collect::<Vec<u8>>())
    }

    #[getter]
    fn skipped(&self) -> Vec<(u32, String)> {
        self.0.skipped.clone()
    }

    #[getter]
    fn inbox_taken(&self) -> usize {
        self.0.inbox_taken
    }

    #[getter]
    fn outcomes(&self) -> &[u8] {
        &self.0.outcomes
    }

    #[getter]
    fn outbox<'py>(&self, py: Python<'py>) -> Vec<Bound<'py, PyBytes>> {
        self.0.outbox.iter().map(|receipt| PyBytes::new(py, receipt)).collect()
    }

    #[getter]
    fn links(&self) -> &[u8] {
        &self.0.links
    }

    #[getter]
    fn access_list(&self) -> &[u8] {
        &self.0.access_list
    }

    #[getter]
    fn access_list_hash(&self) -> &[u8] {
        self.0.access_list_hash.as_slice()
    }

    #[getter]
    fn diff(&self) -> &[u8] {
        &self.0.diff
    }

    #[getter]
    fn stats(&self) -> &[u8] {
        &self.0.stats
    }
}

#[pyclass(frozen, module = "shardyard._native")]
struct CallResult(NativeCallResult);

#[pymethods]
impl CallResult {
    #[getter]
    fn status(&self) -> &'static str {
        match self.0.status {
            Status::Success => "success",
            Status::Revert => "revert",
            Status::Halt(_) => "halt",
        }
    }

    #[getter]
    fn gas_used(&self) -> u64 {
        self.0.gas_used
    }

    #[getter]
    fn gas(&self) -> u64 {
        self.0.gas
    }

    #[getter]
    fn output(&self) -> &[u8] {
        &self.0.output
    }

    #[getter]
    fn halt_reason(&self) -> Option<&str> {
        match &self.0.status {
            Status::Halt(reason) => Some(reason),
            _ => None,
        }
    }

    #[getter]
    fn logs<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        let mut writer = Writer::new();
        write_logs(&mut writer, &self.0.logs);
        PyBytes::new(py, &writer.finish())
    }
}

#[pyclass(frozen, module = "shardyard._native")]
pub struct Core(pub NativeCore);

#[pymethods]
impl Core {
    #[new]
    #[pyo3(signature = (*, chain_id, shard, threads = 1, history = 256, fast_path = true))]
    fn new(chain_id: u64, shard: u32, threads: usize, history: usize, fast_path: bool) -> Self {
        Self(NativeCore::new(Chain { chain_id, shard, threads, fast_path, revision: Revision::PRAGUE }, history))
    }

    fn init_genesis<'py>(&self, py: Python<'py>, alloc_json: PyBackedBytes) -> PyResult<Bound<'py, PyBytes>> {
        let root = guarded(py, || Ok(self.0.init_genesis(&alloc_json)?))?;
        Ok(PyBytes::new(py, root.as_slice()))
    }

    fn set_base(&self, py: Python<'_>, block_hash: &[u8], height: u64) -> PyResult<()> {
        let block_hash = hash("block_hash", block_hash)?;
        guarded(py, || {
            self.0.set_base(block_hash, height);
            Ok(())
        })
    }

    fn prepare(&self, py: Python<'_>, raw: PyBackedBytes, offsets: Vec<usize>) -> PyResult<Batch> {
        guarded(py, || Ok(Batch(self.0.prepare(&raw, &offsets)?, RawList::cut(&raw, &offsets)?)))
    }

    #[pyo3(signature = (submissions, least_fee = 0))]
    fn prepare_submissions(&self, py: Python<'_>, submissions: Vec<Py<Submission>>, least_fee: u64) -> PyResult<Batch> {
        guarded(py, || {
            let mut raws = RawList::default();
            submissions.iter().for_each(|submission| raws.extend(submission.get().list()));
            Ok(Batch(self.0.prepare_list(&raws, least_fee.into()), raws))
        })
    }

    #[expect(clippy::too_many_arguments, reason = "a block and what comes beside it")]
    #[pyo3(signature = (parent, batch, env, mode, inbox, access_list = None))]
    fn execute(
        &self,
        py: Python<'_>,
        parent: &[u8],
        batch: &Bound<'_, Batch>,
        env: &Bound<'_, BlockEnv>,
        mode: &str,
        inbox: Vec<PyBackedBytes>,
        access_list: Option<PyBackedBytes>,
    ) -> PyResult<BlockResult> {
        let parent = hash("parent", parent)?;
        let mode = match mode {
            "build" => Mode::Build,
            "validate" => Mode::Validate,
            other => return Err(PyValueError::new_err(format!("mode must be 'build' or 'validate', got {other:?}"))),
        };
        let (batch, env) = (&batch.get().0, &env.get().0);
        let given = access_list.as_deref();
        guarded(py, || Ok(BlockResult(self.0.execute_with(parent, batch, env, mode, &inbox, given)?)))
    }

    fn preview(
        &self,
        py: Python<'_>,
        parent: &[u8],
        batch: &Bound<'_, Batch>,
        env: &Bound<'_, BlockEnv>,
    ) -> PyResult<BlockResult> {
        let parent = hash("parent", parent)?;
        let (batch, env) = (&batch.get().0, &env.get().0);
        guarded(py, || Ok(BlockResult(self.0.preview(parent, batch, env)?)))
    }

    fn adopt(&self, py: Python<'_>, result: &Bound<'_, BlockResult>, block_hash: &[u8], height: u64) -> PyResult<()> {
        let (block_hash, result) = (hash("block_hash", block_hash)?, &result.get().0);
        guarded(py, || Ok(self.0.adopt(result, block_hash, height)?))
    }

    fn finalise(&self, py: Python<'_>, block_hash: &[u8]) -> PyResult<()> {
        let block_hash = hash("block_hash", block_hash)?;
        guarded(py, || Ok(self.0.finalise(&block_hash)?))
    }

    fn discard(&self, py: Python<'_>, block_hash: &[u8]) -> PyResult<()> {
        let block_hash = hash("block_hash", block_hash)?;
        guarded(py, || {
            self.0.discard(&block_hash);
            Ok(())
        })
    }

    fn apply_diff<'py>(
        &self,
        py: Python<'py>,
        block_hash: &[u8],
        height: u64,
        diff: PyBackedBytes,
    ) -> PyResult<Bound<'py, PyBytes>> {
        let block_hash = hash("block_hash", block_hash)?;
        let root = guarded(py, || Ok(self.0.apply_diff(block_hash, height, &diff)?))?;
        Ok(PyBytes::new(py, root.as_slice()))
    }

    fn has(&self, py: Python<'_>, block_hash: &[u8]) -> PyResult<bool> {
        let block_hash = hash("block_hash", block_hash)?;
        guarded(py, || Ok(self.0.has(&block_hash)))
    }

    #[expect(clippy::type_complexity, reason = "the tuple is the interface")]
    fn account<'py>(
        &self,
        py: Python<'py>,
        at: &[u8],
        address: &[u8],
    ) -> PyResult<Option<(u64, Bound<'py, PyBytes>, Bound<'py, PyBytes>)>> {
        let (at, address) = (hash("at", at)?, self::address("address", address)?);
        let account = guarded(py, || Ok(self.0.account(&at, &address)?))?;
        Ok(account.map(|account| {
            let balance = PyBytes::new(py, &account.balance.to_be_bytes::<32>());
            (account.nonce, balance, PyBytes::new(py, account.code_hash.as_slice()))
        }))
    }

    fn code<'py>(&self, py: Python<'py>, at: &[u8], address: &[u8]) -> PyResult<Bound<'py, PyBytes>> {
        let (at, address) = (hash("at", at)?, self::address("address", address)?);
        let code = guarded(py, || Ok(self.0.code(&at, &address)?))?;
        Ok(PyBytes::new(py, &code))
    }

    fn storage<'py>(&self, py: Python<'py>, at: &[u8], address: &[u8], slot: &[u8]) -> PyResult<Bound<'py, PyBytes>> {
        let (at, address) = (hash("at", at)?, self::address("address", address)?);
        let slot = U256::from_be_bytes::<32>(fixed("slot", slot)?);
        let value = guarded(py, || Ok(self.0.storage(&at, &address, &slot)?))?;
        Ok(PyBytes::new(py, &value.to_be_bytes::<32>()))
    }

    fn nonces_balances<'py>(
        &self,
        py: Python<'py>,
        at: &[u8],
        addresses: PyBackedBytes,
    ) -> PyResult<Bound<'py, PyBytes>> {
        let at = hash("at", at)?;
        let packed = guarded(py, || Ok(self.0.nonces_balances(&at, &addresses)?))?;
        Ok(PyBytes::new(py, &packed))
    }

    fn call(&self, py: Python<'_>, at: &[u8], env: &Bound<'_, BlockEnv>, call: PyBackedBytes) -> PyResult<CallResult> {
        let (at, env) = (hash("at", at)?, &env.get().0);
        guarded(py, || Ok(CallResult(self.0.call(&at, env, &call)?)))
    }

    fn estimate_gas(
        &self,
        py: Python<'_>,
        at: &[u8],
        env: &Bound<'_, BlockEnv>,
        call: PyBackedBytes,
    ) -> PyResult<CallResult> {
        let (at, env) = (hash("at", at)?, &env.get().0);
        guarded(py, || Ok(CallResult(self.0.estimate_gas(&at, env, &call)?)))
    }

    fn snapshot<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyBytes>>> {
        let chunks = guarded(py, || Ok(self.0.snapshot()))?;
        Ok(chunks.iter().map(|chunk| PyBytes::new(py, chunk)).collect())
    }

    fn restore<'py>(&self, py: Python<'py>, chunks: Vec<PyBackedBytes>) -> PyResult<Bound<'py, PyBytes>> {
        let root = guarded(py, || Ok(self.0.restore(&chunks)?))?;
        Ok(PyBytes::new(py, root.as_slice()))
    }

    fn total_supply<'py>(&self, py: Python<'py>, at: &[u8]) -> PyResult<Bound<'py, PyBytes>> {
        let at = hash("at", at)?;
        let supply = guarded(py, || Ok(self.0.total_supply(&at)?))?;
        Ok(PyBytes::new(py, &supply.to_be_bytes::<32>()))
    }

    fn state_root<'py>(&self, py: Python<'py>, at: &[u8]) -> PyResult<Bound<'py, PyBytes>> {
        let at = hash("at", at)?;
        let root = guarded(py, || Ok(self.0.state_root(&at)?))?;
        Ok(PyBytes::new(py, root.as_slice()))
    }
}

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("BEACON", BEACON)?;
    module.add("MAX_DELIVERIES", MAX_DELIVERIES)?;
    module.add("MAX_OUTBOX_BYTES", MAX_OUTBOX_BYTES)?;
    module.add("GATEWAY", PyBytes::new(module.py(), GATEWAY.as_slice()))?;
    module.add_class::<Batch>()?;
    module.add_class::<BlockEnv>()?;
    module.add_class::<BlockResult>()?;
    module.add_class::<CallResult>()?;
    module.add_class::<Core>()
}
