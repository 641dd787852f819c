"""The launcher's lock, supervision of one process, and the control socket."""

import asyncio
import contextlib
import errno
import fcntl
import json
import os
import signal
import socket
import stat
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest

from node.config import Options
from node.control import (
    MAX_LINE,
    ControlError,
    ControlServer,
    NoAnswerError,
    NobodyThereError,
    answer_line,
    ask,
)
from node.launcher import launcher as launchers
from node.launcher.launcher import create_run_dir, have_run_dir, run_foreground
from node.launcher.lock import NetworkBusyError, is_held, lock_network
from node.launcher.supervisor import (
    EXIT_NOT_STARTED,
    EXIT_REFUSED,
    Child,
    ChildError,
    build_program,
    build_python_argv,
    compute_restart_delay,
)
from node.network import create_network
from node.storage import file_locks
from shardyard.errors import ShardyardError

# --- processes of a launcher that is gone ---


async def test_orphans_that_are_there_and_busy_are_waited_for_and_those_that_are_not_cost_nothing(
    home: Path,
) -> None:
    network = create_network(home / "net", Options(name="net", shards=3, seed=1))
    loop = asyncio.get_running_loop()
    started = loop.time()
    await launchers.wait_for_orphans(network)
    assert loop.time() - started < 0.4
    create_run_dir(network.run_dir)
    path = network.get_control_path("shard-1-0")
    with closing(socket.socket(socket.AF_UNIX)) as busy:
        busy.bind(str(path))
        busy.listen()  # it accepts, and answers to nobody
        loop.call_later(0.8, path.unlink)
        started = loop.time()
        await asyncio.wait_for(launchers.wait_for_orphans(network), 20)
        assert 0.8 <= loop.time() - started < launchers.LOCK_TIMEOUT_S


# --- the launcher as a process ---


