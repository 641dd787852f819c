"""What is said of points: a table, what the beacon's time goes to and where it ends, three plots."""

from collections.abc import Sequence
from typing import Final

import msgspec

from node.bench.plots import Bar, Group, Line, draw_bars
from node.bench.projection import BUSY_LIMIT
from node.scale.meter import OPERATIONS
from node.scale.world import Point

PROJECTION: Final = "projection: real machines in virtual time, costs as measured; not a measured network"
COLUMNS: Final = (
    "shards",
    "validators",
    "beacon",
    "offered/s",
    "final/s",
    "leaving",
    "p50 s",
    "p95 s",
    "block s",
    "beacon block s",
    "beacon block",
    "beacon busy",
    "votes/s beacon, shard",
    "messages/s beacon, shard",
    "bytes/s beacon, shard",
    "wall s",
)
TPS_PLOT, LATENCY_PLOT, LOAD_PLOT = "scale-tps.svg", "scale-latency.svg", "scale-beacon.svg"
SHOWN: Final = 8
"""Operations with a colour of their own: as many as there are colours."""
LATE: Final = 1.5
"""Block times that a beacon block takes on average, above which it comes late."""


def describe_assumptions(point: Point) -> str:
    """Return what the network of ``point`` is, and what is left out."""
    plan = point.plan
    distance = f"{plan.regions} latencies" if plan.regions else "no distances"
    return (
        f"every process has {plan.cores} processors of its own; {plan.shard_nodes} processes per shard share its "
        f"{plan.validators} keys, and {plan.beacon_nodes} those of the beacon's committee, a sample of all validators; "
        f"{distance}, 1 Gbit/s per process; transactions are counted, not executed; left out: JSON-RPC, "
        "gossip of pending transactions, the broker"
    )


def build_row(point: Point) -> tuple[str, ...]:
    """Return a row of the table."""
    plan = point.plan
    return (
        str(plan.shards),
        str(plan.shards * plan.validators),
        str(plan.committee),
        f"{point.offered_tps:,.0f}",
        f"{point.final_tps:,.0f}",
        f"{point.leaving_share:.0%}",
        _describe_s(point.p50_s),
        _describe_s(point.p95_s),
        _describe_s(point.block_interval_s),
        _describe_s(point.beacon_interval_s),
        _describe_bytes(point.beacon_block_bytes),
        f"{point.beacon_busy:.0%}",
        f"{point.votes:,.0f}, {point.shard_votes:,.0f}",
        f"{point.beacon_messages:,.0f}, {point.shard_messages:,.0f}",
        f"{_describe_bytes(point.beacon_bytes)}, {_describe_bytes(point.shard_bytes)}",
        f"{point.wall_s:.0f}",
    )


def _name_shards(count: int) -> str:
    return "1 shard" if count == 1 else f"{count} shards"


def _describe_s(value: float) -> str:
    return f"{value:.2f}" if value else "-"


def _describe_bytes(value: float) -> str:
    for unit, size in (("MB", 1e6), ("kB", 1e3)):
        if value >= size:
            return f"{value / size:.1f} {unit}"
    return f"{value:.0f} B"


def rank_operations(operations: dict[str, float]) -> list[tuple[str, float]]:
    """Return the operations with their shares of a processor, the dearest first."""
    return sorted(operations.items(), key=lambda item: (-item[1], item[0]))


def list_signs(point: Point) -> list[str]:
    """Return by what the beacon is at its end: it has no time left, loses messages, or its blocks come late."""
    signs, block_s = [], point.plan.block_time_ms / 1000
    if point.beacon_busy > BUSY_LIMIT:
        signs.append(
            f"its busiest process is busy {point.beacon_busy:.0%} of the time (over {BUSY_LIMIT:.0%} is saturated)"
        )
    if not point.beacon_interval_s:
        signs.append("fewer than two of its blocks became final")
    elif point.beacon_interval_s > LATE * block_s:
        signs.append(f"a block takes it {point.beacon_interval_s:.2f} s instead of {block_s:g} s")
    if point.beacon_dropped:
        signs.append(f"{point.beacon_dropped:,} messages were lost in its full queues")
    return signs


def is_saturated(point: Point) -> bool:
    """Tell whether the beacon is at its end."""
    return bool(list_signs(point))


