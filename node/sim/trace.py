"""The trace of a run: a hash that two runs of one seed must share (I15), and lines for people when asked for.

What enters the hash is what happened, in order: instant, node, event, and what identifies it. No address of an object, no
iteration order of a set and no wall clock can enter, so a difference means that a machine is not deterministic.
"""

from collections.abc import Callable
from hashlib import blake2b
from typing import Final

LINES_AT_A_TIME: Final = 512


class Trace:
    """Takes every event of a run."""

    def __init__(self, show: Callable[[str], None] | None = None) -> None:
        self._hasher = blake2b(digest_size=16)
        self._lines: list[str] = []
        self._show = show
        self.count = 0

    @property
    def is_shown(self) -> bool:
        """Whether somebody reads along: only then are lines worth composing."""
        return self._show is not None

    def add(self, now_ms: int, node: str, kind: str, detail: bytes = b"") -> None:
        """Take one event into the hash."""
        self.count += 1
        self._lines.append(f"{now_ms} {node} {kind} {detail.hex() if detail else ''}")
        if len(self._lines) >= LINES_AT_A_TIME:
            self._hash_lines()

    def tell(self, now_ms: int, node: str, text: str) -> None:
        """Show a line to whoever reads along."""
        if self._show is not None:
            self._show(f"{now_ms / 1000:10.3f}  {node:<12} {text}")

    def compute_hash(self) -> str:
        """Return the hash of everything so far."""
        self._hash_lines()
        return self._hasher.hexdigest()

    def _hash_lines(self) -> None:
        self._hasher.update("".join(f"{line}\n" for line in self._lines).encode())
        self._lines.clear()
