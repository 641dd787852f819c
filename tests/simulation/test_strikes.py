"""The strikes of a run: each is drawn by itself, so leaving some out changes none of the others."""

import random

import msgspec
import pytest

from node.sim.faults import PEACE
from node.sim.run import run
from node.sim.scenario import FaultProfile, Scenario, draw_scenario
from node.sim.strikes import draw_strikes
from node.sim.world import World
from shardyard.ids import BEACON


def test_a_seed_draws_the_same_strikes_for_ever_and_all_within_the_time_of_faults():
    profile = FaultProfile(crashes=5, partitions=3, outages=2)
    strikes = draw_strikes(7, profile, 30_000)
    assert strikes == draw_strikes(7, profile, 30_000)
    assert [strike.kind for strike in strikes] == ["crash"] * 5 + ["partition"] * 3 + ["outage"] * 2
    assert [strike.index for strike in strikes] == list(range(10))
    assert all(0 <= strike.at_ms < 30_000 for strike in strikes)
    assert len({strike.at_ms for strike in strikes}) > 5


def test_generators_of_two_strikes_are_independent():
    first, second = draw_strikes(7, FaultProfile(crashes=2), 30_000)
    assert first.build_chance().random() == first.build_chance().random()
    assert first.build_chance().random() != second.build_chance().random()


def read_lines(scenario, seed=7):
    lines = []
    run(seed, scenario=scenario, show=lines.append)
    return lines


def find_strikes(lines):
    return [line.split("strike ")[1] for line in lines if "strike " in line]


def test_what_is_left_out_changes_nothing_before_its_instant_and_no_other_strike():
    scenario = draw_scenario(7, 60_000)
    everything = draw_strikes(7, scenario.profile, scenario.fault_ms)
    left_out = sorted(everything, key=lambda strike: strike.at_ms)[len(everything) // 2]
    kept = tuple(strike.index for strike in everything if strike != left_out)
    whole = read_lines(scenario)
    less = read_lines(msgspec.structs.replace(scenario, only_strikes=kept))
    assert set(find_strikes(whole)) - set(find_strikes(less)) == {f"{left_out.index}: {left_out.kind}"}
    before = [line for line in whole if float(line.split()[0]) * 1000 < left_out.at_ms]
    assert len(before) > 100
    assert less[: len(before)] == before


@pytest.mark.parametrize("calm_ms", [5_000, 20_000])
def test_a_run_that_calms_down_earlier_ends_earlier_with_the_same_beginning(calm_ms):
    scenario = draw_scenario(7, 60_000)
    short = msgspec.structs.replace(scenario, calm_from_ms=calm_ms)
    world = World(7, short)
    world.run()
    assert world.clock.now_ms == calm_ms + scenario.settle_ms
    whole, less = read_lines(scenario), read_lines(short)
    before = [line for line in whole if float(line.split()[0]) * 1000 < calm_ms]
    assert less[: len(before)] == before


def test_no_strike_at_all_is_peace_but_for_the_network():
    scenario = Scenario(
        duration_ms=40_000, settle_ms=15_000, profile=FaultProfile(crashes=5), only_strikes=()
    )
    result = run(1, scenario=scenario)
    assert result.is_ok
    assert result.report.faults == {}


class OneSided(random.Random):
    """Draws a cut with everybody on one side, and a clock that is where it was."""

    def random(self):
        return 0.99

    def randint(self, low, high):
        return max(low, min(high, 0))

    def choice(self, items):
        return items[0]


PEACEFUL = Scenario(duration_ms=40_000, settle_ms=15_000)


@pytest.mark.parametrize("kind", sorted(set(PEACE.strikes) - {"partition", "outage"}))
def test_a_strike_at_a_node_that_is_down_did_not_happen(kind):
    nemesis = World(1, PEACEFUL).nemesis  # nobody has started
    for seed in range(20):
        nemesis._blows[kind](random.Random(seed))
    assert not nemesis.faults
    assert not nemesis.consequences


@pytest.mark.parametrize("kind", ["partition", "clock jump"])
def test_a_cut_between_nobody_and_a_jump_of_nothing_did_not_happen(kind):
    world = World(1, PEACEFUL)
    for node in world.nodes:
        node.start()
    world.nemesis._blows[kind](OneSided())
    assert not world.nemesis.faults
    for seed in range(20):
        world.nemesis._blows[kind](random.Random(seed))
    assert set(world.nemesis.faults) == {kind}, "others do"


def test_a_role_counts_from_its_first_act_on():
    world = World(1, Scenario(duration_ms=40_000, settle_ms=15_000, profile=FaultProfile(equivocators=1)))
    assert not world.nemesis.faults
    assert world.run().faults == {"equivocator": 3}


def test_a_frozen_node_says_nothing_until_it_goes_on():
    """A stop may come between the end of a sync and what waits behind it."""
    world = World(1, Scenario(duration_ms=40_000, settle_ms=15_000, profile=FaultProfile(disk_ms=(300, 300))))
    node = next(node for node in world.nodes if node.chain == BEACON)
    said = []
    node._publish = lambda _, message: said.append(message)
    for other in world.nodes:
        other.start()
    clock = world.clock
    while not (node._is_syncing and node._outbox) and clock.now_ms < 10_000:
        clock.run_until(clock.now_ms + 10)
    node.freeze()
    before = len(said)
    waiting = len(node._outbox)
    clock.run_until(clock.now_ms + 5_000)
    assert len(said) == before
    assert len(node._outbox) >= waiting > 0
    node.thaw()
    clock.run_until(clock.now_ms + 5_000)
    assert len(said) > before


def test_a_frozen_signer_syncs_its_record_when_it_goes_on():
    """Until then nothing of the process runs: its record is not durable, and a crash may lose it."""
    world = World(1, PEACEFUL)
    node = next(node for node in world.nodes if node.chain == BEACON)
    synced = []
    sync = node.record.sync
    node.record.sync = lambda: (synced.append(world.clock.now_ms), sync())
    written = []
    append = node.record.append
    node.record.append = lambda entries: (written.append(entries), append(entries))
    for other in world.nodes:
        other.start()
    while not (len(written) > len(synced)) and world.clock.now_ms < 10_000:
        world.clock.run_until(world.clock.now_ms + 1)
    assert len(written) > len(synced), "a signature is under way"
    before = len(synced)
    node.freeze()
    world.clock.run_until(world.clock.now_ms + 2_000)
    assert len(synced) == before
    node.thaw()
    assert len(synced) > before


def test_a_node_that_is_stopped_again_while_it_goes_on_holds_the_rest():
    world = World(1, PEACEFUL)
    node = world.nodes[0]
    node.start()
    seen = []
    node.freeze()
    node._held.append(node.freeze)
    node._held.append(lambda: seen.append("on"))
    node.thaw()
    assert not seen
    node.thaw()
    assert seen == ["on"]
