"""The embedded broker's process: ``python -m node.bus.broker --listen 127.0.0.1:PORT --access FILE``.

amqtt speaks MQTT; what it leaves open is closed here, as an untrusted peer would find it:

- it ended a client's session before it had asked the new-comer for a password, did not ask whether a last will may be
  published, and let a connection that never says anything stay: we authenticate first, check wills, and set deadlines;
- its queues grow without end when a reader is slow: we deliver as messages arrive, build each packet once for all its
  readers, and drop what does not fit a reader's buffer (the bus is lossy by contract);
- every packet was a task and every delivery another: an idle network of six nodes must cost a few percent of a core.

Sessions are always clean, deliveries are QoS 0, QoS 2 is refused. A node does not hear its own voice. Deny by default:
``AccessPlugin`` asks ``node.bus.access`` for every connection, publication and subscription.
"""

import argparse
import asyncio
import json
import logging
import signal
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import uvloop
from amqtt.adapters import ReaderAdapter, StreamWriterAdapter, WriterAdapter
from amqtt.broker import Broker
from amqtt.contexts import Action, BaseContext, BrokerConfig, ListenerConfig
from amqtt.errors import AMQTTError, MQTTError, NoDataError
from amqtt.mqtt import packet_class
from amqtt.mqtt.connack import IDENTIFIER_REJECTED, NOT_AUTHORIZED, ConnackPacket
from amqtt.mqtt.constants import QOS_0, QOS_2
from amqtt.mqtt.disconnect import DisconnectPacket
from amqtt.mqtt.packet import SUBSCRIBE, UNSUBSCRIBE, MQTTFixedHeader
from amqtt.mqtt.protocol.broker_handler import BrokerProtocolHandler
from amqtt.mqtt.puback import PubackPacket
from amqtt.mqtt.publish import PublishPacket
from amqtt.plugins.base import BaseAuthPlugin, BaseTopicPlugin
from amqtt.session import Session
from amqtt.utils import gen_client_id

from node.bus.access import AccessRules, read_access_file

MAX_PACKET_BYTES: Final = 512 * 1024
"""Above the largest envelope; refused before it is read."""
MAX_CONNECTIONS: Final = 512
MAX_FILTERS_PER_SESSION: Final = 1024
MAX_FILTER_CHARACTERS: Final = 512
MAX_SUBSCRIBE_BYTES: Final = 64 * 1024
"""What a client asks for in one packet: each filter in it is looked at before anybody else has a turn."""
MAX_BUFFER_BYTES: Final = 32 * 1024 * 1024
"""What may wait for one slow reader."""
MAX_RETAINED: Final = 4096
MAX_RETAINED_BYTES: Final = 64 * 1024
MAX_ROUTES: Final = 8192
CONNECT_DEADLINE_S: Final = 5.0
SUBSCRIPTION_REFUSED: Final = 0x80

_log = logging.getLogger("node.bus.broker")

OnPublish = Callable[[Session, PublishPacket], Awaitable[bool]]


class AccessPlugin(BaseAuthPlugin, BaseTopicPlugin):  # type: ignore[misc]
    """Connections, publications and subscriptions by the access file."""

    @dataclass
    class Config:
        """Where the access file is."""

        access_file: str

    def __init__(self, context: BaseContext) -> None:
        super().__init__(context)
        self.rules = AccessRules(read_access_file(Path(self.config.access_file)))

    async def authenticate(self, *, session: Session) -> bool | None:
        """Tell whether the session's password is right and its last will is within its rights."""
        if not self.rules.is_authentic(session.username, session.password):
            return False
        return not session.will_flag or self.rules.may_publish(session.username, session.will_topic or "")

    async def topic_filtering(
        self, *, session: Session | None = None, topic: str | None = None, action: Action | None = None
    ) -> bool | None:
        """Tell whether the session may do ``action`` with ``topic``; what is not granted is denied."""
        if session is None or not topic:
            return False
        if action is Action.PUBLISH:
            return self.rules.may_publish(session.username, topic)
        return self.rules.may_read(session.username, topic)


