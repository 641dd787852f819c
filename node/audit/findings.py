"""What an audit found: one row per promise, with how much was looked at and everything that breaks it."""

from enum import StrEnum

import msgspec

MAX_LISTED = 20
"""Findings kept in words per promise; all are counted."""


class Promise(StrEnum):
    """What is checked, in the order in which the verdict names it."""

    LOGS = "logs"
    """Every record in every log is whole and of this network."""
    CHAINS = "chains"
    """Every chain begins at its genesis; headers, bodies and proposals fit together; replicas agree (I5)."""
    FINALITY = "finality"
    """Every block has its justification and its finality proof, and no certificates conflict (A1, A2, I6)."""
    EXECUTION = "execution"
    """Executing every block again gives the roots in its header and in the log (I9)."""
    CROSSLINKS = "crosslinks"
    """Every crosslink is what the shard's blocks give, and the beacon's state follows from them (X4)."""
    ORDER = "order"
    """Messages were delivered in the one order that the beacon gives (X5, I3, I4)."""
    EXACTLY_ONCE = "exactly-once"
    """Every message that was due was delivered once (I2)."""
    SUPPLY = "supply"
    """Wei on shards, in flight and burnt add up to genesis at every beacon height (X11, I1)."""
    ANSWERED = "answered"
    """Every transaction that a node answered with its hash is in one final block, or can never be executed."""


class Row(msgspec.Struct):
    """One promise with what was looked at."""

    promise: Promise
    examined: int = 0
    broken: int = 0
    findings: list[str] = msgspec.field(default_factory=list)

    @property
    def held(self) -> bool:
        """Whether nothing breaks it."""
        return self.broken == 0


class Findings:
    """Collects counts and findings."""

    def __init__(self) -> None:
        self.rows = {promise: Row(promise) for promise in Promise}

    def count(self, promise: Promise, amount: int = 1) -> None:
        """Note that ``amount`` more things were looked at."""
        self.rows[promise].examined += amount

    def add(self, promise: Promise, where: str, what: str) -> None:
        """Note that ``promise`` is broken."""
        row = self.rows[promise]
        row.broken += 1
        if len(row.findings) < MAX_LISTED:
            row.findings.append(f"{where}: {what}")

    @property
    def all_held(self) -> bool:
        """Whether every promise held."""
        return all(row.held for row in self.rows.values())
