"""What 100,000 calls a second take: costs told apart, limits of a shard, the simulated schedule, plain words."""

import asyncio
import json

import msgspec
import pytest

from node.bench import e2e, hundredk
from node.bench.__main__ import BENCHES, build_parser
from node.bench.hundredk import LABEL, judge_projected, project
from node.bench.projection import (
    BUSY_LIMIT,
    ProjectionError,
    compute_costs,
    compute_limits,
    find_plan,
    fit,
    is_sustained,
    read_samples,
)
from node.bench.report import BenchReport
from node.bench.schedule import Layout, StageCosts, simulate
from shardyard.preset import get_preset

COSTS = StageCosts(
    admission=10.0,
    recovery=45.0,
    execution=12.0,
    serial_share=1 / 3,
    block=20_000.0,
    broker_block=4_000.0,
    broker_tx=0.1,
    beacon_block=15_000.0,
    beacon_slot=5_000.0,
    beacon_tx=0.1,
)
LAYOUT = Layout(
    shards=2, cores=2, tps=10_000.0, block_time_s=1.0, block_txs=17_000, batch=200, settle_s=0.5, seconds=6.0
)


def build_report(shards=1, cross=0.0, rates=((14_000.0, 14), (7_000.0, 14)), costs=COSTS, **changed):
    """Return an ``e2e`` report of runs that cost exactly ``costs``."""
    legs = []
    for tps, slots in rates:
        txs, blocks = round(tps * 12), slots * shards
        beacon = txs * costs.beacon_tx + blocks * costs.beacon_block + slots * costs.beacon_slot
        broker = txs * costs.broker_tx + blocks * costs.broker_block
        hot = txs * (costs.recovery + costs.execution)
        shard = hot + txs * costs.admission + blocks * costs.block
        cpu = {"beacon": beacon / txs, "broker": broker / txs, "shard": shard / txs, "client": 2.0}
        cpu["total"] = sum(cpu.values())
        leg = {
            "name": f"{tps}",
            "accepted": txs,
            "blocks": blocks,
            "final_tps": tps,
            "missing": 0,
            "doubled": 0,
            "gas_per_tx": 34_000,
            "latency": {"p50": 1.6, "p95": 2.2},
            "cpu_us": cpu,
            "hot_share": hot / txs / cpu["total"],
            "stages_us": {"recover": costs.recovery * 1.7, "execute": costs.execution * 1.7},
        }
        legs.append(leg | changed)
    options = {"kind": "erc20", "shards": shards, "cross": cross}
    return {"bench": "e2e", "machine": {"cores": 2}, "details": {"options": options, "legs": legs}}


def test_costs_of_transactions_blocks_and_slots_are_told_apart():
    samples = [*read_samples(build_report()), *read_samples(build_report(2, 0.1))]
    found = msgspec.structs.asdict(compute_costs(samples, is_cross=False))
    assert found == pytest.approx(msgspec.structs.asdict(COSTS), rel=1e-6)


def test_what_one_shard_cannot_tell_apart_counts_by_the_block():
    found = compute_costs(read_samples(build_report()), is_cross=False)
    assert found.beacon_block == pytest.approx(COSTS.beacon_block + COSTS.beacon_slot)
    assert found.beacon_slot == 0.0


def test_no_cost_is_negative_when_runs_contradict_each_other():
    assert fit([(100, 10), (200, 10)], [2.0, 1.0]) == pytest.approx([0.0, 0.15])
    assert fit([(100, 10)], [0.0]) == [0.0, 0.0]


def test_limit_of_a_shard_is_gas_at_a_stable_fee():
    limits = compute_limits(get_preset("devnet"), 30_000, COSTS)
    assert (limits.gas_limit, limits.gas_target) == (20_000, 10_000)
    assert limits.sustained == 10_000
    slow = msgspec.structs.replace(COSTS, admission=415.0)
    assert compute_limits(get_preset("devnet"), 30_000, slow).sustained == pytest.approx(2_000)


def test_simulation_repeats_exactly():
    assert simulate(LAYOUT, COSTS) == simulate(LAYOUT, COSTS)


