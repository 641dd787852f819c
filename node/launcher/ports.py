"""Ports: fixed and printable by default, free ones on request, and a clear word about who holds a busy one."""

import contextlib
import socket

import msgspec

from shardyard.errors import ShardyardError

LOOPBACK = "127.0.0.1"


class PortInUseError(ShardyardError):
    """A port that was asked for is taken; the text names who holds it and what to try."""


class Ports(msgspec.Struct, frozen=True):
    """Every port of a network."""

    broker: int
    rpc: dict[str, int]
    """JSON-RPC port by shard node."""


def is_free(port: int) -> bool:
    """Tell whether ``port`` can be bound on loopback now."""
    with contextlib.closing(socket.socket()) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def describe_holder(port: int) -> str:
    """Return who listens on ``port``, as far as this user may know."""
    import psutil

    try:
        connections = psutil.net_connections(kind="tcp")
    except psutil.AccessDenied:
        connections = []
    for connection in connections:
        if connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr.port == port:
            if connection.pid is None:
                break
            with contextlib.suppress(psutil.Error):
                process = psutil.Process(connection.pid)
                command = " ".join(" ".join(process.cmdline()).split())
                return f"{process.name()} (pid {connection.pid}: {command[:80]})"
    return "another user's process"


def _find_free(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind((LOOPBACK, 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def choose_ports(*, port_base: int, broker_port: int, shards: int, replicas: int, embedded: bool) -> Ports:
    """Return the ports of a network.

    With ``port_base`` 0 all are free ones. Otherwise replica ``r`` of shard ``i`` answers at
    ``port_base + i + r * shards``. Raises ``PortInUseError`` when one is taken.
    """
    names = [f"shard-{shard}-{replica}" for replica in range(replicas) for shard in range(shards)]
    if port_base == 0:
        free = _find_free(len(names) + 1)
        return Ports(broker=free[0], rpc=dict(zip(names, free[1:], strict=True)))
    ports = Ports(broker=broker_port, rpc={name: port_base + offset for offset, name in enumerate(names)})
    wanted = [("the broker", ports.broker)] if embedded and broker_port else []
    wanted += [(f"JSON-RPC of {name}", port) for name, port in ports.rpc.items()]
    for what, port in wanted:
        if not is_free(port):
            raise PortInUseError(
                f"port {port} for {what} is taken by {describe_holder(port)}; "
                "try: shardyard up --port-base 0   (picks free ports for everything)"
            )
    return ports if broker_port else Ports(broker=_find_free(1)[0], rpc=ports.rpc)
