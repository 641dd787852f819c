"""The sum of all wei: what holds, what breaks it, and what cannot be counted."""

import re

import msgspec
import pytest

from node.checks import verdict as asking
from node.checks.conservation import judge_supply
from node.checks.forks import check_no_forks, describe_accused
from node.checks.offline import check_no_forks_logs
from node.config import Options
from node.control import ControlError
from node.network import create_network
from node.storage.log import BlockLog
from shardyard.blocks import compute_body_hash
from shardyard.codec import encode
from shardyard.crosslinks import BeaconBody, Crosslink, compute_crosslinks_root
from shardyard.effects import BeaconRecord, BlockRecord, FinalRecord
from shardyard.ids import ZERO_HASH
from tests.unit.node.test_audit_arrivals import build_proof, take_snapshot

MADE = [90, 210]
GENESIS = 300


def build_books(**more):
    rows = [
        {"shard": 0, "height": 7, "head": "aa", "balance": "90", "burnt": "10", "in_flight": "0"},
        {"shard": 1, "height": 9, "head": "bb", "balance": "180", "burnt": "5", "in_flight": "15"},
    ]
    return {"height": 12, "genesis": str(GENESIS), "shards": rows} | more


def test_sum_of_all_accounts_in_flight_and_burnt_is_genesis():
    verdict = judge_supply(build_books(), {0: 90, 1: 180}, MADE)
    assert verdict.held
    assert (verdict.figures["total"], verdict.figures["in_flight"]) == ("300", "15")
    assert "at beacon height 12" in verdict.words


@pytest.mark.parametrize(
    ("books", "counted", "words"),
    [
        ({}, {0: 91, 1: 180}, "shard-0: its accounts hold 91 wei at height 7, the beacon's books say 90"),
        ({}, {0: 91, 1: 180}, r"got 301 wei in all, genesis made 300: \+1 wei"),
        ({"genesis": "299"}, {0: 90, 1: 180}, "genesis made 300 wei, the beacon's books say 299"),
        ({"shards": []}, {}, r"the beacon's books are about shards \[\], expected each of 2 once"),
        ({"shards": build_books()["shards"][:1]}, {0: 90}, r"about shards \[0\], expected each of 2 once"),
        ({}, {0: 90}, "shard-1: no node could count its wei at height 9"),
    ],
)
def test_what_breaks_the_sum_is_named(books, counted, words):
    verdict = judge_supply(build_books(**books), counted, MADE)
    assert not verdict.held
    assert any(re.search(words, finding) for finding in verdict.findings)


def test_accused_are_named_with_their_shard_and_with_who_holds_the_evidence():
    twice = {
        "validator 1: notarize and notarize in one slot": 2,
        "validator 1: skip and finalize in one slot": 1,
    }
    evidence = {
        "shard-0-0": twice,
        "shard-0-2": twice,
        "shard-1-0": {"validator 1: skip and finalize in one slot": 1},
    }
    assert describe_accused(evidence) == (
        "validator 1 of shard-0, held by shard-0-0, shard-0-2; validator 1 of shard-1, held by shard-1-0"
    )


def test_wei_that_nobody_could_count_are_not_called_wrong():
    assert judge_supply(build_books(), {0: 90}, MADE).words == "the sum cannot be counted at beacon height 12"
    assert judge_supply(build_books(), {0: 91}, MADE).words == "the sum does not hold at beacon height 12"


@pytest.fixture
def tell_final(home, monkeypatch):
    """Let the nodes of a network call these blocks final, from height 1 on; one that is not named does not answer."""
    network = create_network(home / "mine", Options(name="mine", shards=1, nodes_per_shard=2, seed=5))

    def tell_them(**hashes):
        told = {network.get_control_path(node.replace("_", "-")): row for node, row in hashes.items()}

        async def ask(path, method, *, timeout_s, first=1, count=1):
            if path not in told or method == "supply":
                raise ControlError("nobody there")
            row = told[path]
            found = {"height": len(row), "first": first, "hashes": row[first - 1 : first - 1 + count]}
            return found if method == "finals" else {}

        monkeypatch.setattr(asking, "ask", ask)
        return network

    return tell_them


