"""Processes of nodes from a fork server (``node.launcher.fork_server``), for a supervisor that waits for them as for its own.

The launcher keeps the end of every node's standard input, so nodes end with the launcher, not with the server. A server that
dies tells of nobody's end any more: its nodes are killed, which their supervisors see, and the next one to start gets a new
server.
"""

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections import deque
from collections.abc import Callable, Mapping
from typing import Final, Self

import msgspec

from node.launcher.fork_server import ForkRequest, Report
from node.launcher.supervisor import ChildError, Process, Spawn, build_python_argv

CAN_FORK: Final = sys.platform == "linux"
"""Elsewhere system libraries may start threads while they are loaded, and each node is a program of its own."""
MAX_SERVERS: Final = 3
"""Servers that may die over the start of one node."""
MAX_ASKED: Final = 64
"""Requests under way: as many fit into the socket's buffer, so that sending one never waits for the server."""


class ServerLostError(ChildError):
    """The fork server died."""


class ForkedProcess:
    """A process that the server forked; used as ``asyncio.subprocess.Process`` is."""

    def __init__(self, pid: int, standard_input: int, wake_server: Callable[[], None]) -> None:
        self.pid = pid
        self._wake_server = wake_server
        self.returncode: int | None = None
        self._standard_input = standard_input
        self._ended = asyncio.Event()

    async def wait(self) -> int:
        """Return its exit status, once it has ended."""
        await self._ended.wait()
        assert self.returncode is not None, "it has ended"
        return self.returncode

    def terminate(self) -> None:
        """Send SIGTERM; raises ``ProcessLookupError`` when it has ended."""
        self._wake_server()
        os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL; raises ``ProcessLookupError`` when it has ended."""
        self._wake_server()
        os.kill(self.pid, signal.SIGKILL)

    def end(self, code: int) -> None:
        """Note that it has ended with ``code``."""
        os.close(self._standard_input)
        self.returncode = code
        self._ended.set()


class Forker:
    """The launcher's side of its fork server, which is started when it is first needed, or ahead of that.

    A server that somebody stopped by a signal starts nothing and tells of nobody's end, so it is woken whenever it has to.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = dict(environ)
        self._starting = asyncio.Lock()
        self._asking = asyncio.Semaphore(MAX_ASKED)
        self._channel: socket.socket | None = None
        self._server: asyncio.subprocess.Process | None = None
        self._listening: asyncio.Task[None] | None = None
        self._asked: deque[tuple[asyncio.Future[ForkedProcess], int]] = deque()
        self._processes: dict[int, ForkedProcess] = {}

    @property
    def pid(self) -> int | None:
        """Process id of the server while it runs."""
        return None if self._server is None else self._server.pid

    async def __aenter__(self) -> Self:
        await self._start()
        return self

    async def __aexit__(self, *_: object) -> None:
        """End the server; raises nothing for one that is gone. Processes end when their supervisors tell them to."""
        listening, self._listening = self._listening, None
        self._wake()
        if self._channel is not None:
            self._channel.shutdown(socket.SHUT_RDWR)
        if listening is not None:
            await listening

    def _wake(self) -> None:
        if self._server is not None and self._server.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._server.pid, signal.SIGCONT)

    def build_spawn(self, arguments: list[str]) -> Spawn:
        """Return what starts a node with ``arguments``; it raises ``ChildError`` when servers die over it.

        Raises ``OSError`` when the system has no room for another process.
        """

        async def spawn(output: int, is_disk_full: bool) -> Process:
            request = ForkRequest(arguments, is_disk_full)
            for _ in range(MAX_SERVERS - 1):
                with contextlib.suppress(ServerLostError):
                    return await self._fork(request, output)
            return await self._fork(request, output)

        return spawn

    async def _fork(self, request: ForkRequest, output: int) -> ForkedProcess:
        async with self._asking:
            return await self._ask(request, output)

    async def _ask(self, request: ForkRequest, output: int) -> ForkedProcess:
        await self._start()
        assert self._channel is not None, "the server was started"
        future: asyncio.Future[ForkedProcess] = asyncio.get_running_loop().create_future()
        theirs, ours = os.pipe()
        try:
            socket.send_fds(self._channel, [msgspec.json.encode(request)], [theirs, output])
        except OSError as error:
            os.close(ours)
            raise ServerLostError(f"the fork server is gone: {error}") from error
        finally:
            os.close(theirs)
        self._asked.append((future, ours))
        self._wake()
        return await future

    async def _start(self) -> None:
        async with self._starting:
            if self._channel is not None:
                return
            ours, theirs = socket.socketpair()
            with theirs:
                self._server = await asyncio.create_subprocess_exec(
                    *build_python_argv("node.launcher.fork_server", str(theirs.fileno())),
                    stdin=asyncio.subprocess.DEVNULL,
                    pass_fds=(theirs.fileno(),),
                    env=self._environ,
                    start_new_session=True,
                )
            self._channel = ours.dup()
            reader, writer = await asyncio.open_connection(sock=ours)
            self._listening = asyncio.create_task(
                self._listen(reader, writer, self._server), name="fork server"
            )

    async def _listen(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, server: asyncio.subprocess.Process
    ) -> None:
        """Follow what the server tells until it is gone."""
        with contextlib.suppress(ConnectionError):
            while line := await reader.readline():
                self._on_report(msgspec.json.decode(line, type=Report))
        writer.close()
        assert self._channel is not None, "it is open while somebody listens"
        self._channel.close()
        self._channel = self._server = None
        asked, self._asked = self._asked, deque()
        for future, standard_input in asked:
            os.close(standard_input)
            if not future.done():
                future.set_exception(ServerLostError("the fork server died; try: shardyard logs launcher"))
        for process in list(self._processes.values()) if self._listening is not None else ():
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            del self._processes[process.pid]
            process.end(-signal.SIGKILL)
        await server.wait()

    def _on_report(self, report: Report) -> None:
        if report.code is not None:
            self._processes.pop(report.pid).end(report.code)
            return
        future, standard_input = self._asked.popleft()
        if report.errno:
            os.close(standard_input)
            if not future.done():
                future.set_exception(OSError(report.errno, os.strerror(report.errno)))
            return
        process = self._processes[report.pid] = ForkedProcess(report.pid, standard_input, self._wake)
        if future.done():  # whoever asked for it was cancelled meanwhile
            with contextlib.suppress(ProcessLookupError):  # it has ended, which the next report will say
                process.kill()
        else:
            future.set_result(process)
