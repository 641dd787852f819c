"""What ``up`` refuses before it starts anything, and what other commands say of it."""

import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from node.cli import doctor, network
from node.cli.root import run


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
