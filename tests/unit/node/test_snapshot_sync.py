"""Coming by a snapshot of many chunks over a lossy bus, from several servers at once, cut short and with a liar among them."""

import asyncio
import json
from contextlib import AsyncExitStack

import msgspec
import pytest

import node.snapshot_sync as module
from node.bus.endpoint import BusConfig, BusIdentity
from node.bus.memory import HubFaults, MemoryBus, MemoryHub
from node.config import Options
from node.network import create_network
from node.recovery import restore_snapshot
from node.runtime import HaltedError, list_subscriptions
from node.snapshot_server import SnapshotServer
from node.snapshot_sync import AnswerQueue, catch_up_by_snapshot
from node.storage.log import BlockLog, EntryKind
from shardyard import _native
from shardyard.blocks import (
    Block,
    CertifiedHeader,
    FinalityProof,
    Justification,
    ShardBody,
    compute_body_hash,
)
from shardyard.codec import encode
from shardyard.consensus.votes import Vote, VoteKind, build_certificate, compute_vote_message
from shardyard.ids import Hash32, Height, NodeId, ShardId, Slot
from shardyard.keys import BlsCrypto
from shardyard.messages import (
    ChunkRequest,
    ChunkResponse,
    RangeRequest,
    RangeResponse,
    SnapshotRequest,
    Status,
)

