"""Names for the numbers and byte strings that cross a room's border.

A shard is an EVM chain with ``chain_id = 31337 + shard`` (P1). The beacon is endpoint ``K`` of every link and has
the reserved shard number ``BEACON``. A slot is a u64, ``epoch << 32 | slot_in_epoch`` (D2): it is never reused over
the life of a chain. Slot 0 belongs to genesis and takes no votes.
"""

from typing import Final, NewType

ShardId = NewType("ShardId", int)
"""Number of a shard, or ``BEACON``. u32."""
ChainId = NewType("ChainId", int)
"""EIP-155 chain id of a shard."""
Slot = NewType("Slot", int)
"""Consensus slot, ``epoch << 32 | slot_in_epoch``. u64."""
Epoch = NewType("Epoch", int)
"""Run of slots with one committee. u32."""
Height = NewType("Height", int)
"""Number of a block in its chain; genesis is 0. u64."""
Hash32 = NewType("Hash32", bytes)
"""Keccak-256 digest, 32 bytes."""
Address = NewType("Address", bytes)
"""EVM address, 20 bytes."""
NodeId = NewType("NodeId", str)
"""Name of a process on the bus, for example ``shard-0-0`` or ``beacon-0``."""
ValidatorIndex = NewType("ValidatorIndex", int)
"""Position of a validator within the committee at hand."""
Millis = NewType("Millis", int)
"""Milliseconds; Unix time where a timestamp is meant."""

BEACON: Final = ShardId(0xFFFF_FFFF)
CHAIN_ID_BASE: Final = 31337
GENESIS_SLOT: Final = Slot(0)
ZERO_HASH: Final = Hash32(bytes(32))
ZERO_ADDRESS: Final = Address(bytes(20))
GATEWAY: Final = Address(bytes.fromhex("0000000000000000000000000000000000005a7d"))
"""The predeployed gateway contract, the same address on every shard (P2)."""

_SLOT_BITS: Final = 32


def compute_slot(epoch: int, slot_in_epoch: int) -> Slot:
    """Return the slot number of ``slot_in_epoch`` of ``epoch`` (D2)."""
    return Slot(epoch << _SLOT_BITS | slot_in_epoch)


def compute_epoch(slot: int) -> Epoch:
    """Return the epoch that ``slot`` belongs to (D2)."""
    return Epoch(slot >> _SLOT_BITS)


def compute_chain_id(shard: int) -> ChainId:
    """Return the EIP-155 chain id of ``shard`` (P1)."""
    return ChainId(CHAIN_ID_BASE + shard)


def describe_shard(shard: int) -> str:
    """Return ``beacon`` or ``shard-N``, the name used in topics, logs and file names."""
    return "beacon" if shard == BEACON else f"shard-{shard}"
