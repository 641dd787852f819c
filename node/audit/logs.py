"""Reads a node's block log without writing to it, and keeps only where things stand.

A log belongs to its process; the auditor opens the files for reading, so it may look at a network that runs. An
unfinished end is a write in progress, or the last one before a crash: nobody was told that it was durable. Damage anywhere
else is a finding, and what stands before it is audited all the same.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import msgspec

from node.audit.findings import Findings, Promise
from node.executor import StateRecord
from node.storage.frames import CorruptFileError, Frame, Tail, read_frame, scan, verify_header
from node.storage.log import (
    LOG_FILE_KIND,
    MAX_RECORD_BYTES,
    EntryKind,
    LogEntry,
    decode_access_list_label,
)
from shards.snapshots import compute_chunk_hash
from shardyard.blocks import Block, FinalityProof
from shardyard.codec import decode
from shardyard.consensus.votes import Certificate
from shardyard.crosslinks import CrosslinkSubmission
from shardyard.effects import (
    BeaconRecord,
    BlockRecord,
    CertificateRecord,
    ExecutionRecord,
    FinalRecord,
    SnapshotRecord,
    SubmissionRecord,
)
from shardyard.errors import DecodeError
from shardyard.ids import Hash32, NodeId, ShardId

Place = tuple[int, int]
"""Segment and offset."""


class FinalPlace(msgspec.Struct, frozen=True):
    """A final block by its log: its hash, and where its record with the proof stands."""

    block_hash: Hash32
    place: Place


class ChainLog:
    """One node's log of its chain. ``close`` gives the files back."""

    def __init__(self, path: Path, node: NodeId, chain: ShardId, owner: bytes, findings: Findings) -> None:
        self.node = node
        self.chain = chain
        self.base = 0
        """Height of the block whose state came as a snapshot; 0 for a log that begins at genesis."""
        self.finals: list[FinalPlace] = []
        """By height, from the one above ``base`` on."""
        self.certificates: list[Certificate] = []
        self.records = 0
        self.unfinished_bytes = 0
        self._findings = findings
        self._descriptors: list[int] = []
        self._snapshot: Place | None = None
        self._positions: list[tuple[Place, int]] = []
        """Of each snapshot: where its record stands, and the inbox position of its state."""
        self._chunks: dict[Hash32, Place] = {}
        self._blocks: dict[Hash32, Place] = {}
        self._states: dict[Hash32, Place] = {}
        self._access_lists: dict[Hash32, Place] = {}
        self._outboxes: dict[Hash32, Place] = {}
        self._submissions: dict[Hash32, Place] = {}
        self._followed: dict[int, Place] = {}
        names = sorted(path.glob("*.log"))
        if not names:
            findings.add(Promise.LOGS, node, f"there is no block log at {path}")
        for number, name in enumerate(names):
            if not self._read_segment(number, name, owner, is_last=number == len(names) - 1):
                break

    def close(self) -> None:
        """Close the files."""
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors.clear()

    @property
    def height(self) -> int:
        """Height of the last final block."""
        return self.base + len(self.finals)

    # --- reading by key ---

    def get_block(self, block_hash: Hash32) -> Block | None:
        """Return a block in the log."""
        record = self._read(self._blocks.get(block_hash))
        return record.block if isinstance(record, BlockRecord) else None

    def get_final(self, height: int) -> tuple[Block | None, FinalityProof]:
        """Return the final block at ``height``, None when the log lacks its bytes, and its proof."""
        final = self.finals[height - self.base - 1]
        record = self._read(final.place)
        assert isinstance(record, FinalRecord), "the place was taken from a final record"
        return self.get_block(final.block_hash), record.proof

    def find_final_hash(self, height: int) -> Hash32 | None:
        """Return the hash of the final block at ``height``; of a snapshot's block too, and None for what is not here."""
        if self.base < height <= self.height:
            return self.finals[height - self.base - 1].block_hash
        snapshot = self.get_snapshot()
        return snapshot.block.hash if snapshot is not None and height == self.base else None

    def get_snapshot(self) -> SnapshotRecord | None:
        """Return what the log begins with when that is not genesis."""
        record = self._read(self._snapshot)
        return record if isinstance(record, SnapshotRecord) else None

    def get_chunk(self, chunk_hash: Hash32) -> bytes | None:
        """Return a chunk of the snapshot."""
        place = self._chunks.get(chunk_hash)
        return None if place is None else self._read_entry(place).payload

    def get_submission(self, crosslink: Hash32) -> CrosslinkSubmission | None:
        """Return the bodies of a crosslink."""
        record = self._read(self._submissions.get(crosslink))
        return record.submission if isinstance(record, SubmissionRecord) else None

    def get_outbox(self, block_hash: Hash32) -> tuple[bytes, ...] | None:
        """Return what the machine noted that a block emitted."""
        record = self._read(self._outboxes.get(block_hash))
        return record.outbox if isinstance(record, ExecutionRecord) else None

    def get_followed(self, height: int) -> BeaconRecord | None:
        """Return the beacon block that a shard followed at ``height``."""
        record = self._read(self._followed.get(height))
        return record if isinstance(record, BeaconRecord) else None

    def get_position_at(self, height: int) -> int:
        """Return the inbox position of the snapshot that the node had when it followed the beacon block at ``height``.

        What is below was consumed before it came, and is not in the record. 0 when there was no snapshot yet.
        """
        followed = self._followed.get(height)
        if followed is None:
            return 0
        return max((position for place, position in self._positions if place < followed), default=0)

    def get_state(self, block_hash: Hash32) -> StateRecord | None:
        """Return what the node wrote down of executing a block."""
        place = self._states.get(block_hash)
        if place is None:
            return None
        return decode(self._read_entry(place).payload, StateRecord, max_bytes=MAX_RECORD_BYTES)

    def get_access_list(self, block_hash: Hash32) -> bytes | None:
        """Return the access list that the node keeps of a block, for those who ask for it."""
        place = self._access_lists.get(block_hash)
        return None if place is None else self._read_entry(place).payload

    def _read(self, place: Place | None) -> object:
        return None if place is None else self._read_entry(place).decode_record()

    def _read_entry(self, place: Place) -> LogEntry:
        number, offset = place
        frame = read_frame(self._descriptors[number], number, offset)
        if frame is None:
            raise CorruptFileError(
                f"{self.node}: segment {number} changed at offset {offset} while it was audited"
            )
        return LogEntry(EntryKind(frame.kind), frame.payload)

    # --- the first pass ---

    def _read_segment(self, number: int, name: Path, owner: bytes, *, is_last: bool) -> bool:
        descriptor = os.open(name, os.O_RDONLY | os.O_CLOEXEC)
        self._descriptors.append(descriptor)
        where = f"{self.node} {name.name}"
        try:
            if not verify_header(descriptor, LOG_FILE_KIND, owner, number, str(name)):
                if not is_last or os.fstat(descriptor).st_size:
                    self._findings.add(Promise.LOGS, where, "the header is missing")
                return False
        except CorruptFileError as error:
            self._findings.add(Promise.LOGS, where, str(error).partition("; try:")[0])
            return False
        for item in scan(descriptor, number):
            if isinstance(item, Frame):
                self._index(item, number, where)
            elif item.tail is Tail.TORN and is_last:
                self.unfinished_bytes = os.fstat(descriptor).st_size - item.offset
            elif item.tail is not Tail.CLEAN:
                self._findings.add(
                    Promise.LOGS, where, f"damaged at offset {item.offset} ({item.tail.name.lower()})"
                )
                return False
        return True

    def _index(self, frame: Frame, number: int, where: str) -> None:
        self.records += 1
        self._findings.count(Promise.LOGS)
        place = (number, frame.offset)
        try:
            if frame.kind == EntryKind.NODE:
                state = decode(frame.payload, StateRecord, max_bytes=MAX_RECORD_BYTES)
                self._states[state.block_hash] = place
                return
            if frame.kind == EntryKind.ACCESS_LIST:
                self._access_lists[decode_access_list_label(frame.label)] = place
                return
            if frame.kind == EntryKind.CHUNK:
                self._chunks[compute_chunk_hash(frame.payload)] = place
                return
            record = LogEntry(EntryKind(frame.kind), frame.payload).decode_record()
        except (DecodeError, ValueError) as error:
            self._findings.add(Promise.LOGS, f"{where} offset {frame.offset}", f"no record of ours: {error}")
            return
        match record:
            case BlockRecord(block):
                self._blocks[block.hash] = place
            case CertificateRecord(certificate):
                self.certificates.append(certificate)
            case FinalRecord():
                self._add_final(record, place, where)
            case SnapshotRecord(block):
                self.base, self._snapshot = block.header.height, place
                self._positions.append((place, block.header.shard_content.inbox_position))
                self.finals.clear()
            case SubmissionRecord(submission):
                self._submissions[submission.crosslink.hash] = place
            case BeaconRecord(block):
                self._followed[block.header.height] = place
            case ExecutionRecord(block_hash):
                self._outboxes[block_hash] = place

    def _add_final(self, record: FinalRecord, place: Place, where: str) -> None:
        if record.height <= self.height:
            if self.find_final_hash(record.height) != record.block_hash:
                self._findings.add(Promise.FINALITY, where, f"two final blocks at height {record.height}")
            return  # repeated after a restart
        if record.height != self.height + 1:
            self._findings.add(Promise.CHAINS, where, f"got final height {record.height} after {self.height}")
            return
        self.finals.append(FinalPlace(record.block_hash, place))


def iterate_chain(log: ChainLog, findings: Findings) -> Iterator[tuple[Block, FinalityProof]]:
    """Yield the final blocks of ``log`` in order of height; stops at the first whose bytes are missing."""
    for height in range(log.base + 1, log.height + 1):
        block, proof = log.get_final(height)
        if block is None:
            findings.add(Promise.CHAINS, f"{log.node} block {height}", "the final block is not in the log")
            return
        yield block, proof
