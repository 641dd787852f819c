"""``executor``: what the parallel executor gains over sequential revm, as a table of workloads, threads and block sizes.

Cargo builds and runs the native bench, which measures everything in one interleaved run; this module puts the rows into one
table, lets ``pyrevm`` execute the same kinds of blocks beside it, and judges. All figures that are judged are ratios within
the run or rates; neither means anything while something else uses the second core, so the machine's own ceiling is measured in
every round, and a workload that did not have its cores gets no verdict: the report says why and does not hold.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import psutil

from node.bench.native import NativeBenchError, run_native_bench
from node.bench.pyrevm import PyrevmRow, measure_pyrevm
from node.bench.report import BenchReport, Target, at_least, at_most, build_report, say

QUIET_SHARE = 0.85
"""Of the threads' cores, what the most parallel workload must have got for a verdict."""
QUIET_CEILING = 0.8
"""Of the threads, the least that the machine itself must give."""
RAW, ERC20, SWAPS = "raw, disjoint", "ERC-20, disjoint, 1 token", "swaps, 100 pools"
PARALLEL = frozenset({ERC20, SWAPS})
"""Their blocks keep two cores busy whenever there are two."""
CHAINS = ("dependent chain", "counter, plain (one slot)")
SENDS = "sends on one link"
REPLAY = "access-list replay"
"""Part of the variant's name where blocks are replayed with their access list."""
SPEED_UPS = {RAW: 1.3, ERC20: 1.5}
"""Of execution, over the fastest sequential revm, on two threads; of transfers both through the EVM and by the fast path."""
CEILING_SHARES = {SWAPS: 0.92}
REPLAY_SHARE = 0.95
"""Promised of blocks whose transactions do not meet, and of swaps over a hundred pools; the table has it of all."""
CHAIN_SPEED, CHAIN_CORES = 0.95, 1.2
SEND_ABORTS = 0.01
RATES = {(RAW, False): 250_000, (RAW, True): 400_000, (ERC20, False): 150_000, (SWAPS, False): 20_000}
"""Transactions per second with outcomes and commitment, by workload and whether the fast path is taken."""


class ExecutorOptions(msgspec.Struct, frozen=True):
    """What to measure."""

    blocks: tuple[int, ...] = (1000, 10_000)
    threads: tuple[int, ...] = (1, 2)
    rounds: int = 12
    only: str = ""
    """Part of the names of the workloads; all when empty."""
    pyrevm: bool = True


class Ceiling(msgspec.Struct, frozen=True):
    """How many times the work of one thread the machine does on several."""

    threads: int
    alu: float
    memory: float
    samples: int

    @property
    def mean(self) -> float:
        """What an executor can gain at most: it computes and it reads memory."""
        return (self.alu + self.memory) / 2


class Row(msgspec.Struct, frozen=True):
    """One variant of one workload; times in µs per transaction, medians unless they say otherwise."""

    block: int
    transactions: int
    workload: str
    variant: str
    threads: int
    fast_path: bool
    execute_us: float
    execute_p95_us: float
    core_us: float
    """Processor time of execution."""
    total_us: float
    """With outcomes, roots and diff."""
    total_p95_us: float
    cores: float
    sequential: str
    """The fastest sequential variant, which ``speed_up`` is over."""
    speed_up: float
    """Median of the ratios of neighbouring rounds: sequential ran on one core in the one, on the next in the other."""
    estimate: float
    """The speed-up that the block's own statistics claim, without knowing the sequential run."""
    aborts: int
    incarnations: int
    at_turn: int
    solos: int
    rss_mb: float
    alu: float
    """The machine's ceilings in this very workload's rounds; 0 for one thread."""
    memory: float
    ceiling_share: float
    """``speed_up`` over what the machine itself gained in the same rounds, median likewise; 0 for one thread."""

    @property
    def busy(self) -> float:
        """Cores that execution kept busy; ``cores`` has the hashing after it as well, which every core takes part in."""
        return self.core_us / self.execute_us

    @property
    def abort_rate(self) -> float:
        """Executions thrown away per transaction, in the worst round."""
        return self.aborts / self.transactions

    @property
    def rate(self) -> float:
        """Transactions per second with commitment."""
        return 1e6 / self.total_us

    @property
    def has_commitment(self) -> bool:
        """Whether the timer of ``total_us`` holds outcomes and roots; revm by itself makes none."""
        return not self.variant.startswith("revm")


class ExecutorRun(msgspec.Struct, frozen=True):
    """What the native bench writes."""

    rounds: int
    ceilings: tuple[Ceiling, ...]
    rows: tuple[Row, ...]


async def measure_executor(folder: Path, options: ExecutorOptions) -> BenchReport:
    """Run the native bench and pyrevm, print the table, and judge."""
    load = psutil.getloadavg()[0]
    run = await run_native_bench(
        folder,
        "executor",
        ExecutorRun,
        *("--blocks", ",".join(map(str, options.blocks)), "--threads", ",".join(map(str, options.threads))),
        *("--rounds", str(options.rounds), "--only", options.only),
    )
    if not run.rows:
        raise NativeBenchError(f"no workload has {options.only!r} in its name; try: --only raw")
    peers: tuple[PyrevmRow, ...] = ()
    missing = "not asked for"
    if options.pyrevm:
        peers, missing = await measure_pyrevm(folder, max(options.blocks), options.rounds)
    for line in format_table(run, peers, missing, load):
        say(line)
    return judge(run, peers, missing, load)


