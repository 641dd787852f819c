"""JSON-RPC 2.0, strictly: bytes in, bytes out, the same over HTTP and WebSocket.

Codes are exact (-32700 parse, -32600 invalid request, -32601 unknown method, -32602 parameters); one bad item never spoils
its batch; notifications are carried out and not answered; an id comes back byte for byte. Batches, answers and the time
of every call are bounded. The calls of a batch run in order, so a batch of transactions keeps its nonces; a request of
nothing but transactions is read, admitted and answered as one.
"""

import asyncio
import inspect
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from itertools import groupby
from typing import Any, Final

import msgspec

from node.refusal import (
    INTERNAL_ERROR,
    INVALID_PARAMS,
    INVALID_REQUEST,
    METHOD_NOT_FOUND,
    PARSE_ERROR,
    RESPONSE_TOO_LARGE,
    TIMED_OUT,
    RpcError,
)
from node.rpc.methods import Method, MethodTable
from shardyard import _native

NULL_ID: Final = msgspec.Raw(b"null")
_ID_STARTS: Final = frozenset(b'"-0123456789n')
MAX_ID_BYTES: Final = 256
SEND_METHOD: Final = b"eth_sendRawTransaction"
SEND_METHOD_WITHIN: Final = 512
"""Where a request that only hands in transactions has named the method by."""
MAX_DEPTH: Final = 64
"""Nesting of a request; a call with an access list in a batch has 7."""
_NO_BRACKETS: Final = bytes(set(range(256)) - set(b"[]{}"))
_OPENS: Final = bytes.maketrans(b"{}", b"[]")
_OPEN: Final = ord("[")
_STRIDE: Final = MAX_DEPTH
"""Brackets looked at together: as long as they could not go too deep, counting is enough."""
MAX_ANSWER_BYTES: Final = 64 * 1024 * 1024
"""One answer: the receipts of 28,000 transfers, a full block of 600 M gas, have 28 MB."""
SLICE_S: Final = 0.005
"""How long the calls of a batch may keep the loop busy before others have their turn."""

logger = logging.getLogger("shardyard.rpc")

Submit = Callable[[Any, _native.Submission], Awaitable[bytes]]


class RpcLimits(msgspec.Struct, frozen=True):
    """Bounds of one server."""

    max_body_bytes: int = 5 * 1024 * 1024
    max_batch: int = 1000
    max_batch_bytes: int = 25 * 1024 * 1024
    """Answers of a batch, together: beyond them the rest is refused."""
    max_answer_bytes: int = MAX_ANSWER_BYTES
    call_timeout_s: float = 30.0
    """One call, and a whole batch."""
    body_timeout_s: float = 15.0
    max_connections: int = 512
    max_calls_per_socket: int = 16
    """Requests of one WebSocket that are carried out at once."""
    max_subscriptions_per_socket: int = 128
    max_waiting_bytes: int = 16 * 1024 * 1024
    """What waits for a slow reader of a WebSocket before no more requests are read from it."""
    max_outgoing_bytes: int = 64 * 1024 * 1024
    """What waits for it before its connection is closed; one answer may be larger."""
    max_stalled_s: float = 30.0
    """How long a client, by HTTP or WebSocket, may take nothing of what is sent to it."""


class _Envelope(msgspec.Struct):
    jsonrpc: Any = None
    method: Any = None
    params: Any = msgspec.UNSET
    id: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class _Outline(msgspec.Struct):
    params: msgspec.Raw
    jsonrpc: Any = None
    method: Any = None
    id: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class _Success(msgspec.Struct):
    jsonrpc: str
    id: msgspec.Raw
    result: Any


class _Error(msgspec.Struct, omit_defaults=True):
    code: int
    message: str
    data: Any = None


class _Failure(msgspec.Struct):
    jsonrpc: str
    id: msgspec.Raw
    error: _Error


_UNREADABLE: Final = object()
"""Stands for parameters with a number beyond every integer and float that there is."""

_decode_envelope = msgspec.json.Decoder(_Envelope).decode
_decode_outline = msgspec.json.Decoder(_Outline).decode
_decode_batch = msgspec.json.Decoder(list[msgspec.Raw]).decode
_decode_any = msgspec.json.Decoder(msgspec.Raw).decode
_encoder = msgspec.json.Encoder()


def check_text(text: bytes) -> None:
    """Raise ``UnicodeDecodeError`` or ``RecursionError`` for text that no decoder should see.

    The decoder does not look into raw values, so bad UTF-8 in an id would be echoed; and its own guard against deep nesting
    is the interpreter's recursion limit, which any library may raise until the stack overflows (one was seen to).
    """
    text.decode()
    if text.count(b"[") + text.count(b"{") <= MAX_DEPTH:
        return
    # One pass each, whatever the text is: without escapes, every other piece between quotes is outside of strings.
    pieces = text.replace(rb"\\", b"").replace(rb"\"", b"").split(b'"')
    brackets = b"".join(pieces[::2]).translate(_OPENS, _NO_BRACKETS)
    depth = 0
    for start in range(0, len(brackets), _STRIDE):
        stride = brackets[start : start + _STRIDE]
        opens = stride.count(b"[")
        if depth + opens > MAX_DEPTH:
            _verify_depth(stride, depth)
        depth += 2 * opens - len(stride)
    if depth:
        raise RecursionError("not balanced")


