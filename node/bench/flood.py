"""A client that costs little: prepared JSON-RPC batches of signed transactions over a few kept HTTP connections.

Requests are bytes before the clock starts; an answer is told from a refusal by counting, and read only when it holds a
refusal. A connection has one request under way and sends the next when it is answered or due, whichever is later, so
senders keep the order of their nonces; a request counts as late from the moment it was due.

What was refused can be offered again, in place of the connection's next request: the nonces after a refused one are worth
nothing without it. The rate of the open loop holds for all that is offered, so nothing is resent beside it. A status that
refuses, whatever its body says, is a refusal of the whole request; no answer, or one that does not say what became of the
transactions, ends the run, for nobody could tell what is lost then.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from urllib.parse import urlsplit

import msgspec

from node.causes import find_cause
from node.load.client import Answer
from shardyard.errors import ShardyardError

_HASH = b'"result":"0x'
_END_OF_HEAD = b"\r\n\r\n"
_LENGTH = b"content-length:"
_SHOWN = 80
"""Bytes of an answer and letters of a refusal that are worth showing."""
_OK, _REFUSING = 200, 400
_decode_batch = msgspec.json.Decoder(list[Answer]).decode
_decode_one = msgspec.json.Decoder(Answer).decode
_split_calls = msgspec.json.Decoder(list[msgspec.Raw]).decode


class FloodError(ShardyardError):
    """The node gave no answer, or one that does not say what became of the transactions."""


class Pacing(msgspec.Struct, frozen=True):
    """When a flood sends, in seconds of the monotonic clock."""

    started: float
    duration_s: float
    interval_s: float = 0.0
    """Between requests, over all connections to a node; 0: at once."""
    is_offered_again: bool = False
    """Whether what was refused comes again in the connection's next turn."""


class Request(msgspec.Struct):
    """One batch and what became of it; moments in seconds of the monotonic clock, 0 until then."""

    body: bytes
    first: int
    """Number of its first transaction in the plan."""
    count: int
    sent: float = 0.0
    """When it was last due in an open loop, else when it left."""
    answered: float = 0.0
    accepted: int = 0
    refused: tuple[int, ...] = ()
    """Positions in the batch that were refused."""
    numbers: tuple[int, ...] = ()
    """Of its transactions in the plan, where they are no neighbours."""

    def get_number(self, position: int) -> int:
        """Return the number in the plan of the transaction at ``position`` of the batch."""
        return self.numbers[position] if self.numbers else self.first + position

    def split_refused(self) -> "Request":
        """Return a request for what was refused of this one; no call of it is signed or encoded anew."""
        calls = _split_calls(self.body)
        body = b"[" + b",".join(bytes(calls[position]) for position in self.refused) + b"]"
        numbers = tuple(map(self.get_number, self.refused))
        return Request(body, numbers[0], len(numbers), numbers=numbers)


