"""``e2e``: signed transactions in at the public JSON-RPC, beacon-final out; everything between is inside the timer.

Transactions are signed and put into requests before the clock starts. The rate is what became beacon-final between two
moments at which it was seen to advance, after the warm-up and before the end, over the time between them; heights and
counts are the shards' own. In the end every answered hash must stand in exactly one final block, and so must the message of
each that left its shard, on the other one; it counts once, where it began, and so does its latency. Latency counts from the
moment a request was due (open loop) or left (as fast as answers come) to the moment its block was seen beacon-final.

The legs: the peak, as fast as answers come; with ``--overload`` twice of it (it takes as long again and needs as many
signatures, which whoever wants only costs or rates need not wait for); then half of what is promised, or of the peak.
"""

import asyncio
import contextlib
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Coroutine, Sequence
from pathlib import Path
from typing import Any

import msgspec

from node.bench.anvil import AnvilLeg, describe_anvil, find_anvil, list_anvil_knobs, measure_anvil
from node.bench.devnet import Devnet, DevnetError
from node.bench.flood import Flood, FloodError, Pacing
from node.bench.funding import MAX_FEE, TIP, deploy_token, fund_accounts
from node.bench.legs import Leg, Run, build_leg, describe_leg
from node.bench.overload import FACTOR, build_overload_knobs, find_leg, judge_overload
from node.bench.pace import Head, watch_beacon
from node.bench.report import BenchReport, Target, at_least, at_most, build_report, equals, say
from node.bench.settled import Watch, iterate_crossings
from node.bench.signed import FloodKnobs, ShardSource, SignedPlan, Token
from node.bench.stages import MemoryWatch, read_cpu
from node.causes import find_cause
from node.config import Options
from node.load.client import NoAnswerError

TARGET_TPS = {"transfer": 20_000.0, "erc20": 15_000.0}
"""On two cores with this client on the same machine, one shard, nothing across shards."""
LATENCY_LIMIT_S = 3.0
HOT_SHARE = 0.6
"""Of all processor time: recovery and execution."""
WARM_UP_S = 5.0
DRAIN_S = 90.0
BALANCE = "1000000000000ether"
PRESET = "bench"
BLOCK_TIME_MS = 1000
"""As anvil beside it, with the same gas in a block."""
ANVIL_RATIO = 2.5
QUIET_CORES = 0.3
"""Two runs are compared when others took no more than this during either."""
CONNECTIONS = 24
"""Requests under way at once when answers are waited for: eight of 200 left a fifth of two cores idle."""
LEAST_RATE = 100.0
"""Transactions per second that a leg offers at least, whatever the peak was."""


class E2eOptions(msgspec.Struct, frozen=True):
    """What to measure. ``rate`` is transactions per second over all shards, 0 for as fast as answers come."""

    kind: str = "transfer"
    shards: int = 1
    cross: float = 0.0
    seconds: float = 30.0
    rate: float = 0.0
    connections: int = 0
    """To each shard; 0 shares ``CONNECTIONS`` among the shards."""
    batch: int = 200
    accounts: int = 1000
    executors: int = 0
    expected: float = 32_000.0
    """Transactions per second to sign for when the rate is open."""
    seed: int = 1
    overload: bool = False
    anvil: Path | None = None

    @property
    def warm_up_s(self) -> float:
        """Seconds at the beginning of a run that are not measured."""
        return min(WARM_UP_S, self.seconds / 4)

    @property
    def is_promised(self) -> bool:
        """Whether rates are promised for it."""
        return self.shards == 1 and not self.cross and not self.rate


class Offer(msgspec.Struct, frozen=True):
    """What one leg sends: ``rate`` transactions per second over all shards, 0 for as fast as answers come."""

    name: str
    role: str
    rate: float
    knobs: FloodKnobs