def describe_finding(points: Sequence[Point]) -> str:
    """Return at how many shards the beacon saturates, and by what."""
    ordered = sorted(points, key=lambda point: point.plan.shards)
    first = next((point for point in ordered if is_saturated(point)), None)
    shown = first or ordered[-1]
    ranked = rank_operations(shown.beacon_operations)
    named = ", ".join(f"{name} {share:.0%}" for name, share in ranked[:3]) or "nothing"
    if first is None:
        return (
            f"the beacon does not saturate up to {_name_shards(shown.plan.shards)}: its busiest process is busy "
            f"{shown.beacon_busy:.0%} of the time ({named})"
        )
    before = [point.plan.shards for point in ordered if point.plan.shards < first.plan.shards]
    since = (
        f"between {before[-1]} and {first.plan.shards} shards"
        if before
        else f"at {_name_shards(first.plan.shards)}"
    )
    signs = list_signs(first)
    if first.beacon_busy <= BUSY_LIMIT:
        signs.append(f"while its busiest process is busy {first.beacon_busy:.0%} of the time")
    return f"the beacon saturates {since}: at {first.plan.shards} {', '.join(signs)}, first of all by {named}"


def describe_limits(points: Sequence[Point]) -> list[str]:
    """Return what else a reader must know of points: shards at their own end, lost messages."""
    lines = []
    for point in points:
        name = _name_shards(point.plan.shards)
        busy = max(point.shard_busy, point.pool_busy)
        if busy > BUSY_LIMIT:
            lines.append(f"{name}: the busiest shard process is at its own end, a processor busy {busy:.0%}")
        if point.dropped:
            lines.append(f"{name}: {point.dropped:,} messages were lost in full queues")
        if point.plan.committee < point.plan.beacon_committee:
            lines.append(f"{name}: all {point.plan.committee} validators serve the beacon")
    return lines


def draw_plots(points: Sequence[Point]) -> dict[str, str]:
    """Return the plots by file name."""
    ordered = sorted(points, key=lambda point: point.plan.shards)
    labels = [_name_shards(point.plan.shards) for point in ordered]
    tps = [
        Group(label, (_bar(point.offered_tps, 0), _bar(point.final_tps, 1)))
        for label, point in zip(labels, ordered, strict=True)
    ]
    latency = [
        Group(label, (_bar(point.p50_s, 0, " s"), _bar(point.p95_s, 1, " s")))
        for label, point in zip(labels, ordered, strict=True)
    ]
    return {
        TPS_PLOT: draw_bars(
            "Transactions per second against shards (projection)", ("offered", "beacon-final"), tps
        ),
        LATENCY_PLOT: draw_bars(
            "Offered to beacon-final against shards (projection)", ("p50", "p95"), latency
        ),
        LOAD_PLOT: _draw_load(labels, ordered),
    }


def _bar(value: float, colour: int, unit: str = "") -> Bar:
    text = f"{value:.2f}{unit}" if unit else f"{value:,.0f}"
    return Bar((value,), text if value else "none", (colour,))


def _draw_load(labels: Sequence[str], points: Sequence[Point]) -> str:
    """Return the busiest beacon process's time by operation; what has no colour of its own goes into the last."""
    totals = {name: sum(point.beacon_operations.get(name, 0.0) for point in points) for name in OPERATIONS}
    named = [name for name, total in rank_operations(totals) if total][: SHOWN - 1]
    groups = []
    for label, point in zip(labels, points, strict=True):
        parts = [point.beacon_operations.get(name, 0.0) for name in named]
        parts.append(max(0.0, point.beacon_busy - sum(parts)))
        bar = Bar(tuple(100 * part for part in parts), f"{point.beacon_busy:.0%}", tuple(range(len(parts))))
        groups.append(Group(label, (bar,)))
    return draw_bars(
        "Time of the busiest beacon process against shards (projection)",
        (*named, "other"),
        groups,
        (Line(100, "all of its time"),),
    )


def to_json(points: Sequence[Point], costs: object, commit: str) -> dict[str, object]:
    """Return everything as JSON can say it."""
    return {
        "is_projection": True,
        "commit": commit,
        "costs": msgspec.to_builtins(costs),
        "points": msgspec.to_builtins(points),
        "finding": describe_finding(points),
        "limits": describe_limits(points),
    }
