"""A replica that came by a snapshot: the same state, the same inbox, and on from there."""

import pytest

from node.dev_accounts import DEV_ACCOUNTS
from shards.replica import ShardReplica
from shards.snapshots import compute_chunk_hash
from shardyard import _native
from shardyard.consensus.engine import NoBlockSource
from shardyard.consensus.simplex import SimplexEngine
from shardyard.effects import BeaconRecord, SnapshotRecord
from shardyard.ids import compute_chain_id
from tests.simulation import test_cross_shard_native as cross_shard
from tests.unit.shards.native import NativeExecutor, sign_shard_transfer, sign_transaction
from tests.unit.shards.world import CRYPTO

ETHER, STRANGER = cross_shard.ETHER, cross_shard.STRANGER
network = cross_shard.network
"""The fixture: two shards and a beacon."""


class SnapshotExecutor(NativeExecutor):
    """Starts from the chunks of a snapshot instead of genesis."""

    def __init__(self, genesis, shard, alloc_json, record, chunks):
        self.record, self.chunks = record, chunks
        super().__init__(genesis, shard, alloc_json)
        self.base = record.block.hash

    def _open(self):
        core = _native.Core(chain_id=compute_chain_id(self.shard), shard=self.shard)
        header = self.record.block.header
        assert core.restore(self.chunks) == header.shard_content.state_root
        core.set_base(header.hash, header.height)
        return core

    def restore(self, block_hash):
        self.core = self._open()
        self.built = {}
        if block_hash not in self.results:
            return
        by_height = {height: (key, result) for key, (height, result, _) in self.results.items()}
        for height in range(self.record.block.header.height + 1, self.results[block_hash][0] + 1):
            key, result = by_height[height]
            assert self.core.apply_diff(key, height, result.diff) == result.state_root


def take_snapshot(node):
    """The record and the chunks that a peer would have served at its last folded block."""
    chunks = node.executor.core.snapshot()
    height = node.machine.recovered_height
    block = node.machine.engine.get_final_block(height)
    proof = node.machine.engine.final_proof(height)
    return SnapshotRecord(block, proof, tuple(map(compute_chunk_hash, chunks))), chunks


def add_late(network, record, chunks, keys=()):
    executor = SnapshotExecutor(network.genesis, 0, network.alloc_json, record, chunks)

    def build():
        machine = ShardReplica(
            network.genesis, 0, CRYPTO, tuple(keys), NoBlockSource(), build_engine=SimplexEngine
        )
        executor.get_ancestors = machine.get_ancestors
        return machine

    late = network.add("shard-0-1", 0, build, executor)
    late.log.append(record)
    late.start()
    return late


def send_both_ways(network, first, count):
    for nonce in range(first, first + count):
        network.nodes["shard-0-0"].executor.submit(sign_shard_transfer(0, nonce, 1, STRANGER, ETHER))
        network.nodes["shard-1-0"].executor.submit(sign_shard_transfer(1, nonce, 0, STRANGER, ETHER))
        network.run_for(150)


@pytest.mark.parametrize("pause_ms", [0, 40, 90, 130, 2000])
def test_it_follows_on_and_has_the_same_state(network, pause_ms):
    source = network.nodes["shard-0-0"]
    send_both_ways(network, 0, 4)
    network.run_for(pause_ms)  # with messages on their way in every stage
    record, chunks = take_snapshot(source)
    late = add_late(network, record, chunks)
    send_both_ways(network, 4, 3)
    network.run_until(lambda: late.executor.get_balance(STRANGER) == 7 * ETHER)
    assert source.executor.get_balance(STRANGER) == 7 * ETHER
    assert not late.get_notices("halted")
    first = record.block.header.height
    assert late.get_notices("block.final")[0]["height"] == first + 1
    theirs = {data["height"]: data["hash"] for data in source.get_notices("block.final")}
    assert all(theirs[data["height"]] == data["hash"] for data in late.get_notices("block.final"))
    assert late.machine.engine.get_final_block(first - 1) is None
    # A restart goes on from its own log, snapshot included.
    late.stop()
    network.run_for(300)
    late.start()
    assert late.machine.recovered_height > first
    height = late.machine.recovered_height
    network.run_until(lambda: late.machine.recovered_height > height + 3)


def test_a_committee_goes_on_when_all_its_keys_come_by_a_snapshot(network):
    """The new process proposes, waits for the beacon before it does, and offers crosslinks once they begin here."""
    source = network.nodes["shard-0-0"]
    send_both_ways(network, 0, 3)
    network.run_for(3000)
    record, chunks = take_snapshot(source)
    source.stop()
    network.run_for(1000)
    late = add_late(network, record, chunks, keys=range(4))
    beacon = network.nodes["beacon-0"].machine
    before = beacon.state.shards[0].last_height
    late.executor.submit(sign_transaction(0, DEV_ACCOUNTS[5], 0, STRANGER, b"", value=ETHER, gas=21_000))
    network.run_until(lambda: late.executor.get_balance(STRANGER) == 4 * ETHER)
    if before >= record.block.header.height:
        network.run_until(lambda: beacon.state.shards[0].last_height > before + 3)
    assert not late.get_notices("halted")
    assert not any(notice["reason"] for notice in late.get_notices("block.invalid"))


def test_a_snapshot_below_the_log_of_before_takes_its_place(network):
    """A node that was away long keeps what it followed of the beacon, and forgets its old blocks."""
    source = network.nodes["shard-0-0"]
    send_both_ways(network, 0, 2)
    old, old_chunks = take_snapshot(source)
    late = add_late(network, old, old_chunks)
    network.run_for(1500)
    late.stop()
    send_both_ways(network, 2, 4)
    network.run_for(500)
    record, chunks = take_snapshot(source)
    late.log.append(record)
    late.executor.record, late.executor.chunks, late.executor.results = record, chunks, {}
    late.executor.base = record.block.hash
    late.start()
    assert late.machine.recovered_height == record.block.header.height
    send_both_ways(network, 6, 2)
    network.run_until(lambda: late.executor.get_balance(STRANGER) == 8 * ETHER)
    assert not late.get_notices("halted")


@pytest.mark.parametrize("is_before", [True, False])
def test_what_a_log_says_of_the_beacon_around_a_snapshot_is_not_kept(network, is_before):
    source = network.nodes["shard-0-0"]
    send_both_ways(network, 0, 8)
    record, _ = take_snapshot(source)
    ref = record.block.header.shard_content.beacon_ref.height
    followed = [item for item in source.log if isinstance(item, BeaconRecord)]
    assert ref > 8
    log = [*followed, record] if is_before else [record, *followed]
    machine = ShardReplica(network.genesis, 0, CRYPTO, (), NoBlockSource(), build_engine=SimplexEngine)
    follower, kept = machine.follower, []

    def read():
        for item in log:
            yield item
            head = follower.head.ref.height
            if isinstance(item, BeaconRecord) and item.block.header.height <= ref:
                assert head == item.block.header.height
                kept.append(sum(follower.get_view(height) is not None for height in range(head + 1)))

    machine.recover(read(), base=record.block.header)
    assert machine.recovered_height == record.block.header.height
    assert follower.head == source.machine.follower.head
    assert len(kept) >= ref
    assert max(kept) <= 2
