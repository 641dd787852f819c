"""Rejoin: how a validator whose signer record was lost tells which of its votes are behind it (K2).

The validator signs a fresh nonce, and beacon blocks carry it. A beacon block in slot ``b`` with that nonce was proposed
after the loss. Before it, the validator cannot have left slot ``b``: that needs a SkipCert of ``b`` or a NotarCert of another
block in ``b``, and a quorum that gave one does not notarize this block as well (no NOTAR after SKIP, one NOTAR a slot). So
whatever it signed on the beacon before the loss lies in slots up to ``b``, and above ``b`` it may sign again.

The argument trusts two thirds of the committee whose slots these are. Of the beacon that is all stake. A shard's committee
is small and may be captured: it could then certify a late block in a slot that the validator had left long ago, and an honest
validator would sign two blocks of one later slot. So on shards a Rejoin counts only from the next epoch on, in which nothing
was signed before the loss (D1).
"""

from collections.abc import Sequence
from typing import Final

import msgspec

from shardyard.consensus.votes import Crypto, Domain
from shardyard.errors import InvalidBlockError
from shardyard.hashing import TAG_REJOIN, hash_struct
from shardyard.ids import Hash32
from shardyard.validators import SIGNATURE_BYTES, ValidatorSet

NONCE_BYTES: Final = 32
MAX_BLOCK_REJOINS: Final = 16
"""Rejoins one beacon block carries; the next leaders take the rest."""


class Rejoin(msgspec.Struct, frozen=True, array_like=True):
    """A validator's statement, signed with its voting key, that its record was lost before ``nonce`` was drawn."""

    validator: int
    nonce: bytes
    signature: bytes


def compute_rejoin_message(domain: Domain, validator: int, nonce: bytes) -> Hash32:
    """Return the 32 bytes that a Rejoin signs; its tag is none of a vote's."""
    return hash_struct(TAG_REJOIN, (domain.network, domain.shard, domain.valset_root, validator, nonce))


def verify_rejoins(
    crypto: Crypto, domain: Domain, committee: ValidatorSet, rejoins: Sequence[Rejoin]
) -> None:
    """Raise ``InvalidBlockError`` unless a block may carry ``rejoins``: few, one per validator in order, all signed."""
    if len(rejoins) > MAX_BLOCK_REJOINS:
        raise InvalidBlockError(f"rejoins: got {len(rejoins)}, expected at most {MAX_BLOCK_REJOINS}")
    positions = [rejoin.validator for rejoin in rejoins]
    if positions != sorted(set(positions)):
        raise InvalidBlockError(f"rejoins: got validators {positions}, expected each once and in order")
    for rejoin in rejoins:
        if not 0 <= rejoin.validator < len(committee):
            raise InvalidBlockError(
                f"rejoin: got validator {rejoin.validator}, expected one of {len(committee)}"
            )
        if len(rejoin.nonce) != NONCE_BYTES or len(rejoin.signature) != SIGNATURE_BYTES:
            raise InvalidBlockError(
                f"rejoin of validator {rejoin.validator}: got a nonce of {len(rejoin.nonce)} and a signature of "
                f"{len(rejoin.signature)} bytes, expected {NONCE_BYTES} and {SIGNATURE_BYTES}"
            )
    items = [
        (
            rejoin.validator,
            compute_rejoin_message(domain, rejoin.validator, rejoin.nonce),
            rejoin.signature,
        )
        for rejoin in rejoins
    ]
    for rejoin, is_valid in zip(rejoins, crypto.verify_votes(committee, items) if items else [], strict=True):
        if not is_valid:
            raise InvalidBlockError(f"rejoin of validator {rejoin.validator}: the signature does not verify")
