"""Mistakes that production Simplex code really made, each as a scenario."""

from shardyard.consensus.signer import SignerState
from shardyard.consensus.votes import VoteKind
from shardyard.effects import FinalRecord, Persist, Send, Sign
from shardyard.ids import compute_slot
from shardyard.messages import (
    BlockRequest,
    BlockResponse,
    Certificates,
    FinalBlock,
    Proposal,
    RangeResponse,
    Votes,
)
from tests.unit.consensus.solo import Solo

NOTAR, SKIP, FINAL = VoteKind.NOTAR, VoteKind.SKIP, VoteKind.FINAL


def test_a_rebroadcast_after_skip_makes_no_fresh_final():
    solo = Solo()
    block = solo.propose(1)
    solo.time_out()
    certificate = solo.certify_and_hear(NOTAR, 1, block.hash)
    for _ in range(3):
        solo.fire("engine.standstill")
        solo.hear(Certificates((certificate,)))
    assert solo.votes_sent(FINAL) == []
    assert not any(request.kind is FINAL for sign in solo.of(Sign) for request in sign.requests)


def test_own_votes_come_back_after_a_restart():
    """Two of three votes needed: the own one, lost with the process, must be signed and sent again."""
    solo = Solo(local=(0, 2))
    block = solo.propose(1)
    solo.boot()
    assert {vote.validator for vote in solo.votes_sent(NOTAR)} == {0, 2}
    solo.hear(Votes((solo.vote(NOTAR, 1, block.hash, validator=1),)))
    assert {vote.validator for vote in solo.votes_sent(FINAL)} == {0, 2}
    solo.boot()
    assert {vote.validator for vote in solo.votes_sent(FINAL)} == {0, 2}
    solo.hear(Votes((solo.vote(FINAL, 1, block.hash, validator=1),)))
    assert [final.hash for final in solo.finals] == [block.hash]


def test_a_restart_after_skip_does_not_lead_to_final():
    solo = Solo()
    block = solo.propose(1)
    solo.time_out()
    solo.boot()
    solo.certify_and_hear(NOTAR, 1, block.hash)
    assert solo.votes_sent(FINAL) == []


def test_a_leader_that_restarts_proposes_the_same_block_again():
    solo = Solo(local=(1,))
    request = solo.builds()[0]
    from tests.unit.consensus.harness import build_block

    block = build_block(solo.engine, request, b"body")
    solo.feed(solo.engine.on_proposed(request.slot, block, solo.now_ms))
    solo.boot()
    assert [message.block.hash for message in solo.messages(Proposal)] == [block.hash]
    assert solo.builds() == []


def test_slot_numbers_of_another_epoch_are_never_taken_for_ours():
    solo = Solo()
    solo.certify_and_hear(SKIP, compute_slot(1, 1))
    assert solo.engine.slot == 1


def test_an_unsolicited_sync_answer_is_refused_before_it_is_stored():
    solo = Solo(local=())
    block = solo.build_block(1)
    solo.hear(BlockResponse(solo.config.shard, (block,), ()))
    solo.hear(RangeResponse(solo.config.shard, (block,), None))
    assert solo.engine.refused["UnsolicitedError"] == 2
    assert solo.engine.get_block(block.hash) is None
    assert solo.log == []


def test_a_final_block_without_a_valid_proof_is_refused():
    from shardyard.consensus.proofs import build_certified_header, build_finality_proof
    from tests.unit.consensus.harness import CRYPTO

    solo = Solo(local=())
    block = solo.build_block(1)
    weak = solo.certify(FINAL, 1, block.hash, validators=(1, 2))
    proof = build_finality_proof((), build_certified_header(block), solo.certify(NOTAR, 1, block.hash), weak)
    solo.hear(FinalBlock(block, proof))
    assert solo.finals == []
    assert CRYPTO.aggregate([bytes(96)]) == bytes(96)


def test_messages_without_progress_do_not_reset_timers():
    from shardyard.effects import SetTimer

    solo = Solo()
    before = len(solo.of(SetTimer))
    block = solo.propose(1)
    for _ in range(5):
        solo.hear(Proposal(block))
        solo.hear(Votes((solo.vote(NOTAR, 1, block.hash),)))
        solo.hear(Certificates(()))
    assert [timer.name for timer in solo.of(SetTimer)[before:]] == []


def test_the_host_learns_of_finality_only_after_the_journal_holds_it():
    from shardyard.consensus.engine import BlockFinal

    solo = Solo()
    block = solo.propose(1)
    solo.certify_and_hear(NOTAR, 1, block.hash)
    solo.certify_and_hear(FINAL, 1, block.hash)
    recorded = next(
        index
        for index, output in enumerate(solo.outputs)
        if isinstance(output, Persist) and any(isinstance(record, FinalRecord) for record in output.records)
    )
    told = next(index for index, output in enumerate(solo.outputs) if isinstance(output, BlockFinal))
    assert recorded < told


def test_nodes_that_hold_different_certificate_kinds_for_a_slot_go_on():
    """One half saw NotarCert(1), the other SkipCert(1): both enter slot 2 and agree on what is proposed there."""
    for leader_extends in (True, False):
        notarized, skipped = Solo(), Solo()
        block = notarized.propose(1)
        notarized.certify_and_hear(NOTAR, 1, block.hash)
        skipped.certify_and_hear(SKIP, 1)
        assert notarized.engine.slot == skipped.engine.slot == 2
        child = notarized.build_block(2, block) if leader_extends else notarized.build_block(2, skips=(1,))
        for solo in (notarized, skipped):
            solo.hear(Proposal(child))
            if any(isinstance(output.message, BlockRequest) for output in solo.of(Send)):
                solo.hear(BlockResponse(solo.config.shard, (block,), ()))
            assert child.hash in {vote.block_hash for vote in solo.votes_sent(NOTAR)}


def test_a_slot_that_was_skipped_here_and_is_final_elsewhere_becomes_final_here():
    solo = Solo()
    block = solo.propose(1)
    solo.certify_and_hear(SKIP, 1)
    solo.certify_and_hear(NOTAR, 1, block.hash)
    solo.certify_and_hear(FINAL, 1, block.hash)
    assert [final.hash for final in solo.finals] == [block.hash]


def test_a_lost_signer_record_is_the_signers_business_and_breaks_nothing_here():
    solo = Solo()
    solo.propose(1)
    solo.signer = SignerState(floor=10)
    solo.boot()
    assert solo.votes_sent(NOTAR) == []
    solo.certify_and_hear(SKIP, 1)
    assert solo.engine.slot == 2


def test_two_nodes_that_each_miss_another_skip_certificate_meet_again():
    one, other = Solo(), Solo()
    for solo, slots in ((one, (1, 3)), (other, (2, 3))):
        for slot in slots:
            solo.certify_and_hear(SKIP, slot)
    assert (one.engine.slot, other.engine.slot) == (2, 1)
    for solo in (one, other):
        solo.outputs.clear()
        solo.fire("engine.standstill")
    for message in one.messages(Certificates):
        other.hear(message)
    for message in other.messages(Certificates):
        one.hear(message)
    assert (one.engine.slot, other.engine.slot) == (4, 4)