@pytest.mark.parametrize(
    ("options", "obstacle", "code", "words"),
    [
        ({"port_base": 65_535}, "", 2, "port_base: got 65535 for 2 nodes"),
        ({"port_base": 0}, "endpoints.json.part", 1, "Is a directory"),
    ],
)
async def test_launcher_that_cannot_start_says_why_in_one_line(
    home: Path, options: dict[str, int], obstacle: str, code: int, words: str
) -> None:
    network = create_network(home / "net", Options(name="net", shards=2, seed=1))
    if obstacle:
        (network.root / obstacle).mkdir()
    launcher = await asyncio.create_subprocess_exec(
        *build_python_argv("node.launcher", str(network.root), json.dumps(options)),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(launcher.communicate(), 60)
    assert launcher.returncode == code, err.decode()
    (line,) = out.decode().splitlines()
    record = json.loads(line)
    assert record["level"] == "error"
    assert words in record["message"]
    assert "traceback" not in record
    assert err == b""
    assert not network.run_dir.exists()
    assert not (network.root / "launcher.run").exists()


class Waiting:
    """A launcher without processes: ready at once, over when it is told to stop."""

    def __init__(self, *_: Any) -> None:
        self.ready = asyncio.Event()
        self.ready.set()
        self.stopped = asyncio.Event()
        self.request_stop = self.stopped.set

    async def run(self) -> None:
        await self.stopped.wait()


Start = Callable[..., "asyncio.Task[None]"]


@pytest.fixture
async def start(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Start]:
    monkeypatch.setattr(launchers, "Launcher", Waiting)
    started: list[asyncio.Task[None]] = []

    def run(on_ready: Callable[[], None] = lambda: None, **more: Any) -> "asyncio.Task[None]":
        network: Any = None
        started.append(asyncio.create_task(run_foreground(network, None, on_ready, **more)))
        return started[-1]

    yield run
    for task in started:
        task.cancel()
    await asyncio.gather(*started, return_exceptions=True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
async def test_network_in_the_foreground_ends_in_order_with_its_terminal(
    start: Start, number: signal.Signals
) -> None:
    said = asyncio.Event()
    loop = asyncio.get_running_loop()
    task = start(lambda: loop.call_soon_threadsafe(said.set) and None)
    await asyncio.wait_for(said.wait(), 20)
    os.kill(os.getpid(), number)
    await asyncio.wait_for(task, 20)


async def test_network_that_was_told_to_outlive_its_terminal_does(start: Start) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        said = asyncio.Event()
        loop = asyncio.get_running_loop()
        task = start(lambda: loop.call_soon_threadsafe(said.set) and None)
        await asyncio.wait_for(said.wait(), 20)
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.wait_for(task, 20)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


async def test_launcher_ends_with_whoever_holds_its_standard_input(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs, ours = os.pipe()
    with os.fdopen(theirs) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        task = start(exit_with_stdin=True)
        await asyncio.sleep(0)
        assert not task.done()
        os.close(ours)
        await asyncio.wait_for(task, 20)


async def test_what_cannot_be_said_when_ready_is_reported_at_once_and_the_network_goes_on(
    start: Start, caplog: pytest.LogCaptureFixture, eventually_async: Any
) -> None:
    threads: list[int] = []

    def fail() -> None:
        threads.append(threading.get_ident())
        raise ShardyardError("shard 0 does not answer")

    task = start(fail)
    await eventually_async(lambda: "shard 0 does not answer" in caplog.text)
    assert threads != [threading.get_ident()]
    assert not task.done()


async def test_error_that_nobody_foresaw_ends_the_network(start: Start) -> None:
    with pytest.raises(ZeroDivisionError):
        await asyncio.wait_for(start(lambda: 1 // 0 and None), 20)


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


def test_whoever_looks_keeps_no_launcher_from_starting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with lock_network(tmp_path):
        pass
    looking = os.open(tmp_path / "launcher.lock", os.O_RDONLY)
    fcntl.flock(looking, fcntl.LOCK_SH)
    assert not is_held(tmp_path)  # another one may look at the same time
    waits: list[float] = []

    def have_seen_enough(seconds: float) -> None:
        if not waits:
            os.close(looking)
        waits.append(seconds)

    monkeypatch.setattr(file_locks, "RETRY_FOR_S", 60.0)
    monkeypatch.setattr(file_locks.time, "sleep", have_seen_enough)
    with lock_network(tmp_path):
        assert is_held(tmp_path)
    assert waits


def test_lock_of_a_network_that_is_made_anew_again_and_again_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_locks, "RETRY_FOR_S", 0.0)
    monkeypatch.setattr(file_locks, "is_named", lambda *_: False)
    with (
        pytest.raises(NetworkBusyError, match="is being deleted; try: the same again"),
        lock_network(tmp_path),
    ):
        pass


def test_lock_of_a_network_that_was_deleted_meanwhile_is_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "net").mkdir()
    flock, calls = fcntl.flock, []

    def delete_first(descriptor: int, operation: int) -> None:
        if not calls:
            (tmp_path / "net").rename(tmp_path / "gone")
        calls.append(operation)
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", delete_first)
    with pytest.raises(FileNotFoundError), lock_network(tmp_path / "net"):
        pass


def test_launcher_that_ends_early_leaves_no_folder_of_sockets_and_no_note_of_one(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(home))
    network = create_network(home / "net", Options(name="net", shards=1, seed=1))

    def end() -> None:
        with have_run_dir(network):
            assert network.run_dir.is_dir()
            assert (network.root / "launcher.run").exists()
            raise ShardyardError("a port is taken")

    with pytest.raises(ShardyardError, match="taken"):
        end()
    assert not network.run_dir.exists()
    assert not (network.root / "launcher.run").exists()
    network.run_dir.parent.rmdir()
    network.run_dir.parent.write_text("no folder")
    with pytest.raises(OSError, match="exists"):
        end()
    assert not (network.root / "launcher.run").exists()


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
    spawn = build_program([sys.executable, "-c", program], os.environ)
    child = Child("one", spawn, folder / "one.log", " --name net")
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


async def test_what_starts_children_may_fail_while_the_network_runs_and_not_while_it_comes_up(
    tmp_path: Path, eventually_async: Any
) -> None:
    is_broken = True
    program = build_program([sys.executable, "-c", WAITING], os.environ)

    async def spawn(output: int, is_disk_full: bool) -> Any:
        if is_broken:
            raise ChildError("the fork server died")
        return await program(output, is_disk_full)

    exits = Exits()
    child = Child("one", spawn, tmp_path / "one.log")
    with pytest.raises(ChildError, match="the fork server died"):
        await asyncio.wait_for(child.run(exits), 20)
    child.is_vital = False
    running = asyncio.create_task(child.run(exits))
    await eventually_async(lambda: len(exits) >= 2)
    assert set(exits) == {EXIT_NOT_STARTED}
    assert "one could not be started: the fork server died; it is tried again" in child.read_last_words()
    is_broken = False
    await eventually_async(lambda: is_here(child))
    assert child.restarts == 0
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert child.pid is None


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


async def test_child_that_refuses_later_stays_down_alone_until_it_is_started(
    tmp_path: Path, eventually_async: Any, caplog: pytest.LogCaptureFixture
) -> None:
    program = f"import sys; print('bad option'); sys.exit({EXIT_REFUSED})"
    async with supervise(tmp_path, program) as (child, exits, running):
        child.is_vital = False
        await eventually_async(lambda: child.has_refused)
        assert (child.enabled, child.pid, child.restarts) == (False, None, 0)
        assert not running.done()
        told = (
            "one refused to start:\nbad option\nit stays down; try: shardyard node start one --name net, once"
        )
        assert told in caplog.text
        child.start()
        assert not child.has_refused
        await eventually_async(lambda: exits == [EXIT_REFUSED] * 2)
        await eventually_async(lambda: child.has_refused)
        await child.stop()
        assert not child.has_refused


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
        if method == "fail":
            raise PermissionError(errno.EACCES, "Permission denied", "some.sock")
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
    with pytest.raises(NobodyThereError, match=r"no answer at none\.sock"):
        await ask(home / "none.sock", "status")
    with pytest.raises(NoAnswerError, match="timed out") as silent:
        await ask(path, "hang", timeout_s=0.05)
    assert not isinstance(silent.value, NobodyThereError)
    with pytest.raises(ControlError, match=r"Permission denied: 'some\.sock'"):
        await ask(path, "fail")


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
