"""Access lists that came beside proposals: which are kept until their block is executed, and which are refused.

A list is a sidecar (B5): the leader did not sign it, whoever passes a block on may change it, and a wrong one given to the
executor would make an honest block look invalid. So a list is compared with the header before it goes any further (B6),
and only once the engine holds the block, which the leader signed: a stranger cannot make this replica hash megabytes.
What does not fit is refused with the sender's name, and the block is validated without a list. What a list holds (B1, B2, B3,
B4) is the executor's matter: native/core/src/access_list.
"""

from collections import Counter
from typing import Final

import msgspec

from shardyard._native import keccak256
from shardyard.blocks import Header, ShardContent
from shardyard.errors import InvalidAccessListError, TooLargeError
from shardyard.ids import Hash32, NodeId

MAX_HELD: Final = 4
"""Lists of the greatest length that may wait for the execution of their blocks."""
MAX_STRIKES: Final = 8
"""Wrong lists of one sender; further ones are not looked at."""


class _Held(msgspec.Struct, frozen=True):
    """A list that its block's header commits to."""

    slot: int
    access_list: bytes


class AccessListShelf:
    """Lists of blocks that wait to be executed, each verified."""

    def __init__(self, max_bytes: int) -> None:
        """``max_bytes`` is the greatest length of a list (preset)."""
        self._max_bytes = max_bytes
        self._held: dict[Hash32, _Held] = {}
        self._strikes: Counter[NodeId] = Counter()

    def __len__(self) -> int:
        return len(self._held)

    def is_sendable(self, access_list: bytes) -> bool:
        """Tell whether a list may travel with its block."""
        return 0 < len(access_list) <= self._max_bytes

    def offer(self, sender: NodeId, header: Header, access_list: bytes) -> None:
        """Keep the list of a block that waits to be executed; what stands here already is enough.

        Raises ``TooLargeError``, before anything is hashed, and ``InvalidAccessListError``.
        """
        content = header.content
        if not isinstance(content, ShardContent) or header.hash in self._held:
            return
        if self._strikes[sender] >= MAX_STRIKES:
            return
        try:
            self._verify(header, content, access_list)
        except (TooLargeError, InvalidAccessListError):
            self._strikes[sender] += 1
            raise
        self._held[header.hash] = _Held(header.slot, access_list)
        while sum(len(held.access_list) for held in self._held.values()) > MAX_HELD * self._max_bytes:
            # The slots that come last are executed last; a leader of a far slot must not push out the next block's.
            del self._held[max(self._held, key=lambda block_hash: self._held[block_hash].slot)]

    def _verify(self, header: Header, content: ShardContent, access_list: bytes) -> None:
        """B6."""
        if len(access_list) > self._max_bytes:
            raise TooLargeError(
                f"access list: got {len(access_list)} bytes, expected at most {self._max_bytes}"
            )
        if (found := keccak256(access_list)) != content.access_list_hash:
            raise InvalidAccessListError(
                f"access list of block {header.height}: got one with hash {found.hex()[:16]}, "
                f"expected {content.access_list_hash.hex()[:16]}"
            )

    def take(self, block_hash: Hash32) -> bytes:
        """Return the list of a block that is executed now, and forget it; empty when there is none."""
        held = self._held.pop(block_hash, None)
        return b"" if held is None else held.access_list

    def prune(self, slot: int) -> None:
        """Forget the lists of blocks up to ``slot``; a height may be a lie, for orphans are held before they are compared."""
        self._held = {key: held for key, held in self._held.items() if held.slot > slot}
