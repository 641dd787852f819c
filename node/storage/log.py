"""The block log: everything a chain's process must remember, in the order in which it happened.

Records are appended to segment files in checksummed frames (``frames``). ``append`` only queues; ``sync`` writes what is
queued and returns when it is on disk, and callers that come together share one sync. A write or sync that fails is
never tried again: what a disk holds after it is unknown (the kernel may have dropped the pages), so the log refuses
everything from then on and its process must stop.

On opening, an unfinished end is cut off: nobody was told it was durable. A fault in front of something that was durable
is refused. An index from height to the places of a final block and its proof makes the log a ``BlockSource``; access
lists of the newest executed blocks are found by height and hash.
"""

import asyncio
import os
from array import array
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from enum import IntEnum
from pathlib import Path
from typing import Final, Self, cast

import msgspec

from node.storage.data_dir import LowDiskError, verify_space
from node.storage.frames import (
    HEADER_BYTES,
    CorruptFileError,
    Frame,
    ScanEnd,
    Tail,
    compute_frame_bytes,
    encode_frame,
    encode_header,
    read_frame,
    read_frames,
    scan,
    sync_directory,
    verify_header,
    write_all,
)
from shardyard.blocks import Block, FinalityProof
from shardyard.codec import decode, encode
from shardyard.crosslinks import CrosslinkSubmission
from shardyard.effects import BlockRecord, FinalRecord, Record, SnapshotRecord, SubmissionRecord
from shardyard.errors import DecodeError, ShardyardError
from shardyard.ids import Hash32

LOG_FILE_KIND: Final = 1
SEGMENT_BYTES: Final = 64 * 1024 * 1024
MAX_RECORD_BYTES: Final = 96 * 1024 * 1024
SPACE_CHECK_BYTES: Final = 8 * 1024 * 1024
"""Free space is looked at once in this many bytes written."""
MAX_ACCESS_LISTS: Final = 1024
"""Executed blocks, the newest, whose access lists are found; older ones stay in the file."""
_OFFSET_BITS: Final = 40
_LABEL_BYTES: Final = 40
_BLOCK_LABEL: Final = b"\x00"
_FINAL_LABEL: Final = b"\x01"
_SUBMISSION_LABEL: Final = b"\x02"
_ACCESS_LIST_LABEL: Final = b"\x03"
_CHUNK_LABEL: Final = b"\x04"
_SNAPSHOT_LABEL: Final = b"\x05"
_RECORD: Final = cast("type[Record]", Record)  # a union is no type to mypy


class EntryKind(IntEnum):
    """Whose record an entry is."""

    KERNEL = 0
    NODE = 1
    ACCESS_LIST = 2
    """The bytes of a block's access list; the label has its height and hash."""
    CHUNK = 3
    """A chunk of a snapshot of the state; the label has its hash."""


class LogEntry(msgspec.Struct, frozen=True):
    """One entry as it was appended."""

    kind: EntryKind
    payload: bytes
    label: bytes = b""

    @property
    def is_body(self) -> bool:
        """Whether this is a block, or the bodies behind a crosslink: most of a log's bytes."""
        return self.label[:1] in {_BLOCK_LABEL, _SUBMISSION_LABEL}

    def decode_record(self) -> Record:
        """Return the kernel record in here; raises ``DecodeError``."""
        return decode(self.payload, _RECORD, max_bytes=MAX_RECORD_BYTES)


def _build_entry(frame: Frame) -> LogEntry:
    return LogEntry(EntryKind(frame.kind), frame.payload, frame.label)


class LogFailedError(ShardyardError):
    """A write or a sync failed; the process must stop."""


class _Queued(msgspec.Struct, frozen=True):
    """An entry on its way to the disk, with its place there."""

    number: int
    offset: int
    kind: EntryKind
    payload: bytes
    label: bytes
    synced: int

    def encode(self) -> bytes:
        """Return its frame."""
        return encode_frame(
            self.offset, self.number, self.kind, self.payload, label=self.label, synced=self.synced
        )


