"""Claims about following the beacon: order, completeness, refusals, the position rule X5, caps and recovery."""

import msgspec
import pytest

from shards import inbox as inbox_module
from shards.bundles import MAX_EARLY_BUNDLES
from shards.inbox import BUNDLE_TIMER, FOLLOW_TIMER, MAX_FETCHED_AHEAD, RANGE_COUNT, BeaconFollower
from shardyard import effects as fx
from shardyard.blocks import FinalityProof
from shardyard.codec import decode
from shardyard.errors import LocalProtocolError, RemoteProtocolError, UnsolicitedError
from shardyard.ids import BEACON
from shardyard.messages import BundleRequest, RangeRequest, RangeResponse
from tests.unit.shards.world import (
    CRYPTO,
    BeaconChain,
    build_crosslink,
    build_genesis,
    build_receipt,
    build_ref,
    build_transfer,
    bundle_of,
    followed,
    prove,
)

replace = msgspec.structs.replace
GENESIS = build_genesis(3)


def announce(follower, pair, sender="beacon-0"):
    return follower.on_final_block(sender, *pair)


def sent(outputs, kind):
    return [item.message for item in outputs if isinstance(item, fx.Send) and isinstance(item.message, kind)]


def test_blocks_without_receipts_for_us_are_followed_at_once(chain, follower):
    outputs = announce(follower, chain.add())
    (done,) = followed(outputs)
    assert done.view.ref == build_ref(chain.blocks[1]) == follower.head.ref
    assert decode(done.view.proof, FinalityProof, max_bytes=1 << 20) == chain.proofs[1]
    (record,) = next(item for item in outputs if isinstance(item, fx.Persist)).records
    assert record.block == replace(chain.blocks[1], signature=b"")


def test_a_block_is_followed_only_with_all_its_bundles(chain, follower):
    receipts = [build_receipt(seq=1), build_transfer(seq=2), build_transfer(dst=2)]
    crosslink = build_crosslink(0, receipts)
    assert not followed(announce(follower, chain.add(crosslink)))
    assert follower.head.ref.height == 0
    (done,) = followed(follower.on_bundle("beacon-0", bundle_of(crosslink, receipts)))
    assert done.receipts == tuple(receipts[:2])
    assert done.view.inbox_length == 2


def test_a_bundle_that_comes_before_its_block_is_used(chain, follower):
    receipts = [build_receipt()]
    crosslink = build_crosslink(0, receipts)
    assert follower.on_bundle("shard-0-0", bundle_of(crosslink, receipts)) == []
    assert followed(announce(follower, chain.add(crosslink)))


def test_a_bundle_with_another_root_is_refused_and_the_right_one_still_taken(chain, follower):
    receipts = [build_receipt()]
    crosslink = build_crosslink(0, receipts)
    wrong = replace(bundle_of(crosslink, receipts), receipts=(build_receipt(value=2),))
    announce(follower, chain.add(crosslink))
    for bundle in (wrong, replace(wrong, receipts=()), replace(wrong, receipts=(b"",))):
        with pytest.raises(RemoteProtocolError):
            follower.on_bundle("shard-0-0", bundle)
    assert followed(follower.on_bundle("shard-0-0", bundle_of(crosslink, receipts)))


def test_a_wrong_bundle_that_came_early_is_dropped_and_the_right_one_asked_for(chain, follower):
    receipts = [build_receipt()]
    crosslink = build_crosslink(0, receipts)
    right = bundle_of(crosslink, receipts)
    follower.on_bundle("shard-0-0", replace(right, receipts=(build_receipt(value=2),)))
    assert not followed(announce(follower, chain.add(crosslink)))
    assert sent(follower.on_timer(BUNDLE_TIMER), BundleRequest) == [BundleRequest(crosslink.hash, 0, 1)]
    assert followed(follower.on_bundle("beacon-0", right))


