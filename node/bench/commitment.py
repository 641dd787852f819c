"""``commitment``: what hashing a block costs: per element, per leaf, per transaction, on one thread and on several.

The figures that must hold are processor time, not waiting time, so a busy machine changes them little. They are what the
executor's rates leave for hashing: 400,000 transfers/s on two cores are 5 µs a transfer, 150,000 token calls/s 13.3 µs.
"""

from pathlib import Path

import msgspec

from node.bench.native import NativeBenchError, run_native_bench
from node.bench.report import BenchReport, at_most, build_report

TRANSFER = "block of transfers"
CALL = "block of token calls"
LIMITS_US = {TRANSFER: 2.2, CALL: 3.3}
"""Processor time of all hashing, per transaction of the largest block, on one thread."""


class Row(msgspec.Struct, frozen=True):
    """One line of the table; times are medians in µs per ``per``."""

    what: str
    inside: str
    """What is inside the timer."""
    per: str
    threads: int
    block: int
    wall_us: float
    cpu_us: float


async def measure_commitment(folder: Path) -> BenchReport:
    """Run the native bench and judge the whole blocks."""
    return judge(await run_native_bench(folder, "commitment", list[Row]))


def judge(rows: list[Row]) -> BenchReport:
    """Return the report of these rows.

    Raises:
        NativeBenchError: a row that is judged is missing.

    """
    largest = max((row.block for row in rows), default=0)
    costs = {row.what: row.cpu_us for row in rows if row.block == largest and row.threads == 1}
    missing = [what for what in LIMITS_US if what not in costs]
    if missing:
        raise NativeBenchError(
            f"got no figure for {', '.join(missing)}, expected one each. try: --threads with 1"
        )
    targets = [
        at_most(f"{what}, all hashing, per transaction", costs[what], limit, "µs of a core")
        for what, limit in LIMITS_US.items()
    ]
    summary = (
        f"blocks of {largest}: {costs[TRANSFER]:.2f} µs of a core to hash a transfer, "
        f"{costs[CALL]:.2f} µs a token call"
    )
    return build_report("commitment", summary, targets, {"rows": msgspec.to_builtins(rows)})
