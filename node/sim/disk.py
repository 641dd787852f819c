"""A disk that may lose what was not synced: after a crash a prefix of it is left, the last record possibly torn.

Records are kept as their encoded bytes, and read back by the same decoder as in processes. What a torn write leaves of a
record is dropped, as the block log's checksums make sure it is.
"""

import random
from typing import Final

from shardyard.blocks import Block, FinalityProof
from shardyard.codec import decode, encode
from shardyard.crosslinks import CrosslinkSubmission
from shardyard.effects import BlockRecord, FinalRecord, Record, SubmissionRecord
from shardyard.ids import Hash32

MAX_RECORD_BYTES: Final = 64 * 1024 * 1024


class StateDiff:
    """What executing a block changed, written ahead of the block's own records."""

    __slots__ = ("block_hash", "diff", "height")

    def __init__(self, block_hash: Hash32, height: int, diff: bytes) -> None:
        self.block_hash = block_hash
        self.height = height
        self.diff = diff


class SimDisk:
    """The block log of one node: a source of old final blocks and, on the beacon, of old submissions."""

    def __init__(self) -> None:
        self._synced: list[bytes | StateDiff] = []
        self._pending: list[bytes | StateDiff] = []
        self._blocks: dict[Hash32, Block] = {}
        self._finals: dict[int, tuple[Block, FinalityProof]] = {}
        self._submissions: dict[Hash32, CrosslinkSubmission] = {}

    def append(self, record: Record) -> None:
        """Write a record without waiting for the disk."""
        self._pending.append(encode(record))
        self._index(record)

    def append_state(self, state: StateDiff) -> None:
        """Write the state that a block leaves."""
        self._pending.append(state)

    def sync(self) -> None:
        """Everything written is safe now."""
        self._synced += self._pending
        self._pending.clear()

    def crash(self, chance: random.Random) -> int:
        """Lose power: keep a prefix of what was not synced; return how many records are lost."""
        kept = chance.randint(0, len(self._pending))
        lost = len(self._pending) - kept
        self._synced += self._pending[:kept]
        self._pending.clear()
        return lost

    def read(self) -> tuple[list[Record], dict[Hash32, StateDiff]]:
        """Read the log from its beginning, as after a restart."""
        self._blocks, self._finals, self._submissions = {}, {}, {}
        records: list[Record] = []
        states: dict[Hash32, StateDiff] = {}
        for item in self._synced:
            if isinstance(item, StateDiff):
                states[item.block_hash] = item
            else:
                record: Record = decode(item, Record, max_bytes=MAX_RECORD_BYTES)  # type: ignore[arg-type]  # a union
                records.append(record)
                self._index(record)
        return records, states

    def get_final(self, height: int) -> tuple[Block, FinalityProof] | None:
        """Return the final block at ``height`` with its proof."""
        return self._finals.get(height)

    def get_submission(self, crosslink: Hash32) -> CrosslinkSubmission | None:
        """Return the submission behind a crosslink."""
        return self._submissions.get(crosslink)

    def _index(self, record: Record) -> None:
        if isinstance(record, BlockRecord):
            self._blocks[record.block.hash] = record.block
        elif isinstance(record, FinalRecord):
            self._finals[record.height] = (self._blocks.pop(record.block_hash), record.proof)
        elif isinstance(record, SubmissionRecord):
            self._submissions[record.submission.crosslink.hash] = record.submission
