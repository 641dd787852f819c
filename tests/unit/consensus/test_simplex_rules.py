"""Each rule of the finality section as a claim about one engine."""

import msgspec
import pytest

from shardyard.blocks import BlockKind, Justification
from shardyard.consensus.engine import BlockAbandoned, BlockFinal, BlockNotarized, RequestValidation
from shardyard.consensus.simplex import FUTURE_SLOTS
from shardyard.consensus.votes import VoteKind
from shardyard.effects import BlockRecord, Broadcast, CertificateRecord, Persist, Send, SetTimer, Sign
from shardyard.ids import ZERO_HASH, compute_slot
from shardyard.messages import (
    BlockRequest,
    BlockResponse,
    Certificates,
    Proposal,
    Votes,
)
from tests.unit.consensus.harness import DELTA_MS, GENESIS
from tests.unit.consensus.solo import PEER, Solo

NOTAR, SKIP, FINAL, PROPOSE = VoteKind.NOTAR, VoteKind.SKIP, VoteKind.FINAL, VoteKind.PROPOSE


def index_of(outputs, predicate):
    return next(index for index, output in enumerate(outputs) if predicate(output))


def is_sign(kind):
    return lambda output: (
        isinstance(output, Sign) and any(request.kind is kind for request in output.requests)
    )


def is_record(kind):
    return lambda output: (
        isinstance(output, Persist) and any(isinstance(record, kind) for record in output.records)
    )


# S: what a key may sign


def test_s1_a_valid_proposal_is_notarized_once():
    solo = Solo()
    block = solo.propose(1)
    solo.hear(Proposal(block))
    assert [vote.block_hash for vote in solo.votes_sent(NOTAR)] == [block.hash]


def test_s1_a_second_proposal_of_the_slot_is_not_notarized_and_is_evidence():
    solo = Solo()
    first = solo.propose(1)
    solo.propose(1, body=b"other")
    assert [vote.block_hash for vote in solo.votes_sent(NOTAR)] == [first.hash]
    assert [notice.data["validator"] for notice in solo.notices("evidence")] == [1]


def test_s1_no_vote_before_the_block_is_executed():
    solo = Solo(validate=False)
    block = solo.propose(1)
    assert solo.of(RequestValidation)
    assert solo.votes_sent(NOTAR) == []
    solo.feed(solo.engine.on_validated(block.hash, True, "", solo.now_ms))
    assert len(solo.votes_sent(NOTAR)) == 1


def test_s1_an_invalid_block_gets_no_vote_and_its_slot_is_skipped():
    solo = Solo(validate=False)
    block = solo.propose(1)
    solo.feed(solo.engine.on_validated(block.hash, False, "bad root", solo.now_ms))
    solo.fire("engine.slot.1")
    assert solo.votes_sent(NOTAR) == []
    assert len(solo.votes_sent(SKIP)) == 1


def test_s1_a_proposal_whose_justification_lacks_its_quorum_is_refused():
    solo = Solo()
    parent = solo.propose(1)
    weak = solo.certify(NOTAR, 1, parent.hash, validators=(1, 2))
    solo.propose(2, parent, notarization=weak)
    assert [vote.slot for vote in solo.votes_sent(NOTAR)] == [1]
    assert solo.engine.refused["InvalidCertificateError"] == 1


def test_s1_a_proposal_that_leaves_out_a_skip_certificate_is_refused():
    solo = Solo()
    block = solo.build_block(3, skips=(1, 2))
    header = msgspec.structs.replace(
        block.header,
        justification_hash=Justification(None, block.justification.skips[:1]).hash,
    )
    short = solo.sign_block(header, Justification(None, block.justification.skips[:1]))
    solo.hear(Proposal(short))
    assert solo.votes_sent(NOTAR) == []
    assert solo.engine.refused["InvalidBlockError"] == 1


def test_a1_a_header_stands_for_one_justification_only():
    solo = Solo()
    block = solo.build_block(2, skips=(1,))
    other = Justification(None, (solo.certify(SKIP, 1, validators=(0, 1, 2)),))
    solo.hear(Proposal(msgspec.structs.replace(block, justification=other)))
    assert solo.votes_sent(NOTAR) == []
    assert solo.engine.refused["InvalidBlockError"] == 1


