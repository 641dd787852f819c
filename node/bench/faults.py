"""``faults``: live promises on real processes: four validators a shard, each a process, under load, while some of them fail.

One of four of every shard down for good: finality keeps its pace. Two of four down: a safe halt, and
finality within seconds after one returns. Even and uneven partitions heal to one chain. A process stopped for half a minute,
one whose disk is full and one that equivocates do no harm. At the end every check and the offline audit must hold.
"""

import asyncio
import time
from pathlib import Path
from typing import Any, Final

import msgspec

from node.audit.answered import Answered
from node.audit.audit import AuditReport, audit_network
from node.bench.devnet import LAUNCHER, Devnet
from node.bench.heads import HeadBook, Progress
from node.bench.report import BenchReport, Target, at_least, at_most, build_report, equals, say
from node.checks.conservation import check_conservation
from node.checks.finality import check_finality
from node.checks.forks import check_no_forks
from node.checks.liveness import check_liveness
from node.checks.verdict import Verdict
from node.config import Options
from node.control import ask
from node.load.result import LoadResult
from node.load.run import LoadRun, RunOptions
from node.load.workload import Knobs
from node.network import parse_node
from shardyard.ids import BEACON, describe_shard

NODES: Final = 4
HEAL_LIMIT_S: Final = 5.0
GIVE_UP_S: Final = 60.0
SETTLE_S: Final = 3.0
"""After a fault begins, for what was on its way."""
PACE_LEFT: Final = 0.95
"""Share of the usual blocks that must become final while one of four is away, less one at the edge of the window."""
FAULT_TIMEOUT_S: Final = 30.0


class FaultOptions(msgspec.Struct, frozen=True):
    """What the bench is told; times in seconds."""

    seed: int
    shards: int = 2
    watch_s: float = 30.0
    pause_s: float = 30.0
    halt_s: float = 15.0
    tps: float = 10.0


class Run:
    """One network, and everything that was found about it."""

    def __init__(self, devnet: Devnet, heads: HeadBook, options: FaultOptions) -> None:
        self.devnet = devnet
        self.heads = heads
        self.options = options
        self.targets: list[Target] = []
        self.details: dict[str, Any] = {}
        self.shards = [describe_shard(shard) for shard in range(options.shards)]
        self.baseline: dict[str, float] = {}
        preset = devnet.network.genesis.preset
        self.longest_gap_s = (preset.block_time_ms + preset.delta_ms) / 1000 + 0.5
        """A leader that is away costs Δ of the next one's wait (L6); half a second is for a busy machine."""
        self.missed_turn_s = ((NODES + 1) * preset.block_time_ms + 2 * preset.delta_ms) / 1000 + 0.5
        """Within this, whoever goes away misses its first turn, for which it is waited as usual, and is known to be away."""

    def list_nodes(self, *numbers: int) -> tuple[str, ...]:
        """Return the nodes with these numbers of every shard."""
        return tuple(f"{shard}-{number}" for number in numbers for shard in self.shards)

    async def begin(self, kind: str, *nodes: str, **more: Any) -> int:
        """Begin a fault and return its number."""
        path = self.devnet.network.get_control_path(LAUNCHER)
        found = await ask(path, "fault", timeout_s=FAULT_TIMEOUT_S, kind=kind, nodes=nodes, **more)
        say(f"  fault {found['fault']['id']}: {kind} {found['fault']['text']}")
        self._note_untold(f"{kind} begins", found["untold"])
        return int(found["fault"]["id"])

    async def heal(self, *faults: int) -> None:
        """Heal faults; all of them without a number."""
        path = self.devnet.network.get_control_path(LAUNCHER)
        found = await ask(path, "heal", timeout_s=FAULT_TIMEOUT_S, faults=faults)
        self._note_untold("healed", found["untold"])

    def _note_untold(self, what: str, untold: list[str]) -> None:
        """A leg whose processes do not know of it measures something else."""
        if untold:
            say(f"    did not hear of it: {', '.join(untold)}")
            self.targets.append(equals(f"{what}: processes that did not hear", len(untold), 0, "processes"))

    async def time_healing(self, name: str, nodes: tuple[str, ...], *faults: int) -> None:
        """Heal ``faults`` and note how long until each of ``nodes`` has a final block that nobody had before."""
        wanted = {node: self.heads.get_height(describe_shard(parse_node(node)[0])) for node in nodes}
        started = time.monotonic()
        await self.heal(*faults)
        await self.heads.wait_beyond(wanted, GIVE_UP_S)
        took = time.monotonic() - started
        say(f"    final again on {len(nodes)} nodes after {took:.2f} s")
        self.targets.append(at_most(name, took, HEAL_LIMIT_S, "s"))

    async def watch_pace(self, name: str, seconds: float) -> list[Progress]:
        """Watch the shards with a leader known to be away: they keep their pace, and no gap is longer than Δ explains."""
        await asyncio.sleep(self.missed_turn_s)
        found = await self.heads.watch(self.shards, seconds)
        slowest = min(found, key=lambda one: one.blocks / self.baseline[one.chain])
        share = slowest.blocks_per_s / self.baseline[slowest.chain]
        due = self.baseline[slowest.chain] * slowest.seconds
        self.targets += [
            at_least(f"{name}, final blocks", slowest.blocks, int(PACE_LEFT * due) - 1, "blocks"),
            at_most(f"{name}, longest gap", max(one.longest_gap_s for one in found), self.longest_gap_s, "s"),
        ]
        self.details[name] = {
            "share of the usual pace": round(share, 3),
            "shards": msgspec.to_builtins(found),
        }
        return found