class SequentialHandler(BrokerProtocolHandler):  # type: ignore[misc]
    """Reads one packet at a time and finishes with it before the next: a flood waits in its sender's socket."""

    on_publish: OnPublish
    goodbye: DisconnectPacket | None = None
    """What the client ended its session with, if it did."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        # One of each may wait; the library's own queues have no end, and are filled faster than they are emptied.
        self._pending_subscriptions: asyncio.Queue[Any] = asyncio.Queue(1)
        self._pending_unsubscriptions: asyncio.Queue[Any] = asyncio.Queue(1)

    async def handle_disconnect(self, disconnect: DisconnectPacket | None) -> None:
        """Remember the packet: it may come before anybody waits for it."""
        self.goodbye = self.goodbye or disconnect
        await super().handle_disconnect(disconnect)

    async def wait_disconnect(self) -> DisconnectPacket | None:
        """Wait for the end of the session, also when it has ended: the library's own would wait for ever then."""
        if self._reader_stopped.is_set():
            return self.goodbye
        packet: DisconnectPacket | None = await super().wait_disconnect()
        return packet

    async def _reader_loop(self) -> None:
        assert self.session is not None
        assert self.reader is not None
        assert self._reader_ready is not None
        self._reader_ready.set()
        keepalive = self.session.keep_alive
        watchdog = _Watchdog(1.5 * keepalive, self._close_transport) if keepalive > 0 else None
        try:
            while await self._read_packet(self.reader):
                if watchdog is not None:
                    watchdog.feed()
        except (AMQTTError, MQTTError, NoDataError, OSError, EOFError) as error:
            _log.debug("%s: %r", self.session.client_id, error)
        except asyncio.CancelledError:
            _log.debug("%s: closed by the broker", self.session.client_id)
        except Exception:  # noqa: BLE001
            # Whatever a client's bytes provoke in the library ends that client's connection, never the broker.
            _log.exception("%s: connection closed", self.session.client_id)
        if watchdog is not None:
            watchdog.stop()
        await self.handle_connection_closed()
        self._reader_stopped.set()
        await self.stop()

    async def _read_packet(self, reader: ReaderAdapter) -> bool:
        header = await MQTTFixedHeader.from_stream(reader)
        if header is None:
            return False
        most = MAX_SUBSCRIBE_BYTES if header.packet_type in {SUBSCRIBE, UNSUBSCRIBE} else MAX_PACKET_BYTES
        if header.remaining_length > most:
            raise MQTTError(f"packet: got {header.remaining_length} bytes, expected at most {most}")
        packet = await packet_class(header).from_stream(reader, fixed_header=header)
        match type(packet).__name__:
            case "PublishPacket":
                return await self._accept_publish(packet)
            case "SubscribePacket":
                await self.handle_subscribe(packet)
            case "UnsubscribePacket":
                await self.handle_unsubscribe(packet)
            case "PingReqPacket":
                await self.handle_pingreq(packet)
            case "DisconnectPacket":
                await self.handle_disconnect(packet)
                return False
            case name:
                raise MQTTError(f"packet: got {name}, which this broker never expects")
        return True

    async def _accept_publish(self, packet: PublishPacket) -> bool:
        if packet.qos is None or packet.qos >= QOS_2:
            raise MQTTError(f"PUBLISH: got QoS {packet.qos}, expected 0 or 1")
        assert self.session is not None
        if not await self.on_publish(self.session, packet):
            return False
        if packet.qos != QOS_0 and packet.packet_id is not None:
            await self._send_packet(PubackPacket.build(packet.packet_id))
        return True

    def deliver(self, packet: bytes) -> bool:
        """Write ``packet``, or tell that this reader is too slow for it."""
        if not isinstance(self.writer, StreamWriterAdapter) or self.writer.is_closed:
            return False
        transport = self.writer._writer.transport  # noqa: SLF001 - amqtt hides what says how slow a reader is
        if transport.is_closing() or transport.get_write_buffer_size() > MAX_BUFFER_BYTES:
            return False
        transport.write(packet)
        return True

    async def stop(self) -> None:
        """End the connection without waiting for a reader that may never read."""
        if self.writer is not None:
            _close_writer(self.writer)
        await super().stop()

    def _close_transport(self) -> None:
        if isinstance(self.writer, StreamWriterAdapter):
            self.writer._writer.transport.abort()  # noqa: SLF001 - a silent peer is not waited for


