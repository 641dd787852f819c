"""Frames: how bytes are written so that whatever tears, flips or vanishes is noticed.

A file begins with a header that names its kind, its owner and its number. Frames follow: marker, kind, lengths, the
position up to which everything was known to be on disk when the frame was written, a CRC-16 of these, a checksum over
all of it and over the frame's own place, a label and the payload. The place is in the checksum so that bytes left over
from another file or offset are never taken for a frame; the CRC so that a wrong length is not taken for a short write.

After a crash the end of a file may hold anything. ``scan`` tells four cases apart:

- CLEAN: the last frame ends where the file ends;
- TORN: the rest is shorter than its frame says, or zeros: a write that did not finish;
- DAMAGED: the rest is as long as it should be and wrong, and nothing says it was ever synced;
- CORRUPT: something *behind* the fault was written after the fault's place was synced. What was durable is gone.
"""

import binascii
import hashlib
import os
import struct
import time
from collections.abc import Iterator
from enum import Enum, auto
from typing import Final

import msgspec

from shardyard.errors import ShardyardError

HEADER_BYTES: Final = 64
MAX_LABEL_BYTES: Final = 255
MAX_FRAME_PAYLOAD_BYTES: Final = 96 * 1024 * 1024
FORMAT_VERSION: Final = 1

_HEADER: Final = struct.Struct(">8sHH32sI")
_MAGIC: Final = b"SYFRAMES"
_FRAME: Final = struct.Struct(">4sBBIQ")
_HEAD: Final = struct.Struct(">4sBBIQH")
"""``_FRAME`` with the CRC-16 over it."""
_PLACE: Final = struct.Struct(">QI")
_HEAD_BYTES: Final = _HEAD.size
_MARKER: Final = b"\xf5\x53\x59\xa7"
_CHECKSUM_BYTES: Final = 16
FRAME_BYTES: Final = _HEAD_BYTES + _CHECKSUM_BYTES
WINDOW_BYTES: Final = 1 << 20
"""Bytes that are read at a time where a file is read from front to back."""


class CorruptFileError(ShardyardError):
    """A file of ours is not what we wrote; the text says where, and what to try."""


class Frame(msgspec.Struct, frozen=True):
    """One frame as it was written. ``offset`` is its place in the file, ``end`` the next one's."""

    offset: int
    end: int
    kind: int
    synced: int
    label: bytes
    payload: bytes


class Tail(Enum):
    """What follows the last good frame of a file."""

    CLEAN = auto()
    TORN = auto()
    DAMAGED = auto()
    CORRUPT = auto()


class ScanEnd(msgspec.Struct, frozen=True):
    """Where the good frames end, and what follows them."""

    offset: int
    tail: Tail


def encode_header(file_kind: int, owner: bytes, number: int) -> bytes:
    """Return the header of a file: ``owner`` is 32 bytes, ``number`` tells the segments of one log apart."""
    head = _HEADER.pack(_MAGIC, FORMAT_VERSION, file_kind, owner, number)
    return head + hashlib.blake2b(head, digest_size=HEADER_BYTES - len(head)).digest()


def compute_frame_bytes(payload: bytes, label: bytes = b"") -> int:
    """Return the length of the frame of ``payload``; raises ``ValueError`` when no frame can hold it."""
    if len(payload) > MAX_FRAME_PAYLOAD_BYTES or len(label) > MAX_LABEL_BYTES:
        raise ValueError(f"frame: got {len(payload)} bytes with a label of {len(label)}")
    return FRAME_BYTES + len(label) + len(payload)


def encode_frame(
    offset: int, number: int, kind: int, payload: bytes, *, label: bytes = b"", synced: int = 0
) -> bytes:
    """Return the frame that stands at ``offset`` of file ``number``; raises ``ValueError`` as ``compute_frame_bytes``."""
    compute_frame_bytes(payload, label)
    head = _encode_head(kind, len(label), len(payload), synced)
    return b"".join((head, _compute_checksum(offset, number, head, label, payload), label, payload))


def read_frame(descriptor: int, number: int, offset: int) -> Frame | None:
    """Return the frame at ``offset``, or None when there is no good one."""
    needed = FRAME_BYTES
    while needed:
        data = os.pread(descriptor, needed, offset)
        if len(data) < needed:
            break
        found = _parse_frame(data, 0, number, offset)
        if isinstance(found, Frame):
            return found
        needed = found
    return None


def read_frames(descriptor: int, number: int, begin: int = HEADER_BYTES) -> Iterator[Frame]:
    """Yield the frames of a file from ``begin`` up to the first that is not good, reading it in large pieces."""
    window, start, offset = b"", begin, begin
    while True:
        found = _parse_frame(window, offset - start, number, offset)
        if isinstance(found, Frame):
            yield found
            offset = found.end
            continue
        if not found:
            return
        window, start = os.pread(descriptor, max(found, WINDOW_BYTES), offset), offset
        if len(window) < found:
            return  # the file ends within this frame


def _parse_frame(window: bytes, at: int, number: int, offset: int) -> Frame | int:
    """Return the frame at ``at`` of ``window``, which stands at ``offset`` of its file.

    Where the window ends before it does, return the bytes from ``at`` on that are needed to tell more; 0 for no good frame.
    """
    if len(window) - at < FRAME_BYTES:
        return FRAME_BYTES
    head = _decode_head(window, at)
    if head is None:
        return 0
    kind, label_bytes, payload_bytes, synced = head
    begin = at + FRAME_BYTES
    middle = begin + label_bytes
    end = middle + payload_bytes
    if end > len(window):
        return end - at
    label, payload = window[begin:middle], window[middle:end]
    checksum = _compute_checksum(offset, number, window[at : at + _HEAD_BYTES], label, payload)
    if checksum != window[at + _HEAD_BYTES : begin]:
        return 0
    return Frame(offset, offset + end - at, kind, synced, label, payload)


