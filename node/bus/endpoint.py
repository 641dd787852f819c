"""The seam of the bus: the ``Bus`` protocol, and what every implementation shares.

The bus is a lossy hint channel. ``publish`` and ``send`` never wait for a broker: they queue, and a full queue drops its
oldest entry and counts it, because old consensus messages help nobody and fresh ones do. What comes in is queued under
the same rule, opened, checked and handed out by ``messages``. A peer's bad bytes are counted and dropped, never raised.
"""

import asyncio
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Final, Generic, Protocol, Self, TypeVar

import msgspec

from node.bus.envelope import MAX_ENVELOPE_BYTES, Opener, Sealer
from node.bus.faults import LinkFaults
from node.bus.topics import (
    CLASS_OF,
    MessageClass,
    Subscription,
    compute_filters,
    decode_topic,
    encode_direct_topic,
    encode_topic,
    encode_watch_topic,
    verify_name,
    verify_topic_of,
)
from node.bus.watch import describe_message
from shardyard.errors import DecodeError, RemoteProtocolError, TooLargeError
from shardyard.ids import Hash32, NodeId, ShardId
from shardyard.keys import NodeKey
from shardyard.messages import MAX_MESSAGE_BYTES, Message, Status, decode_message, encode_message

T = TypeVar("T")

MAX_WATCH_BYTES: Final = 64 * 1024
OPENED_PER_TURN: Final = 64
"""Envelopes opened in a row before other tasks get a turn: what piled up must not starve the loop, garbage or not."""


class BusIdentity(msgspec.Struct, frozen=True):
    """Who speaks. ``incarnation`` is greater in each life of the process (``node.storage.data_dir.take_incarnation``)."""

    node_id: NodeId
    key: NodeKey
    incarnation: int


class BusConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Which network, what is wanted of it, and how much may wait."""

    network_name: str
    network: Hash32
    """Hash of the genesis: signed by every envelope, so that nothing of one network counts in another."""
    subscriptions: tuple[Subscription, ...] = ()
    unheard: frozenset[tuple[ShardId, MessageClass]] = frozenset()
    """What no other node listens to: it is mirrored for people and not sent."""
    max_incoming: int = 8192
    max_incoming_bytes: int = 64 * 1024 * 1024
    max_outgoing: int = 4096
    max_outgoing_bytes: int = 64 * 1024 * 1024


@dataclass
class BusCounters:
    """What happened on a bus since it was opened. ``refused`` counts envelopes by the name of the error."""

    published: int = 0
    delivered: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    dropped_incoming: int = 0
    dropped_outgoing: int = 0
    connections: int = 0
    disconnections: int = 0


class Bus(Protocol):
    """What a driver knows of the bus. Opened and closed by ``async with``."""

    counters: BusCounters

    @property
    def node_id(self) -> NodeId:
        """Name under which this bus publishes."""
        ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, *exc_info: object) -> None: ...

    async def publish(self, chain: ShardId, message: Message) -> None:
        """Say ``message`` to everybody who follows ``chain``."""
        ...

    async def send(self, to: NodeId, chain: ShardId, message: Message) -> None:
        """Say ``message`` to one node."""
        ...

    async def publish_watch(self, suffix: str, data: Mapping[str, int | str]) -> None:
        """Mirror ``data`` as JSON for people below the network's watch topic; lost without harm."""
        ...

    def messages(self) -> AsyncIterator[tuple[NodeId, ShardId, Message]]:
        """Yield what others say: sender, chain and message, authenticated and each at most once."""
        ...


class Outgoing(msgspec.Struct):
    """A message on its way out: ``body`` still to be sealed, or ``envelopes``, of which so many were ``sent``."""

    topic: str
    body: bytes
    is_sealed: bool
    """Watch data is JSON for people and travels as it is."""
    qos: int
    is_retained: bool = False
    envelopes: list[bytes] | None = None
    sent: int = 0
    attempts: int = 0