def _verify_depth(brackets: bytes, depth: int) -> None:
    for bracket in brackets:
        depth += 1 if bracket == _OPEN else -1
        if depth > MAX_DEPTH:
            raise RecursionError("too deeply nested")


def encode_json(value: Any) -> bytes:
    """Return the JSON text of ``value``."""
    return _encoder.encode(value)


class AnswerRoom:
    """What an answer may still have of ``MAX_ANSWER_BYTES``: of one that becomes too large the rest is not even made."""

    def __init__(self) -> None:
        self._left = MAX_ANSWER_BYTES

    def encode(self, part: Any) -> msgspec.Raw:
        """Return the JSON text of a part; raises ``RpcError`` when there is no room for it."""
        text = encode_json(part)
        self._left -= len(text)
        if self._left < 0:
            raise _build_too_large()
        return msgspec.Raw(text)


def encode_failure(error: RpcError, request_id: msgspec.Raw = NULL_ID) -> bytes:
    """Return the answer that carries ``error``."""
    return _encoder.encode(_Failure("2.0", request_id, _Error(error.code, error.message, error.data)))


def _build_too_large() -> RpcError:
    return RpcError(RESPONSE_TOO_LARGE, "response too large")


def _build_timed_out() -> RpcError:
    return RpcError(TIMED_OUT, "request timed out")


