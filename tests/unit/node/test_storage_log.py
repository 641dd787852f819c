"""The block log: what was synced is there or its loss is noticed, whatever tears, flips or fills up."""

import asyncio
import errno
import os

import pytest

from node.storage import log as log_module
from node.storage.data_dir import LowDiskError
from node.storage.frames import (
    FRAME_BYTES,
    HEADER_BYTES,
    WINDOW_BYTES,
    CorruptFileError,
    Frame,
    ScanEnd,
    Tail,
    encode_frame,
    encode_header,
    scan,
)
from node.storage.log import LOG_FILE_KIND, BlockLog, EntryKind, LogFailedError
from shardyard.blocks import EMPTY_JUSTIFICATION, BeaconContent, FinalityProof, build_genesis_block
from shardyard.consensus.votes import Certificate, VoteKind
from shardyard.crosslinks import Crosslink, CrosslinkSubmission
from shardyard.effects import BlockRecord, CertificateRecord, FinalRecord, SnapshotRecord, SubmissionRecord
from shardyard.ids import BEACON, ZERO_HASH, Epoch, Hash32, Height, ShardId, Slot

OWNER = b"o" * 32
CONTENT = BeaconContent(ZERO_HASH, 0, ZERO_HASH, ZERO_HASH)
CERTIFICATE = Certificate(VoteKind.NOTAR, Slot(1), ZERO_HASH, b"\x0f", bytes(96))
PROOF = FinalityProof(path=(), notarization=CERTIFICATE, finalization=CERTIFICATE)


def build_block(height):
    genesis = build_genesis_block(Hash32(OWNER), BEACON, 0, CONTENT)
    header = type(genesis.header)(
        **{
            name: getattr(genesis.header, name)
            for name in genesis.header.__struct_fields__
            if name not in {"height", "slot"}
        },
        height=Height(height),
        slot=Slot(height),
    )
    return type(genesis)(
        header=header,
        justification=EMPTY_JUSTIFICATION,
        body=b"body %d" % height,
        signature=b"",
        beacon_proof=b"",
    )


def build_records(height):
    block = build_block(height)
    return [
        BlockRecord(block),
        CertificateRecord(CERTIFICATE),
        FinalRecord(Height(height), block.hash, PROOF),
    ]


def read_payloads(log):
    return [entry.payload for entry in log.iterate()]


async def fill(path, payloads, **options):
    with BlockLog(path, OWNER, **options) as log:
        for payload in payloads:
            log.append(EntryKind.NODE, payload)
            await log.sync()


async def test_entries_come_back_in_order_after_reopening(tmp_path):
    payloads = [os.urandom(size) for size in (0, 1, 1000, 100_000)]
    await fill(tmp_path / "log", payloads)
    with BlockLog(tmp_path / "log", OWNER) as log:
        assert read_payloads(log) == payloads
        assert log.truncated_bytes == 0
        log.append(EntryKind.NODE, b"more")
        log.sync_now()
        assert read_payloads(log) == [*payloads, b"more"]


async def test_opening_hands_over_every_entry_on_the_way_and_none_of_a_torn_end(tmp_path):
    payloads = [os.urandom(700) for _ in range(20)]
    await fill(tmp_path / "log", payloads, segment_bytes=4096)
    newest = max((tmp_path / "log").iterdir())
    os.truncate(newest, newest.stat().st_size - 1)
    entries = []
    with BlockLog(tmp_path / "log", OWNER, segment_bytes=4096, on_entry=entries.append) as log:
        assert log.truncated_bytes > 0
        assert entries == list(log.iterate())
    assert [entry.payload for entry in entries] == payloads[:-1]


@pytest.mark.parametrize("around", [-1, 0, 1])
async def test_frames_are_found_wherever_the_pieces_end_in_which_a_file_is_read(tmp_path, around):
    first = os.urandom(WINDOW_BYTES - 2 * FRAME_BYTES + around)  # the next head begins within the first piece
    payloads = [first, os.urandom(2 * WINDOW_BYTES), b"", os.urandom(5), os.urandom(WINDOW_BYTES), b"end"]
    await fill(tmp_path / "log", payloads)
    entries = []
    with BlockLog(tmp_path / "log", OWNER, on_entry=entries.append) as log:
        assert read_payloads(log) == payloads == [entry.payload for entry in entries]


async def test_what_was_not_synced_is_not_read_back(tmp_path):
    with BlockLog(tmp_path / "log", OWNER) as log:
        log.append(EntryKind.NODE, b"synced")
        await log.sync()
        log.append(EntryKind.NODE, b"queued")
        assert read_payloads(log) == [b"synced"]
    with BlockLog(tmp_path / "log", OWNER) as log:
        assert read_payloads(log) == [b"synced"]


