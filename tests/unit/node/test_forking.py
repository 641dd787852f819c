"""The fork server: what it forks is supervised like any process, and its own death costs a restart, never an orphan."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys

import psutil
import pytest

from node.config import Options
from node.launcher import forking
from node.launcher.forking import CAN_FORK, Forker, ServerLostError
from node.launcher.supervisor import EXIT_NOT_STARTED, EXIT_REFUSED, Child, ChildError
from node.network import create_network

pytestmark = pytest.mark.skipif(not CAN_FORK, reason="this system starts each node as a program of its own")


@pytest.fixture
async def forker():
    async with Forker(os.environ) as made:
        yield made


@pytest.fixture
def arguments(tmp_path):
    """What starts a beacon that finds no broker: it tries for ever."""
    return ["beacon-0", str(create_network(tmp_path / "net", Options(name="net", broker_port=9)).root)]


@contextlib.asynccontextmanager
async def supervise(child):
    ends = []

    async def note(_child, code):
        ends.append(code)

    running = asyncio.create_task(child.run(note))
    yield ends, running
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert child.pid is None


def is_gone(pid):
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


async def test_a_forked_node_says_why_it_refuses_and_how_it_ended(forker, tmp_path):
    child = Child("one", forker.build_spawn(["beacon-0", str(tmp_path / "nothing")]), tmp_path / "one.log")
    async with supervise(child) as (ends, running):
        with pytest.raises(ChildError, match=r"one refused to start:(.|\n)*nothing"):
            await asyncio.wait_for(running, 20)
        assert ends == [EXIT_REFUSED]


async def test_a_forked_node_is_a_session_of_its_own_with_a_name_and_is_started_again(
    forker, tmp_path, arguments, eventually_async
):
    child = Child("one", forker.build_spawn(arguments), tmp_path / "one.log")
    async with supervise(child) as (ends, _):
        await eventually_async(lambda: child.pid is not None)
        first = child.pid
        await eventually_async(lambda: "node.process beacon-0" in " ".join(psutil.Process(first).cmdline()))
        assert os.getsid(first) == first
        assert psutil.Process(first).ppid() == forker.pid
        child.kill()
        await eventually_async(lambda: child.pid not in {None, first})
        assert ends == [-signal.SIGKILL]


async def test_nodes_of_a_server_that_died_are_ended_and_started_by_a_new_one(
    forker, tmp_path, arguments, eventually_async
):
    child = Child("one", forker.build_spawn(arguments), tmp_path / "one.log")
    async with supervise(child) as (ends, _):
        await eventually_async(lambda: child.pid is not None)
        first, server = child.pid, forker.pid
        os.kill(server, signal.SIGKILL)
        await eventually_async(lambda: child.pid not in {None, first})
        assert ends == [-signal.SIGKILL]
        assert is_gone(first)
        assert forker.pid not in {None, server}


async def test_a_server_that_sleeps_is_woken_for_a_start_for_an_end_and_for_its_own(tmp_path, arguments):
    async with asyncio.timeout(20):
        async with Forker(os.environ) as forker:
            server = forker.pid

            def stop_server():
                os.kill(server, signal.SIGSTOP)
                while psutil.Process(server).status() != psutil.STATUS_STOPPED:
                    pass

            spawn = forker.build_spawn(arguments)
            first, second = await spawn(1, False), await spawn(1, False)
            stop_server()
            third = await spawn(1, False)
            for process in (first, second, third):
                stop_server()
                with contextlib.suppress(
                    ProcessLookupError
                ):  # of one folder's nodes, all but one leave by themselves
                    (process.kill if process is first else process.terminate)()
                await process.wait()
            assert forker.pid == server
            stop_server()
        assert is_gone(server)


async def test_a_start_that_was_given_up_leaves_no_process(forker, arguments, eventually_async):
    spawning = asyncio.create_task(forker.build_spawn(arguments)(1, False))
    await eventually_async(lambda: bool(forker._asked) or spawning.done())
    spawning.cancel()
    await asyncio.gather(spawning, return_exceptions=True)
    await eventually_async(lambda: not forker._asked and not forker._processes)
    assert psutil.Process(forker.pid).children() == []


async def test_a_start_that_was_given_up_may_have_ended_by_itself(
    forker, tmp_path, arguments, eventually, eventually_async
):
    with (tmp_path / "one.log").open("wb") as log:
        spawning = asyncio.create_task(
            forker.build_spawn(["beacon-0", str(tmp_path / "nothing")])(log.fileno(), False)
        )
        await eventually_async(lambda: bool(forker._asked) or spawning.done())
        spawning.cancel()
        await asyncio.gather(spawning, return_exceptions=True)
        # Both reports wait unread: that it began, and that it ended.
        eventually(lambda: (tmp_path / "one.log").read_bytes().endswith(b"\n"))
        eventually(lambda: not psutil.Process(forker.pid).children())
    await eventually_async(lambda: not forker._asked and not forker._processes)
    process = await asyncio.wait_for(forker.build_spawn(arguments)(1, False), 20)
    process.kill()
    assert await process.wait() == -signal.SIGKILL


async def test_a_node_whose_disk_is_full_is_born_with_it(forker, arguments, eventually_async):
    process = await forker.build_spawn(arguments)(1, True)
    with contextlib.suppress(psutil.NoSuchProcess):
        await eventually_async(
            lambda: is_gone(process.pid) or psutil.Process(process.pid).rlimit(psutil.RLIMIT_FSIZE)[0] == 0
        )
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    assert await process.wait() != 0


async def test_many_nodes_that_start_at_once_ask_no_more_than_the_socket_holds(tmp_path, monkeypatch):
    monkeypatch.setattr(forking, "MAX_ASKED", 3)
    most = 0

    async def start(forker, number):
        nonlocal most
        with (tmp_path / f"{number}.log").open("wb") as log:
            process = await forker.build_spawn(["beacon-0", str(tmp_path / "nothing")])(log.fileno(), False)
        most = max(most, len(forker._asked))
        return await process.wait()

    async with Forker(os.environ) as forker:
        codes = await asyncio.gather(*(start(forker, number) for number in range(12)))
    assert codes == [EXIT_REFUSED] * 12
    assert most <= 3


async def test_a_process_that_the_system_has_no_room_for_is_tried_again(tmp_path, eventually_async):
    (tmp_path / "sitecustomize.py").write_text("""
