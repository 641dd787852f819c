"""What a run comes to: counts that add up, latencies from the due moment, invalid runs called so."""

import pytest

from node.load.result import build_result, compute_latency
from node.load.tracker import Tracked, Tracker
from node.load.workload import Knobs, Workload

URLS = ["http://127.0.0.1:1", "http://127.0.0.1:2"]


def build_tracked(count=8, cross=0.5):
    plans = Workload(Knobs(shards=2, tps=10, cross_ratio=cross, accounts=2, seed=3)).draw(count)
    return [Tracked(plan, due=100 + plan.due_s, sent=100 + plan.due_s) for plan in plans]


def add_up(tracked, **changes):
    values = {"scenario": "transfers", "seed": 3, "shards": 2, "target_tps": 10, "cross_ratio": 0.5}
    values |= {"warm_up_s": 0.0, "refusals": {}, "retries": 0} | changes
    return build_result(tracked, **values)


def test_latency_is_by_nearest_rank():
    found = compute_latency(number / 100 for number in range(1, 101))
    assert (found.count, found.p50, found.p95, found.p99, found.max) == (100, 0.5, 0.95, 0.99, 1.0)
    assert compute_latency([]).count == 0


def test_accepted_rejected_and_lost_are_what_was_sent():
    tracked = build_tracked()
    for item in tracked[:5]:
        item.answered = item.due + 0.1
    tracked[0].settled = 103.0
    tracked[5].answered, tracked[5].refusal = 101.0, "nonce too low"
    found = add_up(tracked, refusals={"nonce too low": 1})
    assert (found.sent, found.accepted, found.rejected, found.lost) == (8, 5, 1, 2)
    assert found.is_valid
    assert (found.settled, found.unsettled) == (1, 4)


def test_settled_and_unsettled_are_what_was_accepted_whatever_became_of_lost_ones():
    tracked = build_tracked()
    for item in tracked:
        item.settled = item.due + 1
    for item in tracked[:3]:
        item.answered = item.due + 0.1
    found = add_up(tracked)
    assert (found.accepted, found.lost) == (3, 5)
    assert found.settled + found.unsettled == found.accepted


def test_rate_of_sending_is_that_of_the_moments_at_which_transactions_left():
    tracked = build_tracked(20)
    assert add_up(tracked).sent_tps == 10
    for item in tracked:
        item.sent = max(item.due, 103.9)  # the node was away for two seconds more than all of it was due
    assert add_up(tracked).sent_tps == 5


def test_rate_of_settling_is_over_the_whole_run_also_when_the_chain_stopped_half_way():
    tracked = build_tracked(101, cross=0.0)
    for item in tracked:
        item.answered = item.due + 0.1
    for item in tracked[:10]:
        item.settled = item.due + 0.1
    assert add_up(tracked).settled_tps == 1


@pytest.mark.parametrize("warm_up_s", [0.8, 60.0])
def test_run_that_measured_nothing_is_invalid(warm_up_s):
    tracked = build_tracked(8, cross=0.0)
    for item in tracked:
        item.answered = item.settled = item.due + 0.1
    assert add_up(tracked).is_valid
    found = add_up(tracked, warm_up_s=warm_up_s)
    assert found.latency["local.beacon_final"].count == 0
    assert not found.is_valid


def test_run_of_which_nothing_became_final_is_invalid():
    tracked = build_tracked()
    for item in tracked:
        item.answered = item.due + 0.1
    assert not add_up(tracked).is_valid


def test_run_that_saw_a_transaction_twice_is_invalid():
    tracked = build_tracked()
    tracked[0].is_repeated = True
    assert not add_up(tracked).is_valid


def test_run_that_sent_nothing_is_invalid():
    assert not add_up([]).is_valid


def test_latency_counts_from_the_due_moment_not_from_sending():
    tracked = build_tracked(4, cross=0.0)
    for item in tracked:
        item.sent, item.answered = item.due + 3, item.due + 3.5
    assert add_up(tracked).latency["answered"].p50 == 3.5


def test_warm_up_is_left_out_of_latencies_and_not_of_counts():
    tracked = build_tracked(8, cross=0.0)
    for item in tracked:
        item.answered = item.due + 0.1
    found = add_up(tracked, warm_up_s=0.35)
    assert found.latency["answered"].count == 4
    assert found.accepted == 8


def block(height, *hashes):
    return {"number": hex(height), "transactions": list(hashes)}


def heads(latest, finalized):
    return {"latest": {"height": latest}, "finalized": {"height": finalized}}


def follow(tracker, tracked):
    for item in tracked:
        item.answered = item.due
        tracker.follow(item)


def test_local_transaction_settles_when_its_block_is_beacon_final():
    tracker, (item,) = Tracker(URLS), build_tracked(1, cross=0.0)
    follow(tracker, [item])
    tracker._on_block(item.plan.shard, block(5, item.plan.tx_hash), 101.0)
    tracker._on_status(item.plan.shard, heads(5, 4), 101.5)
    assert (item.included, item.included_height, tracker.unsettled) == (101.0, 5, 1)
    tracker._on_status(item.plan.shard, heads(6, 5), 102.0)
    assert (item.settled, tracker.unsettled) == (102.0, 0)


def test_cross_shard_transaction_settles_once_and_at_its_destination():
    tracker, (item,) = Tracker(URLS), build_tracked(1, cross=1.0)
    follow(tracker, [item])
    src, dst = item.plan.shard, item.plan.dst
    tracker._on_block(src, block(5, item.plan.tx_hash), 101.0)
    tracker._on_status(src, heads(5, 5), 102.0)
    assert (item.final, tracker.unsettled) == (102.0, 1)
    tracker._on_block(dst, block(7, item.plan.message), 103.0)
    tracker._on_status(dst, heads(7, 7), 104.0)
    assert (item.executed, item.settled, tracker.unsettled) == (103.0, 104.0, 0)
    assert add_up([item]).settled == 1


def test_message_is_not_looked_for_on_the_wrong_shard():
    tracker, (item,) = Tracker(URLS), build_tracked(1, cross=1.0)
    follow(tracker, [item])
    tracker._on_block(item.plan.shard, block(5, item.plan.message), 101.0)
    assert item.executed == 0


def test_transaction_in_two_blocks_is_noticed():
    tracker, (item,) = Tracker(URLS), build_tracked(1, cross=0.0)
    follow(tracker, [item])
    for height in (5, 6):
        tracker._on_block(item.plan.shard, block(height, item.plan.tx_hash), 101.0)
    assert item.is_repeated


def test_refused_transaction_is_waited_for_no_longer():
    tracker, items = Tracker(URLS), build_tracked(2)
    follow(tracker, items)
    tracker.forget(items[0])
    tracker.forget(items[0])
    assert tracker.unsettled == 1


def test_half_and_half_count_stands_beside():
    tracked = build_tracked(1, cross=1.0)
    tracked[0].answered = tracked[0].included = tracked[0].settled = tracked[0].due + 1
    found = add_up(tracked)
    assert found.half_and_half_tps == pytest.approx(found.settled_tps / 2)


def test_run_whose_signing_fell_behind_is_invalid():
    tracked = build_tracked()
    assert not add_up(tracked, late_s=1.5).is_valid