def judge(run: ExecutorRun, peers: Sequence[PyrevmRow], missing: str, load: float) -> BenchReport:
    """Return the report: verdicts on what was measured while the cores were free, none on the rest."""
    targets = list_targets(run)
    noise = find_noise(run)
    targets += [Target(f"{name}: quiet machine", 0, 1, why, False) for name, why in noise.items()]
    best = {
        row.workload: row.speed_up for row in _list_largest(run) if row.threads == 2 and not row.fast_path
    }
    shown = [
        f"{name} {best[name]:.2f}x" for name in (RAW, ERC20, SWAPS) if name in best and name not in noise
    ]
    if noise:
        shown.append(f"no verdict on {len(noise)} workloads, cores were not free (load average {load:.1f})")
    details: dict[str, Any] = msgspec.to_builtins(run)
    details |= {"pyrevm": msgspec.to_builtins(peers), "pyrevm_missing": missing, "load_1m_before": load}
    details["noise"] = noise
    return build_report("executor", ", ".join(shown) or f"{len(run.rows)} rows", targets, details)


def find_noise(run: ExecutorRun) -> dict[str, str]:
    """Return the workloads of which nothing can be judged, and why: something else used their cores."""
    noise: dict[str, str] = {}
    for row in _list_largest(run):
        if row.threads != 2 or row.fast_path:
            continue
        if row.alu < 2 * QUIET_CEILING:
            noise[row.workload] = f"2 threads did {row.alu:.2f}x the arithmetic of one meanwhile"
        elif row.workload in PARALLEL and row.cores < 2 * QUIET_SHARE:
            noise[row.workload] = f"the block got {row.cores:.2f} of 2 cores"
    return noise


def _list_largest(run: ExecutorRun) -> list[Row]:
    largest = max(row.block for row in run.rows)
    return [row for row in run.rows if row.block == largest]


def list_targets(run: ExecutorRun) -> list[Target]:
    """Return the promises on two threads and the largest block, as far as they were measured."""
    noise = find_noise(run)
    rows = [row for row in _list_largest(run) if row.threads == 2 and row.workload not in noise]
    targets: list[Target] = []
    for row in rows:
        name = f"{row.workload}, {row.variant}"
        is_replay = REPLAY in row.variant
        if is_replay and ("disjoint" in row.workload or row.workload == SWAPS):
            targets.append(
                at_least(f"{name}: share of the ceiling", row.ceiling_share, REPLAY_SHARE, "of it")
            )
        if is_replay:
            pass
        elif (limit := SPEED_UPS.get(row.workload)) is not None:
            targets.append(at_least(f"{name}: over {row.sequential}", row.speed_up, limit, "times"))
        elif row.fast_path:
            pass
        elif (limit := CEILING_SHARES.get(row.workload)) is not None:
            targets.append(at_least(f"{name}: share of the ceiling", row.ceiling_share, limit, "of it"))
        elif row.workload in CHAINS:
            targets.append(at_least(f"{name}: over {row.sequential}", row.speed_up, CHAIN_SPEED, "times"))
            targets.append(at_most(f"{name}: processor", row.busy, CHAIN_CORES, "cores"))
        elif row.workload == SENDS:
            targets.append(at_most(f"{name}: aborts", row.abort_rate, SEND_ABORTS, "of the items"))
        if not is_replay and (rate := RATES.get((row.workload, row.fast_path))) is not None:
            targets.append(at_least(f"{name}: with commitment", row.rate, rate, "transactions/s"))
    return targets


# --- the table ---

COLUMNS = (
    *("block", "workload", "variant", "execute µs", "p95", "speed-up", "of ceiling", "core-µs"),
    *("total µs", "p95", "TPS", "cores", "aborts", "runs", "estimate", "MB"),
)


def build_cells(rows: Iterable[Row]) -> list[tuple[str, ...]]:
    """Return the cells of the table, one tuple a row."""
    cells: list[tuple[str, ...]] = []
    for row in rows:
        is_parallel = row.threads > 1
        cells.append(
            (
                f"{row.block}",
                row.workload,
                row.variant + (" *" if row.variant == row.sequential else ""),
                f"{row.execute_us:.2f}",
                f"{row.execute_p95_us:.2f}",
                f"{row.speed_up:.2f}x",
                f"{row.ceiling_share:.0%}" if is_parallel else "",
                f"{row.core_us:.2f}",
                f"{row.total_us:.2f}" if row.has_commitment else "",
                f"{row.total_p95_us:.2f}" if row.has_commitment else "",
                f"{row.rate:,.0f}" if row.has_commitment else "",
                f"{row.cores:.2f}",
                f"{row.abort_rate:.1%}" if is_parallel else "",
                f"{row.incarnations / row.transactions:.2f}" if is_parallel else "",
                f"{row.estimate:.2f}x" if is_parallel else "",
                f"{row.rss_mb:.0f}",
            )
        )
    return cells


def format_table(run: ExecutorRun, peers: Sequence[PyrevmRow], missing: str, load: float) -> list[str]:
    """Return the lines of the table, with what has to be known to read it."""
    lines = [f"load average before: {load:.2f}; medians of {run.rounds} rounds, all variants in each round"]
    lines += [
        f"{ceiling.threads} threads do {ceiling.alu:.2f}x the arithmetic and {ceiling.memory:.2f}x the memory work of "
        f"one (medians of {ceiling.samples}, measured between the blocks)"
        for ceiling in run.ceilings
    ]
    cells = [COLUMNS, *build_cells(run.rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(COLUMNS))]
    for row in cells:
        lines.append(
            "  ".join(
                cell.ljust(width) if column in {1, 2} else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
        )
    lines.append(
        "* the fastest sequential variant, which speed-ups are over; runs: executions per transaction"
    )
    lines += [
        f"pyrevm {peer.version}, sequential, without nonce, fee, outcome or commitment: {peer.workload} "
        f"{peer.us:.2f} µs, {1e6 / peer.us:,.0f}/s"
        for peer in peers
    ]
    if missing:
        lines.append(f"pyrevm: {missing}")
    return lines
