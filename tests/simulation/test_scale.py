"""Scale: the same seed and costs give the same figures, what is offered arrives once, and costs decide who is the bottleneck."""

import json
import os
import signal
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import msgspec
import pytest

from crosslink.beacon import BeaconMachine
from node.scale import measure
from node.scale.costs import Costs, verify_costs, write_costs
from node.scale.network import Plan
from node.scale.report import PROJECTION, describe_finding, describe_limits, draw_plots, is_saturated
from node.scale.world import World
from shardyard.ids import BEACON

ROOT = Path(__file__).resolve().parents[2]
CLI = [sys.executable, "-P", "-c", "from node.cli import main; main()"]
COSTS = Costs(
    machine="a table of tests",
    handle=15,
    envelope_sign=35,
    envelope_verify=110,
    decode_kib=0.7,
    encode_kib=0.2,
    blob_kib=2,
    vote_sign=370,
    votes_verify=1400,
    vote_verify=140,
    vote_aggregate=85,
    certificate_verify=1200,
    certificate_signer=0.5,
    recover=40,
    execute=1.2,
    execute_cross=8,
    deliver=1.2,
    crosslink_check=10,
    link_check=6,
    receipt_check=5,
    body_read=0.9,
    body_link=0.3,
    place=35,
    state_entry=1.5,
    state_cell=0.001,
    state_link=4,
    receipt_verify=2.3,
    sync=300,
    gas=21_000,
    gas_cross=63_000,
    tx_bytes=112,
    tx_cross_bytes=182,
)
SMALL = Plan(shards=3, validators=4, beacon_committee=6, beacon_nodes=2, tps_per_shard=50, seconds=12)


def run(plan=SMALL, costs=COSTS):
    world = World(plan, costs)
    return world, world.run()


def start(*words, home):
    environ = {**os.environ, "SHARDYARD_HOME": str(home), "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [*CLI, "sim", "scale", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environ
    )


def run_cli(*words, home):
    process = start(*words, home=home)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def test_the_same_seed_and_costs_give_the_same_figures_and_another_seed_others():
    first, again, other = (
        msgspec.structs.replace(run(plan)[1], wall_s=0.0)
        for plan in (SMALL, SMALL, msgspec.structs.replace(SMALL, seed=1))
    )
    assert first == again
    assert first.digest != other.digest


def test_what_is_offered_becomes_final_once_and_what_leaves_arrives():
    world, point = run()
    assert point.final_tps == pytest.approx(point.offered_tps, rel=0.02)
    assert point.leaving_share == pytest.approx(SMALL.cross, abs=0.02)
    assert 0.5 < point.p50_s <= point.p95_s < 4
    assert point.block_interval_s == pytest.approx(1, rel=0.02)
    assert point.dropped == 0
    beacon = world.processes["beacon-0"].machine
    assert isinstance(beacon, BeaconMachine)
    table = beacon.get_supply()
    assert table.total == table.genesis
    lengths = sum(entry.inbox.length for entry in beacon.state.shards)
    assert lengths == sum(sum(entry.last_seqs) for entry in beacon.state.shards) > 0
    consumed = sum(entry.inbox.position for entry in beacon.state.shards)
    assert 0 < consumed <= lengths
    for shard in range(SMALL.shards):
        header = world.processes[f"shard-{shard}-0"].machine.engine.final_block.header
        assert header.shard_content.inbox_position > 0


def test_the_beacon_committee_is_a_seeded_sample_of_the_shards_validators():
    genesis = World(SMALL, COSTS).genesis
    other = World(msgspec.structs.replace(SMALL, seed=5), COSTS).genesis
    assert len(set(genesis.seats)) == 6
    assert genesis.seats != other.seats
    members = genesis.committees[BEACON].validators
    assert members == tuple(genesis.validators[seat] for seat in genesis.seats)
    assert genesis.network != other.network


def test_votes_of_one_process_travel_together_and_fewer_processes_verify_fewer():
    many = run(msgspec.structs.replace(SMALL, shard_nodes=4))[1]
    alone = run(msgspec.structs.replace(SMALL, shard_nodes=1, beacon_nodes=1))[1]
    assert many.shard_votes > 0
    assert alone.shard_votes == 0, "a process that holds all keys has nobody's votes to verify"
    assert alone.final_tps == pytest.approx(many.final_tps, rel=0.02)


def test_a_dear_operation_is_named_where_the_beacon_saturates():
    slow = msgspec.structs.replace(COSTS, crosslink_check=400_000)  # only the beacon does it
    calm, late = run()[1], run(costs=slow)[1]
    assert not is_saturated(calm)
    assert "does not saturate up to 3 shards" in describe_finding([calm])
    assert is_saturated(late)
    assert late.beacon_busy > 0.85
    assert late.p50_s > calm.p50_s or late.final_tps < calm.final_tps / 2
    assert "saturates at 3 shards" in describe_finding([late])
    assert describe_finding([late]).partition("first of all by ")[2].startswith("crosslink checks")


