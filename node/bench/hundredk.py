"""``hundred-k``: what 100,000 signed token calls per second to beacon-final take.

Costs come from two short ``e2e`` runs here, or from reports of earlier ones. A host with the cores it takes, the client
included, then runs that many shards and measures; any other gets a projection, which says that it is none of a measurement.
"""

import json
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from node.bench.e2e import BLOCK_TIME_MS, PRESET, E2eOptions, measure_e2e
from node.bench.projection import (
    BUSY_LIMIT,
    SERIAL_SHARE,
    TRANSACTION_BYTES,
    Limits,
    Plan,
    ProjectionError,
    Sample,
    calibrate_settling,
    compute_costs,
    compute_limits,
    find_plan,
    read_samples,
)
from node.bench.report import BenchReport, Target, at_most, build_report, say
from node.bench.schedule import Layout, StageCosts
from shardyard.preset import Preset, get_preset

RATE = 100_000.0
LATENCY_LIMIT_S = 3.0
RUN_S = 12.0
MEASURED_S = 30.0
CROSS = 0.1
LABEL = "projection, not a measurement"

Row = tuple[str, str, str]


async def measure_hundred_k(folder: Path, earlier: Sequence[Path], seed: int) -> BenchReport:
    """Measure costs unless reports are given, then run what 100,000/s take, or project it."""
    reports = [_read(path) for path in earlier] or await _run_short(folder, seed)
    samples = [sample for report in reports for sample in read_samples(report)]
    first = project(samples, is_cross=False)
    cases = [first]
    if any(sample.is_cross for sample in samples):
        cases.append(project(samples, is_cross=True))
    client_us = _compute_client_us(samples)
    needed = first.plan.cores + math.ceil(RATE * client_us / 1e6)
    if (os.cpu_count() or 1) >= needed:
        say(f"this host has the {needed} cores it takes, the client included: measuring")
        options = E2eOptions(
            kind="erc20",
            shards=first.plan.shards,
            seconds=MEASURED_S,
            rate=RATE,
            accounts=4000,
            seed=seed + 2,
        )
        return judge_measured(await measure_e2e(folder / "measured", options), first.plan)
    return judge_projected(cases, samples, reports)


class Case(msgspec.Struct, frozen=True):
    """A projection for one kind of load."""

    name: str
    costs: StageCosts
    gas_per_tx: float
    settle_s: float
    limits: Limits
    plan: Plan


def get_run_preset() -> Preset:
    """Return the preset of the networks that ``e2e`` runs: their limits hold for the projection as well."""
    return msgspec.structs.replace(get_preset(PRESET), block_time_ms=BLOCK_TIME_MS)


def project(samples: Sequence[Sample], *, is_cross: bool) -> Case:
    """Return what the rate takes, by the costs of runs with or without calls that leave their shard."""
    costs, preset = compute_costs(samples, is_cross=is_cross), get_run_preset()
    chosen = [sample for sample in samples if sample.is_cross == is_cross]
    gas_per_tx = max(sample.gas_per_tx for sample in chosen)
    limits = compute_limits(preset, gas_per_tx, costs)
    base = Layout(
        shards=1,
        cores=1,
        tps=RATE,
        block_time_s=preset.block_time_ms / 1000,
        block_txs=int(preset.block_gas / gas_per_tx),
        batch=E2eOptions().batch,
        settle_s=0.0,
    )
    # The run that offered least waited least for a core: what it took is consensus.
    settle_s = calibrate_settling(min(chosen, key=lambda sample: sample.tps), costs, base)
    plan = find_plan(msgspec.structs.replace(base, settle_s=settle_s), costs, limits, LATENCY_LIMIT_S)
    name = "some leave their shard, as in the runs" if is_cross else "no call leaves its shard"
    return Case(name, costs, gas_per_tx, settle_s, limits, plan)


