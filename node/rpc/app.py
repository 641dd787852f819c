"""The bare ASGI application: HTTP and WebSocket on one port, one dispatcher behind both.

HTTP takes ``POST`` of ``application/json`` on ``/``, so that a browser cannot send a request without a preflight, and for
Prometheus ``GET`` on ``/metrics``, which says nothing secret; nothing else.
The body is read up to a cap and within a time; what is over is refused before it is held.
"""

import asyncio
from collections.abc import Iterable
from typing import Any, Final

from node.rpc import (
    block_access_lists,
    eth_blocks,
    eth_chain,
    eth_logs,
    eth_state,
    execution_stats,
    shard_methods,
    txpool,
)
from node.rpc.access import Gatekeeper, RpcAccess, get_header
from node.rpc.api import CallContext, ShardApi
from node.rpc.methods import MethodTable, merge
from node.rpc.metrics import CONTENT_TYPE, MetricsPage
from node.rpc.protocol import Dispatcher, RpcLimits
from node.rpc.sockets import Message, Receive, Send, SocketSession
from node.rpc.subscriptions import SubscriptionHub

METHODS: Final = merge(
    [
        eth_chain.TABLE,
        eth_state.TABLE,
        eth_blocks.TABLE,
        eth_logs.TABLE,
        shard_methods.TABLE,
        execution_stats.TABLE,
        block_access_lists.TABLE,
        txpool.TABLE,
    ]
)
POLICY_VIOLATION: Final = 1008
_PREFLIGHT_SECONDS: Final = b"600"
_RETRY_SECONDS: Final = b"1"

Headers = list[tuple[bytes, bytes]]


class _Refused(Exception):
    """An HTTP request that gets a status and a line of text instead of an answer."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


class RpcApp:
    """ASGI application of one shard."""

    def __init__(
        self,
        api: ShardApi,
        access: RpcAccess,
        limits: RpcLimits | None = None,
        methods: MethodTable = METHODS,
    ) -> None:
        self.limits = limits or RpcLimits()
        self.api = api
        self.hub = SubscriptionHub(api)
        self.dispatcher = Dispatcher(methods, self.limits, eth_blocks.submit_request)
        self._gatekeeper = Gatekeeper(access)
        self._sockets = 0
        self._metrics = MetricsPage(api.backend)

    def close(self) -> None:
        """Stop to listen to the chain."""
        self.hub.close()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one HTTP request or one WebSocket."""
        if scope["type"] == "http":
            await self._serve_http(scope, receive, send)
        elif scope["type"] == "websocket":
            await self._serve_socket(scope, receive, send)

    # --- HTTP ---

    async def _serve_http(self, scope: Message, receive: Receive, send: Send) -> None:
        headers = scope["headers"]
        cors = self._build_cors(headers)
        try:
            refusal = self._gatekeeper.find_refusal(headers)
            if refusal is not None and not (refusal[0] == 401 and scope["method"] == "OPTIONS"):
                raise _Refused(*refusal)
            if scope["path"] == "/metrics" and scope["method"] == "GET":
                await _respond(send, 200, self._metrics.render(), cors, CONTENT_TYPE)
                return
            if scope["path"] != "/":
                raise _Refused(404, "not found: JSON-RPC is at /, metrics are at /metrics")
            if scope["method"] == "OPTIONS":
                await _respond(send, 204, b"", [*cors, *_preflight(headers)])
                return
            if scope["method"] != "POST":
                raise _Refused(405, "method not allowed: JSON-RPC wants POST")
            _check_content(headers)
            body = await self._read_body(headers, receive)
            context = CallContext(self.api)
            answer = await self.dispatcher.answer(body, context)
        except _Refused as refused:
            self.dispatcher.counters[f"http_{refused.status}"] += 1
            allow = [(b"allow", b"POST, OPTIONS")] if refused.status == 405 else []
            close = [(b"connection", b"close")] if refused.status in {408, 413} else []
            text = refused.reason.encode() + b"\n"
            await _respond(send, refused.status, text, [*cors, *allow, *close], b"text/plain; charset=utf-8")
            return
        if answer is None:
            await _respond(send, 204, b"", cors)
        elif context.is_overloaded:
            self.dispatcher.counters["http_429"] += 1
            await _respond(send, 429, answer, [*cors, (b"retry-after", _RETRY_SECONDS)])
        else:
            await _respond(send, 200, answer, cors)

    async def _read_body(self, headers: Headers, receive: Receive) -> bytes:
        limit = self.limits.max_body_bytes
        declared = get_header(headers, b"content-length")
        if declared is not None and declared.isdigit() and int(declared) > limit:
            raise _Refused(413, f"content length too large: at most {limit} bytes")
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self.limits.body_timeout_s):
                while True:
                    message = await receive()
                    if message["type"] != "http.request":
                        raise _Refused(400, "the client went away")
                    part = message.get("body", b"")
                    size += len(part)
                    if size > limit:
                        raise _Refused(413, f"content length too large: at most {limit} bytes")
                    parts.append(part)
                    if not message.get("more_body", False):
                        return b"".join(parts)
        except TimeoutError:
            raise _Refused(408, "the request took too long to arrive") from None

    def _build_cors(self, headers: Headers) -> Headers:
        """Return what lets an allowed page read the answer; nothing for others."""
        origin = get_header(headers, b"origin")
        if origin is None or not self._gatekeeper.is_origin_allowed(origin):
            return [(b"vary", b"origin")]
        return [(b"vary", b"origin"), (b"access-control-allow-origin", origin)]

    # --- WebSocket ---

    async def _serve_socket(self, scope: Message, receive: Receive, send: Send) -> None:
        await receive()
        refusal = self._gatekeeper.find_refusal(scope["headers"])
        if refusal is not None or scope["path"] != "/" or self._sockets >= self.limits.max_connections:
            self.dispatcher.counters["socket_refused"] += 1
            await send({"type": "websocket.close", "code": POLICY_VIOLATION})
            return
        await send({"type": "websocket.accept"})
        self._sockets += 1
        try:
            await SocketSession(self.api, self.hub, self.dispatcher, self.limits).run(receive, send)
        finally:
            self._sockets -= 1


def _check_content(headers: Headers) -> None:
    kind = (get_header(headers, b"content-type") or b"").split(b";")[0].strip().lower()
    if kind != b"application/json":
        raise _Refused(415, "invalid content type, only application/json is supported")
    if get_header(headers, b"content-encoding") not in {None, b"identity"}:
        raise _Refused(415, "compressed requests are not supported")


def _preflight(headers: Headers) -> Headers:
    found = [
        (b"access-control-allow-methods", b"POST, OPTIONS"),
        (b"access-control-allow-headers", b"content-type, authorization"),
        (b"access-control-max-age", _PREFLIGHT_SECONDS),
    ]
    if get_header(headers, b"access-control-request-private-network") == b"true":
        found.append((b"access-control-allow-private-network", b"true"))
    return found


async def _respond(
    send: Send,
    status: int,
    body: bytes,
    headers: Iterable[tuple[bytes, bytes]],
    content_type: bytes = b"application/json",
) -> None:
    described: list[tuple[bytes, bytes]] = [(b"x-content-type-options", b"nosniff"), *headers]
    if status != 204:
        described += [(b"content-type", content_type), (b"content-length", str(len(body)).encode())]
    start: dict[str, Any] = {"type": "http.response.start", "status": status, "headers": described}
    await send(start)
    await send({"type": "http.response.body", "body": body})
