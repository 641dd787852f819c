//! The core of one shard: its chain's states, and every operation the boundary offers on them.

use std::sync::Arc;

use alloy_primitives::{Address, B256, U256};

use crate::batch::Batch;
use crate::block::{Block, BlockEnv, BlockResult, Chain, Mode, execute_block};
use crate::call::{CallRequest, CallResult, call, estimate_gas};
use crate::error::{CoreError, Result};
use crate::evm::{Machine, NotExecuted, Relaxed};
use crate::parallel::Between;
use crate::raw::RawList;
use crate::state::{Account, Changes, Overlay, Store, View, parse_genesis, read_snapshot, write_snapshot};

#[derive(Debug)]
pub struct Core {
    chain: Chain,
    store: Arc<Store>,
    between: Arc<Between>,
}

impl Core {
    /// `history` counts the final states kept for reads below the newest.
    pub fn new(chain: Chain, history: usize) -> Self {
        Self { chain, store: Arc::new(Store::new(history.max(1))), between: Arc::default() }
    }

    /// # Errors
    /// `Malformed` names the account that does not parse.
    pub fn init_genesis(&self, alloc_json: &[u8]) -> Result<B256> {
        Ok(self.store.replace(parse_genesis(alloc_json)?, self.chain.threads))
    }

    pub fn set_base(&self, block_hash: B256, height: u64) {
        self.store.set_base(block_hash, height);
    }

    /// # Errors
    /// `Malformed` when the offsets do not cut the blob.
    pub fn prepare(&self, raw: &[u8], offsets: &[usize]) -> Result<Batch> {
        Batch::prepare(raw, offsets, self.chain.chain_id, self.chain.threads)
    }

    /// Recovers the senders of what came in, unless it pays less than `least_fee` per gas; nobody has paid for more yet.
    pub fn prepare_list(&self, list: &RawList, least_fee: u128) -> Batch {
        Batch::of_pieces(&list.pieces(), self.chain.chain_id, self.chain.threads, least_fee)
    }

    /// Finds out who signed the authorizations of the transactions that `is_wanted` names by their places.
    pub fn recover_authorizations(&self, batch: &Batch, is_wanted: impl Fn(usize) -> bool) {
        batch.recover_authorizations(self.chain.threads, is_wanted);
    }

    /// # Errors
    /// `MissingState` when the block is not held.
    pub fn view(&self, at: &B256) -> Result<View> {
        self.store.view(at)
    }

    /// # Errors
    /// `UnknownParent` when no state above the final one has that hash; see also `execute_block`.
    pub fn execute<T: AsRef<[u8]>>(
        &self,
        parent: B256,
        batch: &Batch,
        env: &BlockEnv,
        mode: Mode,
        inbox: &[T],
    ) -> Result<BlockResult> {
        self.execute_with(parent, batch, env, mode, inbox, None)
    }

    /// As `execute`; a block to validate may come with its access list, and is refused when that is not the block's.
    ///
    /// # Errors
    /// Those of `execute`.
    pub fn execute_with<T: AsRef<[u8]>>(
        &self,
        parent: B256,
        batch: &Batch,
        env: &BlockEnv,
        mode: Mode,
        inbox: &[T],
        access_list: Option<&[u8]>,
    ) -> Result<BlockResult> {
        let view = self.parent_view(&parent)?;
        let mut block = Block::new(self.chain, env, batch, mode, inbox)?;
        (block.between, block.access_list) = (self.between.clone(), access_list);
        execute_block(view, parent, &block)
    }

    /// The block that a batch would make and that nobody will vote on: built in order by the thread that asks, so that no
    /// block which is voted on waits for it.
    ///
    /// # Errors
    /// Those of `execute`.
    pub fn preview(&self, parent: B256, batch: &Batch, env: &BlockEnv) -> Result<BlockResult> {
        let view = self.parent_view(&parent)?;
        let chain = Chain { threads: 1, ..self.chain };
        execute_block(view, parent, &Block::new::<&[u8]>(chain, env, batch, Mode::Build, &[])?)
    }

    fn parent_view(&self, parent: &B256) -> Result<View> {
        self.store.view(parent).map_err(|error| match error {
            CoreError::MissingState(text) => CoreError::UnknownParent(text),
            other => other,
        })
    }

