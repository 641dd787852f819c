"""The RPC server: uvicorn inside the node's own loop, with what it lacks put around it.

uvicorn would install its own signal handlers, end the process when the port is taken, configure logging, and take headers
without end. Here the node owns signals, the socket is bound before uvicorn starts (so a busy port is a typed error), and a
connection that has not sent its headers within a cap of bytes and a time is dropped, as is one that takes nothing of what
is sent to it.
"""

import asyncio
import contextlib
import errno
import logging
import socket
from collections.abc import Iterator
from typing import Any, ClassVar, Final, Self

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from node.rpc.access import RpcAccess, check_bind
from node.rpc.app import RpcApp
from shardyard.errors import ConfigError

MAX_HEADER_BYTES: Final = 64 * 1024
HEADER_TIMEOUT_S: Final = 15.0
SHUTDOWN_S: Final = 2
"""How long requests under way are waited for when the server closes."""
BACKLOG: Final = 512


class PortTakenError(ConfigError):
    """Another process listens on the port that was asked for."""


class _StallWatch(asyncio.Protocol):
    """Ends a connection of which nothing is taken for a while: a server that only waits would hold what it sent for ever."""

    max_stalled_s: ClassVar[float]
    loop: asyncio.AbstractEventLoop
    transport: asyncio.Transport
    _stall_timer: asyncio.TimerHandle | None = None

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch(self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        self._stop_watching()
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_watching()
        super().connection_lost(exc)

    def _watch(self, waiting: int) -> None:
        self._stop_watching()

        def look() -> None:
            left = self.transport.get_write_buffer_size()
            if left >= waiting:
                self.transport.abort()
            else:
                self._watch(left)

        self._stall_timer = self.loop.call_later(self.max_stalled_s, look)

    def _stop_watching(self) -> None:
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None


class _BoundedHttpProtocol(_StallWatch, HttpToolsProtocol):
    """Drops a connection whose request line and headers are too large or too slow."""

    _header_bytes = 0
    _in_headers = True
    _header_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        self._in_headers = True
        self._header_bytes = 0
        if self._header_timer is None:
            self._start_timer()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._in_headers = False
        self._stop_timer()
        super().on_headers_complete()

    def data_received(self, data: bytes) -> None:
        if self._in_headers:
            self._header_bytes += len(data)
        super().data_received(data)
        if self._in_headers and self._header_bytes > MAX_HEADER_BYTES:
            self.transport.abort()

    def _start_timer(self) -> None:
        self._header_timer = self.loop.call_later(HEADER_TIMEOUT_S, self.transport.abort)

    def _stop_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None


class _BoundedSocketProtocol(_StallWatch, WebSocketsSansIOProtocol):
    """A WebSocket under the same watch."""


class _QuietServer(uvicorn.Server):
    """A uvicorn server that leaves signals to the node."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def bind_socket(access: RpcAccess) -> socket.socket:
    """Return the listening socket; raises ``PortTakenError`` or ``ConfigError``."""
    check_bind(access)
    family = socket.AF_INET6 if ":" in access.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((access.host, access.port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise PortTakenError(
                f"port {access.port} on {access.host} is taken; try: --port-base 0"
            ) from error
        raise ConfigError(f"cannot listen on {access.host}:{access.port}: {error.strerror}") from error
    listener.setblocking(False)
    return listener


class RpcServer:
    """``async with RpcServer(app, access) as server``: listens on ``server.port`` until it is left."""

    def __init__(self, app: RpcApp, access: RpcAccess) -> None:
        self._app = app
        self._access = access
        self._socket: socket.socket | None = None
        self._server: _QuietServer | None = None
        self._task: asyncio.Task[None] | None = None
        self.port = access.port

    async def __aenter__(self) -> Self:
        self._socket = bind_socket(self._access)
        self.port = self._socket.getsockname()[1]
        self._server = _QuietServer(self._build_config())
        logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
        self._task = asyncio.create_task(self._server.serve(sockets=[self._socket]), name=f"rpc-{self.port}")
        while not self._server.started:
            if self._task.done():
                self._task.result()
                raise ConfigError(f"the RPC server on port {self.port} did not start")
            await asyncio.sleep(0)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Answer what was asked, for ``SHUTDOWN_S`` at most, and listen no more; once is enough, twice does no harm."""
        assert self._server is not None, "entered before left"
        assert self._task is not None, "entered before left"
        self._server.should_exit = True
        await asyncio.gather(self._task, return_exceptions=True)
        self._app.close()

    def _build_config(self) -> uvicorn.Config:
        limits = self._app.limits
        settings: dict[str, Any] = {}
        if self._access.tls_certificate is not None:
            settings |= {"ssl_certfile": self._access.tls_certificate, "ssl_keyfile": self._access.tls_key}
        return uvicorn.Config(
            self._app,
            http=type("HttpProtocol", (_BoundedHttpProtocol,), {"max_stalled_s": limits.max_stalled_s}),
            ws=type("SocketProtocol", (_BoundedSocketProtocol,), {"max_stalled_s": limits.max_stalled_s}),
            ws_max_size=limits.max_body_bytes,
            ws_ping_timeout=None,  # who takes a long answer slowly answers late; who takes nothing is watched for
            ws_per_message_deflate=False,
            lifespan="off",
            interface="asgi3",
            loop="none",
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,
            proxy_headers=False,
            limit_concurrency=limits.max_connections,
            timeout_keep_alive=75,
            timeout_graceful_shutdown=SHUTDOWN_S,
            **settings,
        )
