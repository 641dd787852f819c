"""Every invariant has a planted bug that makes it fire: a checker that never fires proves nothing."""

from collections import deque
from itertools import accumulate

import msgspec
import pytest

from node.sim.disk import SignerDisk, SimDisk
from node.sim.executor import SimExecutor
from node.sim.invariants import InvariantError
from node.sim.node import SimNode
from node.sim.run import run
from node.sim.scenario import FaultProfile, Scenario
from node.sim.workload import TransactionPool, get_transaction
from node.sim.world import World
from shards.access_lists import AccessListShelf
from shards.replica import ShardReplica
from shardyard import effects as fx
from shardyard.consensus.signer import SignerState
from shardyard.ids import Hash32, ShardId

ROUGH = FaultProfile(latency_ms=(1, 600), drop=0.2, crashes=8, disk_ms=(5, 100), partitions=4)


def find(seeds=range(6), **changes):
    """Return the violations that seeds show."""
    scenario = Scenario(**({"duration_ms": 60_000, "settle_ms": 25_000, "tps": 6.0} | changes))
    violations = []
    for seed in seeds:
        result = run(seed, scenario=scenario)
        if not result.is_ok:
            violations.append(result.violation)
            break
    return violations[0][:3].rstrip(":") if violations else ""


def change_inbox(monkeypatch, change):
    original_build, original_execute = SimExecutor.start_build, SimExecutor.start_execute

    def altered(original):
        def start(self, effect):
            original(self, msgspec.structs.replace(effect, inbox=change(effect.inbox)))

        return start

    monkeypatch.setattr(SimExecutor, "start_build", altered(original_build))
    monkeypatch.setattr(SimExecutor, "start_execute", altered(original_execute))


