"""L9: what an engine fetches that it misses, of whom and how often, and which answers it takes."""

from shardyard.consensus.pacing import TIMER_RANGE
from shardyard.consensus.proofs import build_certified_header, build_finality_proof
from shardyard.consensus.sync import RANGE_BLOCKS
from shardyard.consensus.votes import VoteKind
from shardyard.effects import Send
from shardyard.ids import ZERO_HASH
from shardyard.messages import (
    BlockRequest,
    BlockResponse,
    Proposal,
    RangeRequest,
    RangeResponse,
    Status,
    Votes,
)
from tests.unit.consensus.harness import GENESIS
from tests.unit.consensus.solo import Solo

NOTAR, SKIP, FINAL = VoteKind.NOTAR, VoteKind.SKIP, VoteKind.FINAL


def requests_for(solo, block_hash):
    return [
        output.to
        for output in solo.of(Send)
        if isinstance(output.message, BlockRequest) and block_hash in output.message.hashes
    ]


def test_missing_ancestry_is_asked_of_the_sender_first_then_of_others():
    solo = Solo()
    solo.hear(Votes(()), "other")
    parent = solo.build_block(1)
    solo.hear(Proposal(solo.build_block(2, parent)), "leader")
    assert requests_for(solo, parent.hash) == ["leader"]
    for _ in range(8):
        solo.fire("engine.fetch")
    assert set(requests_for(solo, parent.hash)) == {"leader", "other"}


def test_who_only_asks_is_asked_for_nothing():
    """Shards follow the beacon by asking; a replica that asked them for its missing blocks stood still."""
    solo = Solo()
    for number in range(12):
        solo.hear(RangeRequest(solo.config.shard, 1, 16), f"follower-{number}")
        solo.hear(BlockRequest(solo.config.shard, (GENESIS.hash,)), f"follower-{number}")
    parent = solo.build_block(1)
    solo.hear(Proposal(solo.build_block(2, parent)), "leader")
    for _ in range(40):
        solo.fire("engine.fetch")
    assert set(requests_for(solo, parent.hash)) == {"leader"}


def test_every_peer_is_asked_before_the_timeout_doubles():
    solo = Solo()
    peers = [f"peer-{number}" for number in range(6)]
    for peer in peers:
        solo.hear(Votes(()), peer)
    parent = solo.build_block(1)
    solo.hear(Proposal(solo.build_block(2, parent)), peers[0])
    for _ in range(2 * (len(peers) - 1)):  # the timeout is 2Δ, the tick of the timer Δ
        solo.fire("engine.fetch")
    assert requests_for(solo, parent.hash) == peers
    for _ in range(4 * len(peers)):
        solo.fire("engine.fetch")
    assert requests_for(solo, parent.hash)[len(peers) :] == peers


def test_a_fetch_survives_a_skip_and_its_answer_is_used():
    solo = Solo()
    parent = solo.build_block(1)
    child = solo.build_block(2, parent)
    solo.hear(Proposal(child))
    solo.certify_and_hear(SKIP, 1)
    solo.hear(BlockResponse(solo.config.shard, (parent,), ()))
    assert {vote.block_hash for vote in solo.votes_sent(NOTAR)} == {parent.hash, child.hash}


def test_the_fetch_of_a_certified_block_survives_a_skip():
    solo = Solo()
    block = solo.build_block(1)
    solo.certify_and_hear(NOTAR, 1, block.hash)
    solo.certify_and_hear(SKIP, 1)
    solo.fire("engine.fetch")
    assert [output.message for output in solo.of(Send)] == [BlockRequest(solo.config.shard, (block.hash,))]


def test_an_unsolicited_answer_is_refused_before_it_is_kept():
    solo = Solo()
    block = solo.build_block(1)
    solo.hear(BlockResponse(solo.config.shard, (block,), ()))
    assert solo.engine.refused["UnsolicitedError"] == 1
    assert solo.engine.get_block(block.hash) is None


def test_an_answer_by_somebody_else_is_refused():
    solo = Solo()
    parent = solo.build_block(1)
    solo.hear(Proposal(solo.build_block(2, parent)), "leader")
    solo.hear(BlockResponse(solo.config.shard, (parent,), ()), "stranger")
    assert solo.engine.get_block(parent.hash) is None


def test_a_range_is_taken_only_from_whom_it_was_asked_of():
    solo = Solo(local=())
    block = solo.build_block(1)
    certificates = solo.certify(NOTAR, 1, block.hash), solo.certify(FINAL, 1, block.hash)
    proof = build_finality_proof((), build_certified_header(block), *certificates)
    solo.hear(Status(solo.config.shard, 9, 8, ZERO_HASH), "asked")
    assert [output.to for output in solo.of(Send)] == ["asked"]
    answer = RangeResponse(solo.config.shard, (block,), proof)
    solo.hear(answer, "another")
    assert solo.finals == []
    assert solo.engine.refused["UnsolicitedError"] == 1
    solo.hear(answer, "asked")
    assert [final.hash for final in solo.finals] == [block.hash]


def test_a_process_that_starts_asks_the_first_peer_it_hears_for_what_follows_once():
    """A status may be a block time old: one that claims nothing new is no sign that nothing was missed."""
    solo = Solo()
    status = Status(solo.config.shard, 0, 0, GENESIS.hash)
    for peer in ("first", "second", "first"):
        solo.hear(status, sender=peer)
    asked = [(send.to, send.message.first_height, send.message.count) for send in solo.of(Send)]
    assert asked == [("first", 1, RANGE_BLOCKS)]
    solo.fire(TIMER_RANGE)
    solo.hear(status, sender="second")
    assert len(solo.of(Send)) == 1
