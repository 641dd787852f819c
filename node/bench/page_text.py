"""The words and tables of docs/performance.md, made from reports."""

from collections.abc import Sequence

import msgspec

from node.bench.executor import COLUMNS, REPLAY, ExecutorRun, build_cells
from node.bench.page_floods import write_floods
from node.bench.page_tables import format_rows, name_report, show_plots, write_targets
from node.bench.report import BenchReport

OPENING = """# Performance

Made by `scripts/bench page`, which runs every bench below and writes this page, its plots and its reports
([JSON](performance/)) anew: edit `node/bench/page_text.py`, not this page. `scripts/bench page --only e2e` measures one part,
which takes half an hour on two cores; what has a report of the same code is kept, so a run that was stopped goes on, and
`--force` measures all the same. `scripts/bench page --render` makes the page of the reports that are there.
"""
REVM_TIMER = (
    "nonces, fees, EVM, journal (`revm`: one journal for the block on this store; `revm CacheDB`: revm's own cache, each "
    "transaction committed)"
)
E2E_TIMER = (
    "JSON-RPC in, decoding, recovery, mempool, journal on disk, building, execution, votes, block log, crosslink to the beacon, "
    "index"
)
TIMERS = (
    (
        "`execute`",
        "nonces, fees, refusals, EVM or fast path, versions, validation, commit in order, up to the last change of the state",
        "sender recovery, outcomes, hashing",
    ),
    (
        "`total` and TPS",
        "`execute`, outcomes, bloom, all roots (LtHash of the state, Merkle roots), the encoded diff",
        "sender recovery, consensus, disk, network",
    ),
    ("sequential revm", REVM_TIMER, "outcomes, hashing, refusals, fast path"),
    ("`in order`", "the same as `execute`, on one thread and one state", "versions, fast path"),
    (
        "`pyrevm`",
        "a call from Python into revm per transaction, commit at the end",
        "nonces, fees, outcomes, hashing",
    ),
    ("end to end", E2E_TIMER, "signing (before the clock starts)"),
)
READING = """
Speed-ups are over the fastest sequential variant of the same round set (marked `*`), never over this executor on one thread.
A speed-up is the median of the ratios of neighbouring rounds: sequential revm runs on one core in the one and on the next in
the other, for cores of a shared machine differ in speed from second to second. Where the core that sequential revm ran on was
the slower one, two threads gain more than twice. "Of ceiling" is the speed-up as a share of what the machine's own threads gain
in the same rounds over one thread on the same core: the mean of arithmetic and of memory no cache holds, each thread's rate
added up. `core-µs` is processor time of execution; `aborts` are executions thrown away per transaction in the worst round,
`runs` executions per transaction. The fast path (transfers between accounts without code, no interpreter) is apart. `MB` is
resident memory of the bench, which holds a state per variant. A delta counter is plain credits to one account: they commute, so
nothing waits.
"""
REFERENCES = """## Beside the limits
Every Ethereum transaction carries one secp256k1 signature, so no chain of this kind can take more per core than one core
recovers: that is the limit end to end. Execution alone is bound by the EVM's work per core times the machine's ceiling.

| published, 32 cores, execution only, no signatures, no root | per second | over sequential |
|---|---|---|
| Block-STM (Aptos, paper) | 170,000 | |
| pevm, raw transfers / ERC-20 / swaps | 844,000 / 610,000 / 343,000 | 2.8x / 4.1x / 22x |
| Sei, 12 cores, end to end | 70,000 | |

On two threads Amdahl's law allows about 1.5x, 1.6x and 1.95x over sequential for the three kinds of pevm's figures.
"""
CLAIMS = """## The speed-up that a block claims
`shardyard block show` gives each block a speed-up without running it twice: the time of the executions that counted, summed
over all threads from a sample of every sixteenth item, over the time of execution. Here it is beside the measured one. It is
higher where reading through versions makes an item slower than it is alone, and where `in order` is not the fastest sequential
variant.
"""


class Reports(msgspec.Struct, frozen=True):
    """What the page is made of."""

    executor: BenchReport | None
    commitment: BenchReport | None
    e2e: tuple[BenchReport, ...]
    recovery_us: float
    """Processor time to recover one sender; 0 when it was not measured."""

    def list_all(self) -> list[BenchReport]:
        """Return the reports that are there."""
        return [found for found in (self.executor, self.commitment, *self.e2e) if found is not None]


class PageParts(msgspec.Struct, frozen=True):
    """The reports, and the plots made of them."""

    reports: Reports
    plots: tuple[str, ...]


def write_page(parts: PageParts) -> str:
    """Return the page."""
    reports = parts.reports
    timers = format_rows(("figure", "inside", "not inside"), TIMERS)
    sections = [OPENING, _write_runs(reports), f"## What is inside each timer\n{timers}{READING}"]
    if reports.executor is not None:
        sections.append(_write_executor(reports.executor, parts.plots))
    sections.append(REFERENCES + _write_limits(reports))
    if reports.executor is not None:
        sections.append(CLAIMS + "\n" + _write_claims(reports.executor))
    if reports.commitment is not None:
        sections.append(_write_commitment(reports.commitment, parts.plots))
    sections.append(write_floods(reports.e2e, parts.plots))
    return "\n".join(section.rstrip() + "\n" for section in sections)


