"""What a client may ask the embedded broker for: every filter is bounded, answered in its turn, and forgotten with its client."""

import asyncio
import contextlib

import aiomqtt
import pytest

from node.bus.access import OBSERVER, build_access_list, create_passwords, write_access_file
from node.bus.broker import MAX_FILTERS_PER_SESSION, EmbeddedBroker

pytestmark = pytest.mark.network

PASSWORDS = {**create_passwords(()), OBSERVER: OBSERVER}
CONNECT = b"\x10\x23\x00\x04MQTT\x04\xc2\x00\x00\x00\x03raw\x00\x08observer\x00\x08observer"
SUBSCRIBE = b"\x82\x06\x00\x01\x00\x01x\x00"
DEADLINE_S = 15


@contextlib.asynccontextmanager
async def run_broker(directory):
    access = directory / "access.json"
    write_access_file(access, build_access_list("devnet", PASSWORDS))
    broker = EmbeddedBroker("127.0.0.1:0", access)
    await broker.start()
    async with asyncio.timeout(DEADLINE_S):
        yield broker
    await broker.shutdown()


def observe(broker):
    return aiomqtt.Client("127.0.0.1", broker.port, username=OBSERVER, password=OBSERVER)


async def test_filters_that_were_given_back_leave_nothing(tmp_path, eventually_async):
    async with run_broker(tmp_path) as broker:
        async with observe(broker) as observer:
            for number in range(20):
                await observer.subscribe(f"sy/net/watch/{number}")
                await observer.unsubscribe(f"sy/net/watch/{number}")
            assert not broker._subscriptions
            await observer.subscribe([(f"sy/net/watch/{number}", 0) for number in range(20)])
            assert len(broker._subscriptions) == 20
        await eventually_async(lambda: broker.connections == 0)
        assert not broker._subscriptions


async def test_a_flood_of_subscriptions_waits_in_its_senders_socket(tmp_path):
    waiting = []

    async with run_broker(tmp_path) as broker:
        subscribe = broker.add_subscription

        async def add_subscription(subscription, session):
            waiting.append(broker._get_handler(session)._pending_subscriptions.qsize())
            return await subscribe(subscription, session)

        broker.add_subscription = add_subscription
        reader, writer = await asyncio.open_connection("127.0.0.1", broker.port)
        writer.write(CONNECT + 2000 * SUBSCRIBE)
        assert len(await reader.readexactly(4 + 2000 * 5)) > 2000, "each is answered"
        assert max(waiting) <= 1
        writer.close()


@pytest.mark.parametrize(
    ("topics", "granted"),
    [([f"sy/net/watch/{number}" for number in range(2000)], 1024), (["sy/net/watch/" + "x" * 1000], 0)],
    ids=["too many", "too long"],
)
async def test_who_asks_for_too_much_gets_no_more_than_its_share(tmp_path, topics, granted):
    async with run_broker(tmp_path) as broker, observe(broker) as observer:
        await observer.subscribe([(topic, 0) for topic in topics])
        assert len(broker._subscriptions) == granted <= MAX_FILTERS_PER_SESSION


async def test_a_packet_of_filters_without_end_ends_its_connection_unread(tmp_path, eventually_async):
    async with run_broker(tmp_path) as broker:
        reader, writer = await asyncio.open_connection("127.0.0.1", broker.port)
        writer.write(CONNECT)
        writer.write(b"\x82\xfe\xb4\x18\x00\x01" + 99_999 * b"\x00\x01x\x00")
        assert (await reader.readexactly(4))[3] == 0
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b"", "it is not answered"
        await eventually_async(lambda: broker.connections == 0)
        writer.close()
