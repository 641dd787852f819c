"""Turns: which replicas of a shard offer a crosslink, and when they do it again (X14).

All replicas of a shard can offer the same crosslink, and one offer is enough: bodies from each of them would fill the
beacon's links the sooner the slower it is. Two offer at once, chosen by the hash of the crosslink before it; while the
beacon accepts none of them, the next two do. The pause before it doubles as long as the beacon's height stands still:
what it cannot hear in time is not heard sooner by being said again. Counts are a replica's own, so turns may overlap or
be left out, but each replica has one at least every ``rounds`` attempts.
"""

from collections.abc import Sequence
from typing import Final

from shardyard.ids import Hash32

OFFERERS: Final = 2
"""Replicas that offer at a time."""
MAX_PAUSE: Final = 16
"""Longest pause, in ticks of the timer."""


class OfferTurns:
    """When one replica is to offer."""

    def __init__(self, keys: Sequence[int], validators: int) -> None:
        """``keys`` are the validators in this process, of ``validators`` in the committee."""
        self._keys = keys
        self._validators = validators
        self._rounds = -(-validators // OFFERERS)
        self._attempt = 0
        self._pause = self._ticks = 1

    def begin(self) -> None:
        """The beacon accepted a crosslink: the next one has its first turn."""
        self._attempt = 0

    def offer(self, parent: Hash32) -> bool:
        """Count an attempt with a crosslink on ``parent`` that is new; tell whether it is this replica's turn."""
        self._pause = self._ticks = 1
        return self._take(parent)

    def tick(self, parent: Hash32) -> bool:
        """Count a tick while a crosslink on ``parent`` is in flight; tell whether to offer it again."""
        self._ticks -= 1
        if self._ticks > 0:
            return False
        self._pause = self._ticks = min(2 * self._pause, MAX_PAUSE)
        return self._take(parent)

    def _take(self, parent: Hash32) -> bool:
        turn = self._attempt % self._rounds
        self._attempt += 1
        first = int.from_bytes(parent[:8], "big")
        return any((key - first) % self._validators // OFFERERS == turn for key in self._keys)