class BoundedQueue(Generic[T]):
    """A FIFO bounded by entries and bytes that drops its oldest entries when full."""

    def __init__(self, max_entries: int, max_bytes: int) -> None:
        self._entries: deque[tuple[T, int]] = deque()
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self._ready = asyncio.Event()
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def put(self, entry: T, size: int) -> int:
        """Append ``entry`` of ``size`` bytes; return how many older entries had to go."""
        self._entries.append((entry, size))
        self.bytes += size
        self._ready.set()
        return self._drop_oldest()

    def put_back(self, entry: T, size: int) -> int:
        """Put ``entry`` back at the head, for another attempt; return how many entries had to go."""
        self._entries.appendleft((entry, size))
        self.bytes += size
        self._ready.set()
        return self._drop_oldest()

    async def get(self) -> T:
        """Wait for the oldest entry and take it."""
        while not self._entries:
            self._ready.clear()
            await self._ready.wait()
        entry, size = self._entries.popleft()
        self.bytes -= size
        return entry

    def _drop_oldest(self) -> int:
        dropped = 0
        while len(self._entries) > self._max_entries or (
            self.bytes > self._max_bytes and len(self._entries) > 1
        ):
            _, size = self._entries.popleft()
            self.bytes -= size
            dropped += 1
        return dropped


