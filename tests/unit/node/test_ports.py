"""Ports: which are chosen, and what is said of those that cannot be had."""

import errno
import os
import socket
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from node.launcher.ports import (
    PortInUseError,
    choose_ports,
    describe_holder,
    find_free,
    find_obstacle,
    is_free,
)
from shardyard.errors import ConfigError


def choose(**more: Any) -> Any:
    wanted = {"port_base": 0, "broker_port": 0, "shards": 2, "replicas": 2, "embedded": True}
    return choose_ports(**{**wanted, **more})


def test_free_ports_are_different_ones() -> None:
    ports = choose()
    assert len({ports.broker, *ports.rpc.values()}) == 5
    assert all(map(is_free, ports.rpc.values()))


def test_free_ports_are_none_that_an_outgoing_connection_could_take() -> None:
    """One took the port of a node between its choice and its start."""
    ports = choose()
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert max(ports.broker, *ports.rpc.values()) < lowest


def test_that_no_port_is_free_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node.launcher.ports.is_free", lambda _: False)
    with pytest.raises(PortInUseError, match=r"no 5 neighbouring ports are free in 20000\.\.30000; try: "):
        choose()


def test_fixed_ports_are_first_replicas_first() -> None:
    base, *_ = find_free(4)
    ports = choose(port_base=base, embedded=False)
    assert ports.rpc == {
        "shard-0-0": base,
        "shard-1-0": base + 1,
        "shard-0-1": base + 2,
        "shard-1-1": base + 3,
    }


def test_busy_port_names_its_holder_and_the_way_out() -> None:
    with closing(socket.socket()) as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        assert not is_free(port)
        assert f"pid {os.getpid()}" in describe_holder(port)
        assert "\n" not in describe_holder(port)
        with pytest.raises(PortInUseError, match=r"try: shardyard up --port-base 0"):
            choose(port_base=port)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"port_base": 18_543, "broker_port": 18_545, "shards": 4, "replicas": 1},
            "port of shard-2-0 too, expected one outside 18543..18546; try: --broker-port 18547, or another --port-base",
        ),
        (
            {"port_base": 65_000, "shards": 256, "replicas": 3},
            "for 768 nodes, the last of which would answer at 65767, expected at most 64768; try: --port-base 0",
        ),
    ],
)
def test_ports_that_meet_or_are_none_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as raised:
        choose(**options)
    assert words in str(raised.value)


def test_port_of_an_external_broker_may_be_any() -> None:
    base, *_ = find_free(4)
    assert choose(port_base=base, broker_port=base, embedded=False).rpc["shard-0-0"] == base


def test_port_that_is_free_and_not_to_be_had_is_not_called_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(socket.socket, "bind", refuse)
    assert find_obstacle(80) == "not to be had (Permission denied)"
    assert find_obstacle(65_536) == "beyond 65535, the last there is"
    assert not is_free(65_536)
