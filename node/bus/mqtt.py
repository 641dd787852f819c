"""The bus over MQTT 3.1.1 by aiomqtt: to the embedded broker, to mosquitto, or to any broker by its URL.

aiomqtt does not reconnect by itself, and its queue either grows without end or drops what is new. So this module keeps
its own bounded queues and one task that connects, subscribes, sends and, when the connection ends, begins again after a
growing delay. What was not acknowledged when a connection ended is sent once more over the next one; receivers know
repeats by their sequence.

Several messages are under way at once, so a large one holds up no vote. Chunks of no more than one of the largest are: a receiver
keeps as much of a sender, and would give up one message for the other.

We publish with QoS 1, so that we know what the broker has taken, and subscribe with QoS 0: within a connection TCP loses
nothing, over its end a clean session keeps nothing, and acknowledging every delivery would double the broker's work.

Client identifiers carry a random part: a broker ends the session of whoever comes later under the same identifier, so a
guessable one would let any local process cut a node off.
"""

import asyncio
import logging
import random
import secrets
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Final, Self, cast
from urllib.parse import urlsplit

import aiomqtt
import msgspec

from node.bus.endpoint import BusConfig, BusIdentity, EnvelopeBus, Outgoing
from node.bus.envelope import HEADER_BYTES
from shardyard.errors import ConfigError
from shardyard.ids import NodeId
from shardyard.messages import MAX_MESSAGE_BYTES

FIRST_DELAY_S: Final = 0.05
LONGEST_DELAY_S: Final = 2.0
SENDERS: Final = 4
"""Messages that wait for their acknowledgement at once."""
MAX_ATTEMPTS: Final = 3
SUBSCRIPTION_REFUSED: Final = 0x80
KEEPALIVE_S: Final = 30
CONNECT_TIMEOUT_S: Final = 5.0
CANCEL_AGAIN_S: Final = 0.5
SEAL_OFF_LOOP_BYTES: Final = 64 * 1024
"""Above this, compressing and hashing a message takes longer than the event loop may be held."""

_log = logging.getLogger(__name__)


class BrokerAddress(msgspec.Struct, frozen=True, kw_only=True):
    """Where the broker is and who we are to it. ``mqtts`` URLs use the certificate files."""

    url: str
    username: str
    password: str
    ca_file: str | None = None
    certificate_file: str | None = None
    key_file: str | None = None


class _Endpoint(msgspec.Struct, frozen=True):
    host: str
    port: int
    is_tls: bool


