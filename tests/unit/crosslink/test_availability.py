"""X10, I14: which bodies are held, for how long, and that the shelves are bounded; what an outbox may weigh."""

import msgspec
import pytest
from crosslink_test_model import Send, World

from crosslink import availability
from crosslink.availability import MAX_OPEN_PER_SHARD, BodyStore
from crosslink.validity import check_submission
from shardyard.codec import encode
from shardyard.emission import verify_outbox
from shardyard.errors import InvalidCrosslinkError
from shardyard.ids import ZERO_HASH


def check(world, submission):
    return check_submission(world.genesis, world.crypto, submission)


def build_lengths(world, count):
    """Submissions of one shard from its first block on, each one block longer."""
    submissions = []
    for _ in range(count):
        world.shards[0].make_block([Send(1, value=1)])
        submissions.append(check(world, world.shards[0].build_submission()))
    return submissions


def test_i14_open_submissions_of_one_shard_are_bounded_and_leave_others_alone(world):
    store = BodyStore()
    world.shards[1].make_block()
    other = check(world, world.shards[1].build_submission())
    store.add(other)
    lengths = build_lengths(world, MAX_OPEN_PER_SHARD + 5)
    for checked in reversed(lengths):
        store.add(checked)
    assert [checked for checked in lengths if checked.facts.hash in store] == lengths[5:]  # the longest stay
    assert other.facts.hash in store


def test_i14_submissions_far_ahead_never_displace_the_next_one(world):
    store = BodyStore()
    following, *_ = build_lengths(world, MAX_OPEN_PER_SHARD + 5)
    store.add(following)
    model = world.shards[0]
    for number in range(1, MAX_OPEN_PER_SHARD + 5):
        store.add(check(world, model.build_submission(model.pending[number:], parent=bytes([number]) * 32)))
    assert following.facts.hash in store
    assert len(store._open) == MAX_OPEN_PER_SHARD


def test_i14_one_range_is_held_once_whatever_congestion_is_claimed(world):
    store = BodyStore()
    (first,) = build_lengths(world, 1)
    store.add(first)
    twin = check(world, world.shards[0].build_submission(congestion=7))
    store.add(twin)
    assert twin.facts.hash not in store
    store.add(twin, is_wanted=True)  # a beacon block names it
    assert twin.facts.hash in store


def test_s5_submission_that_a_vote_rests_on_never_gives_way(world):
    store = BodyStore()
    first, *rest = build_lengths(world, MAX_OPEN_PER_SHARD + 5)
    store.add(first)
    assert store.take_unlogged([first.facts.hash]) == [first.submission]
    assert store.take_unlogged([first.facts.hash]) == []
    for checked in rest:
        store.add(checked)
    assert first.facts.hash in store


def test_x10_bodies_stay_until_consumed_then_while_the_budget_lasts(world, monkeypatch):
    monkeypatch.setattr(availability, "MAX_HISTORY_COUNT", 1)
    world.shards[0].make_block([Send(1, value=1)])
    first = world.submit(0).crosslink.hash
    world.make_beacon_block()
    assert first in world.bodies._accepted
    world.shards[1].make_block(beacon_ref=world.tip_ref)
    second = world.submit(1).crosslink.hash
    world.make_beacon_block()
    assert first not in world.bodies._accepted
    assert (first in world.bodies) != (second in world.bodies)  # both are consumed, one fits the budget
    assert len(world.bodies._history) == 1


def test_submission_overtaken_by_another_is_dropped(world):
    (short,) = build_lengths(world, 1)
    world.bodies.add(short)
    world.shards[0].make_block()
    world.submit(0)
    world.make_beacon_block()
    assert world.state.shards[0].last_height == 2
    assert short.facts.hash not in world.bodies
    assert world.bodies._open == {}


def test_i14_early_submissions_with_parents_of_nobody_do_not_keep_the_next_one_out(world):
    """Whoever has the blocks of a shard can make them: as long as the true one, and with hashes that win every tie."""
    model = world.shards[0]
    model.make_block()
    first = model.build_submission()
    model.make_block()
    after = model.pending[1:]
    true = check(world, model.build_submission(after, parent=first.crosslink.hash))
    false, number = [], 0
    while len(false) < MAX_OPEN_PER_SHARD:
        number += 1
        checked = check(world, model.build_submission(after, parent=number.to_bytes(32, "big")))
        if checked.facts.hash < true.facts.hash:
            false.append(checked)
    world.bodies.add(check(world, first))
    world.bodies.take_unlogged([first.crosslink.hash])  # it is proposed
    for checked in false:
        world.bodies.add(checked)
    world.make_beacon_block()
    assert world.state.shards[0].crosslink == first.crosslink.hash
    world.bodies.add(true)
    world.make_beacon_block()
    assert world.state.shards[0].crosslink == true.facts.hash
    assert world.bodies._open == {}


def test_children_are_offered_longest_first(world):
    store = BodyStore()
    model = world.shards[0]
    for _ in range(3):
        model.make_block()
        store.add(check(world, model.build_submission()))
    heights = [checked.facts.crosslink.last_height for checked in store.get_children(0, ZERO_HASH)]
    assert heights == [3, 2, 1]
    assert store.get_children(0, b"\x01" * 32) == []


def test_x10_block_that_emits_more_than_a_crosslink_carries_is_refused():
    world = World(max_bundle_bytes=500)
    receipts = [encode(world.shards[0].build_receipt(Send(1, value=1))) for _ in range(3)]
    limits = {"shard": 0, "shard_count": 3, "preset": world.genesis.preset}
    entries, links = verify_outbox(receipts[:2], **limits)
    assert [data for data, _ in entries] == receipts[:2]
    assert links[0].count == 2
    with pytest.raises(InvalidCrosslinkError, match="expected at most 500"):
        verify_outbox(receipts, **limits)


def test_log_serves_what_memory_no_longer_holds(world):
    from crosslink.beacon import BeaconMachine
    from shardyard.consensus.engine import NoBlockSource

    world.shards[0].make_block([Send(1, value=1)])
    submission = world.shards[0].build_submission()

    class Log:
        def get_submission(self, crosslink):
            return submission if crosslink == submission.crosslink.hash else None

    machine = BeaconMachine(world.genesis, world.crypto, (), NoBlockSource(), submissions=Log())
    key = submission.crosslink.hash
    assert machine.get_submission(key) == submission
    assert machine.get_bundle(key, 1).receipts == submission.outboxes[0]
    assert machine.get_bundle(key, 2) is None
    assert machine.get_bundle(ZERO_HASH, 1) is None
    assert msgspec.structs.asdict(machine.get_bundle(key, 1))["src"] == 0
