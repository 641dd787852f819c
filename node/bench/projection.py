"""What a rate takes that this machine cannot run: costs from measured runs, limits from the protocol, the rest simulated.

Costs of one process are told apart by runs that differ: what grows with transactions, with shards' blocks, with slots.
None is ever negative. Where the runs cannot tell blocks from slots, a cost counts by the block, the dearer reading.
"""

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import msgspec

from node.bench.schedule import Layout, Outcome, StageCosts, simulate
from shards.policy import ELASTICITY
from shardyard.errors import ShardyardError
from shardyard.preset import Preset

BUSY_LIMIT = 0.85
"""Of the cores, and of the one core that the beacon, the bus and an interpreter can have: the rest is for the system."""
GROWTH_LIMIT = 1.1
"""Late latencies over early ones: above it a queue grows."""
SERIAL_SHARE = 1 / 3
"""Of execution: two threads promise 1.5 times one (tokens), which is Amdahl's law at this share."""
TRANSACTION_BYTES = 200
"""A signed token call in a block's body, rounded up."""
MORE_SHARDS = 24
MORE_CORES = 96


class ProjectionError(ShardyardError):
    """No projection can be made of this; the text says what is missing."""


class Sample(msgspec.Struct, frozen=True):
    """One measured run."""

    shards: int
    is_cross: bool
    cores: int
    txs: int
    blocks: int
    tps: float
    gas_per_tx: float
    p50_s: float
    p95_s: float
    process_s: dict[str, float]
    """Processor time by kind of process, and of the client."""
    hot_s: float
    """Recovery and execution, part of the shards' time."""
    recovery_share: float
    """Of the two, by their time on the clock: they run on the same threads."""

    @property
    def slots(self) -> float:
        """Beacon slots it took."""
        return self.blocks / self.shards


def read_samples(report: dict[str, Any]) -> list[Sample]:
    """Return the runs of an ``e2e`` report; raises ``ProjectionError`` for another one, an old one or a broken run."""
    if report.get("bench") != "e2e":
        raise _refuse_kind()
    try:
        samples = _read_legs(report)
    except KeyError as error:
        raise ProjectionError(
            f"the report does not say {error}, it is of an older version or cut off; try: measure again"
        ) from error
    except (TypeError, ValueError, AttributeError) as error:
        raise ProjectionError(f"this is not what a report says: {error}; try: measure again") from error
    if not samples:
        raise ProjectionError("got a report with no run but overload, expected one; try: measure again")
    return samples


def _refuse_kind() -> ProjectionError:
    return ProjectionError("got a report of something else, expected e2e with --kind erc20; try: measure it")


def _read_legs(report: dict[str, Any]) -> list[Sample]:
    details = report["details"]
    options, samples = details["options"], []
    if options["kind"] != "erc20":
        raise _refuse_kind()
    for leg in details["legs"]:
        if leg.get("role") == "overload":
            continue  # refusals cost too, and nobody sends so on purpose
        if leg["missing"] or leg["doubled"] or not leg["final_tps"]:
            raise ProjectionError(
                f"run {leg['name']!r}: got {leg['missing']} missing, {leg['doubled']} doubled, {leg['final_tps']} final/s, "
                "expected a run that lost nothing; try: scripts/bench e2e --kind erc20"
            )
        stages, cpu, txs = leg["stages_us"], leg["cpu_us"], leg["accepted"]
        hot_us = stages["recover"] + stages["execute"]
        if not hot_us:
            raise ProjectionError(
                f"run {leg['name']!r}: got no time of recovery and execution; try: measure again"
            )
        sample = Sample(
            shards=options["shards"],
            is_cross=options["cross"] > 0,
            cores=report["machine"]["cores"],
            txs=txs,
            blocks=leg["blocks"],
            tps=leg["final_tps"],
            gas_per_tx=leg["gas_per_tx"],
            p50_s=leg["latency"]["p50"],
            p95_s=leg["latency"]["p95"],
            process_s={name: cpu[name] * txs / 1e6 for name in ("shard", "beacon", "broker", "client")},
            hot_s=leg["hot_share"] * cpu["total"] * txs / 1e6,
            recovery_share=stages["recover"] / hot_us,
        )
        # Whatever a file holds is taken for numbers only where it says numbers.
        samples.append(msgspec.convert(msgspec.structs.asdict(sample), Sample))
    return samples