def verify_header(descriptor: int, file_kind: int, owner: bytes, number: int, name: str) -> bool:
    """Tell whether the file has its whole header; False when it is shorter, as a creation that did not finish leaves it.

    Raises ``CorruptFileError`` for the header of another file.
    """
    expected = encode_header(file_kind, owner, number)
    found = os.pread(descriptor, HEADER_BYTES, 0)
    if found == expected:
        return True
    if not any(found) or (len(found) < HEADER_BYTES and expected.startswith(found)):
        return False
    if found[:8] == _MAGIC and found[8:10] != expected[8:10]:
        raise CorruptFileError(
            f"{name}: got format {int.from_bytes(found[8:10], 'big')}, expected {FORMAT_VERSION}; "
            "try: shardyard up --fresh, or another --name"
        )
    raise CorruptFileError(
        f"{name}: its header is damaged or belongs to another network; try: shardyard up --fresh, or another --name"
    )


def scan(descriptor: int, number: int) -> Iterator[Frame | ScanEnd]:
    """Yield the good frames of a file from its beginning, and at last one ``ScanEnd``."""
    offset = HEADER_BYTES
    while True:
        for frame in read_frames(descriptor, number, offset):
            yield frame
            offset = frame.end
        size = os.fstat(descriptor).st_size
        # Where somebody writes meanwhile, what was the end a moment ago is a good frame by now, and no damage.
        if offset >= size or read_frame(descriptor, number, offset) is None:
            break
    tail = Tail.CLEAN if offset >= size else _judge_tail(descriptor, number, offset, size)
    yield ScanEnd(offset, tail)


def salvage(descriptor: int, number: int) -> Iterator[Frame]:
    """Yield every good frame, also those behind damage: for data of which each piece is worth having."""
    for item in scan(descriptor, number):
        if isinstance(item, Frame):
            yield item
        elif item.tail is not Tail.CLEAN:
            yield from _find_frames(descriptor, number, item.offset + 1)


def _judge_tail(descriptor: int, number: int, offset: int, size: int) -> Tail:
    place = number << 40 | offset
    if any(frame.synced > place for frame in _find_frames(descriptor, number, offset + 1)):
        return Tail.CORRUPT
    rest = os.pread(descriptor, FRAME_BYTES, offset)
    if len(rest) < FRAME_BYTES:
        return Tail.TORN
    head = _decode_head(rest)
    if head is not None and offset + FRAME_BYTES + head[1] + head[2] > size:
        return Tail.TORN
    return Tail.TORN if _is_zero(descriptor, offset, size) else Tail.DAMAGED


def _encode_head(kind: int, label_bytes: int, payload_bytes: int, synced: int) -> bytes:
    head = _FRAME.pack(_MARKER, kind, label_bytes, payload_bytes, synced)
    return head + binascii.crc_hqx(head, 0xFFFF).to_bytes(2, "big")


def _decode_head(data: bytes, at: int = 0) -> tuple[int, int, int, int] | None:
    """Return kind, length of label, length of payload and synced position, or None when this is no whole head."""
    if len(data) - at < FRAME_BYTES:
        return None
    marker, kind, label_bytes, payload_bytes, synced, check = _HEAD.unpack_from(data, at)
    if marker != _MARKER or payload_bytes > MAX_FRAME_PAYLOAD_BYTES:
        return None
    if check != binascii.crc_hqx(data[at : at + _FRAME.size], 0xFFFF):
        return None
    return kind, label_bytes, payload_bytes, synced


def _find_frames(descriptor: int, number: int, offset: int) -> Iterator[Frame]:
    """Yield good frames wherever they stand from ``offset`` on."""
    while True:
        window = os.pread(descriptor, WINDOW_BYTES, offset)
        at = window.find(_MARKER)
        if at < 0:
            if len(window) < WINDOW_BYTES:
                return
            offset += WINDOW_BYTES - len(_MARKER) + 1
            continue
        frame = read_frame(descriptor, number, offset + at)
        if frame is None:
            offset += at + 1
        else:
            yield frame
            offset = frame.end


def _is_zero(descriptor: int, offset: int, size: int) -> bool:
    while offset < size:
        window = os.pread(descriptor, min(WINDOW_BYTES, size - offset), offset)
        if any(window):
            return False
        offset += len(window)
    return True


def _compute_checksum(offset: int, number: int, head: bytes, label: bytes, payload: bytes) -> bytes:
    hasher = hashlib.blake2b(_PLACE.pack(offset, number) + head + label, digest_size=_CHECKSUM_BYTES)
    hasher.update(payload)
    return hasher.digest()


class DiskPace:
    """How slow the disk of this process is made: every write takes ``delay_s`` longer, wherever it is waited for."""

    def __init__(self) -> None:
        self.delay_s = 0.0


DISK_PACE: Final = DiskPace()
"""A process has one disk, so this is one object."""


def write_all(descriptor: int, data: bytes) -> None:
    """Write all of ``data``; a short write is continued, what cannot be written raises ``OSError``."""
    if DISK_PACE.delay_s:
        time.sleep(DISK_PACE.delay_s)
    view = memoryview(data)
    while view:
        written = os.write(descriptor, view)
        view = view[written:]


def sync_directory(path: str | os.PathLike[str]) -> None:
    """Make names in a directory durable: a new file is only there after this."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