async def measure_e2e(folder: Path, options: E2eOptions) -> BenchReport:
    """Start a network, flood it leg by leg, then anvil where it is there, and judge."""
    network = Options(
        name="e2e",
        preset=PRESET,
        block_time_ms=BLOCK_TIME_MS,
        shards=options.shards,
        validators=4,
        executors=options.executors,
        balance=BALANCE,
    )
    async with Devnet(folder, network) as devnet:
        say(f"network ready in {devnet.starts[0]:.2f} s")
        tokens: list[Token | None] = [None] * options.shards
        if options.kind == "erc20":
            tokens = [await deploy_token(url, shard) for shard, url in enumerate(devnet.urls)]
        legs: list[Leg] = []
        while (offer := choose_offer(options, legs)) is not None:
            legs.append(await _run_leg(devnet, options, tokens, offer))
            say(describe_leg(legs[-1]))
    program = options.anvil or find_anvil()
    tries: list[AnvilLeg] = []
    if program is not None and options.is_promised:
        # After the network has ended: both have the machine to themselves, with the client.
        try:
            for knobs in list_anvil_knobs(build_knobs(options, len(legs))):
                tries.append(await measure_anvil(program, knobs, options.seconds, options.warm_up_s))
                say(describe_anvil(tries[-1]))
        except (DevnetError, FloodError, NoAnswerError) as error:
            # What was measured of the network stands without it; the best of fewer tries would be no fair measure.
            tries.clear()
            say(f"anvil is left out: {error}")
    return judge(options, legs, tries)


def choose_offer(options: E2eOptions, legs: Sequence[Leg]) -> Offer | None:
    """Return what comes after ``legs``; None when all is measured."""
    knobs = build_knobs(options, len(legs))
    if options.rate:
        return None if legs else Offer(f"{options.rate:,.0f} tx/s", "rate", options.rate, knobs)
    if not legs:
        return Offer("as fast as answered", "peak", 0.0, knobs)
    peak = legs[0].final_tps
    if options.overload and find_leg(legs, "overload") is None:
        rate = max(LEAST_RATE, FACTOR * peak)
        return Offer(f"overload, {rate:,.0f} tx/s", "overload", rate, build_overload_knobs(knobs))
    if find_leg(legs, "half") is None:
        rate = max(LEAST_RATE, (TARGET_TPS[options.kind] if options.is_promised else peak) / 2)
        return Offer(f"{rate:,.0f} tx/s", "half", rate, knobs)
    return None


def judge(options: E2eOptions, legs: Sequence[Leg], tries: Sequence[AnvilLeg]) -> BenchReport:
    """Return the report: nothing lost or doubled, and the figures where they are promised."""
    targets: list[Target] = []
    for leg in legs:
        targets += [
            equals(f"{leg.name}: answered and not final", leg.missing, 0, "transactions"),
            equals(f"{leg.name}: final more than once", leg.doubled, 0, "transactions"),
        ]
    peak = legs[0]
    if (half := find_leg(legs, "half")) is not None and options.is_promised:
        targets += [
            at_least("rate", round(peak.final_tps), TARGET_TPS[options.kind], "transactions/s"),
            at_least("recovery and execution", round(peak.hot_share, 3), HOT_SHARE, "of all CPU"),
            at_most("finality at half the target, p95", half.latency["p95"], LATENCY_LIMIT_S, "s"),
        ]
    if (overload := find_leg(legs, "overload")) is not None:
        targets += judge_overload(peak, overload)
    best = max(tries, key=lambda leg: leg.mined_tps, default=None)
    if best is not None and max(peak.cores_others, *(leg.cores_others for leg in tries)) <= QUIET_CORES:
        ratio = round(peak.final_tps / max(1.0, best.mined_tps), 2)
        targets.append(at_least("rate over anvil's best", ratio, ANVIL_RATIO, "times"))
    elif best is not None:
        say("anvil is not compared: others took too much of the machine; try: again when it is quiet")
    summary = (
        f"{options.kind}, {options.shards} shards, {options.cross:.0%} across: {peak.final_tps:,.0f} beacon-final tx/s "
        f"of {peak.offered_tps:,.0f} offered, {peak.cpu_us['total']:.1f} us CPU/tx, {peak.hot_share:.0%} of it recovery and "
        f"execution; finality p50 {legs[-1].latency['p50']:.2f} s p95 {legs[-1].latency['p95']:.2f} s at "
        f"{legs[-1].offered_tps:,.0f} tx/s"
    )
    if overload is not None:
        summary += f"; {overload.final_tps:,.0f} of {overload.offered_tps:,.0f} in overload"
    details: dict[str, Any] = {
        "options": msgspec.to_builtins(options, enc_hook=str),
        "legs": msgspec.to_builtins(legs),
        "anvil": msgspec.to_builtins(best),
        "anvil_tries": msgspec.to_builtins(tries),
    }
    return build_report("e2e", summary, targets, details)


