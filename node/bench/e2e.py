"""``e2e``: signed transactions in at the public JSON-RPC, beacon-final out; everything between is inside the timer.

Transactions are signed and put into requests before the clock starts. The rate is what became beacon-final between two
moments at which it was seen to advance, after the warm-up and before the end, over the time between them; heights and
counts are the shards' own. In the end every answered hash must stand in exactly one final block, and so must the message of
each that left its shard, on the other one; it counts once, where it began, and so does its latency. Latency counts from the
moment a request was due (open loop) or left (as fast as answers come) to the moment its block was seen beacon-final.
"""

import asyncio
import os
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from node.bench.anvil import AnvilLeg, find_anvil, measure_anvil
from node.bench.devnet import Devnet
from node.bench.flood import Flood
from node.bench.funding import MAX_FEE, TIP, deploy_token, fund_accounts
from node.bench.report import BenchReport, Target, at_most, build_report, equals, say
from node.bench.settled import (
    Watch,
    Watched,
    check_answered,
    check_messages,
    compute_rate,
    iterate_crossings,
    list_latencies,
)
from node.bench.signed import FloodKnobs, ShardSource, SignedPlan, Token
from node.bench.stages import CpuReading, measure_recovery_us, read_cpu, read_memory_mb
from node.config import Options
from node.load.keys import Account, Draft, Signer
from node.load.result import compute_latency
from node.load.workload import TRANSFER_GAS
from shardyard.ids import compute_chain_id

TARGET_TPS = {"transfer": 20_000.0, "erc20": 15_000.0}
"""On two cores with this client on the same machine, one shard, nothing across shards."""
LATENCY_LIMIT_S = 3.0
HOT_SHARE = 0.6
"""Of all processor time: recovery and execution."""
WARM_UP_S = 5.0
DRAIN_S = 90.0
BALANCE = "1000000000000ether"
CALIBRATION = 2_000
ANVIL_RATIO = 2.5
QUIET_CORES = 0.3
"""Two runs are compared when others took no more than this during either."""
ANVIL_EXPECTED = 14_000.0
"""Transactions per second to sign for anvil: above what it takes."""


class E2eOptions(msgspec.Struct, frozen=True):
    """What to measure. ``rate`` is transactions per second over all shards, 0 for as fast as answers come."""

    kind: str = "transfer"
    shards: int = 1
    cross: float = 0.0
    seconds: float = 30.0
    rate: float = 0.0
    connections: int = 8
    batch: int = 200
    accounts: int = 1000
    executors: int = 0
    expected: float = 32_000.0
    """Transactions per second to sign for when the rate is open."""
    seed: int = 1
    anvil: Path | None = None

    @property
    def warm_up_s(self) -> float:
        """Seconds at the beginning of a run that are not measured."""
        return min(WARM_UP_S, self.seconds / 4)


class Leg(msgspec.Struct, frozen=True):
    """One measured run of a flood."""

    name: str
    offered_tps: float
    sent: int
    accepted: int
    refused: int
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
    """Resident memory at the end of the run, by process."""
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


async def measure_e2e(folder: Path, options: E2eOptions) -> BenchReport:
    """Start a network, flood it as fast as it answers, then at half the target, and judge."""
    network = Options(
        name="e2e",
        shards=options.shards,
        validators=4,
        executors=options.executors,
        balance=BALANCE,
    )
    legs: list[Leg] = []
    async with Devnet(folder, network) as devnet:
        say(f"network ready in {devnet.starts[0]:.2f} s")
        tokens: list[Token | None] = [None] * options.shards
        if options.kind == "erc20":
            tokens = [await deploy_token(url, shard) for shard, url in enumerate(devnet.urls)]
        target = TARGET_TPS[options.kind]
        half = target / 2
        rates = [options.rate] if options.rate else [0.0, half]
        for number, rate in enumerate(rates):
            legs.append(await _run_leg(devnet, options, tokens, rate, number))
            say(describe_leg(legs[-1]))
        program = options.anvil or find_anvil()
    anvil: AnvilLeg | None = None
    if program is not None and options.shards == 1 and not options.cross:
        # After the network has ended: both have the machine to themselves, with the client.
        count = round(ANVIL_EXPECTED * options.seconds)
        knobs = build_knobs(options, len(legs))
        anvil = await measure_anvil(program, knobs, count, options.seconds, options.warm_up_s)
        say(
            f"{anvil.version}: {anvil.mined_tps:,.0f} mined tx/s, {anvil.cpu_us:.0f} us of its own CPU per transaction, "
            f"{anvil.cores_others:.2f} cores taken by others"
        )
    return judge(options, legs, anvil)


