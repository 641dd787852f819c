"""What a flood came to, by the shards' own records: heights as they became final, blocks, and where each hash stands."""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Container, Iterator, Sequence
from typing import Any

import msgspec

from node.bench.pace import Head
from node.bench.signed import Crossing, SignedPlan
from node.load.client import NoAnswerError, RpcConnection

POLL_S = 0.05
ATTEMPTS = 5
"""Of a question whose connection ended: a node ends one that was idle for long."""


class Watched(msgspec.Struct):
    """One shard as it was seen during a run."""

    first: int = 0
    """Height of the last block before the run."""
    latest: int = 0
    finalized: int = 0
    pending: int = 0
    consumed_first: int = 0
    consumed: int = 0
    """Messages of other shards that it has executed, before the run and now."""
    finals: list[tuple[float, int]] = []
    """When which height was seen to be beacon-final."""
    heads: list[Head] = []
    """The latest heads, when each was seen first."""
    slowest_block_s: float = 0.0
    gas_used: int = 0
    """Of the blocks that were read."""


class Watch:
    """Polls the heads of all shards."""

    def __init__(self, urls: Sequence[str]) -> None:
        self.shards = [Watched() for _ in urls]
        self._connections = [RpcConnection(url, timeout_s=30.0) for url in urls]
        self._readers = [RpcConnection(url, timeout_s=60.0) for url in urls]

    async def start(self) -> None:
        """Note where the run begins."""
        for shard in range(len(self.shards)):
            await self._poll(shard)
            self.shards[shard].first = self.shards[shard].latest
            self.shards[shard].consumed_first = self.shards[shard].consumed

    async def run(self) -> None:
        """Poll until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                for shard in range(len(self.shards)):
                    group.create_task(self._watch(shard))
        finally:
            for connection in self._connections:
                connection.close()

    async def _watch(self, shard: int) -> None:
        while True:
            with contextlib.suppress(NoAnswerError):
                await self._poll(shard)
            await asyncio.sleep(POLL_S)

    async def _poll(self, shard: int) -> None:
        status = await self._connections[shard].request("shard_status")
        own, now = self.shards[shard], time.monotonic()
        latest = status["heads"]["latest"]["height"]
        if latest > own.latest:
            if own.heads:
                last = own.heads[-1]
                own.slowest_block_s = max(own.slowest_block_s, (now - last.seen) / (latest - last.height))
            own.heads = [*own.heads, Head(now, latest, status["heads"]["latest"]["slot"])]
            own.latest = latest
        own.pending = status["mempool"]["pending"]
        own.consumed = status["inbox"]["consumed"]
        finalized = status["heads"]["finalized"]["height"]
        if finalized > own.finalized:
            own.finalized = finalized
            own.finals = [*own.finals, (now, finalized)]

    async def wait_settled(self, limit_s: float, messages: Sequence[int]) -> None:
        """Return when no shard has anything waiting and all of it is beacon-final, or after ``limit_s``.

        ``messages`` counts by shard what others have sent to it.
        """
        deadline = time.monotonic() + limit_s
        empty_at: list[int | None] = [None for _ in self.shards]
        while time.monotonic() < deadline:
            for number, shard in enumerate(self.shards):
                is_delivered = shard.consumed - shard.consumed_first >= messages[number]
                if shard.pending == 0 and is_delivered and empty_at[number] is None:
                    empty_at[number] = shard.latest + 1
            if all(
                height is not None and shard.finalized >= height
                for shard, height in zip(self.shards, empty_at, strict=True)
            ):
                return
            await asyncio.sleep(POLL_S)

    async def read_stages(self) -> dict[str, float]:
        """Return microseconds by stage, over all shards."""
        total: dict[str, float] = {}
        for connection in self._readers:
            status = await ask(connection, "shard_status")
            for part in (status["admission"], status["node"]["stages"]):
                for name, value in part.items():
                    if name.endswith("_us"):
                        total[name.removesuffix("_us")] = total.get(name.removesuffix("_us"), 0.0) + value
        return total

    async def read_blocks(self) -> list[dict[int, list[str]]]:
        """Return the transaction hashes of every block of the run, by shard and height."""
        found: list[dict[int, list[str]]] = []
        for shard, reader in zip(self.shards, self._readers, strict=True):
            blocks: dict[int, list[str]] = {}
            for height in range(shard.first + 1, shard.finalized + 1):
                block = await ask(reader, "eth_getBlockByNumber", hex(height), False)
                blocks[height] = block["transactions"]
                shard.gas_used += int(block["gasUsed"], 16)
            found.append(blocks)
            reader.close()
        return found


async def ask(connection: RpcConnection, method: str, *params: object) -> Any:
    """Return the answer to a question that changes nothing; raises ``NoAnswerError`` when nobody answers repeatedly."""
    for _ in range(ATTEMPTS - 1):
        with contextlib.suppress(NoAnswerError):
            return await connection.request(method, *params)
        await asyncio.sleep(POLL_S)
    return await connection.request(method, *params)


def iterate_answered(plan: SignedPlan) -> Iterator[tuple[float, bytes]]:
    """Yield every transaction that was answered with its hash, and when it was due."""
    for queue in plan.queues:
        for request in queue:
            if request.answered:
                refused = frozenset(request.refused)
                for position in range(request.count):
                    if position not in refused:
                        yield request.sent, plan.get_hash(request.get_number(position))


def check_answered(plan: SignedPlan, blocks: dict[int, list[str]]) -> tuple[int, int]:
    """Return how many answered transactions stand in no final block, and how many in more than one."""
    places: dict[bytes, int] = {}
    for hashes in blocks.values():
        for text in hashes:
            tx_hash = bytes.fromhex(text[2:])
            places[tx_hash] = places.get(tx_hash, 0) + 1
    missing = sum(1 for _, tx_hash in iterate_answered(plan) if tx_hash not in places)
    return missing, sum(1 for count in places.values() if count > 1)


def iterate_crossings(plan: SignedPlan) -> Iterator[Crossing]:
    """Yield the crossings whose transactions were answered with their hash."""
    if plan.crossings:
        answered = {tx_hash for _, tx_hash in iterate_answered(plan)}
        for crossing in plan.crossings:
            if plan.get_hash(crossing.number) in answered:
                yield crossing


def check_messages(plans: Sequence[SignedPlan], blocks: Sequence[dict[int, list[str]]]) -> tuple[int, int]:
    """Return how many messages of answered transactions were delivered in no final block, and how many in several."""
    places = [Counter(text for hashes in found.values() for text in hashes) for found in blocks]
    counts = [
        places[crossing.dst]["0x" + crossing.message.hex()]
        for plan in plans
        for crossing in iterate_crossings(plan)
    ]
    return counts.count(0), sum(count > 1 for count in counts)


def list_latencies(
    plan: SignedPlan, blocks: dict[int, list[str]], shard: Watched, since: float
) -> list[float]:
    """Return the seconds to finality of every answered transaction that was due after ``since``."""
    due = {tx_hash: moment for moment, tx_hash in iterate_answered(plan) if moment >= since}
    finals = iter(shard.finals)
    seen, height_seen = next(finals, (0.0, 0))
    latencies: list[float] = []
    for height in sorted(blocks):
        while height_seen < height and (step := next(finals, None)) is not None:
            seen, height_seen = step
        for text in blocks[height]:
            moment = due.get(bytes.fromhex(text[2:]))
            if moment is not None and height_seen >= height:
                latencies.append(seen - moment)
    return latencies


def compute_rate(
    shard: Watched, blocks: dict[int, list[str]], begin: float, end: float, passed_over: Container[str] = ()
) -> float:
    """Return transactions per second between the first and the last advance of finality from ``begin`` to ``end``.

    What is ``passed_over`` is no transaction of a user: a message delivered, which counted where it began.
    """
    steps = [step for step in shard.finals if begin <= step[0] <= end]
    if len(steps) < 2:
        return 0.0
    (first, low), (last, high) = steps[0], steps[-1]
    final = (text for height, hashes in blocks.items() if low < height <= high for text in hashes)
    return sum(text not in passed_over for text in final) / (last - first)
