"""Everything that can happen to a machine: a closed union.

Completions (``Built``, ``Executed``, ``Signed``) carry what they complete and may be stale; a driver serves them before
messages, so a flood from peers cannot starve them (M1).
"""

import msgspec

from shardyard.consensus.votes import Vote
from shardyard.ids import Hash32, NodeId, ShardId
from shardyard.messages import Message


class ExecutionSummary(msgspec.Struct, frozen=True, array_like=True):
    """What executing a shard block gave: the fields a header commits to."""

    state_root: Hash32
    transactions_root: Hash32
    transaction_count: int
    delivery_count: int
    outcomes_root: Hash32
    outbox_root: Hash32
    logs_bloom: bytes
    gas_used: int
    burnt: int
    """Wei burnt in this block."""
    outbox: tuple[bytes, ...]
    """Encoded receipts in commit order."""
    access_list_hash: Hash32
    """Keccak-256 of the block access list (EIP-7928)."""


class Started(msgspec.Struct, frozen=True):
    """The driver has recovered the machine and performs its effects from now on."""


class MessageReceived(msgspec.Struct, frozen=True):
    """A peer's message, its envelope already authenticated. ``chain`` is the chain whose topic it came by."""

    sender: NodeId
    chain: ShardId
    message: Message


class TimerFired(msgspec.Struct, frozen=True):
    """A timer set by ``SetTimer`` ran out."""

    name: str


class Built(msgspec.Struct, frozen=True):
    """Completes ``Build``: the body that the executor filled, or None when the parent is unknown to it."""

    request: int
    body: bytes
    summary: ExecutionSummary | None
    access_list: bytes = b""
    """What ``summary.access_list_hash`` is the hash of."""


class Executed(msgspec.Struct, frozen=True):
    """Completes ``Execute``: the results, or why the block is invalid."""

    block_hash: Hash32
    summary: ExecutionSummary | None
    error: str


class Signed(msgspec.Struct, frozen=True):
    """Completes ``Sign``: the votes whose records are on disk. Refused ones are missing."""

    votes: tuple[Vote, ...]


Event = Started | MessageReceived | TimerFired | Built | Executed | Signed
