"""The control socket: one JSON line in, one JSON line out, over a Unix socket that only its owner may open.

The launcher and every node answer on one; the command line asks there for status and asks the launcher to stop things.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Self

from shardyard.errors import ShardyardError

Handler = Callable[[str, dict[str, Any]], Awaitable[Any]]
MAX_LINE = 1 << 22
MAX_BRACKETS = 64
"""Objects and lists in one request."""
_EXPECTED = '{"method": "status", "params": {}}'


class ControlError(ShardyardError):
    """The other side refused, or is not there."""


class NoAnswerError(ControlError):
    """Nobody is there, or nobody answers in time."""


class NobodyThereError(NoAnswerError):
    """Nobody listens, so nothing was asked; it may be asked again."""


class ControlServer:
    """Serves ``handler(method, params)`` at ``path`` while entered."""

    def __init__(self, path: Path, handler: Handler) -> None:
        self._path = path
        self._handler = handler
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> Self:
        self._path.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(self._serve, path=str(self._path), limit=MAX_LINE)
        self._path.chmod(0o600)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._server is not None:
            self._server.close()
        for writer in self._writers:  # whoever keeps a connection open must not be cancelled with the loop
            writer.close()
        self._path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            while line := await reader.readline():
                writer.write(await answer_line(self._handler, line) + b"\n")
                await writer.drain()
        except (ConnectionError, ValueError, asyncio.LimitOverrunError):
            pass
        finally:
            self._writers.discard(writer)
            writer.close()


async def answer_line(handler: Handler, line: bytes) -> bytes:
    """Return the answer to one line, as JSON: what ``handler`` gives, or why there is nothing."""
    method = "the method"
    try:
        method, params = _read_request(line)
        result = await handler(method, params)
    except KeyError as error:
        return json.dumps({"error": f"params: got no {error}, which {method} needs"}).encode()
    except (ShardyardError, TypeError, ValueError, OSError) as error:
        return json.dumps({"error": f"{error}"}).encode()
    return json.dumps({"result": result}).encode()


def _read_request(line: bytes) -> tuple[str, dict[str, Any]]:
    """Return method and parameters; raises ``ControlError`` for a line that has none."""
    if line.count(b"[") + line.count(b"{") > MAX_BRACKETS:
        # The decoder's own guard is the interpreter's recursion limit, which a library may have raised beyond the stack.
        raise ControlError(f"request: got more than {MAX_BRACKETS} brackets, expected {_EXPECTED}")
    try:
        request = json.loads(line)
    except ValueError as error:
        raise ControlError(f"request: got a line that is no JSON, expected {_EXPECTED}: {error}") from error
    if not isinstance(request, dict) or not isinstance(request.get("method"), str):
        raise ControlError(f"request: got a line without a method, expected {_EXPECTED}")
    params = request.get("params") or {}
    if not isinstance(params, dict):
        raise ControlError(f"request: got params that are no object, expected {_EXPECTED}")
    return request["method"], params


async def _connect(path: Path) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    try:
        return await asyncio.open_unix_connection(str(path), limit=MAX_LINE)
    except (FileNotFoundError, ConnectionRefusedError) as error:
        raise NobodyThereError(f"no answer at {path.name}: {error}") from error


async def ask(path: Path, method: str, /, *, timeout_s: float = 5.0, **params: Any) -> Any:
    """Return the answer of the process behind ``path``.

    Raises ``NobodyThereError`` when nobody listens, ``NoAnswerError`` when there is no answer, and ``ControlError`` when it
    is a refusal or nothing that can be read.
    """
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await _connect(path)
            try:
                writer.write(json.dumps({"method": method, "params": params}).encode() + b"\n")
                line = await reader.readline()
            finally:
                writer.close()
    except ValueError as error:  # the reader's word for a line beyond its limit
        raise ControlError(f"answer of {path.name}: got more than {MAX_LINE} bytes in a line") from error
    except OSError as error:  # a timeout is one
        raise NoAnswerError(f"no answer at {path.name}: {str(error) or 'timed out'}") from error
    if not line:
        raise NoAnswerError(f"no answer at {path.name}: the connection was closed")
    try:
        answer = json.loads(line)
    except ValueError as error:
        raise ControlError(f"answer of {path.name}: got a line that is no JSON: {error}") from error
    if not isinstance(answer, dict) or not answer.keys() & {"error", "result"}:
        raise ControlError(f"answer of {path.name}: got neither an error nor a result")
    if "error" in answer:
        raise ControlError(str(answer["error"]))
    return answer["result"]