async def test_records_and_entries_of_the_shell_keep_their_order_and_kind(tmp_path):
    with BlockLog(tmp_path / "log", OWNER) as log:
        log.append_records(build_records(1))
        log.append_node(CERTIFICATE)
        await log.sync()
        kinds = [entry.kind for entry in log.iterate()]
        assert kinds == [EntryKind.KERNEL] * 3 + [EntryKind.NODE]
        records = [entry.decode_record() for entry in log.iterate() if entry.kind is EntryKind.KERNEL]
        assert records == build_records(1)


async def test_final_blocks_are_found_by_height_before_and_after_reopening(tmp_path):
    with BlockLog(tmp_path / "log", OWNER, segment_bytes=4096) as log:
        for height in range(1, 30):
            log.append_records(build_records(height))
            assert log.get_final(height) is None
            await log.sync()
        assert log.final_height == 29
    assert len(list((tmp_path / "log").iterdir())) > 3
    with BlockLog(tmp_path / "log", OWNER, segment_bytes=4096) as log:
        for height in range(1, 30):
            assert log.get_final(height) == (build_block(height), PROOF)
        assert log.get_final(0) is None
        assert log.get_final(30) is None


async def test_a_repeated_final_record_changes_nothing(tmp_path):
    with BlockLog(tmp_path / "log", OWNER) as log:
        for height in (1, 2, 2, 1, 3):
            log.append_records(build_records(height))
        await log.sync()
        assert log.final_height == 3
        assert log.get_final(3) == (build_block(3), PROOF)


async def test_callers_that_come_together_share_a_sync(tmp_path, monkeypatch):
    syncs = []
    real = os.fdatasync
    monkeypatch.setattr(log_module.os, "fdatasync", lambda descriptor: (syncs.append(1), real(descriptor)))
    with BlockLog(tmp_path / "log", OWNER) as log:

        async def append_and_sync(number):
            log.append(EntryKind.NODE, b"%d" % number)
            await log.sync()

        await asyncio.gather(*(append_and_sync(number) for number in range(50)))
        assert len(read_payloads(log)) == 50
    assert len(syncs) <= 2


# --- torn writes and flipped bits ---


def build_image(frames, size):
    """Return the bytes of a segment with ``frames`` frames, each synced before the next, and where they end."""
    image = encode_header(LOG_FILE_KIND, OWNER, 0)
    ends = [len(image)]
    for number in range(frames):
        payload = bytes([number % 251]) * (size + number % 7)
        image += encode_frame(len(image), 0, 1, payload, label=b"label", synced=len(image))
        ends.append(len(image))
    return image, ends


def scan_image(descriptor):
    found, end = [], None
    for item in scan(descriptor, 0):
        if isinstance(item, Frame):
            found.append(item)
        else:
            end = item
    return found, end


@pytest.fixture
def memory_file():
    descriptor = os.memfd_create("image")
    yield descriptor
    os.close(descriptor)


def test_frames_that_are_written_while_a_log_is_read_are_read_and_are_no_damage(memory_file, monkeypatch):
    image, ends = build_image(8, 100)
    os.pwrite(memory_file, image[: ends[5]], 0)
    measure = os.fstat

    def write_and_measure(descriptor):
        # Two whole frames and a part of the next come between the last look and the question for the size.
        os.pwrite(descriptor, image[ends[5] : ends[7] + 20], ends[5])
        return measure(descriptor)

    monkeypatch.setattr(os, "fstat", write_and_measure)
    frames, end = scan_image(memory_file)
    assert len(frames) == 7
    assert end == ScanEnd(ends[7], Tail.TORN)


def test_a_log_of_64_kib_torn_at_every_byte_gives_back_exactly_the_whole_frames(memory_file):
    image, ends = build_image(frames=24, size=2750)
    assert len(image) >= 64 * 1024
    os.pwrite(memory_file, image, 0)
    whole = len(ends) - 1
    for size in range(len(image) - 1, HEADER_BYTES, -1):
        os.ftruncate(memory_file, size)
        while ends[whole] > size:
            whole -= 1
        found, end = scan_image(memory_file)
        assert len(found) == whole
        assert end == ScanEnd(ends[whole], Tail.CLEAN if size == ends[whole] else Tail.TORN)


def test_a_bit_flipped_at_every_byte_of_64_kib_is_noticed(memory_file):
    image, ends = build_image(frames=24, size=2750)
    os.pwrite(memory_file, image, 0)
    hit = 0
    for position in range(HEADER_BYTES, len(image)):
        while ends[hit + 1] <= position:
            hit += 1
        os.pwrite(memory_file, bytes([image[position] ^ 1 << position % 8]), position)
        found, end = scan_image(memory_file)
        assert len(found) == hit
        is_last = hit == len(ends) - 2
        assert end.offset == ends[hit]
        assert end.tail in ({Tail.DAMAGED} if is_last else {Tail.CORRUPT})
        os.pwrite(memory_file, image[position : position + 1], position)


