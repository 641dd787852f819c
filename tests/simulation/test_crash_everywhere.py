"""A crash at every effect boundary of a scripted run: nothing is lost, nothing doubled, everything goes on."""

import pytest

from node.sim.node import SimNode
from node.sim.scenario import FaultProfile, Scenario
from node.sim.world import World
from shardyard.events import MessageReceived

DOWN_MS = 700
SCENARIO = Scenario(
    replicas=1,
    beacon_replicas=1,
    duration_ms=26_000,
    settle_ms=18_000,
    tps=8.0,
    profile=FaultProfile(disk_ms=(0, 6)),
)
FIRST, STEP, RUNS = 40, 11, 30
"""Boundaries before the first are all alike; between tests the step leaves none out for long, as runs shift."""


class CrashAt:
    """Kills one node when it is about to perform its n-th effect, and starts it again a little later."""

    def __init__(self, world, node, at):
        self.world, self.node, self.at = world, node, at
        self.count = 0
        self.has_struck = False
        self._perform = node._perform
        node._perform = self

    def __call__(self, effect):
        self.count += 1
        if self.count == self.at:
            self.has_struck = True
            self.node.crash()
            self.world.clock.schedule(DOWN_MS, self.node.start)
        if self.node.is_up:
            self._perform(effect)


def count_effects(name):
    world = World(1, SCENARIO)
    node = next(node for node in world.nodes if node.name == name)
    counter = CrashAt(world, node, -1)
    world.run()
    return counter.count


@pytest.mark.parametrize("name", ["beacon-0", "shard-0-0", "shard-1-0"])
def test_a_crash_before_any_effect_breaks_nothing(name):
    total = count_effects(name)
    assert total > 300
    struck = 0
    for at in range(FIRST, min(total, FIRST + RUNS * STEP), STEP):
        world = World(1, SCENARIO)
        node = next(node for node in world.nodes if node.name == name)
        crash = CrashAt(world, node, at)
        world.run()
        struck += crash.has_struck
    assert struck >= RUNS - 5


def test_a_node_that_is_down_takes_nothing_in():
    world = World(1, SCENARIO)
    node = world.nodes[0]
    assert isinstance(node, SimNode)
    node.start()
    node.crash()
    node.receive(MessageReceived(world.nodes[1].name, node.chain, None))
    assert not node.is_up