def test_receipts_are_ordered_by_height_then_visit_then_seq(chain, follower):
    early, late = [build_transfer(seq=seq) for seq in (1, 2)], [build_transfer(seq=3)]
    other = [build_transfer(src=2, seq=1)]
    first = build_crosslink(0, early)
    visits = [build_crosslink(2, other), build_crosslink(0, late, parent=first.hash)]
    announce(follower, chain.add(first))
    announce(follower, chain.add(*visits))
    for crosslink, receipts in ((visits[1], late), (visits[0], other), (first, early)):  # in the wrong order
        follower.on_bundle("beacon-0", bundle_of(crosslink, receipts))
    assert follower.head.ref.height == 2
    assert follower.select_deliveries(0, follower.head) == (*early, *other, *late)


def test_x5_duplicate_blocks_and_bundles_are_ignored(chain, follower):
    receipts = [build_transfer()]
    crosslink = build_crosslink(0, receipts)
    pair = chain.add(crosslink)
    for _ in range(2):
        announce(follower, pair)
        follower.on_bundle("beacon-0", bundle_of(crosslink, receipts))
    assert follower.head.inbox_length == 1
    assert announce(follower, pair) == []


def test_x5_a_block_takes_what_fits_and_then_must(chain):
    genesis = build_genesis(3, block_time_ms=1)  # inbox gas 300,000
    chain, follower = BeaconChain(genesis), BeaconFollower(genesis, 1, CRYPTO)
    gases = (200_000, 100_000, 1, 300_000, 50_000)
    receipts = [build_receipt(seq=seq, gas=gas) for seq, gas in enumerate(gases, start=1)]
    crosslink = build_crosslink(0, receipts)
    announce(follower, chain.add(crosslink))
    follower.on_bundle("beacon-0", bundle_of(crosslink, receipts))
    head = follower.head
    assert follower.select_deliveries(0, head) == tuple(receipts[:2])  # full to the last unit of gas
    assert follower.select_deliveries(2, head) == tuple(receipts[2:3])  # the fourth does not fit: no skipping
    assert follower.select_deliveries(3, head) == tuple(receipts[3:4])
    assert follower.select_deliveries(4, head) == tuple(receipts[4:])
    assert follower.select_deliveries(5, head) == ()


def test_x0_a_block_reads_only_what_its_beacon_reference_shows(chain, follower):
    receipts = [build_transfer(seq=1)]
    crosslink = build_crosslink(0, receipts)
    announce(follower, chain.add())
    announce(follower, chain.add(crosslink))
    follower.on_bundle("beacon-0", bundle_of(crosslink, receipts))
    assert follower.select_deliveries(0, follower.get_view(1)) == ()
    assert follower.select_deliveries(0, follower.get_view(2)) == tuple(receipts)


def test_base_fees_of_links_and_the_own_crosslink_come_from_the_beacon_block(chain, follower):
    own = build_crosslink(1, last_height=5, head_hash=b"h" * 32, base_fee=77)
    announce(follower, chain.add(own, build_crosslink(2, base_fee=9)))
    assert follower.head.link_base_fees == ((0, 1_000_000_000), (1, 77), (2, 9))
    assert (follower.head.crosslink, follower.head.crosslink_height) == (own.hash, 5)


def test_a_gap_is_asked_for_and_one_proof_covers_the_range(chain, follower):
    for _ in range(5):
        pair = chain.add()
    assert sent(announce(follower, pair, "beacon-7"), RangeRequest) == [RangeRequest(BEACON, 1, 16)]
    outputs = follower.on_range_response(
        "beacon-0", RangeResponse(BEACON, tuple(chain.blocks[1:5]), chain.proofs[4])
    )
    assert [done.view.ref.height for done in followed(outputs)] == [1, 2, 3, 4, 5]
    assert followed(outputs)[2].view.ref == build_ref(chain.blocks[3])


def add_with_receipts(chain, count):
    """Add ``count`` beacon blocks that each bring this shard one receipt; return their crosslinks and bundles."""
    found = []
    for seq in range(1, count + 1):
        receipts = [build_transfer(seq=seq)]
        crosslink = build_crosslink(0, receipts, first_height=seq, last_height=seq)
        chain.add(crosslink)
        found.append((crosslink, bundle_of(crosslink, receipts)))
    return found


def answer(follower, chain, first, last):
    return follower.on_range_response(
        "beacon-0", RangeResponse(BEACON, tuple(chain.blocks[first : last + 1]), chain.proofs[last])
    )


