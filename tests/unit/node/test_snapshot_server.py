"""Serving snapshots: cut when a height that was asked for comes, once in a while, within a budget."""

import asyncio

import pytest

import node.snapshot_server as module
from node.snapshot_server import MAX_AHEAD, MAX_WAITING, SnapshotServer
from shards.snapshots import compute_chunk_hash
from shardyard.messages import ChunkRequest, ChunkResponse, SnapshotManifest, SnapshotRequest
from tests.unit.shards.world import build_genesis, build_shard_header, prove

GENESIS = build_genesis(2)
CHUNKS = [b"one", b"two" * 1000]


class Peers:
    """What was sent to whom, and a clock that the test moves."""

    def __init__(self, monkeypatch):
        self.sent = []
        self.now = 1000.0
        self.height = 3
        self.cuts = 0
        monkeypatch.setattr(module.time, "monotonic", lambda: self.now)
        self.lag = 0
        """Blocks the beacon is behind this shard."""
        self.gate = None
        """Held while a cut takes its time."""
        self.server = SnapshotServer(
            0, self.cut, self.run, self.send, lambda: self.height, lambda: self.height - self.lag
        )
        self.blocks = [GENESIS.build_shard_block(0)]
        for _ in range(40):
            self.blocks.append(build_shard_header(GENESIS, self.blocks[-1])[0])

    def cut(self):
        self.cuts += 1
        return list(CHUNKS)

    async def run(self, work):
        if self.gate is not None:
            await self.gate.wait()
        work()

    async def send(self, to, message):
        self.sent.append((to, message))

    def take(self):
        taken, self.sent = self.sent, []
        return taken

    async def grow_to(self, height):
        while self.height < height:
            self.height += 1
            block = self.blocks[self.height]
            self.server.on_final(block, prove(GENESIS, block))
            for _ in range(3):
                await asyncio.sleep(0)


@pytest.fixture
def peers(monkeypatch):
    return Peers(monkeypatch)


async def test_a_snapshot_is_cut_at_the_height_asked_for_and_told_to_all_who_wait(peers):
    await peers.server.on_request("a", SnapshotRequest(0, 8))
    await peers.server.on_request("b", SnapshotRequest(0, 8))
    await peers.grow_to(7)
    assert peers.take() == []
    await peers.grow_to(9)
    ((first, manifest), (second, same)) = peers.take()
    assert (first, second) == ("a", "b")
    assert manifest == same
    assert isinstance(manifest, SnapshotManifest)
    assert manifest.block == peers.blocks[8]
    assert manifest.chunks == tuple(map(compute_chunk_hash, CHUNKS))
    assert peers.server.held_height == 8
    await peers.server.on_chunk_request("c", ChunkRequest(0, manifest.id, 1))
    assert peers.take() == [("c", ChunkResponse(0, manifest.id, 1, CHUNKS[1]))]


async def test_nothing_is_cut_that_nobody_asked_for_or_that_is_far_off(peers):
    for request in (
        SnapshotRequest(1, 8),
        SnapshotRequest(0, 3),
        SnapshotRequest(0, 3 + MAX_AHEAD + 1),
    ):
        await peers.server.on_request("a", request)
    await peers.grow_to(20)
    assert peers.cuts == 0


async def test_who_asks_while_one_is_held_gets_it_and_no_other_is_cut(peers):
    await peers.server.on_request("a", SnapshotRequest(0, 8))
    await peers.grow_to(8)
    for number in range(50):
        await peers.server.on_request(f"peer-{number}", SnapshotRequest(0, 16))
    await peers.grow_to(30)
    assert peers.cuts == 1
    assert len(peers.take()) == 51


async def test_while_one_is_cut_no_other_is_wanted_and_who_asks_gets_that_one(peers):
    peers.gate = asyncio.Event()
    await peers.server.on_request("a", SnapshotRequest(0, 8))
    await peers.grow_to(8)
    await peers.server.on_request("b", SnapshotRequest(0, 16))
    await peers.grow_to(20)
    assert peers.cuts == 0
    peers.gate.set()
    await peers.grow_to(30)
    assert peers.cuts == 1
    assert [(to, manifest.block.header.height) for to, manifest in peers.take()] == [("a", 8), ("b", 8)]


async def test_a_cut_that_fails_is_not_repeated_at_once(peers, monkeypatch):
    def fail():
        peers.cuts += 1
        raise MemoryError("no room for a snapshot")

    monkeypatch.setattr(peers.server, "_cut", fail)
    asyncio.get_running_loop().set_exception_handler(lambda *_: None)
    for height in (8, 16, 24):
        await peers.server.on_request("a", SnapshotRequest(0, height))
        await peers.grow_to(height)
    assert peers.cuts == 1


async def test_it_is_told_when_the_beacon_has_accepted_its_block(peers):
    """Otherwise a shard whose replicas all came by it would have nothing to offer the beacon (X4)."""
    peers.lag = 5
    await peers.server.on_request("a", SnapshotRequest(0, 8))
    await peers.grow_to(10)
    await peers.server.on_request("b", SnapshotRequest(0, 16))
    await peers.grow_to(12)
    assert peers.take() == []
    assert peers.server.held_height == 8
    await peers.grow_to(13)
    assert [(to, manifest.block.header.height) for to, manifest in peers.take()] == [("a", 8), ("b", 8)]
    await peers.server.on_request("c", SnapshotRequest(0, 16))
    assert [to for to, _ in peers.take()] == ["c"]
    assert peers.cuts == 1


async def test_it_is_dropped_when_nobody_asks_and_in_the_end_in_any_case(peers):
    await peers.server.on_request("a", SnapshotRequest(0, 8))
    await peers.grow_to(8)
    peers.now += module.KEEP_S + 1
    await peers.grow_to(9)
    assert peers.server.held_height == 0
    await peers.server.on_request("a", SnapshotRequest(0, 16))
    await peers.grow_to(16)
    assert peers.server.held_height == 16
    for _ in range(20):
        peers.now += module.KEEP_S - 1
        await peers.server.on_request("a", SnapshotRequest(0, 17))
    assert peers.server.held_height == 0


async def test_no_more_wait_than_may(peers):
    for number in range(3 * MAX_WAITING):
        await peers.server.on_request(f"peer-{number}", SnapshotRequest(0, 8))
    await peers.grow_to(8)
    assert len(peers.take()) == MAX_WAITING


async def test_chunks_that_are_not_there_and_those_beyond_the_budget_get_no_answer(peers, monkeypatch):
    await peers.server.on_request("a", SnapshotRequest(0, 8))
    await peers.grow_to(8)
    ((_, manifest),) = peers.take()
    for request in (
        ChunkRequest(0, b"o" * 32, 0),
        ChunkRequest(0, manifest.id, 2),
        ChunkRequest(0, manifest.id, -1),
    ):
        await peers.server.on_chunk_request("a", request)
    assert peers.take() == []
    monkeypatch.setattr(module, "BYTES_PER_S", 2 * len(CHUNKS[1]))
    for _ in range(10):
        await peers.server.on_chunk_request("a", ChunkRequest(0, manifest.id, 1))
    assert len(peers.take()) == 2
    peers.now += 0.5
    await peers.server.on_chunk_request("a", ChunkRequest(0, manifest.id, 1))
    assert len(peers.take()) == 1