def test_a_beacon_saturates_by_what_is_said_of_it_and_by_nothing_else():
    calm = run()[1]
    for changes, said in (
        ({"beacon_busy": 0.9}, "busiest process is busy 90% of the time (over 85% is saturated)"),
        ({"beacon_interval_s": 1.8}, "a block takes it 1.80 s instead of 1 s"),
        ({"beacon_interval_s": 0.0}, "fewer than two of its blocks became final"),
        ({"beacon_dropped": 7}, "7 messages were lost in its full queues"),
    ):
        point = msgspec.structs.replace(calm, **changes)
        assert is_saturated(point)
        finding = describe_finding([point])
        assert finding.startswith("the beacon saturates at 3 shards: ")
        assert said in finding
        assert ("over 85%" in finding) == ("beacon_busy" in changes)


def test_a_chain_that_stands_still_at_the_end_is_late():
    plan = msgspec.structs.replace(SMALL, seconds=20)
    world = World(plan, COSTS)
    world.clock.schedule(14_000_000, lambda: setattr(world, "_spread", lambda *_arguments: None))
    point = world.run()
    blocks = len(world._beacon_blocks)
    assert 7 <= blocks <= 9
    assert point.beacon_interval_s == pytest.approx((20 - plan.warmup_s) / blocks, rel=0.15)
    assert point.beacon_interval_s > 1.5
    assert point.block_interval_s > 1.5
    assert is_saturated(point)


def test_a_busy_processor_of_a_shard_makes_its_blocks_late_and_is_named():
    slow = msgspec.structs.replace(COSTS, recover=18_000)  # a block takes longer to execute than to come due
    calm, point = run()[1], run(costs=slow)[1]
    assert point.final_tps < calm.final_tps / 2
    assert describe_limits([calm]) == []
    assert any("its own end" in line for line in describe_limits([point]))


def test_saturated_blocks_are_full_to_their_gas_target():
    cheap = msgspec.structs.replace(COSTS, gas=300_000, gas_cross=300_000)
    plan = msgspec.structs.replace(SMALL, tps_per_shard=0, cross=0.0)
    _, point = run(plan, cheap)
    assert point.final_tps == pytest.approx(3 * 300e6 / 300_000, rel=0.02)
    assert point.p50_s == 0


def test_distances_make_everything_later():
    near, far = run()[1], run(msgspec.structs.replace(SMALL, regions="world"))[1]
    assert far.p50_s > near.p50_s + 0.1


def test_one_processor_per_node_carries_loop_and_execution():
    world, point = run(msgspec.structs.replace(SMALL, cores=1))
    assert point.final_tps == pytest.approx(150, rel=0.02)
    assert world.processes["shard-0-0"].loop is world.processes["shard-0-0"].pool
    assert "execution" in point.shard_operations


def test_costs_that_are_measured_are_costs(monkeypatch):
    monkeypatch.setattr(measure, "ROUNDS", 1)
    monkeypatch.setattr(measure, "TRANSACTIONS", 400)
    monkeypatch.setattr(measure, "SAMPLES", measure.SAMPLES[:3])
    costs = measure.measure_costs()
    verify_costs(costs, "measured")
    assert costs.gas == 21_000
    assert 21_000 < costs.gas_cross < 200_000
    assert 100 < costs.tx_bytes < costs.tx_cross_bytes < 300
    assert costs.vote_sign > costs.handle > 0
    assert costs.certificate_verify > 100, "a pairing takes time"
    assert costs.recover > costs.execute > 0


def test_the_command_says_what_it_is_and_writes_plots(tmp_path):
    table = tmp_path / "costs.json"
    write_costs(COSTS, table)
    words = ("--shards", "1,2", "--validators", "4", "--seconds", "8", "--costs", str(table))
    code, out, err = run_cli(*words, "--svg", str(tmp_path / "plots"), home=tmp_path)
    assert code == 0, err
    assert PROJECTION in out
    assert "the beacon does not saturate up to 2 shards" in out
    assert "every process has 2 processors of its own" in out
    plots = sorted((tmp_path / "plots").iterdir())
    assert [plot.name for plot in plots] == ["scale-beacon.svg", "scale-latency.svg", "scale-tps.svg"]
    for plot in plots:
        text = plot.read_text()
        ET.fromstring(text)
        assert "projection" in text
    code, out, err = run_cli(*words, "--json", home=tmp_path)
    assert code == 0, err
    document = json.loads(out)
    assert document["is_projection"] is True
    assert [point["plan"]["shards"] for point in document["points"]] == [1, 2]
    assert document["costs"]["machine"] == "a table of tests"


def test_an_interrupted_run_leaves_nothing(tmp_path):
    table, plots = tmp_path / "costs.json", tmp_path / "plots"
    write_costs(COSTS, table)
    process = start("--shards", "16", "--costs", str(table), "--svg", str(plots), home=tmp_path)
    assert process.stderr is not None
    while PROJECTION not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert not out
    assert not list(plots.iterdir())


def test_plots_of_the_same_figures_are_the_same():
    point = run()[1]
    assert draw_plots([point]) == draw_plots([point])