def test_simulated_cores_are_busy_with_exactly_what_the_stages_cost():
    layout = msgspec.structs.replace(LAYOUT, cores=8)
    outcome = simulate(layout, COSTS)
    per_tx = 45.0 + 12.0 + 10.0 + 0.1 + 0.1
    used_us = 10_000 * per_tx + 2 * (20_000 + 4_000 + 15_000) + 5_000
    assert outcome.cores_busy == pytest.approx(used_us / 1e6 / 8, rel=0.1)
    assert outcome.beacon_busy == pytest.approx((2 * 15_000 + 5_000 + 1_000) / 1e6, rel=0.2)


def test_without_load_on_the_cores_finality_is_the_wait_for_a_block_and_consensus():
    free = msgspec.structs.replace(
        COSTS, **dict.fromkeys(set(COSTS.__struct_fields__) - {"serial_share"}, 0.001)
    )
    outcome = simulate(msgspec.structs.replace(LAYOUT, cores=8), free)
    request_s = 200 * 2 / 10_000  # the one that comes with a block waits for the next
    assert outcome.p50_s == pytest.approx(0.5 + LAYOUT.settle_s, abs=2 * request_s)
    assert outcome.p95_s == pytest.approx(0.95 + LAYOUT.settle_s, abs=2 * request_s)


def test_load_of_less_than_a_request_is_offered_all_the_same():
    """A simulation that offers nothing would find every latency to be 0, and every rate sustained."""
    thin = msgspec.structs.replace(LAYOUT, cores=8, tps=20.0)  # 200 transactions take 20 s
    outcome = simulate(thin, COSTS)
    assert outcome.p95_s > LAYOUT.settle_s
    assert outcome.early_p95_s > LAYOUT.settle_s
    assert outcome.late_p95_s > LAYOUT.settle_s


def test_queue_that_grows_is_not_sustained():
    idle = simulate(msgspec.structs.replace(LAYOUT, cores=4), COSTS)
    assert is_sustained(idle, 3.0)
    assert not is_sustained(simulate(msgspec.structs.replace(LAYOUT, tps=60_000.0), COSTS), 3.0)
    full = msgspec.structs.replace(LAYOUT, cores=16, tps=40_000.0, block_txs=1_000)
    assert simulate(full, COSTS).p95_s == float("inf")


def test_plan_has_the_fewest_shards_the_limits_allow_and_one_core_less_would_not_do():
    limits = compute_limits(get_preset("devnet"), 30_000, COSTS)
    base = msgspec.structs.replace(LAYOUT, tps=25_000.0, block_txs=20_000)
    plan = find_plan(base, COSTS, limits, 3.0)
    assert plan.shards == 3
    assert is_sustained(plan.outcome, 3.0)
    less = msgspec.structs.replace(base, shards=plan.shards, cores=plan.cores - 1)
    assert not is_sustained(simulate(less, COSTS), 3.0)


def test_beacon_that_would_need_more_than_its_core_is_an_error_that_says_so():
    slow = msgspec.structs.replace(COSTS, beacon_block=400_000.0)
    limits = compute_limits(get_preset("devnet"), 30_000, slow)
    base = msgspec.structs.replace(LAYOUT, tps=25_000.0, block_txs=20_000, seconds=4.0)
    with pytest.raises(ProjectionError, match="cannot be sustained with 3"):
        find_plan(base, slow, limits, 3.0)


@pytest.mark.parametrize("changed", [{"missing": 1}, {"doubled": 2}, {"final_tps": 0.0}])
def test_run_that_lost_something_is_no_source_of_costs(changed):
    with pytest.raises(ProjectionError, match="expected a run that lost nothing"):
        read_samples(build_report(**changed))


def test_report_of_something_else_is_refused():
    with pytest.raises(ProjectionError, match="got a report of something else"):
        read_samples({"bench": "kill"})
    old = build_report()
    del old["details"]["legs"][0]["gas_per_tx"]
    with pytest.raises(ProjectionError, match="older version"):
        read_samples(old)


