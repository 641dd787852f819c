"""What the launcher can do to a process: hold it down, stop it by a signal, let its writes fail."""

import asyncio
import contextlib
import subprocess
import sys
import time

import psutil
import pytest

from node.cli.root import run as run_command
from node.config import Options
from node.injection import FaultFile, get_faults_path, read_fault_file, write_fault_file
from node.launcher import laboratory as laboratories
from node.launcher import launcher as launchers
from node.launcher.laboratory import Laboratory, wake_orphans
from node.launcher.launcher import Launcher, create_run_dir
from node.launcher.supervisor import ChildError
from node.network import create_network
from tests.unit.node.test_launcher import WAITING, is_here, supervise

WRITING = """
import sys, time
while True:
    try:
        with open({path!r}, 'ab', 0) as file:
            file.write(b'x')
    except OSError:
        sys.exit(3)
    time.sleep(0.01)
"""


async def test_killed_process_stays_down_until_it_is_let_up(tmp_path, eventually_async):
    async with supervise(tmp_path, WAITING) as (child, exits, _):
        await eventually_async(lambda: is_here(child))
        child.kill_and_hold()
        await eventually_async(lambda: child.pid is None)
        with pytest.raises(ChildError, match="one is not running"):
            child.pause()
        child.start()
        await eventually_async(lambda: child.pid is not None)
        assert exits == []


async def test_paused_process_sleeps_wakes_and_can_be_stopped_asleep(tmp_path, eventually_async):
    async with supervise(tmp_path, WAITING) as (child, _, _):
        await eventually_async(lambda: is_here(child))
        child.pause()
        await eventually_async(lambda: psutil.Process(child.pid).status() == psutil.STATUS_STOPPED)
        child.resume()
        await eventually_async(lambda: psutil.Process(child.pid).status() != psutil.STATUS_STOPPED)
        child.pause()
        await child.stop()  # within its time: it hears the signal to end
        assert child.pid is None
        assert not child.is_paused


async def test_process_killed_in_its_sleep_is_paused_no_more(tmp_path, home, eventually_async):
    network = create_network(home / "lab", Options(name="lab", shards=1, nodes_per_shard=2, seed=5))
    create_run_dir(network.run_dir)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    async with (
        supervise(tmp_path / "one", WAITING) as (one, _, _),
        supervise(tmp_path / "two", WAITING) as (two, _, _),
    ):
        laboratory = Laboratory(network, {"shard-0-0": one, "shard-0-1": two})
        begin, heal = laboratory.methods["fault"], laboratory.methods["heal"]

        async def list_held():
            return [
                (fault["kind"], list(fault["nodes"]))
                for fault in (await laboratory.methods["faults"]({}))["faults"]
            ]

        await eventually_async(lambda: is_here(one) and is_here(two))
        await begin({"kind": "pause", "nodes": ["shard-0-0", "shard-0-1"]})
        down = await begin({"kind": "kill", "nodes": ["shard-0-0"]})
        assert await list_held() == [("pause", ["shard-0-1"]), ("kill", ["shard-0-0"])]
        await eventually_async(lambda: one.pid is None)
        await begin({"kind": "kill", "nodes": ["shard-0-1"]})
        assert await list_held() == [("kill", ["shard-0-0"]), ("kill", ["shard-0-1"])]
        await heal({"faults": [down["fault"]["id"]]})
        await eventually_async(lambda: one.pid is not None and not one.is_paused)
        assert await list_held() == [("kill", ["shard-0-1"])]
        laboratory.verify_free("shard-0-0")


@pytest.mark.skipif(not hasattr(psutil, "RLIMIT_FSIZE"), reason="only Linux limits another process's files")
async def test_full_disk_lasts_over_restarts_and_ends(tmp_path, eventually_async):
    written = tmp_path / "written"
    async with supervise(tmp_path, WRITING.format(path=str(written))) as (child, exits, _):
        await eventually_async(written.exists)
        child.set_disk_full(full=True)
        await eventually_async(lambda: len(exits) >= 2)
        assert set(exits) == {3}
        child.set_disk_full(full=False)
        size = written.stat().st_size
        await eventually_async(lambda: written.stat().st_size > size)


