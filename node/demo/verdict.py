"""The verdict of the demo: one line per promise with what it rests on, and the same as JSON."""

import json
import sys
from pathlib import Path

import msgspec

from node.audit.audit import AuditReport
from node.audit.findings import Promise
from node.bench.recovery import Recovery
from node.demo.contracts import Story
from node.load.result import LoadResult

REPORT_VERSION = 1
NETWORK_PROMISES = (
    Promise.SUPPLY,
    Promise.EXACTLY_ONCE,
    Promise.ORDER,
    Promise.FINALITY,
    Promise.EXECUTION,
    Promise.CROSSLINKS,
    Promise.CHAINS,
    Promise.LOGS,
    Promise.ANSWERED,
)
_EXAMINED = {
    Promise.SUPPLY: "beacon heights and crosslinks",
    Promise.EXACTLY_ONCE: "messages delivered",
    Promise.ORDER: "messages emitted, and queued by logs",
    Promise.FINALITY: "proofs and certificates",
    Promise.EXECUTION: "blocks executed again",
    Promise.CROSSLINKS: "crosslinks, twice",
    Promise.CHAINS: "blocks",
    Promise.LOGS: "records",
    Promise.ANSWERED: "answered transactions",
}


class Line(msgspec.Struct, frozen=True):
    """One line of the verdict."""

    promise: str
    rests_on: str
    held: bool


class DemoReport(msgspec.Struct, frozen=True):
    """Everything the demo found."""

    version: int
    held: bool
    seconds: float
    start_s: float
    lines: tuple[Line, ...]
    calm: LoadResult
    disturbed: LoadResult
    recoveries: tuple[Recovery, ...]
    story: Story
    audit: AuditReport


def build_lines(
    calm: LoadResult,
    disturbed: LoadResult,
    recoveries: tuple[Recovery, ...],
    story: Story,
    audit: AuditReport,
) -> tuple[Line, ...]:
    """Return the verdict line by line."""
    rows = {row.promise: row for row in audit.rows}
    lines = []
    for promise in NETWORK_PROMISES:
        row = rows[promise]
        basis = f"{row.examined} {_EXAMINED[promise]}" if row.held else row.findings[0]
        lines.append(Line(str(promise), basis, row.held and row.examined > 0))
    lines.append(Line("nothing in flight", f"{audit.in_flight} messages at the end", audit.in_flight == 0))
    for name, result in (("load, calm", calm), ("load, with kills", disturbed)):
        counts = (
            f"{result.sent} sent, {result.settled} settled, {result.rejected} rejected, {result.lost} lost"
        )
        complete = result.is_valid and result.settled == result.sent
        lines.append(Line(name, "; ".join((counts, *result.problems)), complete))
    text = f"count {story.count} from 1 call and {story.received} message, answered in {story.result_s:.1f} s"
    lines.append(Line("contract", text, (story.count, story.received) == (2, 1)))
    text = f"{story.bounced_value} wei came back in {story.bounce_s:.1f} s, {story.attempts} traces left"
    lines.append(Line("bounce", text, story.held))
    for recovery in recoveries:
        text = f"every chain final again after {recovery.resumed_s:.1f} s, beacon-final after {recovery.beacon_final_s:.1f} s"
        lines.append(Line(f"kill of {recovery.victim}", text, recovery.beacon_final_s >= 0))
    return tuple(lines)


def print_verdict(report: DemoReport, folder: Path) -> None:
    """Print table, latencies and the last word on standard output."""
    width = max(len(line.promise) for line in report.lines)
    out = ["", f"{'promise'.ljust(width)}  verdict  rests on"]
    out += [
        f"{line.promise.ljust(width)}  {'held   ' if line.held else 'BROKEN '}  {line.rests_on}"
        for line in report.lines
    ]
    out += ["", "latency, seconds since due           calm p50    p95   with kills p50    p95"]
    for name, label in (
        ("local.included", "local, final on its shard"),
        ("local.beacon_final", "local, beacon-final"),
        ("cross.executed", "cross-shard, executed there"),
        ("cross.beacon_final", "cross-shard, beacon-final"),
    ):
        calm, disturbed = report.calm.latency[name], report.disturbed.latency[name]
        out.append(f"{label:<32} {calm.p50:12.2f} {calm.p95:6.2f} {disturbed.p50:16.2f} {disturbed.p95:6.2f}")
    out += ["", f"report {folder / 'report.json'}", f"logs   {folder / 'logs'}"]
    out.append(f"verdict: {'all held' if report.held else 'NOT all held'} ({report.seconds:.0f} s)")
    sys.stdout.write("\n".join(out) + "\n")
    sys.stdout.flush()


def write_report(path: Path, report: DemoReport) -> None:
    """Write the report as JSON."""
    path.write_text(json.dumps(msgspec.to_builtins(report), indent=1) + "\n")
