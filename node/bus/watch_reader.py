"""Reads the mirror for people: what any MQTT client sees with the observer credential, as plain dictionaries.

It connects, yields entries until the connection ends, and then says so; whoever watches decides whether to come back.
The mirror carries what anybody on the broker may send to it, so an entry that is no small JSON object is passed over.
"""

import asyncio
import json
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import aiomqtt

from node.bus.mqtt import parse_broker_url
from node.bus.topics import encode_watch_topic
from shardyard.errors import ShardyardError

MAX_ENTRY_BYTES: Final = 16 * 1024
MAX_WAITING: Final = 10_000
"""Entries that wait for a slow watcher; the oldest go first."""
CONNECT_TIMEOUT_S: Final = 3.0


class WatchError(ShardyardError):
    """The broker does not answer, refuses the observer, or went away."""


@asynccontextmanager
async def open_watch(
    url: str, *, network: str, username: str, password: str
) -> AsyncIterator[AsyncIterator[dict[str, Any]]]:
    """Subscribe to everything mirrored of ``network``; raises ``WatchError`` now or when the connection ends."""
    endpoint = parse_broker_url(url)
    try:
        async with aiomqtt.Client(
            endpoint.host,
            endpoint.port,
            username=username,
            password=password,
            identifier=f"watch-{secrets.token_hex(8)}",
            timeout=CONNECT_TIMEOUT_S,
            queue_type=_NewestQueue,
            max_queued_incoming_messages=MAX_WAITING,
            tls_params=aiomqtt.TLSParameters() if endpoint.is_tls else None,
        ) as client:
            await client.subscribe(encode_watch_topic(network, "#"), 0)
            yield _decode_entries(client)
    except (aiomqtt.MqttError, OSError) as error:
        raise WatchError(f"broker at {url}: {error}") from error


class _NewestQueue(asyncio.Queue[aiomqtt.Message]):
    """Makes room by dropping what came first: a watcher wants to see now, not then."""

    def put_nowait(self, item: aiomqtt.Message) -> None:
        if self.full():
            self.get_nowait()
        super().put_nowait(item)


async def _decode_entries(client: aiomqtt.Client) -> AsyncIterator[dict[str, Any]]:
    async for message in client.messages:
        if len(message.payload) > MAX_ENTRY_BYTES:
            continue
        try:
            entry = json.loads(message.payload)
        except ValueError:
            continue
        if isinstance(entry, dict) and isinstance(entry.get("kind"), str):
            yield entry
