"""Brings a network up: broker, beacon, shards; tells when each is ready; keeps them running until asked to stop.

Order: the broker first, because nodes reconnect but a first start should not have to; then beacon and shards together.
A network is locked while its launcher lives, so two launchers can never run one set of keys.
"""

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import stat
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from node.bus.access import OBSERVER, build_access_list, write_access_file
from node.bus.mosquitto import write_mosquitto_config
from node.causes import find_cause
from node.config import get_name_flag
from node.control import ControlError, ControlServer, ask
from node.launcher.forking import CAN_FORK, Forker
from node.launcher.laboratory import Laboratory, wake_orphans
from node.launcher.lock import lock_network
from node.launcher.log_files import keep_small
from node.launcher.ports import LOOPBACK, Ports, choose_ports
from node.launcher.supervisor import Child, ChildError, Spawn, build_program, build_python_argv
from node.network import Network, get_local_validators, parse_node, write_json
from shardyard.errors import ShardyardError
from shardyard.ids import BEACON, compute_chain_id

BROKER = "broker"
LAUNCHER = "launcher"
READY_TIMEOUT_S = 30.0
READY_POLL_S = 0.03
MAX_START_FAILURES = 4
"""Times a process may end before it is ready; more are no accident."""
LOCK_TIMEOUT_S = 8.0

_METHODS = "ping, stop, nodes, exits, kill, stop-node, start-node, restart-node"

logger = logging.getLogger("shardyard.launcher")

Report = Callable[[str, float], None]
"""Called with what became ready and after how many seconds."""


def choose_broker(wanted: str) -> str:
    """Return ``embedded``, ``mosquitto`` or a URL for the option ``broker``."""
    return "embedded" if wanted == "auto" else wanted


def create_run_dir(path: Path) -> None:
    """Make the folder of the control sockets; raises ``ShardyardError`` when it could be somebody else's."""
    for folder in (path.parent, path):
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
        if found.st_uid != os.getuid() or not stat.S_ISDIR(found.st_mode) or found.st_mode & 0o022:
            raise ShardyardError(
                f"{folder}: expected a folder of this user that nobody else may write; try: remove it, or set TMPDIR"
            )


@contextlib.contextmanager
def have_run_dir(network: Network) -> Iterator[None]:
    """Have the folder of the control sockets, and the note of where it is; however this ends, neither stays behind."""
    left = network.run_dir  # of a launcher that was killed
    try:
        found = network.record_run_dir()
        if found != left:
            shutil.rmtree(left, ignore_errors=True)
        create_run_dir(found)
        try:
            yield
        finally:
            shutil.rmtree(found, ignore_errors=True)
    finally:
        with contextlib.suppress(OSError):
            network.forget_run_dir()


async def wait_for_orphans(network: Network) -> None:
    """Children notice within moments that their launcher is gone; wait until none answers any more."""
    deadline = time.monotonic() + LOCK_TIMEOUT_S
    for node in network.nodes:
        while time.monotonic() < deadline:
            try:
                await ask(network.get_control_path(node), "ping", timeout_s=0.5)
            except ControlError as error:
                if not isinstance(error.__cause__, TimeoutError):  # one that is busy is still there
                    break
            await asyncio.sleep(READY_POLL_S)


