"""Serving snapshots: one is cut when a peer asks for a height that is coming, and kept for a while.

Cutting runs in the executor's thread right after the block is folded in, before anything else changes the state. It is told
to peers when the beacon has accepted a crosslink that reaches its block: otherwise a shard whose replicas all came by it
would lack blocks that are to be crosslinked (X4). One snapshot is held at a time, the one that is being cut included, and a
new one is cut at most once in ``KEEP_S``, whatever is asked; chunks leave within a budget
of bytes per second. What is asked beyond that gets no answer, and is asked again.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Final

from shards.snapshots import compute_chunk_hash
from shardyard.blocks import Block, FinalityProof
from shardyard.ids import Hash32, Height, NodeId, ShardId
from shardyard.messages import ChunkRequest, ChunkResponse, Message, SnapshotManifest, SnapshotRequest

KEEP_S: Final = 120.0
"""How long a snapshot is held after it was last asked for, and how often a new one may be cut."""
MAX_KEEP_S: Final = 1200.0
"""How long it is held at most: a newer one saves more blocks."""
MAX_AHEAD: Final = 64
"""Blocks that a height asked for may be ahead."""
MAX_WAITING: Final = 16
BYTES_PER_S: Final = 64 * 1024 * 1024

logger = logging.getLogger("shardyard.snapshot")

Cut = Callable[[], list[bytes]]


class SnapshotServer:
    """The snapshots of one replica."""

    def __init__(
        self,
        shard: ShardId,
        cut: Cut,
        run: Callable[[Callable[[], None]], Awaitable[None]],
        send: Callable[[NodeId, Message], Awaitable[None]],
        get_height: Callable[[], int],
        get_crosslinked_height: Callable[[], int],
    ) -> None:
        """``cut`` returns the chunks of the base state; ``run`` runs work in the thread that changes it.

        ``get_crosslinked_height`` returns the height of this shard that the beacon has accepted.
        """
        self._shard = shard
        self._cut = cut
        self._run = run
        self._send = send
        self._get_height = get_height
        self._get_crosslinked_height = get_crosslinked_height
        self._wanted = 0
        self._waiting: list[NodeId] = []
        self._manifest: SnapshotManifest | None = None
        self._chunks: list[bytes] = []
        self._asked_at = 0.0
        self._cut_at = -KEEP_S
        self._budget = float(BYTES_PER_S)
        self._refilled_at = 0.0
        self._cutting: asyncio.Task[None] | None = None
        self._telling: asyncio.Task[None] | None = None
        self._is_told = False
        """Peers may know of what is held."""

    async def on_request(self, sender: NodeId, request: SnapshotRequest) -> None:
        """Answer with the manifest that is held, or promise one."""
        if request.shard != self._shard:
            return
        now = time.monotonic()
        self._drop_old(now)
        if self._is_told:
            assert self._manifest is not None, "what is told is held"
            self._asked_at = now
            await self._send(sender, self._manifest)
            return
        height = self._get_height()
        if not self._wanted and self._may_cut(now) and height < request.height <= height + MAX_AHEAD:
            self._wanted = request.height
        is_coming = self._wanted or self._cutting is not None or self._manifest is not None
        if is_coming and sender not in self._waiting and len(self._waiting) < MAX_WAITING:
            self._waiting.append(sender)

    async def on_chunk_request(self, sender: NodeId, request: ChunkRequest) -> None:
        """Answer with a chunk of the snapshot that is held, within the budget."""
        manifest = self._manifest
        if manifest is None or request.snapshot != manifest.id or not 0 <= request.index < len(self._chunks):
            return
        chunk = self._chunks[request.index]
        now = time.monotonic()
        self._budget = min(BYTES_PER_S, self._budget + (now - self._refilled_at) * BYTES_PER_S)
        self._refilled_at = now
        if self._budget < len(chunk):
            return
        self._budget -= len(chunk)
        self._asked_at = now
        await self._send(sender, ChunkResponse(self._shard, manifest.id, request.index, chunk))

    def on_final(self, block: Block, proof: FinalityProof) -> None:
        """Begin to cut the snapshot that was asked for, when this block is the one; its state is the base now."""
        now = time.monotonic()
        self._drop_old(now)
        if self._manifest is not None and not self._is_told and self._telling is None:
            self._telling = asyncio.create_task(self._tell(), name="snapshot-tell")
        if not self._wanted or block.header.height < self._wanted:
            return
        is_wanted, self._wanted = block.header.height == self._wanted, 0
        if is_wanted and self._may_cut(now):
            self._cut_at = now
            self._cutting = asyncio.create_task(self._cut_and_tell(block, proof), name="snapshot-cut")
        else:
            self._waiting.clear()

    def _may_cut(self, now: float) -> bool:
        return self._manifest is None and self._cutting is None and now - self._cut_at >= KEEP_S

    async def _cut_and_tell(self, block: Block, proof: FinalityProof) -> None:
        """The executor's thread is one: the cut is made before the next block is folded in."""
        started = time.monotonic()
        chunks: list[bytes] = []
        hashes: list[Hash32] = []

        def work() -> None:
            chunks.extend(self._cut())
            hashes.extend(compute_chunk_hash(chunk) for chunk in chunks)

        try:
            await self._run(work)
        finally:
            self._cutting = None
        self._manifest = SnapshotManifest(self._shard, block, proof, tuple(hashes))
        self._chunks = chunks
        self._asked_at = time.monotonic()
        logger.info(
            "snapshot of block %d: %d chunks, %d bytes, cut in %.2f s",
            block.header.height,
            len(chunks),
            sum(map(len, chunks)),
            self._asked_at - started,
        )
        await self._tell()

    async def _tell(self) -> None:
        """Send the manifest to all who wait for it, once the beacon has accepted a crosslink that reaches its block."""
        try:
            manifest = self._manifest
            if manifest is None or manifest.block.header.height > self._get_crosslinked_height():
                return
            self._is_told = True
            self._asked_at = time.monotonic()
            waiting, self._waiting = self._waiting, []
            for peer in waiting:
                await self._send(peer, manifest)
        finally:
            self._telling = None

    @property
    def held_height(self) -> Height:
        """Height of the snapshot that is held; 0 when none is."""
        return Height(0) if self._manifest is None else self._manifest.block.header.height

    def _drop_old(self, now: float) -> None:
        is_old = now - self._asked_at > KEEP_S or now - self._cut_at > MAX_KEEP_S
        if self._manifest is not None and is_old:
            self._manifest, self._chunks, self._is_told = None, [], False
            self._waiting.clear()
