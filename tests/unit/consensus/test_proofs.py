"""A2: what a finality proof must carry, and that nothing less is accepted."""

import msgspec
import pytest

from shardyard.blocks import Justification
from shardyard.codec import decode, encode
from shardyard.consensus.proofs import (
    build_certified_header,
    build_finality_proof,
    extend_proof,
    get_notarization,
    verify_finality_proof,
)
from shardyard.consensus.votes import VoteKind
from shardyard.errors import InvalidProofError
from tests.unit.consensus.harness import CRYPTO, GENESIS
from tests.unit.consensus.solo import Solo

NOTAR, SKIP, FINAL = VoteKind.NOTAR, VoteKind.SKIP, VoteKind.FINAL


@pytest.fixture
def solo():
    return Solo()


@pytest.fixture
def chain(solo):
    first = solo.build_block(1)
    second = solo.build_block(3, first, skips=(2,))
    return first, second, solo.build_block(4, second)


def prove(solo, block):
    slot = block.header.slot
    return build_finality_proof(
        (),
        build_certified_header(block),
        solo.certify(NOTAR, slot, block.hash),
        solo.certify(FINAL, slot, block.hash),
    )


def verify(solo, proof):
    return verify_finality_proof(CRYPTO, solo.config.domain, solo.committee, proof)


def test_a2_a_proof_of_the_block_itself(solo, chain):
    proof = prove(solo, chain[0])
    assert verify(solo, proof) == chain[0].header
    assert get_notarization(proof) == proof.notarization


def test_a2_a_proof_by_a_descendant_with_the_certified_path(solo, chain):
    proof = extend_proof(extend_proof(prove(solo, chain[2]), chain[1]), chain[0])
    assert verify(solo, proof) == chain[0].header
    assert get_notarization(proof).block_hash == chain[0].hash


def test_a_proof_survives_the_wire(solo, chain):
    proof = extend_proof(prove(solo, chain[2]), chain[1])
    assert decode(encode(proof), type(proof), max_bytes=1 << 20) == proof


def replace(value, **changes):
    return msgspec.structs.replace(value, **changes)


def test_a2_a_path_with_a_gap_is_refused(solo, chain):
    tip = prove(solo, chain[2])
    broken = replace(tip, path=(build_certified_header(chain[0]), *tip.path))
    with pytest.raises(InvalidProofError, match="no child"):
        verify(solo, broken)


def test_a2_a_proof_without_its_notarization_is_refused(solo, chain):
    proof = prove(solo, chain[0])
    with pytest.raises(InvalidProofError, match="NOTAR"):
        verify(solo, replace(proof, notarization=proof.finalization))


def test_a2_a_certificate_of_another_slot_is_refused(solo, chain):
    proof = prove(solo, chain[0])
    with pytest.raises(InvalidProofError, match="FINAL"):
        verify(solo, replace(proof, finalization=solo.certify(FINAL, 2, chain[0].hash)))


def test_a2_bare_headers_are_no_path(solo, chain):
    proof = prove(solo, chain[1])
    bare = replace(proof.path[0], justification=Justification(None, ()))
    with pytest.raises(InvalidProofError, match="justification"):
        verify(solo, replace(proof, path=(bare,)))


def test_a2_a_justification_whose_certificates_do_not_verify_is_refused(solo):
    weak = solo.certify(SKIP, 1, validators=(1, 2))
    justification = Justification(None, (weak,))
    block = solo.build_block(2, skips=(1,))
    header = replace(block.header, justification_hash=justification.hash)
    with pytest.raises(InvalidProofError, match="stake"):
        verify(solo, prove(solo, solo.sign_block(header, justification)))


def test_a2_every_justification_of_a_path_is_verified(solo):
    """C3: the certificates that convict are those on the path, wherever they stand."""
    weak = Justification(None, (solo.certify(SKIP, 1, validators=(1, 2)),))
    below = solo.build_block(2, skips=(1,))
    header = replace(below.header, justification_hash=weak.hash)
    below = solo.sign_block(header, weak)
    proof = prove(solo, solo.build_block(3, below))
    verify(solo, proof)
    with pytest.raises(InvalidProofError, match="stake"):
        verify(solo, extend_proof(proof, below))


def test_a_proof_needs_a_quorum_of_stake(solo, chain):
    proof = prove(solo, chain[0])
    weak = solo.certify(FINAL, 1, chain[0].hash, validators=(1, 2))
    with pytest.raises(InvalidProofError, match="stake"):
        verify(solo, replace(proof, finalization=weak))


def test_genesis_and_the_empty_path_prove_nothing(solo, chain):
    proof = prove(solo, chain[0])
    with pytest.raises(InvalidProofError):
        verify(solo, replace(proof, path=()))
    with pytest.raises(InvalidProofError):
        verify(solo, prove(solo, GENESIS))


def test_a_proof_of_another_chain_is_refused(solo, chain):
    with pytest.raises(InvalidProofError):
        verify_finality_proof(
            CRYPTO, replace(solo.config.domain, shard=0), solo.committee, prove(solo, chain[0])
        )
