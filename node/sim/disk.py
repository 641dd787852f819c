"""The disk of a simulated process: its block log and its signer's record, written and read as real processes do.

The log is opened by ``node.storage.log`` itself after every power cut: a torn end is cut off, a fault in front of something
durable is refused. The signer's record follows ``node.signer``: a torn end is cut off, for none of its signatures has
left; anything else that is wrong with it, or its absence, means that nothing is signed any more.
"""

import os
import random
from typing import Final

import msgspec

from node.executor import StateRecord
from node.sim.frame_file import FrameFile
from node.storage.data_dir import SIGNER_FILE, SIGNER_FILE_KIND
from node.storage.frames import CorruptFileError, Frame, Tail, scan, verify_header
from node.storage.log import LOG_FILE_KIND, MAX_RECORD_BYTES, BlockLog, EntryKind, compute_label
from shardyard.blocks import Block, FinalityProof
from shardyard.codec import decode, encode
from shardyard.consensus.signer import SignerEntry, SignerState
from shardyard.crosslinks import CrosslinkSubmission
from shardyard.effects import BlockRecord, FinalRecord, Record, SubmissionRecord
from shardyard.errors import DecodeError
from shardyard.ids import Hash32

SEGMENT_BYTES: Final = 256 * 1024
"""Far below real ones, so that runs of minutes have several."""
MAX_BATCH_BYTES: Final = 1 << 20


class SimDisk:
    """The block log of one node: a source of old final blocks and, on the beacon, of old submissions."""

    def __init__(self, owner: bytes) -> None:
        self.is_failing = False
        """The next write or sync fails, as with a full disk: the process must stop."""
        self._owner = owner
        self._file = FrameFile(LOG_FILE_KIND, owner, _encode_entry, segment_bytes=SEGMENT_BYTES)
        self._blocks: dict[Hash32, Block] = {}
        self._finals: dict[int, tuple[Block, FinalityProof]] = {}
        self._submissions: dict[Hash32, CrosslinkSubmission] = {}

    def append(self, record: Record) -> None:
        """Write a record without waiting for the disk."""
        self._file.append(EntryKind.KERNEL, record)
        self._index(record)

    def append_state(self, state: StateRecord) -> None:
        """Write the state that a block leaves."""
        self._file.append(EntryKind.NODE, state)

    def sync(self) -> None:
        """Everything written is safe now."""
        self._file.sync()

    def crash(self, chance: random.Random) -> int:
        """Lose power; return how many records are lost."""
        return self._file.lose_power(chance)

    def flip_bit(self, chance: random.Random) -> int:
        """Flip one bit somewhere in the log, which lost power before; return the place of its byte."""
        return self._file.flip_bit(chance)

    def wipe(self) -> None:
        """Replace the log by an empty one: what a person does with a damaged log whose chain others have."""
        self._file.wipe()
        self._forget()

    def read(self) -> tuple[list[Record], dict[Hash32, StateRecord]]:
        """Read the log from its beginning, as after a restart; raises ``CorruptFileError`` when it is damaged."""
        self._forget()
        records: list[Record] = []
        states: dict[Hash32, StateRecord] = {}
        if self._file.is_empty:
            return records, states
        with (
            self._file.materialise(lambda number: f"{number:08d}.log") as path,
            BlockLog(path, self._owner, segment_bytes=SEGMENT_BYTES) as log,
        ):
            for entry in log.iterate():
                if entry.kind is EntryKind.NODE:
                    state = decode(entry.payload, StateRecord, max_bytes=MAX_RECORD_BYTES)
                    states[state.block_hash] = state
                else:
                    records.append(entry.decode_record())
        for record in records:
            self._index(record)
        return records, states

    def get_final(self, height: int) -> tuple[Block, FinalityProof] | None:
        """Return the final block at ``height`` with its proof."""
        return self._finals.get(height)

    def get_submission(self, crosslink: Hash32) -> CrosslinkSubmission | None:
        """Return the submission behind a crosslink."""
        return self._submissions.get(crosslink)

    def _forget(self) -> None:
        self._blocks, self._finals, self._submissions = {}, {}, {}

    def _index(self, record: Record) -> None:
        if isinstance(record, BlockRecord):
            self._blocks[record.block.hash] = record.block
        elif isinstance(record, FinalRecord):
            self._finals[record.height] = (self._blocks.pop(record.block_hash), record.proof)
        elif isinstance(record, SubmissionRecord):
            self._submissions[record.submission.crosslink.hash] = record.submission


