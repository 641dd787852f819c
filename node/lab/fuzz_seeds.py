"""What fuzzing begins with: real encodings, taken from a simulated network with load and faults.

A few of every message, record and receipt of a run, the requests and files that people write, and small hand-made rest. The
same commit gives the same seeds.
"""

from collections.abc import Iterable
from functools import cache
from typing import Final

import msgspec

from node.bus.envelope import Sealer
from node.lab.fuzz_sealed import encode_recipe
from node.sim.node import SimNode
from node.sim.scenario import FaultProfile, Scenario
from node.sim.world import World
from shardyard.blocks import Block, FinalityProof
from shardyard.codec import encode
from shardyard.consensus.evidence import VoteEvidence
from shardyard.consensus.votes import Vote, VoteKind
from shardyard.crosslinks import Bundle
from shardyard.effects import (
    BeaconRecord,
    BlockRecord,
    CertificateRecord,
    ExecutionRecord,
    FinalRecord,
    Record,
    SubmissionRecord,
)
from shardyard.ids import BEACON, ZERO_HASH, Hash32, Height, ShardId, Slot
from shardyard.keys import NodeKey
from shardyard.messages import (
    BlockRequest,
    BlockResponse,
    BundleAnnouncement,
    BundleRequest,
    Certificates,
    CrosslinkRequest,
    FinalBlock,
    Message,
    Proposal,
    RangeRequest,
    RangeResponse,
    Status,
    SubmitCrosslink,
    Transactions,
    Votes,
    encode_message,
)

SEED: Final = 7
SCENARIO: Final = Scenario(
    duration_ms=30_000, settle_ms=10_000, tps=8.0, profile=FaultProfile(drop=0.1, partitions=2)
)
MAX_OF_A_KIND: Final = 4
MAX_SEED_BYTES: Final = 16 * 1024
"""Longer encodings are no better to begin with and slower to change."""


class Harvest:
    """Records of a run, some of each kind."""

    def __init__(self) -> None:
        self.records: dict[str, list[Record]] = {}

    def take(self, record: Record) -> None:
        """Keep a record while there is room for its kind; those that carry something come first."""
        name = type(record).__name__
        if isinstance(record, ExecutionRecord) and not record.outbox:
            return
        if isinstance(record, SubmissionRecord) and not record.submission.crosslink.links:
            return
        if isinstance(record, BeaconRecord) and not record.bundles:
            return
        kept = self.records.setdefault(name, [])
        if len(kept) < MAX_OF_A_KIND:
            kept.append(record)

    def get(self, kind: type[msgspec.Struct]) -> list[Record]:
        """Return the records of one kind."""
        return self.records.get(kind.__name__, [])


@cache
def harvest() -> Harvest:
    """Run the network and return what it wrote."""
    found = Harvest()
    world = World(SEED, SCENARIO)
    original = world.checker.on_record

    def watch(node: SimNode, record: Record) -> None:
        found.take(record)
        original(node, record)

    world.checker.on_record = watch  # type: ignore[method-assign]  # the world is this function's own
    world.run()
    return found


def list_blocks() -> list[Block]:
    """Return blocks of shards and of the beacon."""
    shards = [record.block for record in harvest().get(BlockRecord) if isinstance(record, BlockRecord)]
    return shards + [
        record.block for record in harvest().get(BeaconRecord) if isinstance(record, BeaconRecord)
    ]


def list_proofs() -> list[FinalityProof]:
    """Return finality proofs."""
    found = [record.proof for record in harvest().get(FinalRecord) if isinstance(record, FinalRecord)]
    return found + [
        record.proof for record in harvest().get(BeaconRecord) if isinstance(record, BeaconRecord)
    ]


def list_receipts() -> list[bytes]:
    """Return encoded receipts."""
    records = harvest().get(ExecutionRecord)
    return [data for record in records if isinstance(record, ExecutionRecord) for data in record.outbox][:8]


def list_evidence() -> list[VoteEvidence]:
    """Return pairs of votes that are slashable, but for their signatures."""
    one = Vote(VoteKind.NOTAR, Slot(3), Hash32(b"\x01" * 32), 1, bytes(96))
    other = msgspec.structs.replace(one, block_hash=Hash32(b"\x02" * 32))
    skip = Vote(VoteKind.SKIP, Slot(3), ZERO_HASH, 1, bytes(96))
    final = msgspec.structs.replace(one, kind=VoteKind.FINAL)
    return [VoteEvidence(one, other), VoteEvidence(skip, final)]


