"""Hashes and Merkle trees: the native ones agree with the specification and with the kernel's own."""

import pytest
from eth_utils import keccak

from shardyard import _native
from shardyard.merkle import compute_root


def reference_root(leaves: list[bytes]) -> bytes:
    level = [keccak(b"\0" + leaf) for leaf in leaves]
    while len(level) > 1:
        pairs = [level[i : i + 2] for i in range(0, len(level), 2)]
        level = [keccak(b"\1" + b"".join(pair)) if len(pair) == 2 else pair[0] for pair in pairs]
    return level[0] if level else bytes(32)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 5, 7, 8, 31])
def test_roots_follow_the_specification(count: int) -> None:
    leaves = [bytes([index]) * index for index in range(count)]
    assert _native.merkle_root(leaves) == reference_root(leaves) == compute_root(leaves)


def test_proofs_prove_their_leaf_and_no_other() -> None:
    leaves = [bytes([index]) for index in range(11)]
    root = _native.merkle_root(leaves)
    for index, leaf in enumerate(leaves):
        proof = _native.merkle_proof(leaves, index)
        assert _native.verify_merkle_proof(leaf, proof, root)
        assert not _native.verify_merkle_proof(b"x", proof, root)
        assert not _native.verify_merkle_proof(leaf, proof[:-1], root)
        assert not _native.verify_merkle_proof(leaf, [(side, b"short") for side, _ in proof], root)
    with pytest.raises(IndexError):
        _native.merkle_proof(leaves, 11)
    assert not _native.verify_merkle_proof(leaves[0], [], b"short")


def test_many_hashes_are_the_single_ones() -> None:
    assert _native.keccak256(b"") == keccak(b"")
    assert _native.keccak256_many(b"abcdef", [0, 1, 1, 6]) == keccak(b"a") + keccak(b"") + keccak(b"bcdef")


@pytest.mark.parametrize("offsets", [[], [0], [1, 6], [0, 7], [0, 4, 2, 6], [0, 2**63, 6]])
def test_offsets_that_do_not_cut_the_blob_are_refused(offsets: list[int]) -> None:
    with pytest.raises(ValueError, match="offsets"):
        _native.keccak256_many(b"abcdef", offsets)