async def run_legs(run: Run) -> None:
    """Let one fault after the other happen, and measure what it costs."""
    options, heads = run.options, run.heads
    say("usual pace")
    for one in await heads.watch(run.shards, options.watch_s / 2):
        run.baseline[one.chain] = max(one.blocks_per_s, 1e-9)
    run.details["usual pace"] = dict(run.baseline)

    say("one of four down for good")
    down = await run.begin("kill", *run.list_nodes(3))
    await run.watch_pace("one of four down", options.watch_s)

    say("two of four down")
    second = await run.begin("kill", *run.list_nodes(2))
    await _watch_halt(run, "two of four down")
    await run.time_healing("finality after the second returns", run.list_nodes(0, 1, 2), second)
    await run.time_healing("finality after all return", run.list_nodes(0, 1, 2, 3), down)

    say("partition two against two")
    cut = await run.begin("partition", *run.list_nodes(2, 3))
    await _watch_halt(run, "partition two against two")
    await run.time_healing("even partition heals", run.list_nodes(0, 1, 2, 3), cut)

    say("partition three against one")
    cut = await run.begin("partition", *run.list_nodes(3))
    await run.watch_pace("partition three against one", options.halt_s)
    await run.time_healing("uneven partition heals", run.list_nodes(0, 1, 2, 3), cut)

    say(f"SIGSTOP for {options.pause_s:.0f} s")
    paused = await run.begin("pause", *run.list_nodes(1))
    await run.watch_pace("one of four asleep", options.pause_s - run.missed_turn_s)
    await run.time_healing("sleeper is back", run.list_nodes(1), paused)

    say("full disk")
    restarts = await _count_restarts(run)
    full = await run.begin("full-disk", *run.list_nodes(2))
    await run.watch_pace("one of four with a full disk", options.halt_s)
    stopped = sum((await _count_restarts(run)).values()) - sum(restarts.values())
    run.targets.append(at_least("stops for want of a disk", stopped, len(run.shards), "stops"))
    # The launcher waits ever longer between starts, 5 s at most, so as not to spin on a disk that stays full.
    started = time.monotonic()
    wanted = {node: heads.get_height(describe_shard(parse_node(node)[0])) for node in run.list_nodes(2)}
    await run.heal(full)
    await heads.wait_beyond(wanted, GIVE_UP_S)
    run.targets.append(at_most("disk has room again", time.monotonic() - started, 2 * HEAL_LIMIT_S, "s"))

    say("one of four equivocates")
    for shard in run.shards:
        await run.begin("byzantine", f"{shard}-1", mode="equivocate")
    await heads.watch(run.shards, options.halt_s)
    run.targets += judge_evidence(await _collect_evidence(run), {shard: f"{shard}-1" for shard in run.shards})
    await run.time_healing("finality after lies", run.list_nodes(0, 1, 2, 3))


async def _watch_halt(run: Run, name: str) -> None:
    """Watch shards without a quorum: no final block, while the beacon goes on."""
    await asyncio.sleep(SETTLE_S)
    found = await run.heads.watch([*run.shards, describe_shard(BEACON)], run.options.halt_s)
    blocks = sum(one.blocks for one in found if one.chain in run.shards)
    run.targets.append(equals(f"{name}, final blocks meanwhile", blocks, 0, "blocks"))
    run.details[name] = msgspec.to_builtins(found)


async def _count_restarts(run: Run) -> dict[str, int]:
    nodes = await run.devnet.ask(LAUNCHER, "nodes")
    return {node["node"]: int(node["restarts"]) for node in nodes}


async def _collect_evidence(run: Run) -> dict[str, set[int]]:
    """Return which validators of its chain each node of the shards has evidence against."""
    found = {
        node: {parse_accused(words) for words in (await run.devnet.ask(node, "status"))["evidence"]}
        for node in run.list_nodes(*range(NODES))
    }
    run.details["evidence"] = {node: sorted(accused) for node, accused in found.items()}
    return found