class EmbeddedBroker(Broker):  # type: ignore[misc]
    """amqtt's broker with bounded memory, deliveries on arrival, and authentication before anything else."""

    def __init__(self, listen: str, access_file: Path) -> None:
        """``listen`` is ``host:port``; port 0 takes a free one."""
        super().__init__(
            BrokerConfig(
                listeners={"default": ListenerConfig(bind=listen)},
                plugins={
                    f"{AccessPlugin.__module__}.{AccessPlugin.__qualname__}": {
                        "access_file": str(access_file)
                    }
                },
            )
        )
        plugin = self.plugins_manager.get_plugin(AccessPlugin.__name__)
        assert plugin is not None
        self._rules: AccessRules = plugin.rules
        self._routes: dict[str, tuple[SequentialHandler, ...]] = {}
        self._filters: dict[str | None, set[str]] = {}
        """What each client has subscribed to, by its identifier."""
        self._connections = 0
        self.published = 0
        self.refused = 0
        self.dropped = 0

    @property
    def port(self) -> int:
        """TCP port the broker listens on."""
        server: asyncio.Server = self._servers["default"].instance
        return int(server.sockets[0].getsockname()[1])

    @property
    def connections(self) -> int:
        """How many clients are connected, those included who have not said who they are."""
        return self._connections

    async def _client_connected(
        self, listener_name: str, reader: ReaderAdapter, writer: WriterAdapter
    ) -> None:
        if self._connections >= MAX_CONNECTIONS:
            self.refused += 1
            _close_writer(writer)
            return
        self._connections += 1
        try:
            await self._serve_client(listener_name, reader, writer)
        except (AMQTTError, MQTTError, NoDataError, OSError, EOFError, TimeoutError) as error:
            self.refused += 1
            _log.debug("connection refused: %r", error)
        except Exception:  # noqa: BLE001
            # Before a password was seen, anybody can provoke anything here.
            self.refused += 1
            _log.exception("connection closed")
        finally:
            self._connections -= 1
            _close_writer(writer)

    async def _serve_client(self, listener_name: str, reader: ReaderAdapter, writer: WriterAdapter) -> None:
        async with asyncio.timeout(CONNECT_DEADLINE_S):
            handler, session = await SequentialHandler.init_from_connect(reader, writer, self.plugins_manager)
            assert isinstance(handler, SequentialHandler)
            if not await self._authenticate(session, self.listeners_config[listener_name]):
                self.refused += 1
                _log.warning("user %r refused", (session.username or "")[:80])
                await ConnackPacket.build(0, NOT_AUTHORIZED).to_stream(writer)
                return
        session.clean_session, session.parent = True, 0
        if not session.client_id:
            session.client_id = gen_client_id()
        if not await self._free_client_id(session):
            self.refused += 1
            _log.warning("user %r refused: its client identifier is another user's", session.username)
            await ConnackPacket.build(0, IDENTIFIER_REJECTED).to_stream(writer)
            return
        session.transitions.connect()
        handler.on_publish = self._on_publish
        handler.attach(session, reader, writer)
        handler.keepalive_timeout = None  # the handler's own watchdog sees to it
        self._sessions[session.client_id] = (session, handler)
        try:
            await handler.mqtt_connack_authorize(authorize=True)
            await handler.start()
            await self._client_message_loop(session, handler)
        finally:
            if self._sessions.get(session.client_id, (None, None))[1] is handler:
                await self._cleanup_session(session.client_id)
            self._routes.clear()

    async def _free_client_id(self, session: Session) -> bool:
        """End an older session under the same identifier; False when it is another user's."""
        older = self._sessions.get(session.client_id or "")
        if older is not None:
            if older[0].username != session.username:
                return False
            await self._cleanup_session(session.client_id or "")
            self._routes.clear()
        return True

    async def _topic_filtering(self, session: Session, topic: str, action: Action) -> bool:
        # The plugin's answer without a task for each question.
        if action is Action.PUBLISH:
            return self._rules.may_publish(session.username, topic)
        return self._rules.may_read(session.username, topic)

    async def add_subscription(self, subscription: tuple[str, int], session: Session) -> int:
        """Subscribe ``session``, granting QoS 0."""
        topic_filter = subscription[0]
        held = self._filters.setdefault(session.client_id, set())
        if len(held) >= MAX_FILTERS_PER_SESSION or len(topic_filter) > MAX_FILTER_CHARACTERS:
            return SUBSCRIPTION_REFUSED
        granted: int = await super().add_subscription((topic_filter, QOS_0), session)
        if granted == SUBSCRIPTION_REFUSED:
            self.refused += 1
            _log.warning("%s may not read %s", session.username, topic_filter[:200])
        else:
            held.add(topic_filter)
            self._routes.clear()
        return granted

    def _del_subscription(self, a_filter: str, session: Session) -> int:
        self._routes.clear()
        deleted: int = super()._del_subscription(a_filter, session)
        self._filters.get(session.client_id, set()).discard(a_filter)
        if not self._subscriptions.get(a_filter, True):
            del self._subscriptions[a_filter]  # else a client that changes its mind for ever fills the memory
        return deleted

    async def _del_all_subscriptions(self, session: Session) -> None:
        for topic_filter in self._filters.pop(session.client_id, ()):
            self._del_subscription(topic_filter, session)

    async def _on_publish(self, session: Session, packet: PublishPacket) -> bool:
        topic = packet.topic_name
        if not topic or "#" in topic or "+" in topic or topic.startswith("$"):
            return False
        if not self._rules.may_publish(session.username, topic):
            self.refused += 1
            _log.warning("%s may not publish to %s", session.username, topic[:200])
            return True
        self.published += 1
        data = packet.data or b""
        self._deliver(session, topic, data)
        if packet.retain_flag:
            await self.retain_message(session, topic, data, QOS_0)
        return True

    async def _broadcast_message(
        self,
        session: Session | None,
        topic: str | None,
        data: bytes | bytearray | None,
        force_qos: int | None = None,
    ) -> None:
        # Last wills come this way; their topic was checked when the session began.
        if topic:
            self._deliver(session, topic, bytes(data or b""))

    def _deliver(self, session: Session | None, topic: str, data: bytes) -> None:
        route = self._routes.get(topic)
        if route is None:
            route = self._compute_route(topic)
        if not route:
            return
        packet = PublishPacket.build(topic, data, None, dup_flag=False, qos=QOS_0, retain=False).to_bytes()
        for handler in route:
            if handler.session is session:
                continue  # its own voice
            if not handler.deliver(packet):
                self.dropped += 1

    def _compute_route(self, topic: str) -> tuple[SequentialHandler, ...]:
        found: dict[int, SequentialHandler] = {}
        for topic_filter, entries in self._subscriptions.items():
            if self._matches(topic, topic_filter):
                for session, _ in entries:
                    handler = self._get_handler(session)
                    if isinstance(handler, SequentialHandler):
                        found[id(handler)] = handler
        if len(self._routes) >= MAX_ROUTES:
            self._routes.clear()
        route = self._routes[topic] = tuple(found.values())
        return route

    async def retain_message(
        self,
        source_session: Session | None,
        topic_name: str | None,
        data: bytes | bytearray | None,
        qos: int | None = None,
    ) -> None:
        """Keep the last message of a topic for those who subscribe later, within bounds."""
        if (
            data
            and topic_name not in self._retained_messages
            and len(self._retained_messages) >= MAX_RETAINED
        ):
            self.dropped += 1
            return
        if len(data or b"") > MAX_RETAINED_BYTES:
            self.dropped += 1
            return
        await super().retain_message(source_session, topic_name, data, qos)


