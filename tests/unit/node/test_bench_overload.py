"""The overload leg: what it offers, what must hold meanwhile, and the pace of chains that are late, skip, or stand still."""

import asyncio

import msgspec
import pytest

from node.admission import MAX_WAITING
from node.bench.anvil import AnvilLeg, list_anvil_knobs
from node.bench.e2e import E2eOptions, build_knobs, choose_offer, judge, running
from node.bench.flood import FloodError
from node.bench.legs import Leg, describe_leg
from node.bench.overload import build_overload_knobs, compute_cap_mb, judge_overload
from node.bench.pace import Head, Pace, compute_pace
from node.bench.settled import ask
from node.bench.signed import ShardSource
from node.load.client import NoAnswerError
from node.rpc.protocol import RpcLimits


def build_pace(chain, **fields):
    return msgspec.structs.replace(Pace(chain, 1.0, 12, 1.1, 1.0, 0, 0, 0), **fields)


def build_leg(role="peak", **fields):
    leg = Leg(
        name=role,
        role=role,
        offered_tps=21_000.0,
        sent=210_000,
        accepted=210_000,
        refused=0,
        final_tps=20_500.0,
        latency={"p50": 1.0, "p95": 1.5, "p99": 1.6, "max": 1.7},
        missing=0,
        doubled=0,
        blocks=12,
        gas_per_tx=21_000,
        slowest_block_s=1.2,
        largest_mb={"shard-0-0": 300.0, "beacon-0": 50.0},
        first_mb={"shard-0-0": 200.0, "beacon-0": 40.0},
        pace=[build_pace("shard 0"), build_pace("beacon")],
        cpu_us={"shard": 50.0, "total": 60.0},
        cores_used=1.5,
        cores_others=0.1,
        hot_share=0.7,
        recovery_us=38.0,
        stages_us={"recover": 38.0},
        statuses={200: 420},
        refusals={},
    )
    return msgspec.structs.replace(leg, **fields)


def build_overload(**fields):
    refusals = {"HTTP 429: txpool is full": 150_000, "txpool is full": 20_000}
    kept = {"offered_tps": 41_000.0, "final_tps": 19_000.0, "refusals": refusals, "refused": 170_000}
    return build_leg("overload", **kept | fields)


def build_anvil(**fields):
    leg = AnvilLeg("anvil/v1.7.1", "--block-time 1", 8, 200, 90_000, 0, False, 8_000.0, 110.0, 0.1)
    return msgspec.structs.replace(leg, **fields)


def find_missed(report):
    return [target.name for target in report.targets if not target.held]


def heads(*moments):
    return [Head(seen, height, slot) for seen, height, slot in moments]


def test_regular_chain_keeps_the_preset_s_pace():
    pace = compute_pace("shard 0", heads(*((float(n), n, n) for n in range(20))), 2.0, 12.0, 1.0, empty=3)
    assert (pace.blocks, pace.interval_p95_s, pace.of_block_time) == (10, 1.0, 1.0)
    assert (pace.skipped, pace.slow, pace.empty) == (0, 0, 3)


def test_late_and_skipped_slots_show():
    late = compute_pace("beacon", heads((0.0, 1, 1), (1.0, 2, 2), (4.0, 3, 3), (5.0, 4, 6)), 0.0, 5.0, 1.0)
    assert (late.blocks, late.skipped, late.slow, late.interval_p95_s) == (3, 2, 1, 3.0)
    assert late.of_block_time == 1.0


def test_blocks_that_were_seen_together_share_the_time():
    pace = compute_pace("beacon", heads((0.0, 1, 1), (3.0, 4, 4), (4.0, 5, 5)), 0.0, 4.0, 1.0)
    assert (pace.blocks, pace.interval_p95_s, pace.slow) == (4, 1.0, 0)


def test_chain_that_stops_does_not_keep_the_pace_it_had():
    stopped = compute_pace("beacon", heads((0.0, 1, 1), (1.0, 2, 2)), 0.0, 10.0, 1.0)
    assert (stopped.interval_p95_s, stopped.slow) == (9.0, 1)
    assert compute_pace("beacon", heads((0.0, 1, 1)), 0.0, 10.0, 1.0).of_block_time == 0.0
    assert compute_pace("beacon", [], 0.0, 10.0, 1.0).interval_p95_s == 10.0


@pytest.mark.parametrize("stood_s", [(0, 6), (6, 0)])
def test_chain_that_stands_still_for_a_fifth_of_a_run_misses_the_pace_at_either_end(stood_s):
    """One long wait in thirty is outside the p95, so the slots have to show it."""
    begin, end = stood_s[0], 30 - stood_s[1]
    pace = compute_pace("shard 0", heads(*((n, n, n) for n in range(begin, end + 1))), 0.0, 30.0, 1.0)
    assert pace.of_block_time == pytest.approx(24 / 29, abs=0.001)
    assert pace.slow == 1
    missed = judge_overload(build_leg(), build_overload(pace=[pace, build_pace("beacon")]))
    assert "overload: slots of the shards" in [target.name for target in missed if not target.held]


def test_overload_that_keeps_its_promises_meets_all_targets():
    assert [target.name for target in judge_overload(build_leg(), build_overload()) if not target.held] == []


