"""How blocks were executed here: how often their items ran, what they fought over, and what several threads gained.

For people only: kept in memory, bounded, gone with the process, and never part of an event, of the log or of anything that
replicas agree on. Two replicas of one chain rightly tell different stories of the same block.

The speed-up of a block is the work of its items over the time its execution took. The work is what the executions that
counted took, added up over all threads from a sample of every sixteenth item: no aborted execution, no validation, no commit
and no waiting is in it, and a thread that had no core counts for nothing. Reading through versions makes an item a little
slower than on a state of its own, so the figure flatters by that; ``scripts/bench executor`` measures both and shows by
how much. A block that ran in order has a speed-up of 1 by definition. Of one that was executed by its access list the work
is not measured: it has no speed-up and counts in no figure of speculation.
"""

from collections import deque
from collections.abc import Iterable
from typing import Any, Final, Literal

import msgspec

from shardyard.ids import Address, Hash32

MAX_BLOCKS: Final = 1024
"""Blocks whose statistics are kept."""
RECENT_BLOCKS: Final = 32
"""Blocks with transactions that ``recent`` adds up."""


ExecutionMode = Literal["build", "validate", "replay"]
"""How a block came to be executed here: as the own proposal, as another's, as another's by its access list."""


class HotLocation(msgspec.Struct, frozen=True, array_like=True):
    """An account or a storage slot, and the executions that were thrown away because it had changed."""

    address: Address
    slot: bytes | None
    """32 bytes, None for the account itself."""
    aborts: int


class BlockStats(msgspec.Struct, frozen=True):
    """What the core tells of one block; times in microseconds."""

    execute_us: int
    """From the start to the last change of the state."""
    execute_cpu_us: int
    """Processor time of the whole process meanwhile."""
    commit_us: int
    """Outcomes, roots and diff, after that."""
    transactions: int
    deliveries: int
    workers: int
    """0 when the block ran in order: one executor, or too few transactions."""
    incarnations: int
    """Executions of items, repeated ones included; 0 when the block ran in order."""
    aborts: int
    at_turn: int
    """Items that ran only when everything before them was committed."""
    solos: int
    """How often one worker went on alone, because nothing else paid."""
    work_us: int
    hottest: tuple[HotLocation, ...] = ()
    mode: ExecutionMode = "build"
    """Not told by the core: the same work for it."""

    @property
    def items(self) -> int:
        """Deliveries and transactions."""
        return self.transactions + self.deliveries


class ExecutionTotals(msgspec.Struct, frozen=True):
    """Sums over blocks; times in microseconds."""

    blocks: int = 0
    parallel_blocks: int = 0
    validated_blocks: int = 0
    """Blocks of others."""
    replayed_blocks: int = 0
    """Of these, the ones executed by their access list."""
    items: int = 0
    incarnations: int = 0
    aborts: int = 0
    at_turn: int = 0
    solos: int = 0
    execute_us: int = 0
    commit_us: int = 0
    work_us: int = 0

    def add(self, stats: BlockStats) -> "ExecutionTotals":
        """Return the sums with one more block."""
        return ExecutionTotals(
            blocks=self.blocks + 1,
            parallel_blocks=self.parallel_blocks + bool(stats.workers),
            validated_blocks=self.validated_blocks + (stats.mode != "build"),
            replayed_blocks=self.replayed_blocks + (stats.mode == "replay"),
            items=self.items + stats.items,
            incarnations=self.incarnations + stats.incarnations,
            aborts=self.aborts + stats.aborts,
            at_turn=self.at_turn + stats.at_turn,
            solos=self.solos + stats.solos,
            execute_us=self.execute_us + stats.execute_us,
            commit_us=self.commit_us + stats.commit_us,
            work_us=self.work_us + (0 if stats.mode == "replay" else stats.work_us),
        )

    @property
    def speed_up(self) -> float | None:
        """Work over time; None before anything was executed."""
        return self.work_us / self.execute_us if self.execute_us else None

    @property
    def abort_rate(self) -> float | None:
        """Executions thrown away per item; None before anything was executed."""
        return self.aborts / self.items if self.items else None


_decode = msgspec.msgpack.Decoder(BlockStats).decode


def decode_stats(encoded: bytes) -> BlockStats:
    """Return the statistics that the core gave with a block."""
    return _decode(encoded)


def add_up(blocks: Iterable[BlockStats]) -> ExecutionTotals:
    """Return the sums over ``blocks``."""
    total = ExecutionTotals()
    for stats in blocks:
        total = total.add(stats)
    return total


class ExecutionHistory:
    """The statistics of the newest blocks executed by this process."""

    def __init__(self, executors: int = 1) -> None:
        self.executors = executors
        """Threads that this process gives a block."""
        self.totals = ExecutionTotals()
        """Since the process started."""
        self._blocks: dict[Hash32, BlockStats] = {}
        self._recent: deque[BlockStats] = deque(maxlen=RECENT_BLOCKS)

    def record(self, block_hash: Hash32, encoded: bytes, mode: ExecutionMode = "build") -> None:
        """Remember how a block was executed; empty statistics say that it was not executed here."""
        if not encoded:
            return
        stats = msgspec.structs.replace(decode_stats(encoded), mode=mode)
        self._blocks[block_hash] = stats
        if len(self._blocks) > MAX_BLOCKS:
            del self._blocks[next(iter(self._blocks))]
        self.totals = self.totals.add(stats)
        if stats.items and mode != "replay":
            self._recent.append(stats)

    def get(self, block_hash: Hash32) -> BlockStats | None:
        """Return the statistics of a block, None when it was not executed here or too long ago."""
        return self._blocks.get(block_hash)

    @property
    def recent(self) -> ExecutionTotals:
        """Sums over the newest blocks that had something to execute."""
        return add_up(self._recent)

    def describe(self) -> dict[str, Any]:
        """Return what ``shard_status`` shows."""
        recent = self.recent
        return {
            "executors": self.executors,
            "recentBlocks": recent.blocks,
            "recentItems": recent.items,
            "speedUp": round_or_none(recent.speed_up, 2),
            "abortRate": round_or_none(recent.abort_rate, 4),
        }


def round_or_none(value: float | None, digits: int) -> float | None:
    """Return a figure for people."""
    return None if value is None else round(value, digits)
