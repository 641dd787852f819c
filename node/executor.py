"""The executor of a shard as its driver sees it: slow work started here, results handed back as events.

One thread per chain runs everything that touches the native core's chain of states, in the order in which it was asked
for; the core itself spreads a block over its own threads and never holds the interpreter lock. The results of a block are
put into the log before the machine hears of them, so that a block this process voted for can always be restored
without executing it again. The access list goes there too, for those who ask for it.
"""

import asyncio
import time
from array import array
from collections import Counter
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, Protocol

import msgspec

from node.block_stats import ExecutionMode
from shardyard import _native
from shardyard import effects as fx
from shardyard.blocks import Block, ShardBody
from shardyard.codec import decode
from shardyard.errors import DecodeError, InvalidBlockError
from shardyard.events import Built, Event, Executed, ExecutionSummary
from shardyard.ids import Hash32, Height, ShardId

MIN_REPLAY_ITEMS: Final = 64
"""The core runs smaller blocks in order, with or without a list."""


class StateRecord(msgspec.Struct, frozen=True, array_like=True):
    """What executing a block gave, as the log keeps it: enough to restore state and index without executing."""

    block_hash: Hash32
    height: Height
    diff: bytes
    outcomes: bytes


class Execution(msgspec.Struct, frozen=True):
    """A block that this node executed: what it is built on, and what it gave. Receipts are encoded."""

    block_hash: Hash32
    parent: Hash32
    height: Height
    outcomes: bytes
    deliveries: tuple[bytes, ...]
    """The receipts it consumed: the first ``inbox_taken`` of what the executor was offered."""
    outbox: tuple[bytes, ...]
    batch: _native.Batch
    """What it was made of or checked against; its transactions are those at ``included`` (packed u32)."""
    included: bytes
    stats: bytes = b""
    """For people; see ``node.block_stats``."""
    mode: ExecutionMode = "build"


class TransactionSource(Protocol):
    """Where the builder gets its transactions."""

    def prepare_selection(
        self, parent: Hash32, env: fx.EnvSpec, max_bytes: int
    ) -> Callable[[], _native.Batch]:
        """Return what selects the transactions of a block on ``parent``, in whatever thread calls it."""
        ...

    def on_skipped(self, batch: _native.Batch, indices: bytes) -> None:
        """What a block could not use, as packed u32 positions in ``batch``; called in the thread that built."""
        ...


def build_native_env(spec: fx.EnvSpec) -> _native.BlockEnv:
    """Return the native form of ``spec``."""
    return _native.BlockEnv(
        number=spec.number,
        timestamp=spec.timestamp,
        gas_limit=spec.gas_limit,
        base_fee=spec.base_fee,
        beneficiary=spec.beneficiary,
        prevrandao=spec.prevrandao,
        parent_hash=spec.parent_hash,
        beacon_root=spec.beacon_root,
        beacon_height=spec.beacon_height,
        inbox_gas=spec.inbox_gas,
        link_base_fees=spec.link_base_fees,
    )


def decode_body(body: bytes, max_bytes: int) -> ShardBody:
    """Return the transactions of a block; raises ``InvalidBlockError`` for an encoding or offsets that are not sound."""
    try:
        found = decode(body, ShardBody, max_bytes=max_bytes)
    except DecodeError as error:
        raise InvalidBlockError(f"body: {error}") from error
    previous = 0
    for end in found.ends:
        if end <= previous:
            raise InvalidBlockError(f"body: got a transaction that ends at {end}, expected after {previous}")
        previous = end
    if previous != len(found.raw):
        raise InvalidBlockError(f"body: got {len(found.raw)} bytes, expected {previous} as its offsets say")
    return found


def summarise(result: _native.BlockResult, transaction_count: int) -> ExecutionSummary:
    """Return the fields of ``result`` that a header commits to."""
    return ExecutionSummary(
        state_root=Hash32(result.state_root),
        transactions_root=Hash32(result.transactions_root),
        transaction_count=transaction_count,
        delivery_count=result.inbox_taken,
        outcomes_root=Hash32(result.outcomes_root),
        outbox_root=Hash32(result.outbox_root),
        logs_bloom=result.logs_bloom,
        gas_used=result.gas_used,
        burnt=int.from_bytes(result.burnt, "big"),
        outbox=tuple(result.outbox),
        access_list_hash=Hash32(result.access_list_hash),
    )


