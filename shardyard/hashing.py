"""Domain-separated hashing.

The protocol's hash is Keccak-256, so that a contract on any shard can check what the protocol commits to. Every use has
a tag of its own, prefixed with its length, so that bytes hashed for one purpose can never stand for another.
"""

from typing import Final

from shardyard._native import keccak256
from shardyard.codec import encode
from shardyard.ids import Hash32

TAG_HEADER: Final = b"shardyard/header/v1"
TAG_JUSTIFICATION: Final = b"shardyard/justification/v1"
TAG_BODY: Final = b"shardyard/body/v1"
TAG_VOTE: Final = b"shardyard/vote/v1"
TAG_PROPOSAL: Final = b"shardyard/proposal/v1"
TAG_VALSET: Final = b"shardyard/valset/v1"
TAG_CROSSLINK: Final = b"shardyard/crosslink/v1"
TAG_BEACON_STATE: Final = b"shardyard/beacon-state/v1"
TAG_GENESIS: Final = b"shardyard/genesis/v1"
TAG_RANDAO: Final = b"shardyard/randao/v1"
TAG_REJOIN: Final = b"shardyard/rejoin/v1"
TAG_SNAPSHOT: Final = b"shardyard/snapshot/v1"
TAG_ENVELOPE: Final = b"shardyard/envelope/v1"


def hash_tagged(tag: bytes, data: bytes) -> Hash32:
    """Return Keccak-256 of ``len(tag) ‖ tag ‖ data``; ``tag`` is at most 255 bytes."""
    return Hash32(keccak256(bytes((len(tag),)) + tag + data))


def hash_struct(tag: bytes, value: object) -> Hash32:
    """Return the tagged hash of the canonical encoding of ``value``."""
    return hash_tagged(tag, encode(value))
