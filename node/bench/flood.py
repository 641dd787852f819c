"""A client that costs little: prepared JSON-RPC batches of signed transactions over a few kept HTTP connections.

Requests are bytes before the clock starts; an answer is told from a refusal by counting, and read only when it holds a
refusal. A connection has one request under way and sends the next when it is answered or due, whichever is later, so
senders keep the order of their nonces; a request counts as late from the moment it was due.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from urllib.parse import urlsplit

import msgspec

from node.load.client import Answer

_HASH = b'"result":"0x'
_END_OF_HEAD = b"\r\n\r\n"
_LENGTH = b"content-length:"
_decode_answers = msgspec.json.Decoder(list[Answer]).decode


class Request(msgspec.Struct):
    """One batch and what became of it; moments in seconds of the monotonic clock, 0 until then."""

    body: bytes
    first: int
    """Number of its first transaction in the plan."""
    count: int
    sent: float = 0.0
    """When it was due in an open loop, else when it left."""
    answered: float = 0.0
    accepted: int = 0
    refused: tuple[int, ...] = ()
    """Positions in the batch that were refused."""


class _Connection(asyncio.Protocol):
    """Keeps the answer to the one request under way."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._wanted = -1
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport), "TCP gives a transport both ways"
        self.transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(exc or ConnectionResetError("the node closed the connection"))

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if self._wanted < 0:
            end = self._buffer.find(_END_OF_HEAD)
            if end < 0:
                return
            head = bytes(self._buffer[:end]).lower()
            at = head.find(_LENGTH)
            length = int(head[at + len(_LENGTH) :].split(b"\r\n", 1)[0]) if at >= 0 else 0
            self._wanted = end + len(_END_OF_HEAD) + length
            self._status = int(head.split(b" ", 2)[1])
            self._start = end + len(_END_OF_HEAD)
        if len(self._buffer) >= self._wanted and self._answer is not None:
            body = bytes(self._buffer[self._start : self._wanted])
            del self._buffer[: self._wanted]
            self._wanted = -1
            self._answer.set_result((self._status, body))

    async def exchange(self, head: bytes, body: bytes) -> tuple[int, bytes]:
        """Send a request and return status and body of the answer; raises ``OSError``."""
        assert self.transport is not None, "connected before used"
        self._answer = asyncio.get_running_loop().create_future()
        self.transport.writelines((head, body))
        return await self._answer


class Flood:
    """Sends the requests of several connections to one node."""

    def __init__(self, url: str, queues: Sequence[Sequence[Request]]) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "127.0.0.1", parts.port or 80
        self.queues = queues
        self.refusals: Counter[str] = Counter()
        self.statuses: Counter[int] = Counter()

    @property
    def accepted(self) -> int:
        """Transactions answered with their hash so far."""
        return sum(request.accepted for queue in self.queues for request in queue)

    async def run(self, started: float, duration_s: float, interval_s: float) -> None:
        """Send until ``duration_s`` after ``started``; a request every ``interval_s`` over all connections, or 0: at once."""
        async with asyncio.TaskGroup() as group:
            for number in range(len(self.queues)):
                group.create_task(self._send(number, started, duration_s, interval_s))

    async def _send(self, number: int, started: float, duration_s: float, interval_s: float) -> None:
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(_Connection, self._host, self._port)
        try:
            for turn, request in enumerate(self.queues[number]):
                due = started + (turn * len(self.queues) + number) * interval_s
                now = time.monotonic()
                if max(due, now) > started + duration_s:
                    return
                if due > now:
                    await asyncio.sleep(due - now)
                request.sent = due if interval_s else now
                await self._exchange(connection, request)
        finally:
            if connection.transport is not None:
                connection.transport.close()

    async def _exchange(self, connection: _Connection, request: Request) -> None:
        head = (
            f"POST / HTTP/1.1\r\nHost: {self._host}:{self._port}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(request.body)}\r\n\r\n"
        ).encode()
        status, answer = await connection.exchange(head, request.body)
        request.answered = time.monotonic()
        self.statuses[status] += 1
        request.body = b""
        request.accepted = answer.count(_HASH)
        if request.accepted != request.count:
            self._read_refusals(request, answer)

    def _read_refusals(self, request: Request, answer: bytes) -> None:
        refused = []
        for position, item in enumerate(_decode_answers(answer)):
            if item.error is not None:
                refused.append(position)
                self.refusals[item.error.message.split(":")[0][:80]] += 1
        request.refused = tuple(refused)
        request.accepted = request.count - len(refused)
