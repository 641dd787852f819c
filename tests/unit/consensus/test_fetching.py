"""L9, L10: what an engine fetches that it misses, of whom and how often, and which answers it takes."""

from itertools import pairwise

import msgspec

from shardyard.consensus.catchup import MAX_VOTED
from shardyard.consensus.pacing import TIMER_RANGE
from shardyard.consensus.proofs import build_certified_header, build_finality_proof
from shardyard.consensus.sync import LARGE_LAG, RANGE_BLOCKS
from shardyard.consensus.votes import VoteKind
from shardyard.effects import Send, SetTimer
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


def test_a_range_that_comes_after_another_was_asked_counts_and_the_others_answer_does_no_harm():
    """Where an answer takes longer than the timeout, a late one is the only one that ever comes."""
    solo = Solo(local=())
    block = solo.build_block(1)
    certificates = solo.certify(NOTAR, 1, block.hash), solo.certify(FINAL, 1, block.hash)
    answer = RangeResponse(
        solo.config.shard, (block,), build_finality_proof((), build_certified_header(block), *certificates)
    )
    for peer in ("slow", "other"):
        solo.hear(Status(solo.config.shard, 9, 1, ZERO_HASH), peer)
    solo.fire(TIMER_RANGE)
    assert [output.to for output in solo.of(Send)] == ["slow", "other"]
    solo.hear(answer, "slow")
    assert [final.hash for final in solo.finals] == [block.hash]
    solo.hear(answer, "other")
    solo.hear(answer, "slow")
    assert solo.engine.refused["UnsolicitedError"] == 1, "each answers once"
    assert len(solo.finals) == 1


def test_answers_that_all_come_late_are_used_and_nobody_is_accused():
    """Every answer takes longer than the timeout: whoever was asked meanwhile gives what is known by then."""
    solo = Solo(local=())
    blocks = [solo.build_block(1)]
    for height in range(2, 25):
        blocks.append(solo.build_block(height, blocks[-1]))

    def answer(first):
        chosen = blocks[first - 1 : first - 1 + RANGE_BLOCKS]
        certificates = (
            solo.certify(kind, chosen[-1].header.slot, chosen[-1].hash) for kind in (NOTAR, FINAL)
        )
        proof = build_finality_proof((), build_certified_header(chosen[-1]), *certificates)
        return RangeResponse(solo.config.shard, tuple(chosen), proof)

    for peer in ("one", "two"):
        solo.hear(Status(solo.config.shard, 99, 24, ZERO_HASH), peer)
    answered = 0
    for _ in range(12):
        solo.fire(TIMER_RANGE)
        requests = solo.of(Send)
        if len(requests) > answered:
            send = requests[answered]
            answered += 1
            solo.hear(answer(send.message.first_height), send.to)
    assert [final.hash for final in solo.finals] == [block.hash for block in blocks]
    assert not solo.engine.refused


def test_ranges_are_asked_for_ever_more_seldom_while_nobody_answers_and_quickly_again_after_an_answer():
    solo = Solo(local=())
    for peer in ("one", "two"):
        solo.hear(Status(solo.config.shard, 9, 8, ZERO_HASH), peer)
    delays = []
    for _ in range(12):
        solo.fire(TIMER_RANGE)
        delays.append([timer.delay_ms for timer in solo.of(SetTimer) if timer.name == TIMER_RANGE][-1])
    tick = delays[0]
    assert delays == [tick, *(2 * tick,) * 2, *(4 * tick,) * 2, *(8 * tick,) * 7]
    assert [output.to for output in solo.of(Send)][:5] == ["one", "two", "one", "two", "one"]
    solo.hear(
        RangeResponse(solo.config.shard, (), None), "one"
    )  # it has none after all: two is asked at once
    assert [output.to for output in solo.of(Send)][-1] == "two"
    solo.fire(TIMER_RANGE)
    assert [timer.delay_ms for timer in solo.of(SetTimer) if timer.name == TIMER_RANGE][-1] == 2 * tick


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


class Laggard(Solo):
    """A leader that is two ranges of final blocks behind; none of them is in a slot of its own."""

    def __init__(self):
        super().__init__(validate=False)
        self.own = [slot for slot in range(2, 99) if self.committee.get_leader(slot) == 0]
        slots = [slot for slot in range(2, 99) if slot not in self.own][: 2 * RANGE_BLOCKS]
        self.blocks = []
        for before, slot in pairwise([0, *slots]):
            skips = range(before + 1, slot)
            self.blocks.append(self.build_block(slot, *self.blocks[-1:], skips=skips))
        self.hear(Status(self.config.shard, 99, len(self.blocks) + LARGE_LAG, ZERO_HASH))

    def answer(self, count=RANGE_BLOCKS):
        """Have the peer answer the last question."""
        first = self.of(Send)[-1].message.first_height
        chosen = self.blocks[first - 1 : first - 1 + count]
        certificates = (
            self.certify(kind, chosen[-1].header.slot, chosen[-1].hash) for kind in (NOTAR, FINAL)
        )
        proof = build_finality_proof((), build_certified_header(chosen[-1]), *certificates)
        self.hear(RangeResponse(self.config.shard, tuple(chosen), proof))

    def execute(self, count):
        for block in self.blocks[len(self.finals) : len(self.finals) + count]:
            self.feed(self.engine.on_validated(block.hash, True, "", self.now_ms))

    def come_to_turn(self):
        """Skip to the next own slot and return it."""
        turn = next(slot for slot in self.own if slot >= self.engine.slot)
        for slot in range(self.engine.slot, turn):
            self.certify_and_hear(SKIP, slot)
        return turn


