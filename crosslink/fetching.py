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
MAX_AHEAD: Final = 32
MAX_AHEAD_BYTES: Final = 16 * 1024 * 1024
"""Bodies, and receipts in them, that are on their way for blocks behind the one that waits."""
MAX_BACKOFF: Final = 16
"""Longest pause between two questions, in round trips."""


class BodyFetcher:
    """The questions under way."""

    def __init__(self, preset: Preset) -> None:
        self._round_trip_ms = 2 * preset.delta_ms
        self._replicas = preset.validators_per_shard
        self._missing: OrderedDict[Hash32, Crosslink] = OrderedDict()
        self._ahead: dict[Hash32, int] = {}
        """What blocks behind the waiting one will want, asked for once: bytes of receipts."""
        self._round = 0
        """Turns of the timer: each asks other replicas."""
        self._pause = 0
        """Round trips until the timer fires; 0 while it is not set."""
        self._has_progressed = False
        """A body came since the timer was set."""

    def __contains__(self, crosslink: Hash32) -> bool:
        return crosslink in self._missing or crosslink in self._ahead

    def want(self, missing: Sequence[Crosslink]) -> list[Effect]:
        """Ask for ``missing``, as far as nobody asked yet."""
        effects: list[Effect] = []
        for crosslink in missing:
            key = crosslink.hash
            if key in self._missing or len(self._missing) >= MAX_FETCHES:
                continue
            self._missing[key] = crosslink
            if self._ahead.pop(key, None) is not None:
                continue  # it may be on its way; if it is lost, the timer tells
            request = CrosslinkRequest(key)
            replica = NodeId(f"shard-{crosslink.shard}-{self._round % self._replicas}")
            effects += [Broadcast(request), Send(replica, request)]
        if self._missing and not self._pause:
            effects.append(self._set_timer(1))
        return effects

    def want_ahead(self, missing: Sequence[Crosslink], source: NodeId) -> list[Effect]:
        """Ask ``source``, who has the blocks, for what they will want; as much as there is room for, and each once."""
        effects: list[Effect] = []
        for crosslink in missing:
            key = crosslink.hash
            if key in self:
                continue
            size = sum(link.bytes for link in crosslink.links)
            if len(self._ahead) >= MAX_AHEAD or sum(self._ahead.values()) + size > MAX_AHEAD_BYTES:
                break
            self._ahead[key] = size
            effects.append(Send(source, CrosslinkRequest(key)))
        return effects

    def on_received(self, crosslink: Hash32) -> None:
        """Note that a body came."""
        if crosslink in self:
            self._has_progressed = True
            self._missing.pop(crosslink, None)
            self._ahead.pop(crosslink, None)

    def forget(self) -> None:
        """Start the list anew: whoever still waits says what for."""
        self._missing.clear()

    def settle(self) -> list[Effect]:
        """Stop the timer when nothing is missed any more."""
        if self._missing:
            return []
        self._ahead.clear()  # nobody is behind a block that waits
        if not self._pause:
            return []
        self._pause = 0
        return [CancelTimer(FETCH_TIMER)]

    def turn(self) -> None:
        """The timer fired: start the list anew, and ask others."""
        self.forget()
        self._round += 1

    def schedule(self) -> list[Effect]:
        """Set the timer for the next question, after it fired and the questions were put again."""
        if not self._missing:
            self._pause = 0
            return []
        return [self._set_timer(1 if self._has_progressed else min(self._pause + 1, MAX_BACKOFF))]

    def _set_timer(self, pause: int) -> SetTimer:
        self._pause, self._has_progressed = pause, False
        return SetTimer(FETCH_TIMER, self._round_trip_ms * pause)