def test_who_catches_up_asks_for_the_bundles_of_many_blocks_at_once_and_for_each_once(chain, follower):
    expected = add_with_receipts(chain, RANGE_COUNT + 4)
    follower.start()
    follower.on_status(len(expected))
    outputs = answer(follower, chain, 1, RANGE_COUNT)
    wanted = [BundleRequest(crosslink.hash, 0, 1) for crosslink, _ in expected]
    assert sent(outputs, BundleRequest) == wanted[:RANGE_COUNT]
    # Out of order, as they may come: each is used when its block is the next, and none is asked for again.
    bundles = [bundle for _, bundle in expected]
    outputs = [
        output
        for bundle in reversed(bundles[1:RANGE_COUNT])
        for output in follower.on_bundle("beacon-0", bundle)
    ]
    assert not followed(outputs)
    outputs = follower.on_bundle("beacon-0", bundles[0])
    assert [done.view.ref.height for done in followed(outputs)] == list(range(1, RANGE_COUNT + 1))
    assert not sent(outputs, BundleRequest)


def test_a_bundle_ahead_that_is_lost_is_asked_for_a_while_after_its_block_is_the_next(chain, follower):
    (_, bundle), (second, _), _ = add_with_receipts(chain, 3)
    follower.start()
    follower.on_status(9)
    assert len(sent(answer(follower, chain, 1, 3), BundleRequest)) == 3
    outputs = follower.on_bundle("beacon-0", bundle)
    assert not sent(outputs, BundleRequest)
    assert any(isinstance(item, fx.SetTimer) and item.name == BUNDLE_TIMER for item in outputs)
    assert sent(follower.on_timer(BUNDLE_TIMER), BundleRequest) == [BundleRequest(second.hash, 0, 1)]


def test_a_forged_bundle_ahead_costs_no_more_than_asking_again(chain, follower):
    (_, bundle), (second, _), (third, _) = add_with_receipts(chain, 3)
    follower.on_bundle("liar", replace(bundle, crosslink=second.hash, receipts=()))
    follower.start()
    follower.on_status(9)
    asked = sent(answer(follower, chain, 1, 3), BundleRequest)
    assert [request.crosslink for request in asked][1:] == [third.hash]
    assert sent(follower.on_bundle("beacon-0", bundle), BundleRequest) == [BundleRequest(second.hash, 0, 1)]


def test_bundles_that_came_early_leave_room_for_those_that_are_asked_for(chain, follower):
    """What is announced live, or twice, or by liars, stays until it is pushed out."""
    for seq in range(60):
        receipts = [build_transfer(value=seq)]
        follower.on_bundle("beacon-1", bundle_of(build_crosslink(2, receipts), receipts))
    add_with_receipts(chain, 9)
    follower.start()
    follower.on_status(9)
    assert len(sent(answer(follower, chain, 1, 8), BundleRequest)) == 8


def test_bundles_ahead_are_no_more_than_there_is_room_for(chain, follower):
    count = 2 * MAX_FETCHED_AHEAD
    expected = add_with_receipts(chain, count)
    follower.start()
    follower.on_status(count + 9)
    asked = sent(answer(follower, chain, 1, count), BundleRequest)
    assert len(asked) == 1 + MAX_FETCHED_AHEAD
    for came, (_, bundle) in enumerate(expected, start=1):
        outputs = follower.on_bundle("beacon-0", bundle)
        assert follower.head.ref.height == came
        asked += sent(outputs, BundleRequest)
        assert len(asked) - came <= 1 + MAX_FETCHED_AHEAD
    assert len(asked) == count, "each once"


def test_bundles_ahead_are_no_larger_than_there_is_room_for(chain, follower, monkeypatch):
    expected = add_with_receipts(chain, 6)
    size = sum(len(receipt) for receipt in expected[0][1].receipts)
    monkeypatch.setattr(inbox_module, "MAX_FETCHED_BYTES", 2 * size)
    follower.start()
    follower.on_status(9)
    assert len(sent(answer(follower, chain, 1, 6), BundleRequest)) == 1 + 2