def parse_accused(words: str) -> int:
    """Return the validator that evidence accuses, as ``describe_evidence`` words it."""
    return int(words.partition(":")[0].removeprefix("validator "))


def judge_evidence(evidence: dict[str, set[int]], liars: dict[str, str]) -> list[Target]:
    """Return what must hold of the ``evidence`` of each node, when of each shard the node in ``liars`` alone has lied.

    Every other node has it against that node's validator, and nobody has any against others.
    """
    honest = missing = wrong = 0
    for node, accused in evidence.items():
        liar = liars[node.rpartition("-")[0]]
        _, guilty = parse_node(liar)  # one validator a node: they have the same number
        wrong += len(accused - {guilty})
        if node != liar:
            honest += 1
            missing += guilty not in accused
    return [
        equals("honest nodes with evidence against the liar", honest - missing, honest, "nodes"),
        equals("accusations of honest validators", wrong, 0, "accusations"),
    ]


async def _check_all(run: Run) -> list[Verdict]:
    network = run.devnet.network
    return [
        await check_liveness(network, 3 * HEAL_LIMIT_S),
        await check_finality(network),
        await check_no_forks(network, 0),
        await check_conservation(network),
    ]


async def measure_faults(folder: Path, options: FaultOptions) -> BenchReport:
    """Run all legs under load, check, stop, audit."""
    wanted = Options(name="faults", shards=options.shards, nodes_per_shard=NODES, validators=NODES)
    devnet = Devnet(folder, wanted)
    try:
        async with devnet, HeadBook(devnet) as heads:
            run = Run(devnet, heads, options)
            load, verdicts = await _run_under_load(run)
    finally:
        devnet.copy_logs(folder / "logs")
    say("auditing offline")
    answered = msgspec.convert(load.list_answered(), list[Answered])
    audit = audit_network(devnet.network, answered, say)
    return judge(run, verdicts, load.build_result(), audit)


async def _run_under_load(run: Run) -> tuple[LoadRun, list[Verdict]]:
    options = run.options
    knobs = Knobs(
        options.shards, options.tps, 0.3 if options.shards > 1 else 0.0, accounts=16, seed=options.seed
    )
    duration_s = 4 * options.watch_s + 2 * options.pause_s + 8 * options.halt_s + 2 * GIVE_UP_S
    load = LoadRun(run.devnet.urls, knobs, RunOptions(duration_s, drain_s=GIVE_UP_S, sign_ahead_s=10.0), say)
    await load.prepare()
    sending = asyncio.create_task(load.send(), name="load")
    try:
        await asyncio.sleep(SETTLE_S)
        await run_legs(run)
        load.stop()
        await sending
        return load, await _check_all(run)
    finally:
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)


def judge(run: Run, verdicts: list[Verdict], load: LoadResult, audit: AuditReport) -> BenchReport:
    """Return the report: paces and times, what the checks say, and that nothing answered is lost."""
    found = audit.answered
    assert found is not None, "the audit was given the answered transactions"
    targets = [
        *run.targets,
        equals("held by the machine", round(run.heads.stood_still_s, 1), 0, "s"),
        *(equals(f"check {one.check} fails", int(not one.held), 0, "checks") for one in verdicts),
        equals("answered and missing", found.missing, 0, "transactions"),
        equals("messages in flight at the end", audit.in_flight, 0, "messages"),
        *(equals(f"broken: {row.promise}", row.broken, 0, "findings") for row in audit.rows),
    ]
    for target in run.targets:
        say(f"  {target.name:<45} {target.got:8g} {target.unit} (target {target.limit:g})")
    for one in verdicts:
        say(f"  check {one.check}: {'holds' if one.held else 'FAILS'}: {one.words}")
        for finding in one.findings:
            say(f"    {finding}")
    got = {target.name: target.got for target in run.targets}
    share = run.details["one of four down"]["share of the usual pace"]
    summary = (
        f"1 of 4 down: {share:.0%} of the usual pace; "
        f"2 of 4 down: halt, back after {got['finality after the second returns']:.1f} s; partitions heal in "
        f"{got['even partition heals']:.1f} s and {got['uneven partition heals']:.1f} s; after SIGSTOP "
        f"{got['sleeper is back']:.1f} s, after a full disk {got['disk has room again']:.1f} s; "
        f"{load.sent} sent, {found.missing} lost, {sum(row.broken for row in audit.rows)} audit findings"
    )
    details = {
        "options": msgspec.to_builtins(run.options),
        **run.details,
        "verdicts": msgspec.to_builtins(verdicts),
        "load": msgspec.to_builtins(load),
        "audit": msgspec.to_builtins(audit),
    }
    return build_report("faults", summary, targets, details)
