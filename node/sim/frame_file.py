"""An append-only file of a simulated disk, in the frames that real processes write (``node.storage.frames``).

What is appended waits as it is; it becomes bytes only when the power is lost, for only then does it matter what of it the
disk holds. What was synced is there; of the rest there may be any prefix of its bytes, or all of it with a hole of zeros or
with nonsense in it, as a disk leaves it that wrote sectors in another order. A bit may flip anywhere.

Bytes are read back by the same code as in real processes, from files in a directory of their own.
"""

import os
import random
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from node.storage.frames import HEADER_BYTES, encode_frame, encode_header
from shardyard.errors import ShardyardError

SECTOR_BYTES: Final = 512
HOLE_CHANCE: Final = 0.15
NONSENSE_CHANCE: Final = 0.15
_MEMORY: Final = Path("/dev/shm")  # noqa: S108  # a directory of its own in there, private and removed
_OFFSET_BITS: Final = 40

Encode = Callable[[object], tuple[bytes, bytes]]
"""Returns payload and label of what was appended."""


class FrameFile:
    """Frames in segments, and what a power cut would leave of them."""

    def __init__(
        self, file_kind: int, owner: bytes, encode: Encode, *, segment_bytes: int, can_scramble: bool = True
    ) -> None:
        """``owner`` is 32 bytes; ``can_scramble`` allows what is not synced to be left out of order."""
        self._file_kind = file_kind
        self._owner = owner
        self._encode = encode
        self._segment_bytes = segment_bytes
        self._can_scramble = can_scramble
        self._segments = [bytearray(encode_header(file_kind, owner, 0))]
        self._tail: list[tuple[int, object, int]] = []
        """Kind, value, and how many of the tail were synced when this was appended."""
        self._synced = 0

    def append(self, kind: int, value: object) -> None:
        """Write one frame without waiting for the disk."""
        self._tail.append((kind, value, self._synced))

    def sync(self) -> None:
        """Everything written is safe now."""
        self._synced = len(self._tail)

    @property
    def is_empty(self) -> bool:
        """Nothing was ever written, or nothing of it is left."""
        return not self._tail and self.size <= HEADER_BYTES

    @property
    def size(self) -> int:
        """Bytes of what is in the segments: after a power cut, of everything."""
        return sum(map(len, self._segments))

    def lose_power(self, chance: random.Random) -> int:
        """Lose what was not synced, all or in part; return how many frames are not whole any more."""
        places = [self._place]
        for kind, value, synced in self._tail:
            self._write(kind, value, places[synced])
            places.append(self._place)
        safe, ends = places[self._synced], places[self._synced + 1 :]
        self._tail, self._synced = [], 0
        if not ends:
            return 0
        first = self._tear(safe, chance)
        return sum(end > first for end in ends)

    def flip_bit(self, chance: random.Random) -> int:
        """Flip one bit of what is in the segments; return the byte's place among all of them."""
        at = place = chance.randrange(self.size)
        for segment in self._segments:
            if at < len(segment):
                segment[at] ^= 1 << chance.randrange(8)
                break
            at -= len(segment)
        return place

    def wipe(self) -> None:
        """Begin anew, with nothing in it."""
        self._segments = [bytearray(encode_header(self._file_kind, self._owner, 0))]
        self._tail, self._synced = [], 0

    def cut_to(self, end: int) -> None:
        """Keep the bytes below offset ``end`` of the last segment."""
        del self._segments[-1][end:]

    @contextmanager
    def materialise(self, name: Callable[[int], str]) -> Iterator[Path]:
        """Yield a directory with the segments as files; what the reader did to them is taken over at the end."""
        with tempfile.TemporaryDirectory(dir=_MEMORY if os.access(_MEMORY, os.W_OK) else None) as directory:
            path = Path(directory)
            for number, segment in enumerate(self._segments):
                (path / name(number)).write_bytes(segment)
            try:
                yield path
            except ShardyardError as error:
                # Where this run keeps its files is no part of what happened in it.
                raise type(error)(str(error).replace(f"{path}/", "")) from error
            self._segments = [
                bytearray((path / name(number)).read_bytes()) for number in range(len(self._segments))
            ]

    @property
    def _place(self) -> int:
        return (len(self._segments) - 1) << _OFFSET_BITS | len(self._segments[-1])

    def _write(self, kind: int, value: object, synced: int) -> None:
        if len(self._segments[-1]) >= self._segment_bytes:
            number = len(self._segments)
            self._segments.append(bytearray(encode_header(self._file_kind, self._owner, number)))
        payload, label = self._encode(value)
        segment = self._segments[-1]
        number = len(self._segments) - 1
        segment += encode_frame(len(segment), number, kind, payload, label=label, synced=synced)

    def _tear(self, safe: int, chance: random.Random) -> int:
        """Do to the bytes behind ``safe`` what a power cut may do; return the place of the first one that is wrong."""
        number, offset = safe >> _OFFSET_BITS, safe & (1 << _OFFSET_BITS) - 1
        # A segment is synced before the next one begins: where the rest lies in several, those before the last are safe.
        last = chance.randrange(number, len(self._segments))
        del self._segments[last + 1 :]
        first = offset if last == number else 0  # a new segment's header may be torn as well
        segment = self._segments[-1]
        cut = chance.randint(first, len(segment))
        draw = chance.random() if self._can_scramble and cut >= HEADER_BYTES else 1.0
        if draw < HOLE_CHANCE:
            end = min(len(segment), (cut // SECTOR_BYTES + chance.randint(1, 4)) * SECTOR_BYTES)
            segment[cut:end] = bytes(end - cut)
        elif draw < HOLE_CHANCE + NONSENSE_CHANCE:
            segment[cut:] = chance.randbytes(len(segment) - cut)
        else:
            del segment[cut:]
        return last << _OFFSET_BITS | cut
