"""Crosslinks: a shard's finalised segment as the beacon sees it (X4), and the order of receipts that follows (X5)."""

from collections.abc import Sequence
from functools import cached_property

import msgspec

from shardyard.blocks import FinalityProof, Header
from shardyard.codec import encode
from shardyard.hashing import TAG_CROSSLINK, hash_struct
from shardyard.ids import Epoch, Hash32, Height, ShardId
from shardyard.merkle import compute_root
from shardyard.receipts import LinkSummary
from shardyard.rejoins import Rejoin


class Crosslink(msgspec.Struct, frozen=True, array_like=True, dict=True):
    """X4: what a beacon block carries of one shard. ``burnt`` is the wei burnt in the range, 32 bytes big endian."""

    shard: ShardId
    epoch: Epoch
    parent: Hash32
    """Hash of the shard's previous crosslink; zero for the first."""
    first_height: Height
    last_height: Height
    head_hash: Hash32
    state_root: Hash32
    links: tuple[LinkSummary, ...]
    inbox_position: int
    burnt: bytes
    congestion: int
    """Fullness of the shard's inbox in thousandths (X9): a hint that nobody checks or uses."""
    base_fee: int
    """Base fee of the head, wei per gas: the floor for messages sent to this shard (X2)."""

    @cached_property
    def hash(self) -> Hash32:
        """Identity of the crosslink, parent of the next one."""
        return hash_struct(TAG_CROSSLINK, self)


class CrosslinkSubmission(msgspec.Struct, frozen=True, array_like=True):
    """A crosslink with everything needed to check it: all headers of the range, their receipts, the proof of its head."""

    crosslink: Crosslink
    headers: tuple[Header, ...]
    outboxes: tuple[tuple[bytes, ...], ...]
    """Encoded receipts in commit order, one tuple per header."""
    proof: FinalityProof


class Bundle(msgspec.Struct, frozen=True, array_like=True):
    """The receipts of one crosslink to one destination, in seq order."""

    crosslink: Hash32
    src: ShardId
    dst: ShardId
    receipts: tuple[bytes, ...]


class BeaconBody(msgspec.Struct, frozen=True, array_like=True):
    """What a beacon block carries: at most one crosslink per shard in visit order, and Rejoins by validator."""

    crosslinks: tuple[Crosslink, ...]
    rejoins: tuple[Rejoin, ...] = ()


def compute_visit_order(beacon_height: int, shard_count: int) -> list[ShardId]:
    """Return the order in which beacon block ``beacon_height`` visits the shards (X5): from ``height mod count`` on."""
    start = beacon_height % shard_count
    return [ShardId((start + step) % shard_count) for step in range(shard_count)]


def compute_crosslinks_root(crosslinks: Sequence[Crosslink]) -> Hash32:
    """Return what a beacon header says of its crosslinks."""
    return compute_root([encode(crosslink) for crosslink in crosslinks])
