"""The bus over real brokers in processes of their own: exchange, kills, rights, abuse."""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
from types import SimpleNamespace

import aiomqtt
import psutil
import pytest

from node.bus import mosquitto
from node.bus.access import OBSERVER, build_access_list, create_passwords, write_access_file
from node.bus.broker import EmbeddedBroker
from node.bus.endpoint import BusConfig, BusIdentity
from node.bus.envelope import MAX_ENVELOPE_BYTES, Sealer
from node.bus.mqtt import BrokerAddress, MqttBus
from node.bus.topics import Subscription, encode_topic
from shardyard.ids import BEACON, ZERO_HASH, Hash32, Height, NodeId, ShardId, Slot
from shardyard.keys import NodeKey
from shardyard.messages import CrosslinkRequest, Status, Transactions, Votes

pytestmark = pytest.mark.network

NETWORK = Hash32(b"n" * 32)
SHARD = ShardId(0)
ALICE, BOB, BEACON_NODE = NodeId("shard-0-0"), NodeId("shard-0-1"), NodeId("beacon-0")
KEYS = {node: NodeKey(node.encode().ljust(32, b"-")) for node in (ALICE, BOB, BEACON_NODE)}
DIRECTORY = {node: key.public_key for node, key in KEYS.items()}
PASSWORDS = create_passwords(KEYS)
DISCONNECT = b"\xe0\x00"
VOTE_TOPIC = encode_topic("devnet", ALICE, SHARD, Votes(()))
DEADLINE_S = 15


