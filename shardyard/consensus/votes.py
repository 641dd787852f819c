"""Votes and certificates: what is signed, and what a quorum of it looks like.

Vote kinds are NOTAR(slot, hash), SKIP(slot) and FINAL(slot, hash). Every signature covers
``tag ‖ chain ‖ shard ‖ epoch ‖ valset_root ‖ kind ‖ slot ‖ hash`` (D1), so a vote says nothing outside its own chain, epoch
and committee. A certificate is one aggregate BLS signature with a bitmap of its signers: attributable.
"""

from collections.abc import Sequence
from enum import IntEnum
from typing import Protocol

import msgspec

from shardyard.errors import InvalidCertificateError
from shardyard.hashing import TAG_VOTE, hash_struct
from shardyard.ids import ZERO_HASH, Hash32, ShardId, Slot, compute_epoch
from shardyard.quorum import decode_bitmap, encode_bitmap, is_quorum, sum_stake
from shardyard.validators import SIGNATURE_BYTES, ValidatorSet


class VoteKind(IntEnum):
    """What a signature in consensus means; each kind has a value of its own inside the signed bytes."""

    NOTAR = 1
    SKIP = 2
    FINAL = 3
    PROPOSE = 4
    """The leader's signature over its block: two of them for one slot are slashable."""


class Domain(msgspec.Struct, frozen=True, array_like=True):
    """Where votes count: one network (hash of its genesis), one chain, one committee."""

    network: Hash32
    shard: ShardId
    valset_root: Hash32


class Vote(msgspec.Struct, frozen=True, array_like=True):
    """One validator's signed vote. ``block_hash`` is zero for SKIP."""

    kind: VoteKind
    slot: Slot
    block_hash: Hash32
    validator: int
    signature: bytes


class Certificate(msgspec.Struct, frozen=True, array_like=True):
    """A quorum of votes of one kind for one slot and hash: aggregate signature and bitmap of signers."""

    kind: VoteKind
    slot: Slot
    block_hash: Hash32
    bitmap: bytes
    signature: bytes


def compute_vote_message(domain: Domain, kind: VoteKind, slot: int, block_hash: bytes) -> bytes:
    """Return the 32 bytes that a vote signs (D1)."""
    fields = (
        domain.network,
        domain.shard,
        compute_epoch(slot),
        domain.valset_root,
        int(kind),
        slot,
        block_hash,
    )
    return hash_struct(TAG_VOTE, fields)


class Crypto(Protocol):
    """The signature scheme behind votes: BLS in processes, keyed tags in simulation.

    Implementations are pure: the same arguments give the same answer and nothing is read or written.
    """

    def verify_aggregate(
        self, committee: ValidatorSet, bitmap: bytes, message: bytes, signature: bytes
    ) -> bool:
        """Tell whether ``signature`` aggregates the signatures of the validators in ``bitmap`` over ``message``."""
        ...

    def verify_votes(self, committee: ValidatorSet, items: Sequence[tuple[int, bytes, bytes]]) -> list[bool]:
        """Tell for each ``(validator, message, signature)`` whether it verifies; one batch, bisected on failure."""
        ...

    def aggregate(self, signatures: Sequence[bytes]) -> bytes:
        """Return the aggregate of ``signatures``, which must not be empty."""
        ...


def build_certificate(crypto: Crypto, committee: ValidatorSet, votes: Sequence[Vote]) -> Certificate:
    """Return the certificate of ``votes``: verified, of one kind, slot and hash, by distinct validators."""
    ordered = sorted(votes, key=lambda vote: vote.validator)
    first = ordered[0]
    return Certificate(
        kind=first.kind,
        slot=first.slot,
        block_hash=first.block_hash,
        bitmap=encode_bitmap((vote.validator for vote in ordered), len(committee)),
        signature=crypto.aggregate([vote.signature for vote in ordered]),
    )


def verify_certificate(
    crypto: Crypto, domain: Domain, committee: ValidatorSet, certificate: Certificate
) -> None:
    """Raise ``InvalidCertificateError`` unless ``certificate`` carries a quorum of ``committee``.

    Cheap checks (shape, stake) come before the pairing, so that garbage costs its sender more than its reader.
    """
    if certificate.kind is VoteKind.PROPOSE:
        raise InvalidCertificateError("certificate: got kind PROPOSE, expected NOTAR, SKIP or FINAL")
    if certificate.kind is VoteKind.SKIP and certificate.block_hash != ZERO_HASH:
        raise InvalidCertificateError("SKIP certificate: got a block hash, expected 32 zero bytes")
    if len(certificate.block_hash) != len(ZERO_HASH) or len(certificate.signature) != SIGNATURE_BYTES:
        raise InvalidCertificateError(
            f"certificate: got a hash of {len(certificate.block_hash)} and a signature of "
            f"{len(certificate.signature)} bytes, expected {len(ZERO_HASH)} and {SIGNATURE_BYTES}"
        )
    signers = decode_bitmap(certificate.bitmap, len(committee))
    stake = sum_stake(signers, committee.stakes)
    if not is_quorum(stake, committee.total_stake):
        raise InvalidCertificateError(
            f"certificate of slot {certificate.slot}: got stake {stake}, expected at least {committee.quorum}"
        )
    message = compute_vote_message(domain, certificate.kind, certificate.slot, certificate.block_hash)
    if not crypto.verify_aggregate(committee, certificate.bitmap, message, certificate.signature):
        raise InvalidCertificateError(
            f"certificate of slot {certificate.slot}: the aggregate signature does not verify"
        )
