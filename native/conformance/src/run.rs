//! Executing the vectors of a document, in one mode or both.
//!
//! Alone, a vector's transaction is a block of its own, which runs in order. In parallel it stands among unrelated
//! transactions in a block that runs on several workers; there the whole block must also be what running it in order
//! and without the fast path for transfers makes of it.

use std::panic::{AssertUnwindSafe, catch_unwind};

use alloy_primitives::{Address, B256};
use shardyard_core::batch::Batch;
use shardyard_core::block::{BlockEnv, BlockResult, Chain, Mode as BlockMode};
use shardyard_core::codec::Reader;
use shardyard_core::core::Core;
use shardyard_core::error::{CoreError, Result};
use shardyard_core::evm::{HISTORY, Revision};
use shardyard_core::state::Changes;

use crate::filler::{alone, is_filler, state as filler_state, surround};
use crate::trie::WorldState;
use crate::vector::{CHAIN_ID, Document, Expected, Test, find_spec};
use crate::verdict::{Fate, Report};

/// Hash of the block that everything before is the state of.
const PARENT: B256 = B256::repeat_byte(1);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Alone,
    /// With this many threads.
    Parallel(usize),
}

impl Mode {
    fn name(self) -> &'static str {
        match self {
            Self::Alone => "alone",
            Self::Parallel(_) => "parallel",
        }
    }
}

/// One test under one revision, ready to execute.
struct Stage<'a> {
    test: &'a Test,
    env: BlockEnv,
    core: Core,
    /// In order and without the fast path; what the parallel block is compared with.
    reference: Option<Core>,
    before: WorldState,
}

/// Runs all vectors of a document.
///
/// # Errors
/// `Malformed` when the document is not a state test.
pub fn run_document(json: &[u8], modes: &[Mode]) -> Result<Vec<Report>> {
    let document: Document =
        serde_json::from_slice(json).map_err(|error| CoreError::Malformed(format!("state test: {error}")))?;
    let mut reports = Vec::new();
    for (name, test) in &document {
        for (fork, vectors) in &test.post {
            for mode in modes {
                let stage = Stage::new(test, fork, *mode);
                reports.extend(vectors.iter().map(|expected| {
                    let judged = stage.as_ref().map_err(String::clone).and_then(|stage| stage.judge(expected, *mode));
                    let (reason, workers) = match judged {
                        Ok(workers) => (String::new(), workers),
                        Err(reason) => (reason, 0),
                    };
                    let indexes = [expected.indexes.data, expected.indexes.gas, expected.indexes.value];
                    Report { test: name.clone(), fork: fork.clone(), indexes, mode: mode.name(), reason, workers }
                }));
            }
        }
    }
    Ok(reports)
}

impl<'a> Stage<'a> {
    fn new(test: &'a Test, fork: &str, mode: Mode) -> Result<Self, String> {
        let spec = find_spec(fork).ok_or_else(|| format!("revision {fork} is not known to the EVM"))?;
        let (env, revision) = test.env.block(spec)?;
        let state = test.state()?;
        let mut before = WorldState::default();
        before.apply(&state, |_| false);
        let mut parts = vec![test.env.history(), state];
        let (threads, has_reference) = match mode {
            Mode::Alone => (1, false),
            Mode::Parallel(threads) => (threads, true),
        };
        if has_reference {
            parts.push(filler_state(&env, before.supply()));
        }
        let load = |threads, fast_path| load(threads, fast_path, revision, &parts).map_err(|error| error.to_string());
        let reference = if has_reference { Some(load(1, false)?) } else { None };
        Ok(Self { test, env, core: load(threads, true)?, reference, before })
    }

    /// How many workers executed the block.
    ///
    /// # Errors
    /// What is wrong with the vector's outcome.
    fn judge(&self, expected: &Expected, mode: Mode) -> Result<u64, String> {
        let transaction = match self.test.transaction.transaction(expected)? {
            Ok(transaction) => transaction,
            Err(refusal) => {
                let complaint = Fate::Refused(refusal).complaint(expected, self.before.root());
                return complaint.map_or(Ok(0), Err);
            }
        };
        let (batch, place) = match mode {
            Mode::Alone => alone(transaction),
            Mode::Parallel(_) => surround(transaction, &self.env),
        };
        let executed = catch_unwind(AssertUnwindSafe(|| self.execute(&batch)));
        let result = executed.map_err(|_| "panicked".to_owned())?.map_err(|error| error.to_string())?;
        let fate = Fate::of(&result, place).map_err(|error| error.to_string())?;
        let mut after = self.before.clone();
        after.apply(&result.changes, is_foreign);
        match fate.complaint(expected, after.root()) {
            Some(complaint) => Err(format!("{complaint}; state after: {}", after.describe())),
            None => read_workers(&result.stats).map_err(|error| error.to_string()),
        }
    }

    fn execute(&self, batch: &Batch) -> Result<BlockResult> {
        let no_inbox: [&[u8]; 0] = [];
        let run = |core: &Core| core.execute(PARENT, batch, &self.env, BlockMode::Build, &no_inbox);
        let result = run(&self.core)?;
        if let Some(reference) = &self.reference {
            let in_order = run(reference)?;
            let essence = |result: &BlockResult| {
                (result.state_root, result.outcomes_root, result.gas_used, result.burnt, result.skipped.clone())
            };
            let (got, wanted) = (essence(&result), essence(&in_order));
            if got != wanted {
                return Err(CoreError::Internal(format!("in parallel {got:?}, in order {wanted:?}")));
            }
        }
        Ok(result)
    }
}

/// What no test knows of: the fillers' accounts, and where the hashes of earlier blocks lie.
fn is_foreign(address: &Address) -> bool {
    *address == HISTORY || is_filler(address)
}

fn load(threads: usize, fast_path: bool, revision: Revision, parts: &[Changes]) -> Result<Core> {
    let core = Core::new(Chain { chain_id: CHAIN_ID, shard: 0, threads, fast_path, revision }, 1);
    let mut whole = Changes::default();
    for part in parts {
        whole.accounts.extend(part.accounts.iter().map(|(address, account)| (*address, *account)));
        whole.storage.extend(part.storage.iter().map(|(address, slots)| (*address, slots.clone())));
        whole.codes.extend(part.codes.iter().map(|(hash, code)| (*hash, code.clone())));
    }
    core.apply_diff(PARENT, 0, &whole.encode())?;
    Ok(core)
}

fn read_workers(stats: &[u8]) -> Result<u64> {
    let mut reader = Reader::new(stats);
    for _ in 0..reader.map()? {
        if reader.text()? == "workers" {
            return reader.uint();
        }
        reader.uint()?;
    }
    Ok(0)
}
