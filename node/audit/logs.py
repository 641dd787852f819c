"""Reads a node's block log without writing to it, and keeps only where things stand.

A log belongs to its process; the auditor opens the files for reading, so it may look at a network that runs. An
unfinished end is a write in progress, or the last one before a crash: nobody was told that it was durable. Damage anywhere
else is a finding, and what stands before it is audited all the same. So is what a node had before it came back by a snapshot.
"""

import os
from array import array
from collections.abc import Iterator
from enum import IntEnum
from pathlib import Path
from typing import Final

from node.audit.findings import Findings, Promise
from node.audit.stretches import HASH_BYTES, Place, Stretch, join_place, split_place
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
from shardyard.blocks import Block, FinalityProof, ShardContent
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


class Part(IntEnum):
    """What a log may hold of a block, found by its hash."""

    BLOCK = 0
    STATE = 1
    ACCESS_LIST = 2
    OUTBOX = 3


NOWHERE: Final = (1 << 64) - 1


class BlockPlaces:
    """Where the parts of each block stand, by its hash; of one that was written twice the newer counts."""

    def __init__(self) -> None:
        self._rows: dict[Hash32, int] = {}
        self._places = array("Q")

    def note(self, block_hash: Hash32, part: Part, place: Place) -> None:
        """Note that ``part`` of a block stands at ``place``."""
        row = self._rows.setdefault(block_hash, len(self._rows))
        if row * len(Part) == len(self._places):
            self._places.extend([NOWHERE] * len(Part))
        self._places[row * len(Part) + part] = place

    def find(self, block_hash: Hash32, part: Part) -> Place | None:
        """Return where ``part`` of a block stands, None when the log lacks it."""
        row = self._rows.get(block_hash)
        place = NOWHERE if row is None else self._places[row * len(Part) + part]
        return None if place == NOWHERE else place


class Span(Stretch):
    """Final blocks that a log holds in one piece: from genesis, or from the block of a snapshot on."""

    def __init__(self, owner: str, base: int = 0, snapshot: Place | None = None) -> None:
        super().__init__(owner, base + (snapshot is None))
        self.base = base
        """Height of the block whose state came as a snapshot, the first of the span; 0 for a span that begins at genesis."""
        self.snapshot = snapshot
        """Where the record of the snapshot stands."""

    def has_executed(self, height: int) -> bool:
        """Tell whether the node executed the block at ``height``: all of the span but a snapshot's own."""
        return self.base < height <= self.last