def test_bundles_ahead_of_a_snapshot_are_those_that_it_had_not_consumed(chain, follower):
    expected = add_with_receipts(chain, 6)
    follower.skip_to(build_ref(chain.blocks[2]), 2)
    follower.start()
    follower.on_status(9)
    asked = sent(answer(follower, chain, 1, 6), BundleRequest)
    assert [request.crosslink for request in asked] == [crosslink.hash for crosslink, _ in expected[2:]]


def test_bundles_ahead_are_asked_for_again_where_a_snapshot_forgot_the_blocks(chain, follower):
    expected = add_with_receipts(chain, 6)
    follower.start()
    follower.on_status(9)
    assert len(sent(answer(follower, chain, 1, 6), BundleRequest)) == 6
    follower.skip_to(build_ref(chain.blocks[1]), 1)
    follower.start()
    asked = sent(answer(follower, chain, 1, 6), BundleRequest)
    assert [request.crosslink for request in asked] == [crosslink.hash for crosslink, _ in expected[1:]]


def test_a_proven_block_ahead_that_is_none_of_the_beacons_is_refused_in_its_turn(chain, follower):
    """A committee with too many liars can prove it; nothing before it may suffer."""
    (_, bundle), _ = add_with_receipts(chain, 2)
    content = replace(chain.blocks[2].header.content, crosslinks_root=bytes(32))
    bad = replace(chain.blocks[2], header=replace(chain.blocks[2].header, content=content))
    follower.start()
    follower.on_status(9)
    outputs = follower.on_range_response(
        "beacon-0", RangeResponse(BEACON, (chain.blocks[1], bad), prove(GENESIS, bad))
    )
    assert len(sent(outputs, BundleRequest)) == 1
    assert not is_refused(outputs)
    outputs = follower.on_bundle("beacon-0", bundle)
    assert [done.view.ref.height for done in followed(outputs)] == [1]
    assert is_refused(outputs)


def test_what_is_only_announced_is_not_fetched_ahead_and_not_passed_over(chain, follower):
    """Nothing proves a block that was announced before its turn: it may be anybody's."""
    add_with_receipts(chain, 6)
    pairs = list(zip(chain.blocks[1:], chain.proofs[1:], strict=True))
    follower.start()
    outputs = [*announce(follower, pairs[2], "liar"), *answer(follower, chain, 1, 2)]
    assert len(sent(outputs, BundleRequest)) == 2
    assert sent(outputs, RangeRequest)[-1] == RangeRequest(BEACON, 3, RANGE_COUNT)


def test_answers_that_bring_nothing_new_cause_no_questions(chain, follower):
    for _ in range(RANGE_COUNT + 1):
        chain.add()
    follower.start()
    assert sent(answer(follower, chain, 1, RANGE_COUNT), RangeRequest), "a full range: there may be more"
    for _ in range(5):
        assert not sent(answer(follower, chain, 1, RANGE_COUNT), RangeRequest)
        follower.on_status(1 << 40)


def test_i14_ranges_far_ahead_are_not_kept(chain, follower):
    for _ in range(3 * inbox_module.MAX_BLOCKS_AHEAD):
        chain.add(build_crosslink(0, [build_transfer()]))
    first = inbox_module.MAX_BLOCKS_AHEAD
    for start in range(2, 3 * first, 32):
        follower.start()
        answer(follower, chain, start, start + 15)
    assert len(follower._ahead) <= first
    assert max(follower._ahead) <= first


def test_a_range_that_comes_after_the_next_look_is_still_taken_and_after_two_is_not(chain, follower):
    chain.add()
    follower.on_status(1)
    follower._has_progressed = True  # so that nothing is asked for anew
    follower.on_timer(FOLLOW_TIMER)
    assert followed(answer(follower, chain, 1, 1))
    chain.add()
    follower.on_status(2)
    for _ in range(2):
        follower._has_progressed = True
        follower.on_timer(FOLLOW_TIMER)
    with pytest.raises(UnsolicitedError):
        answer(follower, chain, 2, 2)


