"""Fetching missing bodies: what is asked for, of whom, how often (X10, L9).

The first question goes out at once: to beacon replicas by broadcast and to a replica of the shard by name. A timer asks
again, another replica each time, for as long as a vote, a proposal or a final block waits for it; its pauses grow while
nothing comes. Who catches up asks whoever sent a range of blocks for the bodies of all of them, once: one block after the
other they would cost a round trip each (G1).
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

from shardyard.crosslinks import Crosslink
from shardyard.effects import Broadcast, CancelTimer, Effect, Send, SetTimer
from shardyard.ids import Hash32, NodeId
from shardyard.messages import CrosslinkRequest
from shardyard.preset import Preset

FETCH_TIMER: Final = "crosslink.fetch"
MAX_FETCHES: Final = 32
"""Missing bodies asked for at a time; the rest is asked for when these came."""
MAX_AHEAD_BYTES: Final = 16 * 1024 * 1024
"""Of receipts asked for on behalf of blocks behind the one that waits, in one question."""
MAX_BACKOFF: Final = 16
"""Longest pause between two questions, in round trips."""


class BodyFetcher:
    """The questions under way."""

    def __init__(self, preset: Preset) -> None:
        self._round_trip_ms = 2 * preset.delta_ms
        self._replicas = preset.validators_per_shard
        self._missing: OrderedDict[Hash32, Crosslink] = OrderedDict()
        self._attempt = 0
        self._has_progressed = False
        """A body came since the timer was set."""

    def __contains__(self, crosslink: Hash32) -> bool:
        return crosslink in self._missing

    def want(self, missing: Sequence[Crosslink]) -> list[Effect]:
        """Ask for ``missing``, as far as nobody asked yet."""
        effects: list[Effect] = []
        for crosslink in missing:
            key = crosslink.hash
            if key not in self._missing and len(self._missing) < MAX_FETCHES:
                self._missing[key] = crosslink
                request = CrosslinkRequest(key)
                replica = NodeId(f"shard-{crosslink.shard}-{self._attempt % self._replicas}")
                effects += [Broadcast(request), Send(replica, request)]
        if effects and not self._attempt:
            self._attempt = 1
            effects.append(SetTimer(FETCH_TIMER, self._round_trip_ms))
        return effects

    def want_ahead(self, missing: Sequence[Crosslink], source: NodeId) -> list[Effect]:
        """Ask ``source``, who has the blocks, for what they will want; as much as there is room for, and not again.

        What does not come is asked for when its block has become the next.
        """
        effects: list[Effect] = []
        size = 0
        for crosslink in missing:
            key = crosslink.hash
            size += sum(link.bytes for link in crosslink.links)
            if key in self._missing:
                continue
            if len(self._missing) >= MAX_FETCHES or size > MAX_AHEAD_BYTES:
                break
            self._missing[key] = crosslink
            effects.append(Send(source, CrosslinkRequest(key)))
        return effects

    def on_received(self, crosslink: Hash32) -> None:
        """Note that a body came."""
        self._has_progressed |= self._missing.pop(crosslink, None) is not None

    def forget(self) -> None:
        """Start the list anew: whoever still waits says what for."""
        self._missing.clear()

    def settle(self) -> list[Effect]:
        """Stop the timer when nothing is missed any more."""
        if self._missing or not self._attempt:
            return []
        self._attempt = 0
        return [CancelTimer(FETCH_TIMER)]

    def schedule(self) -> list[Effect]:
        """Set the timer for the next question, after the timer fired and the questions were put again."""
        if not self._missing:
            self._attempt = 0
            return []
        self._attempt = 1 if self._has_progressed else min(self._attempt + 1, MAX_BACKOFF)
        self._has_progressed = False
        return [SetTimer(FETCH_TIMER, self._round_trip_ms * self._attempt)]