class ChainLog:
    """One node's log of its chain. ``close`` gives the files back."""

    def __init__(self, path: Path, node: NodeId, chain: ShardId, owner: bytes, findings: Findings) -> None:
        self.node = node
        self.chain = chain
        self.followed = Stretch(f"{node} (as it followed the beacon)", 1)
        """Of a shard: the final blocks of the beacon that it took its messages from."""
        self.records = 0
        self.unfinished_bytes = 0
        self._spans = [Span(node)]
        self._findings = findings
        self._descriptors: list[int] = []
        self._positions: list[tuple[Place, int]] = []
        """Of each snapshot: where its record stands, and the inbox position of its state."""
        self._certificates = array("Q")
        self._chunks: dict[Hash32, Place] = {}
        self._parts = BlockPlaces()
        self._submissions: dict[Hash32, Place] = {}
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
    def spans(self) -> list[Span]:
        """What the log holds of its chain, in the order in which it was written; a snapshot begins a new span."""
        return [span for span in self._spans if len(span.hashes)]

    @property
    def height(self) -> int:
        """Height of the last final block."""
        return max((span.last for span in self.spans), default=0)

    # --- reading by key ---

    def get_block(self, block_hash: Hash32) -> Block | None:
        """Return a block in the log."""
        record = self._read(self._parts.find(block_hash, Part.BLOCK))
        return record.block if isinstance(record, BlockRecord) else None

    def find_final_hash(self, height: int) -> Hash32 | None:
        """Return the hash of the final block at ``height``; of a snapshot's block too, and None for what is not here."""
        found = (span.find_hash(height) for span in reversed(self.spans))
        return next((block_hash for block_hash in found if block_hash is not None), None)

    def iterate_certificates(self) -> Iterator[Certificate]:
        """Yield the certificates that were written down by themselves."""
        for place in self._certificates:
            record = self._read(place)
            assert isinstance(record, CertificateRecord), "the place was taken from a certificate's record"
            yield record.certificate

    def iterate_finals(self, span: Span) -> Iterator[tuple[Block, FinalityProof]]:
        """Yield the final blocks of ``span`` above its base; stops at the first whose bytes are missing."""
        for height in range(span.base + 1, span.last + 1):
            record = self._read(span.find_place(height))
            assert isinstance(record, FinalRecord), "the place was taken from a final record"
            block = self.get_block(record.block_hash)
            if block is None:
                self._findings.add(
                    Promise.CHAINS, f"{self.node} block {height}", "the final block is not in the log"
                )
                return
            yield block, record.proof

    def get_snapshot(self, span: Span) -> SnapshotRecord | None:
        """Return what ``span`` begins with when that is not genesis."""
        record = self._read(span.snapshot)
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
        record = self._read(self._parts.find(block_hash, Part.OUTBOX))
        return record.outbox if isinstance(record, ExecutionRecord) else None

    def get_followed(self, height: int) -> BeaconRecord | None:
        """Return the beacon block that a shard followed at ``height``."""
        record = self._read(self.followed.find_place(height))
        return record if isinstance(record, BeaconRecord) else None

    def get_position_at(self, height: int) -> int:
        """Return the inbox position of the snapshot that the node had when it followed the beacon block at ``height``.

        What is below was consumed before it came, and is not in the record. 0 when there was no snapshot yet.
        """
        followed = self.followed.find_place(height)
        if followed is None:
            return 0
        return max((position for place, position in self._positions if place < followed), default=0)

    def get_state(self, block_hash: Hash32) -> StateRecord | None:
        """Return what the node wrote down of executing a block."""
        place = self._parts.find(block_hash, Part.STATE)
        if place is None:
            return None
        return decode(self._read_entry(place).payload, StateRecord, max_bytes=MAX_RECORD_BYTES)

    def get_access_list(self, block_hash: Hash32) -> bytes | None:
        """Return the access list that the node keeps of a block, for those who ask for it."""
        place = self._parts.find(block_hash, Part.ACCESS_LIST)
        return None if place is None else self._read_entry(place).payload

    def _read(self, place: Place | None) -> object:
        return None if place is None else self._read_entry(place).decode_record()

    def _read_entry(self, place: Place) -> LogEntry:
        number, offset = split_place(place)
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
        place = join_place(number, frame.offset)
        try:
            if frame.kind == EntryKind.NODE:
                state = decode(frame.payload, StateRecord, max_bytes=MAX_RECORD_BYTES)
                self._parts.note(state.block_hash, Part.STATE, place)
                return
            if frame.kind == EntryKind.ACCESS_LIST:
                self._parts.note(decode_access_list_label(frame.label), Part.ACCESS_LIST, place)
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
                self._parts.note(block.hash, Part.BLOCK, place)
            case CertificateRecord():
                self._certificates.append(place)
            case FinalRecord():
                self._add_final(record, place, where)
            case SnapshotRecord(block):
                self._add_snapshot(block, place, where)
            case SubmissionRecord(submission):
                self._submissions[submission.crosslink.hash] = place
            case BeaconRecord(block):
                self._add_followed(block, place, where)
            case ExecutionRecord(block_hash):
                self._parts.note(block_hash, Part.OUTBOX, place)

    def _add_final(self, record: FinalRecord, place: Place, where: str) -> None:
        span = self._spans[-1]
        if len(record.block_hash) != HASH_BYTES:
            self._findings.add(
                Promise.LOGS,
                where,
                f"got a final block's hash of {len(record.block_hash)} bytes, expected {HASH_BYTES}",
            )
        elif record.height == span.last + 1:
            span.add(record.block_hash, place)
        elif record.height > span.last:
            self._findings.add(Promise.CHAINS, where, f"got final height {record.height} after {span.last}")
        elif (found := self.find_final_hash(record.height)) is None:
            self._findings.add(
                Promise.CHAINS, where, f"got final height {record.height} after a snapshot of {span.base}"
            )
        elif found != record.block_hash:  # the same one is repeated after a restart
            self._findings.add(Promise.FINALITY, where, f"two final blocks at height {record.height}")

    def _add_snapshot(self, block: Block, place: Place, where: str) -> None:
        content = block.header.content
        if not isinstance(content, ShardContent):
            self._findings.add(Promise.LOGS, where, "got the snapshot of a beacon block, expected a shard's")
            return
        self._spans.append(Span(self.node, block.header.height, place))
        self._spans[-1].add(block.hash, place)
        self._positions.append((place, content.inbox_position))

    def _add_followed(self, block: Block, place: Place, where: str) -> None:
        height, last = block.header.height, self.followed.last
        if height == last + 1:
            self.followed.add(block.hash, place)
        elif height > last:
            self._findings.add(
                Promise.CHAINS,
                where,
                f"got the beacon's block {height}, expected {last + 1}: it followed all",
            )
        elif self.followed.find_hash(height) != block.hash:
            self._findings.add(
                Promise.FINALITY, where, f"it followed two blocks of the beacon at height {height}"
            )
