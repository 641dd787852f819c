"""One WebSocket: the same answers as over HTTP, several calls at once, and notifications.

All that leaves goes through one queue, bounded by its bytes: while much waits no more requests are read, and a client that
lets too much pile up is disconnected, as is one that takes nothing for long (``server``). A subscription begins to notify
only after the answer that names it is in the queue.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

from node.refusal import LIMIT_EXCEEDED, RpcError
from node.rpc.api import CallContext, ShardApi
from node.rpc.protocol import Dispatcher, RpcLimits
from node.rpc.subscriptions import Subscription, SubscriptionHub, build_subscription

TRY_AGAIN_LATER: Final = 1013
CLOSE_TIMEOUT_S: Final = 2.0
MESSAGE_BYTES: Final = 64
"""What a message that waits costs beside its text."""

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class SocketSession:
    """An accepted WebSocket connection."""

    def __init__(
        self, api: ShardApi, hub: SubscriptionHub, dispatcher: Dispatcher, limits: RpcLimits
    ) -> None:
        self._api = api
        self._hub = hub
        self._dispatcher = dispatcher
        self._limits = limits
        self.subscriptions: dict[str, Subscription] = {}
        self._outgoing: deque[bytes] = deque()
        self._outgoing_bytes = 0
        self._has_outgoing = asyncio.Event()
        self._has_room = asyncio.Event()
        self._has_room.set()
        self._too_slow = asyncio.Event()

    async def run(self, receive: Receive, send: Send) -> None:
        """Serve until either side closes."""
        reader = asyncio.create_task(self._read(receive), name="rpc-socket-reader")
        writer = asyncio.create_task(self._write(send), name="rpc-socket-writer")
        slow = asyncio.create_task(self._too_slow.wait(), name="rpc-socket-watch")
        tasks = (reader, writer, slow)
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            try:
                await asyncio.gather(*tasks, return_exceptions=True)
            finally:
                # Last of all: until the reader is gone, a request under way may subscribe.
                for subscription in self.subscriptions:
                    self._hub.remove(subscription)
                self.subscriptions.clear()
        if self._too_slow.is_set():
            # Its buffer is full, so even the farewell may not get through.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_TIMEOUT_S):
                    await send(
                        {"type": "websocket.close", "code": TRY_AGAIN_LATER, "reason": "too slow a reader"}
                    )

    async def _read(self, receive: Receive) -> None:
        free = asyncio.Semaphore(self._limits.max_calls_per_socket)
        calls: set[asyncio.Task[None]] = set()

        def on_done(task: "asyncio.Task[None]") -> None:
            calls.discard(task)
            free.release()

        try:
            while True:
                await free.acquire()
                await self._has_room.wait()
                message = await receive()
                if message["type"] != "websocket.receive":
                    return
                body = message.get("text") or message.get("bytes") or b""
                task = asyncio.create_task(self._answer(body), name="rpc-socket-call")
                calls.add(task)
                task.add_done_callback(on_done)
        finally:
            unfinished = list(calls)
            for task in unfinished:
                task.cancel()
            await asyncio.gather(*unfinished, return_exceptions=True)

    async def _answer(self, body: bytes | str) -> None:
        request = _Request(self)
        answer = await self._dispatcher.answer(body, CallContext(self._api, request))
        if answer is not None:
            self.enqueue(answer)
        for subscription in request.begun:
            self._hub.add(subscription)

    async def _write(self, send: Send) -> None:
        while True:
            await self._has_outgoing.wait()
            text = self._outgoing[0]
            await send({"type": "websocket.send", "text": text.decode()})
            self._outgoing.popleft()
            self._count(-_weigh(text))

    def _count(self, change: int) -> None:
        self._outgoing_bytes += change
        for event, is_on in (
            (self._has_outgoing, bool(self._outgoing)),
            (self._has_room, self._outgoing_bytes <= self._limits.max_waiting_bytes),
        ):
            if is_on:
                event.set()
            else:
                event.clear()

    def enqueue(self, text: bytes) -> bool:
        """Send ``text`` when its turn comes; false when the connection is about to end because too much waits already."""
        if self._outgoing_bytes > self._limits.max_outgoing_bytes:
            self._too_slow.set()
        if self._too_slow.is_set():
            return False
        self._outgoing.append(text)
        self._count(_weigh(text))
        return True

    def begin(self, kind: str, options: object) -> Subscription:
        """Return a new subscription, not notified yet; raises ``RpcError`` when there are too many."""
        if len(self.subscriptions) >= self._limits.max_subscriptions_per_socket:
            limit = self._limits.max_subscriptions_per_socket
            raise RpcError(LIMIT_EXCEEDED, f"too many subscriptions: at most {limit} on a connection")
        subscription = build_subscription(kind, options, self.enqueue)
        self.subscriptions[subscription.id] = subscription
        return subscription

    def end(self, subscription: str) -> bool:
        """Stop a subscription; false when it is not of this connection."""
        if self.subscriptions.pop(subscription, None) is None:
            return False
        self._hub.remove(subscription)
        return True


def _weigh(text: bytes) -> int:
    return len(text) + MESSAGE_BYTES


class _Request:
    """The session as one request sees it: what it subscribes to begins after its answer."""

    def __init__(self, session: SocketSession) -> None:
        self._session = session
        self.begun: list[Subscription] = []

    def subscribe(self, kind: str, options: object) -> str:
        subscription = self._session.begin(kind, options)
        self.begun.append(subscription)
        return subscription.id

    def unsubscribe(self, subscription: str) -> bool:
        self.begun = [item for item in self.begun if item.id != subscription]
        return self._session.end(subscription)
