"""A committee: the validators of one chain in one epoch, with their stake and keys.

The root of the set is signed by every vote (D1), so a vote of one committee never counts in another.
"""

from functools import cached_property

import msgspec

from shardyard.hashing import TAG_VALSET, hash_struct
from shardyard.ids import Address, Hash32
from shardyard.quorum import compute_quorum

PUBLIC_KEY_BYTES = 48
SIGNATURE_BYTES = 96


class Validator(msgspec.Struct, frozen=True, array_like=True):
    """One validator: BLS public key (48 bytes, G1), its proof of possession (96 bytes), stake in gwei, reward address."""

    public_key: bytes
    possession_proof: bytes
    stake: int
    reward: Address


class ValidatorSet(msgspec.Struct, frozen=True, array_like=True, dict=True):
    """The committee of one chain in one epoch; positions are ``ValidatorIndex``."""

    validators: tuple[Validator, ...]

    def __len__(self) -> int:
        return len(self.validators)

    @cached_property
    def root(self) -> Hash32:
        """Hash of the set, part of every signed message (D1)."""
        return hash_struct(TAG_VALSET, self)

    @cached_property
    def stakes(self) -> tuple[int, ...]:
        """Stake by position."""
        return tuple(validator.stake for validator in self.validators)

    @cached_property
    def total_stake(self) -> int:
        """Sum of the stake."""
        return sum(self.stakes)

    @cached_property
    def quorum(self) -> int:
        """Least stake of a certificate."""
        return compute_quorum(self.total_stake)

    def get_leader(self, slot: int) -> int:
        """Return the position of the leader of ``slot``: round robin over the committee.

        Stake weighs votes, not turns: with a rotation every honest leader comes up within ``len(self)`` slots, which
        bounds the time to finality after a fault.
        """
        return slot % len(self.validators)
