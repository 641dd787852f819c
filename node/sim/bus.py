"""The bus of a run: who hears what, as the topics say, and what of it is lost, late, doubled or cut off."""

import random
from collections import Counter
from collections.abc import Callable
from typing import Protocol

from node.sim.clock import Clock
from node.sim.scenario import FaultProfile
from shardyard.ids import BEACON, NodeId, ShardId
from shardyard.messages import (
    BundleAnnouncement,
    FinalBlock,
    Message,
    Status,
    SubmitCrosslink,
    decode_message,
    encode_message,
)

WIRE_SAMPLE = 32
"""One message in so many takes the way through the codec; the others are passed as they are, frozen structs."""


class Receiver(Protocol):
    """A node as the bus sees it."""

    name: NodeId
    chain: ShardId

    def receive(self, sender: NodeId, chain: ShardId, message: Message) -> None:
        """Take a message."""
        ...


class SimBus:
    """Delivers between nodes after a drawn latency."""

    def __init__(self, clock: Clock, chance: random.Random, profile: FaultProfile) -> None:
        self._clock = clock
        self._random = chance.random
        self._profile = profile
        self._nodes: dict[NodeId, list[Receiver]] = {}
        self._audience: dict[tuple[ShardId, str, int], list[Receiver]] = {}
        self.cuts: set[tuple[NodeId, NodeId]] = set()
        """Ordered pairs that do not hear each other: (sender, receiver)."""
        self.is_out = False
        """The broker is down."""
        self.drop = profile.drop
        self.counters: Counter[str] = Counter()

    def join(self, node: Receiver) -> None:
        """Add a node; two processes may bear one name, and both hear what is sent to it."""
        self._nodes.setdefault(node.name, []).append(node)
        self._audience.clear()

    def publish(self, sender: Receiver, message: Message) -> None:
        """Send to everybody who subscribes to the message's topic."""
        for node in self._get_audience(sender.chain, message):
            if node is not sender:
                self._post(sender, node, message)

    def send(self, sender: Receiver, to: NodeId, message: Message) -> None:
        """Send to one node."""
        for node in self._nodes.get(to, ()):
            if node is not sender:
                self._post(sender, node, message)

    def _get_audience(self, chain: ShardId, message: Message) -> list[Receiver]:
        """The subscriptions of real processes: the own chain, and across chains only what ties them together."""
        destination = message.bundle.dst if isinstance(message, BundleAnnouncement) else 0
        key = (chain, type(message).__name__, destination)
        found = self._audience.get(key)
        if found is None:
            found = [
                node
                for nodes in self._nodes.values()
                for node in nodes
                if _is_subscribed(node.chain, chain, message)
            ]
            self._audience[key] = found
        return found

    def _post(self, sender: Receiver, receiver: Receiver, message: Message) -> None:
        counters = self.counters
        counters["sent"] += 1
        draw = self._random()
        if self.is_out or draw < self.drop or (self.cuts and (sender.name, receiver.name) in self.cuts):
            counters["lost"] += 1
            return
        low, high = self._profile.latency_ms
        copies = 2 if self._random() < self._profile.duplicate else 1
        if counters["sent"] % WIRE_SAMPLE == 0:
            message = decode_message(encode_message(message))
        for _ in range(copies):
            delay = low + int(self._random() * (high - low + 1))
            self._clock.schedule(delay, _delivery(receiver, sender.name, sender.chain, message))


def _delivery(receiver: Receiver, sender: NodeId, chain: ShardId, message: Message) -> Callable[[], None]:
    return lambda: receiver.receive(sender, chain, message)


def _is_subscribed(own: ShardId, chain: ShardId, message: Message) -> bool:
    match message:
        case BundleAnnouncement(bundle=bundle):
            return own in {bundle.dst, BEACON} if chain == BEACON else own == bundle.dst
        case SubmitCrosslink():
            return own == BEACON
        case FinalBlock() | Status():
            return chain in {own, BEACON}
        case _:
            return own == chain