@pytest.mark.parametrize("rest", [b"\x00" * 500, b"\xf5\x53\x59\xa7" * 200, os.urandom(3000)])
async def test_an_unfinished_end_is_cut_off_and_writing_goes_on(tmp_path, rest):
    await fill(tmp_path / "log", [b"one", b"two"])
    with (tmp_path / "log" / "00000000.log").open("ab") as file:
        file.write(rest)
    with BlockLog(tmp_path / "log", OWNER) as log:
        assert log.truncated_bytes == len(rest)
        assert read_payloads(log) == [b"one", b"two"]
        log.append(EntryKind.NODE, b"three")
        await log.sync()
    with BlockLog(tmp_path / "log", OWNER) as log:
        assert read_payloads(log) == [b"one", b"two", b"three"]


async def test_a_hole_in_what_was_never_synced_is_cut_off(tmp_path):
    with BlockLog(tmp_path / "log", OWNER) as log:
        log.append(EntryKind.NODE, b"synced")
        await log.sync()
        start = log.size
        for _ in range(10):
            log.append(EntryKind.NODE, b"x" * 5000)
        await log.sync()
    path = tmp_path / "log" / "00000000.log"
    with path.open("r+b") as file:
        file.seek(start + 4096)
        file.write(bytes(4096))  # a page of the last batch that never reached the disk
    with BlockLog(tmp_path / "log", OWNER) as log:
        assert read_payloads(log) == [b"synced"]


async def test_damage_before_durable_records_is_refused(tmp_path):
    await fill(tmp_path / "log", [b"one" * 100, b"two" * 100, b"three" * 100])
    path = tmp_path / "log" / "00000000.log"
    data = bytearray(path.read_bytes())
    data[HEADER_BYTES + 50] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptFileError, match="offset 64"):
        BlockLog(tmp_path / "log", OWNER)


async def test_an_older_segment_may_not_have_an_unfinished_end(tmp_path):
    await fill(tmp_path / "log", [b"x" * 600] * 5, segment_bytes=1000)
    first = tmp_path / "log" / "00000000.log"
    os.truncate(first, first.stat().st_size - 1)
    with pytest.raises(CorruptFileError):
        BlockLog(tmp_path / "log", OWNER, segment_bytes=1000)


async def test_a_missing_segment_is_refused(tmp_path):
    await fill(tmp_path / "log", [b"x" * 600] * 5, segment_bytes=1000)
    (tmp_path / "log" / "00000001.log").unlink()
    with pytest.raises(CorruptFileError, match="missing"):
        BlockLog(tmp_path / "log", OWNER, segment_bytes=1000)


@pytest.mark.parametrize("size", range(HEADER_BYTES))
async def test_a_segment_whose_creation_was_cut_short_is_created_anew(tmp_path, size):
    await fill(tmp_path / "log", [b"x" * 600] * 2, segment_bytes=500)
    last = tmp_path / "log" / "00000001.log"
    os.truncate(last, size)
    with BlockLog(tmp_path / "log", OWNER, segment_bytes=500) as log:
        assert read_payloads(log) == [b"x" * 600]
        log.append(EntryKind.NODE, b"again")
        await log.sync()
        assert read_payloads(log) == [b"x" * 600, b"again"]


async def test_the_log_of_another_network_is_refused(tmp_path):
    await fill(tmp_path / "log", [b"one"])
    with pytest.raises(CorruptFileError, match="another network"):
        BlockLog(tmp_path / "log", b"p" * 32)


async def test_a_frame_copied_to_another_place_is_not_taken(tmp_path):
    await fill(tmp_path / "log", [b"one"])
    path = tmp_path / "log" / "00000000.log"
    data = path.read_bytes()
    path.write_bytes(data + data[HEADER_BYTES:])
    with BlockLog(tmp_path / "log", OWNER) as log:
        assert read_payloads(log) == [b"one"]


# --- disks that fail ---


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("call", ["write", "fdatasync"])
async def test_a_disk_that_fails_stops_the_log_for_good(tmp_path, monkeypatch, call, number):
    with BlockLog(tmp_path / "log", OWNER) as log:
        log.append(EntryKind.NODE, b"before")
        await log.sync()

        def fail(*_):
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(os, call, fail)
        log.append(EntryKind.NODE, b"lost")
        with pytest.raises(LogFailedError):
            await log.sync()
        monkeypatch.undo()
        with pytest.raises(LogFailedError):
            log.append(EntryKind.NODE, b"after")
        with pytest.raises(LogFailedError):
            await log.sync()
    with BlockLog(tmp_path / "log", OWNER) as log:
        assert read_payloads(log)[0] == b"before"


