"""What every part of the performance page is written with: tables, plots, the names of runs, what was promised."""

from collections.abc import Iterable, Sequence
from typing import Any

from node.bench.report import BenchReport


def format_rows(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def show_plots(plots: Sequence[str], *names: str) -> str:
    """Return the pictures among ``names`` that were drawn."""
    return "".join(f"![{name[:-4]}](plots/{name})\n\n" for name in names if name in plots)


def name_flood(options: dict[str, Any]) -> str:
    """Return what an end-to-end run sent."""
    shards = (
        "1 shard" if options["shards"] == 1 else f"{options['shards']} shards, {options['cross']:.0%} across"
    )
    return f"{options['kind']}, {shards}"


def name_report(report: BenchReport) -> str:
    """Return what a report is of."""
    return f"e2e, {name_flood(report.details['options'])}" if report.bench == "e2e" else report.bench


def write_targets(report: BenchReport) -> str:
    """Return what was promised of a report, and what came of it."""
    rows = [
        (
            target.name,
            f"{target.got:,g}",
            f"{target.limit:,g}",
            target.unit,
            "met" if target.held else "**missed**",
        )
        for target in report.targets
    ]
    return format_rows(("promise", "got", "limit", "unit", ""), rows)