@pytest.mark.parametrize(
    ("spoil", "missing"),
    [
        (lambda report: report.pop("details"), "'details'"),
        (lambda report: report.pop("machine"), "'machine'"),
        (lambda report: report["details"].pop("legs"), "'legs'"),
        (lambda report: report["details"]["legs"][0].pop("blocks"), "'blocks'"),
        (lambda report: report["details"]["legs"][0]["cpu_us"].pop("total"), "'total'"),
        (lambda report: report["details"]["legs"][0]["cpu_us"].pop("broker"), "'broker'"),
        (lambda report: report["details"]["legs"][0]["cpu_us"].pop("client"), "'client'"),
        (lambda report: report["details"]["legs"][0]["stages_us"].pop("recover"), "'recover'"),
        (lambda report: report["details"]["legs"].clear(), "no run"),
        (lambda report: report.update(details=[]), "not what a report"),
        (lambda report: report["details"]["legs"][0].update(blocks="many"), "not what a report"),
        (
            lambda report: report["details"]["legs"][0].update(stages_us={"recover": 0, "execute": 0}),
            "no time",
        ),
    ],
)
def test_report_that_lacks_something_is_refused_with_what_it_lacks(spoil, missing):
    report = build_report()
    spoil(report)
    with pytest.raises(ProjectionError, match=rf"{missing}.*; try: measure again"):
        read_samples(report)


def test_projection_says_that_it_is_not_a_measurement_and_names_every_assumption(capsys):
    reports = [build_report()]
    samples = [sample for report in reports for sample in read_samples(report)]
    case = project(samples, is_cross=False)
    report = judge_projected([case], samples, reports)
    printed = capsys.readouterr().out
    assert report.summary.startswith(LABEL)
    assert printed.startswith(LABEL)
    assert all(LABEL in target.name for target in report.targets)
    assert (report.held, report.details["kind"]) == (True, LABEL)
    assert case.plan.outcome.cores_busy <= BUSY_LIMIT
    for words in ("one per signature", "other machines", "assumed", "gas at a stable fee"):
        assert words in printed


@pytest.mark.parametrize(("cores", "is_measured"), [(2, False), (64, True)])
def test_host_with_enough_cores_measures_and_any_other_projects(tmp_path, monkeypatch, cores, is_measured):
    earlier = tmp_path / "e2e.json"
    earlier.write_text(json.dumps(build_report()))
    asked = []

    async def measure(_, options):
        asked.append(options)
        details = build_report(rates=((99_500.0, 30),))["details"]
        return BenchReport(1, "e2e", True, "ran", (), {}, details)

    monkeypatch.setattr(hundredk.os, "cpu_count", lambda: cores)
    monkeypatch.setattr(hundredk, "measure_e2e", measure)
    report = asyncio.run(hundredk.measure_hundred_k(tmp_path, [earlier], 1))
    assert report.details["kind"] == ("measurement" if is_measured else LABEL)
    assert [(one.kind, one.rate, one.shards) for one in asked] == [("erc20", 100_000.0, 7)] * is_measured


def test_projection_is_of_the_network_that_the_runs_are_of():
    """Its limits, and the blocks by which the wait for consensus is found: ``e2e`` chooses preset and block time."""
    case = project(read_samples(build_report()), is_cross=False)
    block_gas = get_preset(e2e.PRESET).gas_per_ms * e2e.BLOCK_TIME_MS
    assert case.limits.gas_limit == pytest.approx(block_gas / 34_000 * 1000 / e2e.BLOCK_TIME_MS)
    said = {row[0]: row[2] for row in hundredk.describe_case(case)}
    assert said["limit: gas"] == f"preset {e2e.PRESET}, a block every {e2e.BLOCK_TIME_MS / 1000:g} s"


def test_measured_rate_below_the_wanted_one_misses_its_target():
    plan = project(read_samples(build_report()), is_cross=False).plan
    details = build_report(rates=((80_000.0, 30),))["details"]
    report = hundredk.judge_measured(BenchReport(1, "e2e", True, "ran", (), {}, details), plan)
    assert (report.held, LABEL in report.summary) == (False, False)


def test_earlier_reports_are_given_with_from():
    assert "hundred-k" in BENCHES
    chosen = build_parser().parse_args(["hundred-k", "--from", "a.json", "--from", "b.json"])
    assert [path.name for path in chosen.earlier] == ["a.json", "b.json"]
