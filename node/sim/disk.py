"""The disk of a simulated process: its block log and its signer's record, written and read as real processes do.

After every power cut the log is opened by ``node.storage.log`` itself, and the signer's record by
``node.storage.signer_record``: a torn end is cut off, a fault in front of something durable is refused.
"""

import os
import random
from typing import Final

import msgspec

from node.executor import StateRecord
from node.sim.frame_file import FrameFile
from node.storage.data_dir import SIGNER_FILE, SIGNER_FILE_KIND, DataDir, DataStamp
from node.storage.frames import Frame, scan
from node.storage.log import LOG_FILE_KIND, MAX_RECORD_BYTES, BlockLog, EntryKind, LogEntry, compute_label
from node.storage.signer_record import FrameKind, SignerRecord, Witness
from shardyard.blocks import Block, FinalityProof
from shardyard.codec import decode, encode
from shardyard.consensus.signer import SignerEntry, SignerState
from shardyard.crosslinks import CrosslinkSubmission
from shardyard.effects import BlockRecord, FinalRecord, Record, SubmissionRecord
from shardyard.ids import Hash32

SEGMENT_BYTES: Final = 256 * 1024
"""Far below real ones, so that runs of minutes have several."""
WITNESS_CHANCE: Final = 0.3
"""How often a power cut sets the witness of a signer's record back, which is never synced."""
MAX_BEHIND: Final = 30


class Device:
    """What fails: as long as there are faults, or one sync for each error. The process that meets it must stop."""

    def __init__(self) -> None:
        self.faults = 0
        """So many make every write or sync fail, as a full disk does."""
        self.errors = 0
        """So many syncs that are to come fail, one each."""

    @property
    def is_failing(self) -> bool:
        """The next sync fails."""
        return self.faults > 0 or self.errors > 0

    def meet_fault(self) -> bool:
        """Tell whether a sync fails, which ends one error."""
        is_failing = self.is_failing
        self.errors = max(0, self.errors - 1)
        return is_failing

    def repair(self) -> None:
        """Nothing fails any more."""
        self.faults = self.errors = 0


class SimDisk(Device):
    """The block log of one node: a source of old final blocks and, on the beacon, of old submissions."""

    def __init__(self, owner: bytes) -> None:
        super().__init__()
        self._owner = owner
        self._file = FrameFile(LOG_FILE_KIND, owner, _encode_entry, segment_bytes=SEGMENT_BYTES)
        self._blocks: dict[Hash32, Block] = {}
        self._finals: dict[int, tuple[Block, FinalityProof]] = {}
        self._submissions: dict[Hash32, CrosslinkSubmission] = {}
        self._decoded: dict[bytes, Record | StateRecord] = {}
        """What bytes said that were read before: most of a log is the same at the next restart."""

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

        def take(entry: LogEntry) -> None:
            found = self._decoded.get(entry.payload)
            if found is None:
                found = self._decoded[entry.payload] = _decode_entry(entry)
            if isinstance(found, StateRecord):
                states[found.block_hash] = found
            else:
                records.append(found)

        with self._file.materialise(lambda number: f"{number:08d}.log") as path:
            BlockLog(path, self._owner, segment_bytes=SEGMENT_BYTES, on_entry=take).close()
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


def _decode_entry(entry: LogEntry) -> Record | StateRecord:
    if entry.kind is EntryKind.NODE:
        return decode(entry.payload, StateRecord, max_bytes=MAX_RECORD_BYTES)
    return entry.decode_record()


def _encode_entry(value: object) -> tuple[bytes, bytes]:
    return encode(value), b"" if isinstance(value, StateRecord) else compute_label(value)  # type: ignore[arg-type]


class _Batch(msgspec.Struct, frozen=True, array_like=True):
    entries: tuple[SignerEntry, ...]


class _Frame(msgspec.Struct, frozen=True):
    """A frame of the signer's record with its number."""

    number: int
    payload: bytes


class SignerDisk(Device):
    """The signer's record of one node and its witness: one frame per batch, synced before its signatures leave."""

    def __init__(self, owner: bytes) -> None:
        super().__init__()
        self.is_missing = False
        """Somebody removed the file."""
        self.witness = 0
        """Number of the last frame, kept beside the keys; never synced, so a power cut may set it back."""
        self._number = 0
        self._owner = owner
        # Its bytes end with what was written last: a batch is synced before the next one is written.
        self._file = FrameFile(
            SIGNER_FILE_KIND, owner, _encode_frame, segment_bytes=1 << 40, can_scramble=False
        )

    def append(self, entries: tuple[SignerEntry, ...]) -> None:
        """Write a batch without waiting for the disk."""
        self._write(FrameKind.ENTRIES, encode(_Batch(entries)))

    def sync(self) -> None:
        """Everything written is safe now."""
        self._file.sync()
        self.witness = self._number

    def begin_anew(self, floor: int) -> None:
        """Put a record in place that signs nothing up to ``floor``, where the old one was lost."""
        self._file.wipe()
        self.is_missing = False
        self._number = max(self._number, self.witness)
        self._write(FrameKind.FLOOR, floor.to_bytes(8, "big"))
        self.sync()

    def crash(self, chance: random.Random) -> int:
        """Lose power; return how many batches are lost."""
        if chance.random() < WITNESS_CHANCE:
            self.witness = chance.randint(max(0, self.witness - MAX_BEHIND), self.witness)
        return self._file.lose_power(chance)

    def flip_bit(self, chance: random.Random) -> int:
        """Flip one bit somewhere in the record, which lost power before; return the place of its byte."""
        return self._file.flip_bit(chance)

    def restore_copy(self, chance: random.Random, batches: int) -> int:
        """Replace the record by an older copy that lacks up to ``batches`` batches; return how many it lacks."""
        with self._file.materialise(lambda _number: SIGNER_FILE) as path:
            places = _find_frames(path / SIGNER_FILE)
        lacking = min(len(places), chance.randint(1, batches))
        if lacking:
            self._file.cut_to(places[-lacking])
        return lacking

    def read(self) -> SignerState:
        """Return what the record holds, as after a restart.

        Raises ``SignerRecordError`` when it is missing, damaged, or behind its witness.
        """
        if self._file.is_empty and not self.is_missing and not self.witness:
            return SignerState()
        with self._file.materialise(lambda _number: SIGNER_FILE) as path:
            kept = (path / SIGNER_FILE).read_bytes()
            if self.is_missing:
                (path / SIGNER_FILE).unlink()
            directory = DataDir(path, DataStamp(self._owner.hex(), "", ""), -1)
            try:
                with Witness([path / "witness"]) as witness:
                    witness.write(self.witness)
                    with SignerRecord(directory, witness) as record:
                        self._number = record.number
                        kept = (path / SIGNER_FILE).read_bytes()
                        return record.state
            finally:
                (path / SIGNER_FILE).write_bytes(kept)

    def _write(self, kind: FrameKind, payload: bytes) -> None:
        self._number += 1
        self._file.append(kind, _Frame(self._number, payload))


def _encode_frame(value: object) -> tuple[bytes, bytes]:
    assert isinstance(value, _Frame), "the record holds frames with numbers"
    return value.payload, value.number.to_bytes(8, "big")


def _find_frames(path: "os.PathLike[str]") -> list[int]:
    """Return where the frames of a signer's record begin."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return [item.offset for item in scan(descriptor, 0) if isinstance(item, Frame)]
    finally:
        os.close(descriptor)
