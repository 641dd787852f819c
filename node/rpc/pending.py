"""The ``pending`` block: what the builder would put on the notarized tip now.

The preview really executes what the mempool would offer, up to a cap, without inbox, and is thrown away. It is kept for a
moment, so that polling wallets cost one execution between them, and never runs on the executors of the shard's blocks.
"""

import asyncio
import contextlib
import time
from typing import Final

import msgspec

from node.backend import ShardBackend
from node.index.records import IndexedBlock
from node.refusal import build_server_error
from shardyard import _native
from shardyard.blocks import Header
from shardyard.codec import encode
from shardyard.ids import ZERO_HASH, Height, Millis, Slot

MAX_PREVIEW_BYTES: Final = 256 * 1024
KEEP_S: Final = 0.25
MAX_ATTEMPTS: Final = 3
"""The chain goes on while the preview is built, and its parent may be gone."""


def compute_next_timestamp(backend: ShardBackend, tip: Header) -> Millis:
    """Return when the next block is due."""
    return Millis(tip.timestamp_ms + backend.genesis.preset.block_time_ms)


def build_env(header: Header, inbox_gas: int) -> _native.BlockEnv:
    """Return the environment in which ``header``'s block runs."""
    content = header.shard_content
    return _native.BlockEnv(
        number=header.height,
        timestamp=header.timestamp_ms // 1000,
        gas_limit=content.gas_limit,
        base_fee=content.base_fee,
        beneficiary=content.beneficiary,
        prevrandao=content.prevrandao,
        parent_hash=header.parent,
        beacon_root=content.beacon_ref.hash,
        beacon_height=content.beacon_ref.height,
        inbox_gas=inbox_gas,
    )


def build_next_header(backend: ShardBackend, tip: Header) -> Header:
    """Return the header of an empty block on ``tip``; its roots are those of no transactions."""
    content = msgspec.structs.replace(
        tip.shard_content,
        transactions_root=ZERO_HASH,
        transaction_count=0,
        delivery_count=0,
        outcomes_root=ZERO_HASH,
        outbox_root=ZERO_HASH,
        logs_bloom=bytes(256),
        gas_used=0,
        base_fee=backend.compute_next_base_fee(tip),
    )
    return msgspec.structs.replace(
        tip,
        slot=Slot(tip.slot + 1),
        height=Height(tip.height + 1),
        parent=tip.hash,
        parent_slot=tip.slot,
        timestamp_ms=compute_next_timestamp(backend, tip),
        content=content,
    )


class PendingPreview:
    """Builds the preview when asked, at most once per ``KEEP_S`` and tip."""

    def __init__(self, backend: ShardBackend) -> None:
        self._backend = backend
        self._lock = asyncio.Lock()
        self._kept: IndexedBlock | None = None
        self._kept_until = 0.0

    async def get(self) -> IndexedBlock:
        """Return the block that would come next; its hash means nothing."""
        async with self._lock:
            for _ in range(MAX_ATTEMPTS):
                tip = self._backend.tip
                kept = self._kept
                if (
                    kept is not None
                    and kept.header.parent == tip.hash
                    and time.monotonic() < self._kept_until
                ):
                    return kept
                with contextlib.suppress(_native.UnknownParent, _native.MissingState):
                    found = await self._build_on(tip)
                    self._kept, self._kept_until = found, time.monotonic() + KEEP_S
                    return found
            raise build_server_error("pending block is not available")

    async def _build_on(self, tip: Header) -> IndexedBlock:
        header = build_next_header(self._backend, tip)
        content = header.shard_content
        batch = self._backend.select(tip.hash, content.base_fee, content.gas_limit, MAX_PREVIEW_BYTES)
        return await self._backend.read(lambda: self._build(header, batch))

    def _build(self, header: Header, batch: _native.Batch) -> IndexedBlock:
        core = self._backend.core
        env = build_env(header, self._backend.genesis.preset.inbox_gas)
        result = core.preview(header.parent, batch, env)
        body = batch.encode_body(result.included)
        content = msgspec.structs.replace(
            header.shard_content,
            state_root=result.state_root,
            transactions_root=result.transactions_root,
            transaction_count=len(result.included) // 4,
            outcomes_root=result.outcomes_root,
            outbox_root=result.outbox_root,
            access_list_hash=result.access_list_hash,
            logs_bloom=result.logs_bloom,
            gas_used=result.gas_used,
        )
        return IndexedBlock(
            header=msgspec.structs.replace(header, content=content),
            size=len(encode(header)) + len(body),
            body=body,
            outcomes_data=result.outcomes,
            deliveries_data=(),
            outbox_data=tuple(result.outbox),
        )