class BrokerProcess:
    """A broker that can be killed and started again on the same port."""

    def __init__(self, directory, kind, eventually):
        self.eventually = eventually
        self.directory = directory
        self.kind = kind
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.process = None

    def build_command(self):
        if self.kind == "mosquitto":
            return mosquitto.write_mosquitto_config(self.directory, "devnet", PASSWORDS, self.port)
        access = self.directory / "access.json"
        write_access_file(access, build_access_list("devnet", PASSWORDS))
        command = [sys.executable, "-m", "node.bus.broker", "--exit-with-stdin", "--access", str(access)]
        return [*command, "--listen", f"127.0.0.1:{self.port}"]

    def is_listening(self):
        assert self.process.poll() is None, "the broker ended at once"
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
            return True
        return False

    def start(self):
        self.process = subprocess.Popen(
            self.build_command(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        self.eventually(self.is_listening)

    def kill(self):
        self.process.kill()
        self.close_pipes()

    def close_pipes(self):
        self.process.stdin.close()
        self.process.wait(10)
        self.process.stdout.close()


KINDS = [
    "embedded",
    pytest.param(
        "mosquitto",
        marks=pytest.mark.skipif(mosquitto.find_mosquitto() is None, reason="mosquitto is not installed"),
    ),
]


@pytest.fixture(params=KINDS)
def broker(request, tmp_path, eventually):
    process = BrokerProcess(tmp_path, request.param, eventually)
    process.start()
    yield process
    process.kill()


@pytest.fixture
def embedded(tmp_path, eventually):
    process = BrokerProcess(tmp_path, "embedded", eventually)
    process.start()
    yield process
    process.kill()


def build_bus(broker, node, *, incarnation=1, subscriptions=None, **limits):
    config = BusConfig(
        network_name="devnet",
        network=NETWORK,
        subscriptions=subscriptions or (Subscription(SHARD),),
        **limits,
    )
    address = BrokerAddress(url=f"mqtt://127.0.0.1:{broker.port}", username=node, password=PASSWORDS[node])
    return MqttBus(config, BusIdentity(node, KEYS[node], incarnation), DIRECTORY, address)


@contextlib.asynccontextmanager
async def connect(broker, node, **options):
    async with asyncio.timeout(DEADLINE_S), build_bus(broker, node, **options) as bus:
        await bus.wait_connected()
        yield bus


@contextlib.asynccontextmanager
async def connect_raw(broker, username, identifier=None):
    async with asyncio.timeout(DEADLINE_S):
        async with aiomqtt.Client(
            "127.0.0.1",
            broker.port,
            username=username,
            password=PASSWORDS[username],
            identifier=identifier,
        ) as client:
            yield client


def build_request(number):
    return CrosslinkRequest(crosslink=Hash32(number.to_bytes(32, "big")))


async def take(bus, count):
    found = []
    async for item in bus.messages():
        found.append(item)
        if len(found) == count:
            break
    return found


async def test_two_nodes_exchange_messages_of_every_size(broker):
    large = Transactions(shard=SHARD, raw=os.urandom(3_000_000), ends=(3_000_000,))
    async with connect(broker, ALICE) as alice, connect(broker, BOB) as bob:
        await alice.publish(SHARD, Votes(()))
        await alice.publish(SHARD, large)
        await alice.send(BOB, BEACON, build_request(1))
        found = await take(bob, 3)
        assert {(sender, chain) for sender, chain, _ in found} == {(ALICE, SHARD), (ALICE, BEACON)}
        assert sorted((message for _, _, message in found), key=repr) == sorted(
            (Votes(()), large, build_request(1)), key=repr
        )
        await bob.publish(SHARD, build_request(2))
        assert await take(alice, 1) == [(BOB, SHARD, build_request(2))]
        assert alice.counters.refused.total() == bob.counters.refused.total() == 0


@pytest.mark.parametrize(("count", "size"), [(2, 20_000_000), (5, 8_000_000)])
async def test_large_messages_that_are_said_at_once_all_arrive(broker, count, size):
    said = [Transactions(shard=SHARD, raw=os.urandom(size), ends=(size,)) for _ in range(count)]
    async with connect(broker, ALICE) as alice, connect(broker, BOB) as bob:
        for message in said:
            await alice.publish(SHARD, message)
        await alice.publish(SHARD, Votes(()))
        heard = [message for _, _, message in await take(bob, count + 1)]
        assert all(message in heard for message in (*said, Votes(())))


async def test_exchange_goes_on_after_the_broker_was_killed(broker, eventually_async):
    async with connect(broker, ALICE) as alice, connect(broker, BOB) as bob:
        await alice.publish(SHARD, build_request(1))
        assert len(await take(bob, 1)) == 1
        for round_number in range(2, 4):
            broker.kill()
            await eventually_async(lambda: not alice.is_connected and not bob.is_connected)
            # Said while nobody listens: it waits, and is said when the broker is back.
            await alice.publish(SHARD, build_request(round_number))
            await asyncio.to_thread(broker.start)
            await eventually_async(lambda: bob.is_connected and alice.is_connected)
            await alice.publish(SHARD, build_request(10 + round_number))
            await bob.publish(SHARD, build_request(20 + round_number))
            assert (BOB, SHARD, build_request(20 + round_number)) in await take(alice, 1)
            heard = []
            while (ALICE, SHARD, build_request(10 + round_number)) not in heard:
                heard += await take(bob, 1)
        assert alice.counters.disconnections == 2


async def test_a_node_that_restarts_is_heard_and_its_past_is_not(broker):
    async with connect(broker, BOB) as bob:
        async with connect(broker, ALICE, incarnation=1) as alice:
            await alice.publish(SHARD, build_request(1))
            assert len(await take(bob, 1)) == 1
        async with connect(broker, ALICE, incarnation=2) as alice:
            await alice.publish(SHARD, build_request(2))
            assert await take(bob, 1) == [(ALICE, SHARD, build_request(2))]
        async with connect_raw(broker, ALICE) as client:
            for envelope in Sealer(NETWORK, KEYS[ALICE], 1).seal(VOTE_TOPIC, b"\x92\x02\x90"):
                await client.publish(VOTE_TOPIC, envelope, qos=1)
            async with connect(broker, BEACON_NODE) as beacon:
                await beacon.send(BOB, SHARD, build_request(3))
                assert await take(bob, 1) == [(BEACON_NODE, SHARD, build_request(3))]
        assert bob.counters.refused["ReplayedError"] == 1


async def test_a_late_comer_hears_the_last_status(broker, eventually_async):
    status = Status(shard=SHARD, slot=Slot(9), final_height=Height(8), final_hash=ZERO_HASH)
    async with connect(broker, ALICE) as alice:
        await alice.publish(SHARD, status)
        await eventually_async(lambda: alice.counters.published == 1)
        async with connect(broker, BOB) as bob:
            assert await take(bob, 1) == [(ALICE, SHARD, status)]


# --- rights ---


async def test_a_node_publishes_only_under_its_own_name(broker):
    async with connect(broker, BOB) as bob, connect(broker, ALICE) as alice:
        async with connect_raw(broker, BEACON_NODE) as intruder:
            # Truly sealed by Alice, so that only the broker's rights stand between it and Bob.
            (envelope,) = Sealer(NETWORK, KEYS[ALICE], 5).seal(VOTE_TOPIC, b"\x92\x02\x90")
            with contextlib.suppress(aiomqtt.MqttError):
                await intruder.publish(VOTE_TOPIC, envelope, qos=1)
        await alice.publish(SHARD, build_request(1))
        assert await take(bob, 1) == [(ALICE, SHARD, build_request(1))]


async def test_the_observer_sees_the_mirror_and_nothing_else(broker):
    async with connect_raw(broker, OBSERVER) as observer, connect(broker, ALICE) as alice:
        for topic in ("#", "sy/#", "sy/devnet/node/#", "sy/devnet/node/+/shard-0/vote", "$SYS/#"):
            with contextlib.suppress(aiomqtt.MqttError):
                await observer.subscribe(topic)
        await observer.subscribe("sy/+/watch/#")
        await alice.publish(SHARD, Votes(()))
        await alice.publish_watch("shard-0/blocks", {"kind": "block.final", "height": 7})
        async for message in observer.messages:
            assert str(message.topic) == "sy/devnet/watch/shard-0/blocks"
            assert json.loads(message.payload) == {"kind": "block.final", "height": 7}
            break


async def test_the_observer_can_publish_nothing(broker):
    async with connect(broker, BOB) as bob, connect_raw(broker, OBSERVER) as watcher:
        await watcher.subscribe("sy/+/watch/#")
        for topic in (
            VOTE_TOPIC,
            "sy/devnet/watch/shard-0/blocks",
            "sy/devnet/node/observer/shard-0/vote",
            "other",
        ):
            async with connect_raw(broker, OBSERVER) as observer:
                with contextlib.suppress(aiomqtt.MqttError):
                    await observer.publish(topic, b"observer was here", qos=1)
        async with connect(broker, ALICE) as alice:
            await alice.publish_watch("shard-0/blocks", {"height": 1})
            await alice.publish(SHARD, Votes(()))
            async for message in watcher.messages:
                assert b"observer" not in message.payload
                break
            assert await take(bob, 1) == [(ALICE, SHARD, Votes(()))]
        assert bob.counters.refused.total() == 0


async def test_a_node_writes_no_other_chains_mirror(broker):
    async with connect_raw(broker, OBSERVER) as watcher, connect(broker, ALICE) as alice:
        await watcher.subscribe("sy/+/watch/#")
        await alice.publish_watch("shard-1/blocks", {"height": 666})
        await alice.publish_watch("beacon/blocks", {"height": 666})
        await alice.publish_watch("shard-0/blocks", {"height": 1})
        async for message in watcher.messages:
            assert str(message.topic) == "sy/devnet/watch/shard-0/blocks"
            break


@pytest.mark.parametrize(
    ("username", "password"),
    [(None, None), (ALICE, None), (ALICE, "wrong"), ("nobody", "wrong"), (ALICE, "")],
)
async def test_without_the_right_password_nobody_connects(broker, username, password):
    client = aiomqtt.Client("127.0.0.1", broker.port, username=username, password=password)
    with pytest.raises(aiomqtt.MqttError):
        await client.__aenter__()


async def test_a_stranger_cannot_cut_a_node_off_by_its_identifier(broker):
    async with connect_raw(broker, ALICE, "guessed") as alice:
        await alice.subscribe("sy/devnet/node/+/shard-0/vote")
        for username, password in (("nobody", "x"), (OBSERVER, PASSWORDS[OBSERVER])):
            thief = aiomqtt.Client(
                "127.0.0.1", broker.port, username=username, password=password, identifier="guessed"
            )
            if username == OBSERVER and broker.kind == "mosquitto":
                continue  # mosquitto lets any user take an identifier over: ours cannot be guessed
            with pytest.raises(aiomqtt.MqttError):
                await thief.__aenter__()
        async with connect(broker, BOB) as bob:
            await bob.publish(SHARD, Votes(()))
            async for message in alice.messages:
                assert str(message.topic).endswith("/vote")
                break


async def test_a_last_will_needs_the_right_to_publish_it(embedded):
    will = aiomqtt.Will("sy/devnet/watch/shard-0/blocks", b"forged")
    client = aiomqtt.Client(
        "127.0.0.1", embedded.port, username=OBSERVER, password=PASSWORDS[OBSERVER], will=will
    )
    with pytest.raises(aiomqtt.MqttError):
        await client.__aenter__()


# --- abuse ---


async def test_garbage_oversize_replay_and_forgery_are_counted_refused_and_bounded(broker):
    async with connect(broker, BOB, max_incoming=256) as bob, connect_raw(broker, ALICE) as evil:
        honest = Sealer(NETWORK, KEYS[ALICE], 1)
        (replayed,) = honest.seal(VOTE_TOPIC, b"\x92\x02\x90")
        (forged,) = Sealer(NETWORK, KEYS[BOB], 2).seal(VOTE_TOPIC, b"\x92\x02\x90")
        await evil.publish(VOTE_TOPIC, replayed, qos=1)
        assert await take(bob, 1) == [(ALICE, SHARD, Votes(()))]
        rss = psutil.Process().memory_info().rss
        for number in range(300):
            await evil.publish(VOTE_TOPIC, os.urandom(number), qos=1)
            await evil.publish(VOTE_TOPIC, replayed, qos=1)
            await evil.publish(VOTE_TOPIC, forged, qos=1)
            await evil.publish(VOTE_TOPIC, bytes(MAX_ENVELOPE_BYTES + 1 + number), qos=1)
        (last,) = honest.seal(VOTE_TOPIC, b"\x92\x02\x90")
        await evil.publish(VOTE_TOPIC, last, qos=1)
        assert await take(bob, 1) == [(ALICE, SHARD, Votes(()))]
        refused = bob.counters.refused
        assert all(
            refused[name] for name in ("DecodeError", "ReplayedError", "WrongSignatureError", "TooLargeError")
        )
        assert psutil.Process().memory_info().rss - rss < 100 * 1024 * 1024


RAW_ABUSE = [
    b"",
    b"GET / HTTP/1.1\r\n\r\n",
    os.urandom(4096),
    b"\x10\xff\xff\xff\x7f" + b"\x00\x04MQTT\x04\xc2\x00\x3c" + b"\xff\xff",
    b"\x30\xff\xff\xff\x7f" + bytes(100_000),
    b"\x82\x05\x00\x01\x00\x01#\x00",
    b"\x10\x00",
]


@pytest.mark.parametrize("data", RAW_ABUSE, ids=range(len(RAW_ABUSE)))
async def test_bytes_that_are_no_mqtt_harm_nobody(embedded, data):
    connections = []
    for _ in range(20):
        reader, writer = await asyncio.open_connection("127.0.0.1", embedded.port)
        writer.write(data)
        connections.append((reader, writer))
    async with connect(embedded, ALICE) as alice, connect(embedded, BOB) as bob:
        await alice.publish(SHARD, Votes(()))
        assert len(await take(bob, 1)) == 1
    for _, writer in connections:
        writer.close()
    assert psutil.Process(embedded.process.pid).memory_info().rss < 100 * 1024 * 1024


async def test_a_packet_above_the_cap_ends_its_connection_unread(embedded):
    async with connect_raw(embedded, ALICE) as client:
        with pytest.raises(aiomqtt.MqttError):
            await client.publish(VOTE_TOPIC, bytes(100_000_000), qos=1, timeout=1)
    assert psutil.Process(embedded.process.pid).memory_info().rss < 100 * 1024 * 1024


async def test_a_reader_that_stopped_reading_costs_bounded_memory(embedded):
    reader, writer = await asyncio.open_connection("127.0.0.1", embedded.port, limit=1024)
    writer.write(encode_connect(BOB, PASSWORDS[BOB]) + encode_subscribe("sy/devnet/node/+/shard-0/tx"))
    assert (await reader.readexactly(4))[3] == 0
    await reader.readexactly(5)
    writer.transport.pause_reading()
    async with connect(embedded, ALICE) as alice, connect(embedded, BEACON_NODE) as witness:
        for _ in range(60):
            await alice.publish(SHARD, Transactions(shard=SHARD, raw=os.urandom(2_000_000), ends=()))
            assert len(await take(witness, 1)) == 1
    assert psutil.Process(embedded.process.pid).memory_info().rss < 150 * 1024 * 1024
    writer.transport.abort()


@pytest.mark.parametrize("goodbye", [DISCONNECT, b""])
async def test_clients_that_leave_as_they_come_give_their_connections_back(
    tmp_path, goodbye, eventually_async
):
    access = tmp_path / "access.json"
    write_access_file(access, build_access_list("devnet", PASSWORDS))
    broker = EmbeddedBroker("127.0.0.1:0", access)
    await broker.start()
    for number in range(5):
        reader, writer = await asyncio.open_connection("127.0.0.1", broker.port)
        writer.write(encode_connect(ALICE, PASSWORDS[ALICE], b"passer-by-%d" % number) + goodbye)
        writer.write_eof()
        assert (await reader.read())[3] == 0, "it was let in"
        writer.close()
    await eventually_async(lambda: broker.connections == 0)
    await broker.shutdown()


async def test_a_connection_that_the_broker_answers_too_late_is_closed(monkeypatch, eventually_async):
    monkeypatch.setattr("node.bus.mqtt.CONNECT_TIMEOUT_S", 0.2)
    came, gone = [], []
    is_retried = asyncio.Event()
    rest = asyncio.get_running_loop().create_future()

    async def answer_late(reader, writer):
        came.append(writer)
        with contextlib.closing(writer), contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await reader.readuntil(PASSWORDS[ALICE].encode())
            if len(came) == 1:
                await is_retried.wait()
                writer.write(b"\x20\x02\x00\x00")  # CONNACK
                rest.set_result(await reader.read())
            else:
                is_retried.set()
                await reader.read()
        gone.append(writer)

    server = await asyncio.start_server(answer_late, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with asyncio.timeout(DEADLINE_S), server:
        async with build_bus(SimpleNamespace(port=port), ALICE):
            assert await rest in {DISCONNECT, b""}, "nothing but a goodbye may follow"
        await eventually_async(lambda: len(gone) == len(came))
        await asyncio.gather(*(writer.wait_closed() for writer in gone), return_exceptions=True)


def encode_connect(username, password, client_id=b"raw-reader"):
    fields = [client_id, username.encode(), password.encode()]
    body = b"\x00\x04MQTT\x04\xc2\x00\x00" + b"".join(
        struct.pack(">H", len(field)) + field for field in fields
    )
    return b"\x10" + bytes([len(body)]) + body


def encode_subscribe(topic):
    body = b"\x00\x01" + struct.pack(">H", len(topic)) + topic.encode() + b"\x00"
    return b"\x82" + bytes([len(body)]) + body


# --- its process ---


def test_the_broker_ends_when_its_launchers_pipe_closes(tmp_path, eventually):
    broker = BrokerProcess(tmp_path, "embedded", eventually)
    broker.start()
    broker.close_pipes()
    assert broker.process.returncode == 0


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent died")
@pytest.mark.skipif(mosquitto.find_mosquitto() is None, reason="mosquitto is not installed")
def test_mosquitto_ends_with_its_launcher_however_it_dies(tmp_path, eventually):
    command = BrokerProcess(tmp_path, "mosquitto", eventually).build_command()
    program = (
        "import os, subprocess, sys; child = subprocess.Popen(sys.argv[1:], stderr=subprocess.DEVNULL); "
        "print(child.pid, flush=True); sys.stdin.read(1); os.kill(os.getpid(), 9)"
    )
    launcher = subprocess.Popen(
        [sys.executable, "-c", program, *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    broker = psutil.Process(int(launcher.stdout.readline()))
    eventually(lambda: "python" not in broker.name())  # it became mosquitto
    launcher.stdin.close()
    launcher.wait(10)
    launcher.stdout.close()
    eventually(lambda: not broker.is_running() or broker.status() == psutil.STATUS_ZOMBIE)


async def test_the_broker_ends_cleanly_while_readers_are_connected(embedded):
    async with connect(embedded, ALICE), connect(embedded, BOB):
        embedded.process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(embedded.process.wait, 10) == 0


async def test_an_idle_network_costs_the_broker_a_few_percent_of_a_core(embedded):
    nodes = (ALICE, BOB, BEACON_NODE)
    async with contextlib.AsyncExitStack() as stack:
        buses = [await stack.enter_async_context(connect(embedded, node)) for node in nodes]
        process = psutil.Process(embedded.process.pid)
        before = sum(process.cpu_times()[:2])
        for _ in range(100):  # what six nodes with ten messages a second say in five seconds
            for bus in buses:
                await bus.publish(SHARD, Transactions(shard=SHARD, raw=os.urandom(300), ends=()))
            await asyncio.gather(*(take(bus, len(nodes) - 1) for bus in buses))
        spent = sum(process.cpu_times()[:2]) - before
        assert spent < 0.25
        assert process.memory_info().rss < 60 * 1024 * 1024


@pytest.mark.skipif(shutil.which("mosquitto_sub") is None, reason="mosquitto-clients is not installed")
async def test_mosquitto_sub_shows_the_mirror(broker, eventually_async):
    async with connect(broker, ALICE) as alice:
        process = await asyncio.create_subprocess_exec(
            "mosquitto_sub",
            "-h",
            "127.0.0.1",
            "-p",
            str(broker.port),
            "-u",
            OBSERVER,
            "-P",
            PASSWORDS[OBSERVER],
            "-t",
            "sy/+/watch/#",
            "-C",
            "1",
            stdout=asyncio.subprocess.PIPE,
        )
        try:
            line = asyncio.create_task(process.stdout.readline())

            async def is_shown():
                await alice.publish_watch("shard-0/messages", {"id": "ab", "stage": "emitted"})
                return line.done()

            await eventually_async(is_shown)
            assert json.loads(line.result()) == {"id": "ab", "stage": "emitted"}
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
