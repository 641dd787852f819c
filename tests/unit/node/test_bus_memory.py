"""The bus in memory: what is heard, what is refused, what is bounded."""

import asyncio
import os

import pytest

from node.bus.endpoint import BoundedQueue, BusConfig, BusIdentity
from node.bus.envelope import Sealer
from node.bus.memory import HubFaults, MemoryBus, MemoryHub
from node.bus.topics import MessageClass, Subscription, encode_topic
from shardyard.errors import ConfigError
from shardyard.ids import BEACON, ZERO_HASH, Hash32, Height, NodeId, ShardId, Slot
from shardyard.keys import NodeKey
from shardyard.messages import CrosslinkRequest, Status, Transactions, Votes

NETWORK = Hash32(b"n" * 32)
NODES = [NodeId("shard-0-0"), NodeId("shard-0-1"), NodeId("beacon-0")]
KEYS = {node: NodeKey(node.encode().ljust(32, b"-")) for node in NODES}
DIRECTORY = {node: key.public_key for node, key in KEYS.items()}
SHARD = ShardId(0)


WHOLE_SHARD = (Subscription(SHARD),)


def build_bus(hub, node, subscriptions=WHOLE_SHARD, **limits):
    config = BusConfig(network_name="devnet", network=NETWORK, subscriptions=subscriptions, **limits)
    return MemoryBus(config, BusIdentity(node, KEYS[node], 1), DIRECTORY, hub)


def build_request(number):
    return CrosslinkRequest(crosslink=Hash32(number.to_bytes(32, "big")))


async def take(bus, count):
    found = []
    async with asyncio.timeout(5):
        async for item in bus.messages():
            found.append(item)
            if len(found) == count:
                break
    return found


async def test_a_broadcast_reaches_who_follows_the_chain_and_not_its_sender():
    hub = MemoryHub()
    async with build_bus(hub, NODES[0]) as alice, build_bus(hub, NODES[1]) as bob:
        await alice.publish(SHARD, Votes(()))
        await bob.publish(SHARD, build_request(1))
        assert await take(bob, 1) == [(NODES[0], SHARD, Votes(()))]
        assert await take(alice, 1) == [(NODES[1], SHARD, build_request(1))]
        assert alice.counters.refused.total() == 0