async def test_a_write_that_stops_half_way_leaves_a_log_that_opens(tmp_path, monkeypatch):
    real = os.write
    with BlockLog(tmp_path / "log", OWNER) as log:
        log.append(EntryKind.NODE, b"before")
        await log.sync()
        budget = [1000]

        def write_until_full(descriptor, data):
            if budget[0] == 0:
                raise OSError(errno.ENOSPC, "no space")
            written = real(descriptor, bytes(data[: budget[0]]))
            budget[0] -= written
            return written

        monkeypatch.setattr(os, "write", write_until_full)
        log.append(EntryKind.NODE, b"x" * 5000)
        with pytest.raises(LogFailedError):
            await log.sync()
        monkeypatch.undo()
    with BlockLog(tmp_path / "log", OWNER) as log:
        assert read_payloads(log) == [b"before"]
        assert log.truncated_bytes == 1000


async def test_a_low_disk_stops_the_log_before_it_writes(tmp_path, monkeypatch):
    def refuse(path):
        raise LowDiskError("low")

    with BlockLog(tmp_path / "log", OWNER) as log:
        size = log.size
        monkeypatch.setattr(log_module, "verify_space", refuse)
        log.append(EntryKind.NODE, b"x")
        with pytest.raises(LogFailedError):
            await log.sync()
        assert log.size == size


async def test_cancelling_a_sync_does_not_lose_what_it_wrote(tmp_path):
    with BlockLog(tmp_path / "log", OWNER) as log:
        log.append(EntryKind.NODE, b"one")
        task = asyncio.create_task(log.sync())
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        log.append(EntryKind.NODE, b"two")
        await log.sync()
        assert read_payloads(log) == [b"one", b"two"]


def build_submission(height):
    crosslink = Crosslink(
        shard=ShardId(0),
        epoch=Epoch(0),
        parent=ZERO_HASH,
        first_height=Height(height),
        last_height=Height(height),
        head_hash=Hash32(bytes([height]) * 32),
        state_root=ZERO_HASH,
        links=(),
        inbox_position=0,
        burnt=bytes(32),
        congestion=0,
        base_fee=7,
    )
    return CrosslinkSubmission(crosslink, headers=(), outboxes=((b"receipt",),), proof=PROOF)


async def test_bodies_of_a_crosslink_are_found_by_its_hash_also_after_reopening(tmp_path):
    submissions = [build_submission(height) for height in (1, 2, 3)]
    with BlockLog(tmp_path, OWNER, segment_bytes=1024) as log:
        for height, submission in enumerate(submissions, start=1):
            log.append_records([SubmissionRecord(submission), *build_records(height)])
        await log.sync()
        assert [log.get_submission(s.crosslink.hash) for s in submissions] == submissions
    with BlockLog(tmp_path, OWNER, segment_bytes=1024) as log:
        assert [log.get_submission(s.crosslink.hash) for s in submissions] == submissions
        assert log.get_submission(ZERO_HASH) is None
        assert log.final_height == 3


async def test_a_snapshot_takes_the_place_of_what_was_before_also_after_reopening(tmp_path):
    chunks = {Hash32(bytes([index]) * 32): b"chunk %d" % index for index in range(3)}
    block = build_block(40)
    with BlockLog(tmp_path, OWNER) as log:
        for height in (1, 2, 3):
            log.append_records(build_records(height))
        for chunk_hash, chunk in chunks.items():
            log.append_chunk(chunk_hash, chunk)
        log.append_chunk(*next(iter(chunks.items())))  # once is enough
        await log.sync()
        assert (log.first_height, log.final_height) == (1, 3)
        log.append_records([SnapshotRecord(block, PROOF, tuple(chunks))])
        for height in (41, 42):
            log.append_records(build_records(height))
        await log.sync()
        count = len(read_payloads(log))
    with BlockLog(tmp_path, OWNER) as log:
        assert len(read_payloads(log)) == count == 9 + 3 + 1 + 6
        assert (log.first_height, log.final_height) == (41, 42)
        assert [log.get_final(height) is not None for height in (1, 3, 40, 41, 42, 43)] == [
            False,
            False,
            False,
            True,
            True,
            False,
        ]
        assert log.get_final(42)[0] == build_block(42)
        assert {chunk_hash: log.get_chunk(chunk_hash) for chunk_hash in chunks} == chunks
        assert log.has_chunk(next(iter(chunks)))
        assert log.get_chunk(Hash32(b"?" * 32)) is None