class Launcher:
    """Runs the processes of ``network`` while ``run`` is awaited."""

    def __init__(self, network: Network, report: Report | None = None) -> None:
        self.network = network
        self.ready = asyncio.Event()
        self.started_at = time.monotonic()
        self._report = report or (lambda _what, _seconds: None)
        self._ports = Ports(broker=0, rpc={})
        self._children: dict[str, Child] = {}
        self._stop = asyncio.Event()
        self._exits: list[dict[str, Any]] = []
        self._laboratory = Laboratory(network, self._children)
        self._environ = {**os.environ, "SHARDYARD_NODE": "1"}
        self._forker = Forker(self._environ) if CAN_FORK else None

    def request_stop(self) -> None:
        """Make ``run`` stop everything and return."""
        self._stop.set()

    async def run(self) -> None:
        """Start everything, supervise, stop on request. Raises ``ShardyardError`` when a process refuses to start."""
        with lock_network(self.network.root):
            async with self._forker or contextlib.nullcontext():
                # A broker has no control socket to be asked at, and keeps its port until it has left.
                await asyncio.to_thread(wake_orphans, self.network, LOCK_TIMEOUT_S)
                await wait_for_orphans(self.network)
                with have_run_dir(self.network):
                    await self._run()

    async def _run(self) -> None:
        options = self.network.options
        broker = choose_broker(options.broker)
        self._ports = choose_ports(
            port_base=options.port_base,
            broker_port=options.broker_port,
            shards=options.shards,
            replicas=options.replicas,
            embedded="://" not in broker,
        )
        self._write_endpoints(broker, self._ports)
        self._create_children(broker)
        control = ControlServer(self.network.get_control_path(LAUNCHER), self._answer)
        try:
            async with control, asyncio.TaskGroup() as group:
                await self._supervise(group)
        except BaseExceptionGroup as errors:
            raise find_cause(errors) from errors

    async def _supervise(self, group: asyncio.TaskGroup) -> None:
        runners = {
            name: group.create_task(child.run(self._on_exit), name=name)
            for name, child in self._children.items()
        }
        others = (
            group.create_task(self._become_ready(), name="ready"),
            group.create_task(keep_small(map(self.network.get_log_path, (*runners, LAUNCHER))), name="logs"),
        )
        await self._stop.wait()
        for task in others:
            task.cancel()
        self._laboratory.close()
        broker = runners.pop(BROKER, None)
        for runner in runners.values():
            runner.cancel()
        await asyncio.gather(*runners.values(), return_exceptions=True)
        if broker is not None:  # last, so that no node mourns it in its log
            broker.cancel()

    def _write_endpoints(self, broker: str, ports: Ports) -> None:
        external = "://" in broker
        endpoints = {
            "version": 1,
            "network": self.network.genesis.network.hex(),
            "name": self.network.options.name,
            "launcher_pid": os.getpid(),
            "broker": {
                "kind": "external" if external else broker,
                "url": broker if external else f"mqtt://{LOOPBACK}:{ports.broker}",
                "observer": {
                    "username": OBSERVER,
                    "password": self.network.read_broker_passwords()[OBSERVER],
                },
                "watch_topics": f"sy/{self.network.options.name}/watch/#",
            },
            "shards": [
                {
                    "shard": shard,
                    "chain_id": compute_chain_id(shard),
                    "rpc": f"http://{LOOPBACK}:{ports.rpc[f'shard-{shard}-0']}",
                    "ws": f"ws://{LOOPBACK}:{ports.rpc[f'shard-{shard}-0']}",
                    "nodes": {
                        name: f"http://{LOOPBACK}:{port}"
                        for name, port in ports.rpc.items()
                        if parse_node(name)[0] == shard
                    },
                }
                for shard in range(self.network.options.shards)
            ],
        }
        write_json(self.network.root / "endpoints.json", endpoints)

    def _create_children(self, broker: str) -> None:
        spawners = (
            {} if "://" in broker else {BROKER: build_program(self._build_broker_argv(broker), self._environ)}
        )
        spawners |= {name: self._build_spawn(name) for name in self.network.nodes}
        for name, spawn in spawners.items():
            self._children[name] = Child(
                name, spawn, self.network.get_log_path(name), get_name_flag(self.network.options.name)
            )

    def _build_spawn(self, name: str) -> Spawn:
        arguments = self._list_arguments(name)
        if self._forker is None:
            return build_program(build_python_argv("node.process", *arguments), self._environ)
        return self._forker.build_spawn(arguments)

    def _build_broker_argv(self, broker: str) -> list[str]:
        root, name = self.network.root, self.network.options.name
        passwords = self.network.read_broker_passwords()
        if broker == "mosquitto":
            return write_mosquitto_config(root, name, passwords, self._ports.broker)
        access_path = root / "keys" / "access.json"
        write_access_file(access_path, build_access_list(name, passwords))
        listen = f"{LOOPBACK}:{self._ports.broker}"
        return build_python_argv(
            "node.bus.broker", "--listen", listen, "--access", str(access_path), "--exit-with-stdin"
        )

    def _list_arguments(self, name: str) -> list[str]:
        """Return what ``python -m node.process`` is to be told."""
        options = self.network.options
        return [
            name,
            str(self.network.root),
            f"--executors={options.executors}",
            f"--snapshot-distance={options.snapshot_distance}",
            *(["--sync-mempool"] if options.sync_mempool else []),
        ]

    async def _become_ready(self) -> None:
        await asyncio.gather(*(self._wait_ready(name) for name in self._children))
        for child in self._children.values():
            child.is_vital = False  # from now on the others go on without it
        self.ready.set()

    async def _wait_ready(self, name: str) -> None:
        deadline = time.monotonic() + READY_TIMEOUT_S
        child = self._children[name]
        while True:
            try:
                await self._ping(name)
            except (ControlError, OSError):
                is_late = time.monotonic() > deadline
                if is_late or child.restarts > MAX_START_FAILURES:
                    trouble = (
                        f"was not ready within {READY_TIMEOUT_S:.0f} s" if is_late else "ends again and again"
                    )
                    raise ChildError(
                        f"{name} {trouble}; its last words:\n{child.read_last_words()}\n"
                        f"try: shardyard logs {name} --name {self.network.options.name}"
                    ) from None
                await asyncio.sleep(READY_POLL_S)
            else:
                self._report(name, time.monotonic() - self.started_at)
                return

    async def _ping(self, name: str) -> None:
        if name != BROKER:
            await ask(self.network.get_control_path(name), "ping", timeout_s=1.0)
            return
        _, writer = await asyncio.open_connection(LOOPBACK, self._ports.broker)
        writer.close()

    async def _on_exit(self, child: Child, code: int) -> None:
        self._exits.append({"node": child.name, "code": code, "time": time.time()})
        del self._exits[:-100]
        await self._laboratory.on_exit(child.name)

    def _list_validators(self, name: str) -> list[int]:
        return [] if name == BROKER else list(get_local_validators(self.network, name))

    def _get_child(self, name: str) -> Child:
        try:
            return self._children[name]
        except KeyError:
            raise ChildError(f"node: got {name!r}, expected one of {', '.join(self._children)}") from None

    async def _answer(self, method: str, params: dict[str, Any]) -> Any:
        match method:
            case "ping":
                return {"pid": os.getpid(), "ready": self.ready.is_set()}
            case "stop":
                self.request_stop()
                return {"stopping": list(self._children)}
            case "nodes":
                return [
                    {
                        "node": child.name,
                        "pid": child.pid,
                        "restarts": child.restarts,
                        "age_s": round(time.monotonic() - child.started_at, 3),
                        "enabled": child.enabled,
                        "paused": child.is_paused,
                        "refused": child.has_refused,
                        "validators": self._list_validators(child.name),
                    }
                    for child in self._children.values()
                ]
            case "exits":
                return self._exits
            case "kill":
                self._get_child(params["node"]).kill()
            case "stop-node" | "start-node" | "restart-node":
                child = self._get_child(params["node"])
                self._laboratory.verify_free(child.name)
                if method != "start-node":
                    await child.stop()
                if method != "stop-node":
                    child.start()
            case _ if method in self._laboratory.methods:
                return await self._laboratory.methods[method](params)
            case _:
                raise ControlError(f"method: got {method!r}, expected {_METHODS} or one of the laboratory")
        return {"node": params["node"], "pid": self._get_child(params["node"]).pid}


