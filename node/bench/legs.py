"""What one run of a flood came to, added up from the client's records and the shards' own."""

from collections.abc import Sequence

import msgspec

from node.bench.flood import Flood
from node.bench.funding import MAX_FEE, TIP
from node.bench.pace import Head, Pace, compute_pace
from node.bench.settled import Watched, check_answered, check_messages, compute_rate, list_latencies
from node.bench.signed import SignedPlan
from node.bench.stages import CpuReading, MemoryWatch, measure_recovery_us
from node.load.keys import Account, Draft, Signer
from node.load.result import compute_latency
from node.load.workload import TRANSFER_GAS
from shardyard.ids import compute_chain_id

CALIBRATION = 2_000


class Run(msgspec.Struct, frozen=True):
    """What was recorded of one run; the lists are by shard."""

    plans: Sequence[SignedPlan]
    floods: Sequence[Flood]
    watched: Sequence[Watched]
    blocks: Sequence[dict[int, list[str]]]
    beacon: Sequence[Head]
    span: tuple[float, float, float]
    """When sending began, when the warm-up ended, when the last request was answered."""
    sending_s: float
    """Until nothing more was sent; answers may have come later."""
    used: CpuReading
    elapsed_s: float
    """Until all was final."""
    memory: MemoryWatch
    stages: dict[str, float]
    """Microseconds."""
    block_time_s: float


class Leg(msgspec.Struct, frozen=True):
    """One measured run of a flood."""

    name: str
    role: str
    """``peak``, ``half``, ``overload``, or ``rate`` when it was given."""
    offered_tps: float
    sent: int
    """Some of them again, in an overload."""
    accepted: int
    refused: int
    """Each time that it was sent."""
    final_tps: float
    latency: dict[str, float]
    missing: int
    doubled: int
    blocks: int
    """Of all shards, from the first to the last that is final; some are empty."""
    gas_per_tx: float
    """Used on average, deliveries to other shards included."""
    slowest_block_s: float
    largest_mb: dict[str, float]
    """Resident memory during the run, by process."""
    first_mb: dict[str, float]
    """The same before the run."""
    pace: list[Pace]
    """Of the shards, then of the beacon, while transactions were sent."""
    cpu_us: dict[str, float]
    """Microseconds of processor time per final transaction: by process, the client and the sum."""
    cores_used: float
    """Of the machine, by all that is counted above."""
    cores_others: float
    """Taken by processes that have nothing to do with the run: above 0, the rate is not the machine's."""
    hot_share: float
    recovery_us: float
    stages_us: dict[str, float]
    """Microseconds per final transaction on the clock, as the nodes time themselves."""
    statuses: dict[int, int]
    refusals: dict[str, int]


def describe_leg(leg: Leg) -> str:
    """Return a leg for people."""
    cpu = ", ".join(f"{name} {value:.1f}" for name, value in leg.cpu_us.items())
    stages = ", ".join(f"{name} {value:.1f}" for name, value in leg.stages_us.items())
    paces = ", ".join(
        f"{pace.chain} {pace.of_block_time:.0%} of its slots, p95 {pace.interval_p95_s:.2f} s, {pace.skipped} skipped, "
        f"{pace.slow} slow, {pace.empty} empty"
        for pace in leg.pace
    )
    return (
        f"{leg.name}: {leg.final_tps:,.0f} beacon-final tx/s of {leg.offered_tps:,.0f} offered; accepted {leg.accepted}, "
        f"refused {leg.refused}{_describe_refusals(leg)}, missing {leg.missing}, doubled {leg.doubled}; "
        f"finality p50 {leg.latency['p50']:.2f} s p95 {leg.latency['p95']:.2f} s; slowest block {leg.slowest_block_s:.2f} s, "
        f"largest process {max(leg.largest_mb.values()):.0f} MB\n"
        f"  CPU us/tx: {cpu}; recovery alone {leg.recovery_us:.1f}; recovery and execution {leg.hot_share:.0%}; "
        f"{leg.cores_used:.2f} cores used, {leg.cores_others:.2f} by others\n"
        f"  clock us/tx: {stages}\n"
        f"  pace: {paces}"
    )