def judge(options: E2eOptions, legs: Sequence[Leg], anvil: AnvilLeg | None) -> BenchReport:
    """Return the report: nothing lost or doubled, and the figures where they are promised."""
    targets: list[Target] = []
    for leg in legs:
        targets += [
            equals(f"{leg.name}: answered and not final", leg.missing, 0, "transactions"),
            equals(f"{leg.name}: final more than once", leg.doubled, 0, "transactions"),
        ]
    if options.shards == 1 and not options.cross and not options.rate:
        peak, half = legs[0], legs[1]
        wanted = TARGET_TPS[options.kind]
        targets += [
            Target("rate", round(peak.final_tps), wanted, "transactions/s", peak.final_tps >= wanted),
            Target(
                "recovery and execution",
                round(peak.hot_share, 3),
                HOT_SHARE,
                "of all CPU",
                peak.hot_share >= HOT_SHARE,
            ),
            at_most("finality at half the target, p95", half.latency["p95"], LATENCY_LIMIT_S, "s"),
        ]
    peak = legs[0]
    if anvil is not None and max(anvil.cores_others, peak.cores_others) <= QUIET_CORES:
        ratio = round(peak.final_tps / max(1.0, anvil.mined_tps), 2)
        targets.append(Target("rate over anvil's", ratio, ANVIL_RATIO, "times", ratio >= ANVIL_RATIO))
    elif anvil is not None:
        say("anvil is not compared: others took too much of the machine; try: again when it is quiet")
    summary = (
        f"{options.kind}, {options.shards} shards, {options.cross:.0%} across: {peak.final_tps:,.0f} beacon-final tx/s "
        f"of {peak.offered_tps:,.0f} offered, {peak.cpu_us['total']:.1f} us CPU/tx, {peak.hot_share:.0%} of it recovery and "
        f"execution; finality p50 {legs[-1].latency['p50']:.2f} s p95 {legs[-1].latency['p95']:.2f} s at "
        f"{legs[-1].offered_tps:,.0f} tx/s"
    )
    details: dict[str, Any] = {
        "options": msgspec.to_builtins(options, enc_hook=str),
        "legs": msgspec.to_builtins(legs),
        "anvil": msgspec.to_builtins(anvil),
    }
    return build_report("e2e", summary, targets, details)


def describe_leg(leg: Leg) -> str:
    """Return a leg for people."""
    cpu = ", ".join(f"{name} {value:.1f}" for name, value in leg.cpu_us.items())
    stages = ", ".join(f"{name} {value:.1f}" for name, value in leg.stages_us.items())
    return (
        f"{leg.name}: {leg.final_tps:,.0f} beacon-final tx/s of {leg.offered_tps:,.0f} offered; accepted {leg.accepted}, "
        f"refused {leg.refused}, missing {leg.missing}, doubled {leg.doubled}; finality p50 {leg.latency['p50']:.2f} s "
        f"p95 {leg.latency['p95']:.2f} s; slowest block {leg.slowest_block_s:.2f} s, "
        f"largest process {max(leg.largest_mb.values()):.0f} MB\n"
        f"  CPU us/tx: {cpu}; recovery alone {leg.recovery_us:.1f}; recovery and execution {leg.hot_share:.0%}; "
        f"{leg.cores_used:.2f} cores used, {leg.cores_others:.2f} by others\n"
        f"  clock us/tx: {stages}"
    )


# --- before the clock starts ---


def build_knobs(options: E2eOptions, number: int) -> FloodKnobs:
    """Return what run ``number`` sends: every run has accounts of its own."""
    return FloodKnobs(
        kind=options.kind,
        shards=options.shards,
        cross=options.cross,
        accounts=options.accounts,
        connections=options.connections,
        batch=options.batch,
        seed=options.seed * 100 + number,
        max_fee=MAX_FEE,
        tip=TIP,
        threads=os.cpu_count() or 1,
    )


async def _prepare(
    devnet: Devnet, options: E2eOptions, tokens: Sequence[Token | None], rate: float, number: int
) -> list[SignedPlan]:
    count = round((rate or options.expected) * options.seconds / options.shards)
    plans = []
    for shard in range(options.shards):
        source = ShardSource(build_knobs(options, number), shard)
        source.token = await fund_accounts(devnet.urls[shard], source, tokens[shard], count)
        started = time.monotonic()
        plans.append(await asyncio.to_thread(source.sign, count))
        say(
            f"shard {shard}: signed {len(plans[-1].hashes) // 32} transactions in {time.monotonic() - started:.1f} s"
        )
    return plans


