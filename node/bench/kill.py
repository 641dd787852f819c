"""``kill``: random SIGKILLs over every kind of process, broker and launcher included, under load; then the audit.

Victims come from bags that hold every process once, so each kind dies equally often in an order nobody chose. With four
processes a shard or more, one of each shard dies in the same instant, the beacon beside some of them; broker and launcher die
alone. The next ones die when those before vote again and finality is back, after a pause of random length.

Kills come in legs, each with a network of its own that is drained and audited offline. A leg enters the ledger with its
verdict; a later run goes on behind it, and the verdict of the bench is over all legs of the same sources and options.
"""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec

from node.audit.answered import Answered
from node.audit.audit import AuditReport, audit_network
from node.audit.findings import Promise
from node.bench.devnet import LAUNCHER, Devnet
from node.bench.kill_ledger import KillLedger, KillOptions, Leg, Totals, add_up
from node.bench.report import (
    BenchReport,
    Target,
    at_least,
    at_most,
    build_report,
    describe_commit,
    equals,
    say,
)
from node.bench.revival import BROKER, GIVE_UP_S, Round, kill_together
from node.config import Options
from node.control import ControlError
from node.load.run import LoadRun, RunOptions
from node.load.workload import Knobs
from node.network import parse_node
from shardyard.errors import ShardyardError
from shardyard.ids import BEACON

CROSS_RATIO: Final = 0.3
RESUME_LIMIT_S: Final = 5.0
VOTING_LIMIT_S: Final = 3.0
PAUSE_S: Final = (0.2, 1.5)
WARM_UP_S: Final = 3.0
DRAIN_S: Final = 120.0
SIGN_AHEAD_S: Final = 10.0
SECONDS_PER_ROUND: Final = 40.0
"""For which accounts are funded; a round takes a tenth of it."""
MANY: Final = 4
"""Processes of one shard from which on one of them may be away without anybody waiting for it."""
DOUBLING: Final = frozenset({Promise.EXACTLY_ONCE, Promise.ORDER})


def plan_bag(nodes: Sequence[str], rng: random.Random) -> list[tuple[str, ...]]:
    """Return the rounds of one bag: which processes die together, every one of them once."""
    by_chain: dict[int, list[str]] = {}
    for node in nodes:
        by_chain.setdefault(parse_node(node)[0], []).append(node)
    beacon = by_chain.pop(BEACON, [])
    for members in by_chain.values():
        rng.shuffle(members)
    if by_chain and all(len(members) >= MANY for members in by_chain.values()):
        rounds = [list(victims) for victims in zip(*by_chain.values(), strict=True)]
        for victim in beacon:
            rng.choice(rounds).append(victim)
    else:
        rounds = [[node] for node in nodes]
    rounds += [[BROKER], [LAUNCHER]]
    rng.shuffle(rounds)
    return [tuple(victims) for victims in rounds]


def plan_leg(nodes: Sequence[str], kills: int, seed: int, number: int) -> list[tuple[str, ...]]:
    """Return the rounds of leg ``number``: whole bags, with at least ``kills`` victims in all."""
    rng = random.Random(f"{seed}/{number}")
    rounds: list[tuple[str, ...]] = []
    while sum(map(len, rounds)) < kills:
        rounds += plan_bag(nodes, rng)
    return rounds


async def measure_kills(
    folder: Path, options: KillOptions, path: Path, count: int, *, is_summary: bool
) -> BenchReport:
    """Run legs until the ledger at ``path`` holds ``count`` kills; with ``is_summary`` run none. Return the verdict on all."""
    ledger = KillLedger(path, options)
    stands = f"{path}: {len(ledger.legs)} legs with {ledger.kills} kills of these sources and options"
    say(f"{stands}; {ledger.others} other legs, {ledger.torn} torn lines")
    while ledger.kills < count and not is_summary:
        number = ledger.next_number
        kills = min(options.leg, count - ledger.kills)
        leg = await run_leg(folder / f"leg-{number}", options, ledger.sources, number, kills)
        ledger.append(leg)
        say(f"leg {number} is in the ledger: {describe(add_up_all([leg]))}")
    return judge(ledger, count)


