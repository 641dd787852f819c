"""The auditor where a chain has several logs: each of them is verified, and every two must agree, wherever they begin and end.

One network of three replicas runs for a few seconds; every test damages a copy of its files in another way.
"""

import asyncio

import msgspec
import pytest

from node.audit.audit import audit_network
from node.audit.findings import Promise
from node.bench.devnet import Devnet
from node.checks.offline import check_finality_logs, check_no_forks_logs
from node.config import Options
from node.executor import StateRecord
from node.load.run import LoadRun, RunOptions
from node.load.workload import Knobs
from shardyard.blocks import ShardBody
from shardyard.codec import encode
from shardyard.effects import BeaconRecord, FinalRecord, SnapshotRecord
from tests.integration.log_surgery import (
    append_forged_block,
    come_by_snapshot,
    copy_network,
    get_final,
    keep_finals,
    rewrite,
)

pytestmark = pytest.mark.network
LEFT, SNAPSHOT, FIRST_END, BEYOND = 3, 5, 6, 10
"""Heights: where two nodes left, came back by a snapshot, where the log of the third ends, and one that only those two have."""


async def run_network(home):
    options = Options(name="replicas", shards=1, nodes_per_shard=3, validators=4, block_time_ms=250)
    async with Devnet(home, options) as devnet:
        knobs = Knobs(shards=1, tps=20, cross_ratio=0, accounts=4, seed=3)
        load = LoadRun(devnet.urls, knobs, RunOptions(duration_s=3, warm_up_s=0, drain_s=30))
        await load.run()
    return devnet.network


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    return asyncio.run(run_network(tmp_path_factory.mktemp("home")))


@pytest.fixture
def damaged(ran, tmp_path):
    """A copy to damage."""
    return copy_network(ran, tmp_path)


@pytest.fixture
def staggered(damaged):
    """A copy in which one log begins at genesis and ends early; the others have a few blocks, then a snapshot, and go on."""
    keep_finals(damaged, "shard-0-0", FIRST_END)
    for node in ("shard-0-1", "shard-0-2"):
        come_by_snapshot(damaged, node, LEFT, SNAPSHOT)
    return damaged


def find_broken(network):
    report = audit_network(network)
    return {row.promise: row.findings for row in report.rows if row.broken}


def thin_out_proof(network, node, height):
    """Leave two of four signers in the finality proof of a block."""

    def thin_out(record):
        if isinstance(record, FinalRecord) and record.height == height:
            few = msgspec.structs.replace(record.proof.finalization, bitmap=b"\x03")
            return FinalRecord(
                height, record.block_hash, msgspec.structs.replace(record.proof, finalization=few)
            )
        return record

    assert rewrite(network, node, thin_out) == 1


def test_logs_of_all_replicas_hold(ran):
    report = audit_network(ran)
    assert {row.promise: row.findings for row in report.rows if row.broken} == {}
    assert report.chains[1].executed == report.chains[1].height > BEYOND
    assert check_finality_logs(ran).held


def test_chain_is_executed_on_where_its_first_log_ends_and_another_one_goes_on(staggered):
    report = audit_network(staggered)
    assert {row.promise: row.findings for row in report.rows if row.broken} == {}
    assert report.chains[1].node == "shard-0-0"
    assert report.chains[1].executed == report.chains[1].height > BEYOND


def test_blocks_that_no_log_has_are_a_finding(staggered):
    keep_finals(staggered, "shard-0-0", LEFT)
    (first, second) = (
        finding for finding in find_broken(staggered)[Promise.CHAINS] if "cannot be executed again" in finding
    )
    assert first.startswith(f"shard-0-1 block {SNAPSHOT}: no log has a sound chain from genesis")
    assert second.startswith(f"shard-0-2 block {SNAPSHOT}")


@pytest.mark.parametrize("height", [2, FIRST_END, BEYOND])
def test_proof_in_another_log_than_the_first_is_verified(staggered, height):
    """Before its snapshot, beside the first log, and beyond its end."""
    thin_out_proof(staggered, "shard-0-2", height)
    (finding,) = find_broken(staggered)[Promise.FINALITY]
    assert finding.startswith(f"shard-0-2 block {height}: finality proof")
    assert "stake" in finding
    assert not check_finality_logs(staggered).held


