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
from node.storage.journal import encode_bodies
from shards.mempool import Mempool
from shardyard import _native

MAX_HELD: Final = 4096
"""Transactions; what is beyond is told of in the log, and lost."""
MAX_HELD_BYTES: Final = 32 * 1024 * 1024
"""The same of their bytes."""

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
        """Hold raw transactions, those that came first when they are too many or too large."""
        sizes = accumulate(map(len, transactions[:MAX_HELD]))
        kept = tuple(transactions[: sum(size <= MAX_HELD_BYTES for size in sizes)])
        if kept:
            _log.warning(
                "%d journalled transactions wait outside the mempool: their senders lack the funds for all of theirs, or those "
                "before them; they are offered again with every block",
                len(kept),
            )
        if len(transactions) > len(kept):
            _log.error(
                "%d more are lost: no more than %d are held, of %d bytes; try: send them again, with sufficient funds",
                len(transactions) - len(kept),
                MAX_HELD,
                MAX_HELD_BYTES,
            )
        self._keep(kept)

    def _keep(self, raws: tuple[bytes, ...]) -> None:
        self._raws = raws
        ends = list(accumulate(map(len, raws), initial=0))
        self._batch = self._core.prepare(b"".join(raws), ends) if raws else None

    def encode_bodies(self) -> list[bytes]:
        """Return what is held as the journal takes it."""
        return encode_bodies(self._raws)

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
