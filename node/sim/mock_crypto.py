"""Votes signed with keyed tags that the simulator holds: as cheap as a hash, and good for nothing else.

A vote's signature is a keyed BLAKE2b tag, an aggregate the exclusive or of its tags. Whoever holds the secrets could forge,
and only the simulator does; its Byzantine nodes sign with their own keys like everybody. Batches and certificates keep
the shapes and the sizes of the real scheme.
"""

from collections.abc import Sequence
from functools import lru_cache
from hashlib import blake2b

from shardyard.errors import InvalidCertificateError
from shardyard.ids import Address
from shardyard.quorum import decode_bitmap
from shardyard.validators import PUBLIC_KEY_BYTES, SIGNATURE_BYTES, Validator, ValidatorSet

MAX_REMEMBERED = 4096
_TAG_BYTES = 32
_PADDING = bytes(SIGNATURE_BYTES - _TAG_BYTES)


def build_mock_validator(name: str, stake: int, reward: Address) -> Validator:
    """Return a validator whose key is derived from ``name``."""
    public_key = blake2b(name.encode(), digest_size=PUBLIC_KEY_BYTES, person=b"sim key").digest()
    return Validator(
        public_key=public_key, possession_proof=bytes(SIGNATURE_BYTES), stake=stake, reward=reward
    )


@lru_cache(maxsize=1 << 16)
def sign_mock(public_key: bytes, message: bytes) -> bytes:
    """Return the signature of the holder of ``public_key`` over ``message``."""
    return _PADDING + blake2b(message, digest_size=_TAG_BYTES, key=public_key).digest()


class MockCrypto:
    """Implements ``Crypto`` over keyed tags; the aggregates that it expects are remembered for the next who asks."""

    def __init__(self) -> None:
        self._aggregates: dict[tuple[bytes, bytes], bytes] = {}

    def verify_aggregate(
        self, committee: ValidatorSet, bitmap: bytes, message: bytes, signature: bytes
    ) -> bool:
        """Tell whether ``signature`` aggregates the signatures of the validators in ``bitmap`` over ``message``."""
        key = (bitmap, message)  # what is signed names the committee (D1)
        expected = self._aggregates.get(key)
        if expected is None:
            expected = self._aggregates[key] = _aggregate_mock(committee, bitmap, message)
            if len(self._aggregates) > MAX_REMEMBERED:
                del self._aggregates[next(iter(self._aggregates))]
        return bool(signature) and expected == signature

    def verify_votes(self, committee: ValidatorSet, items: Sequence[tuple[int, bytes, bytes]]) -> list[bool]:
        """Tell for each ``(validator, message, signature)`` whether it verifies."""
        return [
            sign_mock(committee.validators[validator].public_key, message) == signature
            for validator, message, signature in items
        ]

    def aggregate(self, signatures: Sequence[bytes]) -> bytes:
        """Return the aggregate of ``signatures``, which must not be empty."""
        return _add(signatures)


def _aggregate_mock(committee: ValidatorSet, bitmap: bytes, message: bytes) -> bytes:
    """Return what the signatures of the validators in ``bitmap`` add up to; empty when there are none or too many."""
    try:
        signers = decode_bitmap(bitmap, len(committee))
    except InvalidCertificateError:
        return b""
    return _add([sign_mock(committee.validators[index].public_key, message) for index in signers])


def _add(signatures: Sequence[bytes]) -> bytes:
    total = 0
    for signature in signatures:
        total ^= int.from_bytes(signature, "big")
    return total.to_bytes(SIGNATURE_BYTES, "big") if signatures else b""
