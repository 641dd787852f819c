"""JSON-RPC over one kept HTTP connection, as cheap per transaction as Python allows.

Requests of a connection follow each other; many calls travel in one batch. A connection that is refused, reset or silent
raises ``NoAnswerError``: whoever asked knows that the other side may or may not have taken the request, and asks again. Where
several nodes serve the same, the next one is asked then.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

import msgspec

from shardyard.errors import ShardyardError

MAX_RESPONSE_BYTES = 64 * 1024 * 1024
MAX_HEADER_BYTES = 64 * 1024
DEFAULT_TIMEOUT_S = 10.0

Call = tuple[str, tuple[object, ...]]


class NoAnswerError(ShardyardError):
    """Nobody answered, or only half an answer came."""


class RefusedError(ShardyardError):
    """The node answered with a JSON-RPC error."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class AnswerError(msgspec.Struct):
    """The error object of one answer."""

    code: int
    message: str
    data: Any = None


class Answer(msgspec.Struct):
    """One answer of a batch."""

    id: int | None = None
    result: Any = None
    error: AnswerError | None = None


_decode_answers = msgspec.json.Decoder(list[Answer]).decode
_decode_answer = msgspec.json.Decoder(Answer).decode
_encode = msgspec.json.Encoder().encode


class RpcConnection:
    """One connection to the node at ``url``; when it breaks, another is opened, to each of ``others`` in turn."""

    def __init__(self, url: str, timeout_s: float = DEFAULT_TIMEOUT_S, others: Sequence[str] = ()) -> None:
        self._urls = deque((url, *others))
        self._timeout_s = timeout_s
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._go_to(url)

    def _go_to(self, url: str) -> None:
        parts = urlsplit(url)
        self._host = parts.hostname or "127.0.0.1"
        self._port = parts.port or 80
        self._head = (
            f"POST / HTTP/1.1\r\nHost: {self._host}:{self._port}\r\nContent-Type: application/json\r\nContent-Length: "
        ).encode()

    def turn(self) -> None:
        """Close the connection; the next request goes to the next node."""
        self.close()
        self._urls.rotate(-1)
        self._go_to(self._urls[0])

    async def request_of_any(self, method: str, *params: object) -> Any:
        """Return the result of one call by the first node that answers; raises as ``request`` does for the last one."""
        for _ in range(len(self._urls) - 1):
            with contextlib.suppress(NoAnswerError):
                return await self.request(method, *params)
        return await self.request(method, *params)

    def close(self) -> None:
        """Close the connection; the next request opens another."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None

    async def request(self, method: str, *params: object) -> Any:
        """Return the result of one call; raises ``RefusedError`` or ``NoAnswerError``."""
        body = _encode({"jsonrpc": "2.0", "id": 1, "method": method, "params": params})
        answer = self._decode(_decode_answer, await self._exchange(body))
        if answer.error is not None:
            raise RefusedError(answer.error.code, answer.error.message)
        return answer.result

    async def request_batch(self, calls: Sequence[Call]) -> list[Answer]:
        """Return the answers to ``calls`` in their order; raises ``NoAnswerError``."""
        items = [
            {"jsonrpc": "2.0", "id": index, "method": method, "params": params}
            for index, (method, params) in enumerate(calls)
        ]
        return await self._exchange_batch(_encode(items), len(items))

    async def send_raw(self, raws: Sequence[str]) -> list[Answer]:
        """Hand in signed transactions (0x hex) as one batch; returns the answers in their order."""
        items = [
            '{"jsonrpc":"2.0","id":%d,"method":"eth_sendRawTransaction","params":["%s"]}' % (index, raw)  # noqa: UP031
            for index, raw in enumerate(raws)
        ]
        return await self._exchange_batch(f"[{','.join(items)}]".encode(), len(items))

    async def _exchange_batch(self, body: bytes, count: int) -> list[Answer]:
        found: list[Answer | None] = [None] * count
        for answer in self._decode(_decode_answers, await self._exchange(body)):
            if answer.id is not None and 0 <= answer.id < count:
                found[answer.id] = answer
        complete = [answer for answer in found if answer is not None]
        if len(complete) != count:
            raise NoAnswerError(f"port {self._port}: got {len(complete)} answers to a batch of {count}")
        return complete

    def _decode(self, decode: Any, data: bytes) -> Any:
        try:
            return decode(data)
        except msgspec.MsgspecError as error:
            port = self._port
            self.turn()
            raise NoAnswerError(f"port {port}: {data[:200]!r} is no JSON-RPC answer ({error})") from error

    async def _exchange(self, body: bytes) -> bytes:
        try:
            async with asyncio.timeout(self._timeout_s):
                if self._streams is None:
                    self._streams = await asyncio.open_connection(
                        self._host, self._port, limit=MAX_HEADER_BYTES
                    )
                reader, writer = self._streams
                writer.write(self._head + b"%d\r\n\r\n" % len(body) + body)
                await writer.drain()
                return await _read_response(reader)
        except (OSError, EOFError, ValueError, TimeoutError, asyncio.LimitOverrunError) as error:
            port = self._port
            self.turn()
            raise NoAnswerError(f"port {port}: {error or 'timed out'}") from error
        except asyncio.CancelledError:
            self.close()  # Half an exchange leaves the answer to another request on the wire.
            raise


async def _read_response(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    length = 0
    is_chunked = False
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        match name.lower():
            case b"content-length":
                length = int(value)
            case b"transfer-encoding":
                is_chunked = b"chunked" in value.lower()
    if is_chunked:
        return await _read_chunks(reader)
    if not 0 <= length <= MAX_RESPONSE_BYTES:
        raise ValueError(f"answer of {length} bytes")
    return await reader.readexactly(length)


async def _read_chunks(reader: asyncio.StreamReader) -> bytes:
    parts: list[bytes] = []
    total = 0
    while True:
        size = int((await reader.readuntil(b"\r\n")).split(b";")[0], 16)
        total += size
        if total > MAX_RESPONSE_BYTES:
            raise ValueError(f"answer of more than {MAX_RESPONSE_BYTES} bytes")
        chunk = await reader.readexactly(size + 2)
        if size == 0:
            return b"".join(parts)
        parts.append(chunk[:-2])
