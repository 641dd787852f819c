"""A chain's log, taken into a replica record by record: what is kept meanwhile does not grow with the log.

A log holds records in the order in which they happened, and some are taken later: a beacon block when a final block refers to
it, or at the end; the outbox of a block when that block is final. Blocks are folded in as a running replica does it: by
height, each when it is executed and the beacon block it refers to is followed.
"""

from collections import deque
from collections.abc import Callable

from shards.inbox import BeaconFollowed, BeaconFollower
from shardyard.blocks import Header
from shardyard.consensus.engine import BlockFinal, FinalityEngine
from shardyard.effects import BeaconRecord, BlockRecord, ExecutionRecord, Record, SnapshotRecord
from shardyard.errors import LocalProtocolError
from shardyard.ids import Hash32, Height


class Recovery:
    """One replay of a log: ``take`` its records in order, then ``finish``."""

    def __init__(
        self,
        engine: FinalityEngine,
        follower: BeaconFollower,
        *,
        base: Header | None,
        begin_after: Callable[[Header], None],
        follow: Callable[[BeaconFollowed], None],
        fold: Callable[[Header, tuple[bytes, ...]], None],
    ) -> None:
        """``base`` heads the block of the last snapshot in the log, if there is one: of what is before it only the beacon
        counts. ``begin_after`` is called with it when it is reached; ``follow`` and ``fold`` take a beacon block and a final one.
        """
        self._engine = engine
        self._follower = follower
        self._awaited = base
        """The header of the snapshot until it is reached."""
        self._base_ref_height = 0 if base is None else base.shard_content.beacon_ref.height
        """Up to here the beacon is followed at once: no block refers to less."""
        self._begin_after = begin_after
        self._follow = follow
        self._fold = fold
        self._finals: deque[BlockFinal] = deque()
        self._beacon: deque[BeaconRecord] = deque()
        self._outboxes: dict[Hash32, tuple[bytes, ...]] = {}
        self._heights: dict[Hash32, Height] = {}
        """Of the blocks that came since the last one was folded in."""
        self._orphans: set[Hash32] = set()
        """Outboxes that had no block already when the last one was folded in."""

    def take(self, record: Record) -> None:
        """Take the next record. Raises ``LocalProtocolError`` for a log that no replica wrote."""
        if self._awaited is not None:
            self._take_before(record, self._awaited)
            return
        match record:
            case BeaconRecord(block) if block.header.height <= self._base_ref_height:
                self._follow(self._follower.recover(record))
            case BeaconRecord():
                self._beacon.append(record)
            case BlockRecord(block):
                self._heights[block.hash] = block.header.height
            case ExecutionRecord(block_hash, outbox):
                self._outboxes[block_hash] = outbox
            case SnapshotRecord(block):
                raise LocalProtocolError(
                    f"log: got a snapshot of block {block.header.height} behind what was to be the last one"
                )
            case _:
                pass
        final = self._engine.recover(record)
        if final is not None:
            self._finals.append(final)
        self._advance()

    def _take_before(self, record: Record, base: Header) -> None:
        if isinstance(record, BeaconRecord):
            self._follow(self._follower.recover(record))
            self._follower.forget(base.shard_content.beacon_ref, base.shard_content.inbox_position)
        elif isinstance(record, SnapshotRecord):
            content = record.block.header.shard_content
            self._follower.skip_to(content.beacon_ref, content.inbox_position)
            if record.block.hash == base.hash:
                self._engine.recover(record)
                self._begin_after(base)
                self._awaited = None

    def _advance(self) -> None:
        while self._finals:
            header = self._finals[0].block.header
            ref, outbox = header.shard_content.beacon_ref, self._outboxes.get(header.hash)
            if ref.height > self._follower.head.ref.height and self._beacon:
                self._follow(self._follower.recover(self._beacon.popleft()))
            elif outbox is not None and self._follower.get_view(ref.height) is not None:
                self._finals.popleft()
                self._fold(header, outbox)
                self._forget(header.height)
            else:
                return

    def _forget(self, height: int) -> None:
        """Forget blocks up to ``height``, which is final: those that lost against it as well.

        An own block's outbox is written just before the block, which is not written at all when its slot is over by then.
        """
        for block_hash in [key for key, other in self._heights.items() if other <= height]:
            del self._heights[block_hash]
            self._outboxes.pop(block_hash, None)
        orphans = self._outboxes.keys() - self._heights.keys()
        for block_hash in orphans & self._orphans:
            del self._outboxes[block_hash]
        self._orphans = orphans

    def finish(self) -> deque[BlockFinal]:
        """Follow the rest of the beacon; return the final blocks that are to be executed again, in order of height."""
        while self._beacon:
            self._follow(self._follower.recover(self._beacon.popleft()))
        return self._finals
