"""The bus within one process: the same topics, envelopes, queues and refusals as over MQTT, without a broker.

A ``MemoryHub`` stands where the broker stands. It can be told to misbehave as brokers were seen to: drop, double and
reorder by a seeded choice, or be away for a while; what it is given meanwhile is lost.
"""

import asyncio
import random
from collections.abc import Mapping
from typing import Self

import msgspec

from node.bus.endpoint import BusConfig, BusIdentity, EnvelopeBus
from node.bus.topics import is_match
from shardyard.ids import NodeId


class HubFaults(msgspec.Struct, frozen=True):
    """How a hub misbehaves, in thousandths of what passes it."""

    drop: int = 0
    double: int = 0
    reorder: int = 0


class MemoryHub:
    """Hands what one bus publishes to those that listen. ``seed`` decides what the faults hit."""

    def __init__(self, faults: HubFaults | None = None, seed: int = 0) -> None:
        self.faults = faults or HubFaults()
        self.is_away = False
        self._chance = random.Random(seed)  # noqa: S311 - faults must repeat from their seed
        self._listeners: list[MemoryBus] = []
        self._held: tuple[str, bytes] | None = None
        self._retained: dict[str, bytes] = {}

    def attach(self, bus: "MemoryBus") -> None:
        """Let ``bus`` hear; what is retained comes at once."""
        self._listeners.append(bus)
        for topic, payload in self._retained.items():
            self._deliver_to(bus, topic, payload)

    def detach(self, bus: "MemoryBus") -> None:
        """Let ``bus`` hear no more."""
        self._listeners.remove(bus)

    def route(self, topic: str, payload: bytes, *, is_retained: bool = False) -> None:
        """Pass ``payload`` on, as well as the faults allow."""
        if self.is_away:
            return
        if is_retained:
            self._retained[topic] = payload
        if self._happens(self.faults.drop):
            return
        if self._held is None and self._happens(self.faults.reorder):
            self._held = (topic, payload)
            return
        self._deliver(topic, payload)
        if self._happens(self.faults.double):
            self._deliver(topic, payload)
        if self._held is not None:
            held, self._held = self._held, None
            self._deliver(*held)

    def _happens(self, thousandths: int) -> bool:
        return thousandths > 0 and self._chance.randrange(1000) < thousandths

    def _deliver(self, topic: str, payload: bytes) -> None:
        for bus in self._listeners:
            self._deliver_to(bus, topic, payload)

    @staticmethod
    def _deliver_to(bus: "MemoryBus", topic: str, payload: bytes) -> None:
        if any(is_match(topic, topic_filter) for topic_filter in bus.filters):
            bus.receive(topic, payload)


class MemoryBus(EnvelopeBus):
    """A ``Bus`` over a ``MemoryHub``."""

    def __init__(
        self, config: BusConfig, identity: BusIdentity, directory: Mapping[NodeId, bytes], hub: MemoryHub
    ) -> None:
        """``directory`` maps every node of the network to its Ed25519 public key."""
        super().__init__(config, identity, directory)
        self._hub = hub
        self._sender: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._hub.attach(self)
        self.counters.connections += 1
        self._sender = asyncio.create_task(self._send_outgoing(), name=f"bus of {self.node_id}")
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._hub.detach(self)
        self.counters.disconnections += 1
        if self._sender is not None:
            self._sender.cancel()
            await asyncio.gather(self._sender, return_exceptions=True)

    async def _send_outgoing(self) -> None:
        while True:
            outgoing = await self._outgoing.get()
            for payload in self.seal(outgoing):
                self._hub.route(outgoing.topic, payload, is_retained=outgoing.is_retained)
            self.counters.published += 1
