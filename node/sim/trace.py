"""The trace of a run: a hash that two runs of one seed must share (I15), and whoever listens to what happens.

What enters the hash is what happened, in order: instant, node, event, what was signed, which blocks became final, and whom a
fault hit. No address of an object, no iteration order of a set and no wall clock can enter, so a difference means that a
machine is not deterministic.
"""

from collections.abc import Sequence
from hashlib import blake2b
from typing import Final, Protocol

from shardyard.effects import Effect
from shardyard.events import Event

LINES_AT_A_TIME: Final = 512


class Listener(Protocol):
    """Hears of everything that happens; what it does has no part in the run."""

    def on_step(self, now_ms: int, node: str, event: Event, effects: Sequence[Effect]) -> None:
        """A machine took an event and asked for effects."""
        ...

    def on_word(self, now_ms: int, who: str, text: str) -> None:
        """Somebody who is no machine did something."""
        ...


class Trace:
    """Takes every event of a run."""

    def __init__(self, listener: Listener | None = None) -> None:
        self._hasher = blake2b(digest_size=16)
        self._lines: list[str] = []
        self._listener = listener
        self.count = 0

    def add(self, now_ms: int, node: str, kind: str, detail: bytes = b"") -> None:
        """Take one event into the hash."""
        self.count += 1
        self._lines.append(f"{now_ms} {node} {kind} {detail.hex() if detail else ''}")
        if len(self._lines) >= LINES_AT_A_TIME:
            self._hash_lines()

    def step(self, now_ms: int, node: str, event: Event, effects: Sequence[Effect]) -> None:
        """Say what a machine did, if anybody listens."""
        if self._listener is not None:
            self._listener.on_step(now_ms, node, event, effects)

    def tell(self, now_ms: int, who: str, text: str) -> None:
        """Say what somebody else did, if anybody listens."""
        if self._listener is not None:
            self._listener.on_word(now_ms, who, text)

    def compute_hash(self) -> str:
        """Return the hash of everything so far."""
        self._hash_lines()
        return self._hasher.hexdigest()

    def _hash_lines(self) -> None:
        self._hasher.update("".join(f"{line}\n" for line in self._lines).encode())
        self._lines.clear()
