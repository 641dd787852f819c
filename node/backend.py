"""What a shard process offers to its readers and senders: heads, state, blocks, pending transactions.

The driver tells it what happened (``on_adopted``, ``on_final``, ``on_discarded``, ``on_beacon_final``) and asks it for
transactions (``select``); JSON-RPC reads from it. ``latest`` moves when a final block is in the index, so whatever a reader
hears of can be read; the mempool follows a final block at once, so that the builder never sees used nonces.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final, TypeVar

import msgspec

from node.admission import Accepted, Admission, Answer, Journal
from node.block_stats import ExecutionHistory
from node.executor import Execution
from node.index.records import IndexedBlock, build_indexed_block
from node.index.store import ChainIndex
from node.refusal import LIMIT_EXCEEDED, RpcError
from shards.mempool import Mempool
from shards.policy import compute_base_fee
from shardyard import _native
from shardyard.blocks import Block, Header, ShardBody
from shardyard.codec import decode
from shardyard.effects import EnvSpec
from shardyard.genesis import Genesis
from shardyard.ids import Address, Hash32, Height, ShardId, compute_chain_id

MAX_UNINDEXED: Final = 64
"""Final blocks that may wait for the index before ``on_final`` makes its caller wait."""
READ_THREADS: Final = 4
MAX_READS_WAITING: Final = 256

T = TypeVar("T")


class SyncProgress(msgspec.Struct, frozen=True):
    """A replica that catches up: where it began, and the height that the beacon knows to be final."""

    starting: Height
    highest: Height


class ShardBackend:
    """One shard's chain as this process knows it. Lives in the event loop; ``run`` must be running."""

    def __init__(
        self,
        *,
        core: _native.Core,
        index: ChainIndex,
        mempool: Mempool,
        journal: Journal,
        genesis: Genesis,
        shard: ShardId,
        get_tip: Callable[[], Header],
        broadcast: Callable[[bytes, tuple[int, ...]], None] | None = None,
        get_peer_count: Callable[[], int] = lambda: 0,
        find_access_list: Callable[[int, Hash32], bytes | None] = lambda _height, _block_hash: None,
        executors: int = 1,
    ) -> None:
        self.core = core
        self.index = index
        self.mempool = mempool
        self.genesis = genesis
        self.shard = shard
        self.chain_id = compute_chain_id(shard)
        self.get_peer_count = get_peer_count
        self.find_access_list = find_access_list
        """Returns the access list of an executed block by height and hash, None when it is not held."""
        self.execution = ExecutionHistory(executors)
        self.on_head: list[Callable[[IndexedBlock], Awaitable[None] | None]] = []
        """Called with every block that becomes ``latest``; the next is not indexed before what they return is done."""
        self.on_pending: list[Callable[[Accepted], None]] = []
        """Called with transactions that the mempool took."""
        self.status_sources: dict[str, Callable[[], dict[str, Any]]] = {}
        """What other parts of the process add to ``shard_status``, by key; set by the driver."""
        self.admission = Admission(
            core=core,
            mempool=mempool,
            journal=journal,
            on_accepted=self._on_accepted,
        )
        self._get_tip = get_tip
        self._broadcast = broadcast
        first = genesis.build_shard_block(shard)
        if index.get_hash(0) != first.hash:
            index.clear()
            index.append(build_indexed_block(first, b"", (), ()))
        self._latest = self._require_block(index.height)
        self._final_hash = self._latest.hash
        self._nonces_at = self._final_hash
        """The newest final block whose transactions have left the mempool, or are about to."""
        mempool.start_at(self._final_hash)
        self._starting = self._latest.height
        self._beacon_final = Height(0)
        self._unsettled: dict[Hash32, Execution] = {}
        """Executed blocks whose transactions are not in the index yet."""
        self._indexing: dict[Hash32, IndexedBlock] = {}
        """Final blocks on their way into the index."""
        self._to_index: asyncio.Queue[IndexedBlock] = asyncio.Queue(MAX_UNINDEXED)
        self._threads = ThreadPoolExecutor(READ_THREADS, thread_name_prefix=f"shard-{shard}-read")
        self._writer = ThreadPoolExecutor(1, thread_name_prefix=f"shard-{shard}-index")
        self._reads_waiting = 0

    def _require_block(self, height: int) -> IndexedBlock:
        block = self.index.get_block(height)
        assert block is not None, f"the index has heights up to its own, {height} is missing"
        return block

    async def run(self) -> None:
        """Admit transactions and index final blocks until cancelled; raises when disk or journal fail."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self.admission.run(), name=f"shard-{self.shard}-admission")
                group.create_task(self._index_blocks(), name=f"shard-{self.shard}-index")
        finally:
            self._threads.shutdown(wait=True, cancel_futures=True)
            self._writer.shutdown(wait=True)

    # --- what the driver tells ---

    def on_adopted(self, execution: Execution) -> None:
        """A block was executed, here or as somebody else's proposal, and the core holds its state."""
        self.execution.record(execution.block_hash, execution.stats, execution.mode)
        self._unsettled[execution.block_hash] = execution
        self.mempool.mark_batch(execution.block_hash, execution.batch, execution.included)

    def on_discarded(self, block_hash: Hash32) -> None:
        """A block can never become final: its transactions are offered again."""
        self._unsettled.pop(block_hash, None)
        self.mempool.on_discarded(block_hash)

    async def on_final(self, block: Block) -> None:
        """A block that was adopted is final, and the core has folded it in; in order of height."""
        if block.header.height <= self._latest.height or block.hash in self._indexing:
            return  # told again after a restart
        execution = self._unsettled[block.hash]
        indexed = build_indexed_block(block, execution.outcomes, execution.deliveries, execution.outbox)
        self._indexing[block.hash] = indexed
        self._nonces_at = block.hash
        # Settled in one go, and only then no ancestor any more: the builder never sees a used nonce.
        await asyncio.to_thread(self.mempool.settle, self.core, block.hash)
        self._final_hash = block.hash
        await self._to_index.put(indexed)

    def on_beacon_final(self, height: Height) -> None:
        """A final beacon block carries a crosslink of this shard up to ``height``."""
        self._beacon_final = max(self._beacon_final, height)

    async def _index_blocks(self) -> None:
        while True:
            block = await self._to_index.get()
            await self.follow(partial(self.index.append, block))
            self._latest = block
            self._unsettled.pop(block.hash, None)
            self._indexing.pop(block.hash, None)
            for listener in tuple(self.on_head):
                if (telling := listener(block)) is not None:
                    await telling

    async def follow(self, work: Callable[[], T]) -> T:
        """Run what belongs to a new head in the thread of the index, which waits for nobody who reads."""
        return await asyncio.get_running_loop().run_in_executor(self._writer, work)

    # --- transactions ---

    async def submit(self, transactions: Sequence[bytes]) -> list[Answer]:
        """Return for each raw transaction its hash, once durable, or why it is refused."""
        return await self.admission.submit(transactions)

    def receive(self, raw: bytes, ends: Sequence[int]) -> None:
        """Take transactions that a peer passed on."""
        self.admission.receive(raw, ends)

    async def submit_request(self, submission: _native.Submission) -> bytes:
        """Return the JSON-RPC answer to a request that only hands in transactions; raises ``AdmissionFullError``."""
        return await self.admission.submit_request(submission)

    def _on_accepted(self, accepted: Accepted, is_local: bool) -> None:
        for listener in self.on_pending:
            listener(accepted)
        if is_local and self._broadcast is not None:
            encoded = accepted.batch.encode_body(accepted.indices)
            body = decode(encoded, ShardBody, max_bytes=len(encoded))
            self._broadcast(body.raw, body.ends)

    def prepare_selection(self, parent: Hash32, env: EnvSpec, max_bytes: int) -> Callable[[], _native.Batch]:
        """Return what selects the transactions of a block on ``parent``; any thread may call it."""
        ancestors = self._get_open_ancestors(parent)
        return lambda: self.mempool.select_batch(env.base_fee, env.gas_limit, max_bytes, ancestors)

    def on_skipped(self, batch: _native.Batch, indices: bytes) -> None:
        """A builder could not use these: what can never run any more must not be offered for ever."""
        self.mempool.refresh(self.core, batch, indices)

    def select(self, parent: Hash32, base_fee: int, gas_limit: int, max_bytes: int) -> _native.Batch:
        """Return transactions for a block on ``parent``."""
        ancestors = self._get_open_ancestors(parent)
        return self.mempool.select_batch(base_fee, gas_limit, max_bytes, ancestors)

    def _get_open_ancestors(self, block_hash: Hash32) -> list[Hash32]:
        ancestors: list[Hash32] = []
        while (unsettled := self._unsettled.get(block_hash)) is not None and block_hash != self._final_hash:
            ancestors.append(block_hash)
            block_hash = unsettled.parent
        return ancestors

    def find_pending(self, tx_hash: Hash32) -> bytes | None:
        """Return the raw bytes of a transaction that waits, or stands in a final block on its way into the index."""
        if (entry := self.mempool.get(tx_hash)) is not None:
            return entry.raw
        for block in self._indexing.values():
            if tx_hash in block.transaction_hashes:
                return block.get_raw_transaction(block.transaction_hashes.index(tx_hash))
        return None

    # --- heads ---

    @property
    def latest(self) -> IndexedBlock:
        """The newest final block that can be read."""
        return self._latest

    @property
    def tip(self) -> Header:
        """The notarized tip when its state is here, else the newest final block."""
        tip = self._get_tip()
        if tip.height > self._latest.height and self.core.has(tip.hash):
            return tip
        return self._latest.header

    @property
    def sync(self) -> SyncProgress | None:
        """How far this replica is behind what the beacon has accepted of its shard; None when it is not."""
        if self._beacon_final <= self._latest.height:
            return None
        return SyncProgress(self._starting, self._beacon_final)

    @property
    def finalized_height(self) -> Height:
        """Height up to which this shard is beacon-final; 0 while that lies below the snapshot this node came by."""
        found = min(self._beacon_final, self._latest.height)
        return found if found >= self.index.first_height - 1 else Height(0)

    @property
    def is_finality_below(self) -> bool:
        """Whether what is known to be beacon-final lies below the snapshot this node came by, so that none of it is here."""
        return self.index.first_height > 1 and self.finalized_height == 0

    def get_account_nonce(self, address: Address) -> int:
        """Return the nonce that transactions of the mempool follow on."""
        found = self.core.account(self._nonces_at, address)
        return found[0] if found else 0

    def get_pending_nonce(self, address: Address) -> int:
        """Return the nonce after what stands in the notarized tip and what waits after it; no final block takes it back.

        The tip may have transactions of others' pools, and authorizations: their nonces are used, and nothing here knows it.
        """
        try:
            found = self.core.account(self.tip.hash, address)
        except _native.MissingState:
            found = None  # the tip moved on meanwhile
        return self.mempool.get_next_nonce(
            address, max(self.get_account_nonce(address), found[0] if found else 0)
        )

    def compute_next_base_fee(self, header: Header) -> int:
        """Return the base fee of a child of ``header``, in wei per gas."""
        return compute_base_fee(header.shard_content, self.genesis.preset.min_base_fee)

    # --- reading in threads ---

    async def read(self, work: Callable[[], T]) -> T:
        """Run a slow read in a thread; raises ``RpcError`` when too many wait."""
        if self._reads_waiting >= MAX_READS_WAITING:
            raise RpcError(LIMIT_EXCEEDED, "too many requests")
        self._reads_waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        finally:
            self._reads_waiting -= 1
