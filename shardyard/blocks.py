"""Headers, justifications and blocks, for shards and beacon alike.

A header has a common part, which the finality engine reads, and a content of its chain: ``ShardContent`` or
``BeaconContent``. The header commits to its justification (A1) and its body; its hash is the block's hash. What may differ
between honest holders of one block (the leader's signature, the finality proof of its ``beacon_ref``) stays outside the hash.
"""

from enum import IntEnum
from functools import cached_property, lru_cache

import msgspec

from shardyard.consensus.votes import Certificate
from shardyard.hashing import TAG_BODY, TAG_HEADER, TAG_JUSTIFICATION, hash_struct, hash_tagged
from shardyard.ids import ZERO_HASH, Address, Epoch, Hash32, Height, Millis, ShardId, Slot


class BlockKind(IntEnum):
    """E1: what a block is to its epoch. Only NORMAL blocks exist within one epoch."""

    NORMAL = 0
    SEAL = 1
    TAIL = 2


class BeaconRef(msgspec.Struct, frozen=True, array_like=True):
    """X0: the final beacon block that a shard block builds its inbox, deadlines and parameters on."""

    height: Height
    hash: Hash32
    epoch: Epoch


class ShardContent(msgspec.Struct, frozen=True, array_like=True, tag=0):
    """What a shard block commits to: its inputs from the beacon and the results of its execution."""

    beacon_ref: BeaconRef
    state_root: Hash32
    """LtHash commitment after this block; not a Merkle Patricia root."""
    transactions_root: Hash32
    transaction_count: int
    """User transactions; deliveries are counted apart."""
    delivery_count: int
    outcomes_root: Hash32
    outbox_root: Hash32
    logs_bloom: bytes
    gas_limit: int
    gas_used: int
    base_fee: int
    """Wei per gas (EIP-1559)."""
    beneficiary: Address
    prevrandao: Hash32
    inbox_position: int
    """Receipts of this shard's inbox consumed up to and including this block (X5)."""
    burnt: bytes
    """Wei burnt on this shard since genesis, 32 bytes big endian (X11)."""
    access_list_hash: Hash32
    """Keccak-256 of the block's access list (EIP-7928), which travels beside it (B5); zero in genesis."""
    snapshot_root: Hash32
    """Root of the snapshot manifest at snapshot heights, else zero."""


class BeaconContent(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """What a beacon block commits to: the crosslinks it accepts, the state after it, and the registry (genesis' committee)."""

    crosslinks_root: Hash32
    crosslink_count: int
    state_root: Hash32
    """Hash of the beacon state after this block: shard entries, supply, registry."""
    registry_root: Hash32


class Header(msgspec.Struct, frozen=True, array_like=True, dict=True):
    """The part of a block that is hashed and voted on."""

    version: int
    network: Hash32
    shard: ShardId
    epoch: Epoch
    kind: BlockKind
    slot: Slot
    height: Height
    parent: Hash32
    parent_slot: Slot
    justification_hash: Hash32
    timestamp_ms: Millis
    proposer: int
    """Position of the leader within the committee of ``epoch``."""
    body_hash: Hash32
    content: ShardContent | BeaconContent

    @cached_property
    def hash(self) -> Hash32:
        """Hash of the header, and so of its block."""
        return hash_struct(TAG_HEADER, self)

    @property
    def shard_content(self) -> ShardContent:
        """The content of a shard's header; ``TypeError`` for a beacon header."""
        if not isinstance(self.content, ShardContent):
            raise TypeError("the header is the beacon's")
        return self.content

    @property
    def beacon_content(self) -> BeaconContent:
        """The content of a beacon header; ``TypeError`` for a shard's."""
        if not isinstance(self.content, BeaconContent):
            raise TypeError("the header is a shard's")
        return self.content


class Justification(msgspec.Struct, frozen=True, array_like=True, dict=True):
    """Why a block may stand in its slot: NotarCert of its parent and SkipCerts of every slot between (S1).

    ``notarization`` is None exactly when the parent is genesis.
    """

    notarization: Certificate | None
    skips: tuple[Certificate, ...]

    @cached_property
    def hash(self) -> Hash32:
        """What the header commits to (A1)."""
        return hash_struct(TAG_JUSTIFICATION, self)


class Block(msgspec.Struct, frozen=True, array_like=True, dict=True):
    """A header with everything needed to check and execute it."""

    header: Header
    justification: Justification
    body: bytes
    signature: bytes
    """The leader's PROPOSE signature over the header hash; empty where none was verified (L12), and in genesis."""
    beacon_proof: bytes
    """Encoded ``FinalityProof`` of ``beacon_ref``, shards only; empty when the ref equals the parent's."""

    @cached_property
    def hash(self) -> Hash32:
        """Hash of the header."""
        return self.header.hash


class ShardBody(msgspec.Struct, frozen=True, array_like=True):
    """User transactions of a shard block: one blob and the end of each transaction in it."""

    raw: bytes
    ends: tuple[int, ...]


class CertifiedHeader(msgspec.Struct, frozen=True, array_like=True):
    """A header with the justification it commits to: one step of a certified path."""

    header: Header
    justification: Justification


class FinalityProof(msgspec.Struct, frozen=True, array_like=True):
    """A2: ``path`` leads from the proven header to a tip that ``notarization`` and ``finalization`` certify.

    The first element of ``path`` is the proven header; the last is the tip; often they are the same.
    """

    path: tuple[CertifiedHeader, ...]
    notarization: Certificate
    finalization: Certificate


EMPTY_JUSTIFICATION = Justification(notarization=None, skips=())


@lru_cache(maxsize=2)
def compute_body_hash(body: bytes) -> Hash32:
    """Return what a header says of its body; whoever builds a block asks twice in a row."""
    return hash_tagged(TAG_BODY, body)


def build_genesis_block(
    network: Hash32, shard: ShardId, timestamp_ms: int, content: ShardContent | BeaconContent
) -> Block:
    """Return the block at height 0: slot 0, no parent, no votes (D2)."""
    header = Header(
        version=1,
        network=network,
        shard=shard,
        epoch=Epoch(0),
        kind=BlockKind.NORMAL,
        slot=Slot(0),
        height=Height(0),
        parent=ZERO_HASH,
        parent_slot=Slot(0),
        justification_hash=EMPTY_JUSTIFICATION.hash,
        timestamp_ms=Millis(timestamp_ms),
        proposer=0,
        body_hash=compute_body_hash(b""),
        content=content,
    )
    return Block(header=header, justification=EMPTY_JUSTIFICATION, body=b"", signature=b"", beacon_proof=b"")