def test_a1_a_child_needs_the_certificate_of_its_parent():
    solo = Solo()
    first = solo.propose(1)
    child = solo.build_block(2, first)
    bare = Justification(None, ())
    header = msgspec.structs.replace(child.header, justification_hash=bare.hash)
    solo.hear(Proposal(solo.sign_block(header, bare)))
    assert [vote.slot for vote in solo.votes_sent(NOTAR)] == [1]
    assert solo.engine.refused["InvalidBlockError"] == 1


def test_s2_skip_after_notar_is_allowed():
    solo = Solo()
    solo.propose(1)
    solo.time_out()
    assert len(solo.votes_sent(SKIP)) == 1


def test_s2_no_skip_after_final():
    solo = Solo()
    block = solo.propose(1)
    solo.certify_and_hear(NOTAR, 1, block.hash)
    assert len(solo.votes_sent(FINAL)) == 1
    solo.fire("engine.slot.1")
    solo.fire("engine.slot.1")
    assert solo.votes_sent(SKIP) == []


def test_s3_no_final_after_skip_even_when_the_certificate_comes_later():
    solo = Solo()
    block = solo.propose(1)
    solo.time_out()
    solo.certify_and_hear(NOTAR, 1, block.hash)
    assert solo.engine.slot == 2
    assert solo.votes_sent(FINAL) == []


def test_s3_no_final_for_a_block_it_did_not_notarize():
    solo = Solo()
    first = solo.propose(1)
    other = solo.build_block(1, body=b"other")
    solo.certify_and_hear(NOTAR, 1, other.hash)
    assert [vote.block_hash for vote in solo.votes_sent(NOTAR)] == [first.hash]
    assert solo.votes_sent(FINAL) == []


def test_s3_an_intent_counts_before_its_signature_is_back():
    solo = Solo()
    solo.sign = lambda _requests: ()
    block = solo.propose(1)
    solo.time_out()
    solo.certify_and_hear(NOTAR, 1, block.hash)
    kinds = [request.kind for sign in solo.of(Sign) for request in sign.requests]
    assert kinds == [NOTAR, SKIP]


def test_s4_a_leader_proposes_one_block_per_slot():
    solo = Solo(local=(1,))
    request = solo.builds()[0]
    block = solo.build_block(1)
    unsigned = msgspec.structs.replace(block, signature=b"")
    solo.feed(solo.engine.on_proposed(request.slot, unsigned, solo.now_ms))
    other = msgspec.structs.replace(solo.build_block(1, body=b"other"), signature=b"")
    solo.feed(solo.engine.on_proposed(request.slot, other, solo.now_ms))
    assert [message.block.hash for message in solo.messages(Proposal)] == [block.hash]
    assert [output.block_hash for output in solo.of(BlockAbandoned)] == [other.hash]


def test_s5_the_block_is_recorded_before_notar_is_asked_for():
    solo = Solo()
    solo.propose(1)
    assert index_of(solo.outputs, is_record(BlockRecord)) < index_of(solo.outputs, is_sign(NOTAR))


def test_s5_a3_the_certificate_is_recorded_and_told_before_final_is_asked_for():
    solo = Solo()
    block = solo.propose(1)
    solo.certify_and_hear(NOTAR, 1, block.hash)
    recorded = index_of(solo.outputs, is_record(CertificateRecord))
    told = index_of(
        solo.outputs,
        lambda output: isinstance(output, Broadcast) and isinstance(output.message, Certificates),
    )
    assert recorded < told < index_of(solo.outputs, is_sign(FINAL))


# A: ancestry


def test_a3_a_node_serves_what_it_notarized():
    solo = Solo()
    block = solo.propose(1)
    certificate = solo.certify_and_hear(NOTAR, 1, block.hash)
    solo.hear(BlockRequest(solo.config.shard, (block.hash,)))
    answers = [output.message for output in solo.of(Send) if isinstance(output.message, BlockResponse)]
    assert [(answer.blocks, answer.notarizations) for answer in answers] == [((block,), (certificate,))]