def test_the_next_blocks_are_asked_for_while_bundles_are_still_awaited(chain, follower):
    expected = add_with_receipts(chain, 3 * RANGE_COUNT)
    follower.start()
    follower.on_status(len(expected))
    outputs = answer(follower, chain, 1, RANGE_COUNT)
    assert sent(outputs, RangeRequest) == [RangeRequest(BEACON, RANGE_COUNT + 1, RANGE_COUNT)]
    # One request is under way at a time, and no more than two ranges are held.
    assert not sent(follower.on_bundle("beacon-0", expected[0][1]), RangeRequest)
    assert not sent(answer(follower, chain, RANGE_COUNT + 1, 2 * RANGE_COUNT), RangeRequest)
    for _, bundle in expected[1:RANGE_COUNT]:
        outputs = follower.on_bundle("beacon-0", bundle)
    assert sent(outputs, RangeRequest) == [RangeRequest(BEACON, 2 * RANGE_COUNT + 1, RANGE_COUNT)]


def test_l9_a_range_that_nobody_asked_for_is_refused(chain, follower):
    chain.add()
    with pytest.raises(UnsolicitedError):
        follower.on_range_response("beacon-0", RangeResponse(BEACON, (chain.blocks[1],), chain.proofs[1]))


def test_a_range_with_a_false_proof_or_a_gap_is_refused_and_changes_nothing(chain, follower):
    for _ in range(3):
        chain.add()
    blocks, proofs = chain.blocks, chain.proofs
    other = BeaconChain(GENESIS)
    other.add(build_crosslink(0))
    for answer, proof in (
        ((blocks[1], blocks[3]), proofs[3]),
        ((blocks[1], blocks[2]), proofs[3]),
        ((blocks[1], blocks[2]), proofs[1]),
        ((other.blocks[1], blocks[2]), proofs[2]),
        ((blocks[1],), replace(proofs[1], finalization=proofs[2].finalization)),
        ((blocks[1],), replace(proofs[1], path=())),
        ((replace(blocks[1], body=b"another"), blocks[2]), proofs[2]),
    ):
        follower.start()
        with pytest.raises(RemoteProtocolError):
            follower.on_range_response("beacon-0", RangeResponse(BEACON, answer, proof))
    assert follower.head.ref.height == 0


def test_l9_what_liars_answer_does_not_end_a_question_that_was_put_to_another(chain, follower):
    """One peer that answers every question at once with rubbish must not keep a shard from catching up."""
    for _ in range(4):
        chain.add()
    announce(follower, (chain.blocks[1], chain.proofs[1]))
    follower.on_status(4)
    false = replace(chain.proofs[3], finalization=chain.proofs[2].finalization)
    with pytest.raises(RemoteProtocolError):
        follower.on_range_response("liar", RangeResponse(BEACON, tuple(chain.blocks[2:4]), false))
    old = RangeResponse(BEACON, (chain.blocks[1],), chain.proofs[1])
    assert follower.on_range_response("liar", old) == []
    assert follower.on_range_response("another", old) == []
    assert [done.view.ref.height for done in followed(answer(follower, chain, 2, 4))] == [2, 3, 4]


def is_refused(outputs):
    return any(isinstance(item, fx.Notice) and item.kind == "refused" for item in outputs)


def test_a2_a_block_without_its_own_finality_proof_is_refused(chain, follower):
    block, proof = chain.add()
    other = BeaconChain(GENESIS).add(build_crosslink(0))
    garbled = replace(proof, notarization=replace(proof.notarization, signature=bytes(96)))
    for pair in (
        (block, garbled),
        (block, other[1]),
        (replace(block, body=b"\x91\x91\xc0"), proof),
        (replace(block, body=b""), proof),
    ):
        assert is_refused(announce(follower, pair, "beacon-9"))
    assert followed(announce(follower, (block, proof)))


def test_a_refused_block_does_not_hide_what_was_completed_before_it(chain, follower):
    first, second = chain.add(), chain.add()
    announce(follower, (second[0], first[1]), "beacon-9")
    outputs = announce(follower, first)
    assert [done.view.ref.height for done in followed(outputs)] == [1]
    assert is_refused(outputs)
    assert followed(announce(follower, second))


