"""``hostile``: what blocks made to hurt a parallel executor cost, over executing them in order.

Two verdicts a block: by how much it is late, and how much processor time it burns. Both are ratios within one interleaved run,
medians over the rounds' own ratios. Lateness says nothing while something else uses the second core; processor time does.
"""

from pathlib import Path

import msgspec

from node.bench.native import NativeBenchError, run_native_bench
from node.bench.report import BenchReport, at_most, build_report

LIMIT = 1.2
"""What a hostile block may cost, in order being one."""


class Row(msgspec.Struct, frozen=True):
    """One hostile block; times in µs per block, of everything that building it takes."""

    block: str
    in_order_wall_us: float
    in_order_cpu_us: float
    wall_us: float
    cpu_us: float
    wall_ratio: float
    cpu_ratio: float


class HostileRun(msgspec.Struct, frozen=True):
    """What the native bench writes."""

    transactions: int
    rounds: int
    threads: int
    rows: tuple[Row, ...]


async def measure_hostile(folder: Path, rounds: int, only: str) -> BenchReport:
    """Run the native bench, which prints its table, and judge."""
    run = await run_native_bench(folder, "hostile", HostileRun, "--rounds", str(rounds), "--only", only)
    if not run.rows:
        raise NativeBenchError(f"got no hostile block with {only!r} in its name. try: --only slot")
    return judge(run)


def judge(run: HostileRun) -> BenchReport:
    """Return the report: two targets a block."""
    targets = [
        target
        for row in run.rows
        for target in (
            at_most(f"{row.block}: time over in order", row.wall_ratio, LIMIT, "times"),
            at_most(f"{row.block}: processor over in order", row.cpu_ratio, LIMIT, "times"),
        )
    ]
    late = max(run.rows, key=lambda row: row.wall_ratio)
    burnt = max(run.rows, key=lambda row: row.cpu_ratio)
    summary = (
        f"at worst {late.wall_ratio:.2f}x the time ({late.block}), "
        f"{burnt.cpu_ratio:.2f}x the processor ({burnt.block})"
    )
    return build_report("hostile", summary, targets, msgspec.to_builtins(run))
