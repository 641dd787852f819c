"""Everything one node may say to another: a closed union, decoded once at the edge.

Consensus speaks in proposals, votes and certificates; catch-up asks by hash or by height and refuses what it did not ask
for (L9); crosslinks, bundles and final beacon blocks tie the shards together; transactions travel as one blob.
"""

from typing import Final, cast

import msgspec

from shardyard.blocks import Block, FinalityProof
from shardyard.codec import decode, encode
from shardyard.consensus.votes import Certificate, Vote
from shardyard.crosslinks import Bundle, CrosslinkSubmission
from shardyard.hashing import TAG_SNAPSHOT, hash_struct
from shardyard.ids import Hash32, Height, ShardId, Slot
from shardyard.rejoins import Rejoin


class Proposal(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """A leader's block for its slot.

    ``access_list`` travels beside the block (B5) and is no part of it: the header commits to its hash, and whoever
    passes the block on may leave it out or change it. Empty when there is none, as always on the beacon.
    """

    block: Block
    access_list: bytes = b""


class Votes(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """Votes of co-hosted validators, sent together."""

    votes: tuple[Vote, ...]


class Certificates(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """Certificates, newly formed or rebroadcast at a standstill (A3, L7)."""

    certificates: tuple[Certificate, ...]


class FinalBlock(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """A finalised block with its proof: how shards follow the beacon, and how followers follow a shard."""

    block: Block
    proof: FinalityProof


class BlockRequest(msgspec.Struct, frozen=True, array_like=True, tag=5):
    """Asks for blocks by hash (missing ancestry, L9)."""

    shard: ShardId
    hashes: tuple[Hash32, ...]


class BlockResponse(msgspec.Struct, frozen=True, array_like=True, tag=6):
    """Answers ``BlockRequest``: the blocks held, and the notarizations held of them."""

    shard: ShardId
    blocks: tuple[Block, ...]
    notarizations: tuple[Certificate, ...]


class RangeRequest(msgspec.Struct, frozen=True, array_like=True, tag=7):
    """Asks for final blocks from ``first_height`` on (catch-up)."""

    shard: ShardId
    first_height: Height
    count: int


class RangeResponse(msgspec.Struct, frozen=True, array_like=True, tag=8):
    """Answers ``RangeRequest``: consecutive final blocks and the proof of the last one; None when nothing is newer."""

    shard: ShardId
    blocks: tuple[Block, ...]
    proof: FinalityProof | None


class SubmitCrosslink(msgspec.Struct, frozen=True, array_like=True, tag=9):
    """A shard offers a crosslink to the beacon."""

    submission: CrosslinkSubmission


class CrosslinkRequest(msgspec.Struct, frozen=True, array_like=True, tag=10):
    """Asks for the submission behind a crosslink hash (X10)."""

    crosslink: Hash32


class BundleAnnouncement(msgspec.Struct, frozen=True, array_like=True, tag=11):
    """Receipts for one destination, sent by their source or by the beacon."""

    bundle: Bundle


class BundleRequest(msgspec.Struct, frozen=True, array_like=True, tag=12):
    """Asks for the receipts of a crosslink to one destination."""

    crosslink: Hash32
    src: ShardId
    dst: ShardId


class Transactions(msgspec.Struct, frozen=True, array_like=True, tag=13):
    """Pending transactions for the other replicas of a shard: one blob and the end of each."""

    shard: ShardId
    raw: bytes
    ends: tuple[int, ...]


class Status(msgspec.Struct, frozen=True, array_like=True, tag=14):
    """Where a replica stands; heads that are ahead of ours trigger catch-up."""

    shard: ShardId
    slot: Slot
    final_height: Height
    final_hash: Hash32


class Rejoins(msgspec.Struct, frozen=True, array_like=True, tag=20):
    """Validators whose signer record was lost ask the beacon's leaders to put their fresh nonces into a block."""

    rejoins: tuple[Rejoin, ...]


class SnapshotRequest(msgspec.Struct, frozen=True, array_like=True, tag=21):
    """Asks for the manifest of the state after the final block at ``height``, or of what is held already."""

    shard: ShardId
    height: Height


class SnapshotManifest(msgspec.Struct, frozen=True, array_like=True, tag=22):
    """Answers ``SnapshotRequest``: a final block with its proof (A2), and the hashes of the chunks of the state after it.

    The same state gives the same chunks everywhere, so whoever is at the same height has the same manifest.
    """

    shard: ShardId
    block: Block
    proof: FinalityProof
    chunks: tuple[Hash32, ...]

    @property
    def id(self) -> Hash32:
        """What two replicas with the same snapshot share: the proofs they hold may differ."""
        return hash_struct(TAG_SNAPSHOT, (self.block.hash, self.chunks))


class ChunkRequest(msgspec.Struct, frozen=True, array_like=True, tag=23):
    """Asks for one chunk of a snapshot."""

    shard: ShardId
    snapshot: Hash32
    index: int


class ChunkResponse(msgspec.Struct, frozen=True, array_like=True, tag=24):
    """Answers ``ChunkRequest``."""

    shard: ShardId
    snapshot: Hash32
    index: int
    data: bytes


Message = (
    Proposal
    | Votes
    | Certificates
    | FinalBlock
    | BlockRequest
    | BlockResponse
    | RangeRequest
    | RangeResponse
    | SubmitCrosslink
    | CrosslinkRequest
    | BundleAnnouncement
    | BundleRequest
    | Transactions
    | Status
    | Rejoins
    | SnapshotRequest
    | SnapshotManifest
    | ChunkRequest
    | ChunkResponse
)

_MESSAGE: Final = cast("type[Message]", Message)  # a union is no type to mypy

MAX_MESSAGE_BYTES = 24 * 1024 * 1024
"""Above the largest block body with a bundle or an access list; enforced before decoding."""
_OBJECT_BYTES: Final = 48
"""What an object takes beside its contents, and the reference to it."""


def estimate_bytes(message: object) -> int:
    """Return about how much memory ``message`` takes, or a part of one: its bytes, and a little for each thing in it."""
    match message:
        case bytes():
            return _OBJECT_BYTES + len(message)
        case tuple() if set(map(type, message)) == {bytes}:  # thousands of receipts
            return _OBJECT_BYTES * (1 + len(message)) + sum(map(len, message))
        case tuple():
            return _OBJECT_BYTES + sum(map(estimate_bytes, message))
        case msgspec.Struct():
            return _OBJECT_BYTES + sum(map(estimate_bytes, msgspec.structs.astuple(message)))
        case _:
            return _OBJECT_BYTES


def encode_message(message: Message) -> bytes:
    """Return the canonical bytes of ``message``."""
    return encode(message)


def decode_message(data: bytes) -> Message:
    """Return the message that ``data`` encodes; raises ``DecodeError`` or ``TooLargeError``."""
    return decode(data, _MESSAGE, max_bytes=MAX_MESSAGE_BYTES)