def judge_projected(
    cases: Sequence[Case], samples: Sequence[Sample], reports: Sequence[dict[str, Any]]
) -> BenchReport:
    """Return the report of a projection, and print its tables."""
    client_us = _compute_client_us(samples)
    rows = [row for case in cases for row in describe_case(case)] + describe_common(samples, client_us)
    sys.stdout.write(f"{LABEL}\n{format_table(rows)}\n")
    targets = [
        at_most(f"{case.name}: {what} ({LABEL})", value, limit, unit)
        for case in cases
        for what, value, limit, unit in (
            ("p95 finality", case.plan.outcome.p95_s, LATENCY_LIMIT_S, "s"),
            ("beacon", case.plan.outcome.beacon_busy, BUSY_LIMIT, "of a core"),
            ("bus", case.plan.outcome.broker_busy, BUSY_LIMIT, "of a core"),
        )
    ]
    plan = cases[0].plan
    summary = (
        f"{LABEL}: {RATE:,.0f} token calls/s to beacon-final take {plan.shards} shards and {plan.cores} cores "
        f"({plan.threads} threads a shard), and {RATE * client_us / 1e6:.1f} cores of other machines to send them; finality "
        f"p95 {plan.outcome.p95_s:.2f} s, cores {plan.outcome.cores_busy:.0%} busy, beacon {plan.outcome.beacon_busy:.0%} and "
        f"bus {plan.outcome.broker_busy:.0%} of one"
    )
    details = {
        "kind": LABEL,
        "rate": RATE,
        "cases": msgspec.to_builtins(cases),
        "table": [list(row) for row in rows],
        "client_us": client_us,
        "samples": msgspec.to_builtins(samples),
        "measured_on": [report["machine"] for report in reports],
    }
    return build_report("hundred-k", summary, targets, details)


def judge_measured(report: BenchReport, plan: Plan) -> BenchReport:
    """Return the report of a measured run: the rate, the latency, and whatever ``e2e`` demands."""
    leg = report.details["legs"][0]
    rate, p95 = leg["final_tps"], leg["latency"]["p95"]
    targets = [
        *report.targets,
        Target("rate", rate, RATE * 0.99, "transactions/s", rate >= RATE * 0.99),
        at_most("finality, p95", p95, LATENCY_LIMIT_S, "s"),
    ]
    details = report.details | {"kind": "measurement", "plan": msgspec.to_builtins(plan)}
    return build_report("hundred-k", f"measured: {report.summary}", targets, details)


def describe_case(case: Case) -> list[Row]:
    """Return what is specific to a kind of load: result, costs and limits, each with where it comes from."""
    plan, costs, limits, seen = case.plan, case.costs, case.limits, case.plan.outcome
    fitted, hot = "fitted to the runs' processor time", "measured, threads of the native pool"
    return [
        ("-- " + case.name, "", ""),
        ("shards", f"{plan.shards}", "RESULT: fewest that the limits below and the simulation allow"),
        (
            "cores",
            f"{plan.cores}",
            f"RESULT: fewest with which p95 <= {LATENCY_LIMIT_S:g} s and no queue grows",
        ),
        ("executor threads a shard", f"{plan.threads}", "cores divided by shards, as a network does"),
        ("finality p50 / p95", f"{seen.p50_s:.2f} / {seen.p95_s:.2f} s", "simulated"),
        ("cores busy", f"{seen.cores_busy:.0%}", f"simulated; at most {BUSY_LIMIT:.0%} allowed"),
        ("beacon", f"{seen.beacon_busy:.0%} of a core", "simulated"),
        ("bus", f"{seen.broker_busy:.0%} of a core", "simulated; processor time, not bandwidth"),
        ("a shard's interpreter", f"{seen.interpreter_busy:.0%} of a core", "simulated"),
        ("recovery", f"{costs.recovery:.1f} us/tx", f"{hot}; one per signature, one process per shard"),
        (
            "execution, commitment",
            f"{costs.execution:.1f} us/tx",
            f"{hot}; told from recovery by their clocks",
        ),
        (
            "admission, mempool, encoding",
            f"{costs.admission:.1f} us/tx",
            f"{fitted}: the shard's other threads",
        ),
        ("block", f"{costs.block / 1000:.1f} ms a shard block", f"{fitted}: the shard's other threads"),
        ("bus, transactions", f"{costs.broker_tx:.2f} us/tx", fitted),
        ("bus, blocks", f"{costs.broker_block / 1000:.2f} ms a shard block", fitted),
        ("beacon, transactions", f"{costs.beacon_tx:.2f} us/tx", fitted),
        ("beacon, shards", f"{costs.beacon_block / 1000:.2f} ms a shard block", fitted),
        ("beacon, slots", f"{costs.beacon_slot / 1000:.2f} ms a slot", fitted),
        (
            "consensus and slots",
            f"{case.settle_s:.2f} s",
            "the quietest run's p95 less its own simulated p95",
        ),
        ("gas of a call", f"{case.gas_per_tx:,.0f}", "measured, by the blocks' gasUsed"),
        (
            "limit: gas at a stable fee",
            f"{limits.gas_target:,.0f} tx/s a shard",
            f"preset {PRESET}, half of the limit",
        ),
        (
            "limit: gas",
            f"{limits.gas_limit:,.0f} tx/s a shard",
            f"preset {PRESET}, a block every {BLOCK_TIME_MS / 1000:g} s",
        ),
        (
            "limit: body",
            f"{limits.body:,.0f} tx/s a shard",
            f"preset, {TRANSACTION_BYTES} bytes a call (assumed)",
        ),
        ("limit: interpreter", f"{limits.interpreter:,.0f} tx/s a shard", f"{BUSY_LIMIT:.0%} of one core"),
    ]


