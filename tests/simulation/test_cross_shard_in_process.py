"""Two shards and a beacon in one process and in virtual time: what one shard emits, the other delivers, once and in order."""

import random

import pytest

from crosslink.beacon import BeaconMachine
from shards.replica import ShardReplica
from shardyard.consensus.engine import NoBlockSource
from shardyard.consensus.simplex import SimplexEngine
from shardyard.ids import BEACON
from shardyard.messages import BundleAnnouncement, FinalBlock, SubmitCrosslink
from shardyard.receipts import decode_receipt
from tests.unit.shards.network import Network
from tests.unit.shards.world import CRYPTO, ToyExecutor, build_genesis, build_transfer


def add_beacon(network, name="beacon-0", keys=None):
    keys = tuple(range(len(network.genesis.validators))) if keys is None else keys
    return network.add(
        name,
        BEACON,
        lambda: BeaconMachine(network.genesis, CRYPTO, keys, NoBlockSource(), build_engine=SimplexEngine),
    )


def add_shard(network, shard, name=None, keys=range(4)):
    return network.add(
        name or f"shard-{shard}-0",
        shard,
        lambda: ShardReplica(
            network.genesis, shard, CRYPTO, tuple(keys), NoBlockSource(), build_engine=SimplexEngine
        ),
        ToyExecutor(network.genesis, shard),
    )


@pytest.fixture
def network():
    return Network(build_genesis())


@pytest.fixture
def world(network):
    nodes = [add_beacon(network), add_shard(network, 0), add_shard(network, 1)]
    for node in nodes:
        node.start()
    return nodes


def read_delivered(node):
    """Return (src, seq) of everything delivered in final blocks, in order."""
    blocks = [data["hash"] for data in node.get_notices("block.final")]
    receipts = [decode_receipt(data) for block in blocks for data in node.executor.delivered.get(block, ())]
    return [(receipt.src, receipt.seq) for receipt in receipts]


def test_a_transfer_emitted_on_one_shard_is_delivered_on_the_other(network, world):
    beacon, source, target = world
    source.executor.pending = [build_transfer(value=5)]
    started = network.now_ms
    network.run_until(lambda: read_delivered(target))
    assert read_delivered(target) == [(0, 1)]
    assert network.now_ms - started <= 8 * network.genesis.preset.block_time_ms
    table = beacon.machine.get_supply()
    assert table.total == table.genesis
    network.run_until(lambda: beacon.machine.get_supply().in_flight == (0, 0))
    assert beacon.machine.get_supply().balances[1] == table.genesis // 2 + 5
    assert not any(node.get_notices("refused") for node in world)


def test_finalized_is_what_a_final_beacon_block_carries(network, world):
    _, shard, _ = world
    network.run_until(lambda: shard.machine.heads.finalized_height >= 5)
    heads = shard.machine.heads
    assert heads.finalized_height <= heads.latest_height
    finals = shard.get_notices("block.final")
    assert heads.finalized_hash == finals[heads.finalized_height - 1]["hash"]


def test_many_messages_both_ways_arrive_once_and_in_order(network, world):
    _, left, right = world
    for round_ in range(5):
        left.executor.pending += [
            build_transfer(value=1 + round_, seq=100 + round_ * 20 + n) for n in range(20)
        ]
        right.executor.pending += [
            build_transfer(src=1, dst=0, value=1 + round_, seq=500 + round_ * 20 + n) for n in range(20)
        ]
        network.run_for(350)
    network.run_until(lambda: len(read_delivered(left)) >= 100 and len(read_delivered(right)) >= 100)
    network.run_for(2000)
    assert read_delivered(right) == [(0, seq) for seq in range(1, 101)]
    assert read_delivered(left) == [(1, seq) for seq in range(1, 101)]


@pytest.mark.parametrize("kind", [FinalBlock, BundleAnnouncement, SubmitCrosslink])
def test_nothing_is_lost_when_every_first_message_of_a_kind_is(network, world, kind):
    _, source, target = world
    seen = set()

    def is_lost(sender, to, message):
        key = (sender, to, repr(message))
        if isinstance(message, kind) and key not in seen:
            seen.add(key)
            return True
        return False

    network.is_lost = is_lost
    source.executor.pending = [build_transfer(value=5), build_transfer(value=6, seq=2)]
    network.run_until(lambda: len(read_delivered(target)) >= 2, within_ms=120_000)
    assert read_delivered(target) == [(0, 1), (0, 2)]
    assert seen


