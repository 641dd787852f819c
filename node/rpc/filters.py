"""Filters that are polled: ``eth_newFilter`` and its family.

A filter stores a position, not results: what is new is read from the chain index when it is asked for, so an abandoned
filter costs a few bytes. Pending transactions go through one ring that all pending filters read. Filters are forgotten
when nobody polls them for five minutes, and the oldest goes when there are too many.
"""

import asyncio
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from node.refusal import RpcError, build_server_error
from node.rpc.params import LogQuery
from shardyard.ids import Hash32

MAX_FILTERS: Final = 4096
IDLE_S: Final = 300.0
MAX_PENDING_KEPT: Final = 16_384


class LogFilter(msgspec.Struct):
    """New logs that match; ``next_height`` is the first block that was not looked at to its end."""

    query: LogQuery
    next_height: int
    polled_at: float
    next_index: int = 0
    """Of that block, the first log that was not told."""
    turn: asyncio.Lock = msgspec.field(default_factory=asyncio.Lock)
    """Polls that come together must not tell the same logs."""


class BlockFilter(msgspec.Struct):
    """Hashes of new blocks."""

    next_height: int
    polled_at: float


class PendingFilter(msgspec.Struct):
    """Hashes of transactions that came into the mempool; ``position`` counts all that ever came."""

    position: int
    polled_at: float


Filter = LogFilter | BlockFilter | PendingFilter


def build_not_found() -> RpcError:
    """Return geth's error for a filter that does not exist (any more)."""
    return build_server_error("filter not found")


class FilterRegistry:
    """Filters of one server by id."""

    def __init__(self, get_time: Callable[[], float] = time.monotonic) -> None:
        self._get_time = get_time
        self._filters: OrderedDict[str, Filter] = OrderedDict()
        """Least recently polled first."""
        self._pending: list[Hash32] = []
        self._pending_end = 0

    def __len__(self) -> int:
        return len(self._filters)

    def add_log_filter(self, query: LogQuery, next_height: int) -> str:
        """Return the id of a new log filter."""
        return self._add(LogFilter(query, next_height, self._get_time()))

    def add_block_filter(self, next_height: int) -> str:
        """Return the id of a new block filter."""
        return self._add(BlockFilter(next_height, self._get_time()))

    def add_pending_filter(self) -> str:
        """Return the id of a new filter of pending transactions."""
        return self._add(PendingFilter(self._pending_end, self._get_time()))

    def _add(self, item: Filter) -> str:
        self._drop_idle()
        if len(self._filters) >= MAX_FILTERS:
            self._filters.popitem(last=False)
        filter_id = hex(secrets.randbits(128))
        self._filters[filter_id] = item
        return filter_id

    def _drop_idle(self) -> None:
        now = self._get_time()
        while self._filters:
            first = next(iter(self._filters))
            if now - self._filters[first].polled_at <= IDLE_S:
                return
            del self._filters[first]

    def poll(self, filter_id: str) -> Filter:
        """Return a filter and keep it alive; raises ``RpcError`` when there is none."""
        self._drop_idle()
        found = self._filters.get(filter_id)
        if found is None:
            raise build_not_found()
        found.polled_at = self._get_time()
        self._filters.move_to_end(filter_id)
        return found

    def remove(self, filter_id: str) -> bool:
        """Forget a filter; false when there is none."""
        return self._filters.pop(filter_id, None) is not None

    @property
    def wants_pending(self) -> bool:
        """Whether any filter asks for pending transactions; one that nobody polls any more does not."""
        self._drop_idle()
        return any(isinstance(item, PendingFilter) for item in self._filters.values())

    def note_pending(self, hashes: Sequence[Hash32]) -> None:
        """Remember transactions for pending filters; the oldest are forgotten."""
        self._pending.extend(hashes)
        self._pending_end += len(hashes)
        if len(self._pending) > 2 * MAX_PENDING_KEPT:
            del self._pending[:-MAX_PENDING_KEPT]

    def take_pending(self, item: PendingFilter) -> list[Hash32]:
        """Return what came since the last poll."""
        new = min(self._pending_end - item.position, len(self._pending))
        item.position = self._pending_end
        return self._pending[len(self._pending) - new :]