def _write_runs(reports: Reports) -> str:
    rows = []
    for report in reports.list_all():
        machine = report.machine
        rows.append(
            (
                name_report(report),
                f"{machine.get('cpu', 'unknown')}, {machine['cores']} cores, {machine['memory_gb']} GB, {machine['system']}",
                str(machine["time"]),
                f"`{machine.get('commit', 'unknown')}`",
                f"{machine['load_1m']:.2f}",
                f"{machine['took_s']} s" if "took_s" in machine else "",
                "all met" if report.held else f"{sum(not t.held for t in report.targets)} missed",
            )
        )
    table = format_rows(("bench", "machine", "finished", "commit", "load, 1 min", "took", "promises"), rows)
    noise = reports.executor.details.get("noise") if reports.executor is not None else {}
    warning = (
        f"\n**While {len(noise)} of the executor's workloads were measured, the machine was busy with something else; only "
        f"processor times (`core-µs`) prove anything:** {', '.join(sorted(noise))}.\n"
        if noise
        else ""
    )
    return "## Runs\n" + table + warning


def _write_executor(report: BenchReport, plots: Sequence[str]) -> str:
    run = msgspec.convert(report.details, ExecutorRun)
    ceilings = "".join(
        f"{found.threads} threads do {found.alu:.2f}x the arithmetic and {found.memory:.2f}x the memory work of one "
        f"(medians of {found.samples}). "
        for found in run.ceilings
    )
    peers = [
        (
            f"pyrevm {peer['version']}, sequential, from Python",
            peer["workload"],
            f"{peer['us']:.2f}",
            f"{1e6 / peer['us']:,.0f}",
            _compare(run, peer["workload"], 1e6 / peer["us"]),
        )
        for peer in report.details["pyrevm"]
    ]
    text = f"## The executor\n`scripts/bench executor`. {ceilings}Medians of {run.rounds} rounds; times per transaction.\n\n"
    text += write_targets(report) + "\n" + show_plots(plots, "speed-up.svg", "rate.svg")
    text += format_rows(COLUMNS, build_cells(run.rows)) + "\n"
    if peers:
        text += format_rows(("beside it", "workload", "µs", "per second", "here, with commitment"), peers)
    else:
        text += f"`pyrevm`: {report.details['pyrevm_missing']}.\n"
    return text


def _compare(run: ExecutorRun, workload: str, rate: float) -> str:
    """Return the rates of a workload's largest blocks on two threads, and how many times ``rate`` they are."""
    rows = [
        row for row in run.rows if row.workload == workload and row.threads == 2 and REPLAY not in row.variant
    ]
    largest = max((row.block for row in rows), default=0)
    return "; ".join(
        f"{row.variant}: {row.rate:,.0f} ({row.rate / rate:.2f}x)" for row in rows if row.block == largest
    )


def _write_limits(reports: Reports) -> str:
    text = ""
    if reports.recovery_us:
        text += (
            f"\nHere one core recovers a sender in {reports.recovery_us:.1f} µs of its time (`Core.prepare`, decoding and "
            f"hashing included): {1e6 / reports.recovery_us:,.0f} signed transactions per second and core.\n"
        )
    return text


def _write_claims(report: BenchReport) -> str:
    run = msgspec.convert(report.details, ExecutorRun)
    in_order = {
        (row.block, row.workload, row.fast_path): row.execute_us
        for row in run.rows
        if row.threads == 1 and row.has_commitment
    }
    rows = [
        (
            str(row.block),
            row.workload,
            row.variant,
            f"{row.estimate:.2f}x",
            f"{in_order[row.block, row.workload, row.fast_path] / row.execute_us:.2f}x",
            f"{row.speed_up:.2f}x",
        )
        for row in run.rows
        # How the items of a replayed block ran is not told, so nothing is claimed.
        if row.threads > 1
        and REPLAY not in row.variant
        and row.block == max(found.block for found in run.rows)
    ]
    return format_rows(
        ("block", "workload", "variant", "claimed", "over in order", "over sequential revm"), rows
    )


def _write_commitment(report: BenchReport, plots: Sequence[str]) -> str:
    rows = [
        (
            row["what"],
            row["inside"],
            row["per"],
            str(row["threads"]),
            str(row["block"]),
            f"{row['cpu_us']:.3f}",
            f"{row['wall_us']:.3f}",
        )
        for row in report.details["rows"]
    ]
    columns = ("what", "inside the timer", "per", "threads", "of", "core-µs", "µs")
    text = "## The commitment alone\n`scripts/bench commitment`: " + report.summary + ".\n\n"
    return (
        text + show_plots(plots, "commitment.svg") + write_targets(report) + "\n" + format_rows(columns, rows)
    )
