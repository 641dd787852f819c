"""The trace of a run: a hash that two runs of one seed must share (I15), and lines for people when asked for.

What enters the hash is what happened, in order: instant, node, event, and what identifies it. No address of an object, no
iteration order of a set and no wall clock can enter, so a difference means that a machine is not deterministic.
"""

from collections.abc import Callable
from hashlib import blake2b


class Trace:
    """Takes every event of a run."""

    def __init__(self, show: Callable[[str], None] | None = None) -> None:
        self._hasher = blake2b(digest_size=16)
        self._show = show
        self.count = 0

    @property
    def is_shown(self) -> bool:
        """Whether somebody reads along: only then are lines worth composing."""
        return self._show is not None

    def add(self, now_ms: int, node: str, kind: str, detail: bytes = b"") -> None:
        """Take one event into the hash."""
        self.count += 1
        self._hasher.update(b"%d %s %s %s\n" % (now_ms, node.encode(), kind.encode(), detail))

    def tell(self, now_ms: int, node: str, text: str) -> None:
        """Show a line to whoever reads along."""
        if self._show is not None:
            self._show(f"{now_ms / 1000:10.3f}  {node:<12} {text}")

    def compute_hash(self) -> str:
        """Return the hash of everything so far."""
        return self._hasher.hexdigest()
