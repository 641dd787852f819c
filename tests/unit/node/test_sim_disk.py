"""The simulated disk: real frames, torn at every byte, as is its signer's record, which a witness watches."""

import random
from collections import Counter

import pytest

from node.executor import StateRecord
from node.sim import disk as disk_module
from node.sim.disk import SEGMENT_BYTES, SignerDisk, SimDisk
from node.storage.frames import HEADER_BYTES, CorruptFileError
from node.storage.signer_record import SignerRecordError
from shardyard.consensus.signer import SignerEntry
from shardyard.effects import ExecutionRecord
from shardyard.ids import Hash32, Height

OWNER = Hash32(b"\x11" * 32)


class Cut(random.Random):
    """A generator that tears at a chosen byte and leaves a plain prefix."""

    def __init__(self, at):
        super().__init__(0)
        self.at = at

    def randint(self, low, high):
        return min(low + self.at, high)

    def randrange(self, low, high):
        return high - 1

    def random(self):
        return 0.99


def build_records(count, size=40):
    return [ExecutionRecord(Hash32(bytes([index]) * 32), (bytes([index]) * size,)) for index in range(count)]


def write(disk, records, synced):
    for index, record in enumerate(records):
        disk.append(record)
        if index + 1 == synced:
            disk.sync()


def build_entries(count):
    return [SignerEntry(0, slot, b"", bytes([slot]) * 32, False, b"") for slot in range(1, count + 1)]


def test_a_log_torn_at_every_byte_keeps_what_was_synced_and_a_prefix_of_the_rest():
    records = build_records(6)
    seen = set()
    for at in range(700):
        disk = SimDisk(OWNER)
        write(disk, records, synced=3)
        lost = disk.crash(Cut(at))
        found, _ = disk.read()
        assert found == records[: len(found)]
        assert len(found) == 6 - lost >= 3
        seen.add(len(found))
    assert seen == {3, 4, 5, 6}


@pytest.mark.parametrize("seed", range(300))
def test_a_log_with_holes_and_nonsense_where_it_was_not_synced_loses_nothing_that_was(seed):
    records = build_records(12, size=300)
    disk = SimDisk(OWNER)
    write(disk, records, synced=5)
    disk.crash(random.Random(seed))
    found, _ = disk.read()
    assert len(found) >= 5
    assert found == records[: len(found)]
    disk.append(records[0])  # and it goes on behind what was cut off
    disk.sync()
    disk.crash(random.Random(seed))
    assert disk.read()[0] == [*found, records[0]]


def test_a_log_of_several_segments_torn_anywhere_is_a_prefix():
    records = build_records(9, size=SEGMENT_BYTES // 4)
    lengths = Counter()
    for seed in range(40):
        disk = SimDisk(OWNER)
        write(disk, records, synced=2)
        disk.crash(random.Random(seed))
        found, _ = disk.read()
        assert found == records[: len(found)]
        assert len(found) >= 2
        lengths[len(found)] += 1
    assert len(lengths) > 3


def test_every_flipped_bit_of_what_was_synced_is_noticed_or_costs_the_end_alone():
    records = build_records(4)
    outcomes = Counter()
    for seed in range(400):
        disk = SimDisk(OWNER)
        for record in records:
            disk.append(record)
            disk.sync()
        disk.crash(random.Random(0))
        disk.flip_bit(random.Random(seed))
        try:
            found, _ = disk.read()
        except CorruptFileError:
            outcomes["refused"] += 1
            disk.wipe()
            assert disk.read() == ([], {})
        else:
            assert found == records[:3], "only a last record, behind which nothing says that it was synced"
            outcomes["last record cut off"] += 1
    assert outcomes["refused"] > 250
    assert outcomes["last record cut off"] > 20


def test_states_come_back_by_their_block():
    disk = SimDisk(OWNER)
    state = StateRecord(Hash32(b"\x05" * 32), Height(7), b"diff", b"")
    disk.append_state(state)
    disk.append(build_records(1)[0])
    disk.sync()
    assert disk.crash(random.Random(1)) == 0
    assert disk.read() == (build_records(1), {state.block_hash: state})


def test_a_process_that_never_wrote_has_an_empty_log_and_an_empty_record():
    assert SimDisk(OWNER).read() == ([], {})
    assert len(SignerDisk(OWNER).read()) == 0


@pytest.mark.parametrize("at", [0, 1, 30, HEADER_BYTES - 1, HEADER_BYTES])
def test_a_header_torn_with_a_new_segment_is_written_again(at):
    records = build_records(3, size=SEGMENT_BYTES)
    disk = SimDisk(OWNER)
    write(disk, records, synced=2)
    assert disk.crash(Cut(at)) == 1
    assert disk.read()[0] == records[:2]
    disk.append(records[2])
    disk.sync()
    disk.crash(random.Random(1))
    assert disk.read()[0] == records


# The signer's record


def write_batches(entries, synced):
    record = SignerDisk(OWNER)
    for index, entry in enumerate(entries):
        record.append((entry,))
        if index + 1 <= synced:
            record.sync()
    return record


def test_a_signers_record_torn_at_every_byte_forgets_unsynced_batches_alone():
    entries = build_entries(5)
    for at in range(400):
        record = write_batches(entries, synced=3)
        lost = record.crash(Cut(at))
        assert record.read().entries() == entries[: 5 - lost]
        assert lost <= 2


def test_a_missing_record_is_no_empty_record():
    record = write_batches(build_entries(1), synced=1)
    record.is_missing = True
    with pytest.raises(
        SignerRecordError, match=r"^signer\.log: missing"
    ):  # and no word of where this machine keeps it
        record.read()


def test_an_old_copy_is_behind_its_witness():
    record = write_batches(build_entries(20), synced=20)
    record.crash(Cut(0))
    assert record.witness == 20
    assert record.restore_copy(random.Random(3), 10) > 0
    with pytest.raises(SignerRecordError, match="has seen entry 20"):
        record.read()


def test_an_old_copy_whose_witness_was_set_back_too_goes_unnoticed(monkeypatch):
    monkeypatch.setattr(disk_module, "WITNESS_CHANCE", 1.0)
    monkeypatch.setattr(disk_module, "MAX_BEHIND", 1000)
    entries = build_entries(20)
    seen = Counter()
    for seed in range(40):
        record = write_batches(entries, synced=20)
        record.crash(random.Random(seed))
        lacking = record.restore_copy(random.Random(seed), 10)
        try:
            assert record.read().entries() == entries[: 20 - lacking]
            seen["unnoticed"] += 1
        except SignerRecordError:
            seen["noticed"] += 1
    assert min(seen["noticed"], seen["unnoticed"]) > 5


def test_a_record_begun_anew_signs_nothing_up_to_its_floor_and_is_ahead_of_its_witness():
    record = write_batches(build_entries(3), synced=3)
    record.is_missing = True
    record.begin_anew(50)
    record.crash(random.Random(0))
    state = record.read()
    assert state.floor == 50
    assert state.entries() == []
    record.append((build_entries(1)[0],))
    record.sync()
    record.crash(random.Random(0))
    assert record.read().floor == 50


@pytest.mark.parametrize("seed", range(200))
def test_every_flipped_bit_of_a_record_is_noticed(seed):
    record = write_batches(build_entries(6), synced=6)
    record.crash(Cut(0))
    record.flip_bit(random.Random(seed))
    with pytest.raises(SignerRecordError):
        record.read()