def test_a3_a_leader_waits_for_the_block_of_the_notarized_parent():
    solo = Solo(local=(2,))
    block = solo.build_block(1)
    solo.certify_and_hear(NOTAR, 1, block.hash)
    assert solo.engine.slot == 2
    assert solo.builds() == []
    solo.hear(Proposal(block))
    solo.fire("engine.propose.2")
    assert [request.parent.hash for request in solo.builds()] == [block.hash]


# D: domains and slots


@pytest.mark.parametrize(
    "change",
    [
        {"network": b"\x22" * 32},
        {"shard": 3},
        {"epoch": 1},
        {"version": 2},
        {"proposer": 0},
        {"kind": BlockKind.SEAL},
    ],
)
def test_d1_d2_a_header_of_elsewhere_is_refused(change):
    solo = Solo()
    block = solo.build_block(1)
    header = msgspec.structs.replace(block.header, **change)
    solo.hear(Proposal(solo.sign_block(header, block.justification)))
    assert solo.votes_sent(NOTAR) == []
    assert solo.engine.refused["InvalidBlockError"] == 1


def test_d1_a_vote_of_another_committee_does_not_count():
    solo, other = Solo(), Solo(stakes=(1, 1, 1, 2))
    votes = tuple(other.vote(SKIP, 1, validator=validator) for validator in (1, 2, 3))
    solo.hear(Votes(votes))
    assert solo.engine.slot == 1
    own = tuple(solo.vote(SKIP, 1, validator=validator) for validator in (1, 2, 3))
    solo.hear(Votes(own))
    assert solo.engine.slot == 2


def test_d2_the_slot_of_a_certificate_must_be_its_parents():
    solo = Solo()
    parent = solo.propose(1)
    shifted = solo.certify(NOTAR, 2, parent.hash)
    solo.propose(3, parent, skips=(2,), notarization=shifted)
    assert [vote.slot for vote in solo.votes_sent(NOTAR)] == [1]


def test_d2_slots_of_another_epoch_and_far_ahead_are_not_kept():
    solo = Solo()
    for slot in (0, FUTURE_SLOTS + 2, compute_slot(1, 1), 1 << 63):
        solo.certify_and_hear(SKIP, slot)
        solo.hear(Votes((solo.vote(SKIP, slot),)))
    assert len(solo.engine._certificates) == 0
    assert len(solo.engine._pool) == 0


def test_p4_a_timestamp_not_after_its_parents_is_refused():
    solo = Solo()
    solo.propose(1, timestamp_ms=GENESIS.header.timestamp_ms - 1)
    assert solo.votes_sent(NOTAR) == []


def test_p4_time_does_not_stand_still():
    solo = Solo()
    first = solo.propose(1)
    solo.propose(2, first, timestamp_ms=first.header.timestamp_ms)
    assert [vote.slot for vote in solo.votes_sent(NOTAR)] == [1]
    assert solo.engine.refused["InvalidBlockError"] == 1


# L: moving on


def test_l1_certificates_in_a_justification_clear_slots():
    solo = Solo()
    block = solo.propose(4, skips=(1, 2, 3))
    assert solo.engine.slot == 4
    assert [vote.block_hash for vote in solo.votes_sent(NOTAR)] == [block.hash]


def test_l1_the_leader_builds_on_the_highest_notarized_block():
    solo = Solo(local=(3,))
    block = solo.propose(1)
    solo.certify_and_hear(NOTAR, 1, block.hash)
    solo.certify_and_hear(SKIP, 2)
    solo.now_ms += 10_000
    solo.fire("engine.propose.3")
    assert [(request.slot, request.parent.hash) for request in solo.builds()] == [(3, block.hash)]
    header, justification = solo.engine.build_header(
        3, block, block.header.kind, 5, block.header.content, b""
    )
    assert justification.notarization.block_hash == block.hash
    assert [skip.slot for skip in justification.skips] == [2]
    assert header.justification_hash == justification.hash


def test_l1_a_leader_does_not_build_on_what_is_only_proposed():
    solo = Solo(local=(2,))
    solo.propose(1)
    solo.certify_and_hear(SKIP, 1, validators=(0, 1, 3))
    solo.fire("engine.propose.2")
    assert [request.parent.hash for request in solo.builds()] == [GENESIS.hash]


