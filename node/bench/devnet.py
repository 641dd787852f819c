"""A network of real processes in a home of its own, for demo, benches and tests: started, killed in parts, stopped for sure.

The launcher is a child of this process in a session of its own, so Ctrl-C reaches us alone and we decide in which order
things end. Ports are chosen once: a launcher that is started again after a kill answers where the old one did.
"""

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from node.config import Options, check_options
from node.control import ControlError, ask
from node.launcher.ports import find_free
from node.launcher.supervisor import build_python_argv
from node.network import Network, create_network
from shardyard.errors import ShardyardError

READY_TIMEOUT_S = 40.0
STOP_TIMEOUT_S = 20.0
POLL_S = 0.02
LAUNCHER = "launcher"


class DevnetError(ShardyardError):
    """The network did not do what it was told; the text ends with its last words."""


class Devnet:
    """A network below ``home``. Entering starts it, leaving stops it; its files stay."""

    def __init__(self, home: Path, options: Options) -> None:
        self.home = home
        nodes = options.shards * options.replicas
        base, *_ = find_free(nodes + 1)
        self.options = msgspec.structs.replace(options, port_base=base, broker_port=base + nodes)
        check_options(self.options)
        self.network: Network = create_network(home / options.name, self.options)
        self.starts: list[float] = []
        """Seconds each start took until everything was ready."""
        self._launcher: subprocess.Popen[bytes] | None = None

    @property
    def urls(self) -> list[str]:
        """JSON-RPC of the first replica of each shard, in order of shard."""
        return [f"http://127.0.0.1:{self.options.port_base + shard}" for shard in range(self.options.shards)]

    @property
    def processes(self) -> list[str]:
        """Every process by name, the launcher last."""
        return ["broker", *self.network.nodes, LAUNCHER]

    @property
    def launcher_pid(self) -> int:
        """Process id of the launcher; raises ``DevnetError`` when it does not run."""
        if self._launcher is None or self._launcher.poll() is not None:
            raise DevnetError("the launcher does not run")
        return self._launcher.pid

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> float:
        """Start the launcher and return after how many seconds everything was ready."""
        started = time.monotonic()
        self.spawn()
        await self.wait_ready()
        self.starts.append(time.monotonic() - started)
        return self.starts[-1]

    def spawn(self) -> None:
        """Start the launcher and do not wait; it stops the network when this process ends, however that ends."""
        arguments = msgspec.json.encode(self.options).decode()
        with self.network.get_log_path(LAUNCHER).open("ab") as log:
            self._launcher = subprocess.Popen(
                build_python_argv("node.launcher", str(self.network.root), arguments, "--exit-with-stdin"),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    async def wait_ready(self) -> None:
        """Return when the launcher says that everything answers."""
        deadline = time.monotonic() + READY_TIMEOUT_S
        while time.monotonic() < deadline:
            pid = self.launcher_pid_or_none()
            if pid is None:
                raise DevnetError(f"the launcher ended; its last words:\n{self._read_last_words()}")
            with contextlib.suppress(ControlError):
                if await self.ask(LAUNCHER, "ping") == {"pid": pid, "ready": True}:
                    return
            await asyncio.sleep(POLL_S)
        raise DevnetError(f"not ready within {READY_TIMEOUT_S:.0f} s; last words:\n{self._read_last_words()}")

    def launcher_pid_or_none(self) -> int | None:
        """Process id of the launcher, None when it does not run."""
        return None if self._launcher is None or self._launcher.poll() is not None else self._launcher.pid

    def _read_last_words(self) -> str:
        with contextlib.suppress(OSError):
            lines = self.network.get_log_path(LAUNCHER).read_text(errors="replace").splitlines()
            return "\n".join(lines[-8:])
        return ""

    async def ask(self, process: str, method: str, **params: object) -> Any:
        """Ask the control socket of a process; raises ``ControlError``."""
        return await ask(self.network.get_control_path(process), method, timeout_s=2.0, **params)

    async def get_pids(self) -> dict[str, int]:
        """Return the process ids of everything that runs."""
        nodes = await self.ask(LAUNCHER, "nodes")
        pids = {node["node"]: node["pid"] for node in nodes if node["pid"]}
        return pids | {LAUNCHER: self.launcher_pid}

    async def kill(self, process: str) -> None:
        """SIGKILL a process. Supervision starts it again; a killed launcher takes all down and is started anew."""
        if process != LAUNCHER:
            await self.ask(LAUNCHER, "kill", node=process)
            return
        os.kill(self.launcher_pid, signal.SIGKILL)
        assert self._launcher is not None, "it has a process id"
        self._launcher.wait()
        _close_pipe(self._launcher)
        self.spawn()

    async def stop(self) -> None:
        """Stop everything; returns when the launcher is gone, whatever that takes."""
        launcher = self._launcher
        if launcher is None:
            return
        if launcher.poll() is None:
            launcher.terminate()
            deadline = time.monotonic() + STOP_TIMEOUT_S
            try:
                while launcher.poll() is None and time.monotonic() < deadline:  # noqa: ASYNC110 - another process ends
                    await asyncio.sleep(POLL_S)
            finally:
                if launcher.poll() is None:
                    launcher.kill()  # its children see their pipe close and leave by themselves
                    launcher.wait()
        _close_pipe(launcher)
        self._launcher = None

    def copy_logs(self, folder: Path) -> None:
        """Copy the logs of all processes to ``folder``."""
        shutil.copytree(self.network.root / "logs", folder, dirs_exist_ok=True)


def _close_pipe(launcher: subprocess.Popen[bytes]) -> None:
    assert launcher.stdin is not None, "it was started with a pipe"
    launcher.stdin.close()