async def test_two_final_blocks_of_one_height_are_a_fork(tell_final):
    network = tell_final(beacon_0=["aa"], shard_0_0=["bb", "cc"], shard_0_1=["bb", "dd"])
    verdict = await check_no_forks(network)
    assert verdict.words.startswith("FORKED")
    assert verdict.findings == (
        "shard-0: 1 heights with several final blocks, first at 2: shard-0-0: 0xcc…; shard-0-1: 0xdd…",
    )


async def test_chain_that_nobody_tells_of_fails_the_check_and_is_not_called_forked(tell_final):
    verdict = await check_no_forks(tell_final(beacon_0=["aa"]))
    assert not verdict.held
    assert verdict.words.startswith("1 chains or nodes cannot be compared; no two nodes differ")
    assert verdict.findings == ("shard-0: no node answers",)


@pytest.mark.parametrize("is_refused", [True, False])
async def test_node_that_gives_fewer_hashes_than_its_height_is_not_passed_over(
    tell_final, monkeypatch, is_refused
):
    network = tell_final(beacon_0=["aa"], shard_0_0=["bb", "cc", "dd"], shard_0_1=["bb", "cc", "dd"])
    tell, path = asking.ask, network.get_control_path("shard-0-1")

    async def ask(asked, method, *, timeout_s, **params):
        found = await tell(asked, method, timeout_s=timeout_s, **params)
        if asked == path and method == "finals" and params != {"first": 1, "count": 1}:
            if is_refused:
                raise ControlError("its log is damaged")
            return found | {"hashes": found["hashes"][:2]} if params["first"] == 1 else found | {"hashes": []}
        return found

    monkeypatch.setattr(asking, "ask", ask)
    verdict = await check_no_forks(network)
    assert not verdict.held
    assert verdict.words.startswith("1 chains or nodes cannot be compared")
    why = "1 and above: its log is damaged" if is_refused else "3 and above: its answer ends there"
    assert verdict.findings == (f"shard-0-1: it is at height 3 and gave no hash of {why}",)


# The same from logs. Final blocks are named by a byte; whether they are well-formed is not asked here.


@pytest.fixture
def write_logs(home):
    """Write the logs of a network with one shard: by node its final blocks, from height 1 or a snapshot's on.

    ``followed`` are the beacon's blocks that a node followed, by name, from height 1 on.
    """
    options = Options(name="mine", shards=1, nodes_per_shard=3, seed=5)
    network = create_network(home / "mine", options)

    async def write(shard, *, base=None, accepted=None, followed=None):
        finals = {node: build_finals(network.genesis, row, base or {}, node) for node, row in shard.items()}
        for node, names in (followed or {}).items():
            finals[node] += build_followed(network.genesis, names)
        finals["beacon-0"] = build_beacon(network.genesis, accepted or {})
        for node, records in finals.items():
            with BlockLog(network.get_data_dir(node) / "blocks", network.genesis.network) as log:
                log.append_records(records)
                await log.sync()
        return network

    return write


def build_finals(genesis, names, base, node):
    start = base.get(node, 0)
    snapshot = [take_snapshot(genesis, start, 0)] if start else []
    proof = build_proof(genesis)
    return snapshot + [
        FinalRecord(height, name.encode() * 32, proof) for height, name in enumerate(names, start=start + 1)
    ]


def build_followed(genesis, names):
    """Return beacon blocks as a shard followed them; ``b`` at height 1 is the one of a beacon that accepted nothing."""
    records = []
    for height, name in enumerate(names, start=1):
        block = build_beacon(genesis, {})[0].block
        header = msgspec.structs.replace(
            block.header, height=height, timestamp_ms=block.header.timestamp_ms + ord(name) - ord("b")
        )
        records.append(BeaconRecord(msgspec.structs.replace(block, header=header), build_proof(genesis), ()))
    return records