def test_l1_a_skipped_parent_that_is_not_executed_does_not_hold_up_the_leader():
    solo = Solo(local=(3,), validate=False)
    block = solo.propose(1)
    solo.certify_and_hear(NOTAR, 1, block.hash)
    solo.certify_and_hear(SKIP, 1)
    solo.certify_and_hear(SKIP, 2)
    assert [(request.slot, request.parent.hash) for request in solo.builds()] == [(3, GENESIS.hash)]


def test_l4_a_skip_certificate_is_told_and_opens_the_next_slot():
    solo = Solo()
    certificate = solo.certify_and_hear(SKIP, 1)
    assert solo.engine.slot == 2
    assert solo.messages(Certificates) == [Certificates((certificate,))]


def test_l5_a_final_certificate_finalises_the_block_and_its_ancestors_in_order():
    solo = Solo()
    first = solo.propose(1)
    second = solo.propose(2, first)
    solo.certify_and_hear(NOTAR, 2, second.hash)
    solo.certify_and_hear(FINAL, 2, second.hash)
    assert [block.hash for block in solo.finals] == [first.hash, second.hash]
    proof = solo.engine.final_proof(1)
    assert [step.header.height for step in proof.path] == [1, 2]


def test_l5_a_final_block_waits_for_its_execution():
    solo = Solo(validate=False)
    block = solo.propose(1)
    solo.certify_and_hear(NOTAR, 1, block.hash)
    solo.certify_and_hear(FINAL, 1, block.hash)
    assert solo.of(BlockNotarized) == solo.of(BlockFinal) == []
    solo.feed(solo.engine.on_validated(block.hash, True, "", solo.now_ms))
    assert [output.block.hash for output in solo.of(BlockFinal)] == [block.hash]


def test_l5_a_final_block_waits_for_the_execution_of_its_descendants_to_follow():
    solo = Solo()
    first = solo.propose(1)
    solo.validate = False
    second = solo.propose(2, first)
    solo.certify_and_hear(NOTAR, 2, second.hash)
    solo.certify_and_hear(FINAL, 2, second.hash)
    assert [block.hash for block in solo.finals] == [first.hash]
    solo.feed(solo.engine.on_validated(second.hash, True, "", solo.now_ms))
    assert [block.hash for block in solo.finals] == [first.hash, second.hash]


def test_l5_a_final_certificate_finalises_its_own_block_and_none_beside_it():
    solo = Solo()
    other, block = solo.build_block(1, body=b"other"), solo.build_block(1, body=b"final")
    solo.hear(Proposal(other))
    solo.certify_and_hear(NOTAR, 1, other.hash)
    solo.certify_and_hear(FINAL, 1, block.hash)
    assert solo.finals == []
    solo.certify_and_hear(NOTAR, 1, block.hash)
    solo.hear(Proposal(block))
    assert [final.hash for final in solo.finals] == [block.hash]


def test_l5_a_block_beside_a_final_one_is_abandoned():
    solo = Solo(validate=False)
    dead = solo.propose(1)
    solo.certify_and_hear(SKIP, 1)
    live = solo.propose(2, skips=(1,))
    solo.certify_and_hear(NOTAR, 2, live.hash)
    solo.certify_and_hear(FINAL, 2, live.hash)
    solo.feed(solo.engine.on_validated(live.hash, True, "", solo.now_ms))
    assert [output.block_hash for output in solo.of(BlockAbandoned)] == [dead.hash]
    assert solo.engine.on_validated(dead.hash, True, "", solo.now_ms) == []


def test_l6_timeouts_grow_with_the_distance_from_the_last_final_slot():
    solo = Solo()
    for slot in range(1, 8):
        solo.certify_and_hear(SKIP, slot, validators=(0, 1, 2, 3))
    timers = {output.name: output.delay_ms for output in solo.of(SetTimer)}
    delays = [timers[f"engine.slot.{slot}"] for slot in range(1, 8)]
    assert delays == [1400, 1400, *(1400 + DELTA_MS * growth for growth in range(1, 6))]


def test_l6_a_slot_with_a_proposal_gets_a_little_longer_before_it_is_skipped():
    solo = Solo()
    solo.propose(1)
    solo.fire("engine.slot.1")
    assert solo.votes_sent(SKIP) == []
    solo.fire("engine.slot.1")
    assert len(solo.votes_sent(SKIP)) == 1