# --- the run ---


async def _run_leg(
    devnet: Devnet, options: E2eOptions, tokens: Sequence[Token | None], rate: float, number: int
) -> Leg:
    plans = await _prepare(devnet, options, tokens, rate, number)
    pids = await devnet.get_pids()
    watch = Watch(devnet.urls)
    await watch.start()
    watching = asyncio.create_task(watch.run(), name="watch")
    floods = [Flood(url, plan.queues) for url, plan in zip(devnet.urls, plans, strict=True)]
    interval = options.batch * options.shards / rate if rate else 0.0
    try:
        before, stages = read_cpu(pids), await watch.read_stages()
        started = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for flood in floods:
                group.create_task(flood.run(started, options.seconds, interval))
        ended = time.monotonic()
        await watch.wait_settled(DRAIN_S, count_messages(plans))
        used, elapsed_s = read_cpu(pids).since(before), time.monotonic() - started
        stages_after, memory = await watch.read_stages(), read_memory_mb(pids)
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
    blocks = await watch.read_blocks()
    return build_leg(
        rate,
        plans,
        floods,
        watch.shards,
        blocks,
        (started, started + options.warm_up_s, ended),
        used,
        elapsed_s,
        memory,
        _subtract(stages_after, stages),
    )


def count_messages(plans: Sequence[SignedPlan]) -> list[int]:
    """Return how many messages answered transactions have sent to each shard."""
    sent = Counter(crossing.dst for plan in plans for crossing in iterate_crossings(plan))
    return [sent[shard] for shard in range(len(plans))]


def build_leg(
    rate: float,
    plans: Sequence[SignedPlan],
    floods: Sequence[Flood],
    watched: Sequence[Watched],
    blocks: Sequence[dict[int, list[str]]],
    span: tuple[float, float, float],
    used: CpuReading,
    elapsed_s: float,
    memory: dict[str, float],
    stages: dict[str, float],
) -> Leg:
    """Add up one run."""
    missing = doubled = 0
    latencies: list[float] = []
    for plan, shard, found in zip(plans, watched, blocks, strict=True):
        lost, twice = check_answered(plan, found)
        missing, doubled = missing + lost, doubled + twice
        latencies += list_latencies(plan, found, shard, span[1])
    lost, twice = check_messages(plans, blocks)
    missing, doubled = missing + lost, doubled + twice
    messages = {"0x" + crossing.message.hex() for plan in plans for crossing in plan.crossings}
    requests = [request for plan in plans for queue in plan.queues for request in queue if request.sent]
    sent, accepted = sum(request.count for request in requests), sum(request.accepted for request in requests)
    final = max(1, accepted - missing)
    # With one thread a shard there is no pool: the thread that asks works.
    hot_s = used.pool + sum(value for name, value in stages.items() if name.endswith("_own")) / 1e6
    cpu = {_kind_of(name): 0.0 for name in used.by_process}
    for name, value in used.by_process.items():
        cpu[_kind_of(name)] += value / final * 1e6
    latency = compute_latency(latencies)
    return Leg(
        name=f"{rate:,.0f} tx/s" if rate else "as fast as answered",
        offered_tps=round(sent / (span[2] - span[0]), 1),
        sent=sent,
        accepted=accepted,
        refused=sent - accepted,
        final_tps=round(
            sum(
                compute_rate(shard, found, span[1], span[2], messages)
                for shard, found in zip(watched, blocks, strict=True)
            ),
            1,
        ),
        latency={"p50": latency.p50, "p95": latency.p95, "p99": latency.p99, "max": latency.max},
        missing=missing,
        doubled=doubled,
        blocks=sum(map(len, blocks)),
        gas_per_tx=round(sum(shard.gas_used for shard in watched) / final),
        largest_mb=memory,
        slowest_block_s=round(max(shard.slowest_block_s for shard in watched), 2),
        cpu_us={name: round(value, 2) for name, value in cpu.items()}
        | {"client": round(used.client / final * 1e6, 2), "total": round(used.total / final * 1e6, 2)},
        cores_used=round(used.total / elapsed_s, 2),
        cores_others=round(used.others / elapsed_s, 2),
        hot_share=round(hot_s / used.total, 4),
        recovery_us=round(_calibrate(plans[0]), 2),
        stages_us={name: round(value / final, 2) for name, value in stages.items()},
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


def _subtract(after: dict[str, float], before: dict[str, float]) -> dict[str, float]:
    return {name: value - before.get(name, 0.0) for name, value in after.items()}
