"""Supervision: one child process per node, restarted when it dies, stopped in order.

A child's standard input is a pipe that nobody writes to: when the launcher dies, however it dies, the pipe closes and
the child exits. A child that keeps dying is restarted ever more slowly and its last words are shown; a child that refused
its configuration (exit status 2) is not restarted at all: that ends a network which is only coming up, and one that runs
goes on without the child until a person starts it again.
"""

import asyncio
import contextlib
import logging
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Protocol

from node.launcher.log_files import rotate
from shardyard.errors import ShardyardError

RESTART_DELAYS_S = (0.0, 0.2, 0.5, 1.0, 2.0, 5.0)
STABLE_S = 2.0
"""A child that lived this long starts again at once, however often it was killed: nothing it does wrong takes so long."""
STOP_TIMEOUT_S = 5.0
EXIT_REFUSED = 2
EXIT_NOT_STARTED = os.EX_OSERR
"""What counts as the end of a process that the system would not start."""


logger = logging.getLogger("shardyard.supervisor")


def compute_restart_delay(failures: int, lived_s: float) -> tuple[int, float]:
    """Return how many short lives in a row a child has behind it, after one of ``lived_s``, and the seconds to wait now."""
    if lived_s >= STABLE_S:
        return 0, RESTART_DELAYS_S[0]
    return failures + 1, RESTART_DELAYS_S[min(failures + 1, len(RESTART_DELAYS_S) - 1)]


class ChildError(ShardyardError):
    """A child cannot run."""


class Process(Protocol):
    """A process of ours, as ``asyncio.subprocess`` has them."""

    @property
    def pid(self) -> int:
        """Process id."""
        ...

    @property
    def returncode(self) -> int | None:
        """Exit status, or the number of its signal, negative; None while it runs."""
        ...

    async def wait(self) -> int:
        """Return its exit status, once it has ended."""
        ...

    def terminate(self) -> None:
        """Send SIGTERM; raises ``ProcessLookupError`` when it has ended."""
        ...

    def kill(self) -> None:
        """Send SIGKILL; raises ``ProcessLookupError`` when it has ended."""
        ...


Spawn = Callable[[int, bool], Awaitable[Process]]
"""Starts a process whose output goes to a descriptor; it may be told that its disk is full. Raises ``OSError`` when the system
has no room for another process, and ``ChildError`` when what starts processes fails again and again."""