class MqttBus(EnvelopeBus):
    """A ``Bus`` over an MQTT broker. Entering it does not wait for the broker; ``wait_connected`` does."""

    def __init__(
        self,
        config: BusConfig,
        identity: BusIdentity,
        directory: Mapping[NodeId, bytes],
        broker: BrokerAddress,
    ) -> None:
        """``directory`` maps every node of the network to its Ed25519 public key. Raises ``ConfigError``."""
        super().__init__(config, identity, directory)
        self._broker = broker
        self._endpoint = parse_broker_url(broker.url)
        self._connected = asyncio.Event()
        self._room = Room(MAX_MESSAGE_BYTES)
        self._runner: asyncio.Task[None] | None = None
        self._is_closing = False

    @property
    def is_connected(self) -> bool:
        """Whether the broker is there and knows our subscriptions."""
        return self._connected.is_set()

    async def wait_connected(self) -> None:
        """Wait until the broker is there and knows our subscriptions."""
        await self._connected.wait()

    async def __aenter__(self) -> Self:
        self._runner = asyncio.create_task(self._run(), name=f"bus of {self.node_id}")
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._is_closing = True
        # ``wait_for``, which aiomqtt uses, may forget a cancellation that comes together with its result: ask again.
        while self._runner is not None and not self._runner.done():
            self._runner.cancel()
            await asyncio.wait([self._runner], timeout=CANCEL_AGAIN_S)

    async def _run(self) -> None:
        delay = FIRST_DELAY_S
        # A task group that fails while it is cancelled raises the failure and forgets the cancellation.
        while not self._is_closing:
            connections = self.counters.connections
            try:
                await self._serve_connection()
            except* (aiomqtt.MqttError, OSError) as failures:
                # The password is not part of these errors; the address is what an operator needs.
                _log.warning("bus of %s: %s: %s", self.node_id, self._broker.url, failures.exceptions[0])
            except* Exception:  # noqa: BLE001
                # Whatever a broker makes of the protocol: a node that goes on deaf would be worse.
                _log.exception("bus of %s: %s", self.node_id, self._broker.url)
            if self._connected.is_set():
                self._connected.clear()
                self.counters.disconnections += 1
            delay = (
                FIRST_DELAY_S if self.counters.connections > connections else min(2 * delay, LONGEST_DELAY_S)
            )
            # Spread out, so that all nodes do not come back to a restarted broker in the same instant.
            await asyncio.sleep(delay * random.uniform(0.5, 1.5))  # noqa: S311 - no secret

    async def _serve_connection(self) -> None:
        async with self._connect() as client:
            granted = await client.subscribe([(topic_filter, 0) for topic_filter in self._filters])
            for topic_filter, code in zip(self._filters, granted, strict=True):
                # paho reports a number or a reason object, by the version of the protocol
                if getattr(code, "value", code) == SUBSCRIPTION_REFUSED:
                    _log.error("bus of %s: the broker refuses %s", self.node_id, topic_filter)
            self.counters.connections += 1
            self._connected.set()
            async with asyncio.TaskGroup() as group:
                for number in range(SENDERS):
                    group.create_task(
                        self._send_outgoing(client), name=f"bus sender {number} of {self.node_id}"
                    )
                # ``receive`` takes every message as it arrives; this only waits for the connection to end.
                async for _ in client.messages:
                    pass

    @asynccontextmanager
    async def _connect(self) -> AsyncIterator[aiomqtt.Client]:
        """Enter a connection. One that does not come about in time is closed: an answer that came late would keep it for ever."""
        client = self._open_client()
        is_there = False
        try:
            async with client:
                is_there = True
                yield client
        finally:
            if not is_there:
                _end(client)

    def _open_client(self) -> aiomqtt.Client:
        endpoint = self._endpoint
        tls = aiomqtt.TLSParameters(
            ca_certs=self._broker.ca_file,
            certfile=self._broker.certificate_file,
            keyfile=self._broker.key_file,
        )
        return aiomqtt.Client(
            endpoint.host,
            endpoint.port,
            username=self._broker.username,
            password=self._broker.password,
            identifier=f"{self.node_id}-{secrets.token_hex(12)}",
            keepalive=KEEPALIVE_S,
            timeout=CONNECT_TIMEOUT_S,
            clean_session=True,
            logger=_log,
            queue_type=cast("type[asyncio.Queue[aiomqtt.Message]]", _sink_into(self.receive)),
            tls_params=tls if endpoint.is_tls else None,
            socket_options=[(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)],
            max_queued_outgoing_messages=2 * SENDERS,
        )

    async def _send_outgoing(self, client: aiomqtt.Client) -> None:
        task = asyncio.current_task()
        assert task is not None
        while not task.cancelling():  # see ``__aexit__``: a cancellation may have been forgotten
            outgoing = await self._outgoing.get()
            try:
                await self._send(client, outgoing)
            except BaseException:
                self._keep_for_next_connection(outgoing)
                raise
            self.counters.published += 1

    async def _send(self, client: aiomqtt.Client, outgoing: Outgoing) -> None:
        if outgoing.envelopes is None:
            is_large = len(outgoing.body) > SEAL_OFF_LOOP_BYTES
            # Kept only when somebody still waits for it: a thread that was left alone must not change it later.
            outgoing.envelopes = (
                await asyncio.to_thread(self.seal, outgoing) if is_large else self.seal(outgoing)
            )
        if len(outgoing.envelopes) == 1:
            await self._send_envelopes(client, outgoing, outgoing.envelopes)
            return
        size = sum(len(envelope) - HEADER_BYTES for envelope in outgoing.envelopes)
        async with self._room.take(size):
            await self._send_envelopes(client, outgoing, outgoing.envelopes)

    @staticmethod
    async def _send_envelopes(client: aiomqtt.Client, outgoing: Outgoing, envelopes: list[bytes]) -> None:
        while outgoing.sent < len(envelopes):
            await client.publish(outgoing.topic, envelopes[outgoing.sent], outgoing.qos, outgoing.is_retained)
            outgoing.sent += 1

    def _keep_for_next_connection(self, outgoing: Outgoing) -> None:
        outgoing.attempts += 1
        if outgoing.attempts >= MAX_ATTEMPTS or outgoing.qos == 0:
            self.counters.dropped_outgoing += 1
            return
        size = sum(map(len, outgoing.envelopes or [outgoing.body]))
        self.counters.dropped_outgoing += self._outgoing.put_back(outgoing, size)


class Room:
    """Bytes that may be under way at once, given to those who ask in the order in which they do."""

    def __init__(self, most: int) -> None:
        self._left = most
        self._turn = asyncio.Lock()
        self._given_back = asyncio.Event()

    @asynccontextmanager
    async def take(self, size: int) -> AsyncIterator[None]:
        """Have ``size`` bytes, at most as many as there are, while entered; until then wait for them."""
        async with self._turn:
            while size > self._left:
                self._given_back.clear()
                await self._given_back.wait()
            self._left -= size
        try:
            yield
        finally:
            self._left += size
            self._given_back.set()


def _end(client: aiomqtt.Client) -> None:
    """Close the socket of a client that was never entered: aiomqtt leaves it open."""
    client._connected = asyncio.Future()  # noqa: SLF001 - a cancelled one would keep its callbacks from the end
    client._client.disconnect()  # noqa: SLF001


def parse_broker_url(url: str) -> _Endpoint:
    """Return host, port and scheme of ``mqtt://host:port`` or ``mqtts://host:port``; raises ``ConfigError``."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ConfigError(f"broker URL: got {url!r}: {error}") from error
    if parts.scheme not in {"mqtt", "mqtts"} or not parts.hostname or not _can_be_looked_up(parts.hostname):
        raise ConfigError(f"broker URL: got {url!r}, expected mqtt://host:port or mqtts://host:port")
    if parts.username is not None or parts.password is not None:
        raise ConfigError("broker URL: it carries a password, which would end up in logs; expected none")
    is_tls = parts.scheme == "mqtts"
    return _Endpoint(parts.hostname, port or (8883 if is_tls else 1883), is_tls)


def _can_be_looked_up(host: str) -> bool:
    """Tell whether a name can be asked for: no label is empty or has more than 63 octets (RFC 1035, 2.3.4)."""
    try:
        return bool(host.encode("idna"))
    except UnicodeError:
        return False


def _sink_into(receive: Callable[[str, bytes], None]) -> Callable[[int], asyncio.Queue[aiomqtt.Message]]:
    """Return what aiomqtt takes for its queue and what holds nothing: messages go straight to ``receive``."""

    class Sink(asyncio.Queue[aiomqtt.Message]):
        def put_nowait(self, item: aiomqtt.Message) -> None:
            if isinstance(item.payload, bytes):
                receive(str(item.topic), item.payload)

    return Sink