class Dispatcher:
    """Answers requests out of a table; ``context`` is handed to every method as its first argument."""

    def __init__(self, table: MethodTable, limits: RpcLimits, submit: Submit | None = None) -> None:
        """``submit`` answers a request of nothing but transactions."""
        self.limits = limits
        self.counters: Counter[str] = Counter()
        """``calls``, ``errors`` and one entry per known method."""
        self._table = table
        self._submit = submit

    async def answer(self, body: bytes | str, context: Any) -> bytes | None:
        """Return the answer to ``body``, or None when nothing in it wants one."""
        text = body.encode() if isinstance(body, str) else body
        if self._submit is not None and SEND_METHOD in text[:SEND_METHOD_WITHIN]:
            submission = _native.read_submission(text, self.limits.max_batch)
            if submission is not None:
                return await self._answer_submission(self._submit, submission, context)
        try:
            check_text(text)
            if text.lstrip(b" \t\r\n")[:1] == b"[":
                items = _decode_batch(text)
                return await self._answer_batch(items, context)
            _decode_any(text)
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
            self.counters["errors"] += 1
            return encode_failure(RpcError(PARSE_ERROR, "parse error"))
        return await self._answer_one(self._decode(text), context, self._compute_deadline())

    def _compute_deadline(self) -> float:
        return asyncio.get_running_loop().time() + self.limits.call_timeout_s

    async def _answer_submission(self, submit: Submit, submission: _native.Submission, context: Any) -> bytes:
        count = len(submission)
        self.counters["calls"] += count
        self.counters[SEND_METHOD.decode()] += count
        try:
            async with asyncio.timeout(self.limits.call_timeout_s):
                return await submit(context, submission)
        except TimeoutError:
            self.counters["errors"] += count
            return submission.encode_refusal(TIMED_OUT, "request timed out")
        except Exception:
            # As for every other call: one request must not take the node down.
            logger.exception("a request of %d transactions failed", count)
            return submission.encode_refusal(INTERNAL_ERROR, "internal error")

    async def _answer_batch(self, items: list[msgspec.Raw], context: Any) -> bytes | None:
        if not items:
            return encode_failure(RpcError(INVALID_REQUEST, "empty batch"))
        if len(items) > self.limits.max_batch:
            self.counters["errors"] += 1
            return encode_failure(
                RpcError(INVALID_REQUEST, f"batch too large: at most {self.limits.max_batch} calls")
            )
        answers: list[bytes] = []
        size = 0
        loop = asyncio.get_running_loop()
        deadline, turn = self._compute_deadline(), loop.time() + SLICE_S
        for group in self._group([self._decode(item) for item in items]):
            now = loop.time()
            if now >= turn:
                await asyncio.sleep(0)  # calls that need no waiting would let nobody else run
                now = loop.time()
                turn = now + SLICE_S
            if size > self.limits.max_batch_bytes:
                found = [self._refuse(envelope, _build_too_large()) for envelope in group]
            elif now >= deadline:
                found = [self._refuse(envelope, _build_timed_out()) for envelope in group]
            elif len(group) == 1:
                found = [await self._answer_one(group[0], context, deadline)]
            else:
                found = await asyncio.gather(
                    *(self._answer_one(envelope, context, deadline) for envelope in group)
                )
            for answer in found:
                if answer is not None:
                    size += len(answer)
                    answers.append(answer)
        return b"[" + b",".join(answers) + b"]" if answers else None

    def _decode(self, item: bytes | msgspec.Raw) -> _Envelope | RpcError:
        try:
            return _decode_envelope(item)
        except msgspec.ValidationError:
            return _read_outline(item)
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
            return RpcError(PARSE_ERROR, "parse error")

    def _group(self, envelopes: list[_Envelope | RpcError]) -> Iterator[list[_Envelope | RpcError]]:
        """Yield the calls of a batch one by one, and neighbours of one grouped method together."""

        def compute_key(envelope: _Envelope | RpcError) -> int:
            name = envelope.method if isinstance(envelope, _Envelope) else None
            method = self._table.get(name) if isinstance(name, str) else None
            return id(method) if method is not None and method.is_grouped else -1

        for key, group in groupby(envelopes, compute_key):
            if key == -1:
                yield from ([envelope] for envelope in group)
            else:
                yield list(group)

    def _refuse(self, envelope: _Envelope | RpcError, error: RpcError) -> bytes | None:
        """Answer a call that is not carried out: the calls before it took all the room or all the time there is."""
        try:
            request_id = _read_id(envelope) if isinstance(envelope, _Envelope) else NULL_ID
        except RpcError:
            request_id = NULL_ID
        if request_id is None:
            return None
        self.counters["errors"] += 1
        return encode_failure(error, request_id)

    async def _answer_one(
        self, envelope: _Envelope | RpcError, context: Any, deadline: float
    ) -> bytes | None:
        request_id: msgspec.Raw | None = NULL_ID
        try:
            if isinstance(envelope, RpcError):
                raise envelope
            request_id = _read_id(envelope)
            result = await self._call(envelope, context, deadline)
            if request_id is None:
                return None
            answer = _encoder.encode(_Success("2.0", request_id, result))
            if len(answer) > self.limits.max_answer_bytes:
                raise _build_too_large()
            return answer
        except RpcError as error:
            self.counters["errors"] += 1
            # A notification is never answered; what is no valid request at all cannot be one.
            if request_id is None and error.code not in {INVALID_REQUEST, PARSE_ERROR}:
                return None
            return encode_failure(error, request_id or NULL_ID)

    async def _call(self, envelope: _Envelope, context: Any, deadline: float) -> Any:
        if envelope.jsonrpc != "2.0" or not isinstance(envelope.method, str):
            raise RpcError(INVALID_REQUEST, "invalid request")
        is_readable = envelope.params is not _UNREADABLE
        if is_readable and not isinstance(envelope.params, list | dict | None | msgspec.UnsetType):
            raise RpcError(INVALID_REQUEST, "invalid request: params must be an array")
        self.counters["calls"] += 1
        method = self._table.get(envelope.method)
        if method is None:
            name = envelope.method[:64]
            raise RpcError(METHOD_NOT_FOUND, f"the method {name} does not exist/is not available")
        self.counters[method.name] += 1
        if not is_readable:
            raise RpcError(INVALID_PARAMS, "invalid argument: a number is out of range")
        if isinstance(envelope.params, dict):
            raise RpcError(INVALID_PARAMS, "non-array args: parameters are by position")
        given = envelope.params if isinstance(envelope.params, list) else []
        return await self._run(method, given, context, deadline)

    async def _run(self, method: Method, given: list[Any], context: Any, deadline: float) -> Any:
        arguments = method.read_params(given)
        try:
            result = method.answer(context, *arguments)
            if inspect.isawaitable(result):
                async with asyncio.timeout_at(deadline):
                    result = await result
        except TimeoutError:
            raise _build_timed_out() from None
        except RpcError:
            raise
        except Exception:
            # One request must not take the node down; what happened is ours to read, not the client's.
            logger.exception("%s failed", method.name)
            raise RpcError(INTERNAL_ERROR, "internal error") from None
        return result


def _read_outline(item: bytes | msgspec.Raw) -> _Envelope | RpcError:
    """Return a request of which only the parameters cannot be read: its answer has to bear its id."""
    try:
        outline = _decode_outline(item)
    except msgspec.MsgspecError:
        outline = None
    if outline is None or not bytes(outline.params).startswith((b"[", b"{")):
        return RpcError(INVALID_REQUEST, "invalid request")
    return _Envelope(outline.jsonrpc, outline.method, _UNREADABLE, outline.id)


def _read_id(envelope: _Envelope) -> msgspec.Raw | None:
    """Return the id to answer with, or None for a notification."""
    if envelope.id is msgspec.UNSET:
        return None
    assert isinstance(envelope.id, msgspec.Raw)
    text = bytes(envelope.id)
    if text[0] not in _ID_STARTS or len(text) > MAX_ID_BYTES or not _is_readable(text):
        raise RpcError(INVALID_REQUEST, "invalid request: id must be a string, a number or null")
    return msgspec.Raw(text)


def _is_readable(text: bytes) -> bool:
    """Tell whether a client can read its id back: a raw number may be beyond every float."""
    try:
        msgspec.json.decode(text)
    except msgspec.MsgspecError:
        return False
    return True