def test_a_shard_block_posing_as_a_beacon_block_is_refused(chain, follower):
    block = chain.add()[0]
    shard_content = GENESIS.build_shard_block(0).header.content
    header = replace(block.header, content=shard_content)
    posing = replace(block, header=header)
    assert is_refused(announce(follower, (posing, prove(GENESIS, posing))))


def test_a_lying_height_asks_once_and_then_waits_for_the_timer(follower):
    assert len(sent(follower.on_status(1 << 60), RangeRequest)) == 1
    assert follower.on_range_response("beacon-0", RangeResponse(BEACON, (), None)) == []
    assert follower.on_status(1 << 61) == []
    assert len(sent(follower.on_timer(FOLLOW_TIMER), RangeRequest)) == 1


def test_a_lying_height_is_forgotten_when_the_node_that_was_asked_has_no_more(chain, follower):
    """Else every block counts as old for ever, and its bundles are asked for though they are just being announced."""
    follower.on_status(1 << 60)
    follower.on_range_response("another", RangeResponse(BEACON, (), None))
    assert follower._known_height == 1 << 60
    follower.on_range_response("beacon-0", RangeResponse(BEACON, (), None))
    for seq in (1, 2):
        receipts = [build_transfer(seq=seq)]
        crosslink = build_crosslink(0, receipts)
        assert not sent(announce(follower, chain.add(crosslink)), BundleRequest)
        assert followed(follower.on_bundle("beacon-0", bundle_of(crosslink, receipts)))
    outputs = announce(follower, chain.add())
    assert followed(outputs)
    assert not sent(outputs, RangeRequest)


def asked(outputs):
    return {
        item.to for item in outputs if isinstance(item, fx.Send) and isinstance(item.message, RangeRequest)
    }


def test_l9_whoever_tells_of_blocks_far_ahead_is_asked_for_those_that_were_missed(chain, follower):
    """A silent first beacon node must not strand a replica that missed one block."""
    chain.add()
    nodes = set()
    for number in range(8):
        nodes |= asked(announce(follower, chain.add(), sender=f"beacon-{1 + number % 3}"))
        nodes |= asked(follower.on_timer(FOLLOW_TIMER))
    assert follower.head.ref.height == 0
    assert nodes == {"beacon-0", "beacon-1", "beacon-2", "beacon-3"}


def test_i14_nodes_that_may_be_asked_are_bounded_and_each_has_one_place(chain, follower):
    pair = chain.add()
    for number in range(3 * inbox_module.MAX_BEACON_NODES):
        announce(follower, pair, sender=f"node-{number}")
        announce(follower, pair, sender="again")
    nodes = follower._beacon_nodes
    assert len(nodes) == len(set(nodes)) == inbox_module.MAX_BEACON_NODES
    assert "again" in nodes


def test_a_silent_beacon_is_asked_ever_more_seldom(follower):
    delays = []
    for _ in range(6):
        delays += [item.delay_ms for item in follower.on_timer(FOLLOW_TIMER) if isinstance(item, fx.SetTimer)]
    block_time_ms = GENESIS.preset.block_time_ms
    assert delays == [block_time_ms * factor for factor in (4, 8, 16, 16, 16, 16)]


def test_missing_bundles_are_asked_of_beacon_and_source_in_turn(chain, follower):
    receipts = [build_transfer()]
    announce(follower, chain.add(build_crosslink(0, receipts)), "beacon-3")
    nodes = set()
    for _ in range(6):
        nodes |= {item.to for item in follower.on_timer(BUNDLE_TIMER) if isinstance(item, fx.Send)}
    assert nodes == {"beacon-0", "beacon-3", "shard-0-0"}


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_every_node_is_asked_for_a_missing_bundle_however_many_pose_as_beacon_nodes(chain, follower, count):
    """With two liars among three nodes each turn of the honest one fell to the source, which may be down."""
    first = chain.add()
    liars = [f"liar-{number}" for number in range(count)]
    for sender in ("beacon-0", *liars):
        announce(follower, first, sender)
    announce(follower, chain.add(build_crosslink(0, [build_transfer()])))
    nodes = set()
    for _ in range(3 * (count + 1)):
        nodes |= {item.to for item in follower.on_timer(BUNDLE_TIMER) if isinstance(item, fx.Send)}
    assert nodes == {"beacon-0", "shard-0-0", *liars}