class Child:
    """One supervised process."""

    def __init__(self, name: str, spawn: Spawn, log_path: Path, name_flag: str = "") -> None:
        self.name = name
        self._name_flag = name_flag
        """What a command line needs to mean the network of this child."""
        self.restarts = 0
        self.started_at = 0.0
        self.enabled = True
        self.is_paused = False
        self.is_vital = True
        """Whether the others are to end when it refuses its configuration; else it alone stays down."""
        self.has_refused = False
        """Whether it is down because it refused its configuration."""
        self._is_disk_full = False
        self._spawn = spawn
        self._log_path = log_path
        self._process: Process | None = None
        self._enable = asyncio.Event()
        self._enable.set()

    @property
    def pid(self) -> int | None:
        """Process id while it runs."""
        return self._process.pid if self._process is not None and self._process.returncode is None else None

    async def run(self, on_exit: Callable[["Child", int], Awaitable[None]]) -> None:
        """Keep the process running until cancelled; raises ``ChildError`` when it is vital and refuses its configuration."""
        failures = 0
        try:
            while True:
                await self._enable.wait()
                code = await self._run_once()
                if not self.enabled:
                    continue
                await on_exit(self, code)
                if code == EXIT_REFUSED:
                    self._hold_refused()
                    failures = 0
                    continue
                failures, delay_s = compute_restart_delay(failures, time.monotonic() - self.started_at)
                self.restarts += code != EXIT_NOT_STARTED
                await asyncio.sleep(delay_s)
        finally:
            await self._terminate()

    def _hold_refused(self) -> None:
        words = f"{self.name} refused to start:\n{self.read_last_words()}"
        if self.is_vital:
            raise ChildError(words)
        self.has_refused = True
        self.enabled = False
        self._enable.clear()
        logger.error(
            "%s\nit stays down; try: shardyard node start %s%s, once that is repaired",
            words,
            self.name,
            self._name_flag,
        )

    async def _run_once(self) -> int:
        self.started_at = time.monotonic()
        with contextlib.suppress(OSError):
            rotate(self._log_path)
        try:
            with self._log_path.open("ab") as log:
                self._process = await self._spawn(log.fileno(), self._is_disk_full)
        except OSError as error:  # too many processes or open files, or no memory: another time it may work
            return self._note_failed_start(error)
        except ChildError as error:
            if self.is_vital:
                raise
            return self._note_failed_start(error)
        self.started_at = time.monotonic()
        if not self.enabled:  # it was stopped while it was being started
            await self._terminate()
        if self._is_disk_full:
            self.set_disk_full(full=True)  # for those that do not take it with them from their start
        code = await self._process.wait()
        self.is_paused = False
        return code

    def _note_failed_start(self, error: Exception) -> int:
        """Write a line about it into the child's log, if that is possible; return what counts as its end."""
        with contextlib.suppress(OSError), self._log_path.open("ab", 0) as log:
            log.write(f"{self.name} could not be started: {error}; it is tried again\n".encode())
        return EXIT_NOT_STARTED

    def read_last_words(self, lines: int = 8) -> str:
        """Return the end of the child's log."""
        try:
            with self._log_path.open("rb") as file:
                file.seek(0, os.SEEK_END)
                file.seek(max(0, file.tell() - 8192))
                return "\n".join(file.read().decode(errors="replace").splitlines()[-lines:])
        except FileNotFoundError:
            return ""

    async def stop(self) -> None:
        """Stop the process and keep it stopped."""
        self.enabled = self.has_refused = False
        self._enable.clear()
        await self._terminate()

    def start(self) -> None:
        """Let a stopped process run again."""
        self.enabled, self.has_refused = True, False
        self._enable.set()

    def kill(self) -> None:
        """SIGKILL the process; supervision starts it again."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        if self.pid is None:
            raise ChildError(f"{self.name} is not running")
        try:
            os.kill(self.pid, number)
        except ProcessLookupError:
            raise ChildError(f"{self.name} has just ended") from None

    def kill_and_hold(self) -> None:
        """SIGKILL the process and keep it down until ``start``."""
        self.kill()
        self.enabled = False
        self._enable.clear()

    def pause(self) -> None:
        """SIGSTOP the process: it keeps its sockets and files and does nothing."""
        self._signal(signal.SIGSTOP)
        self.is_paused = True

    def resume(self) -> None:
        """Let a paused process go on."""
        if self.is_paused and self.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGCONT)
        self.is_paused = False

    def set_disk_full(self, *, full: bool) -> None:
        """Let every write of the process to a file fail from now on, in its next lives too; or let them pass again."""
        import psutil

        limit = getattr(psutil, "RLIMIT_FSIZE", None)
        if limit is None:
            raise ChildError("a full disk: this system cannot limit another process's files, expected Linux")
        self._is_disk_full = full
        with contextlib.suppress(psutil.NoSuchProcess):
            if self.pid is not None:
                process = psutil.Process(self.pid)
                _, hard = process.rlimit(limit)
                try:
                    process.rlimit(limit, (0 if full else hard, hard))
                except psutil.AccessDenied as error:
                    raise ChildError(f"{self.name}: this user may not limit its files ({error})") from error

    async def _terminate(self) -> None:
        process = self._process
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        self.resume()  # asleep, it would not hear the signal
        try:
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await process.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


def build_program(argv: list[str], environ: Mapping[str, str]) -> Spawn:
    """Return what starts a program of its own, in a session of its own."""

    async def spawn(output: int, is_disk_full: bool) -> Process:
        del is_disk_full
        return await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.PIPE,
            stdout=output,
            stderr=output,
            env=environ,
            start_new_session=True,
        )

    return spawn


def build_python_argv(module: str, *arguments: str) -> list[str]:
    """Return the command line that runs ``module`` in this interpreter; ``-P`` keeps the working directory out of it."""
    return [sys.executable, "-P", "-m", module, *arguments]