def describe_common(samples: Sequence[Sample], client_us: float) -> list[Row]:
    """Return what holds for every kind of load."""
    rows: list[Row] = [
        ("-- all", "", ""),
        (
            "rate",
            f"{RATE:,.0f} tx/s",
            f"wanted; offered evenly to all shards, in requests of {E2eOptions().batch}",
        ),
        (
            "load generator",
            f"{client_us:.1f} us/tx, {RATE * client_us / 1e6:.2f} cores",
            "measured; other machines, not in the cores above",
        ),
        (
            "serial share of execution",
            f"{SERIAL_SHARE:.2f}",
            "assumed: two threads run tokens 1.5 times as fast as one",
        ),
        (
            "a core of the projection",
            "is as fast",
            "assumed: as a core here was during the runs, memory and caches too",
        ),
        (
            "scheduling",
            "first come",
            "assumed: no preemption, no cost of switching, shards' slots spread evenly",
        ),
        ("network", "one machine", "assumed: latency and bandwidth between hosts are not in it"),
        (
            "disk, replicas",
            "as in the runs",
            "assumed: one process per shard, journal on a disk that keeps up",
        ),
    ]
    rows += [
        (
            f"run: {sample.shards} shards{', cross' if sample.is_cross else ''}",
            f"{sample.tps:,.0f} tx/s final, p95 {sample.p95_s:.2f} s",
            f"measured, {sample.cores} cores, {sample.txs:,} transactions, {sample.blocks} blocks",
        )
        for sample in samples
    ]
    return rows


def format_table(rows: Sequence[Row]) -> str:
    """Return rows in columns."""
    widths = [max(len(row[i]) for row in rows) for i in range(2)]
    return "\n".join(f"{row[0]:<{widths[0]}}  {row[1]:>{widths[1]}}  {row[2]}".rstrip() for row in rows)


def _compute_client_us(samples: Sequence[Sample]) -> float:
    return sum(sample.process_s["client"] for sample in samples) / sum(sample.txs for sample in samples) * 1e6


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ProjectionError(
            f"{path}: {error}; try: the JSON that scripts/bench e2e --json wrote"
        ) from error
    if not isinstance(found, dict):
        raise ProjectionError(
            f"{path}: got {type(found).__name__}, expected a report; try: scripts/bench e2e --json"
        )
    return found


async def _run_short(folder: Path, seed: int) -> list[dict[str, Any]]:
    reports = []
    for shards, cross in ((1, 0.0), (2, CROSS)):
        say(f"costs: {shards} shards, {cross:.0%} across, {RUN_S:.0f} s at full and at half rate")
        options = E2eOptions(kind="erc20", shards=shards, cross=cross, seconds=RUN_S, seed=seed + shards)
        # Through JSON, as a report given with --from comes.
        report = await measure_e2e(folder / f"costs-{shards}", options)
        reports.append(json.loads(json.dumps(msgspec.to_builtins(report))))
    return reports