class _Connection(asyncio.Protocol):
    """Keeps the answer to the one request under way."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.is_closed = False
        self._buffer = bytearray()
        self._wanted = -1
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport), "TCP gives a transport both ways"
        self.transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_closed = True
        self._fail(f"the connection ended ({exc or 'closed by the node'})")

    def _fail(self, reason: str) -> None:
        if self._answer is not None and not self._answer.done():
            got = bytes(self._buffer[:_SHOWN])
            self._answer.set_exception(FloodError(f"{reason}, got {got!r} of an answer"))

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if self._wanted < 0:
            end = self._buffer.find(_END_OF_HEAD)
            if end < 0:
                return
            try:
                self._read_head(bytes(self._buffer[:end]).lower(), end + len(_END_OF_HEAD))
            except (ValueError, IndexError):
                self._fail("the head is not HTTP")
                return
        if len(self._buffer) >= self._wanted and self._answer is not None and not self._answer.done():
            body = bytes(self._buffer[self._start : self._wanted])
            del self._buffer[: self._wanted]
            self._wanted = -1
            self._answer.set_result((self._status, body))

    def _read_head(self, head: bytes, start: int) -> None:
        at = head.find(_LENGTH)
        length = int(head[at + len(_LENGTH) :].split(b"\r\n", 1)[0]) if at >= 0 else 0
        self._status = int(head.split(b" ", 2)[1])
        self._start, self._wanted = start, start + length
        if b"\r\nconnection: close" in head:
            self.is_closed = True

    async def exchange(self, head: bytes, body: bytes) -> tuple[int, bytes]:
        """Send a request and return status and body of the answer; raises ``FloodError``."""
        assert self.transport is not None, "connected before used"
        self._answer = asyncio.get_running_loop().create_future()
        self.transport.writelines((head, body))
        return await self._answer


class Flood:
    """Sends the requests of several connections to one node."""

    def __init__(self, url: str, queues: Sequence[list[Request]]) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "127.0.0.1", parts.port or 80
        self.queues = queues
        self.offered = 0
        """Transactions sent, each time they were."""
        self.is_exhausted = False
        """Whether a connection had nothing left to send before the time was over."""
        self.refusals: Counter[str] = Counter()
        """Transactions by what was said when they were refused."""
        self.statuses: Counter[int] = Counter()

    @property
    def accepted(self) -> int:
        """Transactions answered with their hash so far."""
        return sum(request.accepted for queue in self.queues for request in queue)

    async def run(self, pacing: Pacing) -> None:
        """Send until the time is over, and return when all is answered; raises ``FloodError``."""
        try:
            async with asyncio.TaskGroup() as group:
                for number in range(len(self.queues)):
                    group.create_task(self._send(number, pacing))
        except BaseExceptionGroup as errors:
            raise find_cause(errors) from errors

    async def _send(self, number: int, pacing: Pacing) -> None:
        connection = await self._connect()
        queue, end = self.queues[number], pacing.started + pacing.duration_s
        turn = place = 0
        try:
            while place < len(queue):
                request = queue[place]
                due = pacing.started + (turn * len(self.queues) + number) * pacing.interval_s
                now = time.monotonic()
                if max(due, now) > end:
                    return
                if due > now:
                    await asyncio.sleep(due - now)
                if connection.is_closed:  # said so with its last answer
                    connection = await self._connect()
                request.sent = due if pacing.interval_s else now
                await self._exchange(connection, request)
                turn += 1
                if request.refused and pacing.is_offered_again:
                    if request.accepted:
                        queue.insert(place + 1, request.split_refused())
                    else:
                        continue
                request.body = b""
                place += 1
            self.is_exhausted = True
        finally:
            if connection.transport is not None:
                connection.transport.close()

    async def _connect(self) -> _Connection:
        loop = asyncio.get_running_loop()
        try:
            _, connection = await loop.create_connection(_Connection, self._host, self._port)
        except OSError as error:
            raise FloodError(
                f"port {self._port}: {error}; try: --keep, and read the logs of the node"
            ) from error
        return connection

    async def _exchange(self, connection: _Connection, request: Request) -> None:
        head = (
            f"POST / HTTP/1.1\r\nHost: {self._host}:{self._port}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(request.body)}\r\n\r\n"
        ).encode()
        self.offered += request.count
        try:
            status, answer = await connection.exchange(head, request.body)
            request.answered = time.monotonic()
            self.statuses[status] += 1
            refusals = (
                {} if _is_all_taken(status, answer, request) else read_refusals(status, answer, request)
            )
        except FloodError as error:
            raise FloodError(
                f"port {self._port}: {error}; expected an answer to each of {request.count} transactions. "
                "try: --keep, and read the logs of the node"
            ) from error
        self.refusals.update(refusals.values())
        request.refused = tuple(refusals)
        request.accepted = request.count - len(refusals)


def _is_all_taken(status: int, answer: bytes, request: Request) -> bool:
    return status == _OK and answer.count(_HASH) == request.count


def read_refusals(status: int, answer: bytes, request: Request) -> dict[int, str]:
    """Return what was said of each refused position.

    Raises:
        FloodError: the status refuses nothing, and the answer does not tell of every transaction.

    """
    prefix = "" if status == _OK else f"HTTP {status}: "
    refused: dict[int, str] = {}
    try:
        if answer[:1] == b"{":  # the request as a whole, such as a batch that is too large
            error = _decode_one(answer).error
            items = [] if error is None else [Answer(error=error)] * request.count
        else:
            items = _decode_batch(answer)
    except msgspec.MsgspecError:
        items = []
    if len(items) != request.count:
        if status >= _REFUSING:
            return dict.fromkeys(
                range(request.count), f"{prefix}{answer[:_SHOWN].decode(errors='replace').strip()}"
            )
        raise FloodError(f"got HTTP {status} with {answer[:_SHOWN]!r}")
    for position, item in enumerate(items):
        if item.error is not None:
            refused[position] = prefix + item.error.message.split(":")[0][:_SHOWN]
        elif not isinstance(item.result, str):
            raise FloodError(f"got the result {item.result!r} for transaction {position} with HTTP {status}")
    return refused
