"""What every method works with: the backend, and how block arguments become blocks and states.

``latest`` and ``safe`` are shard-final, ``finalized`` is beacon-final, ``pending`` is the notarized tip (for state) or the
builder's preview on it (for blocks), ``earliest`` is genesis. A node that came by a snapshot refuses what it does not hold, and
``finalized`` while it cannot tell, with the heights that it has.
"""

import asyncio
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Protocol, TypeVar

import msgspec

from node.backend import ShardBackend
from node.index.records import IndexedBlock
from node.refusal import LIMIT_EXCEEDED, PRUNED_HISTORY, RpcError, build_server_error
from node.rpc.filters import FilterRegistry
from node.rpc.params import BlockId
from node.rpc.pending import PendingPreview
from node.rpc.protocol import encode_json
from shardyard import _native
from shardyard.blocks import Header
from shardyard.ids import Hash32

MAX_SCANS: Final = 2
"""Searches through many blocks at once; more wait, so that short reads always find a thread."""
MAX_SCANS_WAITING: Final = 64
INLINE_BYTES: Final = 16 * 1024
"""Blocks that take more are put into JSON in a thread: one transaction alone may write a hundred thousand logs."""

T = TypeVar("T")


class Session(Protocol):
    """A connection that can be told things later: a WebSocket."""

    def subscribe(self, kind: str, options: object) -> str:
        """Start to notify; returns the subscription's id. Raises ``RpcError`` above the session's limit."""
        ...

    def unsubscribe(self, subscription: str) -> bool:
        """Stop; false when there is no such subscription."""
        ...


class StateView(msgspec.Struct, frozen=True):
    """A state that can be read: its name in the core, and the header of its block."""

    at: Hash32
    header: Header
    is_pending: bool


class FoundBlock(msgspec.Struct, frozen=True):
    """A block that was asked for."""

    block: IndexedBlock
    is_pending: bool


class ShardApi:
    """Shared by all connections of one server."""

    def __init__(self, backend: ShardBackend, urls: Mapping[int, Sequence[str]] | None = None) -> None:
        self.backend = backend
        self.urls = dict(urls or {})
        """JSON-RPC URLs by shard, for ``shard_list``."""
        self.preview = PendingPreview(backend)
        self.filters = FilterRegistry()
        self._scans = asyncio.Semaphore(MAX_SCANS)
        self._scans_waiting = 0

    @property
    def core(self) -> _native.Core:
        """The native core of this shard."""
        return self.backend.core

    def resolve_height(self, block: BlockId) -> int | None:
        """Return the height of a final block, None when there is no such block or ``pending`` is meant.

        Raises ``RpcError`` for ``finalized`` while that is below the snapshot this node came by.
        """
        match block.tag:
            case "latest" | "safe":
                return self.backend.latest.height
            case "finalized":
                if self.backend.is_finality_below:  # genesis would be one that a client has seen pass
                    raise build_missing_history(
                        self.backend.index.first_height, "the finalized block is below its snapshot"
                    )
                return self.backend.finalized_height
            case "earliest":
                return 0
            case "pending":
                return None
        if block.hash is not None:
            return self.backend.index.get_height(block.hash)
        assert block.number is not None, "one of the three is set"
        return block.number if block.number <= self.backend.latest.height else None

    def find_final(self, block: BlockId, *, only_header: bool = False) -> IndexedBlock | None:
        """Return the final block that is meant, None when there is none.

        Raises ``RpcError`` for a block below the snapshot this node came by; of the snapshot's own the header is here.
        """
        height = self.resolve_height(block)
        if height is None:
            return None
        latest = self.backend.latest
        first = self.backend.index.first_height
        if 0 < height < first - only_header:
            is_base = height == first - 1
            raise build_missing_history(
                first, f"of block {height} it has header and state" if is_base else ""
            )
        return latest if height == latest.height else self.backend.index.get_block(height)

    async def find_block(self, block: BlockId) -> FoundBlock | None:
        """Return the block that is meant, the preview included."""
        if block.tag == "pending":
            return FoundBlock(await self.preview.get(), is_pending=True)
        found = self.find_final(block)
        return None if found is None else FoundBlock(found, is_pending=False)

    def get_state(self, block: BlockId) -> StateView:
        """Return the state that is meant; raises ``RpcError`` when there is no such block."""
        if block.tag == "pending":
            tip = self.backend.tip
            return StateView(tip.hash, tip, is_pending=True)
        height, first = self.resolve_height(block), self.backend.index.first_height
        if height is not None and 0 < height < first - 1:
            raise build_server_error(
                f"missing trie node: the state of block {height} is not available, this node has it from {first - 1} on"
            )
        found = self.find_final(block, only_header=True)
        if found is None:
            raise build_server_error("header for hash not found" if block.hash else "header not found")
        return StateView(found.hash, found.header, is_pending=False)

    def read_state(self, view: StateView, read: Callable[[], T]) -> T:
        """Run a read of ``view``; a state that is no longer kept gives geth's error."""
        try:
            return read()
        except _native.MissingState:
            raise build_missing_state(view) from None

    async def run(self, block: IndexedBlock, work: Callable[[], T]) -> T | msgspec.Raw:
        """Run what makes JSON of ``block``; when there is much of it in a thread, down to the text."""
        if block.weight <= INLINE_BYTES:
            return work()
        return await self.backend.read(lambda: msgspec.Raw(encode_json(work())))

    async def scan(self, work: Callable[[Callable[[], bool]], T]) -> T:
        """Run a search through many blocks in a thread.

        ``work`` gets a function to ask before each block: it says when nobody waits for the answer any more, because the call
        timed out or its client left. Raises ``RpcError`` when too many wait.
        """
        if self._scans_waiting >= MAX_SCANS_WAITING:
            raise RpcError(LIMIT_EXCEEDED, "too many requests")
        is_over = threading.Event()
        self._scans_waiting += 1
        try:
            async with self._scans:
                return await self.backend.read(lambda: work(is_over.is_set))
        finally:
            self._scans_waiting -= 1
            is_over.set()


class CallContext(msgspec.Struct):
    """First argument of every method: the API, and the connection if it is one that can be notified."""

    api: ShardApi
    session: Session | None = None
    is_overloaded: bool = False
    """Set when a request was refused because too much waits; HTTP says so in its status."""


def build_missing_history(first: int, detail: str = "") -> RpcError:
    """Return what geth says of blocks it does not keep; this node came by a snapshot and has them from ``first`` on."""
    words = f"pruned history unavailable: this node has blocks from {first} on"
    return RpcError(PRUNED_HISTORY, f"{words}, {detail}" if detail else words)


def build_missing_state(view: StateView) -> RpcError:
    """Return what geth says when a state was pruned; clients look for its first words."""
    root = "0x" + view.header.shard_content.state_root.hex()
    return build_server_error(f"missing trie node {root[2:]} (path ) state {root} is not available")
