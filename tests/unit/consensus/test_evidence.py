"""Evidence: which pairs count, and that engines and proofs bring them to light."""

import msgspec
import pytest

from shardyard.codec import decode
from shardyard.consensus.evidence import VoteEvidence, find_conflict, find_evidence, verify_evidence
from shardyard.consensus.proofs import build_certified_header, build_finality_proof
from shardyard.consensus.votes import VoteKind
from shardyard.errors import InvalidProofError
from shardyard.ids import ZERO_HASH
from shardyard.messages import Proposal, Votes
from shardyard.quorum import sum_stake
from tests.unit.consensus.harness import CRYPTO
from tests.unit.consensus.solo import Solo

A, B = b"a" * 32, b"b" * 32
NOTAR, SKIP, FINAL, PROPOSE = VoteKind.NOTAR, VoteKind.SKIP, VoteKind.FINAL, VoteKind.PROPOSE
SLASHABLE = [
    ((NOTAR, A), (NOTAR, B)),
    ((FINAL, A), (FINAL, B)),
    ((FINAL, A), (SKIP, ZERO_HASH)),
    ((NOTAR, A), (FINAL, B)),
]
HARMLESS = [((NOTAR, A), (SKIP, ZERO_HASH)), ((NOTAR, A), (FINAL, A)), ((SKIP, ZERO_HASH), (SKIP, ZERO_HASH))]


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("pair", SLASHABLE)
def test_slashable_votes_become_verifiable_evidence(pair, order):
    solo = Solo()
    for kind, block_hash in pair[::order]:
        solo.hear(Votes((solo.vote(kind, 3, block_hash),)))
    (notice,) = solo.notices("evidence")
    evidence = decode(notice.data["evidence"], VoteEvidence, max_bytes=4096)
    assert evidence.first.validator == 1
    verify_evidence(CRYPTO, solo.config.domain, solo.committee, evidence)


@pytest.mark.parametrize("pair", HARMLESS)
def test_what_an_honest_validator_may_do_is_no_evidence(pair):
    solo = Solo()
    for kind, block_hash in pair:
        solo.hear(Votes((solo.vote(kind, 3, block_hash),)))
    assert solo.notices("evidence") == []


def test_two_proposals_of_one_slot_are_evidence():
    solo = Solo()
    solo.hear(Proposal(solo.build_block(1)))
    solo.hear(Proposal(solo.build_block(1, body=b"other")))
    (notice,) = solo.notices("evidence")
    evidence = decode(notice.data["evidence"], VoteEvidence, max_bytes=4096)
    verify_evidence(CRYPTO, solo.config.domain, solo.committee, evidence)


def test_a_forged_vote_frames_nobody():
    solo = Solo()
    solo.hear(Votes((solo.vote(NOTAR, 3, A),)))
    forged = msgspec.structs.replace(solo.vote(NOTAR, 3, B), signature=b"\x07" * 96)
    solo.hear(Votes((forged,)), "framer")
    assert solo.notices("evidence") == []


def test_evidence_with_a_forged_half_is_refused():
    solo = Solo()
    forged = msgspec.structs.replace(solo.vote(NOTAR, 3, B), signature=b"\x07" * 96)
    with pytest.raises(InvalidProofError, match="signature"):
        verify_evidence(
            CRYPTO, solo.config.domain, solo.committee, VoteEvidence(solo.vote(NOTAR, 3, A), forged)
        )
    with pytest.raises(InvalidProofError, match="not slashable"):
        verify_evidence(
            CRYPTO,
            solo.config.domain,
            solo.committee,
            VoteEvidence(solo.vote(NOTAR, 3, A), solo.vote(SKIP, 3)),
        )


def test_find_evidence_accuses_only_the_one_who_signed_both():
    solo = Solo()
    votes = [
        solo.vote(NOTAR, 3, A, 1),
        solo.vote(NOTAR, 3, B, 2),
        solo.vote(NOTAR, 4, B, 1),
        solo.vote(SKIP, 3, validator=1),
    ]
    assert find_evidence(votes) == []
    assert [pair.first.validator for pair in find_evidence([*votes, solo.vote(FINAL, 3, B, 1)])] == [1, 1]


@pytest.mark.parametrize("stakes", [(1, 1, 1, 1), (3, 2, 2, 1, 1), (5, 3, 3, 2, 2, 1, 1)])
def test_i6_two_conflicting_proofs_expose_a_third_of_the_stake(stakes):
    solo = Solo(stakes=stakes)
    everyone = tuple(range(len(stakes)))

    def certify(kind, slot, block_hash=ZERO_HASH, validators=everyone):
        return Solo.certify(solo, kind, slot, block_hash, validators)

    def prove(block):
        slot = block.header.slot
        notarization, finalization = (certify(kind, slot, block.hash) for kind in (NOTAR, FINAL))
        return build_finality_proof((), build_certified_header(block), notarization, finalization)

    solo.certify = certify
    found = find_conflict(prove(solo.build_block(1)), prove(solo.build_block(2, skips=(1,))), len(stakes))
    assert found
    for conflict in found:
        assert 3 * sum_stake(conflict.validators, stakes) > sum(stakes)
