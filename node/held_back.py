"""Transactions that were accepted before a restart, and that the mempool could not take back yet.

A pool that runs keeps what its sender can pay one by one, also when a block of others' transactions of this sender left too
little for all; a newcomer is refused then. So after a restart some of what was answered has no place. It is held here, is
written with the journal, and is offered again with every head, until the pool takes it or says that it can never run.
"""

import asyncio
import logging
from collections.abc import Sequence
from itertools import accumulate
from typing import Final

from node.admission import MAY_COME
from node.index.records import IndexedBlock
from shards.mempool import Mempool
from shardyard import _native
from shardyard.blocks import ShardBody
from shardyard.codec import encode

MAX_HELD: Final = 4096
"""Transactions; what is beyond is told of in the log, and lost."""

_log = logging.getLogger(__name__)


class HeldBack:
    """What waits outside of ``mempool``, in order of the journal."""

    def __init__(self, core: _native.Core, mempool: Mempool) -> None:
        self._core = core
        self._mempool = mempool
        self._raws: tuple[bytes, ...] = ()
        self._batch: _native.Batch | None = None
        """The same, decoded and with their senders, which takes longest."""

    def __len__(self) -> int:
        return len(self._raws)

    def hold(self, transactions: Sequence[bytes]) -> None:
        """Hold raw transactions, those that came first when they are too many."""
        if transactions:
            _log.warning(
                "%d journalled transactions wait outside the mempool: their senders lack the funds for all of theirs, or those "
                "before them; they are offered again with every block",
                min(len(transactions), MAX_HELD),
            )
        if len(transactions) > MAX_HELD:
            _log.error(
                "%d more are lost: no more than %d are held; try: send them again, with sufficient funds",
                len(transactions) - MAX_HELD,
                MAX_HELD,
            )
        self._keep(tuple(transactions[:MAX_HELD]))

    def _keep(self, raws: tuple[bytes, ...]) -> None:
        self._raws = raws
        self._batch = self._core.prepare(b"".join(raws), _find_ends(raws)) if raws else None

    def encode_bodies(self) -> list[bytes]:
        """Return what is held as the journal takes it."""
        raws = self._raws
        return [encode(ShardBody(b"".join(raws), tuple(_find_ends(raws)[1:])))] if raws else []

    async def on_head(self, _: IndexedBlock) -> None:
        """Offer again what is held, in a thread: a block may have paid a sender, or brought what was missing."""
        if self._batch is not None:
            await asyncio.to_thread(self._offer, self._batch)

    def _offer(self, batch: _native.Batch) -> None:
        admitted = self._mempool.admit(self._core, batch)
        kept = tuple(
            raw for place, raw in enumerate(self._raws) if (admitted.error(place) or "").startswith(MAY_COME)
        )
        if len(kept) < len(self._raws):
            self._keep(kept)


def _find_ends(raws: Sequence[bytes]) -> list[int]:
    return list(accumulate(map(len, raws), initial=0))
