"""L11: a peer that comes late to a slot gets what was said in it before it could hear it; nobody gets it twice."""

from shardyard.consensus.engine import RequestBuild
from shardyard.consensus.votes import VoteKind
from shardyard.effects import Send
from shardyard.ids import ZERO_HASH
from shardyard.messages import BlockRequest, Proposal, Status, Votes
from tests.unit.consensus.harness import GENESIS
from tests.unit.consensus.solo import Solo

NEWCOMER = Status(0, 1, 0, GENESIS.hash)


def greetings(solo, peer):
    sent = [output.message for output in solo.of(Send) if output.to == peer]
    return [message for message in sent if isinstance(message, Proposal | Votes)]


def build_leader():
    """Return the leader of slot 1, which has proposed and voted."""
    solo = Solo(local=(1,))
    assert solo.committee.get_leader(1) == 1
    solo.fire("engine.propose.1")
    (request,) = solo.of(RequestBuild)
    block = solo.build_block(request.slot, request.parent)
    solo.feed(solo.engine.on_proposed(1, block, solo.now_ms))
    return solo, block


def test_a_newcomer_gets_the_own_proposal_and_the_own_votes_once():
    solo, block = build_leader()
    solo.hear(NEWCOMER, "newcomer")
    proposal, votes = greetings(solo, "newcomer")
    assert proposal.block.hash == block.hash
    assert proposal.block.signature
    assert [(vote.kind, vote.validator) for vote in votes.votes] == [(VoteKind.NOTAR, 1)]
    solo.hear(NEWCOMER, "newcomer")
    assert len(greetings(solo, "newcomer")) == 2


def test_what_a_leader_says_to_a_newcomer_is_enough_to_vote():
    leader, block = build_leader()
    leader.hear(NEWCOMER, "newcomer")
    solo = Solo(local=(2,))
    for message in greetings(leader, "newcomer"):
        solo.hear(message, "leader")
    assert [vote.block_hash for vote in solo.votes_sent(VoteKind.NOTAR)] == [block.hash]


def test_a_voter_tells_its_vote_and_not_the_proposal_of_another():
    solo = Solo()
    block = solo.propose(1)
    solo.hear(NEWCOMER, "newcomer")
    (votes,) = greetings(solo, "newcomer")
    assert {vote.block_hash for vote in votes.votes} == {block.hash}


def test_who_only_asks_and_who_is_ahead_get_nothing():
    solo = Solo()
    solo.propose(1)
    solo.hear(BlockRequest(0, (ZERO_HASH,)), "follower")
    solo.hear(Status(0, 2, 0, GENESIS.hash), "ahead")
    assert greetings(solo, "ahead") == greetings(solo, "follower") == []


def test_who_came_before_anything_was_said_is_told_when_it_says_so_again():
    """A peer that was heard is not a peer that heard: brokers keep the last status of those that are away."""
    solo = Solo()
    solo.hear(NEWCOMER, "early")
    assert greetings(solo, "early") == []
    solo.propose(1)
    solo.hear(NEWCOMER, "early")
    assert len(greetings(solo, "early")) == 1


def test_each_slot_has_its_own_greetings():
    solo = Solo()
    first = solo.propose(1)
    solo.hear(NEWCOMER, "slow")
    solo.certify_and_hear(VoteKind.NOTAR, 1, first.hash)
    solo.propose(2, first)
    solo.hear(NEWCOMER, "slow")
    assert [{vote.slot for vote in message.votes} for message in greetings(solo, "slow")] == [{1}, {2}]


def test_votes_of_slots_that_are_over_are_not_told():
    solo = Solo()
    solo.time_out()
    solo.certify_and_hear(VoteKind.SKIP, 1)
    assert solo.engine.slot == 2
    solo.hear(NEWCOMER, "newcomer")
    assert greetings(solo, "newcomer") == []