def _encode_entry(value: object) -> tuple[bytes, bytes]:
    return encode(value), b"" if isinstance(value, StateRecord) else compute_label(value)  # type: ignore[arg-type]


class SignerRecordLostError(Exception):
    """The record of what was signed is missing or damaged: nothing may be signed."""


class _Batch(msgspec.Struct, frozen=True, array_like=True):
    entries: tuple[SignerEntry, ...]


class SignerDisk:
    """The signer's record of one node: one frame per batch, synced before its signatures leave."""

    def __init__(self, owner: bytes) -> None:
        self.is_failing = False
        self.is_missing = False
        """Somebody removed the file."""
        self._owner = owner
        # Its bytes end with what was written last: a batch is synced before the next one is written.
        self._file = FrameFile(
            SIGNER_FILE_KIND,
            owner,
            lambda value: (encode(value), b""),
            segment_bytes=1 << 40,
            can_scramble=False,
        )

    def append(self, entries: tuple[SignerEntry, ...]) -> None:
        """Write a batch without waiting for the disk."""
        self._file.append(0, _Batch(entries))

    def sync(self) -> None:
        """Everything written is safe now."""
        self._file.sync()

    def crash(self, chance: random.Random) -> int:
        """Lose power; return how many batches are lost."""
        return self._file.lose_power(chance)

    def flip_bit(self, chance: random.Random) -> int:
        """Flip one bit somewhere in the record, which lost power before; return the place of its byte."""
        return self._file.flip_bit(chance)

    def restore_copy(self, chance: random.Random, batches: int) -> int:
        """Replace the record by an older copy that lacks up to ``batches`` batches; return how many it lacks."""
        with self._file.materialise(lambda _number: SIGNER_FILE) as path:
            places = [frame.offset for frame in _read_frames(path / SIGNER_FILE, self._owner)]
        lacking = min(len(places), chance.randint(1, batches))
        if lacking:
            self._file.cut_to(places[-lacking])
        return lacking

    def read(self) -> SignerState:
        """Return what the record holds, as after a restart; raises ``SignerRecordLostError``."""
        if self.is_missing:
            raise SignerRecordLostError("missing, although its directory was in use")
        state = SignerState()
        if self._file.is_empty:
            return state
        try:
            with self._file.materialise(lambda _number: SIGNER_FILE) as path:
                for frame in _read_frames(path / SIGNER_FILE, self._owner):
                    for entry in decode(frame.payload, _Batch, max_bytes=MAX_BATCH_BYTES).entries:
                        state.replay(entry)
        except (CorruptFileError, DecodeError) as error:
            raise SignerRecordLostError(str(error)) from error
        return state


def _read_frames(path: "os.PathLike[str]", owner: bytes) -> list[Frame]:
    """Return the frames of a signer's record, cutting a torn end off; raises ``CorruptFileError``."""
    frames: list[Frame] = []
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        if not verify_header(descriptor, SIGNER_FILE_KIND, owner, 0, "signer's record"):
            raise CorruptFileError("signer's record: it lost its beginning")
        for item in scan(descriptor, 0):
            if isinstance(item, Frame):
                frames.append(item)
            elif item.tail in {Tail.DAMAGED, Tail.CORRUPT}:
                raise CorruptFileError(f"signer's record: damaged at offset {item.offset}")
            elif item.tail is Tail.TORN:
                os.ftruncate(descriptor, item.offset)
    finally:
        os.close(descriptor)
    return frames
