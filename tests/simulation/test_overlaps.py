"""Faults that overlap: each ends by itself, and what several hold is free when the last of them has ended."""

import random
from itertools import permutations

import pytest

from node.sim import nemesis
from node.sim.nemesis import Nemesis
from node.sim.scenario import FaultProfile, Scenario
from node.sim.world import World

BETWEEN = ("partition", "flap", "lost session", "overflow", "outage")
OF_DISKS = ("slow disk", "full disk")


@pytest.fixture
def ends(monkeypatch):
    """What ends the faults that struck, for the test to call when it likes; they strike at once."""
    found = []
    monkeypatch.setattr(nemesis, "DOOM_CHANCE", 0.0)
    monkeypatch.setattr(Nemesis, "_later", lambda _self, _chance, _bounds, action: found.append(action))
    return found


def build_world():
    world = World(1, Scenario(duration_ms=60_000, settle_ms=15_000, profile=FaultProfile(disk_ms=(1, 30))))
    for node in world.nodes:
        node.start()
    return world


def strike(world, kind):
    """Every strike of one kind hits the same nodes."""
    world.nemesis._blows[kind](random.Random(3))


def is_troubled(world):
    """Whether some message would be lost, or some disk is not as it should be."""
    bus, names = world.bus, [node.name for node in world.nodes]
    bus._waiting.update(dict.fromkeys(names, 100))
    return any(bus._is_lost(one, other) for one, other in permutations(names, 2)) or any(
        node.disk_ms != (1, 30) or node.disk.is_failing or node.record.is_failing for node in world.nodes
    )


@pytest.mark.parametrize("kind", [*BETWEEN, *OF_DISKS])
@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_the_end_of_one_fault_is_not_the_end_of_another(kind, order, ends):
    world = build_world()
    assert not is_troubled(world)
    strike(world, kind)
    strike(world, kind)
    assert is_troubled(world)
    assert world.nemesis.faults[kind] == 2
    for place in order:
        assert is_troubled(world)
        ends[place]()
    assert not is_troubled(world)


def test_of_two_short_queues_the_shorter_one_holds_as_long_as_it_lasts():
    bus, (one, other) = build_world().bus, ("shard-0-0", "shard-0-1")
    bus._waiting[other] = 3
    bus.shorten(other, 2)
    bus.shorten(other, 5)
    assert bus._is_lost(one, other)
    bus.lengthen(other, 2)
    assert not bus._is_lost(one, other)
    bus.lengthen(other, 5)
    bus._waiting[other] = 100
    assert not bus._is_lost(one, other)


def test_a_partition_does_not_end_with_a_flap(ends):
    world = build_world()
    strike(world, "flap")
    world.nemesis._blows["partition"](random.Random(8))
    names = [node.name for node in world.nodes]
    cut = {pair for pair in permutations(names, 2) if world.bus._is_lost(*pair)}
    ends[0]()
    left = {pair for pair in permutations(names, 2) if world.bus._is_lost(*pair)}
    ends[1]()
    assert left < cut
    assert not any(world.bus._is_lost(*pair) for pair in left)
    world.nemesis._blows["partition"](random.Random(8))
    assert left == {pair for pair in permutations(names, 2) if world.bus._is_lost(*pair)}


def test_a_stop_does_not_end_with_an_earlier_one_whose_process_is_dead(ends):
    world = build_world()
    strike(world, "freeze")
    node = next(node for node in world.nodes if node.is_frozen)
    node.crash()
    node.start()
    strike(world, "freeze")
    assert node.is_frozen
    assert world.nemesis.faults["freeze"] == 2
    ends[0]()
    assert node.is_frozen
    ends[1]()
    assert not node.is_frozen


@pytest.mark.parametrize("kind", [*BETWEEN, *OF_DISKS, "freeze"])
def test_the_end_of_all_faults_leaves_nothing_behind(kind, ends):
    world = build_world()
    for _ in range(3):
        strike(world, kind)
    world.nemesis.stop()
    world.nemesis._is_over = False
    for node in world.nodes:
        node.disk_ms = (1, 30)
        assert not node.is_frozen
    assert not is_troubled(world)
    strike(world, kind)
    ends[-1]()
    assert not is_troubled(world)
    assert not any(node.is_frozen for node in world.nodes)
