"""Everything a machine can ask of its driver: a closed union, performed in list order.

``Persist`` is a barrier: nothing after it leaves the process before it is on disk. It holds back only outgoing effects and
``Sign``, never ``step`` (M1): a vote must not enter the signer's record before what it rests on is in the log, or a crash
leaves a FINAL for a block that nobody has (S5). ``Build``, ``Execute`` and ``Sign`` are started, never awaited; their
results come back as events.
"""

import msgspec

from shardyard.blocks import Block, FinalityProof
from shardyard.consensus.votes import Certificate, VoteKind
from shardyard.crosslinks import CrosslinkSubmission
from shardyard.ids import Address, Hash32, Height, NodeId, ShardId, Slot
from shardyard.messages import Message


class BlockRecord(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """A block, before it is voted for (S5)."""

    block: Block


class CertificateRecord(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """A certificate, before a vote that rests on it (S5)."""

    certificate: Certificate


class FinalRecord(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """A block became final; ``proof`` is the one it was finalised by."""

    height: Height
    block_hash: Hash32
    proof: FinalityProof


class SubmissionRecord(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """Bodies of a crosslink, before the beacon votes for a block that has it (S5, X10)."""

    submission: CrosslinkSubmission


class BeaconRecord(msgspec.Struct, frozen=True, array_like=True, tag=5):
    """A final beacon block as a shard followed it, with the bundles for this shard in visit order."""

    block: Block
    proof: FinalityProof
    bundles: tuple[tuple[bytes, ...], ...]


class ExecutionRecord(msgspec.Struct, frozen=True, array_like=True, tag=6):
    """A shard block was executed here and is valid; ``outbox`` is what it emitted, encoded, in commit order.

    On disk before the block is voted for or folded in: after a restart the receipts of final blocks come from here.
    """

    block_hash: Hash32
    outbox: tuple[bytes, ...]


class SnapshotRecord(msgspec.Struct, frozen=True, array_like=True, tag=7):
    """The chain goes on from here: a block that is proven final, and the chunks of the state after it.

    What the log has of the chain before it is of no use any more; what it has of the beacon is.
    """

    block: Block
    proof: FinalityProof
    chunks: tuple[Hash32, ...]


Record = (
    BlockRecord
    | CertificateRecord
    | FinalRecord
    | SubmissionRecord
    | BeaconRecord
    | ExecutionRecord
    | SnapshotRecord
)


class EnvSpec(msgspec.Struct, frozen=True, array_like=True):
    """Block environment for the executor (fields as in the native ``BlockEnv``; ``timestamp`` in seconds)."""

    number: int
    timestamp: int
    gas_limit: int
    base_fee: int
    beneficiary: Address
    prevrandao: Hash32
    parent_hash: Hash32
    beacon_root: Hash32
    beacon_height: int
    inbox_gas: int
    link_base_fees: tuple[tuple[int, int], ...]


class SignRequest(msgspec.Struct, frozen=True, array_like=True):
    """One signature wanted of one local key; ``message`` is what ``compute_vote_message`` gave."""

    kind: VoteKind
    slot: Slot
    block_hash: Hash32
    validator: int
    message: bytes


class Persist(msgspec.Struct, frozen=True):
    """Append records to the chain's log and sync; a barrier for what leaves the process after it."""

    records: tuple[Record, ...]


class Sign(msgspec.Struct, frozen=True):
    """Ask the signer; it refuses what breaks S1-S4 or lacks its record. Answered by ``Signed``."""

    requests: tuple[SignRequest, ...]


class Broadcast(msgspec.Struct, frozen=True):
    """Publish a message on this chain's topics."""

    message: Message


class Send(msgspec.Struct, frozen=True):
    """Send a message to one node."""

    to: NodeId
    message: Message


class SetTimer(msgspec.Struct, frozen=True):
    """Fire ``TimerFired(name)`` after ``delay_ms``; replaces a running timer of that name."""

    name: str
    delay_ms: int


class CancelTimer(msgspec.Struct, frozen=True):
    """Forget the timer ``name``."""

    name: str


class Build(msgspec.Struct, frozen=True):
    """Fill a block on ``env.parent_hash``: deliveries from ``inbox`` first, then transactions. Answered by ``Built``."""

    request: int
    env: EnvSpec
    inbox: tuple[bytes, ...]
    max_body_bytes: int


class Adopt(msgspec.Struct, frozen=True):
    """The block built under ``request`` has its hash now; keep its state under that name."""

    request: int
    block_hash: Hash32
    height: Height


class Execute(msgspec.Struct, frozen=True):
    """Execute a block that somebody else built. Answered by ``Executed``.

    ``access_list`` is what the header commits to (B6), or empty: a faster way to the same verdict, never another verdict.
    """

    block: Block
    env: EnvSpec
    inbox: tuple[bytes, ...]
    access_list: bytes = b""


class Finalise(msgspec.Struct, frozen=True):
    """The block is final: fold its state into the base, index it, prune the mempool."""

    block: Block
    proof: FinalityProof


class Discard(msgspec.Struct, frozen=True):
    """The block can never become final: drop its state, give its transactions back to the mempool."""

    block_hash: Hash32


class Notice(msgspec.Struct, frozen=True):
    """Something people may want to watch; never read by a node. ``data`` holds integers, text and bytes."""

    kind: str
    shard: ShardId
    data: dict[str, int | str | bytes]


Effect = (
    Persist
    | Sign
    | Broadcast
    | Send
    | SetTimer
    | CancelTimer
    | Build
    | Adopt
    | Execute
    | Finalise
    | Discard
    | Notice
)