def test_i1_wei_from_nowhere(monkeypatch):
    from crosslink.beacon import BeaconMachine

    original = BeaconMachine.get_supply

    def lie(self):
        table = original(self)
        return msgspec.structs.replace(
            table, burnt=(table.burnt[0] + self.state.height // 10, *table.burnt[1:])
        )

    monkeypatch.setattr(BeaconMachine, "get_supply", lie)
    assert find() == "I1"


def test_i1_an_executor_that_counts_otherwise_than_the_beacon(monkeypatch):
    world = World(1, Scenario(duration_ms=30_000, settle_ms=10_000))
    monkeypatch.setattr(world.checker, "_count_supply", lambda _shard, _head: 7)
    with pytest.raises(InvariantError, match="I1"):
        world.run()


def test_i2_a_receipt_executed_twice(monkeypatch):
    change_inbox(monkeypatch, lambda inbox: (*inbox[:1], *inbox))
    assert find() in {"I2", "I9", "I12", "I7"}


def test_i3_receipts_out_of_order(monkeypatch):
    change_inbox(monkeypatch, lambda inbox: tuple(reversed(inbox)))
    assert find(tps=20.0, seeds=range(10)) in {"I3", "I2"}


def test_i2_a_receipt_that_never_comes(monkeypatch):
    from crosslink.beacon import BeaconMachine

    monkeypatch.setattr(BeaconMachine, "_on_submission", lambda *_arguments, **_options: [])
    assert find() == "I2"


def test_i4_i8_i2_are_looked_at_for_every_delivery():
    scenario = Scenario(duration_ms=40_000, settle_ms=15_000, tps=6.0)
    assert run(1, scenario=scenario).report.counters["delivered"] > 10

    def fill(checker):
        checker._delivered.update(dict.fromkeys(checker._delivered, 1 << 40))

    for spoil, number in (
        (lambda checker: checker._crosslinked.clear(), "I8"),
        (lambda checker: checker._executed.clear(), "I4"),
        (lambda checker: checker._emitted.clear(), "I2"),
        (fill, "I2"),
    ):
        world = World(1, scenario)
        original = world.checker._on_shard_block

        def look(shard, block, world=world, spoil=spoil, original=original):
            spoil(world.checker)
            original(shard, block)

        world.checker._on_shard_block = look
        with pytest.raises(InvariantError, match=number):
            world.run()


def test_i5_a_log_that_is_not_synced_before_votes_leave(monkeypatch):
    """Without the barrier a crash forgets what was voted for; with the signer's record gone too, nodes vote twice."""
    original = SimNode.crash

    def forgetful(self):
        self.record = SignerDisk(self._genesis.network)
        return original(self)

    monkeypatch.setattr(SimNode, "crash", forgetful)
    assert find(replicas=4, seeds=range(20), profile=ROUGH) in {"I5", "I6"}


def test_i5_a_crosslink_of_a_head_that_is_not_final():
    world = World(1, Scenario(duration_ms=30_000, settle_ms=10_000))
    original = world.checker._on_crosslink
    world.checker._on_crosslink = lambda crosslink: original(
        msgspec.structs.replace(crosslink, head_hash=bytes(32))
    )
    with pytest.raises(InvariantError, match="I5"):
        world.run()


@pytest.mark.parametrize("byzantine", [(), (3,)])
def test_i5_a_crosslink_of_a_head_that_becomes_final_later(byzantine):
    """The beacon accepts what is merely notarized: every node of the shard has its final blocks later."""
    world = World(1, Scenario(duration_ms=30_000, settle_ms=10_000, tps=0.0))
    if byzantine:
        world.checker.accuse(ShardId(0), byzantine)
    original, late = world.checker.on_record, deque()

    def look_late(node, record):
        if node.chain == 0 and isinstance(record, fx.FinalRecord):
            late.append((node, record))
            delay_ms = 6_000 if world.clock.now_ms < 15_000 else 0
            world.clock.schedule(delay_ms, lambda: original(*late.popleft()))
        else:
            original(node, record)

    world.checker.on_record = look_late
    if byzantine:  # they may have told the beacon alone, so that nobody honest knows yet
        world.run()
    else:
        with pytest.raises(InvariantError, match=r"I5: .* of shard 0 .* all honest"):
            world.run()


def test_i6_signing_rules_that_are_off(monkeypatch):
    def allow(self, request):
        return "" if request.slot > self.floor else "below the floor"

    monkeypatch.setattr(SignerState, "explain_refusal", allow)
    assert find(replicas=4, seeds=range(20), profile=ROUGH) in {"I6", "I5"}


def test_i7_a_network_that_stays_cut():
    world = World(1, Scenario(duration_ms=40_000, settle_ms=20_000))
    world.nemesis.stop = lambda: setattr(world.bus, "is_out", True)
    with pytest.raises(InvariantError, match="I7"):
        world.run()


def test_i9_lists_that_are_given_to_the_executor_unseen(monkeypatch):
    """B6 left out: who passes a wrong list on makes an honest proposer look guilty."""
    monkeypatch.setattr(AccessListShelf, "_verify", lambda *_arguments: None)
    assert find(replicas=4, profile=FaultProfile(tamperers=1)) == "I9"


@pytest.mark.parametrize("is_refused_first", [True, False])
def test_i9_a_block_that_nodes_judge_otherwise_whoever_is_the_first(is_refused_first):
    world = World(1, Scenario())
    *_, one, other = world.nodes
    block_hash = Hash32(b"\x0b" * 32)

    def refuse():
        world.checker.on_notice(one, fx.Notice("block.invalid", one.chain, {"hash": block_hash}))

    def execute():
        world.checker.on_record(other, fx.ExecutionRecord(block_hash, ()))

    first, second = (refuse, execute) if is_refused_first else (execute, refuse)
    first()
    first()
    with pytest.raises(InvariantError, match=f"I9: {(other if is_refused_first else one).name}"):
        second()


def test_i12_a_machine_that_raises(monkeypatch):
    original = ShardReplica.step

    def fragile(self, event, now_ms):
        if self.engine.final_block.header.height == 5:
            raise KeyError("planted")
        return original(self, event, now_ms)

    monkeypatch.setattr(ShardReplica, "step", fragile)
    result = run(1, scenario=Scenario(duration_ms=30_000, settle_ms=10_000))
    assert result.violation.startswith("I12: KeyError")
    assert "shardyard sim replay --seed 1" in result.command


def test_i12_i13_a_disk_that_forgets_everything(monkeypatch):
    def forget(self, chance):
        self.wipe()
        return 1

    monkeypatch.setattr(SimDisk, "crash", forget)
    assert find(profile=ROUGH, replicas=1, beacon_replicas=1) in {"I5", "I12", "I7", "I13", "I2"}


def test_i13_a_transaction_that_is_never_included(monkeypatch):
    world = World(1, Scenario(duration_ms=30_000, settle_ms=10_000))
    world.pools[0].select = lambda _core, _parent: (b"", ())
    with pytest.raises(InvariantError, match="I13"):
        world.run()


def test_i14_a_tree_beyond_its_cap(monkeypatch):
    monkeypatch.setattr("node.sim.invariants.MAX_TREE", -1)
    assert find() == "I14"


def test_i15_a_machine_that_is_not_deterministic(monkeypatch):
    """What enters a trace differs as soon as one event does."""
    scenario = Scenario(duration_ms=30_000, settle_ms=10_000)
    plain = run(1, scenario=scenario).report.trace_hash
    calls = iter(range(10**9))
    original = SimNode._perform

    def moody(self, effect):
        if isinstance(effect, fx.SetTimer) and "propose" in effect.name and next(calls) == 20:
            effect = fx.SetTimer(effect.name, effect.delay_ms + 1)
        original(self, effect)

    monkeypatch.setattr(SimNode, "_perform", moody)
    assert run(1, scenario=scenario).report.trace_hash != plain


def test_i15_blocks_that_hold_something_else_at_the_same_instants(monkeypatch):
    """One process per chain, and one shard: only what is signed and becomes final tells the two runs apart."""
    scenario = Scenario(
        shards=1, replicas=1, beacon_replicas=1, duration_ms=30_000, settle_ms=10_000, tps=6.0
    )
    plain = run(1, scenario=scenario).report

    def select_backwards(self, core, parent):
        nonces = list(enumerate(self.get_nonces(core, parent)))
        raws = [
            get_transaction(1, self.shard, index, number)[0]
            for index, nonce in reversed(nonces)
            for number in range(nonce, self.offered[index])
        ]
        return b"".join(raws), tuple(accumulate(map(len, raws)))

    monkeypatch.setattr(TransactionPool, "select", select_backwards)
    other = run(1, scenario=scenario).report
    assert (other.events, other.heights, other.counters) == (plain.events, plain.heights, plain.counters)
    assert other.trace_hash != plain.trace_hash


def test_i7_votes_signed_before_what_they_rest_on_is_on_disk(monkeypatch):
    """The driver's first mistake: a FINAL on record whose block a power cut took forbids SKIP for ever (S5)."""
    original = SimNode._perform

    def hasty(self, effect):
        if isinstance(effect, fx.Sign):
            self._sign(effect.requests)
        else:
            original(self, effect)

    monkeypatch.setattr(SimNode, "_perform", hasty)
    profile = FaultProfile(crashes=25, down_ms=(10, 800), slow_disks=20, disk_ms=(5, 300))
    assert find(seeds=range(20), replicas=1, beacon_replicas=1, profile=profile) == "I7"
