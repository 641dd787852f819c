"""The whole network from seeds: real machines, real executor, virtual time, faults of every class."""

import sys

import msgspec
import pytest

from node.sim.executor import SimExecutor
from node.sim.hunt import compute_trace_hash_elsewhere, hunt, main, summarise
from node.sim.run import describe_result, replay, run
from node.sim.scenario import FaultProfile, Scenario, draw_scenario
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
    found = hunt(SEEDS, minutes=MINUTES, within_s=TIME_BOX_S)
    with capsys.disabled():
        sys.stdout.write("\n" + summarise(found) + "\n")
    assert found.violations == []
    assert found.seeds == len(SEEDS), f"only {found.seeds} seeds within {TIME_BOX_S} s"
    assert {"crash", "partition", "freeze", "outage", "slow disk", "clock", "torn"} <= set(found.faults)
    assert found.counters["delivered"] > 1000


def test_in_peace_every_chain_makes_a_block_per_second():
    report = run_scenario()
    assert min(report.heights.values()) >= 57
    kinds = {kind for kind in report.counters if kind.startswith("delivered ")}
    assert kinds == {"delivered CALL", "delivered TRANSFER", "delivered RESULT", "delivered BOUNCE"}


def test_i15_the_same_seed_gives_the_same_trace_in_any_process():
    result = run(3, minutes=0.5)
    assert result.is_ok
    assert run(3, minutes=0.5).report.trace_hash == result.report.trace_hash
    assert compute_trace_hash_elsewhere(3, 0.5, faults=True) == result.report.trace_hash


def test_another_seed_gives_another_trace():
    assert run(4, minutes=0.5).report.trace_hash != run(5, minutes=0.5).report.trace_hash


@pytest.mark.parametrize("seed", range(4))
def test_all_keys_in_one_process_survive_power_loss_with_a_slow_disk(seed):
    """A FINAL on record for a block that the log lost would forbid SKIP for ever (S5)."""
    profile = FaultProfile(crashes=12, down_ms=(10, 800), slow_disks=20, disk_ms=(5, 300))
    report = run_scenario(seed, replicas=1, beacon_replicas=1, profile=profile)
    assert report.faults["torn"] >= 1


@pytest.mark.parametrize("kind", ["twins", "withholders", "garblers", "tamperers"])
@pytest.mark.parametrize("seed", range(2))
def test_one_byzantine_node_per_committee_breaks_nothing(seed, kind):
    report = run_scenario(seed, profile=FaultProfile(**{kind: 1}, latency_ms=(1, 150), drop=0.05))
    if kind == "twins":
        assert report.counters["evidence"] > 0


def test_b6_lists_are_tampered_with_and_cost_no_block_its_votes():
    peace = run_scenario()
    assert peace.counters["executed by list"] > 100
    assert "refused InvalidAccessListError" not in peace.counters
    report = run_scenario(profile=FaultProfile(tamperers=1))
    assert report.faults["tampered"] > 10
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
    result = replay(2, minutes=0.25, show=lines.append)
    assert result.report.trace_hash == run(2, minutes=0.25).report.trace_hash
    assert len(lines) > 500
    assert any("Proposal slot" in line for line in lines)


def test_a_result_says_how_to_replay_it():
    assert run(2, minutes=0.25).command == "shardyard sim replay --seed 2 --minutes 0.25"


def test_hunting_is_fast_enough(tmp_path):
    scenario = Scenario(duration_ms=60_000, settle_ms=20_000, replicas=1, beacon_replicas=1)
    run(1, scenario=scenario)
    result = run(1, scenario=scenario)
    assert result.is_ok
    assert result.simulated_s / result.cpu_s > 50, "simulated seconds per second of one core; 300 are usual"
    assert main(["--seeds", "2", "--minutes", "0.25", "--json", str(tmp_path / "hunt.json"), "--check"]) in {
        0,
        6,
    }
    assert msgspec.json.decode((tmp_path / "hunt.json").read_bytes())["seeds"] == 2


def test_a_seed_draws_the_same_scenario_for_ever():
    assert draw_scenario(11, 120_000) == draw_scenario(11, 120_000)
    assert draw_scenario(11, 120_000).profile.count >= 8