async def test_a_node_is_heard_as_long_as_its_last_true_word_is_recent(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("node.bus.endpoint.time.monotonic", lambda: now[0])
    hub = MemoryHub()
    async with build_bus(hub, NODES[0]) as alice, build_bus(hub, NODES[1]) as bob:
        assert alice.list_heard(5) == ()
        hub.route(encode_topic("devnet", NODES[2], SHARD, Votes(())), b"forged")
        await bob.publish(SHARD, Votes(()))
        await take(alice, 1)
        assert alice.list_heard(5) == (NODES[1],)
        now[0] = 105.0
        assert alice.list_heard(5) == (NODES[1],)
        now[0] = 105.1
        assert alice.list_heard(5) == ()


async def test_a_direct_message_reaches_its_receiver_alone():
    hub = MemoryHub()
    everything = (Subscription(None),)
    async with (
        build_bus(hub, NODES[0]) as alice,
        build_bus(hub, NODES[1], everything) as bob,
        build_bus(hub, NODES[2], everything) as beacon,
    ):
        await alice.send(NODES[2], BEACON, build_request(1))
        await alice.publish(SHARD, Votes(()))
        assert await take(beacon, 2) == [(NODES[0], BEACON, build_request(1)), (NODES[0], SHARD, Votes(()))]
        assert await take(bob, 1) == [(NODES[0], SHARD, Votes(()))]


async def test_a_class_that_was_not_subscribed_is_not_heard():
    hub = MemoryHub()
    async with (
        build_bus(hub, NODES[0]) as alice,
        build_bus(hub, NODES[1], (Subscription(SHARD, frozenset({MessageClass.VOTE})),)) as bob,
    ):
        await alice.publish(SHARD, build_request(1))
        await alice.publish(SHARD, Votes(()))
        assert await take(bob, 1) == [(NODES[0], SHARD, Votes(()))]


async def test_what_a_hub_doubles_is_delivered_once():
    hub = MemoryHub(HubFaults(double=1000))
    async with build_bus(hub, NODES[0]) as alice, build_bus(hub, NODES[1]) as bob:
        for number in range(20):
            await alice.publish(SHARD, build_request(number))
        found = await take(bob, 20)
        assert [item[2] for item in found] == [build_request(number) for number in range(20)]
        assert bob.counters.refused["ReplayedError"] >= 19


async def test_reordered_messages_all_arrive_but_the_one_still_held():
    hub = MemoryHub(HubFaults(reorder=500), seed=3)
    async with build_bus(hub, NODES[0]) as alice, build_bus(hub, NODES[1]) as bob:
        for number in range(50):
            await alice.publish(SHARD, build_request(number))
        found = [item[2] for item in await take(bob, 49)]
        assert found != sorted(found, key=lambda message: message.crosslink)


async def test_a_late_comer_gets_the_retained_status():
    hub = MemoryHub()
    status = Status(shard=SHARD, slot=Slot(9), final_height=Height(8), final_hash=ZERO_HASH)
    async with build_bus(hub, NODES[0]) as alice:
        await alice.publish(SHARD, status)
        async with build_bus(hub, NODES[2]) as witness:
            await take(witness, 1)
        async with build_bus(hub, NODES[1]) as bob:
            assert await take(bob, 1) == [(NODES[0], SHARD, status)]


async def test_a_flood_of_garbage_is_counted_and_bounded_and_the_honest_get_through():
    hub = MemoryHub()
    topic = encode_topic("devnet", NODES[0], SHARD, Votes(()))
    (forged,) = Sealer(NETWORK, NodeKey(b"m" * 32), 9).seal(topic, b"forged")
    async with build_bus(hub, NODES[0]) as alice, build_bus(hub, NODES[1], max_incoming=500) as bob:
        for number in range(400):
            hub.route(topic, os.urandom(number))
            hub.route(topic, forged)
            hub.route("sy/devnet/node/stranger/shard-0/vote", forged)
            hub.route(topic, bytes(10_000_000))
        assert len(bob._incoming) <= 500
        await alice.publish(SHARD, Votes(()))
        assert await take(bob, 1) == [(NODES[0], SHARD, Votes(()))]
        refused = bob.counters.refused
        assert refused["TooLargeError"] == 400
        assert refused["WrongSignatureError"] > 0
        assert refused["UnknownSenderError"] > 0
        assert refused["DecodeError"] > 0
        assert bob.counters.dropped_incoming > 0


async def test_messages_that_piled_up_leave_other_tasks_their_turns():
    hub = MemoryHub()
    turns = 0

    async def take_turns():
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async with build_bus(hub, NODES[0]) as alice, build_bus(hub, NODES[1]) as bob:
        for number in range(640):
            await alice.publish(SHARD, build_request(number))
        await asyncio.sleep(0)
        assert len(bob._incoming) == 640
        other = asyncio.create_task(take_turns())
        await take(bob, 640)
        other.cancel()
    assert turns >= 9


async def test_signed_bytes_that_are_no_message_are_refused():
    hub = MemoryHub()
    topic = encode_topic("devnet", NODES[0], SHARD, Votes(()))
    async with build_bus(hub, NODES[1]) as bob:
        sealer = Sealer(NETWORK, KEYS[NODES[0]], 1)
        for body in (b"", b"\xc1", b"\x92\x63\x00", os.urandom(64)):
            hub.route(topic, sealer.seal(topic, body)[0])
        hub.route(topic, sealer.seal(topic, b"\x92\x02\x90")[0])
        assert await take(bob, 1) == [(NODES[0], SHARD, Votes(()))]
        assert bob.counters.refused["DecodeError"] == 4


async def test_outgoing_messages_are_bounded_while_nothing_sends():
    hub = MemoryHub()
    bus = build_bus(hub, NODES[0], max_outgoing=10, max_outgoing_bytes=50_000)
    for _ in range(100):
        await bus.publish(SHARD, Transactions(shard=SHARD, raw=bytes(10_000), ends=(10_000,)))
    assert len(bus._outgoing) <= 10
    assert bus._outgoing.bytes <= 50_000
    assert bus.counters.dropped_outgoing >= 95


async def test_watch_data_above_its_cap_is_dropped():
    bus = build_bus(MemoryHub(), NODES[0])
    await bus.publish_watch("shard-0/blocks", {"text": "x" * 100_000})
    assert len(bus._outgoing) == 0
    assert bus.counters.dropped_outgoing == 1


def test_a_name_with_a_slash_is_refused():
    config = BusConfig(network_name="dev/net", network=NETWORK)
    with pytest.raises(ConfigError):
        MemoryBus(config, BusIdentity(NODES[0], KEYS[NODES[0]], 1), DIRECTORY, MemoryHub())


async def test_a_full_queue_drops_its_oldest_entries():
    queue = BoundedQueue(max_entries=3, max_bytes=100)
    dropped = [queue.put(number, 10) for number in range(5)]
    assert dropped == [0, 0, 0, 1, 1]
    assert queue.put(5, 95) == 3
    assert await queue.get() == 5
