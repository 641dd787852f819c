"""Blocks above the last one folded in: how far this replica is with each, and what executing one needs.

A candidate waits until its parent is executed and its ``beacon_ref`` followed; that is pending, never
invalid (L2). Whatever is overtaken by a final block goes, and the executor is told to drop the states it
made for it.
"""

from collections.abc import Collection
from enum import Enum, auto

import msgspec

from shards.inbox import BeaconFollower
from shards.policy import BlockContext, compute_env, verify_body, verify_header
from shardyard.blocks import Block, Header
from shardyard.effects import EnvSpec
from shardyard.errors import InvalidBlockError
from shardyard.events import ExecutionSummary
from shardyard.genesis import Genesis
from shardyard.ids import Hash32


class Progress(Enum):
    """How far this replica is with a block that is not folded in yet."""

    WAITING = auto()
    """Parent not executed, or ``beacon_ref`` not followed."""
    EXECUTING = auto()
    EXECUTED = auto()
    INVALID = auto()


class Candidate(msgspec.Struct):
    """A block above the last one folded in."""

    block: Block
    is_asked: bool = False
    """The engine waits for an answer."""
    progress: Progress = Progress.WAITING
    env: EnvSpec | None = None
    summary: ExecutionSummary | None = None
    reason: str = ""
    access_list: bytes = b""
    """Of a block built here, until it leaves with its proposal (B5)."""


class Candidates:
    """All candidates by hash, above ``base``, the last block folded in. Bounded by what the engine keeps."""

    def __init__(self, base: Header) -> None:
        self.base = base
        self._by_hash: dict[Hash32, Candidate] = {}

    def __len__(self) -> int:
        return len(self._by_hash)

    def get(self, block_hash: Hash32) -> Candidate | None:
        """Return a candidate."""
        return self._by_hash.get(block_hash)

    def ensure(self, block: Block) -> Candidate:
        """Return the candidate of ``block``, a waiting one when there is none yet."""
        candidate = self._by_hash.get(block.hash)
        if candidate is None:
            candidate = self._by_hash[block.hash] = Candidate(block)
        return candidate

    def get_waiting(self) -> list[Candidate]:
        """Return the candidates that are not executed yet, in order of arrival."""
        return [found for found in self._by_hash.values() if found.progress is Progress.WAITING]

    def get_executed(self, block_hash: Hash32) -> Header | None:
        """Return the header of a block whose state the executor holds."""
        if block_hash == self.base.hash:
            return self.base
        candidate = self._by_hash.get(block_hash)
        if candidate is None or candidate.progress is not Progress.EXECUTED:
            return None
        return candidate.block.header

    def get_ancestors(self, block_hash: Hash32) -> list[Hash32]:
        """Return ``block_hash`` and its ancestors above the base, newest first."""
        found: list[Hash32] = []
        candidate = self._by_hash.get(block_hash)
        while candidate is not None:
            found.append(candidate.block.hash)
            candidate = self._by_hash.get(candidate.block.header.parent)
        return found

    def advance(self, header: Header) -> None:
        """Fold in a final block: it is the base from now on."""
        self.base = header
        self._by_hash.pop(header.hash, None)

    def drop(self, block_hash: Hash32) -> list[Hash32]:
        """Forget a block that can never become final; return its hash if the executor holds a state of it."""
        candidate = self._by_hash.pop(block_hash, None)
        is_held = candidate is not None and candidate.progress in {Progress.EXECUTING, Progress.EXECUTED}
        return [block_hash] if is_held else []

    def drop_overtaken(self, kept: Collection[Hash32]) -> list[Hash32]:
        """Forget all blocks up to the height of the base but ``kept``; return those the executor holds a
        state of.
        """
        overtaken = [
            block_hash
            for block_hash, candidate in self._by_hash.items()
            if candidate.block.header.height <= self.base.height and block_hash not in kept
        ]
        return [held for block_hash in overtaken for held in self.drop(block_hash)]


def prepare_execution(
    genesis: Genesis, follower: BeaconFollower, parent: Header, block: Block
) -> tuple[EnvSpec, tuple[bytes, ...]] | None:
    """Return environment and deliveries of ``block`` on its executed parent; None while ``beacon_ref`` is
    not followed.

    Raises ``InvalidBlockError`` for what is wrong with the block before it is executed.
    """
    header = block.header
    verify_header(genesis, parent, header)
    ref = header.shard_content.beacon_ref
    view = follower.get_view(ref.height)
    if view is None:
        return None
    if view.ref != ref:
        raise InvalidBlockError(f"beacon_ref: got another block than the final one at {ref.height}")
    deliveries = follower.select_deliveries(parent.shard_content.inbox_position, view)
    got = header.shard_content.delivery_count
    if got != len(deliveries):  # X5: what fits must be taken, and nothing else
        raise InvalidBlockError(f"deliveries: got {got}, expected {len(deliveries)}")
    verify_body(genesis.preset, block)
    context = BlockContext(header.slot, header.timestamp_ms, header.proposer, view.ref, view.link_base_fees)
    return compute_env(genesis, parent, context), deliveries
