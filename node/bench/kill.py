"""``kill``: random SIGKILLs over every kind of process, broker and launcher included, under load; then the audit.

Victims come from a bag that holds every process once and is shuffled anew when empty, so each kind dies equally often in an
order nobody chose. The next one dies when finality is back, after a pause of random length.
"""

import asyncio
import random
import time
from pathlib import Path

import msgspec

from node.audit.answered import Answered
from node.audit.audit import AuditReport, audit_network
from node.bench.devnet import Devnet
from node.bench.recovery import GIVE_UP_S, Recovery, kill_and_wait
from node.bench.report import BenchReport, Target, at_most, build_report, equals, say
from node.config import Options
from node.load.result import LoadResult, compute_latency
from node.load.run import LoadRun, RunOptions
from node.load.workload import Knobs

TPS = 100.0
CROSS_RATIO = 0.3
RESUME_LIMIT_S = 5.0
PAUSE_S = (0.2, 2.0)
WARM_UP_S = 3.0
DRAIN_S = 120.0
SIGN_AHEAD_S = 10.0
SECONDS_PER_KILL = 12.0
"""For which accounts are funded; kills take a third of it."""


class KillOptions(msgspec.Struct, frozen=True):
    """What the bench is told."""

    count: int
    seed: int
    tps: float = TPS
    shards: int = 4


def list_victims(processes: list[str], count: int, seed: int) -> list[str]:
    """Return ``count`` victims drawn from shuffled bags of ``processes``."""
    rng = random.Random(seed)
    victims: list[str] = []
    while len(victims) < count:
        bag = list(processes)
        rng.shuffle(bag)
        victims += bag
    return victims[:count]


async def run_kills(folder: Path, options: KillOptions) -> tuple[list[Recovery], LoadResult, AuditReport]:
    """Kill, load, stop, audit."""
    devnet = Devnet(folder, Options(name="kill", shards=options.shards, validators=4))
    try:
        async with devnet:
            recoveries, load = await _kill_under_load(devnet, options)
    finally:
        devnet.copy_logs(folder / "logs")
    say("auditing offline")
    answered = msgspec.convert(load.list_answered(), list[Answered])
    return recoveries, load.build_result(), audit_network(devnet.network, answered, say)


async def _kill_under_load(devnet: Devnet, options: KillOptions) -> tuple[list[Recovery], LoadRun]:
    knobs = Knobs(
        options.shards,
        options.tps,
        CROSS_RATIO if options.shards > 1 else 0.0,
        accounts=32,
        seed=options.seed,
    )
    duration_s = WARM_UP_S + options.count * max(SECONDS_PER_KILL, GIVE_UP_S / 2)
    load = LoadRun(
        devnet.urls, knobs, RunOptions(duration_s, drain_s=DRAIN_S, sign_ahead_s=SIGN_AHEAD_S), say
    )
    await load.prepare()
    rng = random.Random(options.seed)
    recoveries: list[Recovery] = []
    started = time.monotonic()
    sending = asyncio.create_task(load.send(), name="load")
    try:
        await asyncio.sleep(WARM_UP_S)
        for number, victim in enumerate(list_victims(devnet.processes, options.count, options.seed), start=1):
            recovery = await kill_and_wait(devnet, load.tracker, victim, started)
            recoveries.append(recovery)
            say(
                f"kill {number}/{options.count} {victim:<10} at {recovery.at_s:6.1f} s: final again after "
                f"{recovery.resumed_s:.2f} s, beacon-final after {recovery.beacon_final_s:.2f} s"
            )
            if sending.done():
                break
            await asyncio.sleep(rng.uniform(*PAUSE_S))
        load.stop()
        await sending
    finally:
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
    return recoveries, load


def judge(
    options: KillOptions, recoveries: list[Recovery], load: LoadResult, audit: AuditReport
) -> BenchReport:
    """Return the report: every answered hash accounted for, nothing doubled, supply exact, finality back in time."""
    resumed = [recovery.resumed_s if recovery.resumed_s >= 0 else GIVE_UP_S for recovery in recoveries]
    beacon = [
        recovery.beacon_final_s if recovery.beacon_final_s >= 0 else GIVE_UP_S for recovery in recoveries
    ]
    found = audit.answered
    assert found is not None, "the audit was given the answered transactions"
    targets: list[Target] = [
        equals("kills", len(recoveries), options.count, "kills"),
        at_most("finality resumes, worst", max(resumed, default=GIVE_UP_S), RESUME_LIMIT_S, "s"),
        equals("answered and missing", found.missing, 0, "transactions"),
        equals("sent and lost or refused", load.lost + load.rejected, 0, "transactions"),
        equals("seen twice", load.repeated, 0, "transactions"),
        equals("messages in flight at the end", audit.in_flight, 0, "messages"),
    ]
    targets += [equals(f"broken: {row.promise}", row.broken, 0, "findings") for row in audit.rows]
    spread, final = compute_latency(resumed), compute_latency(beacon)
    summary = (
        f"{len(recoveries)} kills under {load.sent_tps:g} tx/s, {load.sent} sent, {found.missing} lost, "
        f"{sum(row.broken for row in audit.rows)} audit findings, finality back p50 {spread.p50:.2f} s max {spread.max:.2f} s, "
        f"beacon-final p50 {final.p50:.2f} s max {final.max:.2f} s"
    )
    details = {
        "options": msgspec.to_builtins(options),
        "recoveries": msgspec.to_builtins(recoveries),
        "load": msgspec.to_builtins(load),
        "audit": msgspec.to_builtins(audit),
    }
    return build_report("kill", summary, targets, details)
