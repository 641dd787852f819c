"""The one table of topics, with one function each way.

Everything a node says is published below its own name, so that an access list can say "node *i* publishes only under
its own name"; receivers subscribe with ``+`` in the sender's place::

    sy/<net>/node/<sender>/<chain>/<class>          one class of messages on one chain
    sy/<net>/node/<sender>/<chain>/bundle/<chain>   receipts for one destination
    sy/<net>/node/<sender>/<chain>/to/<receiver>    for one node alone
    sy/<net>/watch/<chain>/<stream>                 JSON for people, never read by a node

``<chain>`` is ``beacon`` or ``shard-N``. Names have no dots, no slashes and no wildcards (MQTT 3.1.1, and gateways to
other buses use dots as separators).
"""

import re
from collections.abc import Iterable
from enum import StrEnum
from typing import Final

import msgspec

from node.bus.access import is_covered
from shardyard.errors import ConfigError, DecodeError
from shardyard.ids import BEACON, NodeId, ShardId, describe_shard
from shardyard.messages import (
    BlockRequest,
    BlockResponse,
    BundleAnnouncement,
    BundleRequest,
    Certificates,
    ChunkRequest,
    ChunkResponse,
    CrosslinkRequest,
    FinalBlock,
    Message,
    Proposal,
    RangeRequest,
    RangeResponse,
    Rejoins,
    SnapshotManifest,
    SnapshotRequest,
    Status,
    SubmitCrosslink,
    Transactions,
    Votes,
)

ROOT: Final = "sy"
DIRECT: Final = "to"
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_CHAIN: Final = re.compile(r"shard-(0|[1-9][0-9]{0,9})")


class MessageClass(StrEnum):
    """Last level of a topic; a receiver subscribes to the classes it wants of a chain."""

    PROPOSAL = "proposal"
    VOTE = "vote"
    CERTIFICATE = "cert"
    BLOCK = "block"
    CROSSLINK = "crosslink"
    BUNDLE = "bundle"
    TRANSACTIONS = "tx"
    REQUEST = "request"
    RESPONSE = "response"
    STATUS = "status"
    REJOIN = "rejoin"


CLASS_OF: Final[dict[type[Message], MessageClass]] = {
    Proposal: MessageClass.PROPOSAL,
    Votes: MessageClass.VOTE,
    Certificates: MessageClass.CERTIFICATE,
    FinalBlock: MessageClass.BLOCK,
    SubmitCrosslink: MessageClass.CROSSLINK,
    BundleAnnouncement: MessageClass.BUNDLE,
    Transactions: MessageClass.TRANSACTIONS,
    BlockRequest: MessageClass.REQUEST,
    RangeRequest: MessageClass.REQUEST,
    CrosslinkRequest: MessageClass.REQUEST,
    BundleRequest: MessageClass.REQUEST,
    BlockResponse: MessageClass.RESPONSE,
    RangeResponse: MessageClass.RESPONSE,
    Status: MessageClass.STATUS,
    Rejoins: MessageClass.REJOIN,
    SnapshotRequest: MessageClass.REQUEST,
    ChunkRequest: MessageClass.REQUEST,
    SnapshotManifest: MessageClass.RESPONSE,
    ChunkResponse: MessageClass.RESPONSE,
}
EVERY_CLASS: Final = frozenset(MessageClass)


class Topic(msgspec.Struct, frozen=True):
    """A node topic taken apart. ``receiver`` is set for a direct message, ``destination`` for a bundle."""

    network: str
    sender: NodeId
    chain: ShardId
    kind: MessageClass | None
    destination: ShardId | None = None
    receiver: NodeId | None = None


class Subscription(msgspec.Struct, frozen=True):
    """What a node wants to hear of one chain. ``chain`` None means every chain.

    ``destination`` narrows bundles to one destination; None takes them all.
    """

    chain: ShardId | None
    classes: frozenset[MessageClass] = EVERY_CLASS
    destination: ShardId | None = None


def verify_name(name: str) -> None:
    """Raise ``ConfigError`` unless ``name`` can be one level of a topic."""
    if _NAME.fullmatch(name) is None:
        raise ConfigError(f"name: got {name!r}, expected 1 to 63 of a-z, 0-9 and -, not beginning with -")


def encode_topic(network: str, sender: NodeId, chain: ShardId, message: Message) -> str:
    """Return where ``sender`` publishes ``message`` for everybody on ``chain``."""
    kind = CLASS_OF[type(message)]
    topic = f"{ROOT}/{network}/node/{sender}/{describe_shard(chain)}/{kind}"
    if isinstance(message, BundleAnnouncement):
        return f"{topic}/{describe_shard(message.bundle.dst)}"
    return topic