async def run_foreground(
    network: Network,
    report: Report | None,
    on_ready: Callable[[], None],
    *,
    exit_with_stdin: bool = False,
) -> None:
    """Run ``network`` until SIGINT, SIGTERM or SIGHUP, or, with ``exit_with_stdin``, until standard input closes.

    ``on_ready`` runs in a thread, and may ask the network. What it cannot do is reported at once; the network goes on.
    """
    launcher = Launcher(network, report)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # Started with nohup, it shall outlive its terminal.
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
            loop.add_signal_handler(number, launcher.request_stop)
    if exit_with_stdin:
        loop.add_reader(sys.stdin.fileno(), _on_stdin, loop, launcher)

    async def announce() -> None:
        await launcher.ready.wait()
        try:
            await asyncio.to_thread(on_ready)
        except (ShardyardError, OSError) as error:
            logger.error("the network runs, but what is to be said of it failed: %s", error)  # noqa: TRY400 - a person reads it
        except Exception:
            launcher.request_stop()  # else nobody would hear of it before the network ends
            raise

    announcing = asyncio.create_task(announce(), name="announce")
    try:
        await launcher.run()
    finally:
        announcing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await announcing


def _on_stdin(loop: asyncio.AbstractEventLoop, launcher: Launcher) -> None:
    if not os.read(sys.stdin.fileno(), 4096):
        loop.remove_reader(sys.stdin.fileno())
        launcher.request_stop()


def get_chain_of(node: str) -> str:
    """Return ``beacon`` or ``shard i`` for a node id."""
    chain, _ = parse_node(node)
    return "beacon" if chain == BEACON else f"shard {chain}"