def test_proof_of_a_snapshot_is_verified(staggered):
    def thin_out(record):
        if not isinstance(record, SnapshotRecord):
            return record
        few = msgspec.structs.replace(record.proof.finalization, bitmap=b"\x03")
        return msgspec.structs.replace(record, proof=msgspec.structs.replace(record.proof, finalization=few))

    assert rewrite(staggered, "shard-0-1", thin_out) == 1
    (finding,) = find_broken(staggered)[Promise.FINALITY]
    assert finding.startswith(f"shard-0-1 block {SNAPSHOT}: finality proof")


def test_two_logs_that_differ_beyond_the_end_of_the_first_are_found(staggered):
    """Two blocks of one height that a whole committee signed: each log is right by itself."""
    last = get_final(staggered, "shard-0-1")[0].header.height
    for node, seconds in (("shard-0-1", 1), ("shard-0-2", 2)):
        parent, _ = get_final(staggered, node)
        last = min(last, parent.header.height)
        append_forged_block(
            staggered,
            node,
            {"transaction_count": 0},
            encode(ShardBody(b"", ())),
            timestamp_ms=parent.header.timestamp_ms + seconds,
        )
    finding = f"shard-0-2 block {last + 1}: shard-0-1 has another final block there"
    assert finding in find_broken(staggered)[Promise.FINALITY]
    assert check_no_forks_logs(staggered).words == "FORKED"


def test_block_before_a_snapshot_that_another_log_has_not_is_found(staggered):
    other, proof = get_final(staggered, "shard-0-0", FIRST_END)

    def swap(record):
        is_last = isinstance(record, FinalRecord) and record.height == LEFT
        return FinalRecord(LEFT, other.hash, proof) if is_last else record

    assert rewrite(staggered, "shard-0-2", swap) == 1
    found = find_broken(staggered)[Promise.FINALITY]
    assert [finding for finding in found if "another final block" in finding] == [
        f"shard-0-2 block {LEFT}: shard-0-0 has another final block there",
        f"shard-0-2 block {LEFT}: shard-0-1 has another final block there",
    ]
    verdict = check_no_forks_logs(staggered)
    assert verdict.findings[0].startswith(f"shard-0: 1 heights with several final blocks, first at {LEFT}: ")


def test_state_from_before_a_snapshot_must_be_true(staggered):
    def enrich(record):
        if isinstance(record, StateRecord) and record.height == 2:
            return msgspec.structs.replace(record, diff=record.diff[:-1] + bytes([record.diff[-1] ^ 1]))
        return record

    assert rewrite(staggered, "shard-0-1", enrich)
    (finding,) = find_broken(staggered)[Promise.EXECUTION]
    assert finding == "shard-0-1 block 2: the state diff in the log is not what execution gives"


def follow_another_beacon(network, node, height):
    def swap(record):
        if isinstance(record, BeaconRecord) and record.block.header.height == height:
            header = msgspec.structs.replace(record.block.header, timestamp_ms=1)
            return msgspec.structs.replace(record, block=msgspec.structs.replace(record.block, header=header))
        return record

    assert rewrite(network, node, swap) == 1


def test_beacon_block_that_a_shard_followed_is_a_witness_against_the_beacon(damaged):
    follow_another_beacon(damaged, "shard-0-1", 4)
    verdict = check_no_forks_logs(damaged)
    assert verdict.words == "FORKED"
    assert verdict.findings[0].startswith(
        "beacon: 1 heights with several final blocks, first at 4: beacon-0, "
    )
    assert "; shard-0-1 (as it followed the beacon): 0x" in verdict.findings[0]


def test_shards_that_followed_other_blocks_beyond_the_end_of_the_beacon_are_found(damaged):
    keep_finals(damaged, "beacon-0", 3)
    follow_another_beacon(damaged, "shard-0-1", 5)
    finding = "block 5: shard-0-1 (as it followed the beacon) has another final block there"
    assert f"shard-0-2 (as it followed the beacon) {finding}" in find_broken(damaged)[Promise.FINALITY]
    assert check_no_forks_logs(damaged).words == "FORKED"
