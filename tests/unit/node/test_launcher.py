"""Ports, the launcher's lock, supervision of one process, and the control socket."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import stat
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest

from node.control import MAX_LINE, ControlError, ControlServer, NoAnswerError, answer_line, ask
from node.launcher.launcher import create_run_dir
from node.launcher.lock import NetworkBusyError, is_held, lock_network
from node.launcher.ports import PortInUseError, choose_ports, describe_holder, is_free
from node.launcher.supervisor import (
    EXIT_NOT_STARTED,
    EXIT_REFUSED,
    Child,
    ChildError,
    build_program,
    compute_restart_delay,
)
from shardyard.errors import ShardyardError

# --- ports ---


def choose(**more: Any) -> Any:
    wanted = {"port_base": 0, "broker_port": 0, "shards": 2, "replicas": 2, "embedded": True}
    return choose_ports(**{**wanted, **more})


def test_free_ports_are_different_ones() -> None:
    ports = choose()
    assert len({ports.broker, *ports.rpc.values()}) == 5
    assert all(map(is_free, ports.rpc.values()))


def test_fixed_ports_are_first_replicas_first() -> None:
    base = choose(shards=4, replicas=1).rpc["shard-0-0"] // 2
    ports = choose(port_base=base, embedded=False)
    assert ports.rpc == {
        "shard-0-0": base,
        "shard-1-0": base + 1,
        "shard-0-1": base + 2,
        "shard-1-1": base + 3,
    }


def test_busy_port_names_its_holder_and_the_way_out() -> None:
    with closing(socket.socket()) as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        assert not is_free(port)
        assert f"pid {os.getpid()}" in describe_holder(port)
        assert "\n" not in describe_holder(port)
        with pytest.raises(PortInUseError, match=r"try: shardyard up --port-base 0"):
            choose(port_base=port)


# --- the lock ---


def test_second_launcher_is_refused_with_the_pid_of_the_first(tmp_path: Path) -> None:
    assert not is_held(tmp_path)
    with lock_network(tmp_path):
        assert is_held(tmp_path)
        with pytest.raises(NetworkBusyError, match=f"launcher pid {os.getpid()}"), lock_network(tmp_path):
            pass
    assert not is_held(tmp_path)
    with lock_network(tmp_path):
        pass


def test_folder_of_control_sockets_that_others_may_write_is_refused(tmp_path: Path) -> None:
    create_run_dir(tmp_path / "run" / "net")
    assert stat.S_IMODE((tmp_path / "run" / "net").stat().st_mode) == 0o700
    create_run_dir(tmp_path / "run" / "net")
    (tmp_path / "run").chmod(0o777)
    with pytest.raises(ShardyardError, match="nobody else may write"):
        create_run_dir(tmp_path / "run" / "net")


# --- supervision ---


class Exits(list[int]):
    async def __call__(self, child: Child, code: int) -> None:
        self.append(code)


@asynccontextmanager
async def supervise(folder: Path, program: str) -> AsyncIterator[tuple[Child, Exits, "asyncio.Task[None]"]]:
    child = Child("one", build_program([sys.executable, "-c", program], os.environ), folder / "one.log")
    exits = Exits()
    running = asyncio.create_task(child.run(exits))
    yield child, exits, running
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert child.pid is None


WAITING = "import sys; print('here', flush=True); sys.stdin.read()"


def is_here(child: Child) -> bool:
    """Tell whether a waiting child runs, and its supervisor knows: its words may come first."""
    return child.pid is not None and "here" in child.read_last_words()


async def test_child_whose_log_cannot_be_opened_is_tried_again_and_that_is_no_restart(
    tmp_path: Path, eventually_async: Any
) -> None:
    async with supervise(tmp_path / "none", WAITING) as (child, exits, _):
        await eventually_async(lambda: len(exits) >= 2)
        assert set(exits) == {EXIT_NOT_STARTED}
        (tmp_path / "none").mkdir()
        await eventually_async(lambda: is_here(child))
        assert child.restarts == 0


async def test_killed_child_is_started_again(tmp_path: Path, eventually_async: Any) -> None:
    async with supervise(tmp_path, WAITING) as (child, exits, _):
        await eventually_async(lambda: is_here(child))
        first = child.pid
        child.kill()
        await eventually_async(lambda: child.pid not in {None, first})
        assert exits == [-signal.SIGKILL]
        assert child.restarts == 1


async def test_stopped_child_stays_stopped_until_it_is_started(tmp_path: Path, eventually_async: Any) -> None:
    async with supervise(tmp_path, WAITING) as (child, exits, _):
        await eventually_async(lambda: is_here(child))
        await child.stop()
        assert child.pid is None
        with pytest.raises(ChildError, match="one is not running"):
            child.kill()
        child.start()
        await eventually_async(lambda: child.pid is not None)
        assert exits == []


async def test_child_that_refuses_its_configuration_is_not_started_again(tmp_path: Path) -> None:
    program = f"import sys; print('bad option'); sys.exit({EXIT_REFUSED})"
    async with supervise(tmp_path, program) as (child, exits, running):
        with pytest.raises(ChildError, match=r"one refused to start:\nbad option"):
            await asyncio.wait_for(running, 20)
        assert exits == [EXIT_REFUSED]
        assert child.restarts == 0


async def test_child_that_ends_again_and_again_is_counted(tmp_path: Path, eventually_async: Any) -> None:
    async with supervise(tmp_path, "import sys; sys.exit(1)") as (child, _, _):
        await eventually_async(lambda: child.restarts >= 2)


def test_child_that_ran_well_is_started_at_once_and_one_that_did_not_ever_more_slowly() -> None:
    failures, delays = 0, []
    for _ in range(7):
        failures, delay_s = compute_restart_delay(failures, 0.5)
        delays.append(delay_s)
    assert delays == [0.2, 0.5, 1.0, 2.0, 5.0, 5.0, 5.0]
    assert compute_restart_delay(failures, 5.0) == (0, 0.0)


# --- the control socket ---


@pytest.fixture
async def path(home: Path) -> AsyncIterator[Path]:
    released = asyncio.Event()

    async def answer(method: str, params: dict[str, Any]) -> Any:
        if method == "refuse":
            raise ShardyardError("no such thing; try: another")
        if method == "hang":
            await released.wait()
        return {"method": method, **params}

    async with ControlServer(home / "one.sock", answer):
        yield home / "one.sock"
        released.set()
        await asyncio.sleep(0)


async def test_question_is_answered_and_the_socket_is_its_owners_alone(path: Path) -> None:
    assert await ask(path, "status", node="x") == {"method": "status", "node": "x"}
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600  # noqa: PTH116 - a file of this very test


async def test_refusal_is_told_apart_from_silence(path: Path, home: Path) -> None:
    with pytest.raises(ControlError, match=r"^no such thing; try: another$") as refused:
        await ask(path, "refuse")
    assert not isinstance(refused.value, NoAnswerError)
    with pytest.raises(NoAnswerError, match=r"no answer at none\.sock"):
        await ask(home / "none.sock", "status")
    with pytest.raises(NoAnswerError, match="timed out"):
        await ask(path, "hang", timeout_s=0.05)


@pytest.mark.parametrize(
    "line", [b"not json\n", b"[]\n", b"{}\n", b'{"method": 1, "params": 3}\n', b"x" * (MAX_LINE + 2)]
)
async def test_nonsense_on_the_socket_does_no_harm(path: Path, line: bytes) -> None:
    reader, writer = await asyncio.open_unix_connection(str(path))
    writer.write(line)
    answer = await reader.readline()
    assert answer == b"" or "error" in json.loads(answer)
    writer.close()
    await writer.wait_closed()
    assert await ask(path, "status") == {"method": "status"}


@pytest.mark.parametrize(
    "line",
    [
        b"", b"{", b"\xff", b"[" * 100_000, b"9" * 5_000, b"[]", b"null", b'"up"', b"{}", b'{"method": 1}',
        b'{"method": "up", "params": [["a", 1]]}', b'{"method": "up", "params": "all"}',
    ],
)  # fmt: skip
async def test_line_that_is_no_request_is_answered_with_what_was_expected(line: bytes) -> None:
    async def answer(_method: str, _params: dict[str, Any]) -> Any:
        raise AssertionError("no such line reaches the handler")

    told = json.loads(await answer_line(answer, line))
    assert told["error"].startswith("request: got ")
    assert "expected {" in told["error"]


@pytest.mark.parametrize(
    ("told", "match"),
    [
        (b"not json\n", "no JSON"),
        (b"[1]\n", "neither an error nor a result"),
        (b"{}\n", "neither an error nor a result"),
        (b"x" * (MAX_LINE + 2) + b"\n", "got more than"),
    ],
)
async def test_answer_that_is_none_is_a_control_error(home: Path, told: bytes, match: str) -> None:
    async def tell(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        with contextlib.suppress(ConnectionError):
            writer.write(told)
            await writer.drain()
        writer.close()

    async with await asyncio.start_unix_server(tell, path=str(home / "liar.sock")):
        with pytest.raises(ControlError, match=match):
            await ask(home / "liar.sock", "status")


async def test_parameter_that_is_missing_is_named() -> None:
    async def answer(_method: str, params: dict[str, Any]) -> Any:
        return params["node"]

    told = json.loads(await answer_line(answer, b'{"method": "node.stop", "params": {}}'))
    assert told["error"] == "params: got no 'node', which node.stop needs"
