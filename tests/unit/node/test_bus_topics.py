"""The table of topics: one function each way, and nothing else is taken for a topic."""

import pytest

from node.bus.topics import (
    CLASS_OF,
    MessageClass,
    Subscription,
    compute_filters,
    decode_topic,
    encode_direct_topic,
    encode_topic,
    is_match,
    verify_name,
    verify_topic_of,
)
from node.runtime import list_subscriptions
from shardyard.crosslinks import Bundle
from shardyard.errors import ConfigError, DecodeError
from shardyard.ids import BEACON, ZERO_HASH, Height, NodeId, ShardId, Slot
from shardyard.messages import BundleAnnouncement, Message, RangeRequest, Status, Votes

NODE = NodeId("shard-1-0")
BUNDLE = BundleAnnouncement(Bundle(crosslink=ZERO_HASH, src=ShardId(1), dst=ShardId(3), receipts=()))
STATUS = Status(shard=ShardId(1), slot=Slot(5), final_height=Height(4), final_hash=ZERO_HASH)


def test_every_message_of_the_union_has_a_class():
    assert set(CLASS_OF) == set(Message.__args__)


@pytest.mark.parametrize("chain", [ShardId(0), ShardId(1234), BEACON])
@pytest.mark.parametrize("message", [Votes(()), STATUS, BUNDLE])
def test_a_topic_is_taken_apart_into_what_it_was_made_of(chain, message):
    topic = decode_topic(encode_topic("devnet", NODE, chain, message))
    assert (topic.network, topic.sender, topic.chain, topic.receiver) == ("devnet", NODE, chain, None)
    verify_topic_of(topic, message)


def test_a_direct_topic_names_its_receiver():
    topic = decode_topic(encode_direct_topic("devnet", NODE, BEACON, NodeId("beacon-0")))
    assert (topic.sender, topic.chain, topic.receiver) == (NODE, BEACON, "beacon-0")


@pytest.mark.parametrize(
    "topic",
    [
        "",
        "sy",
        "sy/devnet/node/a/shard-0",
        "sy/devnet/node/a/shard-0/gossip",
        "sy/devnet/node/a/shard-00/vote",
        "sy/devnet/node/a/shard--1/vote",
        "sy/devnet/node/a/shard-4294967295/vote",
        "sy/devnet/node/a/shard-99999999999/vote",
        "sy/devnet/node/a/bundle/vote",
        "sy/devnet/node/a/shard-0/bundle",
        "sy/devnet/node/a/shard-0/bundle/moon",
        "sy/devnet/node/a/shard-0/vote/shard-1",
        "sy/devnet/watch/shard-0/blocks/x",
        "/sy/devnet/node/a/shard-0/vote",
        "sy/devnet/node/a/shard-0/to/b/c",
    ],
)
def test_what_is_no_topic_is_refused(topic):
    with pytest.raises(DecodeError):
        decode_topic(topic)


def test_a_message_by_the_topic_of_another_class_is_refused():
    topic = decode_topic(encode_topic("devnet", NODE, ShardId(1), Votes(())))
    with pytest.raises(DecodeError):
        verify_topic_of(topic, RangeRequest(shard=ShardId(1), first_height=Height(1), count=1))


def test_a_bundle_by_the_topic_of_another_destination_is_refused():
    topic = decode_topic("sy/devnet/node/shard-1-0/shard-1/bundle/shard-2")
    with pytest.raises(DecodeError):
        verify_topic_of(topic, BUNDLE)


def test_filters_select_what_was_subscribed_and_nothing_else():
    subscriptions = [
        Subscription(ShardId(1), frozenset({MessageClass.VOTE})),
        Subscription(BEACON, frozenset({MessageClass.BUNDLE}), destination=ShardId(3)),
    ]
    filters = compute_filters("devnet", NODE, subscriptions)

    def is_heard(topic):
        return sum(is_match(topic, wanted) for wanted in filters)

    assert is_heard("sy/devnet/node/shard-1-1/shard-1/vote") == 1
    assert is_heard("sy/devnet/node/shard-1-1/shard-1/proposal") == 0
    assert is_heard("sy/devnet/node/shard-2-0/shard-2/vote") == 0
    assert is_heard("sy/devnet/node/beacon-0/beacon/bundle/shard-3") == 1
    assert is_heard("sy/devnet/node/beacon-0/beacon/bundle/shard-2") == 0
    assert is_heard(f"sy/devnet/node/beacon-0/beacon/to/{NODE}") == 1
    assert is_heard("sy/devnet/node/beacon-0/beacon/to/shard-1-1") == 0
    assert is_heard("sy/other/node/shard-1-1/shard-1/vote") == 0


def test_a_filter_inside_another_is_left_out():
    wide = Subscription(None, frozenset({MessageClass.CROSSLINK}))
    filters = compute_filters("devnet", NODE, [Subscription(BEACON), wide])
    topic = "sy/devnet/node/shard-1-1/beacon/crosslink"
    assert sum(is_match(topic, wanted) for wanted in filters) == 1


@pytest.mark.parametrize("name", ["", "a/b", "+", "#", "a.b", "A", "-a", "x" * 64, "a\n"])
def test_a_name_that_cannot_be_one_level_is_refused(name):
    with pytest.raises(ConfigError):
        verify_name(name)


def test_the_beacon_hears_no_bundles_and_shards_hear_theirs():
    def hear(chain):
        filters = compute_filters("dev", NodeId("me"), list_subscriptions(chain))
        return {name for name in filters if "/bundle" in name or name.endswith("#")}

    assert hear(BEACON) == set()  # one per link and beacon replica: what nobody there reads
    assert hear(ShardId(3)) == {"sy/dev/node/+/+/bundle/shard-3"}
