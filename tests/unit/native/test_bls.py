"""Signatures: what the verifier must refuse although the curve arithmetic would agree."""

import pytest

from shardyard import _native

MESSAGE = b"notarize block 7"
IDENTITY_KEY = b"\xc0" + bytes(47)
IDENTITY_SIGNATURE = b"\xc0" + bytes(95)

SECRETS = [_native.bls_secret_key(bytes([number]) * 32) for number in range(1, 11)]
PUBLIC_KEYS = [_native.bls_public_key(secret) for secret in SECRETS]
PROOFS = [_native.bls_prove_possession(secret) for secret in SECRETS]


@pytest.fixture(scope="module")
def keys() -> _native.BlsKeySet:
    return _native.BlsKeySet(PUBLIC_KEYS, PROOFS)


def make_bitmap(*indices: int) -> bytes:
    bits = sum(1 << index for index in indices)
    return bits.to_bytes(2, "little")


def aggregate(*indices: int) -> bytes:
    return _native.bls_aggregate([_native.bls_sign(SECRETS[index], MESSAGE) for index in indices])


def test_an_aggregate_verifies_for_exactly_its_signers(keys: _native.BlsKeySet) -> None:
    signature = aggregate(0, 3, 9)
    assert keys.verify(make_bitmap(0, 3, 9), MESSAGE, signature)
    assert not keys.verify(make_bitmap(0, 3), MESSAGE, signature)
    assert not keys.verify(make_bitmap(0, 3, 8, 9), MESSAGE, signature)
    assert not keys.verify(make_bitmap(0, 3, 9), MESSAGE + b"!", signature)


@pytest.mark.parametrize(
    "bitmap",
    [b"", b"\x01", b"\x01\x00\x00", b"\x00\x00", b"\x01\x04", b"\xff\xff"],
    ids=["no bytes", "too short", "too long", "nobody", "stray bit 10", "stray bits"],
)
def test_a_bitmap_of_another_form_is_refused(keys: _native.BlsKeySet, bitmap: bytes) -> None:
    assert keys.verify(b"\x01\x00", MESSAGE, aggregate(0))
    assert not keys.verify(bitmap, MESSAGE, aggregate(0))


def test_the_identity_is_neither_key_nor_signature(keys: _native.BlsKeySet) -> None:
    with pytest.raises(_native.BlsError, match="INFINITY"):
        _native.BlsKeySet([IDENTITY_KEY], None)
    assert not keys.verify(make_bitmap(0), MESSAGE, IDENTITY_SIGNATURE)
    assert not _native.bls_verify_possession(IDENTITY_KEY, IDENTITY_SIGNATURE)
    with pytest.raises(_native.BlsError):
        _native.bls_aggregate([IDENTITY_SIGNATURE])
    assert keys.verify_votes([(0, MESSAGE, IDENTITY_SIGNATURE)]) == [False]


def test_a_key_set_refuses_nothing_duplicates_and_wrong_proofs() -> None:
    with pytest.raises(_native.BlsError, match="empty"):
        _native.BlsKeySet([], None)
    with pytest.raises(_native.BlsError, match="duplicate"):
        _native.BlsKeySet([PUBLIC_KEYS[0], PUBLIC_KEYS[1], PUBLIC_KEYS[0]], None)
    with pytest.raises(_native.BlsError, match="possession"):
        _native.BlsKeySet(PUBLIC_KEYS[:2], [PROOFS[1], PROOFS[0]])
    with pytest.raises(_native.BlsError, match="one proof"):
        _native.BlsKeySet(PUBLIC_KEYS[:2], PROOFS[:1])
    with pytest.raises(_native.BlsError, match="48 bytes"):
        _native.BlsKeySet([PUBLIC_KEYS[0] + b"\0"], None)


def test_a_vote_is_no_proof_of_possession() -> None:
    assert _native.bls_verify_possession(PUBLIC_KEYS[0], PROOFS[0])
    over_the_same_bytes = _native.bls_sign(SECRETS[0], PUBLIC_KEYS[0])
    assert not _native.bls_verify_possession(PUBLIC_KEYS[0], over_the_same_bytes)


def test_a_batch_of_votes_finds_exactly_the_bad_ones(keys: _native.BlsKeySet) -> None:
    other = b"skip slot 7"
    votes = [(index, MESSAGE, _native.bls_sign(SECRETS[index], MESSAGE)) for index in range(10)]
    votes += [(index, other, _native.bls_sign(SECRETS[index], other)) for index in range(10)]
    votes[2] = (2, MESSAGE, votes[3][2])
    votes[11] = (1, other, votes[1][2])
    votes[12] = (12, other, votes[12][2])
    votes[13] = (3, other, b"garbage")
    valid = keys.verify_votes(votes)
    assert [position for position, is_valid in enumerate(valid) if not is_valid] == [2, 11, 12, 13]
    assert keys.verify_votes([]) == []


def test_two_wrongs_that_cancel_out_in_a_sum_are_both_found(keys: _native.BlsKeySet) -> None:
    # Swapped signatures have the right sum: only coefficients tell them apart.
    votes = [
        (0, MESSAGE, _native.bls_sign(SECRETS[1], MESSAGE)),
        (1, MESSAGE, _native.bls_sign(SECRETS[0], MESSAGE)),
    ]
    assert keys.verify(make_bitmap(0, 1), MESSAGE, _native.bls_aggregate([votes[0][2], votes[1][2]]))
    assert keys.verify_votes(votes) == [False, False]


@pytest.mark.parametrize("secret", [b"", bytes(32), b"\xff" * 32, b"\1" * 31])
def test_a_secret_outside_its_range_is_refused(secret: bytes) -> None:
    with pytest.raises(_native.BlsError):
        _native.bls_public_key(secret)
    with pytest.raises(_native.BlsError):
        _native.bls_sign_many([SECRETS[0], secret], MESSAGE)


def test_key_material_must_be_long_enough() -> None:
    with pytest.raises(_native.BlsError, match="32 bytes"):
        _native.bls_secret_key(bytes(31))