# --- before the clock starts ---


def build_knobs(options: E2eOptions, number: int) -> FloodKnobs:
    """Return what run ``number`` sends: every run has accounts of its own."""
    return FloodKnobs(
        kind=options.kind,
        shards=options.shards,
        cross=options.cross,
        accounts=options.accounts,
        connections=options.connections or max(1, CONNECTIONS // options.shards),
        batch=options.batch,
        seed=options.seed * 100 + number,
        max_fee=MAX_FEE,
        tip=TIP,
        threads=os.cpu_count() or 1,
    )


async def _prepare(
    devnet: Devnet, options: E2eOptions, tokens: Sequence[Token | None], offer: Offer
) -> list[SignedPlan]:
    count = round((offer.rate or options.expected) * options.seconds / options.shards)
    plans = []
    for shard in range(options.shards):
        source = ShardSource(offer.knobs, shard)
        source.token = await fund_accounts(devnet.urls[shard], source, tokens[shard], count)
        started = time.monotonic()
        plans.append(await asyncio.to_thread(source.sign, count))
        say(
            f"shard {shard}: signed {len(plans[-1].hashes) // 32} transactions in {time.monotonic() - started:.1f} s"
        )
    return plans


# --- the run ---


async def _run_leg(devnet: Devnet, options: E2eOptions, tokens: Sequence[Token | None], offer: Offer) -> Leg:
    plans = await _prepare(devnet, options, tokens, offer)
    pids = await devnet.get_pids()
    watch, memory, beacon = Watch(devnet.urls), MemoryWatch(pids), list[Head]()
    await watch.start()
    floods = [Flood(url, plan.queues) for url, plan in zip(devnet.urls, plans, strict=True)]
    interval = offer.knobs.batch * options.shards / offer.rate if offer.rate else 0.0
    async with running(watch.run(), memory.run(), watch_beacon(devnet, beacon)):
        before, stages = read_cpu(pids), await watch.read_stages()
        started = time.monotonic()
        pacing = Pacing(started, options.seconds, interval, is_offered_again=offer.role == "overload")
        await _send_all(floods, pacing)
        ended = time.monotonic()
        await watch.wait_settled(DRAIN_S, count_messages(plans))
        used, elapsed_s = read_cpu(pids).since(before), time.monotonic() - started
        stages_after = await watch.read_stages()
    if not offer.rate and any(flood.is_exhausted for flood in floods):
        say(f"{offer.name}: a connection had sent all that was signed for it before the time was over")
    run = Run(
        plans=plans,
        floods=floods,
        watched=watch.shards,
        blocks=await watch.read_blocks(),
        beacon=beacon,
        span=(started, started + options.warm_up_s, ended),
        sending_s=min(ended - started, options.seconds),
        used=used,
        elapsed_s=elapsed_s,
        memory=memory,
        stages={name: value - stages.get(name, 0.0) for name, value in stages_after.items()},
        block_time_s=devnet.network.genesis.preset.block_time_ms / 1000,
    )
    return build_leg(offer.name, offer.role, run)


async def _send_all(floods: Sequence[Flood], pacing: Pacing) -> None:
    try:
        async with asyncio.TaskGroup() as group:
            for flood in floods:
                group.create_task(flood.run(pacing))
    except BaseExceptionGroup as errors:
        raise find_cause(errors) from errors


@contextlib.asynccontextmanager
async def running(*parts: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run ``parts`` while entered; raises what one of them raised, for then nobody has watched."""
    tasks = [asyncio.create_task(part) for part in parts]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        ends = await asyncio.gather(*tasks, return_exceptions=True)
    for end in ends:
        if isinstance(end, BaseExceptionGroup):
            raise find_cause(end) from end
        if isinstance(end, Exception):
            raise end


def count_messages(plans: Sequence[SignedPlan]) -> list[int]:
    """Return how many messages answered transactions have sent to each shard."""
    sent = Counter(crossing.dst for plan in plans for crossing in iterate_crossings(plan))
    return [sent[shard] for shard in range(len(plans))]