class EnvelopeBus:
    """Queues, sealing and opening; a subclass moves ``Outgoing`` to peers and calls ``receive`` with what comes."""

    def __init__(self, config: BusConfig, identity: BusIdentity, directory: Mapping[NodeId, bytes]) -> None:
        """``directory`` maps every node of the network to its Ed25519 public key.

        Raises ``ConfigError`` for names that cannot be levels of a topic.
        """
        verify_name(config.network_name)
        for node in (identity.node_id, *directory):
            verify_name(node)
        self.counters = BusCounters()
        self.links = LinkFaults()
        self._config = config
        self._identity = identity
        self._sealer = Sealer(config.network, identity.key, identity.incarnation)
        self._opener = Opener(config.network, directory)
        self._incoming: BoundedQueue[tuple[str, bytes]] = BoundedQueue(
            config.max_incoming, config.max_incoming_bytes
        )
        self._outgoing: BoundedQueue[Outgoing] = BoundedQueue(config.max_outgoing, config.max_outgoing_bytes)
        self._filters = compute_filters(config.network_name, identity.node_id, config.subscriptions)
        self._heard: dict[NodeId, float] = {}
        """When each other node was heard last, by ``time.monotonic``."""

    @property
    def node_id(self) -> NodeId:
        """Name under which this bus publishes."""
        return self._identity.node_id

    @property
    def filters(self) -> tuple[str, ...]:
        """MQTT filters of what this bus listens to."""
        return self._filters

    def list_heard(self, within_s: float) -> tuple[NodeId, ...]:
        """Return, by name, the other nodes that something signed came from within the last ``within_s`` seconds."""
        since = time.monotonic() - within_s
        return tuple(sorted(node for node, at in self._heard.items() if at >= since))

    async def publish(self, chain: ShardId, message: Message) -> None:
        """Queue ``message`` for everybody who follows ``chain``."""
        self.speak(None, chain, message)

    async def send(self, to: NodeId, chain: ShardId, message: Message) -> None:
        """Queue ``message`` for one node."""
        self.speak(to, chain, message)

    def speak(self, to: NodeId | None, chain: ShardId, message: Message) -> None:
        """``send``, or ``publish`` when ``to`` is None, for those who cannot wait; nothing in it waits."""
        if to is not None:
            verify_name(to)
            topic = encode_direct_topic(self._config.network_name, self.node_id, chain, to)
            self._put(Outgoing(topic, encode_message(message), True, 1))
            return
        if (chain, CLASS_OF[type(message)]) not in self._config.unheard:
            topic = encode_topic(self._config.network_name, self.node_id, chain, message)
            is_status = isinstance(message, Status)
            body = encode_message(message)
            self._put(Outgoing(topic, body, True, 0 if is_status else 1, is_retained=is_status))
        for suffix, data in describe_message(self.node_id, chain, message):
            self.mirror(suffix, data)

    async def publish_watch(self, suffix: str, data: Mapping[str, int | str]) -> None:
        """Queue ``data`` as JSON for people; what is too large for them is dropped."""
        self.mirror(suffix, data)

    def mirror(self, suffix: str, data: Mapping[str, int | str]) -> None:
        """``publish_watch`` for those who cannot wait; nothing in it waits."""
        text = msgspec.json.encode(data)
        if len(text) > MAX_WATCH_BYTES or len(self._outgoing) > self._config.max_outgoing // 2:
            self.counters.dropped_outgoing += 1  # people come after nodes
            return
        self._put(
            Outgoing(encode_watch_topic(self._config.network_name, suffix), text, is_sealed=False, qos=0)
        )

    def _put(self, outgoing: Outgoing) -> None:
        if len(outgoing.body) > MAX_MESSAGE_BYTES:
            raise TooLargeError(
                f"message: got {len(outgoing.body)} bytes, expected at most {MAX_MESSAGE_BYTES}"
            )
        self.counters.dropped_outgoing += self._outgoing.put(outgoing, len(outgoing.body))

    def receive(self, topic: str, envelope: bytes) -> None:
        """Queue what came from the network; the refusals that need no look inside are made here."""
        if not envelope:
            return  # a retained status was cleared
        if len(envelope) > MAX_ENVELOPE_BYTES:
            self.counters.refused[TooLargeError.__name__] += 1
            return
        if self.links:
            late_s = self.links.judge(topic, len(envelope))
            if late_s:
                asyncio.get_running_loop().call_later(late_s, self._receive_late, topic, envelope)
            if late_s is None or late_s > 0:
                return
        self._queue(topic, envelope)

    def _receive_late(self, topic: str, envelope: bytes) -> None:
        self.links.held.give_back(len(envelope))
        self._queue(topic, envelope)

    def _queue(self, topic: str, envelope: bytes) -> None:
        self.counters.dropped_incoming += self._incoming.put((topic, envelope), len(envelope) + len(topic))

    async def messages(self) -> AsyncIterator[tuple[NodeId, ShardId, Message]]:
        """Yield what others say: sender, chain and message, authenticated and each at most once."""
        opened = 0
        while True:
            topic, envelope = await self._incoming.get()
            opened += 1
            if opened % OPENED_PER_TURN == 0:
                await asyncio.sleep(0)
            delivered = self._open(topic, envelope)
            if delivered is not None:
                yield delivered

    def _open(self, topic: str, envelope: bytes) -> tuple[NodeId, ShardId, Message] | None:
        try:
            parsed = decode_topic(topic)
            if parsed.sender == self.node_id:
                return None  # our own voice, which a broker echoes: neither news nor anybody's fault
            if parsed.network != self._config.network_name or parsed.receiver not in {None, self.node_id}:
                raise DecodeError(f"topic: got {topic[:120]!r}, which is not for {self.node_id}")
            data = self._opener.open(parsed.sender, topic, envelope)
            if data is None:
                return None
            message = decode_message(data)
            verify_topic_of(parsed, message)
        except RemoteProtocolError as error:
            self.counters.refused[type(error).__name__] += 1
            return None
        self.counters.delivered += 1
        self._heard[parsed.sender] = time.monotonic()
        return parsed.sender, parsed.chain, message

    def seal(self, outgoing: Outgoing) -> list[bytes]:
        """Return the payloads of ``outgoing``. Each call seals anew: who may try again keeps them, so that it is a repeat."""
        return self._sealer.seal(outgoing.topic, outgoing.body) if outgoing.is_sealed else [outgoing.body]
