"""Keys: BLS12-381 for votes (through the native core), Ed25519 for the identity of a node on the bus.

``BlsCrypto`` is the scheme behind consensus in real processes. It refuses the identity key, repeated keys and keys without
a proof of possession when a committee is first seen, once, and keeps the parsed keys (several bindings were seen to
accept the identity point and then to verify any message).
"""

from collections.abc import Sequence

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from shardyard import _native
from shardyard.ids import Hash32
from shardyard.validators import ValidatorSet


class BlsCrypto:
    """Votes signed with BLS12-381, public keys in G1, signatures in G2."""

    def __init__(self) -> None:
        self._key_sets: dict[Hash32, _native.BlsKeySet] = {}

    def _get_keys(self, committee: ValidatorSet) -> _native.BlsKeySet:
        keys = self._key_sets.get(committee.root)
        if keys is None:
            keys = _native.BlsKeySet(
                [validator.public_key for validator in committee.validators],
                [validator.possession_proof for validator in committee.validators],
            )
            self._key_sets[committee.root] = keys
        return keys

    def verify_aggregate(
        self, committee: ValidatorSet, bitmap: bytes, message: bytes, signature: bytes
    ) -> bool:
        """Tell whether ``signature`` aggregates the signatures of the validators in ``bitmap`` over ``message``."""
        return self._get_keys(committee).verify(bitmap, message, signature)

    def verify_votes(self, committee: ValidatorSet, items: Sequence[tuple[int, bytes, bytes]]) -> list[bool]:
        """Tell for each ``(validator, message, signature)`` whether it verifies."""
        return self._get_keys(committee).verify_votes(items)

    def aggregate(self, signatures: Sequence[bytes]) -> bytes:
        """Return the aggregate of ``signatures``; raises ``BlsError`` for an empty or malformed set."""
        return _native.bls_aggregate(signatures)


class NodeKey:
    """Ed25519 identity of a node: signs every envelope it publishes."""

    def __init__(self, seed: bytes) -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(seed)
        self.public_key = self._key.public_key().public_bytes_raw()

    def sign(self, message: bytes) -> bytes:
        """Return the 64-byte signature of ``message``."""
        return self._key.sign(message)


def verify_node_signature(public_key: bytes, message: bytes, signature: bytes) -> bool:
    """Tell whether ``signature`` is ``public_key``'s over ``message``; malformed keys and signatures are just false."""
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True
