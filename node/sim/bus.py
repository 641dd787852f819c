"""The bus of a run: who hears what, as the topics say, and what of it is lost, late, doubled or cut off.

A message takes as long as ``links`` says where the profile has regions, jitter or a bandwidth, and besides that what the
profile draws. When the broker goes down, everything on its way is lost with it. A node whose session is gone speaks and
hears nothing until it has subscribed again; one whose queue is short loses what does not fit. Faults of one kind may overlap:
each is ended by itself, and what several hold is free when the last of them has ended.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from typing import Final, Protocol, TypeVar

from node.sim.clock import Clock
from node.sim.links import Links
from node.sim.scenario import FaultProfile
from shardyard.events import MessageReceived
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

Pair = tuple[NodeId, NodeId]
"""Sender and receiver."""
Held = TypeVar("Held")
WIRE_SAMPLE: Final = 32
"""One message in so many takes the way through the codec; the others are passed as they are, frozen structs."""


class Receiver(Protocol):
    """A node as the bus sees it."""

    name: NodeId
    chain: ShardId

    def receive(self, event: MessageReceived) -> None:
        """Take a message."""
        ...


class SimBus:
    """Delivers between nodes after a drawn latency."""

    def __init__(self, clock: Clock, chance: random.Random, profile: FaultProfile) -> None:
        self._clock = clock
        self._random = chance.random
        self._low_ms, high_ms = profile.latency_ms
        self._span_ms = high_ms - self._low_ms + 1
        self._duplicate = profile.duplicate
        self._links: Links | None = None
        if profile.regions or profile.jitter_ms or profile.bandwidth:
            self._links = Links(chance, profile.regions, profile.jitter_ms, profile.bandwidth)
        self._nodes: dict[NodeId, list[Receiver]] = {}
        self._audience: dict[tuple[ShardId, str, int], list[Receiver]] = {}
        self._cuts: Counter[Pair] = Counter()
        """Pairs that do not hear each other, and how many faults keep them apart."""
        self.is_out = False
        """The broker is down."""
        self._outages = 0
        self._deaf: Counter[NodeId] = Counter()
        """Nodes whose session at the broker is gone, and how many faults keep it away."""
        self._short: dict[NodeId, list[int]] = {}
        """Nodes whose queue at the broker is short, and how many messages it holds at most by each of the faults."""
        self._waiting: Counter[NodeId] = Counter()
        """Messages on their way to nodes with a short queue."""
        self.drop = profile.drop
        self.life = 0
        """Of the broker; what was on its way in an earlier one is lost."""
        self.counters: Counter[str] = Counter()

    def join(self, node: Receiver) -> None:
        """Add a node; two processes may bear one name, and both hear what is sent to it."""
        self._nodes.setdefault(node.name, []).append(node)
        self._audience.clear()
        if self._links is not None:
            self._links.place(node.name)

    def go_down(self) -> None:
        """The broker dies, and everything on its way with it."""
        self.is_out = True
        self._outages += 1
        self.life += 1

    def come_up(self) -> None:
        """An outage ends."""
        self._outages -= 1
        self.is_out = self._outages > 0

    def cut(self, pairs: Iterable[Pair]) -> None:
        """Keep the second of each pair from hearing the first."""
        self._cuts.update(pairs)

    def mend(self, pairs: Iterable[Pair]) -> None:
        """Take back one ``cut`` of ``pairs``."""
        _let_go(self._cuts, pairs)

    def lose_session(self, node: NodeId) -> None:
        """The broker forgets the session of ``node``."""
        self._deaf[node] += 1

    def regain_session(self, node: NodeId) -> None:
        """Take back one ``lose_session``."""
        _let_go(self._deaf, (node,))

    def shorten(self, node: NodeId, size: int) -> None:
        """Let the queue of ``node`` hold ``size`` messages at most; of several sizes the least counts."""
        self._short.setdefault(node, []).append(size)

    def lengthen(self, node: NodeId, size: int) -> None:
        """Take back one ``shorten`` to that size."""
        self._short[node].remove(size)
        if not self._short[node]:
            del self._short[node]

    def heal(self) -> None:
        """Everybody hears everybody again."""
        self._cuts.clear()
        self._deaf.clear()
        self._short.clear()
        self.is_out, self._outages = False, 0
        self.drop = 0.0

    def publish(self, sender: Receiver, message: Message) -> None:
        """Send to everybody who subscribes to the message's topic."""
        self._spread(sender, self._get_audience(sender.chain, message), message)

    def send(self, sender: Receiver, to: NodeId, message: Message) -> None:
        """Send to one node."""
        self._spread(sender, self._nodes.get(to, ()), message)

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

    def _spread(self, sender: Receiver, receivers: Iterable[Receiver], message: Message) -> None:
        """Put a message on its way to each of ``receivers``."""
        draw, counters = self._random, self.counters
        is_disturbed = self.is_out or self._cuts or self._deaf or self._short
        size, left_ms = 0, 0
        if self._links is not None and self._links.bandwidth:
            size = len(encode_message(message))
            waited = self._links.send_up(self._clock.now_ms, sender.name, size)
            if waited is None:
                counters["overflown"] += 1
                return
            left_ms = waited
        sent, lost, drop, duplicate = counters["sent"], 0, self.drop, self._duplicate
        low_ms, span_ms, links, schedule = self._low_ms, self._span_ms, self._links, self._clock.schedule
        event = MessageReceived(sender.name, sender.chain, message)  # one for all who hear it
        for receiver in receivers:
            if receiver is sender:
                continue
            sent += 1
            if draw() < drop or (is_disturbed and self._is_lost(sender.name, receiver.name)):
                lost += 1
                continue
            if sent % WIRE_SAMPLE == 0:
                event = MessageReceived(sender.name, sender.chain, decode_message(encode_message(message)))
            for _ in range(2 if draw() < duplicate else 1):
                delay_ms = low_ms + int(draw() * span_ms)
                if links is not None:
                    travelled = self._travel(sender.name, receiver.name, left_ms + delay_ms, size)
                    if travelled is None:
                        continue
                    delay_ms = travelled
                schedule(delay_ms, self._delivery(receiver, event))
        counters["sent"] = sent
        if lost:
            counters["lost"] += lost

    def _travel(self, sender: NodeId, receiver: NodeId, delay_ms: int, size: int) -> int | None:
        """Return when a message arrives that leaves after ``delay_ms``; None when it is lost in a full queue."""
        assert self._links is not None, "without links nothing travels"
        delay_ms += self._links.draw_latency(sender, receiver)
        waited = self._links.send_down(self._clock.now_ms + delay_ms, receiver, size)
        if waited is None:
            self.counters["overflown"] += 1
            return None
        return delay_ms + waited

    def _is_lost(self, sender: NodeId, receiver: NodeId) -> bool:
        if self.is_out or sender in self._deaf or receiver in self._deaf or (sender, receiver) in self._cuts:
            return True
        if receiver in self._short and self._waiting[receiver] >= min(self._short[receiver]):
            self.counters["overflown"] += 1
            return True
        return False

    def _delivery(self, receiver: Receiver, event: MessageReceived) -> Callable[[], None]:
        if receiver.name not in self._short:
            return partial(self._deliver, self.life, receiver, event)
        self._waiting[receiver.name] += 1
        return partial(self._deliver_counted, self.life, receiver, event)

    def _deliver(self, life: int, receiver: Receiver, event: MessageReceived) -> None:
        if self.life == life:
            receiver.receive(event)

    def _deliver_counted(self, life: int, receiver: Receiver, event: MessageReceived) -> None:
        """Deliver to a node whose queue is short: whatever is on its way is in that queue."""
        self._waiting[receiver.name] -= 1
        self._deliver(life, receiver, event)


def _let_go(counts: Counter[Held], items: Iterable[Held]) -> None:
    for item in items:
        counts[item] -= 1
        if not counts[item]:
            del counts[item]


def _is_subscribed(own: ShardId, chain: ShardId, message: Message) -> bool:
    match message:
        case BundleAnnouncement(bundle=bundle):
            return own == bundle.dst
        case SubmitCrosslink():
            return own == BEACON
        case FinalBlock() | Status():
            return chain in {own, BEACON}
        case _:
            return own == chain