def test_final_blocks_prune_receipts_and_views(chain, follower):
    receipts = [build_transfer(seq=seq) for seq in range(1, 4)]
    crosslink = build_crosslink(0, receipts)
    announce(follower, chain.add(crosslink))
    follower.on_bundle("beacon-0", bundle_of(crosslink, receipts))
    announce(follower, chain.add())
    follower.on_final(build_ref(chain.blocks[1]), 2)
    assert follower.get_view(0) is None
    assert follower.get_view(1) is not None
    assert follower.select_deliveries(2, follower.head) == tuple(receipts[2:])
    with pytest.raises(LocalProtocolError):
        follower.select_deliveries(1, follower.head)


def test_i14_the_follower_pauses_at_its_cap_and_goes_on_when_the_shard_does(chain, follower, monkeypatch):
    monkeypatch.setattr(inbox_module, "MAX_VIEWS", 3)
    for _ in range(6):
        announce(follower, chain.add())
    assert follower.is_paused
    assert follower.head.ref.height == 3
    outputs = follower.on_final(build_ref(chain.blocks[2]), 0)
    assert [done.view.ref.height for done in followed(outputs)] == [4, 5]


def test_who_paused_asks_for_what_it_passed_over_as_soon_as_it_goes_on(chain, follower, monkeypatch):
    monkeypatch.setattr(inbox_module, "MAX_VIEWS", 3)
    for _ in range(3):
        announce(follower, chain.add())
    assert follower.is_paused
    follower.on_status(99)
    assert not sent(follower.on_final(build_ref(chain.blocks[0]), 0), RangeRequest), "it is paused still"
    outputs = follower.on_final(build_ref(chain.blocks[2]), 0)
    assert sent(outputs, RangeRequest) == [RangeRequest(BEACON, 4, RANGE_COUNT)]
    assert not sent(follower.on_final(build_ref(chain.blocks[3]), 0), RangeRequest), "one question at a time"


def test_i14_what_cannot_be_used_yet_is_bounded(chain, follower):
    for height in range(100):
        pair = chain.add()
        if height:
            announce(follower, pair)
    for seq in range(100):
        receipts = [build_transfer(seq=seq)]
        follower.on_bundle("shard-0-0", bundle_of(build_crosslink(0, receipts), receipts))
    assert len(follower._ahead) <= inbox_module.MAX_BLOCKS_AHEAD
    assert len(follower._early) <= MAX_EARLY_BUNDLES
    assert follower._early._bytes == sum(len(receipts[0]) for receipts in follower._early._kept.values())


def test_congestion_is_the_waiting_gas_over_twenty_blocks():
    genesis = build_genesis(3, block_time_ms=1)  # inbox gas 300,000
    chain, follower = BeaconChain(genesis), BeaconFollower(genesis, 1, CRYPTO)
    receipts = [build_receipt(seq=seq, gas=300_000) for seq in range(1, 11)]
    crosslink = build_crosslink(0, receipts)
    announce(follower, chain.add(crosslink))
    follower.on_bundle("beacon-0", bundle_of(crosslink, receipts))
    assert follower.compute_congestion(0, follower.head) == 500
    assert follower.compute_congestion(9, follower.head) == 50
    assert follower.compute_congestion(10, follower.head) == 0


def test_recovery_from_records_gives_the_same_views_and_receipts(chain, follower):
    receipts = [build_receipt(seq=1), build_transfer(seq=2)]
    crosslink = build_crosslink(0, receipts)
    outputs = announce(follower, chain.add())
    outputs += announce(follower, chain.add(crosslink))
    outputs += follower.on_bundle("beacon-0", bundle_of(crosslink, receipts))
    records = [record for item in outputs if isinstance(item, fx.Persist) for record in item.records]
    again = BeaconFollower(GENESIS, 1, CRYPTO)
    for record in records:
        again.recover(record)
    assert again.head == follower.head
    assert again.select_deliveries(0, again.head) == tuple(receipts)
    with pytest.raises(LocalProtocolError):
        again.recover(records[0])
