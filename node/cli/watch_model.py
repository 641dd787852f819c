"""What a watcher knows of a network: a lane per chain, and the messages on their way between them.

Entries come from the mirror (``node.bus.watch``) or are made of RPC answers in the same form. Several replicas tell of
the same block, so everything is counted once, by chain and height or by a message's id. The clock is handed in.
"""

from collections import deque
from typing import Any, Final

import msgspec

RECENT_BLOCKS: Final = 12
WINDOW_S: Final = 10.0
"""Rates are over the last this many seconds."""
KEEP_DONE_S: Final = 4.0
"""How long a message stays in sight after its life is over."""
MAX_MESSAGES: Final = 2000

STAGES: Final = ("emitted", "ordered", "executed", "beacon-final")
_STAGE_OF_ENTRY: Final = {"emitted": 0, "beacon-final": 1, "delivered": 2}


class SeenBlock(msgspec.Struct, frozen=True):
    """A final block."""

    height: int
    transactions: int
    deliveries: int


class Lane(msgspec.Struct):
    """One chain."""

    chain: str
    blocks: deque[SeenBlock]
    latest: int = 0
    finalized: int = 0
    slot: int = 0
    faults: int = 0
    last_fault: str = ""
    votes: deque[float] = msgspec.field(default_factory=deque)
    certificates: deque[float] = msgspec.field(default_factory=deque)


class Flight(msgspec.Struct):
    """A message between two shards."""

    id: str
    kind: str
    src: int
    dst: int
    value: int
    stage: int
    since: float
    height: int = 0
    """Block of its destination that executed it."""


class WatchModel:
    """Lanes and flights, put together entry by entry."""

    def __init__(self, shards: int) -> None:
        names = ["beacon", *(f"shard-{shard}" for shard in range(shards))]
        self.lanes = {name: Lane(name, deque(maxlen=RECENT_BLOCKS)) for name in names}
        self.flights: dict[str, Flight] = {}
        self.blocks_seen = 0
        self.messages_done = 0
        self.supply = ""
        self._transactions: deque[tuple[float, int]] = deque()

    def take(self, entry: dict[str, Any], now: float) -> list[str]:
        """Take one entry; return lines for people when it tells something new."""
        lane = self.lanes.get(str(entry.get("chain")))
        if lane is None:
            return []
        kind = str(entry["kind"])
        try:
            match kind:
                case "block.final" | "beacon.final":
                    return self._take_block(lane, entry, now)
                case "vote.cast":
                    _note(lane.votes, now)
                case "certificate.formed":
                    _note(lane.certificates, now)
                case "crosslink.final":
                    return self._take_crosslink(lane, entry, now)
                case _ if kind.startswith("message"):
                    return self._take_message(entry, now)
                case "refused" | "halted" | "block.invalid" | "beacon.invalid":
                    lane.faults += 1
                    lane.last_fault = f"{kind}: {entry.get('reason', entry.get('error', ''))}"[:100]
                    return [f"{lane.chain:<9} {lane.last_fault}"]
                case _:
                    pass
        except (KeyError, TypeError, ValueError):
            lane.faults += 1  # anybody on the broker may write nonsense into the mirror of a chain
        return []

    def _take_block(self, lane: Lane, entry: dict[str, Any], now: float) -> list[str]:
        height = int(entry["height"])
        if height <= lane.latest:
            return []
        lane.latest = height
        lane.slot = int(entry.get("slot", lane.slot))
        if lane.chain == "beacon":
            lane.finalized = height
            links = int(entry.get("crosslinks", 0))
            lane.blocks.append(SeenBlock(height, links, 0))
            self.blocks_seen += 1
            return [f"beacon    #{height:<6} {links} crosslinks"]
        block = SeenBlock(height, int(entry.get("transactions", 0)), int(entry.get("deliveries", 0)))
        lane.blocks.append(block)
        self.blocks_seen += 1
        self._transactions.append((now, block.transactions))
        self._drop_old_transactions(now)
        gas = int(entry.get("gas_used", 0))
        return [
            (
                f"{lane.chain:<9} #{height:<6} {block.transactions} tx, {block.deliveries} deliveries, "
                f"{gas:,} gas, slot {lane.slot}"
            )
        ]

    def _take_crosslink(self, lane: Lane, entry: dict[str, Any], now: float) -> list[str]:
        """A crosslink makes its shard's blocks beacon-final, and with them what those blocks executed."""
        height = int(entry["last_height"])
        if height <= lane.finalized:
            return []
        lane.finalized = height
        count = int(entry.get("messages", 0))
        carried = f", carrying {count} messages" if count else ""
        lines = [f"{lane.chain:<9} #{height:<6} beacon-final{carried}"]
        for flight in self.flights.values():
            if flight.stage == 2 and f"shard-{flight.dst}" == lane.chain and flight.height <= height:
                flight.stage, flight.since = 3, now
                self.messages_done += 1
                lines.append(describe_flight(flight))
        return lines

    def _take_message(self, entry: dict[str, Any], now: float) -> list[str]:
        stage = _STAGE_OF_ENTRY.get(str(entry["stage"]))
        if stage is None:
            return []
        found = self.flights.get(str(entry["id"]))
        if found is None:
            if len(self.flights) >= MAX_MESSAGES:
                self.flights.pop(next(iter(self.flights)))
            found = Flight(
                id=str(entry["id"]),
                kind=str(entry.get("receipt", "message")),
                src=int(entry["src"]),
                dst=int(entry["dst"]),
                value=int(entry.get("value", 0)),
                stage=-1,
                since=now,
            )
            self.flights[found.id] = found
        if stage == 2:
            found.height = int(entry.get("height", 0))
        if stage <= found.stage:
            return []
        found.stage, found.since = stage, now
        return [describe_flight(found)]

    def prune(self, now: float) -> None:
        """Forget what is over."""
        over = [
            flight.id
            for flight in self.flights.values()
            if flight.stage == 3 and now - flight.since > KEEP_DONE_S
        ]
        for found in over:
            del self.flights[found]
        for lane in self.lanes.values():
            _drop_old(lane.votes, now)
            _drop_old(lane.certificates, now)
        self._drop_old_transactions(now)

    def _drop_old_transactions(self, now: float) -> None:
        while self._transactions and now - self._transactions[0][0] > WINDOW_S:
            self._transactions.popleft()

    def compute_tps(self) -> float:
        """Return the user transactions a second of all shards over the window."""
        return sum(count for _, count in self._transactions) / WINDOW_S


def _note(times: deque[float], now: float) -> None:
    """Count one more; whoever only prints lines never prunes, and may watch for days."""
    times.append(now)
    _drop_old(times, now)


def _drop_old(times: deque[float], now: float) -> None:
    while times and now - times[0] > WINDOW_S:
        times.popleft()


def draw_flight(flight: Flight) -> str:
    """Return where a message is on its way, as an arrow from its source to its destination."""
    arrow = ("▶┄┄┄┄┄┄", "──▶┄┄┄┄", "─────▶┄", "──────▶")[max(flight.stage, 0)]
    return f"shard {flight.src} {arrow} shard {flight.dst}"


def describe_flight(flight: Flight) -> str:
    """Return a line about a message."""
    return f"message   {flight.id[:10]}… {flight.kind} {draw_flight(flight)} {STAGES[flight.stage]}"
