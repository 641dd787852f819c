"""The seam between a finality engine and the machine that hosts it.

An engine decides which blocks are final and never what is in them. Its host (``shards.replica`` or ``crosslink.beacon``)
forwards messages, timers and signatures, answers ``RequestBuild`` and ``RequestValidation``, and passes every ordinary
effect on to its driver, in order. ``simplex`` is the default engine, ``instant`` a single sequencer for tests.
"""

from collections.abc import Sequence
from typing import Final, Protocol

import msgspec

from shardyard.blocks import (
    BeaconContent,
    Block,
    BlockKind,
    FinalityProof,
    Header,
    Justification,
    ShardContent,
)
from shardyard.consensus.votes import Certificate, Domain, Vote
from shardyard.effects import Effect, Record
from shardyard.ids import Hash32, Millis, NodeId, ShardId, Slot
from shardyard.messages import (
    BlockRequest,
    BlockResponse,
    Certificates,
    FinalBlock,
    Proposal,
    RangeRequest,
    RangeResponse,
    Status,
    Votes,
)
from shardyard.validators import ValidatorSet

TIMER_PREFIX: Final = "engine."
"""Every timer of an engine starts with this, so that a host can tell them from its own."""

EngineMessage = (
    Proposal
    | Votes
    | Certificates
    | BlockRequest
    | BlockResponse
    | RangeRequest
    | RangeResponse
    | FinalBlock
    | Status
)


class EngineConfig(msgspec.Struct, frozen=True):
    """What an engine is told once: its chain, its committee, its local keys and its timing."""

    shard: ShardId
    domain: Domain
    committee: ValidatorSet
    local_validators: tuple[int, ...]
    """Positions of the keys this process signs with; empty for a follower."""
    genesis: Block
    block_time_ms: int
    delta_ms: int
    max_step_ms: int = 24 * 3600 * 1000
    """P4: a block's timestamp is at most this after its parent's."""


class RequestBuild(msgspec.Struct, frozen=True):
    """The host shall build a block for ``slot`` on ``parent`` and hand it to ``on_proposed``."""

    slot: Slot
    parent: Block
    timestamp_ms: Millis


class RequestValidation(msgspec.Struct, frozen=True):
    """The host shall execute ``block`` on its valid ``parent`` and answer by ``on_validated``; asked once per block."""

    block: Block
    parent: Block
    ahead: tuple[Block, ...] = ()
    """Blocks behind it that are proven final, in order: they come next, and what they need may be fetched already."""
    source: NodeId | None = None
    """Who sent the block, and likely has what is behind it; None for an own one and after a restart."""


class BlockNotarized(msgspec.Struct, frozen=True):
    """A valid block has its certificate of notarization; it may still be abandoned."""

    block: Block
    certificate: Certificate


class BlockFinal(msgspec.Struct, frozen=True):
    """A block is final; its record is in a ``Persist`` before this. In order of height, one per block."""

    block: Block
    proof: FinalityProof


class BlockAbandoned(msgspec.Struct, frozen=True):
    """A block conflicts with a final one, or was built in vain: it can never become final."""

    block_hash: Hash32


EngineOutput = Effect | RequestBuild | RequestValidation | BlockNotarized | BlockFinal | BlockAbandoned


class BlockSource(Protocol):
    """Final blocks that an engine no longer holds: the block log in processes, a dict in simulation."""

    def get_final(self, height: int) -> tuple[Block, FinalityProof] | None:
        """Return the final block at ``height`` with its proof, or None when it is not held."""
        ...


class NoBlockSource:
    """A source that holds nothing: catch-up is then served from the engine's recent blocks alone."""

    def get_final(self, height: int) -> tuple[Block, FinalityProof] | None:
        """Return None."""
        del height
        return None


class FinalityEngine(Protocol):
    """What a host may rely on, whichever engine it runs."""

    @property
    def final_block(self) -> Block:
        """The latest final block; genesis at first."""
        ...

    @property
    def notarized_tip(self) -> Block:
        """The valid notarized block of the highest slot, or the final block."""
        ...

    @property
    def slot(self) -> Slot:
        """The slot the engine is in."""
        ...

    def recover(self, record: Record) -> BlockFinal | None:
        """Take over the next record of the chain's log, before ``start``; return what became final by it.

        A snapshot is where the chain goes on from: what became final before it is not held.
        """
        ...

    def start(self, now_ms: int) -> list[EngineOutput]:
        """Begin: timers, validation of recovered blocks, the first proposal."""
        ...

    def on_message(self, sender: NodeId, message: EngineMessage, now_ms: int) -> list[EngineOutput]:
        """Take a peer's message; what is wrong with it is counted and dropped."""
        ...

    def on_timer(self, name: str, now_ms: int) -> list[EngineOutput]:
        """Take a timer whose name starts with ``TIMER_PREFIX``; stale ones do nothing."""
        ...

    def on_signed(self, votes: Sequence[Vote], now_ms: int) -> list[EngineOutput]:
        """Take the votes whose records are on disk."""
        ...

    def on_proposed(self, slot: int, block: Block, now_ms: int) -> list[EngineOutput]:
        """Take the host's answer to ``RequestBuild``, a block without signature that the host holds to be valid."""
        ...

    def on_validated(self, block_hash: Hash32, valid: bool, reason: str, now_ms: int) -> list[EngineOutput]:
        """Take the host's answer to ``RequestValidation``."""
        ...

    def build_header(
        self,
        slot: int,
        parent: Block,
        kind: BlockKind,
        timestamp_ms: int,
        content: ShardContent | BeaconContent,
        body: bytes,
    ) -> tuple[Header, Justification]:
        """Return the header of a block that this engine asked for, and its justification."""
        ...

    def get_block(self, block_hash: Hash32) -> Block | None:
        """Return a block of the unfinalised tree or one of the recent final ones."""
        ...

    def get_final_block(self, height: int) -> Block | None:
        """Return the final block at ``height``, from memory or from the block source."""
        ...

    def final_proof(self, height: int) -> FinalityProof | None:
        """Return the finality proof of the block at ``height``; None for genesis and for unknown heights."""
        ...
