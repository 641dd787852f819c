"""Faults that one process is told to have, and what its bus makes of those between processes: cut, lossy, late links.

A link is cut, lossy or late at the end that hears: what is published once for everybody must reach some and not others. A
message is judged by its topic before it is opened, so a lost chunk loses its message, as on a real network.
"""

import random
from collections.abc import Sequence
from enum import StrEnum
from typing import Final

import msgspec

from shardyard.ids import NodeId

CERTAIN: Final = 1000
"""Thousandths of all messages: a cut link loses every one."""
MAX_DELAY_MS: Final = 10 * 60 * 1000
MAX_HELD: Final = 8192
MAX_HELD_BYTES: Final = 64 * 1024 * 1024
"""Messages that may be held back at once, and their size; what comes on top is lost."""
_SENDER_LEVEL: Final = 3


class LinkRule(msgspec.Struct, frozen=True, kw_only=True):
    """What becomes of messages from ``senders`` to this process. Times in milliseconds, loss in thousandths."""

    senders: tuple[NodeId, ...]
    lost: int = 0
    delay_ms: int = 0
    jitter_ms: int = 0
    """Added to the delay, up to this much, drawn anew for each message: so messages overtake each other."""


class Mode(StrEnum):
    """How a validator lies; ``node.bus.byzantine`` does it."""

    SILENT = "silent"
    """Sends no proposal, no vote and no certificate."""
    EQUIVOCATE = "equivocate"
    """Two blocks in one slot, one for each half of its peers; two NOTARs in one slot."""
    WITHHOLD = "withhold"
    """Votes for blocks that it gives to nobody."""
    GARBLE = "garble"
    """Votes with a wrong slot, kind, signer or signature."""
    LATE = "late"
    """Proposals, votes and certificates, all too late."""
    BAD_PROPOSER = "bad-proposer"
    """Proposals, properly signed, whose state is not what executing them gives."""


class ByzantineRule(msgspec.Struct, frozen=True, kw_only=True):
    """Which local ``validators`` (positions in the committee) lie, and how."""

    mode: Mode
    validators: tuple[int, ...]
    delay_ms: int = 0


class NodeFaults(msgspec.Struct, frozen=True, kw_only=True):
    """All faults of one process that it makes itself; those of its operating system are the launcher's."""

    links: tuple[LinkRule, ...] = ()
    byzantine: tuple[ByzantineRule, ...] = ()
    disk_delay_ms: int = 0
    """By how much every write takes longer."""

    @property
    def count(self) -> int:
        """How many faults these are."""
        return len(self.links) + len(self.byzantine) + (self.disk_delay_ms > 0)


class Held:
    """How much is held back at the moment."""

    def __init__(self) -> None:
        self.messages = 0
        self.bytes = 0

    def take(self, size: int) -> bool:
        """Count a message of ``size`` bytes as held back, if it may be."""
        if self.messages >= MAX_HELD or self.bytes + size > MAX_HELD_BYTES:
            return False
        self.messages += 1
        self.bytes += size
        return True

    def give_back(self, size: int) -> None:
        """Count a message of ``size`` bytes as held back no more."""
        self.messages -= 1
        self.bytes -= size


class LinkFaults:
    """The links of one process that are not as they should be."""

    def __init__(self, seed: int = 0) -> None:
        self.lost = 0
        self.delayed = 0
        self.held = Held()
        """What is on its way into the process at the moment."""
        self._rules: dict[str, list[LinkRule]] = {}
        self._chance = random.Random(seed)  # noqa: S311 - no secret

    def __bool__(self) -> bool:
        return bool(self._rules)

    def set(self, rules: Sequence[LinkRule]) -> None:
        """Let ``rules`` hold from now on, and no others."""
        self._rules = {}
        for rule in rules:
            for sender in rule.senders:
                self._rules.setdefault(sender, []).append(rule)

    def judge(self, topic: str, size: int) -> float | None:
        """Return by how many seconds a message of ``size`` bytes is late that came by ``topic``; None when it is lost.

        One that is late is held back: whoever lets it in gives its size back to ``held``.
        """
        levels = topic.split("/", _SENDER_LEVEL + 1)
        rules = self._rules.get(levels[_SENDER_LEVEL], ()) if len(levels) > _SENDER_LEVEL else ()
        if any(rule.lost > self._chance.randrange(CERTAIN) for rule in rules):
            self.lost += 1
            return None
        late_ms = sum(rule.delay_ms + self._chance.randint(0, rule.jitter_ms) for rule in rules)
        if late_ms and not self.held.take(size):
            self.lost += 1
            return None
        self.delayed += late_ms > 0
        return late_ms / 1000
