"""Reading the index again from a block log: at every start, and from the beginning when the index was lost.

Records come in the order of the log. Deliveries are not stored with a block: they are the stretch of the shard's inbox that
its header consumed (X5), and the inbox is what the followed beacon blocks brought, in order. A block is added when it is
final and its results are known, whichever comes last. What the index has already is compared by hash and kept. A log with
snapshots is read from its beginning, for the inbox; the index begins at the last of them.
"""

from collections import deque

import msgspec

from node.index.records import build_indexed_block
from node.index.store import ChainIndex
from shardyard.blocks import Block, ShardBody
from shardyard.codec import encode
from shardyard.effects import BeaconRecord, BlockRecord, ExecutionRecord, FinalRecord, Record, SnapshotRecord
from shardyard.ids import Hash32, Height


class IndexRebuilder:
    """Feeds an index from log records; ``finish`` when the log has been read."""

    def __init__(self, index: ChainIndex, genesis_block: Block, *, base: int = 0) -> None:
        """``base`` is the height of the log's last snapshot; 0 when it has none."""
        self._index = index
        self._base = base
        # An index that begins at a snapshot is of another log than one that has none: an older one was put in its place.
        if index.get_hash(0) != genesis_block.hash or (base == 0 and index.first_height > 1):
            index.clear()
            index.append(build_indexed_block(genesis_block, b"", (), ()))
        self._genesis_block = genesis_block
        self._blocks: dict[Hash32, Block] = {}
        self._outcomes: dict[Hash32, tuple[Height, bytes]] = {}
        """Height and results of blocks that were executed, final or not."""
        self._outboxes: dict[Hash32, tuple[bytes, ...]] = {}
        self._finals: deque[Hash32] = deque()
        """Final blocks that wait for their results, in order of height."""
        self._inbox: deque[bytes] = deque()
        self._consumed = 0
        self._height = 0

    def take(self, record: Record) -> None:
        """Read one record of the machine."""
        match record:
            case BlockRecord(block):
                self._blocks[block.hash] = block
            case ExecutionRecord(block_hash, outbox) if (
                block_hash in self._outcomes or block_hash in self._blocks
            ):
                self._outboxes[block_hash] = outbox
            case SnapshotRecord(block):
                self._begin_at(block)
            case FinalRecord(_, block_hash, _):
                self._finals.append(block_hash)
            case BeaconRecord(_, _, bundles):
                for bundle in bundles:
                    self._inbox.extend(bundle)
            case _:
                return
        self._settle()

    def _begin_at(self, block: Block) -> None:
        """Go on from a snapshot; its own block is known by its header, for what it did was not executed here."""
        position = block.header.shard_content.inbox_position
        for _ in range(min(position - self._consumed, len(self._inbox))):
            self._inbox.popleft()
        self._consumed, self._height = position, block.header.height
        self._blocks.clear()
        self._outcomes.clear()
        self._outboxes.clear()
        self._finals.clear()
        if block.header.height != self._base:
            return  # a later snapshot took its place
        if self._index.get_hash(block.header.height) != block.hash or self._index.first_height == 1:
            empty = msgspec.structs.replace(block, body=encode(ShardBody(b"", ())))
            genesis = build_indexed_block(self._genesis_block, b"", (), ())
            self._index.begin_at(build_indexed_block(empty, b"", (), ()), genesis)

    def take_outcomes(self, block_hash: Hash32, height: Height, outcomes: bytes) -> None:
        """Read the results of executing the block at ``height``."""
        if height > self._height:
            self._outcomes[block_hash] = height, outcomes
            self._settle()

    def _settle(self) -> None:
        while self._finals:
            block_hash = self._finals[0]
            if block_hash not in self._blocks or block_hash not in self._outcomes:
                return
            if block_hash not in self._outboxes:
                return
            self._finals.popleft()
            self._add(self._blocks.pop(block_hash))

    def _add(self, block: Block) -> None:
        header = block.header
        position = header.shard_content.inbox_position
        deliveries = tuple(self._inbox.popleft() for _ in range(position - self._consumed))
        self._consumed = position
        self._height = header.height
        (_, outcomes), outbox = self._outcomes.pop(block.hash), self._outboxes.pop(block.hash)
        # What conflicts with a final block is of no use any more; of a block that was built in vain there are only results.
        for loser in [key for key, other in self._blocks.items() if other.header.height <= header.height]:
            del self._blocks[loser]
        for loser in [key for key, (height, _) in self._outcomes.items() if height <= header.height]:
            del self._outcomes[loser]
            self._outboxes.pop(loser, None)
        if header.height <= self._base:
            return
        known = self._index.get_hash(header.height)
        if known == block.hash:
            return
        if known is not None:
            self._index.rollback_to(header.height - 1)
        self._index.append(build_indexed_block(block, outcomes, deliveries, outbox))

    def finish(self) -> None:
        """Drop what the index has beyond the log (its tail was lost)."""
        if self._index.height > self._height:
            self._index.rollback_to(self._height)
