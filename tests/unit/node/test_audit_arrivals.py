"""What nodes noted of their inbox, compared with what the beacon put there, before and after a snapshot."""

import msgspec
import pytest

from node.audit.answered import AnsweredBook
from node.audit.findings import Findings, Promise
from node.audit.flow import MessageFlow, Sent
from node.audit.logs import ChainLog
from node.audit.replay import ShardReplay
from node.config import Options
from node.network import create_network
from node.storage.log import BlockLog
from shardyard.blocks import EMPTY_JUSTIFICATION, CertifiedHeader, FinalityProof
from shardyard.consensus.votes import Certificate, VoteKind
from shardyard.effects import BeaconRecord, SnapshotRecord
from shardyard.ids import ZERO_HASH
from tests.unit.node.test_audit_flow import build_receipt

SHARD = 0
replace = msgspec.structs.replace
CERTIFICATE = Certificate(VoteKind.FINAL, 1, ZERO_HASH, b"", b"")
ARRIVALS = {1: [b"a", b"b"], 2: [b"c", b"d"], 3: [b"e", b"f"]}
"""By beacon height; the inbox's positions are 1 to 6."""


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    return create_network(tmp_path_factory.mktemp("home") / "arrivals", Options(name="arrivals", shards=1))


def build_proof(genesis):
    header = CertifiedHeader(genesis.beacon_block.header, EMPTY_JUSTIFICATION)
    return FinalityProof((header,), CERTIFICATE, CERTIFICATE)


def follow(genesis, height, *receipts):
    block = genesis.beacon_block
    block = replace(block, header=replace(block.header, height=height))
    return BeaconRecord(block, build_proof(genesis), (tuple(receipts),))


def take_snapshot(genesis, height, position):
    block = genesis.build_shard_block(SHARD)
    content = replace(block.header.shard_content, inbox_position=position)
    block = replace(block, header=replace(block.header, height=height, content=content))
    return SnapshotRecord(block, build_proof(genesis), ())


async def audit(network, path, records) -> int:
    """Return the number of beacon blocks whose arrivals in the log are other ones."""
    genesis, findings = network.genesis, Findings()
    with BlockLog(path, genesis.network) as log:
        log.append_records(records)
        await log.sync()
    log = ChainLog(path, "shard-0-1", SHARD, genesis.network, findings)
    flow = MessageFlow(1, findings)
    book = AnsweredBook((), findings)
    replay = ShardReplay(genesis, [log], [ZERO_HASH], network.read_alloc(), flow, book, findings)
    for height, arrivals in ARRIVALS.items():
        for data in arrivals:
            flow.inboxes[SHARD].append(Sent(data, build_receipt(1), 0, 0, height))
        replay.verify_arrivals(height, arrivals)
    log.close()
    return findings.rows[Promise.ORDER].broken


@pytest.mark.parametrize(
    ("third", "is_right"), [((b"e", b"f"), True), ((b"f",), False), ((), False), ((b"e", b"x"), False)]
)
async def test_after_a_snapshot_nothing_may_be_missing(network, tmp_path, third, is_right):
    genesis = network.genesis
    records = [
        take_snapshot(genesis, 8, 3),
        follow(genesis, 1),
        follow(genesis, 2, b"d"),
        follow(genesis, 3, *third),
    ]
    assert await audit(network, tmp_path / "log", records) == (0 if is_right else 1)


@pytest.mark.parametrize(("second", "is_right"), [((b"d",), True), ((b"c", b"d"), False), ((), False)])
async def test_of_the_block_at_the_snapshots_position_the_rest_is_kept(network, tmp_path, second, is_right):
    genesis = network.genesis
    records = [take_snapshot(genesis, 8, 3), follow(genesis, 1), follow(genesis, 2, *second)]
    assert await audit(network, tmp_path / "log", records) == (0 if is_right else 1)


@pytest.mark.parametrize(("first", "is_right"), [((b"a", b"b"), True), ((b"b",), False)])
async def test_what_was_followed_before_a_snapshot_is_whole(network, tmp_path, first, is_right):
    genesis = network.genesis
    records = [
        follow(genesis, 1, *first),
        take_snapshot(genesis, 8, 3),
        follow(genesis, 2, b"d"),
        take_snapshot(genesis, 16, 5),
        follow(genesis, 3, b"f"),
    ]
    assert await audit(network, tmp_path / "log", records) == (0 if is_right else 1)