def _describe_refusals(leg: Leg) -> str:
    found = ", ".join(f"{count} {said!r}" for said, count in leg.refusals.items())
    return f" ({found})" if found else ""


def build_leg(name: str, role: str, run: Run) -> Leg:
    """Add up one run."""
    plans, floods, watched, blocks = run.plans, run.floods, run.watched, run.blocks
    _, measured, ended = run.span
    used = run.used
    missing = doubled = 0
    latencies: list[float] = []
    for plan, shard, found in zip(plans, watched, blocks, strict=True):
        lost, twice = check_answered(plan, found)
        missing, doubled = missing + lost, doubled + twice
        latencies += list_latencies(plan, found, shard, measured)
    lost, twice = check_messages(plans, blocks)
    missing, doubled = missing + lost, doubled + twice
    messages = {"0x" + crossing.message.hex() for plan in plans for crossing in plan.crossings}
    sent, accepted = sum(flood.offered for flood in floods), sum(flood.accepted for flood in floods)
    final = max(1, accepted - missing)
    # With one thread a shard there is no pool: the thread that asks works.
    hot_s = used.pool + sum(value for name, value in run.stages.items() if name.endswith("_own")) / 1e6
    cpu = {_kind_of(process): 0.0 for process in used.by_process}
    for process, value in used.by_process.items():
        cpu[_kind_of(process)] += value / final * 1e6
    latency = compute_latency(latencies)
    return Leg(
        name=name,
        role=role,
        offered_tps=round(sent / run.sending_s, 1),
        sent=sent,
        accepted=accepted,
        refused=sent - accepted,
        final_tps=round(
            sum(
                compute_rate(shard, found, measured, ended, messages)
                for shard, found in zip(watched, blocks, strict=True)
            ),
            1,
        ),
        latency={"p50": latency.p50, "p95": latency.p95, "p99": latency.p99, "max": latency.max},
        missing=missing,
        doubled=doubled,
        blocks=sum(map(len, blocks)),
        gas_per_tx=round(sum(shard.gas_used for shard in watched) / final),
        largest_mb=run.memory.largest,
        first_mb=run.memory.first,
        pace=_list_paces(run),
        slowest_block_s=round(max(shard.slowest_block_s for shard in watched), 2),
        cpu_us={name: round(value, 2) for name, value in cpu.items()}
        | {"client": round(used.client / final * 1e6, 2), "total": round(used.total / final * 1e6, 2)},
        cores_used=round(used.total / run.elapsed_s, 2),
        cores_others=round(used.others / run.elapsed_s, 2),
        hot_share=round(hot_s / used.total, 4),
        recovery_us=round(_calibrate(plans[0]), 2),
        stages_us={name: round(value / final, 2) for name, value in run.stages.items()},
        statuses=dict(sum((flood.statuses for flood in floods), start=type(floods[0].statuses)())),
        refusals=dict(sum((flood.refusals for flood in floods), start=type(floods[0].refusals)())),
    )


def _calibrate(plan: SignedPlan) -> float:
    account = Account(plan.hashes[:32])  # nobody has seen its transactions yet
    drafts = [
        Draft(account, nonce, account.address, 1, TRANSFER_GAS, MAX_FEE, TIP) for nonce in range(CALIBRATION)
    ]
    return measure_recovery_us(Signer(plan.shard).sign_all(drafts), compute_chain_id(plan.shard), plan.shard)


def _kind_of(process: str) -> str:
    return process.partition("-")[0]


def _list_paces(run: Run) -> list[Pace]:
    started, _, ended = run.span
    paces = []
    for plan, shard, found in zip(run.plans, run.watched, run.blocks, strict=True):
        during = {head.height for head in shard.heads if started <= head.seen <= ended}
        empty = sum(not found[height] for height in during if height in found)
        name = f"shard {plan.shard}"
        paces.append(compute_pace(name, shard.heads, started, ended, run.block_time_s, empty))
    return [*paces, compute_pace("beacon", run.beacon, started, ended, run.block_time_s)]