def _close_writer(writer: WriterAdapter) -> None:
    if not isinstance(writer, StreamWriterAdapter) or writer.is_closed:
        return
    writer.is_closed = True  # amqtt's own close would wait until everything is read
    transport = writer._writer.transport  # noqa: SLF001
    if transport.get_write_buffer_size() > 0:
        transport.abort()
    else:
        transport.close()


class _Watchdog:
    """Calls back when nothing was fed to it for a while; feeding costs no timer."""

    def __init__(self, delay_s: float, on_silence: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._delay_s = delay_s
        self._on_silence = on_silence
        self._fed_at = self._loop.time()
        self._timer = self._loop.call_later(delay_s, self._check)

    def feed(self) -> None:
        self._fed_at = self._loop.time()

    def stop(self) -> None:
        self._timer.cancel()

    def _check(self) -> None:
        left = self._fed_at + self._delay_s - self._loop.time()
        if left <= 0:
            self._on_silence()
        else:
            self._timer = self._loop.call_later(left, self._check)


async def run_broker(listen: str, access_file: Path, *, exit_with_stdin: bool) -> None:
    """Serve until SIGTERM, SIGINT, or, with ``exit_with_stdin``, until the launcher's pipe closes."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    if exit_with_stdin:
        await _watch_stdin(loop, stop)
    broker = EmbeddedBroker(listen, access_file)
    await broker.start()
    # One line for the launcher: the broker listens from now on.
    sys.stdout.write(json.dumps({"event": "ready", "port": broker.port}) + "\n")
    sys.stdout.flush()
    await stop.wait()
    _log.info("published %d, refused %d, dropped %d", broker.published, broker.refused, broker.dropped)
    await broker.shutdown()


async def _watch_stdin(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    class UntilClosed(asyncio.Protocol):
        def connection_lost(self, exc: Exception | None) -> None:
            stop.set()

    await loop.connect_read_pipe(UntilClosed, sys.stdin)


def main(arguments: list[str] | None = None) -> None:
    """Run the broker's process."""
    parser = argparse.ArgumentParser(
        prog="python -m node.bus.broker", description="The embedded MQTT broker."
    )
    parser.add_argument("--listen", default="127.0.0.1:0", help="host:port; port 0 takes a free one")
    parser.add_argument("--access", required=True, type=Path, help="file of credentials and their rights")
    parser.add_argument("--exit-with-stdin", action="store_true", help="stop when standard input closes")
    options: Any = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    logging.getLogger("amqtt").setLevel(logging.ERROR)
    uvloop.run(run_broker(options.listen, options.access, exit_with_stdin=options.exit_with_stdin))


if __name__ == "__main__":
    main()
