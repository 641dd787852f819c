"""One real network for all tests that only use it: four shards, a broker, a beacon, started by the command line.

Tests that stop things for good or count restarts make a network of their own with ``start_network``.
"""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import pytest

from node.cli.root import run

ROOT = Path(__file__).resolve().parents[2]
UP_TIMEOUT_S = 60
PROGRAM = "from node.cli import main; main()"


class Told(NamedTuple):
    """What a command did."""

    code: int
    stdout: str
    stderr: str


class CommandLine:
    """``shardyard`` with a home of its own."""

    def __init__(self, home: Path, name: str) -> None:
        self.home = home
        self.name = name
        kept = {key: value for key, value in os.environ.items() if not key.startswith("SHARDYARD_")}
        self.environ = kept | {"SHARDYARD_HOME": str(home), "SHARDYARD_NAME": name}

    def start(self, *arguments: str, stdin: int = subprocess.DEVNULL) -> "subprocess.Popen[str]":
        """Start a command as a process of its own and return that."""
        return subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *arguments],
            cwd=ROOT,
            env=self.environ,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str) -> Told:
        """Run a command in this process, which saves the imports; ``up`` starts processes and needs one of its own."""
        if "up" in arguments:
            process = self.start(*arguments)
            return Told(process.wait(UP_TIMEOUT_S), *process.communicate())
        out, err = io.StringIO(), io.StringIO()
        with patch.dict(os.environ, self.environ, clear=True), redirect_stdout(out), redirect_stderr(err):
            code = run(list(arguments))
        return Told(code, out.getvalue(), err.getvalue())

    def call(self, *arguments: str, code: int = 0) -> Told:
        """Run a command; the test fails with its words when the exit code is another than ``code``."""
        told = self.run(*arguments)
        assert told.code == code, (
            f"shardyard {' '.join(arguments)}\nexit {told.code}, expected {code}\n{told.stdout}\n{told.stderr}"
        )
        return told

    def succeeds(self, *arguments: str) -> bool:
        """Tell whether a command ends with 0."""
        return self.run(*arguments).code == 0

    def read(self, *arguments: str, code: int = 0) -> dict[str, Any]:
        """Run a command with ``--json`` and return its one document."""
        told = self.call(*arguments, "--json", code=code)
        (line,) = (told.stdout or told.stderr).splitlines()
        document: dict[str, Any] = json.loads(line)
        assert document["schema"] == 1
        return document

    def refuse(self, *arguments: str, code: int) -> tuple[str, str]:
        """Run a command that must fail; return its message and its ``try:`` line."""
        told = self.call(*arguments, code=code)
        *_, message, remedy = told.stderr.strip().rpartition("\ntry: ")
        assert message == "\ntry: ", f"no way out is named:\n{told.stderr}"
        return told.stderr.rpartition("\ntry: ")[0], remedy

    @property
    def endpoints(self) -> dict[str, Any]:
        """Ports and URLs of the last start."""
        found: dict[str, Any] = json.loads((self.home / self.name / "endpoints.json").read_text())
        return found

    def get_url(self, shard: int) -> str:
        """JSON-RPC of a shard."""
        url: str = self.endpoints["shards"][shard]["rpc"]
        return url

    def get_heights(self) -> list[int]:
        """Latest height of every shard."""
        return [found["heads"]["latest"]["height"] for found in self.read("shard", "list")["items"]]

    def stop(self) -> None:
        """Stop the network, by force when it does not listen; nothing may outlive a test run."""
        with suppress(FileNotFoundError, KeyError):
            pid = self.endpoints["launcher_pid"]
            self.run("down")
            with suppress(ProcessLookupError):
                os.kill(pid, 0)
                os.kill(pid, signal.SIGKILL)


StartNetwork = Callable[..., CommandLine]


@pytest.fixture(scope="session")
def start_network() -> Iterator[StartNetwork]:
    """``start_network(name, *options)``: a running network in a home of its own, stopped when the tests are over."""
    started: list[CommandLine] = []

    def start(name: str, *options: str) -> CommandLine:
        # Short, because the name of a Unix socket may have 107 bytes at most.
        found = CommandLine(Path(tempfile.mkdtemp(prefix="sy-")), name)
        started.append(found)
        found.call("up", "-d", "--port-base", "0", *options)
        return found

    yield start
    for found in started:
        found.stop()
        shutil.rmtree(found.home, ignore_errors=True)


@pytest.fixture(scope="session")
def network(start_network: StartNetwork) -> CommandLine:
    """The shared network: four shards, blocks twice a second. Leave it running as it was."""
    return start_network("shared", "--shards", "4", "--block-time", "500ms")