def list_messages() -> list[Message]:
    """Return messages of every class."""
    blocks, proofs = list_blocks(), list_proofs()
    submissions = [
        item.submission for item in harvest().get(SubmissionRecord) if isinstance(item, SubmissionRecord)
    ]
    certificates = tuple(
        item.certificate for item in harvest().get(CertificateRecord) if isinstance(item, CertificateRecord)
    )
    votes = tuple(vote for pair in list_evidence() for vote in (pair.first, pair.second))
    shard, tip = ShardId(0), blocks[0]
    found: list[Message] = [Proposal(block) for block in blocks]
    found += [FinalBlock(block, proofs[-1]) for block in blocks]
    found += [SubmitCrosslink(submission) for submission in submissions]
    found += [Certificates(certificates), Votes(votes), Status(shard, Slot(9), Height(4), tip.hash)]
    found += [
        BlockRequest(shard, (tip.hash, ZERO_HASH)),
        BlockResponse(shard, (tip,), certificates[:1]),
        RangeRequest(BEACON, Height(1), 8),
        RangeResponse(shard, (tip,), proofs[0]),
        RangeResponse(shard, (), None),
        CrosslinkRequest(ZERO_HASH),
        BundleRequest(ZERO_HASH, shard, ShardId(1)),
        BundleAnnouncement(Bundle(ZERO_HASH, shard, ShardId(1), tuple(list_receipts()[:2]))),
        Transactions(shard, b"\x02\xc0", (2,)),
    ]
    return found


def list_transactions() -> list[bytes]:
    """Return signed transactions: those in the bodies of the run."""
    from node.executor import decode_body

    found = []
    for block in list_blocks():
        if block.header.shard != BEACON and block.body:
            body = decode_body(block.body, 1 << 20)
            starts = (0, *body.ends)
            found += [body.raw[start:end] for start, end in zip(starts, body.ends, strict=False)]
    return found[:8]


def list_rpc_bodies() -> list[bytes]:
    """Return JSON-RPC requests, well-formed and not."""
    raw = ["0x" + data.hex() for data in list_transactions()[:2]] or ["0x02c0"]
    single = {"jsonrpc": "2.0", "id": 1, "method": "eth_sendRawTransaction", "params": [raw[0]]}
    batch = [{**single, "id": number, "params": [text]} for number, text in enumerate(raw)]
    values: list[object] = [
        single,
        batch,
        {"jsonrpc": "2.0", "id": "a", "method": "echo", "params": [1, 2]},
        [{"jsonrpc": "2.0", "method": "echo", "params": [1]}, 1, {}],
        {"jsonrpc": "2.0", "id": None, "method": "refuse", "params": {}},
    ]
    return [msgspec.json.encode(value) for value in values] + [b"", b"[]", b'{"id":1e5,"method":"\\ud800"}']


CONTROL_LINES: Final = (
    b'{"method": "status", "params": {}}',
    b'{"method": "stop", "params": {"node": "shard-0-0"}}',
    b'{"method": "kill"}',
    b"[]",
)
CONFIG_FILES: Final = (
    b'name = "dev"\nshards = 4\nnodes_per_shard = 1\nvalidators = 4\npreset = "devnet"\n',
    b'block_time_ms = 500\nbroker = "mqtt://127.0.0.1:1883"\nport_base = 8545\nexecutors = 2\nsync_mempool = true\n',
    b'balance = "10000ether"\nseed = 3\n',
)
TOPICS: Final = (
    b"sy/dev/node/shard-0-0/shard-0/vote",
    b"sy/dev/node/beacon-0/beacon/bundle/shard-1",
    b"sy/dev/node/shard-1-0/shard-1/to/beacon-0",
    b"sy/dev/watch/shard-0/block",
)
ACCESS_LISTS: Final = (
    b"\xc0",
    bytes.fromhex("da" + "d9" + "94" + "11" * 20 + "c0c0c0c0"),
)


def list_envelopes(network: Hash32, topic: str, key: NodeKey) -> list[bytes]:
    """Return sealed messages."""
    sealer = Sealer(network, key, 1)
    return [
        envelope
        for message in list_messages()[:6]
        for envelope in sealer.seal(topic, encode_message(message))
        if len(envelope) <= MAX_SEED_BYTES
    ]


def list_recipes() -> list[bytes]:
    """Return recipes of envelopes that are signed as they are: one whole, one of three parts, one compressed."""
    return [
        encode_recipe(0, 1, 0, 0, 1, 5, b"hello"),
        encode_recipe(0, 1, 3, 1, 3, 5, b"hello"),
        encode_recipe(1, 2, 0, 0, 1, 5, bytes.fromhex("28b52ffd2005290000") + b"hello"),
    ]


def encode_all(values: Iterable[object]) -> list[bytes]:
    """Return the encodings of ``values`` that are short enough."""
    return [data for data in map(encode, values) if len(data) <= MAX_SEED_BYTES]
