"""Which plots the performance page shows, and what is in them."""

from typing import Any

import msgspec

from node.bench.executor import ExecutorRun, Row
from node.bench.page_tables import name_flood
from node.bench.page_text import Reports
from node.bench.plots import Bar, Group, Line, draw_bars

SPEED_UP, RATE, COMMITMENT, STAGES = "speed-up.svg", "rate.svg", "commitment.svg", "e2e-stages.svg"
FLOODS = "e2e-rate.svg"
SHORT = {"peak": "peak", "overload": "overload"}
"""Legs whose names are longer than the margin of a plot."""


def draw_plots(reports: Reports) -> dict[str, str]:
    """Return the plots by file name, as far as there are figures for them."""
    plots: dict[str, str] = {}
    if reports.executor is not None:
        run = msgspec.convert(reports.executor.details, ExecutorRun)
        plots[SPEED_UP] = draw_speed_up(run)
        plots[RATE] = draw_rate(run)
    if reports.commitment is not None:
        plots[COMMITMENT] = draw_commitment(reports.commitment.details["rows"])
    if reports.e2e:
        plots[FLOODS] = draw_floods([report.details for report in reports.e2e])
        plots[STAGES] = draw_stages([report.details for report in reports.e2e])
    return plots


def group_rows(run: ExecutorRun) -> dict[str, list[Row]]:
    """Return this executor's rows of the largest blocks, by workload."""
    largest = max(row.block for row in run.rows)
    grouped: dict[str, list[Row]] = {}
    for row in run.rows:
        if row.block == largest and row.has_commitment:
            grouped.setdefault(row.workload, []).append(row)
    return grouped


def _list_variants(run: ExecutorRun, *, is_parallel: bool) -> list[str]:
    rows = [row for rows in group_rows(run).values() for row in rows]
    return list(dict.fromkeys(row.variant for row in rows if not is_parallel or row.threads > 1))


def draw_speed_up(run: ExecutorRun) -> str:
    """Return speed-ups of execution over the fastest sequential revm, with the machine's ceiling."""
    variants = _list_variants(run, is_parallel=True)
    groups = [
        Group(
            workload,
            tuple(
                Bar((row.speed_up,), f"{row.speed_up:.2f}x", (variants.index(row.variant),))
                for row in rows
                if row.threads > 1
            ),
        )
        for workload, rows in group_rows(run).items()
    ]
    lines = [Line(1, "sequential")]
    lines += [Line(found.mean, f"ceiling of {found.threads} threads") for found in run.ceilings]
    return draw_bars(
        "Execution: speed-up over the fastest sequential revm",
        [f"{name} path" if name.endswith("EVM") else name for name in variants],
        groups,
        lines,
    )


def draw_rate(run: ExecutorRun) -> str:
    """Return transactions per second with outcomes and commitment."""
    variants = _list_variants(run, is_parallel=False)
    groups = [
        Group(
            workload,
            tuple(Bar((row.rate,), f"{row.rate:,.0f}", (variants.index(row.variant),)) for row in rows),
        )
        for workload, rows in group_rows(run).items()
    ]
    return draw_bars("Transactions per second with outcomes and commitment", variants, groups)


def draw_commitment(rows: list[dict[str, Any]]) -> str:
    """Return the processor time of hashing, by what is hashed, for the largest size of each."""
    largest: dict[tuple[str, int], dict[str, Any]] = {}
    for row in sorted(rows, key=lambda row: int(row["block"])):
        largest[row["what"], row["threads"]] = row
    threads = sorted({count for _, count in largest})
    groups = []
    for what in dict.fromkeys(row["what"] for row in rows):
        found = {count: largest[what, count] for count in threads if (what, count) in largest}
        bars = (
            Bar(
                (row["cpu_us"],),
                f"{row['cpu_us']:.2f} of a core, {row['wall_us']:.2f} µs",
                (threads.index(count),),
            )
            for count, row in found.items()
        )
        per = next(iter(found.values()))["per"]
        groups.append(Group(f"{what}, per {per}", tuple(bars)))
    legend = [f"{count} thread{'s' if count > 1 else ''}" for count in threads]
    return draw_bars("Hashing: processor time, and time on the clock", legend, groups)


def draw_stages(found: list[dict[str, Any]]) -> str:
    """Return the processor time of a final transaction, by process."""
    legs = [(name_flood(details["options"]), leg) for details in found for leg in details["legs"]]
    names = list(dict.fromkeys(name for _, leg in legs for name in leg["cpu_us"] if name != "total"))
    groups = [
        Group(
            f"{kind}, {SHORT.get(leg.get('role', ''), leg['name'])}",
            (
                Bar(
                    tuple(leg["cpu_us"].get(name, 0.0) for name in names),
                    f"{leg['cpu_us']['total']:.0f} µs, {leg['final_tps']:,.0f}/s",
                    tuple(range(len(names))),
                ),
            ),
        )
        for kind, leg in legs
    ]
    return draw_bars("End to end: processor time per beacon-final transaction", names, groups)


def draw_floods(found: list[dict[str, Any]]) -> str:
    """Return the rates end to end by what is sent, shards and share across; overload and anvil beside the one shard."""
    rates: dict[str, list[tuple[str, float]]] = {}
    for details in found:
        options, legs = details["options"], details["legs"]
        shards = options["shards"]
        group = rates.setdefault(f"{options['kind']}, {shards} shard{'s' if shards > 1 else ''}", [])
        group.append((f"{options['cross']:.0%} across", legs[0]["final_tps"]))
        group += [("in overload", leg["final_tps"]) for leg in legs if leg.get("role") == "overload"]
        if (anvil := details.get("anvil")) is not None:
            group.append(("anvil, mined", anvil["mined_tps"]))
    legend = list(dict.fromkeys(label for group in rates.values() for label, _ in group))
    groups = [
        Group(name, tuple(Bar((rate,), f"{rate:,.0f}", (legend.index(label),)) for label, rate in group))
        for name, group in rates.items()
    ]
    return draw_bars("End to end: beacon-final transactions per second, all shards together", legend, groups)