def test_a_leader_that_catches_up_builds_nothing_in_slots_that_are_decided():
    """Nobody votes for it, and executing what is decided would have to wait: a replica came no nearer to its chain for that."""
    solo = Laggard()
    solo.answer()
    solo.execute(RANGE_BLOCKS)
    assert len(solo.finals) == RANGE_BLOCKS
    assert solo.engine.slot in solo.own
    assert solo.builds() == [], "the next range is awaited, and one came before it"
    solo.answer()
    solo.execute(RANGE_BLOCKS - 1)
    solo.fire(TIMER_RANGE)  # of the question that was answered
    assert solo.builds() == []
    solo.execute(1)
    assert solo.finals == solo.blocks
    turn = solo.come_to_turn()
    assert solo.builds() == [], "what was claimed may still be told"
    solo.fire(TIMER_RANGE)
    assert [build.slot for build in solo.builds()] == [turn], "claims alone keep no leader from its turn"
    solo.fire(TIMER_RANGE)
    assert len(solo.builds()) == 1


def test_a_leader_builds_as_soon_as_it_is_told_that_there_is_no_more():
    solo = Laggard()
    solo.answer()
    solo.execute(RANGE_BLOCKS)
    turn = solo.come_to_turn()
    assert solo.builds() == []
    solo.hear(RangeResponse(solo.config.shard, (), None))
    assert [build.slot for build in solo.builds()] == [turn]


def test_a_range_of_few_blocks_keeps_no_leader_from_its_turn():
    """Whoever hears of finality first could give every block as a range, and claim more."""
    solo = Laggard()
    solo.answer(LARGE_LAG - 1)
    solo.execute(LARGE_LAG - 1)
    assert isinstance(solo.of(Send)[-1].message, RangeRequest)
    turn = solo.come_to_turn()
    assert [build.slot for build in solo.builds()] == [turn]


def test_a_leader_builds_behind_a_decided_slot_whose_block_is_not_executed():
    solo = Laggard()
    solo.answer()
    solo.fire(TIMER_RANGE)
    for slot in range(1, solo.own[-1]):
        solo.certify_and_hear(SKIP, slot)
        if solo.engine.slot > solo.blocks[RANGE_BLOCKS - 1].header.slot and solo.engine.slot in solo.own:
            break
        assert solo.builds() == []
    assert [build.slot for build in solo.builds()] == [solo.engine.slot]


def test_l10_a_missed_proposal_is_fetched_from_who_voted_for_it_and_voted_for():
    solo = Solo()
    block = solo.build_block(1)
    solo.hear(Votes((solo.vote(NOTAR, 1, block.hash, 2),)), "voter")
    assert requests_for(solo, block.hash) == [], "it has Δ to come by itself"
    solo.fire("engine.fetch")
    assert requests_for(solo, block.hash) == ["voter"]
    solo.hear(BlockResponse(solo.config.shard, (block,), ()), "voter")
    assert [vote.block_hash for vote in solo.votes_sent(NOTAR)] == [block.hash]


def test_l10_a_proposal_that_came_is_not_asked_for():
    solo = Solo()
    block = solo.build_block(1)
    solo.hear(Votes((solo.vote(NOTAR, 1, block.hash, 2),)), "voter")
    solo.hear(Proposal(block))
    solo.hear(Votes((solo.vote(NOTAR, 1, ZERO_HASH, 3),)), "liar")
    for _ in range(4):
        solo.fire("engine.fetch")
    assert requests_for(solo, block.hash) == requests_for(solo, ZERO_HASH) == []


def test_l10_what_votes_alone_speak_for_must_be_signed_by_its_leader():
    solo = Solo()
    block = solo.build_block(1)
    solo.hear(Votes((solo.vote(NOTAR, 1, block.hash, 2),)), "voter")
    solo.fire("engine.fetch")
    for signature in (block.signature[::-1], b""):
        forged = msgspec.structs.replace(block, signature=signature)
        solo.hear(BlockResponse(solo.config.shard, (forged,), ()), "voter")
        assert solo.votes_sent(NOTAR) == []
        assert solo.engine.refused["InvalidBlockError"] == 1


def test_l10_a_certificate_makes_the_leaders_signature_unnecessary():
    solo = Solo()
    block = solo.build_block(1)
    solo.hear(Votes((solo.vote(NOTAR, 1, block.hash, 2),)), "voter")
    solo.certify_and_hear(NOTAR, 1, block.hash)
    solo.fire("engine.fetch")
    unsigned = msgspec.structs.replace(block, signature=b"")
    solo.hear(BlockResponse(solo.config.shard, (unsigned,), ()), "voter")
    assert solo.engine.notarized_tip.hash == block.hash


def test_l10_votes_for_many_blocks_that_nobody_has_cost_few_questions():
    solo = Solo()
    for number in range(40):
        block_hash = number.to_bytes(32, "big")
        solo.hear(Votes((solo.vote(NOTAR, 1 + number, block_hash, 1 + number % 3),)), "liar")
    for _ in range(2):
        solo.fire("engine.fetch")
    requests = [output.message for output in solo.of(Send) if isinstance(output.message, BlockRequest)]
    asked = {key for request in requests for key in request.hashes}
    assert len(asked) == MAX_VOTED