def test_l7_a_standstill_repeats_every_certificate_and_own_vote():
    solo = Solo()
    certificates = [solo.certify_and_hear(SKIP, slot) for slot in (1, 2, 3)]
    solo.time_out()
    solo.outputs.clear()
    solo.fire("engine.standstill")
    assert [c for message in solo.messages(Certificates) for c in message.certificates] == certificates
    assert [vote.slot for vote in solo.votes_sent(SKIP)] == [4]


def test_l7_rounds_within_the_budget_reach_every_item(monkeypatch):
    monkeypatch.setattr("shardyard.consensus.standstill.STANDSTILL_BYTES", 500)
    solo = Solo()
    for slot in range(1, 10):
        solo.certify_and_hear(SKIP, slot)
    told = set()
    for _ in range(4):
        solo.outputs.clear()
        solo.fire("engine.standstill")
        round_slots = [c.slot for message in solo.messages(Certificates) for c in message.certificates]
        assert len(round_slots) <= 3
        told.update(round_slots)
    assert told == set(range(1, 10))


def test_a_stranger_who_sends_another_body_first_does_not_shut_out_the_block():
    solo = Solo()
    block = solo.build_block(1)
    solo.hear(Proposal(msgspec.structs.replace(block, body=b"forged")), "stranger")
    solo.hear(Proposal(block), "leader")
    assert [vote.block_hash for vote in solo.votes_sent(NOTAR)] == [block.hash]


def test_stake_counts_not_heads():
    solo = Solo(stakes=(1, 1, 1, 7), local=(0,))
    solo.hear(Votes((solo.vote(SKIP, 1, validator=1), solo.vote(SKIP, 1, validator=2))))
    solo.time_out()
    assert solo.engine.slot == 1
    solo.hear(Votes((solo.vote(SKIP, 1, validator=3),)))
    assert solo.engine.slot == 2


def test_a_follower_says_nothing_but_its_status():
    solo = Solo(local=())
    block = solo.propose(1)
    solo.certify_and_hear(NOTAR, 1, block.hash)
    solo.certify_and_hear(FINAL, 1, block.hash)
    solo.fire("engine.standstill")
    assert [block.hash for block in solo.finals] == [block.hash]
    assert {type(output.message).__name__ for output in solo.of(Broadcast)} == {"Status"}
    assert solo.of(Sign) == []


def test_forged_votes_do_not_shut_out_genuine_ones():
    solo = Solo()
    forged = tuple(
        msgspec.structs.replace(solo.vote(SKIP, 1, validator=validator), signature=b"\x01" * 96)
        for validator in (1, 2, 3)
    )
    solo.hear(Votes(forged), "forger")
    solo.hear(Votes(tuple(solo.vote(SKIP, 1, validator=validator) for validator in (1, 2, 3))))
    assert solo.engine.slot == 2


def test_a_forger_is_not_listened_to_for_ever():
    solo = Solo()
    for number in range(200):
        vote = msgspec.structs.replace(solo.vote(SKIP, 1), signature=number.to_bytes(96, "big"))
        solo.hear(Votes((vote, solo.vote(SKIP, 2))), "forger")
    assert solo.engine._pool._strikes.is_muted("forger")
    bad = msgspec.structs.replace(solo.certify(SKIP, 1), signature=b"\x01" * 96)
    for _ in range(100):
        solo.hear(Certificates((bad,)), "forger")
    assert solo.engine.refused["muted"] > 0
    assert solo.engine.slot == 1
    assert solo.vote(SKIP, 1).block_hash == ZERO_HASH


def test_i14_a_flood_leaves_bounded_memory():
    solo = Solo(local=())
    for slot in range(1, 3 * FUTURE_SLOTS):
        for number in range(4):
            block_hash = bytes((number,)) * 32
            solo.hear(Votes(tuple(solo.vote(kind, slot, block_hash) for kind in (NOTAR, FINAL))))
        solo.hear(Votes((solo.vote(SKIP, slot),)))
    assert len(solo.engine._pool) <= 5 * (FUTURE_SLOTS + 1)
    assert PEER in solo.engine._sync._peers._nodes