async def run_leg(folder: Path, options: KillOptions, sources: str, number: int, kills: int) -> Leg:
    """Start a network, kill, drain, stop, audit."""
    started = time.monotonic()
    network = Options(
        name="kill",
        shards=options.shards,
        nodes_per_shard=options.nodes_per_shard,
        validators=options.validators,
    )
    devnet = Devnet(folder, network)
    rounds: list[Round] = []
    evidence: Counter[str] = Counter()
    error = ""
    plan = plan_leg(devnet.network.nodes, kills, options.seed, number)
    say(f"leg {number}: {sum(map(len, plan))} kills in {len(plan)} rounds")
    load = _build_load(devnet, options, number, len(plan))
    try:
        async with devnet:
            await load.prepare()
            try:
                await _kill_under_load(devnet, load, plan, rounds, evidence)
            except ShardyardError as failure:  # what a kill led to is a finding, not a mistake of the bench
                error = f"{type(failure).__name__}: {failure}"
                say(f"  {error}")
    finally:
        devnet.copy_logs(folder / "logs")
    answered = msgspec.convert(load.list_answered(), list[Answered])
    audit = await asyncio.to_thread(audit_network, devnet.network, answered)
    result = load.build_result()
    found = audit.answered
    assert found is not None, "the audit was given the answered transactions"
    if not error and audit.in_flight:
        error = f"{audit.in_flight} messages were in flight at the end"
    if not error and result.problems:
        error = f"the load is invalid: {'; '.join(result.problems)}"
    return Leg(
        sources=sources,
        options=options,
        number=number,
        network=devnet.network.genesis.network.hex(),
        rounds=tuple(rounds),
        sent=result.sent,
        lost=found.missing + result.lost + result.rejected,
        doubled=result.repeated + _count_broken(audit, DOUBLING),
        equivocations=len(evidence),
        broken={str(row.promise): row.broken for row in audit.rows if row.broken},
        error=error,
        seconds=round(time.monotonic() - started, 1),
        commit=describe_commit(),
        at=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _count_broken(audit: AuditReport, promises: frozenset[Promise]) -> int:
    return sum(row.broken for row in audit.rows if row.promise in promises)


def _build_load(devnet: Devnet, options: KillOptions, number: int, rounds: int) -> LoadRun:
    knobs = Knobs(
        options.shards,
        options.tps,
        CROSS_RATIO if options.shards > 1 else 0.0,
        accounts=32,
        seed=options.seed + number,
    )
    duration_s = WARM_UP_S + rounds * SECONDS_PER_ROUND
    return LoadRun(devnet.urls, knobs, RunOptions(duration_s, drain_s=DRAIN_S, sign_ahead_s=SIGN_AHEAD_S))


async def _kill_under_load(
    devnet: Devnet,
    load: LoadRun,
    plan: Sequence[tuple[str, ...]],
    rounds: list[Round],
    evidence: Counter[str],
) -> None:
    rng = random.Random(load.knobs.seed)
    started = time.monotonic()
    sending = asyncio.create_task(load.send(), name="load")
    kills = 0
    try:
        await asyncio.sleep(WARM_UP_S)
        for victims in plan:
            await _collect_evidence(devnet, evidence)  # what the next victims know dies with them
            one = await kill_together(devnet, victims, started)
            rounds.append(one)
            kills += len(victims)
            say(f"  {kills:4d} {_describe_round(one)}")
            if sending.done():
                break
            await asyncio.sleep(rng.uniform(*PAUSE_S))
        load.stop()
        await sending
        await _collect_evidence(devnet, evidence)
    finally:
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)


async def _collect_evidence(devnet: Devnet, evidence: Counter[str]) -> None:
    """Add what nodes hold against validators; the same pair of several nodes counts once."""
    for node in devnet.network.nodes:
        try:
            found = (await devnet.ask(node, "status")).get("evidence", {})
        except ControlError:
            continue
        for pair, count in found.items():
            key = f"{parse_node(node)[0]}: {pair}"
            evidence[key] = max(evidence[key], count)


def _describe_round(one: Round) -> str:
    parts = []
    for revival in one.revivals:
        if not revival.nodes:
            parts.append(revival.victim)
        else:
            voting = f"{revival.voting_s:.2f} s" if revival.voting_s >= 0 else "never"
            parts.append(f"{revival.victim} votes after {voting}")
    final = f"{one.resumed_s:.2f} s" if one.resumed_s >= 0 else "never"
    return f"at {one.at_s:6.1f} s: {', '.join(parts)}; finality back after {final}"


def add_up_all(legs: Sequence[Leg]) -> Totals:
    """Return the totals of ``legs`` as this bench counts."""
    return add_up(legs, give_up_s=GIVE_UP_S, launcher=LAUNCHER)


def describe(totals: Totals) -> str:
    """Return the totals in a line."""
    voting, respawn, finality = totals.voting, totals.voting_after_respawn, totals.finality
    launcher = totals.launcher_voting
    return (
        f"{totals.kills} kills, {totals.sent} transactions sent, {totals.lost} lost, {totals.doubled} doubled, "
        f"{totals.equivocations} equivocations, {sum(totals.broken.values())} audit findings; "
        f"restart to voting p50 {voting.p50:.2f} s p99 {voting.p99:.2f} s max {voting.max:.2f} s "
        f"(from the new process on p50 {respawn.p50:.2f} s p99 {respawn.p99:.2f} s), "
        f"finality back p50 {finality.p50:.2f} s p99 {finality.p99:.2f} s max {finality.max:.2f} s, "
        f"after a launcher, which takes all down, all vote p50 {launcher.p50:.2f} s max {launcher.max:.2f} s, "
        f"finality back max {totals.launcher_finality.max:.2f} s"
    )


def judge(ledger: KillLedger, count: int) -> BenchReport:
    """Return the verdict over all legs: nothing lost or doubled, nobody equivocated, votes and finality back in time."""
    totals = add_up_all(ledger.legs)
    targets: list[Target] = [
        at_least("kills", totals.kills, count, "kills"),
        equals("lost", totals.lost, 0, "transactions"),
        equals("doubled", totals.doubled, 0, "transactions or messages"),
        equals("equivocations", totals.equivocations, 0, "pairs"),
        equals("legs that failed", len(totals.failed_legs), 0, "legs"),
        equals("processes that stayed away", totals.away, 0, "processes"),
        at_most("restart to voting, p99", totals.voting.p99, VOTING_LIMIT_S, "s"),
        at_most("finality back, p99", totals.finality.p99, RESUME_LIMIT_S, "s"),
    ]
    targets += [equals(f"broken: {name}", broken, 0, "findings") for name, broken in totals.broken.items()]
    details = {
        "options": msgspec.to_builtins(ledger.options),
        "sources": ledger.sources,
        "totals": msgspec.to_builtins(totals),
        "legs": msgspec.to_builtins(ledger.legs),
    }
    for leg in ledger.legs:
        if leg.error:
            say(f"leg {leg.number} of network {leg.network[:16]}: {leg.error}")
    return build_report("kill", describe(totals), targets, details)
