"""The end-to-end part of the performance page: rates, costs, what an overload did, and anvil beside it."""

from collections.abc import Sequence
from typing import Any

from node.bench.page_tables import format_rows, name_flood, show_plots
from node.bench.report import BenchReport

INTRODUCTION = """`scripts/bench e2e`: signed beforehand, public JSON-RPC in, beacon-final out; the client on the same machine.
As fast as answered is the peak; the other rates are open loops. All shards, the beacon, the broker and the client share
the cores, so more shards are no more machines: what crosses shards costs a second execution and the beacon's work.

"""
OVERLOADS = """
In overload twice the peak's rate is sent in an open loop; what is refused comes again in its connection's next turn, within
the schedule. Memory is that of the shard that grew most, before and at its largest, without pages of files; slots are those
of the block time that passed, of the slowest shard and of the beacon; the time between blocks is of 95 of 100.

"""
ANVIL = """
Anvil is flooded by the same client, once with the requests of the run beside it and once with smaller ones; it has the machine
to itself, keeps nothing on disk, and mined is all it knows. Its best rate counts.

"""


def write_floods(reports: Sequence[BenchReport], plots: Sequence[str]) -> str:
    """Return the end-to-end part."""
    text = "## End to end\n"
    if not reports:
        return text + "`scripts/bench e2e` has not been run for this page.\n"
    named = [(name_flood(report.details["options"]), report) for report in reports]
    legs = [(kind, leg) for kind, report in named for leg in report.details["legs"]]
    columns = (
        *("kind", "run", "offered/s", "final/s", "p50 s", "p95 s", "lost", "doubled", "core-µs"),
        *("cores", "cores of others", "largest process, MB"),
    )
    text += INTRODUCTION + show_plots(plots, "e2e-rate.svg", "e2e-stages.svg")
    text += format_rows(columns, [_list_leg(kind, leg) for kind, leg in legs])
    text += _write_overloads(named) + _write_anvil(named)
    parts = (
        "kind",
        "run",
        "processor µs by process",
        "clock µs by stage",
        "recovery alone µs",
        "recovery and EVM",
    )
    text += "\n" + format_rows(parts, [_list_parts(kind, leg) for kind, leg in legs])
    promises = [
        (
            kind,
            target.name,
            f"{target.got:,g}",
            f"{target.limit:,g}",
            target.unit,
            "met" if target.held else "**missed**",
        )
        for kind, report in named
        for target in report.targets
    ]
    return text + "\n" + format_rows(("kind", "promise", "got", "limit", "unit", ""), promises)


def _list_leg(kind: str, leg: dict[str, Any]) -> tuple[str, ...]:
    return (
        kind,
        leg["name"],
        f"{leg['offered_tps']:,.0f}",
        f"{leg['final_tps']:,.0f}",
        f"{leg['latency']['p50']:.2f}",
        f"{leg['latency']['p95']:.2f}",
        str(leg["missing"]),
        str(leg["doubled"]),
        f"{leg['cpu_us']['total']:.1f}",
        f"{leg['cores_used']:.2f}",
        f"{leg['cores_others']:.2f}",
        f"{max(leg['largest_mb'].values(), default=0):.0f}",
    )


def _list_parts(kind: str, leg: dict[str, Any]) -> tuple[str, ...]:
    parts = ", ".join(f"{name} {value:.1f}" for name, value in leg["cpu_us"].items())
    clock = ", ".join(f"{name} {value:.1f}" for name, value in leg["stages_us"].items())
    return kind, leg["name"], parts, clock, f"{leg['recovery_us']:.1f}", f"{leg['hot_share']:.0%}"


def _write_overloads(named: Sequence[tuple[str, BenchReport]]) -> str:
    rows = [
        _list_overload(kind, report.details["legs"][0], leg)
        for kind, report in named
        for leg in report.details["legs"]
        if leg.get("role") == "overload"
    ]
    columns = (
        *("kind", "offered/s", "accepted", "refused", "final/s", "of the peak", "memory, MB"),
        *("slots, shards / beacon", "between blocks s", "slow", "empty"),
    )
    return OVERLOADS + format_rows(columns, rows) if rows else ""


def _list_overload(kind: str, peak: dict[str, Any], leg: dict[str, Any]) -> tuple[str, ...]:
    first, largest = leg["first_mb"], leg["largest_mb"]
    grown = max(
        (name for name in first if name.startswith("shard-")), key=lambda name: largest[name] - first[name]
    )
    *shards, beacon = leg["pace"]
    slots = min(pace["of_block_time"] for pace in shards)
    interval = max(pace["interval_p95_s"] for pace in shards)
    return (
        kind,
        f"{leg['offered_tps']:,.0f}",
        f"{leg['accepted']:,}",
        ", ".join(f"{count:,} {said}" for said, count in leg["refusals"].items()) or "none",
        f"{leg['final_tps']:,.0f}",
        f"{leg['final_tps'] / max(1.0, peak['final_tps']):.0%}",
        f"{first[grown]:.0f} to {largest[grown]:.0f}",
        f"{slots:.0%} / {beacon['of_block_time']:.0%}",
        f"{interval:.2f} / {beacon['interval_p95_s']:.2f}",
        str(sum(pace["slow"] for pace in leg["pace"])),
        str(sum(pace["empty"] for pace in shards)),
    )


def _write_anvil(named: Sequence[tuple[str, BenchReport]]) -> str:
    rows = []
    for kind, report in named:
        best = report.details.get("anvil")
        if best is None:
            continue
        peak = report.details["legs"][0]["final_tps"]
        rows += [
            (
                kind,
                leg["version"],
                leg.get("flags", ""),
                f"{leg['connections']} x {leg['batch']}" if "batch" in leg else "",
                f"{leg['mined_tps']:,.0f}" + (" *" if leg["mined_tps"] == best["mined_tps"] else ""),
                f"{peak / max(1.0, leg['mined_tps']):.1f}x",
                f"{leg['cpu_us']:.1f}",
                f"{leg['cores_others']:.2f}",
            )
            for leg in report.details.get("anvil_tries", [best])
        ]
    columns = (
        *("kind", "version", "flags", "connections x batch", "mined/s", "the peak over it"),
        *("core-µs", "cores of others"),
    )
    return ANVIL + format_rows(columns, rows) if rows else ""