class ShardExecutor:
    """Runs the native core of one shard for its driver."""

    def __init__(
        self,
        *,
        shard: ShardId,
        core: _native.Core,
        source: TransactionSource,
        max_body_bytes: int,
        complete: Callable[[Event], None],
        enqueue: Callable[[Callable[[], Awaitable[None]]], None],
        write_state: Callable[[StateRecord], None],
        write_access_list: Callable[[int, Hash32, bytes], None],
        on_adopted: Callable[[Execution], None],
        executors: int = 1,
    ) -> None:
        self.core = core
        self._source = source
        self._max_body_bytes = max_body_bytes
        self._complete = complete
        self._enqueue = enqueue
        self._write_state = write_state
        self._write_access_list = write_access_list
        self._executors = executors
        self._on_adopted = on_adopted
        self._built: dict[int, tuple[fx.Build, _native.Batch, _native.BlockResult, bytes]] = {}
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"shard-{shard}-executor")
        self._loop = asyncio.get_running_loop()
        self.counters: Counter[str] = Counter()
        """Microseconds by stage, of blocks built here; ``own`` is processor time of the thread that asked."""

    def close(self) -> None:
        """Stop the thread; work that has not started is dropped."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _count_time(self, stage: str, started: int) -> int:
        now = time.perf_counter_ns()
        self.counters[stage] += (now - started) // 1000
        return now

    def _start(self, work: Callable[[], Callable[[], None]]) -> None:
        """Run ``work`` in the thread and what it returns in the loop."""
        future = self._loop.run_in_executor(self._pool, work)
        future.add_done_callback(self._on_done)

    def _on_done(self, future: "asyncio.Future[Callable[[], None]]") -> None:
        if future.cancelled():
            return
        if (error := future.exception()) is not None:
            self._enqueue(_raise_later(error))
            return
        future.result()()

    async def run(self, work: Callable[[], None]) -> None:
        """Run ``work`` in the thread, after everything asked for before it."""
        await self._loop.run_in_executor(self._pool, work)

    def start_build(self, effect: fx.Build) -> None:
        """Fill a block; ``Built`` follows."""
        select = self._source.prepare_selection(effect.env.parent_hash, effect.env, effect.max_body_bytes)
        self._start(lambda: self._build(effect, select))

    def _build(self, effect: fx.Build, select: Callable[[], _native.Batch]) -> Callable[[], None]:
        env = build_native_env(effect.env)
        started = time.perf_counter_ns()
        batch = select()
        started, own = self._count_time("select_us", started), time.thread_time_ns()
        try:
            result = self.core.execute(effect.env.parent_hash, batch, env, "build", effect.inbox)
        except _native.UnknownParent:
            return lambda: self._complete(Built(effect.request, b"", None))
        self.counters["execute_own_us"] += (time.thread_time_ns() - own) // 1000
        started = self._count_time("execute_us", started)
        if result.skipped:
            self._source.on_skipped(batch, array("I", (index for index, _ in result.skipped)).tobytes())
        included = result.included
        body = batch.encode_body(included)
        summary, access_list = summarise(result, len(included) // 4), result.access_list
        self._count_time("body_us", started)

        def deliver() -> None:
            self._built.clear()  # Only the newest build can still be adopted.
            self._built[effect.request] = (effect, batch, result, access_list)
            self._complete(Built(effect.request, body, summary, access_list))

        return deliver

    def adopt(self, effect: fx.Adopt) -> None:
        """Name the state of a built block; its results go to the log ahead of the block's own record."""
        build, batch, result, access_list = self._built.pop(effect.request)
        self._keep(effect.block_hash, build, batch, result, access_list, "build")
        self._start(lambda: self._adopt_native(result, effect.block_hash, effect.height))

    def _adopt_native(
        self, result: _native.BlockResult, block_hash: Hash32, height: int
    ) -> Callable[[], None]:
        self.core.adopt(result, block_hash, height)
        return lambda: None

    def _keep(
        self,
        block_hash: Hash32,
        effect: fx.Build | fx.Execute,
        batch: _native.Batch,
        result: _native.BlockResult,
        access_list: bytes,
        mode: ExecutionMode,
    ) -> None:
        execution = Execution(
            block_hash=block_hash,
            parent=effect.env.parent_hash,
            height=Height(effect.env.number),
            outcomes=result.outcomes,
            deliveries=effect.inbox[: result.inbox_taken],
            outbox=tuple(result.outbox),
            batch=batch,
            included=result.included,
            stats=result.stats,
            mode=mode,
        )
        record = StateRecord(
            block_hash=block_hash,
            height=execution.height,
            diff=result.diff,
            outcomes=execution.outcomes,
        )

        async def write() -> None:
            # The list first: where a state is on disk, its list is.
            self._write_access_list(record.height, block_hash, access_list)
            self._write_state(record)

        self._enqueue(write)
        self._on_adopted(execution)

    def start_execute(self, effect: fx.Execute) -> None:
        """Execute a block that somebody else built; ``Executed`` follows."""
        self._start(lambda: self._execute(effect))

    def _execute(self, effect: fx.Execute) -> Callable[[], None]:
        block_hash = effect.block.hash
        try:
            result, batch, mode = self._validate(effect.block, effect)
        except (_native.CoreError, InvalidBlockError) as error:
            text = str(error) or type(error).__name__
            return lambda: self._complete(Executed(block_hash, None, text))
        height = effect.block.header.height
        self.core.adopt(result, block_hash, height)
        summary, access_list = summarise(result, len(batch)), result.access_list

        def deliver() -> None:
            self._keep(block_hash, effect, batch, result, access_list, mode)
            self._complete(Executed(block_hash, summary, ""))

        return deliver

    def _validate(
        self, block: Block, effect: fx.Execute
    ) -> tuple[_native.BlockResult, _native.Batch, ExecutionMode]:
        """Execute ``block``, by its access list when there is one and several threads can make use of it."""
        body = decode_body(block.body, self._max_body_bytes)
        batch = self.core.prepare(body.raw, (0, *body.ends))
        env = build_native_env(effect.env)
        items = len(batch) + block.header.shard_content.delivery_count
        is_worthwhile = self._executors > 1 and items >= MIN_REPLAY_ITEMS
        access_list = effect.access_list if is_worthwhile and effect.access_list else None
        result = self.core.execute(block.header.parent, batch, env, "validate", effect.inbox, access_list)
        return result, batch, "validate" if access_list is None else "replay"

    async def finalise(self, block_hash: Hash32) -> None:
        """Fold a final block into the base."""
        await self.run(lambda: self.core.finalise(block_hash))

    def discard(self, block_hash: Hash32) -> None:
        """Drop the state of a block that can never become final."""
        self._start(lambda: self._discard_native(block_hash))

    def _discard_native(self, block_hash: Hash32) -> Callable[[], None]:
        self.core.discard(block_hash)
        return lambda: None


def _raise_later(error: BaseException) -> Callable[[], Awaitable[None]]:
    async def fail() -> None:
        raise error

    return fail