    /// What revm does with a batch by itself, for benchmarks, which may look at what comes back.
    ///
    /// # Errors
    /// `InvalidBlock` when a transaction cannot be executed.
    pub fn run_bare(&self, parent: B256, batch: &Batch, env: &BlockEnv) -> Result<impl Sized + use<>> {
        let mut machine = Machine::new(self.store.view(&parent)?, &self.chain, env, Relaxed::default());
        let transactions = batch.entries().iter().filter_map(|entry| entry.transaction.as_deref());
        machine.run_bare(transactions).map_err(|error| match error {
            NotExecuted::Failed(error) => error,
            NotExecuted::Invalid(reason) => CoreError::InvalidBlock(reason),
        })
    }

    /// # Errors
    /// `UnknownParent` when the parent was dropped in the meantime.
    pub fn adopt(&self, result: &BlockResult, block_hash: B256, height: u64) -> Result<()> {
        let overlay = Overlay {
            parent: result.parent,
            height,
            changes: result.changes.clone(),
            accumulator: result.accumulator.clone(),
            root: result.state_root,
        };
        self.store.adopt(block_hash, overlay)
    }

    /// # Errors
    /// `UnknownParent` when the block is not held.
    pub fn finalise(&self, block_hash: &B256) -> Result<()> {
        self.store.finalise(block_hash)
    }

    pub fn discard(&self, block_hash: &B256) {
        self.store.discard(block_hash);
    }

    /// # Errors
    /// `Malformed` when the diff is not canonical; nothing is applied then.
    pub fn apply_diff(&self, block_hash: B256, height: u64, diff: &[u8]) -> Result<B256> {
        let changes = Changes::decode(diff)?;
        Ok(self.store.apply(block_hash, height, &changes, self.chain.threads))
    }

    pub fn has(&self, block_hash: &B256) -> bool {
        self.store.has(block_hash)
    }

    pub fn account(&self, at: &B256, address: &Address) -> Result<Option<Account>> {
        self.store.view(at)?.account(address)
    }

    pub fn code(&self, at: &B256, address: &Address) -> Result<Vec<u8>> {
        let view = self.store.view(at)?;
        let account = view.account(address)?.filter(Account::has_code);
        let code = account.and_then(|account| view.code(&account.code_hash));
        Ok(code.map_or_else(Vec::new, |code| code.original_byte_slice().to_vec()))
    }

    pub fn storage(&self, at: &B256, address: &Address, slot: &U256) -> Result<U256> {
        self.store.view(at)?.slot(address, slot)
    }

    /// Per address: nonce as 8 little-endian bytes, balance as 32 big-endian bytes.
    ///
    /// # Errors
    /// `Malformed` when the addresses are not a multiple of 20 bytes.
    pub fn nonces_balances(&self, at: &B256, addresses: &[u8]) -> Result<Vec<u8>> {
        if !addresses.len().is_multiple_of(20) {
            return Err(CoreError::Malformed(format!("addresses of {} bytes, not a multiple of 20", addresses.len())));
        }
        let view = self.store.view(at)?;
        let mut packed = Vec::with_capacity(addresses.len() * 2);
        for address in addresses.chunks_exact(20) {
            let account = view.account(&Address::from_slice(address))?.unwrap_or_default();
            packed.extend_from_slice(&account.nonce.to_le_bytes());
            packed.extend_from_slice(&account.balance.to_be_bytes::<32>());
        }
        Ok(packed)
    }

    pub fn call(&self, at: &B256, env: &BlockEnv, request: &[u8]) -> Result<CallResult> {
        call(self.store.view(at)?, &self.chain, env, &CallRequest::decode(request)?)
    }

    pub fn estimate_gas(&self, at: &B256, env: &BlockEnv, request: &[u8]) -> Result<CallResult> {
        estimate_gas(self.store.view(at)?, &self.chain, env, &CallRequest::decode(request)?)
    }

    pub fn snapshot(&self) -> Vec<Vec<u8>> {
        write_snapshot(&self.store.export())
    }

    /// # Errors
    /// `Malformed` when a chunk does not decode; the state stays as it was then.
    pub fn restore<T: AsRef<[u8]>>(&self, chunks: &[T]) -> Result<B256> {
        Ok(self.store.replace(read_snapshot(chunks)?, self.chain.threads))
    }

    pub fn total_supply(&self, at: &B256) -> Result<U256> {
        self.store.view(at)?.total_supply()
    }

    pub fn state_root(&self, at: &B256) -> Result<B256> {
        Ok(self.store.view(at)?.root)
    }
}