class BlockLog:
    """The durable log of one chain. ``append`` and reads belong to one thread; ``sync`` does its work in another."""

    def __init__(
        self,
        path: Path,
        owner: bytes,
        *,
        segment_bytes: int = SEGMENT_BYTES,
        on_entry: Callable[[LogEntry], object] | None = None,
    ) -> None:
        """Open the log in directory ``path``, creating it when it is missing; ``owner`` is the hash of the genesis.

        Opening reads all of it; ``on_entry`` is called with every entry meanwhile, in order, as ``iterate`` would yield them.

        Raises ``CorruptFileError`` when something durable is damaged or missing, ``OSError`` when the disk fails.
        """
        self._path = path
        self._owner = owner
        self._segment_bytes = segment_bytes
        self._descriptors: list[int] = []
        self._queue: list[_Queued] = []
        self._failure: BaseException | None = None
        self._syncing = asyncio.Lock()
        self._unchecked_bytes = SPACE_CHECK_BYTES
        self._index = _FinalIndex()
        self._submissions: dict[bytes, int] = {}
        """Where the bodies of each crosslink stand."""
        self._access_lists: dict[bytes, int] = {}
        """Where the access lists of the newest blocks stand, by label."""
        self._snapshot: int | None = None
        """Where the last snapshot stands."""
        self._chunks: dict[bytes, int] = {}
        """Where chunks of snapshots stand, by hash."""
        self._end = HEADER_BYTES
        """Offset in the last segment where the next frame will stand, queued frames included."""
        self._number = 0
        """Segment in which the next frame will stand."""
        self.truncated_bytes = 0
        """What was cut off the end when the log was opened."""
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            self._open_segments(on_entry)
        except BaseException:
            self._close_descriptors()
            raise
        self._synced = self._position
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="block-log")

    # --- writing ---

    def append(self, kind: EntryKind, payload: bytes, *, label: bytes = b"") -> None:
        """Queue one entry; it is durable after the next ``sync``. Raises ``LogFailedError``."""
        self._verify_alive()
        if self._end >= self._segment_bytes:
            self._number += 1
            self._end = HEADER_BYTES
        position = self._position
        size = compute_frame_bytes(payload, label)
        self._queue.append(_Queued(self._number, self._end, kind, payload, label, self._synced))
        self._end += size
        self._add_to_index(label, position)

    def append_records(self, records: Sequence[Record]) -> None:
        """Queue kernel records."""
        for record in records:
            self.append(EntryKind.KERNEL, encode(record), label=compute_label(record))

    def append_node(self, record: msgspec.Struct) -> None:
        """Queue a record of the shell's own, such as the state a block led to."""
        self.append(EntryKind.NODE, encode(record))

    def append_access_list(self, height: int, block_hash: Hash32, access_list: bytes) -> None:
        """Queue the access list of a block that was executed."""
        self.append(EntryKind.ACCESS_LIST, access_list, label=encode_access_list_label(height, block_hash))

    def append_chunk(self, chunk_hash: Hash32, chunk: bytes) -> None:
        """Queue a chunk of a snapshot; a ``SnapshotRecord`` that names them all makes them the state."""
        if chunk_hash not in self._chunks:
            self.append(EntryKind.CHUNK, chunk, label=_CHUNK_LABEL + chunk_hash)

    async def sync(self) -> None:
        """Return when everything appended so far is on disk. Raises ``LogFailedError``."""
        target = self._position
        async with self._syncing:
            self._verify_alive()
            if self._synced >= target:
                return  # somebody else's sync took it along
            queue, self._queue = self._queue, []
            reached = self._position
            loop = asyncio.get_running_loop()
            # A cancelled caller must not leave the log in doubt: the write is awaited whatever happens.
            work = loop.run_in_executor(self._writer, self._write, queue)
            try:
                await asyncio.shield(work)
            except asyncio.CancelledError:
                await asyncio.wait([work])
                self._settle(work.exception(), reached)
                raise
            except (OSError, LowDiskError) as error:
                self._settle(error, reached)
            else:
                self._synced = reached
        self._verify_alive()

    def sync_now(self) -> None:
        """``sync`` for those without an event loop."""
        self._verify_alive()
        queue, self._queue = self._queue, []
        try:
            self._write(queue)
        except (OSError, LowDiskError) as error:
            self._settle(error, self._position)
            self._verify_alive()
        self._synced = self._position

    def _settle(self, error: BaseException | None, reached: int) -> None:
        if error is None:
            self._synced = reached
        else:
            self._failure = error

    def _write(self, queue: Sequence["_Queued"]) -> None:
        """Write and sync; runs in the writer's thread, and so does what the checksums of large blocks cost."""
        frames = [(entry.number, entry.encode()) for entry in queue]
        size = sum(len(frame) for _, frame in frames)
        self._unchecked_bytes += size
        if self._unchecked_bytes >= SPACE_CHECK_BYTES:
            verify_space(self._path)
            self._unchecked_bytes = 0
        start = 0
        for index, (number, _) in enumerate(frames):
            if number >= len(self._descriptors):
                self._write_frames(frames[start:index])
                self._create_segment(number)
                start = index
        self._write_frames(frames[start:])

    def _write_frames(self, frames: Sequence[tuple[int, bytes]]) -> None:
        if frames:
            descriptor = self._descriptors[-1]
            write_all(descriptor, b"".join(frame for _, frame in frames))
            os.fdatasync(descriptor)

    def _create_segment(self, number: int) -> None:
        descriptor = os.open(
            self._get_segment_path(number),
            os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_TRUNC | os.O_CLOEXEC,
            0o600,
        )
        self._descriptors.append(descriptor)
        write_all(descriptor, encode_header(LOG_FILE_KIND, self._owner, number))
        os.fsync(descriptor)
        sync_directory(self._path)

    def _verify_alive(self) -> None:
        if self._failure is not None:
            raise LogFailedError(
                f"{self._path}: {self._failure}; what the disk holds is unknown now, so this process must stop"
            ) from self._failure

    # --- reading ---

    def iterate(self) -> Iterator[LogEntry]:
        """Yield the entries that are on disk, in order. Raises ``CorruptFileError`` when a disk has rotted since."""
        for number, descriptor in enumerate(self._descriptors):
            end, offset = os.fstat(descriptor).st_size, HEADER_BYTES
            for frame in read_frames(descriptor, number):
                yield _build_entry(frame)
                offset = frame.end
            if offset < end:
                raise self._build_corruption(number, offset)

    def get_final(self, height: int) -> tuple[Block, FinalityProof] | None:
        """Return the final block at ``height`` with its proof, or None when the log does not hold it."""
        places = self._index.get(height)
        if places is None:
            return None
        block, proof = (self._read_record(position) for position in places)
        if not isinstance(block, BlockRecord) or not isinstance(proof, FinalRecord):
            return None
        return block.block, proof.proof

    def get_submission(self, crosslink: Hash32) -> CrosslinkSubmission | None:
        """Return the bodies behind a crosslink's hash, or None when the log does not hold them (X10)."""
        position = self._submissions.get(crosslink)
        record = None if position is None else self._read_record(position)
        return record.submission if isinstance(record, SubmissionRecord) else None

    def get_access_list(self, height: int, block_hash: Hash32) -> bytes | None:
        """Return the access list of an executed block, or None when the log does not hold it, or no longer finds it."""
        position = self._access_lists.get(encode_access_list_label(height, block_hash))
        frame = None if position is None else self._read_frame(position)
        return None if frame is None else frame.payload

    def get_snapshot(self) -> SnapshotRecord | None:
        """Return the last snapshot in the log, or None when it has none."""
        record = None if self._snapshot is None else self._read_record(self._snapshot)
        return record if isinstance(record, SnapshotRecord) else None

    def has_chunk(self, chunk_hash: Hash32) -> bool:
        """Tell whether a chunk was appended, in this life or an earlier one."""
        return chunk_hash in self._chunks

    def get_chunk(self, chunk_hash: Hash32) -> bytes | None:
        """Return a chunk of a snapshot, or None when it is not on disk."""
        position = self._chunks.get(chunk_hash)
        frame = None if position is None else self._read_frame(position)
        return None if frame is None else frame.payload

    def _add_to_index(self, label: bytes, position: int) -> None:
        if label[:1] == _SUBMISSION_LABEL:
            self._submissions[label[1:]] = position
        elif label[:1] == _CHUNK_LABEL:
            self._chunks[label[1:]] = position
        elif label[:1] == _SNAPSHOT_LABEL:
            self._snapshot = position
            self._index = _FinalIndex(int.from_bytes(label[1:9], "big"))
        elif label[:1] == _ACCESS_LIST_LABEL:
            self._access_lists[label] = position
            if len(self._access_lists) > MAX_ACCESS_LISTS:
                del self._access_lists[next(iter(self._access_lists))]
        else:
            self._index.add(label, position)

    @property
    def first_height(self) -> int:
        """The lowest height whose block is held: 1, or above the last snapshot."""
        return self._index.base + 1

    @property
    def final_height(self) -> int:
        """The highest height up to which every final block is held."""
        return self._index.height

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(os.fstat(descriptor).st_size for descriptor in self._descriptors)

    def _read_record(self, position: int) -> Record | None:
        frame = self._read_frame(position)
        return None if frame is None else decode(frame.payload, _RECORD, max_bytes=MAX_RECORD_BYTES)

    def _read_frame(self, position: int) -> Frame | None:
        if position >= self._synced:
            return None
        number, offset = position >> _OFFSET_BITS, position & (1 << _OFFSET_BITS) - 1
        frame = read_frame(self._descriptors[number], number, offset)
        if frame is None:
            raise self._build_corruption(number, offset)
        return frame

    # --- opening and closing ---

    @property
    def _position(self) -> int:
        return self._number << _OFFSET_BITS | self._end

    def _get_segment_path(self, number: int) -> Path:
        return self._path / f"{number:08d}.log"

    def _open_segments(self, on_entry: Callable[[LogEntry], object] | None) -> None:
        count = self._count_segments()
        for number in range(count):
            descriptor = os.open(self._get_segment_path(number), os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
            self._descriptors.append(descriptor)
            for frame in self._open_segment(number, descriptor, is_last=number == count - 1):
                self._add_to_index(frame.label, number << _OFFSET_BITS | frame.offset)
                if on_entry is not None:
                    on_entry(_build_entry(frame))
        if not count:
            self._create_segment(0)

    def _count_segments(self) -> int:
        names = sorted(self._path.glob("*.log"))
        for number, name in enumerate(names):
            if name != self._get_segment_path(number):
                raise CorruptFileError(
                    f"{self._path}: got {name.name}, expected {number:08d}.log, which is missing; "
                    "try: shardyard up --fresh, or restore it"
                )
        return len(names)

    def _open_segment(self, number: int, descriptor: int, *, is_last: bool) -> Iterator[Frame]:
        """Yield the frames of a segment, then cut off what a crash left behind them."""
        name = str(self._get_segment_path(number))
        if not verify_header(descriptor, LOG_FILE_KIND, self._owner, number, name):
            if not is_last or any(isinstance(item, Frame) for item in scan(descriptor, number)):
                raise self._build_corruption(number, 0)
            os.ftruncate(descriptor, 0)
            write_all(descriptor, encode_header(LOG_FILE_KIND, self._owner, number))
            os.fsync(descriptor)
        for item in scan(descriptor, number):
            if isinstance(item, Frame):
                yield item
            else:
                self._cut_tail(number, descriptor, item, is_last=is_last)

    def _cut_tail(self, number: int, descriptor: int, end: ScanEnd, *, is_last: bool) -> None:
        if end.tail is not Tail.CLEAN:
            # A segment is synced before the next one begins, so only the last one can have an unfinished end.
            if end.tail is Tail.CORRUPT or not is_last:
                raise self._build_corruption(number, end.offset)
            self.truncated_bytes = os.fstat(descriptor).st_size - end.offset
            os.ftruncate(descriptor, end.offset)
            os.fsync(descriptor)
        self._number, self._end = number, end.offset

    def _build_corruption(self, number: int, offset: int) -> CorruptFileError:
        return CorruptFileError(
            f"{self._get_segment_path(number)}: damaged at offset {offset}, before records that were durable; "
            "try: shardyard up --fresh, or restore the file (other nodes still have the chain)"
        )

    def close(self) -> None:
        """Close the files; what was not synced is dropped, as a crash would."""
        self._writer.shutdown(wait=True)
        self._close_descriptors()
        if self._failure is None:
            self._failure = LogFailedError("the log was closed")

    def _close_descriptors(self) -> None:
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class _FinalIndex:
    """Where final blocks and their proofs stand: two positions per height, dense above ``base``."""

    def __init__(self, base: int = 0) -> None:
        self.base = base
        self._places = array("Q")
        self._blocks: dict[bytes, int] = {}

    @property
    def height(self) -> int:
        return self.base + len(self._places) // 2

    def add(self, label: bytes, position: int) -> None:
        if len(label) != _LABEL_BYTES + 1:
            return
        is_final, key = label[:1] == _FINAL_LABEL, label[1:]
        if not is_final:
            self._blocks[key] = position
            return
        height = int.from_bytes(key[:8], "big")
        block = self._blocks.get(key)
        if block is None or height != self.height + 1:
            return  # a record repeated after a restart, or a chain that does not begin at genesis
        self._places.extend((block, position))
        self._blocks = {other: place for other, place in self._blocks.items() if other[:8] > key[:8]}

    def get(self, height: int) -> tuple[int, int] | None:
        if not self.base < height <= self.height:
            return None
        place = 2 * (height - self.base)
        return self._places[place - 2], self._places[place - 1]


def encode_access_list_label(height: int, block_hash: Hash32) -> bytes:
    """Return the label of a block's access list."""
    return _ACCESS_LIST_LABEL + height.to_bytes(8, "big") + block_hash


def decode_access_list_label(label: bytes) -> Hash32:
    """Return the hash of the block whose access list has this label; raises ``DecodeError``."""
    if len(label) != _LABEL_BYTES + 1 or label[:1] != _ACCESS_LIST_LABEL:
        raise DecodeError(f"access list: got the label {label.hex() or 'of no bytes'}")
    return Hash32(label[9:])


def compute_label(record: Record) -> bytes:
    """Return the label of a record's entry: what the index must know of it without decoding it."""
    match record:
        case BlockRecord(block):
            return _BLOCK_LABEL + block.header.height.to_bytes(8, "big") + block.hash
        case FinalRecord(height, block_hash):
            return _FINAL_LABEL + height.to_bytes(8, "big") + block_hash
        case SnapshotRecord(block):
            return _SNAPSHOT_LABEL + block.header.height.to_bytes(8, "big") + block.hash
        case SubmissionRecord(submission):
            return _SUBMISSION_LABEL + submission.crosslink.hash
        case _:
            return b""