SHARD = ShardId(0)
HEIGHT = 40
ACCOUNTS = 200_000


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A network, a state of several chunks, and a final block that commits to it."""
    options = Options(name="snap", shards=1, nodes_per_shard=4, block_time_ms=60)
    network = create_network(tmp_path_factory.mktemp("home") / "snap", options)
    core = _native.Core(chain_id=31337, shard=0)
    alloc = {f"0x{index + 1000:040x}": {"balance": hex(10**18 + index)} for index in range(ACCOUNTS)}
    root = core.init_genesis(json.dumps(alloc).encode())
    core.set_base(bytes(32), 0)
    block = build_final_block(network, Hash32(root))
    return network, core, block, prove(network, block)


def certify(network, kind, slot, block_hash):
    genesis = network.genesis
    committee, domain = genesis.committees[SHARD], genesis.get_domain(SHARD)
    secrets = network.read_validator_secrets(SHARD, range(4))
    message = compute_vote_message(domain, kind, slot, block_hash)
    signatures = _native.bls_sign_many(list(secrets.values()), message)
    votes = [
        Vote(kind, Slot(slot), Hash32(block_hash), position, signature)
        for position, signature in enumerate(signatures)
    ]
    return build_certificate(BlsCrypto(), committee, votes)


def build_final_block(network, root):
    genesis = network.genesis
    first = genesis.build_shard_block(SHARD).header
    parent, slot = Hash32(b"p" * 32), HEIGHT
    justification = Justification(certify(network, VoteKind.NOTAR, slot - 1, parent), ())
    body = encode(ShardBody(b"", ()))
    header = msgspec.structs.replace(
        first,
        slot=Slot(slot),
        height=Height(HEIGHT),
        parent=parent,
        parent_slot=Slot(slot - 1),
        justification_hash=justification.hash,
        timestamp_ms=first.timestamp_ms + HEIGHT * 1000,
        proposer=genesis.committees[SHARD].get_leader(slot),
        body_hash=compute_body_hash(body),
        content=msgspec.structs.replace(first.shard_content, state_root=root),
    )
    return Block(header, justification, body, signature=bytes(96), beacon_proof=b"")


def prove(network, block):
    slot, block_hash = block.header.slot, block.hash
    return FinalityProof(
        (CertifiedHeader(block.header, block.justification),),
        certify(network, VoteKind.NOTAR, slot, block_hash),
        certify(network, VoteKind.FINAL, slot, block_hash),
    )


def build_bus(network, hub, node):
    config = BusConfig(
        network_name="snap", network=network.genesis.network, subscriptions=list_subscriptions(SHARD)
    )
    identity = BusIdentity(NodeId(node), network.read_node_key(node), 1)
    return MemoryBus(config, identity, network.directory, hub)


class Peer:
    """A replica that stands just below the block, and finalises it when it is asked for a snapshot."""

    def __init__(self, world, bus, *, lies=False):
        self.network, self.core, self.block, self.proof = world
        self.bus, self.lies = bus, lies
        self.served = 0
        self.has_blocks = True
        self.server = SnapshotServer(
            SHARD, self.cut, self.run_work, self.send, lambda: HEIGHT - 3, lambda: HEIGHT
        )

    def cut(self):
        return self.core.snapshot()

    async def run_work(self, work):
        work()

    async def send(self, to, message):
        await self.bus.send(to, SHARD, message)

    async def run(self):
        await self.bus.publish(SHARD, Status(SHARD, Slot(38), Height(HEIGHT - 3), self.block.hash))
        async for sender, _, message in self.bus.messages():
            if isinstance(message, SnapshotRequest):
                await self.server.on_request(sender, message)
                if not self.server.held_height:
                    self.server.on_final(self.block, self.proof)
            elif isinstance(message, RangeRequest):
                blocks = (self.block,) if self.has_blocks else ()
                await self.send(sender, RangeResponse(SHARD, blocks, self.proof if blocks else None))
            elif isinstance(message, ChunkRequest):
                self.served += 1
                if self.lies:
                    self.server._chunks[message.index] = b"lie"
                await self.server.on_chunk_request(sender, message)


async def be_connected():
    """A bus in memory is there at once."""


def look_for_snapshot(network, log, bus, *, distance, wait_connected=be_connected):
    return catch_up_by_snapshot(
        network, "shard-0-0", log, bus, distance=distance, wait_connected=wait_connected
    )


async def come_by_snapshot(world, place, *, faults=None, liars=(), stop_after=None):
    """Run one attempt with three peers; ``stop_after`` cuts it short when so many chunks are in the log."""
    network = world[0]
    hub = MemoryHub(faults or HubFaults(), seed=5)
    async with AsyncExitStack() as stack:
        peers = [
            Peer(
                world,
                await stack.enter_async_context(build_bus(network, hub, f"shard-0-{index}")),
                lies=index in liars,
            )
            for index in (1, 2, 3)
        ]
        own = await stack.enter_async_context(build_bus(network, hub, "shard-0-0"))
        tasks = [asyncio.create_task(peer.run()) for peer in peers]
        try:
            with BlockLog(place, network.genesis.network) as log:
                work = asyncio.create_task(look_for_snapshot(network, log, own, distance=8))
                while stop_after is not None and not work.done():
                    await asyncio.sleep(0)
                    if len(log._chunks) >= stop_after:
                        await log.sync()
                        work.cancel()
                        break
                (found,) = await asyncio.gather(work, return_exceptions=True)
                return found, peers
        finally:
            for task in tasks:
                task.cancel()


def read_back(world, place):
    """Restore as a start does; return the core."""
    network = world[0]
    with BlockLog(place, network.genesis.network) as log:
        (entry,) = (entry for entry in log.iterate() if entry.kind is EntryKind.KERNEL)
        core = _native.Core(chain_id=31337, shard=0)
        restore_snapshot(core, log, entry.decode_record())
        return core


@pytest.mark.parametrize(("faults", "sources"), [(None, 3), (HubFaults(drop=50, double=50), 2)])
async def test_all_chunks_come_from_several_peers_although_the_bus_loses_some(
    world, tmp_path, faults, sources
):
    record, peers = await come_by_snapshot(world, tmp_path / "log", faults=faults)
    assert record.block == msgspec.structs.replace(world[2], signature=b"")
    assert len(record.chunks) > 12
    assert sum(peer.served > 0 for peer in peers) >= sources
    core = read_back(world, tmp_path / "log")
    assert core.account(world[2].hash, (1000).to_bytes(20, "big"))[1] == (10**18).to_bytes(32, "big")


async def test_a_liar_is_named_and_the_others_suffice(world, tmp_path, caplog):
    record, _ = await come_by_snapshot(world, tmp_path / "log", liars={2})
    assert record.block == msgspec.structs.replace(world[2], signature=b"")
    (line,) = [found.getMessage() for found in caplog.records if "refused" in found.getMessage()]
    assert line.startswith("refused InvalidProofError from shard-0-2: chunk ")
    read_back(world, tmp_path / "log")


async def test_an_attempt_that_was_cut_short_goes_on_with_what_it_has(world, tmp_path):
    place = tmp_path / "log"
    await come_by_snapshot(world, place, stop_after=3)
    with BlockLog(place, world[0].genesis.network) as log:
        held = len(log._chunks)
        assert held >= 3
    record, peers = await come_by_snapshot(world, place)
    assert sum(peer.served for peer in peers) == len(record.chunks) - held
    read_back(world, place)


async def test_answers_that_wait_are_bounded_by_bytes_and_one_of_a_kind(monkeypatch):
    monkeypatch.setattr(module, "MAX_QUEUED_BYTES", 10_000)
    queue = AnswerQueue()
    for _ in range(3):
        queue.put("shard-0-1", ChunkResponse(0, b"s" * 32, 0, bytes(4000)))
    for index in range(1, 20):
        queue.put("shard-0-2", ChunkResponse(0, b"s" * 32, index, bytes(4000)))
    assert queue.dropped == 20
    assert [(await queue.get())[1].index for _ in range(2)] == [0, 1]
    queue.put("shard-0-2", ChunkResponse(0, b"s" * 32, 1, bytes(10_000)))
    assert (await queue.get())[0] == "shard-0-2"


LIE_CASES = [
    ("shard-0-3", 0, 2**64 - 1),
    ("shard-0-3", 0, 1 << 47),
    ("shard-0-3", 1, 1 << 47),
    ("shard-1-0", 0, 1 << 47),
    ("beacon-0", 0, 1 << 47),
]


@pytest.mark.parametrize(("liar", "topic_chain", "height"), LIE_CASES)
async def test_one_replica_that_tells_a_huge_height_delays_nobody(world, tmp_path, liar, topic_chain, height):
    network = world[0]

    class Said:
        """What the topics hold when a replica starts."""

        async def messages(self):
            for sender, chain, told in (
                (liar, topic_chain, height),
                ("shard-0-1", 0, HEIGHT - 3),
                ("shard-0-2", 0, HEIGHT - 3),
            ):
                yield sender, chain, Status(SHARD, Slot(38), Height(told), world[2].hash)
            await asyncio.Event().wait()

        async def send(self, to, _, message):
            sent.append((to, message))

    sent = []
    with BlockLog(tmp_path / "log", network.genesis.network) as log:
        # With nobody who says that blocks are missing, they are fetched one by one.
        assert await look_for_snapshot(network, log, Said(), distance=HEIGHT) is None
    assert all(isinstance(message, RangeRequest) for _, message in sent)
    assert {to for to, _ in sent} <= {"shard-0-1", "shard-0-2", "shard-0-3"}


@pytest.mark.parametrize("is_late", [True, False])
async def test_peers_are_listened_to_when_the_bus_is_there(world, tmp_path, monkeypatch, is_late):
    """A broker that is late takes nothing of the time to listen; one that is away is not waited for without end."""
    network = world[0]
    monkeypatch.setattr(module, "LOOK_S", 0.05)
    monkeypatch.setattr(module, "CONNECT_S", 10.0 if is_late else 0.05)
    is_there = asyncio.Event()

    class Late:
        async def messages(self):
            await is_there.wait()
            for peer in ("shard-0-1", "shard-0-2", "shard-0-3"):
                yield peer, SHARD, Status(SHARD, Slot(38), Height(HEIGHT - 3), world[2].hash)
            await asyncio.Event().wait()

        async def send(self, to, _, message):
            asked.append(to)

    async def connect():
        if is_late:
            asyncio.get_running_loop().call_later(4 * module.LOOK_S, is_there.set)
        await is_there.wait()

    asked = []
    with BlockLog(tmp_path / "log", network.genesis.network) as log:
        look = look_for_snapshot(network, log, Late(), distance=HEIGHT, wait_connected=connect)
        assert await look is None
    assert asked == (["shard-0-1", "shard-0-2", "shard-0-3"] if is_late else [])


@pytest.mark.parametrize("has_blocks", [True, False])
async def test_when_little_is_missing_a_snapshot_comes_only_if_nobody_has_the_blocks(
    world, tmp_path, has_blocks
):
    network = world[0]
    hub = MemoryHub()
    async with build_bus(network, hub, "shard-0-0") as own, build_bus(network, hub, "shard-0-1") as other:
        peer = Peer(world, other)
        peer.has_blocks = has_blocks
        task = asyncio.create_task(peer.run())
        with BlockLog(tmp_path / "log", network.genesis.network) as log:
            found = await look_for_snapshot(network, log, own, distance=HEIGHT)
        task.cancel()
    assert (found is None) is has_blocks
    assert peer.server.held_height == (0 if has_blocks else HEIGHT)


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        (lambda index, chunk: None if index == 0 else chunk, r"1 of \d+ chunks are missing in the log"),
        (lambda *_: None, r"(\d+) of \1 chunks are missing in the log"),
        (lambda index, chunk: b"rot" if index == 0 else chunk, "its chunks make no state"),
    ],
)
async def test_a_log_whose_chunks_make_no_state_is_refused_with_the_way_out(
    world, tmp_path, monkeypatch, damage, found
):
    record, _ = await come_by_snapshot(world, tmp_path / "log")
    original = BlockLog.get_chunk

    def get_chunk(log, chunk_hash):
        return damage(record.chunks.index(chunk_hash), original(log, chunk_hash))

    monkeypatch.setattr(BlockLog, "get_chunk", get_chunk)
    with pytest.raises(
        HaltedError, match=found + ".*; try: shardyard validator export .* delete the data directory"
    ):
        read_back(world, tmp_path / "log")
