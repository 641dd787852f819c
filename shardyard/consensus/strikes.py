"""Strikes: how many faults each peer has shown between two final blocks, and whom nobody listens to any more.

Bounds: ``MAX_SENDERS`` peers are counted; every final block gives all a clean sheet.
"""

from typing import Final

from shardyard.ids import NodeId

MAX_STRIKES: Final = 64
"""Faults a peer may show between two final blocks before the rest of what it says is dropped unread."""
MAX_SENDERS: Final = 1024
"""Peers whose faults are counted."""


class Strikes:
    """Faults of peers since the last final block."""

    def __init__(self) -> None:
        self._counts: dict[NodeId, int] = {}

    def count(self, sender: NodeId) -> None:
        """Count a fault of ``sender``."""
        if sender in self._counts or len(self._counts) < MAX_SENDERS:
            self._counts[sender] = self._counts.get(sender, 0) + 1

    def is_muted(self, sender: NodeId) -> bool:
        """Tell whether ``sender`` has shown too many."""
        return self._counts.get(sender, 0) >= MAX_STRIKES

    def clear(self) -> None:
        """Give everybody a clean sheet."""
        self._counts.clear()