def encode_direct_topic(network: str, sender: NodeId, chain: ShardId, receiver: NodeId) -> str:
    """Return where ``sender`` publishes for ``receiver`` alone."""
    return f"{ROOT}/{network}/node/{sender}/{describe_shard(chain)}/{DIRECT}/{receiver}"


def decode_topic(topic: str) -> Topic:
    """Take a node topic apart; raises ``DecodeError`` when it is none."""
    levels = topic.split("/")
    if len(levels) not in {6, 7} or levels[0] != ROOT or levels[2] != "node":
        raise DecodeError(f"topic: got {topic[:120]!r}, expected {ROOT}/<net>/node/<sender>/<chain>/<class>")
    network, sender, chain = levels[1], NodeId(levels[3]), _decode_chain(levels[4])
    if len(levels) == 6:
        kind = _decode_class(levels[5])
        if kind is MessageClass.BUNDLE:
            raise DecodeError(f"topic: got {topic[:120]!r}, expected the destination of the bundle")
        return Topic(network, sender, chain, kind)
    if levels[5] == MessageClass.BUNDLE:
        return Topic(network, sender, chain, MessageClass.BUNDLE, destination=_decode_chain(levels[6]))
    if levels[5] == DIRECT:
        return Topic(network, sender, chain, None, receiver=NodeId(levels[6]))
    raise DecodeError(f"topic: got {topic[:120]!r}, expected bundle/<chain> or {DIRECT}/<node> at its end")


def verify_topic_of(topic: Topic, message: Message) -> None:
    """Raise ``DecodeError`` when ``message`` did not come by the topic of its class.

    Without this a node could slip a request past a receiver that subscribed to votes alone.
    """
    if topic.receiver is not None:
        return
    expected = CLASS_OF[type(message)]
    if topic.kind is not expected:
        raise DecodeError(
            f"message: got a {type(message).__name__} by topic {topic.kind}, expected {expected}"
        )
    if isinstance(message, BundleAnnouncement) and topic.destination != message.bundle.dst:
        raise DecodeError(f"bundle: got destination {message.bundle.dst}, expected {topic.destination}")


def compute_filters(network: str, receiver: NodeId, subscriptions: Iterable[Subscription]) -> tuple[str, ...]:
    """Return the MQTT filters of ``subscriptions``, sorted, none inside another, and the one for direct messages."""
    prefix = f"{ROOT}/{network}/node/+"
    filters = {f"{prefix}/+/{DIRECT}/{receiver}"}
    for subscription in subscriptions:
        chain = "+" if subscription.chain is None else describe_shard(subscription.chain)
        for kind in subscription.classes:
            if kind is MessageClass.BUNDLE:
                destination = (
                    "+" if subscription.destination is None else describe_shard(subscription.destination)
                )
                filters.add(f"{prefix}/{chain}/{kind}/{destination}")
            else:
                filters.add(f"{prefix}/{chain}/{kind}")
    # A broker may deliver once per filter that matches: what a wider filter covers is left out.
    return tuple(
        sorted(
            one for one in filters if not any(one != other and is_covered(one, other) for other in filters)
        )
    )


def encode_watch_topic(network: str, suffix: str) -> str:
    """Return the mirror topic of ``suffix``, which is ``<chain>/<stream>`` (see ``node.bus.watch``)."""
    return f"{ROOT}/{network}/watch/{suffix}"


def is_match(topic: str, topic_filter: str) -> bool:
    """Tell whether an MQTT ``topic_filter`` selects ``topic``."""
    levels = topic.split("/")
    wanted = topic_filter.split("/")
    for index, level in enumerate(wanted):
        if level == "#":
            return True
        if index >= len(levels) or (level not in {"+", levels[index]}):
            return False
    return len(levels) == len(wanted)


def _decode_chain(name: str) -> ShardId:
    if name == "beacon":
        return BEACON
    match = _CHAIN.fullmatch(name)
    if match is None or int(match[1]) >= BEACON:
        raise DecodeError(f"chain: got {name[:40]!r}, expected beacon or shard-N")
    return ShardId(int(match[1]))


def _decode_class(name: str) -> MessageClass:
    try:
        return MessageClass(name)
    except ValueError:
        raise DecodeError(f"class: got {name[:40]!r}, expected one of {', '.join(MessageClass)}") from None
