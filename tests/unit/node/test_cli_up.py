"""What ``up`` refuses before it starts anything, and what other commands say of it."""

import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from node.cli import doctor, network
from node.cli.remedies import name_network
from node.cli.root import run
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


def test_a_command_that_names_its_network_is_left_as_it_is() -> None:
    told = "shardyard up --fresh --name theirs, or another --name; shardyard auditor"
    assert name_network(told, "mine") == told