def fit(rows: Sequence[Sequence[float]], values: Sequence[float]) -> list[float]:
    """Return the factors, none negative, with which columns add up to ``values`` best.

    Of factors that do equally well, those of the first columns: columns that look alike are not divided by chance.
    """
    width, best = len(rows[0]), [0.0] * len(rows[0])
    least = sum(value**2 for value in values)
    for size in range(1, min(width, len(rows)) + 1):
        for chosen in combinations(range(width), size):
            factors = _solve([[row[i] for i in chosen] for row in rows], values)
            if factors is None or min(factors) < 0:
                continue
            full = [0.0] * width
            for i, factor in zip(chosen, factors, strict=True):
                full[i] = factor
            error = sum(
                (sum(map(float.__mul__, full, map(float, row))) - value) ** 2
                for row, value in zip(rows, values, strict=True)
            )
            if error < least * (1 - 1e-9) - 1e-15:
                best, least = full, error
    return best


def _solve(rows: Sequence[Sequence[float]], values: Sequence[float]) -> list[float] | None:
    """Solve the normal equations by elimination; None when columns cannot be told apart."""
    width = len(rows[0])
    scale = [math.sqrt(sum(row[i] ** 2 for row in rows)) or 1.0 for i in range(width)]
    unit = [[row[i] / scale[i] for i in range(width)] for row in rows]
    system = [
        [sum(row[i] * row[j] for row in unit) for j in range(width)]
        + [sum(row[i] * value for row, value in zip(unit, values, strict=True))]
        for i in range(width)
    ]
    for i in range(width):
        pivot = max(range(i, width), key=lambda row, i=i: abs(system[row][i]))  # type: ignore[misc]
        if abs(system[pivot][i]) < 1e-9:
            return None
        system[i], system[pivot] = system[pivot], system[i]
        for row in range(width):
            if row != i:
                factor = system[row][i] / system[i][i]
                system[row] = [a - factor * b for a, b in zip(system[row], system[i], strict=True)]
    return [system[i][width] / system[i][i] / scale[i] for i in range(width)]


def compute_costs(samples: Sequence[Sample], *, is_cross: bool) -> StageCosts:
    """Return the stages' costs; the shards' from runs with, or without, calls that leave their shard."""
    chosen = [sample for sample in samples if sample.is_cross == is_cross]
    if not chosen:
        raise ProjectionError(
            f"got no run with cross-shard calls {is_cross}, expected one; try: measure again"
        )
    txs = sum(sample.txs for sample in chosen)
    recovery_s = sum(sample.hot_s * sample.recovery_share for sample in chosen)
    execution_s = sum(sample.hot_s * (1 - sample.recovery_share) for sample in chosen)
    admission, block = fit(
        [(sample.txs, sample.blocks) for sample in chosen],
        [sample.process_s["shard"] - sample.hot_s for sample in chosen],
    )
    rows = [(sample.txs, sample.blocks, sample.slots) for sample in samples]
    beacon_tx, beacon_block, beacon_slot = fit(rows, [sample.process_s["beacon"] for sample in samples])
    broker_tx, broker_block = fit(
        [row[:2] for row in rows], [sample.process_s["broker"] for sample in samples]
    )
    return StageCosts(
        admission=admission * 1e6,
        recovery=recovery_s / txs * 1e6,
        execution=execution_s / txs * 1e6,
        serial_share=SERIAL_SHARE,
        block=block * 1e6,
        broker_block=broker_block * 1e6,
        broker_tx=broker_tx * 1e6,
        beacon_block=beacon_block * 1e6,
        beacon_slot=beacon_slot * 1e6,
        beacon_tx=beacon_tx * 1e6,
    )


