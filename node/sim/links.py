"""How long messages travel: regions and their round trips, jitter with a tail, and links that carry so many bytes a second.

Round trips are published figures: IBM Cloud's documentation for VPC, page "Network latency dashboards", averages in
milliseconds of 27 July to 25 August 2024, between regions and between the three zones of Dallas. One way takes half of it.
Jitter is Pareto distributed (shape 1, cut off): mostly small, now and then dozens of times as much. A message goes up its
sender's link once, however many hear it, for the broker copies it; and down the link of each who hears it.
"""

import random
from collections.abc import Sequence
from typing import Final

import msgspec

from shardyard.errors import ConfigError
from shardyard.ids import NodeId

TAIL_STEPS: Final = 64
"""Jitter is at most this many times its scale; half of all messages have less than one."""
ENVELOPE_BYTES: Final = 180
"""Of an envelope and of the broker's protocol around a message."""
MAX_BACKLOG_MS: Final = 10_000
"""What would have to wait longer than this for a link is dropped: queues of senders and brokers are bounded."""
_TAIL: Final = tuple(TAIL_STEPS * 1024 // (TAIL_STEPS - step) - 1024 for step in range(TAIL_STEPS))


class LatencyTable(msgspec.Struct, frozen=True):
    """Average round trips in milliseconds from each region (row) to each region (column)."""

    regions: tuple[str, ...]
    round_trip_ms: tuple[tuple[float, ...], ...]


_WORLD: Final = LatencyTable(
    regions=(
        "Dallas",
        "Toronto",
        "Washington DC",
        "Frankfurt",
        "London",
        "Madrid",
        "Osaka",
        "Sydney",
        "Tokyo",
        "Sao Paulo",
    ),
    round_trip_ms=(
        (0.09, 34, 31, 123, 113, 119, 150, 186, 143, 146),
        (34, 0.09, 19, 93, 82, 108, 168, 215, 162, 129),
        (31, 19, 0.09, 91, 75, 87, 172, 214, 164, 118),
        (123, 93, 91, 0.09, 13, 29, 232, 250, 233, 198),
        (113, 83, 75, 13, 0.09, 27, 244, 261, 243, 188),
        (122, 106, 88, 29, 27, 0.09, 257, 275, 258, 209),
        (150, 169, 172, 231, 243, 257, 0.09, 122, 9, 293),
        (186, 214, 214, 249, 261, 275, 122, 0.09, 115, 328),
        (143, 162, 166, 233, 244, 256, 9, 115, 0.09, 284),
        (144, 128, 119, 196, 187, 208, 291, 328, 283, 0.09),
    ),
)


def _select(table: LatencyTable, regions: Sequence[str]) -> LatencyTable:
    places = [table.regions.index(region) for region in regions]
    return LatencyTable(
        tuple(regions), tuple(tuple(table.round_trip_ms[row][column] for column in places) for row in places)
    )


TABLES: Final = {
    "lan": LatencyTable(
        ("Dallas 1", "Dallas 2", "Dallas 3"), ((0.09, 2.03, 2.2), (2.03, 0.09, 2.18), (2.2, 2.18, 0.08))
    ),
    "continent": _select(_WORLD, ("Dallas", "Toronto", "Washington DC")),
    "world": _WORLD,
}


def get_table(name: str) -> LatencyTable:
    """Return the table of that name; raises ``ConfigError``."""
    table = TABLES.get(name)
    if table is None:
        raise ConfigError(f"regions: got {name!r}, expected one of {', '.join(TABLES)}; try: world")
    return table


class Links:
    """The links of all nodes: where each node is, how far it is from the others, how busy its link is."""

    def __init__(self, chance: random.Random, regions: str, jitter_ms: int, bandwidth: int) -> None:
        """``regions`` names a table, empty for none; ``bandwidth`` is in bytes per second and direction, 0 for no limit."""
        self._draw = chance.random
        self._jitter_ms = jitter_ms
        self.bandwidth = bandwidth
        self._table = get_table(regions) if regions else LatencyTable((), ())
        self._order = list(self._table.regions)
        chance.shuffle(self._order)
        self._places: dict[NodeId, str] = {}
        self._one_way_ms = {
            (one, other): round(self._table.round_trip_ms[row][column] / 2)
            for row, one in enumerate(self._table.regions)
            for column, other in enumerate(self._table.regions)
        }
        self._up_free_us: dict[NodeId, int] = {}
        self._down_free_us: dict[NodeId, int] = {}

    def place(self, node: NodeId) -> None:
        """Give ``node`` a region: one after the other, so that the nodes of a chain are spread."""
        if self._order and node not in self._places:
            self._places[node] = self._order[len(self._places) % len(self._order)]

    def get_region(self, node: NodeId) -> str:
        """Return where ``node`` is; empty without a table."""
        return self._places.get(node, "")

    def send_up(self, now_ms: int, sender: NodeId, size: int) -> int | None:
        """Return in how many milliseconds a message has left its sender; None when it would have to wait too long."""
        return self._occupy(self._up_free_us, now_ms, sender, size)

    def send_down(self, at_ms: int, receiver: NodeId, size: int) -> int | None:
        """Return how long after ``at_ms`` a message is with its receiver; None when it would have to wait too long."""
        return self._occupy(self._down_free_us, at_ms, receiver, size)

    def _occupy(self, free_us: dict[NodeId, int], at_ms: int, node: NodeId, size: int) -> int | None:
        if not self.bandwidth:
            return 0
        now_us = at_ms * 1000
        begin = max(now_us, free_us.get(node, 0))
        if begin - now_us > MAX_BACKLOG_MS * 1000:
            return None
        free_us[node] = begin + (size + ENVELOPE_BYTES) * 1_000_000 // self.bandwidth
        return (free_us[node] - now_us) // 1000

    def draw_latency(self, sender: NodeId, receiver: NodeId) -> int:
        """Return how long a message travels between two nodes, in milliseconds: half a round trip, and jitter."""
        base = self._one_way_ms[self._places[sender], self._places[receiver]] if self._places else 0
        return base + self._jitter_ms * _TAIL[int(self._draw() * TAIL_STEPS)] // 1024
