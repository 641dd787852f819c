"""Merkle trees with separated leaves and nodes (X3).

A leaf is ``H(0x00 ‖ data)``, a node ``H(0x01 ‖ left ‖ right)``; an odd last node is promoted unchanged; the root of no
leaves is 32 zero bytes. The prefix keeps a 64-byte leaf from posing as a node. The native core builds the trees.
"""

from collections.abc import Sequence

from shardyard import _native
from shardyard.errors import InvalidProofError
from shardyard.ids import Hash32

MerkleProof = list[tuple[bool, bytes]]
"""Path from a leaf to the root: ``(the sibling is on the right, sibling)``."""


def compute_root(leaves: Sequence[bytes]) -> Hash32:
    """Return the root over ``leaves`` (data, not digests)."""
    return Hash32(_native.merkle_root(leaves))


def compute_proof(leaves: Sequence[bytes], index: int) -> MerkleProof:
    """Return the proof of ``leaves[index]``."""
    return _native.merkle_proof(leaves, index)


def verify_proof(leaf: bytes, proof: MerkleProof, root: bytes) -> None:
    """Raise ``InvalidProofError`` unless ``proof`` leads from ``leaf`` to ``root``."""
    if not _native.verify_merkle_proof(leaf, proof, root):
        raise InvalidProofError(f"Merkle proof of {len(proof)} steps does not lead to {root.hex()}")
