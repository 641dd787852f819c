"""The whole network from seeds: real machines, real executor, virtual time, faults of every class."""

import sys
import time

import msgspec
import pytest

from node.sim.crew import Crew
from node.sim.executor import SimExecutor
from node.sim.hunt import hunt, summarise
from node.sim.phases import PHASES
from node.sim.recipe import Recipe
from node.sim.run import describe_result, run
from node.sim.scenario import FaultProfile, Scenario
from shardyard.events import Built

SEEDS = range(60)
MINUTES = 2.0
TIME_BOX_S = 170


def run_scenario(seed=1, **changes):
    result = run(seed, scenario=Scenario(**({"duration_ms": 60_000, "settle_ms": 25_000} | changes)))
    assert result.is_ok, describe_result(result)
    return result.report


@pytest.mark.timeout(TIME_BOX_S + 60)
def test_seeds_with_faults_hold_all_invariants(capsys):
    deadline = time.monotonic() + TIME_BOX_S
    recipes = [Recipe(seed, minutes=MINUTES) for seed in SEEDS]
    found = hunt(recipes, is_over=lambda: time.monotonic() > deadline)
    with capsys.disabled():
        sys.stdout.write("\n" + summarise(found) + "\n")
    assert found.is_ok, [describe_result(result) for result in found.failed]
    assert len(found.entries) == len(SEEDS), f"only {len(found.entries)} seeds within {TIME_BOX_S} s"
    struck = {"crash", "partition", "flap", "freeze", "outage", "lost session", "overflow", "clock jump"}
    assert struck | {"slow disk", "full disk", "io error"} <= set(found.totals.faults)
    phases = {name.split(" while ")[1] for name in found.totals.coverage}
    assert phases == {str(phase) for phase in PHASES}
    assert found.totals.delivered > 1000


def test_in_peace_every_chain_makes_a_block_per_second():
    report = run_scenario()
    assert min(report.heights.values()) >= 57
    kinds = {kind for kind in report.counters if kind.startswith("delivered ")}
    assert kinds == {"delivered CALL", "delivered TRANSFER", "delivered RESULT", "delivered BOUNCE"}


def test_i15_the_same_seed_gives_the_same_trace_in_any_process():
    result = run(3, minutes=0.5)
    assert result.is_ok
    assert run(3, minutes=0.5).report.trace_hash == result.report.trace_hash
    with Crew(1, repeat_every=1) as crew:
        elsewhere = list(crew.run([result.recipe]))
        assert crew.repeated == 1, "in two processes, under two hash seeds"
    assert [item.report.trace_hash for item in elsewhere] == [result.report.trace_hash]


def test_another_seed_gives_another_trace():
    assert run(4, minutes=0.5).report.trace_hash != run(5, minutes=0.5).report.trace_hash


@pytest.mark.parametrize("seed", range(4))
def test_all_keys_in_one_process_survive_power_loss_with_a_slow_disk(seed):
    """A FINAL on record for a block that the log lost would forbid SKIP for ever (S5)."""
    profile = FaultProfile(crashes=12, down_ms=(10, 800), slow_disks=20, disk_ms=(5, 300))
    report = run_scenario(seed, replicas=1, beacon_replicas=1, profile=profile)
    assert report.consequences["torn"] >= 1


@pytest.mark.parametrize("kind", ["twins", "withholders", "garblers", "tamperers"])
@pytest.mark.parametrize("seed", range(2))
def test_one_byzantine_node_per_committee_breaks_nothing(seed, kind):
    report = run_scenario(seed, profile=FaultProfile(**{kind: 1}, latency_ms=(1, 150), drop=0.05))
    if kind == "twins":
        assert report.counters["evidence"] > 0
        assert {name for name in report.coverage if name.startswith("twin while ")}, (
            "a twin acts as the others do"
        )
    assert report.faults[kind.removesuffix("s")] >= 2, "one of each committee has acted"


def test_b6_lists_are_tampered_with_and_cost_no_block_its_votes():
    peace = run_scenario()
    assert peace.counters["executed by list"] > 100
    assert "refused InvalidAccessListError" not in peace.counters
    report = run_scenario(profile=FaultProfile(tamperers=1))
    assert report.acts["tampered"] > 10
    assert report.counters["refused InvalidAccessListError"] > 10
    assert "block.invalid" not in report.counters
    assert min(report.heights.values()) >= 57
    assert 0 < report.counters["executed by list"] < peace.counters["executed by list"]


@pytest.mark.parametrize("parent", ["history", "unknown"])
def test_a_build_whose_parent_is_final_and_past_by_the_time_it_runs_is_given_up(monkeypatch, parent):
    """A replica that catches up finalises blocks while its own build waits for its turn."""
    builds, answers = [], []
    original = SimExecutor.start_build

    def watch(self, effect):
        builds.append((self, effect))
        original(self, effect)

    monkeypatch.setattr(SimExecutor, "start_build", watch)
    run_scenario(duration_ms=20_000, settle_ms=8_000)
    executor, effect = builds[0]
    assert executor.core.has(effect.env.parent_hash), "genesis is history by now, and still held"
    if parent == "unknown":
        env = msgspec.structs.replace(effect.env, parent_hash=bytes(32))
        effect = msgspec.structs.replace(effect, env=env)
    executor._complete = answers.append
    executor._build(effect)
    assert answers == [Built(effect.request, b"", None)]


def test_a_network_with_the_instant_engine_runs_too():
    report = run_scenario(engine="instant", replicas=1, beacon_replicas=1)
    assert min(report.heights.values()) >= 55


def test_a_replay_shows_every_step_and_comes_to_the_same_end():
    lines = []
    result = run(2, minutes=0.5, show=lines.append)
    assert result.report.trace_hash == run(2, minutes=0.5).report.trace_hash
    assert len(lines) > 200
    assert any("proposal of height 1 in slot " in line for line in lines)
    assert any("HEIGHT 1 IS FINAL" in line for line in lines)


def test_a_result_says_how_to_replay_it():
    assert run(2, minutes=0.5).command == "shardyard sim replay --seed 2 --minutes 0.5"


def test_hunting_is_fast_enough():
    scenario = Scenario(duration_ms=60_000, settle_ms=20_000, replicas=1, beacon_replicas=1)
    run(1, scenario=scenario)
    result = run(1, scenario=scenario)
    assert result.is_ok
    assert result.simulated_s / result.cpu_s > 50, "simulated seconds per second of one core; 300 are usual"