@pytest.mark.parametrize(
    ("fields", "missed"),
    [
        ({"offered_tps": 30_000.0}, "offered over the peak's rate"),
        ({"final_tps": 18_000.0}, "rate over the peak's"),
        ({"refusals": {}}, "refused by back-pressure"),
        ({"refusals": {"txpool is full": 1, "HTTP 503: busy": 2}}, "refused in other words"),
        ({"largest_mb": {"shard-0-0": 201.0 + compute_cap_mb()}}, "growth of a shard's memory"),
        ({"pace": [build_pace("shard 0", of_block_time=0.8), build_pace("beacon")]}, "slots of the shards"),
        ({"pace": [build_pace("shard 0"), build_pace("beacon", of_block_time=0.5)]}, "slots of the beacon"),
        (
            {"pace": [build_pace("shard 0", interval_p95_s=1.6), build_pace("beacon")]},
            "time between blocks of the shards, p95",
        ),
    ],
)
def test_each_promise_of_an_overload_can_be_missed(fields, missed):
    found = [
        target.name for target in judge_overload(build_leg(), build_overload(**fields)) if not target.held
    ]
    assert found == [f"overload: {missed}"]


def test_overload_has_more_under_way_than_a_node_lets_wait_on_fewer_connections_than_it_takes():
    for batch in (10, 200, 1000):
        knobs = build_overload_knobs(build_knobs(E2eOptions(batch=batch), 1))
        assert knobs.connections * knobs.batch > MAX_WAITING
        assert knobs.connections < RpcLimits().max_connections - 10
        assert knobs.accounts >= knobs.connections
        assert knobs.batch <= RpcLimits().max_batch


def test_shards_share_the_connections_unless_their_number_is_given():
    assert [build_knobs(E2eOptions(shards=shards), 1).connections for shards in (1, 2, 4)] == [24, 12, 6]
    assert build_knobs(E2eOptions(shards=64), 1).connections == 1
    assert build_knobs(E2eOptions(shards=4, connections=8), 1).connections == 8


def test_every_connection_of_an_overload_has_something_to_send():
    knobs = msgspec.structs.replace(build_knobs(E2eOptions(), 0), connections=70, batch=500, accounts=70)
    plan = ShardSource(knobs, 0).sign(2 * 70 * 500)
    assert {len(queue) for queue in plan.queues} >= {2}
    assert min(map(len, plan.queues)) >= 2


def test_legs_follow_each_other_until_all_is_measured():
    options = E2eOptions(overload=True)
    legs = []
    while (offer := choose_offer(options, legs)) is not None:
        legs.append(build_leg(offer.role))
        assert offer.knobs.seed == 100 + len(legs) - 1
    assert [leg.role for leg in legs] == ["peak", "overload", "half"]
    assert choose_offer(options, legs[:1]).rate == 2 * 20_500
    assert choose_offer(options, legs[:2]).rate == 10_000
    across = choose_offer(E2eOptions(shards=2, cross=0.1), legs[:1])
    assert (across.role, across.rate) == ("half", 10_250)
    assert choose_offer(E2eOptions(rate=500.0), []).role == "rate"
    assert choose_offer(E2eOptions(rate=500.0), legs[:1]) is None


def test_report_judges_every_leg_and_names_the_refusals():
    legs = [build_leg(), build_overload(missing=2), build_leg("half")]
    report = judge(E2eOptions(overload=True), legs, [])
    assert find_missed(report) == ["overload: answered and not final"]
    assert "19,000 of 41,000 in overload" in report.summary
    assert "150000 'HTTP 429: txpool is full'" in describe_leg(legs[1])
    assert "shard 0 100% of its slots" in describe_leg(legs[1])


def test_anvil_is_compared_by_its_best_try_and_only_when_the_machine_was_quiet():
    legs = [build_leg(), build_leg("half")]
    tries = [build_anvil(), build_anvil(batch=50, mined_tps=8_500.0)]
    assert find_missed(judge(E2eOptions(), legs, tries)) == ["rate over anvil's best"]
    slow = judge(E2eOptions(), legs, [build_anvil(), build_anvil(mined_tps=5_000.0)])
    assert (slow.held, slow.details["anvil"]["mined_tps"], len(slow.details["anvil_tries"])) == (
        True,
        8_000.0,
        2,
    )
    busy = judge(E2eOptions(), legs, [tries[0], build_anvil(cores_others=0.5)])
    assert "rate over anvil's best" not in {target.name for target in busy.targets}


def test_anvil_is_tried_with_the_same_requests_and_with_smaller_ones():
    same, smaller = list_anvil_knobs(build_knobs(E2eOptions(), 2))
    assert (same.connections, same.batch) == (24, 200)
    assert (smaller.connections, smaller.batch, smaller.seed) == (4, 50, same.seed)
    assert len(list_anvil_knobs(smaller)) == 1


async def test_watcher_that_fails_fails_the_run():
    async def fail():
        raise FloodError("gone")

    async def wait_for_ever():
        await asyncio.Event().wait()

    with pytest.raises(FloodError, match="gone"):
        async with running(fail(), wait_for_ever()):
            await asyncio.sleep(0)


async def test_question_is_asked_again_when_its_connection_had_ended():
    class Idle:
        def __init__(self, ends):
            self.ends = ends

        async def request(self, method, *params):
            self.ends -= 1
            if self.ends >= 0:
                raise NoAnswerError("closed")
            return method, params

    assert await ask(Idle(2), "shard_status", 1) == ("shard_status", (1,))
    with pytest.raises(NoAnswerError, match="closed"):
        await ask(Idle(99), "shard_status")