def build_beacon(genesis, accepted):
    """Return the final block of a beacon that accepted the shard's heads, by height."""
    crosslinks = tuple(
        Crosslink(0, 0, ZERO_HASH, 1, height, name.encode() * 32, ZERO_HASH, (), 0, bytes(32), 0, 1)
        for height, name in accepted.items()
    )
    block, body = genesis.beacon_block, encode(BeaconBody(crosslinks))
    content = msgspec.structs.replace(
        block.header.beacon_content,
        crosslink_count=len(crosslinks),
        crosslinks_root=compute_crosslinks_root(crosslinks),
    )
    header = msgspec.structs.replace(
        block.header, height=1, body_hash=compute_body_hash(body), content=content
    )
    block = msgspec.structs.replace(block, header=header, body=body)
    return [BlockRecord(block), FinalRecord(1, block.hash, build_proof(genesis))]


async def test_only_heights_that_two_logs_have_are_counted_as_compared(write_logs):
    network = await write_logs(
        {"shard-0-0": "abc", "shard-0-1": "jkl", "shard-0-2": "jk"}, base={"shard-0-1": 9, "shard-0-2": 9}
    )
    verdict = check_no_forks_logs(network)
    assert verdict.held
    assert verdict.words == "no two logs differ in 3 heights of 2 chains"  # the snapshot's, and two above


async def test_logs_that_begin_above_the_first_are_compared_with_each_other(write_logs):
    network = await write_logs(
        {"shard-0-0": "abc", "shard-0-1": "jk", "shard-0-2": "jx"}, base={"shard-0-1": 9, "shard-0-2": 9}
    )
    verdict = check_no_forks_logs(network)
    assert verdict.words == "FORKED"
    (finding,) = verdict.findings
    assert finding.startswith("shard-0: 1 heights with several final blocks, first at 11: shard-0-1: 0x6b6b")


async def test_head_that_the_beacon_accepted_and_no_log_has_is_a_fork(write_logs):
    network = await write_logs({f"shard-0-{n}": "abc" for n in range(3)}, accepted={2: "x"})
    verdict = check_no_forks_logs(network)
    assert verdict.words == "FORKED"
    assert re.search(
        "first at 2: shard-0-0, shard-0-1, shard-0-2: 0x62.*; the beacon: 0x78", verdict.findings[0]
    )


async def test_block_that_the_beacon_accepted_above_all_logs_cannot_be_compared(write_logs):
    network = await write_logs({f"shard-0-{n}": "abc" for n in range(3)}, accepted={4: "d"})
    verdict = check_no_forks_logs(network)
    assert verdict.words == "not all heights can be compared; no two logs differ in 3 heights of 2 chains"
    assert verdict.findings == ("shard-0: the beacon accepted block 4, the logs end at 3",)


async def test_beacon_blocks_that_shards_followed_are_compared_with_the_beacons_and_each_other(write_logs):
    logs = {f"shard-0-{n}": "abc" for n in range(3)}
    followed = {"shard-0-0": "bcd", "shard-0-1": "bcd", "shard-0-2": "b"}
    verdict = check_no_forks_logs(await write_logs(logs, followed=followed))
    assert verdict.held
    assert verdict.words == "no two logs differ in 6 heights of 2 chains"  # three of them the beacon's


@pytest.mark.parametrize(
    ("followed", "sides"),
    [
        ({"shard-0-1": "x"}, r"first at 1: beacon-0: 0x.*; shard-0-1 \(as it followed the beacon\): 0x"),
        (
            {"shard-0-0": "bc", "shard-0-2": "bx"},
            r"first at 2: shard-0-0 \(as .*\): 0x.*; shard-0-2 \(as .*\): 0x",
        ),
    ],
)
async def test_shard_that_followed_another_beacon_block_is_a_witness_of_a_fork(write_logs, followed, sides):
    network = await write_logs({f"shard-0-{n}": "abc" for n in range(3)}, followed=followed)
    verdict = check_no_forks_logs(network)
    assert verdict.words == "FORKED"
    assert re.search(f"beacon: 1 heights with several final blocks, {sides}", verdict.findings[0])


async def test_missing_log_cannot_be_compared_and_is_not_called_forked(write_logs):
    network = await write_logs({"shard-0-0": "abc", "shard-0-1": "abc"}, accepted={3: "c"})
    verdict = check_no_forks_logs(network)
    assert not verdict.held
    assert verdict.words.startswith("not all heights can be compared; no two logs differ in 3 heights")
    assert [finding.partition(" at ")[0] for finding in verdict.findings] == [
        "shard-0-2: there is no block log"
    ]