async def test_process_that_is_stopped_while_it_starts_does_not_run(tmp_path, monkeypatch, eventually_async):
    spawn, is_spawning, may_spawn, spawned = (
        asyncio.create_subprocess_exec,
        asyncio.Event(),
        asyncio.Event(),
        [],
    )

    async def spawn_slowly(*arguments, **options):
        is_spawning.set()
        await may_spawn.wait()
        spawned.append(await spawn(*arguments, **options))
        return spawned[-1]

    monkeypatch.setattr(asyncio, "create_subprocess_exec", spawn_slowly)
    async with supervise(tmp_path, WAITING) as (child, exits, _):
        await is_spawning.wait()
        await child.stop()
        may_spawn.set()
        await eventually_async(lambda: spawned and spawned[0].returncode is not None)
        assert child.pid is None
        child.start()
        await eventually_async(lambda: child.pid is not None)
        assert exits == []


class Stubborn:
    """A child whose files nobody may limit, once ``is_stubborn``."""

    pid = 1
    is_paused = False

    def __init__(self):
        self.is_stubborn = False
        self.is_full = False

    def set_disk_full(self, *, full):
        if self.is_stubborn:
            raise ChildError("one: this user may not limit its files")
        self.is_full = full


async def test_fault_that_begins_in_part_is_taken_back(home):
    network = create_network(home / "lab", Options(name="lab", shards=1, nodes_per_shard=2, seed=5))
    create_run_dir(network.run_dir)
    children = {"shard-0-0": Stubborn(), "shard-0-1": Stubborn()}
    laboratory = Laboratory(network, children)
    children["shard-0-1"].is_stubborn = True
    with pytest.raises(ChildError, match="may not limit"):
        await laboratory.methods["fault"]({"kind": "full-disk", "nodes": list(children)})
    assert not children["shard-0-0"].is_full
    assert (await laboratory.methods["faults"]({}))["faults"] == []


class Sleeper:
    """A child that can be stopped by a signal."""

    pid = 1
    is_paused = False

    def pause(self):
        self.is_paused = True

    def resume(self):
        self.is_paused = False


async def test_end_of_a_pause_wakes_nobody_whom_another_one_holds(home, monkeypatch, eventually_async):
    network = create_network(home / "lab", Options(name="lab", shards=1, nodes_per_shard=2, seed=5))
    create_run_dir(network.run_dir)

    async def tell(path, method, *, timeout_s, faults):
        del path, method, timeout_s, faults

    monkeypatch.setattr(laboratories, "ask", tell)
    one, two = Sleeper(), Sleeper()
    laboratory = Laboratory(network, {"shard-0-0": one, "shard-0-1": two})
    begin = laboratory.methods["fault"]
    await begin({"kind": "pause", "nodes": ["shard-0-0", "shard-0-1"], "for_ms": 200})
    await laboratory.on_exit("shard-0-0")  # and it was started again
    await begin({"kind": "pause", "nodes": ["shard-0-0"]})
    await eventually_async(lambda: not two.is_paused)
    assert one.is_paused


async def test_one_process_that_cannot_be_healed_keeps_no_other_ill(home):
    network = create_network(home / "lab", Options(name="lab", shards=1, nodes_per_shard=2, seed=5))
    create_run_dir(network.run_dir)
    children = {"shard-0-0": Stubborn(), "shard-0-1": Stubborn()}
    laboratory = Laboratory(network, children)
    for node in children:
        await laboratory.methods["fault"]({"kind": "full-disk", "nodes": [node]})
    children["shard-0-0"].is_stubborn = True
    assert (await laboratory.methods["heal"]({}))["untold"] == ["shard-0-0"]
    assert not children["shard-0-1"].is_full


async def test_a_fault_whose_time_is_over_and_that_cannot_be_undone_is_said_in_the_log(
    home, caplog, eventually_async
):
    network = create_network(home / "lab", Options(name="lab", shards=1, nodes_per_shard=2, seed=5))
    create_run_dir(network.run_dir)
    children = {"shard-0-0": Stubborn()}
    laboratory = Laboratory(network, children)
    await laboratory.methods["fault"]({"kind": "full-disk", "nodes": list(children), "for_ms": 50})
    children["shard-0-0"].is_stubborn = True
    await eventually_async(lambda: "did not hear of it" in caplog.text)
    assert (
        "fault 1 is over, and shard-0-0 did not hear of it; try: shardyard node restart shard-0-0"
        in caplog.text
    )