class Limits(msgspec.Struct, frozen=True):
    """What one shard can take, whatever the cores, in transactions per second."""

    gas_target: float
    """Above it the base fee rises with every block, without end."""
    gas_limit: float
    body: float
    interpreter: float

    @property
    def sustained(self) -> float:
        """The least of them."""
        return min(self.gas_target, self.gas_limit, self.body, self.interpreter)


def compute_limits(preset: Preset, gas_per_tx: float, costs: StageCosts) -> Limits:
    """Return what the protocol and the interpreter let one shard take."""
    block_s = preset.block_time_ms / 1000
    gas = preset.block_gas / gas_per_tx / block_s
    left = BUSY_LIMIT - costs.block / 1e6 / block_s
    if left <= 0:
        raise ProjectionError(
            f"a block costs {costs.block:.0f} us of {block_s:g} s; try: measure on a quiet machine"
        )
    interpreter = left * 1e6 / costs.admission if costs.admission else math.inf
    body = preset.max_body_bytes / TRANSACTION_BYTES / block_s
    return Limits(gas / ELASTICITY, gas, body, interpreter)


def calibrate_settling(sample: Sample, costs: StageCosts, base: Layout) -> float:
    """Return what finality takes beyond the simulated stages: consensus and the wait for slots, from a measured run."""
    layout = msgspec.structs.replace(
        base, shards=sample.shards, cores=sample.cores, tps=sample.tps, settle_s=0.0
    )
    return max(0.0, sample.p95_s - simulate(layout, costs).p95_s)


def is_sustained(outcome: Outcome, latency_limit_s: float) -> bool:
    """Say whether a run could go on like this: in time, with room on every core, and no queue that grows."""
    busy = (outcome.cores_busy, outcome.beacon_busy, outcome.broker_busy, outcome.interpreter_busy)
    return (
        outcome.p95_s <= latency_limit_s
        and outcome.late_p95_s <= GROWTH_LIMIT * outcome.early_p95_s
        and max(busy) <= BUSY_LIMIT
    )


class Plan(msgspec.Struct, frozen=True):
    """Shards and cores that sustain a rate."""

    shards: int
    cores: int
    threads: int
    outcome: Outcome


def find_plan(base: Layout, costs: StageCosts, limits: Limits, latency_limit_s: float) -> Plan:
    """Return the fewest shards, and for them the fewest cores, that sustain ``base.tps``."""
    fewest = math.ceil(base.tps / limits.sustained)
    tried: Plan | None = None
    for shards in range(fewest, fewest + MORE_SHARDS):
        blocks = shards / base.block_time_s
        per_tx = costs.admission + costs.recovery + costs.execution + costs.broker_tx + costs.beacon_tx
        per_block = costs.block + costs.broker_block + costs.beacon_block
        load = (base.tps * per_tx + blocks * per_block + costs.beacon_slot / base.block_time_s) / 1e6
        least = max(1, math.ceil(load / BUSY_LIMIT))
        for cores in range(least, least + MORE_CORES):
            layout = msgspec.structs.replace(base, shards=shards, cores=cores)
            outcome = simulate(layout, costs)
            tried = Plan(shards, cores, layout.threads, outcome)
            if is_sustained(outcome, latency_limit_s):
                return tried
            if max(outcome.beacon_busy, outcome.broker_busy, outcome.interpreter_busy) > BUSY_LIMIT:
                break  # more cores do not help what runs on one
            if math.isfinite(outcome.p95_s) and outcome.cores_busy < BUSY_LIMIT / 4:
                break
    raise ProjectionError(
        f"{base.tps:,.0f}/s cannot be sustained with {fewest}..{fewest + MORE_SHARDS - 1} shards; the last try: {tried}; "
        "try: costs measured on a quiet machine"
    )
