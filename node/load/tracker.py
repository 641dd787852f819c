"""Follows every answered transaction to its end: included, beacon-final, and for a cross-shard one executed elsewhere.

Nothing is asked per transaction. One task per shard reads each new final block's hashes once; a delivery stands in its block
under the id of its message (X13), which is known before it is sent. So following costs a request per block and a dictionary
look-up per transaction. Times are those at which a client could know: when the answer of the node was read.
"""

import asyncio
import time
from collections import Counter, deque
from collections.abc import Sequence
from typing import Any

import msgspec

from node.load.client import NoAnswerError, RpcConnection
from node.load.workload import Planned

POLL_S = 0.05
NEVER = 0.0
"""Stands for a moment that has not come."""


class Tracked(msgspec.Struct):
    """One transaction and when it reached its stages, in seconds of the monotonic clock; ``NEVER`` until then."""

    plan: Planned
    """Without the signed bytes once it is answered."""
    due: float
    sent: float = NEVER
    answered: float = NEVER
    refusal: str = ""
    """Why the node refused it; empty when it did not."""
    attempts: int = 0
    included: float = NEVER
    """In a block that its shard finalised: ``latest``."""
    included_height: int = 0
    final: float = NEVER
    """That block is beacon-final: ``finalized``."""
    executed: float = NEVER
    """The message was delivered in a final block of its destination."""
    settled: float = NEVER
    """The last effect is beacon-final."""
    is_repeated: bool = False
    """It, or its message, was seen in two blocks: must never happen."""

    @property
    def is_cross(self) -> bool:
        """Whether it leaves its shard."""
        return self.plan.dst != self.plan.shard

    @property
    def is_accepted(self) -> bool:
        """Whether the node answered with its hash."""
        return self.answered != NEVER and not self.refusal


class ShardHeads(msgspec.Struct):
    """Heads of one shard as last read."""

    latest: int = 0
    finalized: int = 0
    scanned: int = 0
    """Height up to which blocks were read."""
    read_at: float = NEVER


class Tracker:
    """Watches all shards of a run."""

    def __init__(self, urls: Sequence[str], replicas: Sequence[Sequence[str]] = ()) -> None:
        """Watch the shards at ``urls``; ``replicas`` are all that can be asked of each, those included."""
        self.heads = [ShardHeads() for _ in urls]
        self.unsettled = 0
        """Accepted transactions whose last effect is not beacon-final yet."""
        self.settled = 0
        """Transactions whose last effect is."""
        self.block_transactions: Counter[int] = Counter()
        """User transactions and deliveries seen, by shard."""
        self._connections = [
            RpcConnection(found[0], others=found[1:]) for found in replicas or [(url,) for url in urls]
        ]
        self._sent: list[dict[str, Tracked]] = [{} for _ in urls]
        self._messages: list[dict[str, Tracked]] = [{} for _ in urls]
        self._inclusions: list[deque[tuple[int, Tracked]]] = [deque() for _ in urls]
        self._executions: list[deque[tuple[int, Tracked]]] = [deque() for _ in urls]

    def follow(self, tracked: Tracked) -> None:
        """Expect ``tracked`` in blocks from now on; call before it is sent."""
        plan = tracked.plan
        self._sent[plan.shard][plan.tx_hash] = tracked
        if plan.message:
            self._messages[plan.dst][plan.message] = tracked
        self.unsettled += 1

    def forget(self, tracked: Tracked) -> None:
        """A refused transaction will not come."""
        plan = tracked.plan
        if self._sent[plan.shard].pop(plan.tx_hash, None) is not None:
            self._messages[plan.dst].pop(plan.message, None)
            self.unsettled -= 1

    async def start(self) -> None:
        """Read where every shard stands; blocks up to there are not looked at."""
        for shard, heads in enumerate(self.heads):
            status = await self._connections[shard].request_of_any("shard_status")
            heads.scanned = heads.latest = status["heads"]["latest"]["height"]

    async def run(self) -> None:
        """Watch until cancelled."""
        async with asyncio.TaskGroup() as group:
            for shard in range(len(self.heads)):
                group.create_task(self._watch(shard), name=f"watch-{shard}")

    async def _watch(self, shard: int) -> None:
        connection, heads = self._connections[shard], self.heads[shard]
        try:
            while True:
                calls = (("shard_status", ()), ("eth_getBlockByNumber", (hex(heads.scanned + 1), False)))
                try:
                    status, block = await connection.request_batch(calls)
                except NoAnswerError:
                    await asyncio.sleep(POLL_S)  # the node is down; its supervisor starts it again
                    continue
                now = time.monotonic()
                if block.result is not None:
                    self._on_block(shard, block.result, now)
                if status.result is not None:
                    self._on_status(shard, status.result["heads"], now)
                if block.result is None:
                    await asyncio.sleep(POLL_S)
        finally:
            connection.close()

    def _on_block(self, shard: int, block: dict[str, Any], now: float) -> None:
        height = int(block["number"], 16)
        self.heads[shard].scanned = height
        self.block_transactions[shard] += len(block["transactions"])
        sent, messages = self._sent[shard], self._messages[shard]
        for tx_hash in block["transactions"]:
            if (tracked := sent.get(tx_hash)) is not None:
                tracked.is_repeated |= tracked.included != NEVER
                tracked.included, tracked.included_height = now, height
                self._inclusions[shard].append((height, tracked))
            elif (tracked := messages.get(tx_hash)) is not None:
                tracked.is_repeated |= tracked.executed != NEVER
                tracked.executed = now
                self._executions[shard].append((height, tracked))

    def _on_status(self, shard: int, heads: dict[str, Any], now: float) -> None:
        own = self.heads[shard]
        own.read_at = now
        own.latest = heads["latest"]["height"]
        own.finalized = heads["finalized"]["height"] if heads["finalized"] else 0
        inclusions = self._inclusions[shard]
        while inclusions and inclusions[0][0] <= own.finalized:
            tracked = inclusions.popleft()[1]
            tracked.final = now
            if not tracked.is_cross:
                self._settle(tracked, now)
        executions = self._executions[shard]
        while executions and executions[0][0] <= own.finalized:
            self._settle(executions.popleft()[1], now)

    def _settle(self, tracked: Tracked, now: float) -> None:
        if tracked.settled == NEVER:
            tracked.settled = now
            self.unsettled -= 1
            self.settled += 1
