"""Blocks by height without a gap, as a log holds them: their hashes and where their records stand, 40 bytes a block.

A chain has millions of blocks, so an audit keeps no objects of them. Two stretches are compared by their bytes.
"""

from array import array
from collections.abc import Iterator, Sequence
from typing import Final, overload

from node.audit.findings import Findings, Promise
from shardyard.ids import Hash32

HASH_BYTES: Final = 32
Place = int
"""Where a record stands: its segment, shifted, and its offset."""
_OFFSET_BITS: Final = 40


def join_place(number: int, offset: int) -> Place:
    """Return the place at ``offset`` of segment ``number``."""
    return number << _OFFSET_BITS | offset


def split_place(place: Place) -> tuple[int, int]:
    """Return segment and offset."""
    return place >> _OFFSET_BITS, place & (1 << _OFFSET_BITS) - 1


class Hashes(Sequence[Hash32]):
    """A list of hashes in one piece of memory."""

    def __init__(self, hashes: Sequence[Hash32] = ()) -> None:
        self._data = bytearray().join(hashes)

    def __len__(self) -> int:
        return len(self._data) // HASH_BYTES

    @overload
    def __getitem__(self, index: int) -> Hash32: ...

    @overload
    def __getitem__(self, index: slice) -> "Hashes": ...

    def __getitem__(self, index: int | slice) -> "Hash32 | Hashes":
        if isinstance(index, slice):
            return Hashes([self[at] for at in range(*index.indices(len(self)))])
        at = range(len(self))[index] * HASH_BYTES
        return Hash32(bytes(self._data[at : at + HASH_BYTES]))

    def append(self, block_hash: Hash32) -> None:
        """Add one at the end."""
        self._data += block_hash

    def get_bytes(self, begin: int, count: int) -> memoryview:
        """Return ``count`` hashes from ``begin`` on, one behind the other."""
        return memoryview(self._data)[begin * HASH_BYTES : (begin + count) * HASH_BYTES]

    def find_difference(self, begin: int, other: "Hashes", other_begin: int, count: int) -> int | None:
        """Return the first of ``count`` places from the two beginnings on at which they differ, None when they do not."""
        if self.get_bytes(begin, count) == other.get_bytes(other_begin, count):
            return None
        return next(at for at in range(count) if self[begin + at] != other[other_begin + at])


class Stretch:
    """The blocks of one log from one height on, each with the place of its record."""

    def __init__(self, owner: str, first: int) -> None:
        self.owner = owner
        """Who holds it, in words."""
        self.first = first
        """Height of the first block."""
        self.hashes = Hashes()
        self._places = array("Q")

    @property
    def last(self) -> int:
        """Height of the last block; ``first - 1`` when there is none."""
        return self.first + len(self.hashes) - 1

    def __contains__(self, height: int) -> bool:
        return self.first <= height <= self.last

    def add(self, block_hash: Hash32, place: Place) -> None:
        """Add the block above the last."""
        self.hashes.append(block_hash)
        self._places.append(place)

    def find_hash(self, height: int) -> Hash32 | None:
        """Return the hash of the block at ``height``, None for what is not here."""
        return self.hashes[height - self.first] if height in self else None

    def find_place(self, height: int) -> Place | None:
        """Return where the record of the block at ``height`` stands, None for what is not here."""
        return self._places[height - self.first] if height in self else None

    def iterate(self) -> Iterator[tuple[int, Hash32]]:
        """Yield heights and hashes."""
        return enumerate(self.hashes, start=self.first)

    def find_difference(self, other: "Stretch") -> int | None:
        """Return the lowest height that both have with another block, None when they agree on all that both have."""
        begin, end = max(self.first, other.first), min(self.last, other.last)
        if begin > end:
            return None
        at = self.hashes.find_difference(
            begin - self.first, other.hashes, begin - other.first, end + 1 - begin
        )
        return None if at is None else begin + at


def compare_stretches(stretches: Sequence[Stretch], findings: Findings) -> None:
    """Find every two of ``stretches`` that have another final block at one height (I5)."""
    for index, stretch in enumerate(stretches):
        for earlier in stretches[:index]:
            height = stretch.find_difference(earlier)
            if height is not None:
                findings.add(
                    Promise.FINALITY,
                    f"{stretch.owner} block {height}",
                    f"{earlier.owner} has another final block there",
                )
