"""The mirror: readable, small, and only in the node's own part."""

import json

from node.bus.endpoint import BusConfig, BusIdentity
from node.bus.memory import MemoryBus, MemoryHub
from node.bus.watch import WatchMirror, describe_notice
from shardyard.codec import encode
from shardyard.consensus.votes import Vote, VoteKind
from shardyard.effects import Notice
from shardyard.ids import BEACON, ZERO_ADDRESS, Hash32, NodeId, ShardId, Slot
from shardyard.keys import NodeKey
from shardyard.messages import Votes
from shardyard.receipts import Origin, Receipt, ReceiptKind

NODE = NodeId("shard-1-0")
HASH = Hash32(b"\xab" * 32)


def build_bus():
    key = NodeKey(b"k" * 32)
    config = BusConfig(network_name="devnet", network=HASH)
    return MemoryBus(config, BusIdentity(NODE, key, 1), {NODE: key.public_key}, MemoryHub())


async def take_watch(bus):
    found = []
    while len(bus._outgoing):
        outgoing = await bus._outgoing.get()
        if "/watch/" in outgoing.topic:
            found.append((outgoing.topic, json.loads(outgoing.body)))
    return found


def test_a_notice_becomes_readable_json():
    notice = Notice("block.final", ShardId(1), {"height": 5, "hash": HASH, "base_fee": 1 << 60})
    topic, data = describe_notice(NODE, notice)
    assert topic == "shard-1/blocks"
    assert data == {
        "kind": "block.final",
        "chain": "shard-1",
        "node": NODE,
        "height": 5,
        "hash": "ab" * 32,
        "base_fee": str(1 << 60),
    }


def test_the_beacon_mirrors_what_it_says_of_a_shard_in_its_own_part():
    notice = Notice("message", ShardId(1), {"id": HASH, "stage": "beacon-final", "kind": "CALL"})
    topic, data = describe_notice(NodeId("beacon-0"), notice)
    assert topic == "beacon/messages"
    assert (data["chain"], data["stage"], data["receipt"]) == ("shard-1", "beacon-final", "CALL")


def test_faults_have_a_stream_of_their_own():
    for kind in ("refused", "block.invalid", "evidence", "halted", "build.refused"):
        assert describe_notice(NODE, Notice(kind, BEACON, {}))[0] == "shard-1/faults"


async def test_votes_that_are_published_are_mirrored():
    bus = build_bus()
    vote = Vote(VoteKind.NOTAR, Slot(7), HASH, 2, bytes(96))
    await bus.publish(ShardId(1), Votes((vote,)))
    ((topic, data),) = await take_watch(bus)
    assert topic == "sy/devnet/watch/shard-1/votes"
    assert (data["vote"], data["slot"], data["validator"]) == ("NOTAR", 7, 2)


async def test_a_message_is_followed_by_its_id():
    bus = build_bus()
    receipt = Receipt(
        version=1,
        kind=ReceiptKind.TRANSFER,
        src=ShardId(1),
        dst=ShardId(2),
        seq=3,
        id=HASH,
        origin=Origin(HASH, ZERO_ADDRESS, 0),
        parent_id=HASH,
        sender=ZERO_ADDRESS,
        target=ZERO_ADDRESS,
        value=(10**18).to_bytes(32, "big"),
        gas_limit=0,
        gas_price=0,
        reply_gas=0,
        refund_to=ZERO_ADDRESS,
        deadline=0,
        payload=b"",
    )
    WatchMirror(bus).publish_receipts(ShardId(1), "emitted", [encode(receipt), b"no receipt"], 9)
    ((topic, data),) = await take_watch(bus)
    assert topic == "sy/devnet/watch/shard-1/messages"
    assert (data["id"], data["stage"], data["value"], data["height"]) == (
        "ab" * 32,
        "emitted",
        str(10**18),
        9,
    )


async def test_people_come_after_nodes_when_the_bus_is_full():
    bus = build_bus()
    for _ in range(10_000):
        bus.mirror("shard-1/blocks", {"kind": "block.final"})
    assert len(bus._outgoing) <= bus._config.max_outgoing // 2 + 1
