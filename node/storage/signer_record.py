"""The record of what was signed: one file per process and chain, with the entries of all its keys.

A batch of entries is one frame and one sync. Frames are numbered, and the number of the last one also stands in a small
*witness* file per key beside the keys of the network: a record that was deleted, made anew or restored from an old copy
is behind its witness, and nothing is signed with it. The witness is written after the record and never synced, so it can
be behind, which only makes it weaker, but not ahead.

Beside the record a *mark* names the file and the start of the machine that a process last signed under: a copied record has
one that is not its own, and nobody takes it for that of a process that was restarted at once.

A record that is missing although its directory was in use, damaged, or behind its witness is lost (K1) and raises
``SignerRecordError``: what was signed is unknown. What to do then depends on who else is there (``node.remedies``).

A frame of floors holds pairs of key and slot. A key that is blocked has a pair with ``BLOCKED`` beside the one with its floor
in slots; each pair only raises, so a reader that knows one floor per key takes it for blocked as well.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from enum import IntEnum
from pathlib import Path
from typing import Final, Self

import msgspec

from node.storage.data_dir import SIGNER_FILE_KIND, DataDir
from node.storage.frames import (
    HEADER_BYTES,
    CorruptFileError,
    Frame,
    ScanEnd,
    Tail,
    encode_frame,
    encode_header,
    scan,
    sync_directory,
    verify_header,
    write_all,
)
from shardyard.codec import decode, encode
from shardyard.consensus.signer import SignerEntry, SignerState
from shardyard.errors import DecodeError, ShardyardError

COMPACT_ABOVE_BYTES: Final = 1024 * 1024
MAX_BATCH_ENTRIES: Final = 4096
MAX_BATCH_BYTES: Final = 16 * 1024 * 1024
BOOT_ID_PATH: Final = Path("/proc/sys/kernel/random/boot_id")
_NUMBER_BYTES: Final = 8


class FrameKind(IntEnum):
    """What a frame of the record holds."""

    ENTRIES = 0
    FLOOR = 1
    KEY_FLOORS = 2


class SignerRecordError(ShardyardError):
    """The record of what was signed is missing, damaged or old: nothing may be signed."""


class _Batch(msgspec.Struct, frozen=True, array_like=True):
    entries: tuple[SignerEntry, ...]


class _KeyFloors(msgspec.Struct, frozen=True, array_like=True):
    floors: tuple[tuple[int, int], ...]


class Witness:
    """The numbers of the last frames, per key, where a lost or old record does not take them along."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self._descriptors: list[int] = []
        self.names: list[str] = []
        for path in paths:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._descriptors.append(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            self.names.append(str(path))

    def read(self) -> int:
        """Return the highest number any of the keys was used with; 0 when none ever was."""
        numbers = (os.pread(descriptor, _NUMBER_BYTES, 0) for descriptor in self._descriptors)
        return max((int.from_bytes(number, "big") for number in numbers), default=0)

    def write(self, number: int) -> None:
        """Remember that the frame with ``number`` is on disk."""
        for descriptor in self._descriptors:
            os.pwrite(descriptor, number.to_bytes(_NUMBER_BYTES, "big"), 0)

    def close(self) -> None:
        """Close the files."""
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class SignerRecord:
    """An open record: the state it gives, and how that is extended."""

    def __init__(
        self,
        directory: DataDir,
        witness: Witness | None = None,
        *,
        compact_above_bytes: int = COMPACT_ABOVE_BYTES,
    ) -> None:
        """Read the record of ``directory``. Raises ``SignerRecordError`` or ``OSError``."""
        self.state = SignerState()
        self.path = directory.signer_path
        self.number = 0
        """Of the last frame; each is greater than all before it, also over imports."""
        self._owner = directory.owner
        self._witness = witness or Witness(())
        self._compact_above_bytes = compact_above_bytes
        self._descriptor = -1
        self._end = HEADER_BYTES
        self._is_marked = False
        try:
            self._open()
            self._verify_witness()
            if self.number and not _get_mark_path(self.path).exists():
                _write_mark(self.path, "")
        except BaseException:
            self._close_file()
            raise

    def append(self, entries: Sequence[SignerEntry]) -> None:
        """Make ``entries`` durable in one frame; what can be forgotten goes when the file has grown."""
        self._write(FrameKind.ENTRIES, encode(_Batch(tuple(entries))))
        if self._end > self._compact_above_bytes:
            self.rewrite()
        if not self._is_marked:
            _write_mark(self.path, _build_mark(self.path))
            self._is_marked = True

    def append_floors(self, floors: Sequence[tuple[int, int]]) -> None:
        """Make floors of single keys, pairs of validator and slot, durable in one frame."""
        self._write(FrameKind.KEY_FLOORS, encode(_KeyFloors(tuple(floors))))

    def rewrite(self, *, above: int = 0) -> None:
        """Write the record anew from its state; a crash leaves the old file or the new one, both whole.

        Its frames are numbered on from its own last one, or from ``above``, of a record that was merged into it.
        """
        self._is_marked = False
        _write_mark(self.path, "")
        descriptor, end, number = _stage(self.path, self._owner, self.state, max(self.number, above) + 1)
        try:
            _get_staged_path(self.path).replace(self.path)
            sync_directory(self.path.parent)
        except BaseException:
            os.close(descriptor)
            raise
        self._close_file()
        self._descriptor, self._end, self.number = descriptor, end, number
        self._witness.write(number)
        # What is still needed may be large by itself: do not write it anew for every batch.
        self._compact_above_bytes = max(self._compact_above_bytes, 2 * end)

    def _write(self, kind: int, payload: bytes) -> None:
        # Every frame says that all before it was synced, because a batch is synced before the next one begins.
        number = self.number + 1
        label = number.to_bytes(_NUMBER_BYTES, "big")
        frame = encode_frame(self._end, 0, kind, payload, label=label, synced=self._end)
        write_all(self._descriptor, frame)
        os.fdatasync(self._descriptor)
        self._end += len(frame)
        self.number = number
        self._witness.write(number)

    def _open(self) -> None:
        try:
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
        except FileNotFoundError:
            raise SignerRecordError(
                f"{self.path}: missing, although its directory was in use; what was signed is unknown"
            ) from None
        try:
            if not verify_header(self._descriptor, SIGNER_FILE_KIND, self._owner, 0, str(self.path)):
                raise SignerRecordError(f"{self.path}: it lost its beginning")
            for item in scan(self._descriptor, 0):
                if isinstance(item, Frame):
                    self._replay(item)
                else:
                    self._cut_tail(item)
        except (CorruptFileError, DecodeError) as error:
            raise SignerRecordError(str(error)) from error

    def _verify_witness(self) -> None:
        expected = self._witness.read()
        if self.number < expected:
            raise SignerRecordError(
                f"{self.path}: it ends with entry {self.number}, but {self._witness.names[0]} has seen entry {expected}: "
                "it is an old copy, or new beside keys that signed already"
            )

    def _replay(self, frame: Frame) -> None:
        self.number = int.from_bytes(frame.label, "big") if frame.label else self.number + 1
        _replay(self.state, frame)

    def _cut_tail(self, end: ScanEnd) -> None:
        if end.tail in {Tail.DAMAGED, Tail.CORRUPT}:
            raise SignerRecordError(f"{self.path}: damaged at offset {end.offset}")
        if end.tail is Tail.TORN:
            # This batch was never synced, so none of its signatures has left.
            os.ftruncate(self._descriptor, end.offset)
            os.fsync(self._descriptor)
        self._end = end.offset

    def close(self) -> None:
        """Give the file back; the witness is its owner's."""
        self._close_file()

    def _close_file(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def peek_record(path: Path, owner: bytes) -> SignerState:
    """Read the record at ``path``, whose process may be running, without changing it; raises ``SignerRecordError``."""
    state = SignerState()
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise SignerRecordError(f"{path}: missing") from None
    try:
        if not verify_header(descriptor, SIGNER_FILE_KIND, owner, 0, str(path)):
            raise SignerRecordError(f"{path}: it lost its beginning")
        for item in scan(descriptor, 0):
            if isinstance(item, Frame):
                _replay(state, item)
            elif item.tail in {Tail.DAMAGED, Tail.CORRUPT}:
                raise SignerRecordError(f"{path}: damaged at offset {item.offset}")
    except (CorruptFileError, DecodeError) as error:
        raise SignerRecordError(str(error)) from error
    finally:
        os.close(descriptor)
    return state


def salvage_record(path: Path, owner: bytes) -> SignerState:
    """Return what a lost record still says, which is true and not everything; nothing of a damaged one."""
    try:
        return peek_record(path, owner)
    except SignerRecordError:
        return SignerState()


def _replay(state: SignerState, frame: Frame) -> None:
    match frame.kind:
        case FrameKind.FLOOR:
            state.prune(int.from_bytes(frame.payload, "big"))
        case FrameKind.KEY_FLOORS:
            for validator, slot in decode(frame.payload, _KeyFloors, max_bytes=MAX_BATCH_BYTES).floors:
                state.raise_floor(validator, slot)
        case _:
            for entry in decode(frame.payload, _Batch, max_bytes=MAX_BATCH_BYTES).entries:
                state.replay(entry)


def create_record(directory: DataDir, state: SignerState, witness: Witness, *, above: int = 0) -> None:
    """Put a record of ``state``, numbered above all before it and ``above``, where the old one is lost; raises ``OSError``."""
    path = directory.signer_path
    _write_mark(path, "")
    descriptor, _, number = _stage(path, directory.owner, state, max(witness.read(), above) + 1)
    os.close(descriptor)
    _get_staged_path(path).replace(path)
    sync_directory(path.parent)
    witness.write(number)


def is_signed_here(path: Path) -> bool:
    """Tell whether a process signed into this very file since the machine was started; true of a file that is no record.

    False of a copy, of a record that an import wrote and nothing was signed into yet, and where this cannot be known.
    """
    try:
        mark = _get_mark_path(path).read_text()
    except FileNotFoundError:
        return True
    except (OSError, ValueError):
        return False
    return bool(mark) and mark == _build_mark(path)


def _get_mark_path(path: Path) -> Path:
    return path.with_suffix(".mark")


def _build_mark(path: Path) -> str:
    """Return what names the file at ``path`` and this start of the machine; empty where the system does not tell."""
    try:
        found = path.stat()
        return f"{BOOT_ID_PATH.read_text().strip()} {found.st_dev} {found.st_ino}\n"
    except OSError:
        return ""


def _write_mark(path: Path, mark: str) -> None:
    # Never synced: a mark that is lost or torn is none of this file's, and only costs the wait of a watch.
    with suppress(OSError):
        _get_mark_path(path).write_text(mark)


def _get_staged_path(path: Path) -> Path:
    return path.with_suffix(".new")


def _stage(path: Path, owner: bytes, state: SignerState, number: int) -> tuple[int, int, int]:
    """Write ``state`` beside ``path``; return the open file, its length and the number of its last frame."""
    descriptor = os.open(
        _get_staged_path(path), os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600
    )
    try:
        end = HEADER_BYTES
        write_all(descriptor, encode_header(SIGNER_FILE_KIND, owner, 0))
        for kind, payload in _encode_state(state):
            label = number.to_bytes(_NUMBER_BYTES, "big")
            frame = encode_frame(end, 0, kind, payload, label=label)
            write_all(descriptor, frame)
            end += len(frame)
            number += 1
        os.fsync(descriptor)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor, end, number - 1


def _encode_state(state: SignerState) -> Iterator[tuple[int, bytes]]:
    yield FrameKind.FLOOR, state.floor.to_bytes(8, "big")
    if floors := state.list_floors():
        yield FrameKind.KEY_FLOORS, encode(_KeyFloors(floors))
    entries = state.entries()
    for start in range(0, len(entries), MAX_BATCH_ENTRIES):
        yield FrameKind.ENTRIES, encode(_Batch(tuple(entries[start : start + MAX_BATCH_ENTRIES])))