async def test_each_process_is_told_once_however_many_faults_are_healed(home, monkeypatch):
    network = create_network(home / "lab", Options(name="lab", shards=1, nodes_per_shard=2, seed=5))
    create_run_dir(network.run_dir)
    told = []

    async def note(path, method, *, timeout_s, faults):
        told.append((path.stem, method, len(faults["links"])))

    laboratory = Laboratory(network, {node: Stubborn() for node in ("shard-0-0", "shard-0-1")})
    monkeypatch.setattr(laboratories, "ask", note)
    for number in range(3):
        ask = {"nodes": ["shard-0-0"], "others": ["shard-0-1"], "delay_ms": number + 1}
        await laboratory.methods["fault"]({"kind": "delay", **ask})
    told.clear()
    healed = await laboratory.methods["heal"]({})
    assert ([fault["id"] for fault in healed["healed"]], healed["untold"]) == ([1, 2, 3], [])
    assert sorted(told) == [("shard-0-0", "faults", 0), ("shard-0-1", "faults", 0)]


@contextlib.contextmanager
def leave_asleep(network, node):
    """A process of ``network`` whose launcher paused it and died; it takes its time to leave when it wakes."""
    create_run_dir(network.run_dir)
    program = "import sys, time; print(flush=True); sys.stdin.read(); time.sleep(0.3)"
    argv = [sys.executable, "-c", program, str(network.root)]
    orphan = psutil.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        orphan.stdout.readline()  # one that is stopped while it is executed has no command line yet
        orphan.suspend()
        orphan.stdin.close()  # as its launcher's death does
        write_fault_file(network, FaultFile({}, {node: orphan.pid}))
        yield orphan
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            orphan.kill()
        orphan.stdout.close()
        orphan.wait()


@pytest.mark.parametrize("command", [["down"], ["reset", "--yes"]])
def test_a_process_that_a_dead_launcher_paused_wakes_and_leaves(home, command):
    network = create_network(home / "lab", Options(name="lab", shards=1, seed=5))
    with leave_asleep(network, "shard-0-0") as orphan:
        run_command([*command, "--name", "lab"])
        assert orphan.poll() is not None
    assert network.root.exists() == (command == ["down"])


def test_a_process_whose_status_nobody_asks_for_has_left_all_the_same(home, eventually):
    network = create_network(home / "lab", Options(name="lab", shards=1, seed=5))
    create_run_dir(network.run_dir)
    sleeping = "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)"
    heir = """
import subprocess, sys
print(subprocess.Popen([sys.executable, "-c", *sys.argv[1:]]).pid, flush=True)
sys.stdin.read()
"""
    argv = [sys.executable, "-c", heir, sleeping, str(network.root)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        orphan = psutil.Process(int(parent.stdout.readline()))
        eventually(lambda: orphan.status() == psutil.STATUS_STOPPED)
        write_fault_file(network, FaultFile({}, {"broker": orphan.pid}))
        began = time.monotonic()
        assert wake_orphans(network, 4) == 1
        assert time.monotonic() - began < 3
        assert orphan.status() == psutil.STATUS_ZOMBIE
        parent.kill()


async def test_the_next_launcher_takes_no_port_before_a_paused_broker_has_left(home, monkeypatch):
    network = create_network(home / "lab", Options(name="lab", shards=1, seed=5))
    seen = []

    async def run(_launcher):
        seen.append(orphan.poll())

    monkeypatch.setattr(launchers, "CAN_FORK", False)
    monkeypatch.setattr(Launcher, "_run", run)
    with leave_asleep(network, "broker") as orphan:
        await Launcher(network).run()
    assert seen == [0]


def test_faults_of_a_dead_launcher_are_forgotten(home):
    network = create_network(home / "lab", Options(name="lab", shards=1, seed=5))
    create_run_dir(network.run_dir)
    write_fault_file(network, FaultFile({}, {"broker": 2**22 + 1}))
    assert read_fault_file(network).paused
    wake_orphans(network)  # nobody has that number
    assert not get_faults_path(network).exists()
    get_faults_path(network).write_text("{half")
    assert read_fault_file(network) == FaultFile({})
