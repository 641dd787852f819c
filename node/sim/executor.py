"""The executor of a simulated replica: the real native core, one job after the other, each taking virtual time.

The duration of a job follows from its gas and bytes, never from how long this machine took (M3). Results come back when
the virtual time is over; a crash drops the jobs under way and the whole state, which comes back from recorded diffs.
"""

from collections import deque
from collections.abc import Callable
from typing import Final

import msgspec

from node.executor import build_native_env, decode_body, summarise
from node.sim.clock import Clock
from node.sim.disk import StateDiff
from node.sim.scenario import build_sim_alloc
from node.sim.workload import TransactionPool
from shardyard import _native
from shardyard import effects as fx
from shardyard.errors import InvalidBlockError
from shardyard.events import Built, Event, Executed
from shardyard.genesis import Genesis
from shardyard.ids import Hash32, ShardId, compute_chain_id

GAS_PER_MS: Final = 1_000_000
BASE_MS: Final = 1


class Execution(msgspec.Struct, frozen=True):
    """What executing a block delivered and emitted, for the checker."""

    deliveries: tuple[bytes, ...]
    outbox: tuple[bytes, ...]


class SimExecutor:
    """Runs one shard's core for one node."""

    def __init__(
        self,
        genesis: Genesis,
        shard: ShardId,
        pool: TransactionPool,
        clock: Clock,
        complete: Callable[[Event], None],
        write_state: Callable[[StateDiff], None],
        executions: dict[Hash32, Execution],
    ) -> None:
        self._genesis = genesis
        self._pool = pool
        self._clock = clock
        self._complete = complete
        self._write_state = write_state
        self._executions = executions
        self._jobs: deque[tuple[int, Callable[[], None]]] = deque()
        self._is_busy = False
        self._is_dead = False
        self._built: dict[int, tuple[fx.Build, _native.BlockResult]] = {}
        self.listed = 0
        """Blocks of others whose access list was at hand, and was the block's."""
        self.core = _native.Core(
            chain_id=compute_chain_id(shard), shard=shard, history=genesis.preset.history_blocks
        )
        self.core.init_genesis(build_sim_alloc(genesis.shard_count))
        self.core.set_base(genesis.build_shard_block(shard).hash, 0)

    def restore(self, states: list[tuple[StateDiff, Hash32]]) -> None:
        """Bring the state from genesis up by recorded diffs, each checked against its header's state root."""
        for state, root in states:
            found = self.core.apply_diff(state.block_hash, state.height, state.diff)
            if found != root:
                raise AssertionError(
                    f"diff of block {state.height} leads to {found.hex()}, not to {root.hex()}"
                )

    def stop(self) -> None:
        """The process is gone; nothing comes back any more."""
        self._is_dead = True
        self._jobs.clear()

    def start_build(self, effect: fx.Build) -> None:
        """Fill a block; ``Built`` follows."""
        self._enqueue(BASE_MS + len(effect.inbox), lambda: self._build(effect))

    def start_execute(self, effect: fx.Execute) -> None:
        """Execute a block of somebody else; ``Executed`` follows."""
        duration = BASE_MS + effect.block.header.shard_content.gas_used // GAS_PER_MS
        self._enqueue(duration, lambda: self._execute(effect))

    def adopt(self, effect: fx.Adopt) -> None:
        """Name the state of a built block."""
        build, result = self._built.pop(effect.request)
        self._keep(effect.block_hash, build.env, build.inbox, result)
        self._enqueue(0, lambda: self.core.adopt(result, effect.block_hash, effect.height))

    def finalise(self, block_hash: Hash32) -> None:
        """Fold a final block into the base."""
        self._enqueue(0, lambda: self.core.finalise(block_hash))

    def discard(self, block_hash: Hash32) -> None:
        """Drop a block's state."""
        self._enqueue(0, lambda: self.core.discard(block_hash))

    def _build(self, effect: fx.Build) -> None:
        env = effect.env
        try:  # by now a later block may be final, and the parent only history, or gone
            raw, ends = self._pool.select(self.core, env.parent_hash)
            batch = self.core.prepare(raw, (0, *ends))
            result = self.core.execute(env.parent_hash, batch, build_native_env(env), "build", effect.inbox)
        except (_native.UnknownParent, _native.MissingState):
            self._complete(Built(effect.request, b"", None))
            return
        body = batch.encode_body(result.included)
        self._built = {effect.request: (effect, result)}
        summary = summarise(result, len(result.included) // 4)
        self._complete(Built(effect.request, body, summary, result.access_list))

    def _execute(self, effect: fx.Execute) -> None:
        block = effect.block
        try:
            body = decode_body(block.body, self._genesis.preset.max_body_bytes)
            batch = self.core.prepare(body.raw, (0, *body.ends))
            env = build_native_env(effect.env)
            access_list = effect.access_list or None  # on one thread the core compares it and gains nothing
            result = self.core.execute(block.header.parent, batch, env, "validate", effect.inbox, access_list)
        except (_native.CoreError, InvalidBlockError) as error:
            self._complete(Executed(block.hash, None, str(error) or type(error).__name__))
            return
        self.listed += access_list is not None
        self.core.adopt(result, block.hash, block.header.height)
        self._keep(block.hash, effect.env, effect.inbox, result)
        self._complete(Executed(block.hash, summarise(result, len(batch)), ""))

    def _keep(
        self, block_hash: Hash32, env: fx.EnvSpec, inbox: tuple[bytes, ...], result: _native.BlockResult
    ) -> None:
        """The state goes to the log ahead of the block's own record."""
        self._write_state(StateDiff(block_hash, env.number, result.diff))
        self._executions[block_hash] = Execution(inbox[: result.inbox_taken], tuple(result.outbox))

    def _enqueue(self, duration_ms: int, job: Callable[[], None]) -> None:
        if duration_ms == 0 and not self._is_busy:
            job()
            return
        self._jobs.append((duration_ms, job))
        if not self._is_busy:
            self._begin()

    def _begin(self) -> None:
        while self._jobs:
            duration_ms, job = self._jobs[0]
            if duration_ms:
                self._is_busy = True
                self._clock.schedule(duration_ms, self._finish)
                return
            self._jobs.popleft()
            job()

    def _finish(self) -> None:
        if self._is_dead:
            return
        _, job = self._jobs.popleft()
        self._is_busy = False
        job()
        if not self._is_busy:
            self._begin()