def test_shards_go_on_while_the_beacon_is_down_and_catch_up_after(network, world):
    beacon, source, target = world
    network.run_until(lambda: source.machine.heads.finalized_height >= 2)
    beacon.stop()
    before = source.machine.heads
    source.executor.pending = [build_transfer(value=5)]
    network.run_for(10_000)
    assert source.machine.heads.latest_height >= before.latest_height + 90
    assert read_delivered(target) == []
    beacon.start()
    network.run_until(lambda: read_delivered(target) == [(0, 1)])
    height = source.machine.heads.latest_height
    network.run_until(lambda: source.machine.heads.finalized_height >= height)


def run_with_crash(victim, crash_after_ms):
    network = Network(build_genesis())
    nodes = [add_beacon(network), add_shard(network, 0), add_shard(network, 1)]
    for node in nodes:
        node.start()
    nodes[1].executor.pending = [build_transfer(value=5), build_transfer(value=6, seq=2)]
    network.run_for(crash_after_ms)
    nodes[victim].stop()
    network.run_for(500)
    nodes[victim].start()
    network.run_until(lambda: len(read_delivered(nodes[2])) >= 2)
    network.run_for(1000)
    return read_delivered(nodes[2])


@pytest.mark.parametrize("victim", [0, 1, 2])
def test_a_crash_anywhere_loses_and_doubles_nothing(victim):
    for crash_after_ms in range(20, 800, 60):
        assert run_with_crash(victim, crash_after_ms) == [(0, 1), (0, 2)], f"after {crash_after_ms} ms"


def test_replicas_of_a_shard_agree_while_messages_flow(network):
    beacon = add_beacon(network)
    sources = [add_shard(network, 0, f"shard-0-{index}", (index,)) for index in range(4)]
    target = add_shard(network, 1)
    for node in (beacon, *sources, target):
        node.start()
    sources[2].executor.pending = [build_transfer(value=9)]
    network.run_until(lambda: read_delivered(target) == [(0, 1)])
    network.run_until(lambda: all(node.machine.heads.finalized_height >= 8 for node in sources))
    finals = [tuple(data["hash"] for data in node.get_notices("block.final"))[:8] for node in sources]
    assert len(set(finals)) == 1


@pytest.mark.parametrize("seed", range(6))
def test_nothing_is_lost_or_doubled_on_a_bus_that_loses_a_fifth_of_all_messages(seed):
    network = Network(build_genesis())
    draw = random.Random(seed)
    beacons = [add_beacon(network, f"beacon-{index}", (2 * index, 2 * index + 1)) for index in range(4)]
    shards = [
        [add_shard(network, shard, f"shard-{shard}-{index}", (index,)) for index in range(4)]
        for shard in range(2)
    ]
    for node in network.nodes.values():
        node.start()
    network.is_lost = lambda *_: draw.random() < 0.2
    left, right = shards
    for index in range(4):
        left[index].executor.pending = [build_transfer(value=1 + index, seq=10 + index)]
        right[index].executor.pending = [build_transfer(1, 0, value=1 + index, seq=20 + index)]
    victim = draw.choice([*beacons, *left, *right])
    network.run_for(draw.randrange(100, 1500))
    victim.stop()
    network.run_for(draw.randrange(100, 1500))
    victim.start()
    network.run_until(
        lambda: all(len(read_delivered(node)) >= 4 for node in (*left, *right) if node is not victim),
        within_ms=300_000,
    )
    network.is_lost = lambda *_: False
    network.run_for(5000)
    assert {tuple(read_delivered(node)) for node in left if node is not victim} == {
        tuple((1, seq) for seq in range(1, 5))
    }
    assert {tuple(read_delivered(node)) for node in right if node is not victim} == {
        tuple((0, seq) for seq in range(1, 5))
    }
    table = beacons[0].machine.get_supply()
    assert table.total == table.genesis
