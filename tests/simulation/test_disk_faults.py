"""Disks that fail, fill up and rot, records that are lost: what is promised then, over whole networks."""

import pytest

from node.sim.disk import SignerDisk, SimDisk
from node.sim.invariants import InvariantError
from node.sim.node import SimNode
from node.sim.run import describe_result, run
from node.sim.scenario import FaultProfile, Scenario
from node.sim.world import World
from shardyard.ids import BEACON

SLOW = {"disk_ms": (1, 80), "latency_ms": (1, 150)}


def run_scenario(seed=1, **changes):
    result = run(seed, scenario=Scenario(**({"duration_ms": 70_000, "settle_ms": 35_000} | changes)))
    assert result.is_ok, describe_result(result)
    return result.report


@pytest.mark.parametrize("seed", range(3))
def test_disks_that_fail_and_fill_up_end_processes_and_break_nothing(seed):
    profile = FaultProfile(full_disks=4, io_errors=8, crashes=4, **SLOW)
    report = run_scenario(seed, profile=profile, replicas=1, beacon_replicas=1)
    assert report.faults["full disk"] >= 1
    assert report.faults["io error"] >= 4
    assert report.consequences["fail-stop"] >= 6
    assert "fail-stop" not in report.faults, "a fault and what it leads to are one fault"


@pytest.mark.parametrize("seed", range(3))
def test_rot_and_lost_records_of_less_than_a_third_break_nothing(seed):
    faults = run_scenario(seed, profile=FaultProfile(bit_flips=2, lost_records=1, crashes=4, **SLOW)).faults
    assert faults["bit flip"] + faults["lost record"] == 3


def test_a_damaged_log_is_refused_replaced_and_filled_again_by_others():
    replaced = 0
    for seed in range(12):
        world = World(seed, Scenario(duration_ms=60_000, settle_ms=30_000, profile=FaultProfile(bit_flips=3)))
        replaced += world.run().consequences.get("log replaced", 0)  # I7: every honest node has followed
    assert replaced >= 5


def test_without_its_record_a_node_follows_and_signs_nothing():
    world = World(2, Scenario(duration_ms=70_000, settle_ms=40_000, profile=FaultProfile(lost_records=2)))
    asked = []
    original = SimNode._sign

    def sign(self, requests):
        if not self.is_record_lost:
            asked.append((self, world.clock.now_ms))
        original(self, requests)

    for node in world.nodes:
        node._sign = sign.__get__(node)
    report = world.run()
    assert report.faults["lost record"] == 2
    silent = [node for node in world.nodes if node.is_record_lost]
    assert silent
    assert BEACON not in {node.chain for node in silent}, "the beacon's rejoin"
    for node in silent:
        assert node.machine.engine.final_block.header.height > 30
        last = max(at for signer, at in asked if signer is node)
        assert last < 70_000 - 40_000, "it signed until it lost its record"


def test_a_third_never_loses_what_its_promises_rest_on():
    world = World(1, Scenario(duration_ms=60_000, settle_ms=30_000, profile=FaultProfile(lost_records=30)))
    world.run()
    for chain in world.genesis.committees:
        if chain != BEACON:
            assert sum(node.is_record_lost for node in world.nodes if node.chain == chain) == 1


def test_an_old_copy_of_a_record_may_convict_its_own_validator_and_nobody_else(monkeypatch):
    """Where the witness of the record is set back as well; I6 names whoever else is convicted."""
    monkeypatch.setattr("node.sim.disk_faults.MAX_LACKING", 400)
    original = SignerDisk.restore_copy

    def restore_with_witness(self, chance, batches):
        self.witness = 0
        return original(self, chance, batches)

    monkeypatch.setattr(SignerDisk, "restore_copy", restore_with_witness)
    profile = FaultProfile(old_records=9, down_ms=(1, 5), latency_ms=(1, 900), drop=0.25)
    convicted = 0
    for seed in range(10):
        world = World(seed, Scenario(duration_ms=60_000, settle_ms=30_000, profile=profile))
        world.run()
        convicted += len(world.checker.convicted)
    assert convicted > 0


def test_a_log_that_is_refused_although_nobody_damaged_it_is_a_violation(monkeypatch):
    original = SimDisk.crash

    def rot(self, chance):
        lost = original(self, chance)
        self.flip_bit(chance)
        return lost

    monkeypatch.setattr(SimDisk, "crash", rot)
    world = World(
        1,
        Scenario(
            duration_ms=60_000,
            settle_ms=30_000,
            replicas=1,
            beacon_replicas=1,
            profile=FaultProfile(crashes=12, down_ms=(50, 2_000)),
        ),
    )
    with pytest.raises(InvariantError, match="refuses a log that nobody damaged"):
        world.run()


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_an_error_of_a_sync_ends_a_process_once_however_soon_it_is_back(seed, monkeypatch):
    """What fails is one sync (EIO): the process that its supervisor starts again works."""
    monkeypatch.setattr("node.sim.disk_faults.RESTART_MS", (1, 5))
    profile = FaultProfile(io_errors=1, down_ms=(8_000, 8_000))
    report = run_scenario(seed, profile=profile, duration_ms=36_000, settle_ms=20_000, replicas=1)
    assert report.faults == {"io error": 1}
    assert report.consequences["fail-stop"] == 1


def test_a_full_disk_ends_every_process_that_writes_to_it_until_there_is_room(monkeypatch):
    monkeypatch.setattr("node.sim.disk_faults.RESTART_MS", (100, 100))
    profile = FaultProfile(full_disks=1, cut_ms=(6_000, 6_000))
    report = run_scenario(2, profile=profile, duration_ms=40_000, settle_ms=20_000, replicas=1)
    assert report.faults == {"full disk": 1}
    assert report.consequences["fail-stop"] > 3
