"""What ``up`` refuses before it starts anything, and what other commands say of it."""

import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from node.cli import doctor, network
from node.cli.root import run
from node.config import name_network
from shardyard.errors import ShardyardError


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port that is taken, and at which nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


def test_network_is_not_started_for_a_broker_that_does_not_answer(
    home: Path, closed_port: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started: list[object] = []
    monkeypatch.setattr(network, "_start_detached", lambda *found, **_: started.append(found))
    url = f"mqtt://127.0.0.1:{closed_port}"
    flags = ["-s", "1", "--seed", "1", "--port-base", "0"]
    assert run(["up", "-d", *flags, "--broker", url]) == 3
    told = capsys.readouterr().err
    assert f"error: broker: nobody answers at {url} (Connection refused)" in told
    assert told.endswith("try: start it there, or --broker embedded\n")
    assert run(["up", "-d", *flags, "--broker", "http://127.0.0.1"]) == 2
    assert not started
    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"mqtt://127.0.0.1:{listening.getsockname()[1]}"
        assert run(["up", "-d", *flags, "--broker", url]) == 0
    assert len(started) == 1


@pytest.mark.parametrize("is_stuck", [False, True])
@pytest.mark.parametrize(
    ("trouble", "code"),
    [(KeyboardInterrupt(), 130), (ShardyardError("it is damaged"), 1)],
    ids=["Ctrl-C", "error"],
)
def test_a_start_that_is_given_up_waits_for_the_launcher_to_end(
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    trouble: BaseException,
    code: int,
    is_stuck: bool,
) -> None:
    told: list[str] = []

    class Launcher:
        pid = 7

        def terminate(self) -> None:
            told.append("terminate")

        def wait(self, timeout: float) -> int:
            told.append("wait")
            if is_stuck:
                raise subprocess.TimeoutExpired("launcher", timeout)
            return 0

    def fail(*_: object) -> bool:
        raise trouble

    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: Launcher())
    monkeypatch.setattr(network, "_is_ready", fail)
    assert run(["up", "-d", "-s", "1", "--seed", "1", "--port-base", "0", "--name", "mine"]) == code
    assert told == ["terminate", "wait"]
    words = "the launcher (pid 7) was told to stop and is still there after 15 s; try: shardyard logs launcher --name mine"
    assert (words in capsys.readouterr().err) is is_stuck


@pytest.mark.parametrize(
    ("kind", "remedy"), [("external", "start it there"), ("embedded", "shardyard node restart broker")]
)
def test_doctor_has_only_a_broker_of_ours_restarted(closed_port: int, kind: str, remedy: str) -> None:
    broker = {"kind": kind, "url": f"mqtt://127.0.0.1:{closed_port}"}
    session = SimpleNamespace(endpoints={"broker": broker}, name_flag="")
    (found,) = doctor._check_broker(session, {})  # type: ignore[arg-type]
    assert (found.state, found.remedy) == ("wrong", remedy)


@pytest.mark.parametrize(
    ("words", "flag"),
    [
        (["--name", "mine"], " --name mine"),
        (["--name=mine"], " --name mine"),
        (["-c", "net.toml"], " --name theirs"),
        ([], ""),
    ],
)
def test_what_nodes_and_files_advise_is_for_the_network_that_was_meant(
    home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    flag: str,
) -> None:
    def fail(*_: object) -> None:
        raise ShardyardError("it is damaged; try: shardyard audit, then shardyard up --fresh")

    monkeypatch.chdir(tmp_path)
    Path("net.toml").write_text('name = "theirs"\n')
    monkeypatch.setattr(network, "resolve_options", fail)
    assert run(["up", *words]) == 1
    assert capsys.readouterr().err.endswith(f"try: shardyard audit{flag}, then shardyard up --fresh{flag}\n")


@pytest.mark.parametrize(
    "told",
    [
        "shardyard up --fresh --name theirs, or another --name; shardyard auditor",
        "shardyard validator import shard-0-0 --name theirs with the newest export",
        "shardyard fault loss --help",
        "shardyard sim replay --seed 3",
        "shardyard config show",
    ],
)
def test_a_command_that_names_its_network_or_has_none_is_left_as_it_is(told: str) -> None:
    assert name_network(told, "mine") == told


@pytest.mark.parametrize(
    ("told", "named"),
    [
        ("data: process 7 has it open; try: shardyard status", "shardyard status --name mine"),
        ("try: stop that process, or shardyard validator list", "shardyard validator list --name mine"),
        (
            "is free; try: shardyard up --port-base 0   (picks",
            "shardyard up --port-base 0 --name mine   (picks",
        ),
        ("try: shardyard up --fresh, or restore it", "shardyard up --fresh --name mine, or restore it"),
        (
            "shardyard up --fresh to start anew, or --name for",
            "shardyard up --fresh --name mine to start anew, or",
        ),
        ("the server died; try: shardyard logs launcher", "shardyard logs launcher --name mine"),
        (
            "shardyard validator export NODE -o FILE, delete",
            "shardyard validator export --name mine NODE -o FILE,",
        ),
        (
            "or for good, then shardyard validator resume, as",
            "then shardyard validator resume --name mine, as",
        ),
        ("are both 1; try: shardyard tx send --shard 1", "shardyard tx send --shard 1 --name mine"),
        (
            "shardyard status, or shardyard down --name mine",
            "shardyard status --name mine, or shardyard down --name",
        ),
    ],
)
def test_a_command_that_names_no_network_means_the_one_that_was_meant(told: str, named: str) -> None:
    found = name_network(told, "mine")
    assert named in found
    assert name_network(found, "mine") == found


def test_what_is_tried_when_nobody_knows_better_means_the_network_too(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise ShardyardError("it went wrong")

    monkeypatch.setattr(network, "resolve_options", fail)
    assert run(["up", "--name", "mine"]) == 1
    assert capsys.readouterr().err == "error: it went wrong\ntry: shardyard doctor --name mine\n"
