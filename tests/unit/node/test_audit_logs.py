"""What the auditor keeps of a log: where things stand, without a gap, and what was there before a snapshot."""

import msgspec
import pytest

from node.audit.findings import Findings, Promise
from node.audit.logs import BlockPlaces, ChainLog, Part
from node.audit.stretches import Hashes, Stretch, compare_stretches, join_place, split_place
from node.config import Options
from node.network import create_network
from node.storage.log import BlockLog
from shardyard.effects import FinalRecord, SnapshotRecord
from tests.unit.node.test_audit_arrivals import build_proof, follow, take_snapshot


def name_block(letter):
    return letter.encode() * 32


def build_stretch(owner, first, letters):
    stretch = Stretch(owner, first)
    for at, letter in enumerate(letters):
        stretch.add(name_block(letter), at)
    return stretch


@pytest.mark.parametrize("place", [(0, 0), (3, 70), (12345, 64 << 20), (1, (1 << 40) - 1)])
def test_place_is_one_number_and_comes_apart_again(place):
    assert split_place(join_place(*place)) == place


def test_hashes_are_a_sequence():
    hashes = Hashes([name_block(letter) for letter in "abc"])
    hashes.append(name_block("d"))
    assert list(hashes) == [name_block(letter) for letter in "abcd"]
    assert (hashes[-1], list(hashes[1:3])) == (name_block("d"), [name_block("b"), name_block("c")])
    with pytest.raises(IndexError):
        hashes[4]


@pytest.mark.parametrize(
    ("first", "other", "height"),
    [
        ((1, "abcd"), (1, "abcd"), None),
        ((1, "abcd"), (3, "cdef"), None),
        ((1, "ab"), (3, "xy"), None),
        ((1, "ab"), (7, "xy"), None),
        ((1, ""), (1, "a"), None),
        ((1, "abcd"), (3, "cx"), 4),
        ((3, "xd"), (1, "abcd"), 3),
        ((1, "abcd"), (1, "abxx"), 3),
    ],
)
def test_stretches_are_compared_where_both_have_a_block(first, other, height):
    one, two = build_stretch("one", *first), build_stretch("two", *other)
    assert one.find_difference(two) == two.find_difference(one) == height


def test_every_two_that_differ_are_named():
    findings = Findings()
    rows = [("one", 1, "ab"), ("two", 5, "ef"), ("three", 4, "dex"), ("four", 6, "fg")]
    compare_stretches([build_stretch(*row) for row in rows], findings)
    assert findings.rows[Promise.FINALITY].findings == [
        "three block 6: two has another final block there",
        "four block 6: three has another final block there",
    ]


def test_parts_of_a_block_are_found_by_its_hash_and_the_newer_counts():
    places = BlockPlaces()
    for place in (5, 9):
        places.note(name_block("a"), Part.STATE, place)
    places.note(name_block("b"), Part.BLOCK, 0)
    assert [places.find(name_block("a"), part) for part in Part] == [None, 9, None, None]
    assert [places.find(name_block("b"), part) for part in Part] == [0, None, None, None]
    assert places.find(name_block("c"), Part.BLOCK) is None


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    return create_network(tmp_path_factory.mktemp("home") / "logs", Options(name="logs", shards=1))


@pytest.fixture
def read(network, tmp_path):
    """Write records into a log and read it as the auditor does; gives its log and the findings."""
    opened = []

    async def write_and_read(records):
        findings = Findings()
        with BlockLog(tmp_path / "log", network.genesis.network) as log:
            log.append_records(records)
            await log.sync()
        opened.append(ChainLog(tmp_path / "log", "shard-0-0", 0, network.genesis.network, findings))
        return opened[-1], {promise: row.findings for promise, row in findings.rows.items() if row.broken}

    yield write_and_read
    for log in opened:
        log.close()


def build_finals(genesis, first, letters):
    proof = build_proof(genesis)
    return [FinalRecord(height, name_block(letter), proof) for height, letter in enumerate(letters, first)]


async def test_final_blocks_from_before_a_snapshot_are_kept(network, read):
    genesis = network.genesis
    snapshot = take_snapshot(genesis, 8, 0)
    log, broken = await read([*build_finals(genesis, 1, "abc"), snapshot, *build_finals(genesis, 9, "jk")])
    assert broken == {}
    assert [(span.base, span.first, span.last) for span in log.spans] == [(0, 1, 3), (8, 8, 10)]
    assert log.height == 10
    assert [log.find_final_hash(height) for height in (3, 4, 8, 9)] == [
        name_block("c"),
        None,
        snapshot.block.hash,
        name_block("j"),
    ]
    assert [height for height in range(12) if any(span.has_executed(height) for span in log.spans)] == [
        1,
        2,
        3,
        9,
        10,
    ]


@pytest.mark.parametrize(
    ("height", "letter", "promise", "words"),
    [
        (2, "b", None, ""),
        (2, "x", Promise.FINALITY, "two final blocks at height 2"),
        (5, "e", Promise.CHAINS, "got final height 5 after a snapshot of 8"),
        (12, "m", Promise.CHAINS, "got final height 12 after 10"),
    ],
)
async def test_final_block_that_is_not_the_next_must_be_known(network, read, height, letter, promise, words):
    genesis = network.genesis
    records = [
        *build_finals(genesis, 1, "abc"),
        take_snapshot(genesis, 8, 0),
        *build_finals(genesis, 9, "jk"),
    ]
    _, broken = await read([*records, *build_finals(genesis, height, letter)])
    assert {key: found[0].partition(": ")[2] for key, found in broken.items()} == (
        {promise: words} if promise else {}
    )


async def test_hash_of_another_length_is_no_final_block(network, read):
    log, broken = await read([FinalRecord(1, b"short", build_proof(network.genesis))])
    assert list(broken) == [Promise.LOGS]
    assert log.spans == []


async def test_snapshot_of_a_beacon_block_is_refused(network, read):
    log, broken = await read([SnapshotRecord(network.genesis.beacon_block, build_proof(network.genesis), ())])
    assert "expected a shard's" in broken[Promise.LOGS][0]
    assert log.spans == []


async def test_beacon_is_followed_without_a_gap_and_once(network, read):
    genesis = network.genesis
    record = follow(genesis, 2)
    header = msgspec.structs.replace(record.block.header, timestamp_ms=1)
    other = msgspec.structs.replace(record, block=msgspec.structs.replace(record.block, header=header))
    log, broken = await read([follow(genesis, 1), record, other, follow(genesis, 4)])
    assert log.followed.last == 2
    assert "two blocks of the beacon at height 2" in broken[Promise.FINALITY][0]
    assert "got the beacon's block 4, expected 3" in broken[Promise.CHAINS][0]
