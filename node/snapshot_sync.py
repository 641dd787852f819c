"""Coming by a snapshot before anything else of a replica starts: bus, log and clock around ``shards.snapshots``.

Whether one is wanted (G2) is decided by what replicas of the own chain say of their final heights, as far as a faulty third of
them cannot have made it up: with no more than ``distance`` blocks missing they are fetched one by one, unless nobody has
the next one any more. Chunks go into the block log as they come, so that
an attempt that was cut short goes on where it ended; a ``SnapshotRecord`` behind them makes them the state (G4). Then the
replica recovers from its log like after any start.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

from node.bus.endpoint import Bus
from node.network import Network, parse_node
from node.runtime import serve_control
from node.storage.log import BlockLog
from shards.snapshots import (
    KeepChunk,
    RestoreState,
    SnapshotFetcher,
    SnapshotGivenUp,
    SnapshotOutput,
    SnapshotTaken,
    estimate_height,
)
from shardyard import _native
from shardyard.effects import Notice, Send, SnapshotRecord
from shardyard.ids import Height, NodeId, ShardId, compute_chain_id
from shardyard.keys import BlsCrypto
from shardyard.messages import (
    ChunkResponse,
    RangeRequest,
    RangeResponse,
    SnapshotManifest,
    Status,
    encode_message,
)

LOOK_S: Final = 0.5
"""How long peers are listened to before it is decided; what they said last is kept by the broker."""
CONNECT_S: Final = 5.0
"""How long the bus is waited for before that; without one nobody is heard, and nobody can be asked."""
MAX_HEIGHT: Final = 1 << 48
"""No chain gets there; a replica that says so is not believed, and nothing computed from it overflows on the wire."""
TELL_S: Final = 2.0
SYNC_BYTES: Final = 16 * 1024 * 1024
MAX_QUEUED_BYTES: Final = 64 * 1024 * 1024
"""Answers that wait for their turn; what comes beyond is dropped, and asked for again."""

logger = logging.getLogger("shardyard.snapshot")
_Answer = SnapshotManifest | ChunkResponse


async def catch_up_by_snapshot(
    network: Network,
    node: str,
    log: BlockLog,
    bus: Bus,
    *,
    distance: int,
    wait_connected: Callable[[], Awaitable[None]],
) -> SnapshotRecord | None:
    """Bring the log to a recent block by a snapshot when more than ``distance`` blocks are missing; return what was taken.

    Peers are listened to from when ``wait_connected`` returns, which waits for ``bus``.
    """
    chain, _ = parse_node(node)
    with suppress(TimeoutError):
        async with asyncio.timeout(CONNECT_S):
            await wait_connected()
    heights = await _hear_heights(network, bus, chain)
    known_height = estimate_height(heights.values(), (network.options.replicas - 1) // 3)
    lag = known_height - log.final_height
    if lag <= 0 or (lag <= distance and await _is_served(bus, chain, heights, log.final_height + 1)):
        return None
    logger.info("%s: %d blocks behind, coming by a snapshot (distance %d)", node, lag, distance)
    fetcher = SnapshotFetcher(network.genesis, chain, BlsCrypto(), log.final_height, log.has_chunk)
    sync = _SnapshotSync(network, chain, log, bus, fetcher)
    async with serve_control(network, node, lambda: {"state": "fetching a snapshot", **fetcher.progress}, {}):
        return await sync.run(heights, known_height)


async def _hear_heights(network: Network, bus: Bus, chain: ShardId) -> dict[NodeId, int]:
    """Return the final heights that the replicas of ``chain`` tell on its topics; impossible ones are left out."""
    heights: dict[NodeId, int] = {}
    peers = {NodeId(f"shard-{chain}-{index}") for index in range(network.options.replicas)}

    async def listen() -> None:
        async for sender, topic_chain, message in bus.messages():
            if (
                not isinstance(message, Status)
                or {topic_chain, message.shard} != {chain}
                or sender not in peers
            ):
                continue
            if 0 <= message.final_height <= MAX_HEIGHT:
                heights[sender] = max(heights.get(sender, 0), message.final_height)

    with suppress(TimeoutError):
        async with asyncio.timeout(LOOK_S):
            await listen()
    return heights


async def _is_served(bus: Bus, chain: ShardId, heights: dict[NodeId, int], first: int) -> bool:
    """Tell whether a peer still has the next block; those that came by a snapshot themselves may not."""
    for peer in heights:
        await bus.send(peer, chain, RangeRequest(chain, Height(first), 1))
    answers: list[bool] = []

    async def listen() -> None:
        async for _, _, message in bus.messages():
            if isinstance(message, RangeResponse) and message.shard == chain:
                answers.append(bool(message.blocks))
                if answers[-1] or len(answers) == len(heights):
                    return

    with suppress(TimeoutError):
        async with asyncio.timeout(LOOK_S):
            await listen()
    return any(answers) or not answers


class AnswerQueue:
    """Answers between the bus and the fetcher: one of a kind per sender and index, ``MAX_QUEUED_BYTES`` in all."""

    def __init__(self) -> None:
        self._answers: asyncio.Queue[tuple[NodeId, _Answer]] = asyncio.Queue()
        self._sizes: dict[tuple[NodeId, int | None], int] = {}
        self._bytes = 0
        self.dropped = 0
        """Answers that found no room."""

    def put(self, sender: NodeId, answer: _Answer) -> None:
        """Queue an answer, unless the same is there already or there is no room."""
        key = self._build_key(sender, answer)
        size = len(answer.data) if isinstance(answer, ChunkResponse) else len(encode_message(answer))
        if key in self._sizes or self._bytes + size > MAX_QUEUED_BYTES:
            self.dropped += 1
            return
        self._sizes[key] = size
        self._bytes += size
        self._answers.put_nowait((sender, answer))

    async def get(self) -> tuple[NodeId, _Answer]:
        """Wait for the next answer."""
        sender, answer = await self._answers.get()
        self._bytes -= self._sizes.pop(self._build_key(sender, answer))
        return sender, answer

    @staticmethod
    def _build_key(sender: NodeId, answer: _Answer) -> tuple[NodeId, int | None]:
        return sender, answer.index if isinstance(answer, ChunkResponse) else None


class _SnapshotSync:
    """One attempt."""

    def __init__(
        self, network: Network, chain: ShardId, log: BlockLog, bus: Bus, fetcher: SnapshotFetcher
    ) -> None:
        self._chain = chain
        self._log = log
        self._bus = bus
        self._fetcher = fetcher
        self._tick_s = network.genesis.preset.block_time_ms / 1000
        self._answers = AnswerQueue()
        self._unawaited = 0
        self._unsynced = 0
        self._told_at = 0.0

    async def run(self, heights: dict[NodeId, int], known_height: int) -> SnapshotRecord | None:
        listening = asyncio.create_task(self._listen(), name="snapshot-bus")
        try:
            return await self._drive(heights, known_height)
        finally:
            listening.cancel()

    async def _listen(self) -> None:
        async for sender, _, message in self._bus.messages():
            if not isinstance(message, SnapshotManifest | ChunkResponse):
                continue
            if self._fetcher.is_awaited(sender, message):
                self._answers.put(sender, message)
            else:
                self._unawaited += 1

    async def _drive(self, heights: dict[NodeId, int], known_height: int) -> SnapshotRecord | None:
        outputs = self._fetcher.start(heights, known_height)
        tick_at = time.monotonic() + self._tick_s
        while True:
            while outputs:
                output = outputs.pop(0)
                if isinstance(output, SnapshotTaken):
                    return await self._finish(output.record)
                if isinstance(output, SnapshotGivenUp):
                    logger.warning("no snapshot: %s; fetching blocks one by one", output.reason)
                    return None
                outputs += await self._perform(output)
            self._tell()
            try:
                async with asyncio.timeout_at(asyncio.get_running_loop().time() + tick_at - time.monotonic()):
                    sender, answer = await self._answers.get()
            except TimeoutError:
                tick_at = time.monotonic() + self._tick_s
                outputs = self._fetcher.on_tick()
            else:
                if isinstance(answer, SnapshotManifest):
                    outputs = self._fetcher.on_manifest(sender, answer)
                else:
                    outputs = self._fetcher.on_chunk(sender, answer)

    async def _perform(self, output: SnapshotOutput) -> list[SnapshotOutput]:
        match output:
            case Send(to, message):
                await self._bus.send(to, self._chain, message)
            case KeepChunk(chunk_hash, data):
                self._log.append_chunk(chunk_hash, data)
                self._unsynced += len(data)
                if self._unsynced >= SYNC_BYTES:
                    self._unsynced = 0
                    await self._log.sync()
            case Notice(data=data):
                logger.warning("refused %s from %s: %s", data["error"], data["sender"], data["reason"])
            case RestoreState(record):
                await self._log.sync()
                try:
                    root = await asyncio.to_thread(self._restore, record)
                except _native.CoreError as error:
                    return self._fetcher.on_root(None, str(error))
                return self._fetcher.on_root(root)
            case _:
                raise AssertionError(f"output {output!r} is none of a snapshot's")
        return []

    def _restore(self, record: SnapshotRecord) -> bytes:
        """Make the state in a core of its own: nothing that lives is touched before its root is known."""
        chunks = [self._log.get_chunk(chunk) for chunk in record.chunks]
        core = _native.Core(chain_id=compute_chain_id(self._chain), shard=self._chain)
        return core.restore([chunk for chunk in chunks if chunk is not None])

    async def _finish(self, record: SnapshotRecord) -> SnapshotRecord:
        self._log.append_records([record])
        await self._log.sync()
        logger.info(
            "snapshot of block %d taken: %d chunks; blocks follow from there",
            record.block.header.height,
            len(record.chunks),
        )
        return record

    def _tell(self) -> None:
        now = time.monotonic()
        progress = self._fetcher.progress
        if progress["chunks"] and now - self._told_at >= TELL_S:
            self._told_at = now
            progress |= {"unawaited": self._unawaited, "dropped": self._answers.dropped}
            logger.info("snapshot: %s", ", ".join(f"{key} {value}" for key, value in progress.items()))