import errno, os
fork, tries = os.fork, []

def fork_at_last():
    tries.append(1)
    if len(tries) < 3:
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
    return fork()

os.fork = fork_at_last
""")
    async with Forker({**os.environ, "PYTHONPATH": str(tmp_path)}) as forker:
        server = forker.pid
        child = Child("one", forker.build_spawn(["beacon-0", str(tmp_path)]), tmp_path / "one.log")
        async with supervise(child) as (ends, running):
            await eventually_async(running.done)
            assert ends == [EXIT_NOT_STARTED, EXIT_NOT_STARTED, EXIT_REFUSED]
            assert forker.pid == server
    told = "one could not be started: [Errno 11] Resource temporarily unavailable; it is tried again\n"
    assert (tmp_path / "one.log").read_text().startswith(2 * told)


async def test_servers_that_cannot_start_are_told_of(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    async with Forker(os.environ) as forker:
        with pytest.raises(ServerLostError, match="fork server"):
            await forker.build_spawn(["beacon-0", str(tmp_path)])(1, False)


async def test_a_server_ends_with_its_launcher(forker, eventually_async):
    server = forker.pid
    await forker.__aexit__()
    await eventually_async(lambda: is_gone(server))


def test_what_is_loaded_before_the_fork_starts_no_thread():
    program = (
        "import os; from node.launcher.fork_server import PRELOADED; [__import__(name) for name in PRELOADED]; "
        "print(len(os.listdir('/proc/self/task')))"
    )
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert told.stdout == "1\n"
