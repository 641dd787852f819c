"""Ports: fixed and printable by default, free ones on request, and a clear word about who holds a busy one."""

import contextlib
import errno
import random
import socket
from collections.abc import Mapping

import msgspec

from shardyard.errors import ConfigError, ShardyardError

LOOPBACK = "127.0.0.1"
MAX_PORT = 65_535
FREE_PORTS = (20_000, 30_000)
"""Where free ones are looked for: below those that systems give to outgoing connections, one of which could take a port before
its node listens, or while the node is down."""
TRIES = 200


class PortInUseError(ShardyardError):
    """A port that was asked for is taken; the text names who holds it and what to try."""


class Ports(msgspec.Struct, frozen=True):
    """Every port of a network."""

    broker: int
    rpc: dict[str, int]
    """JSON-RPC port by shard node."""


def _try_to_bind(port: int) -> OSError | None:
    with contextlib.closing(socket.socket()) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError as error:
            return error
    return None


def is_free(port: int) -> bool:
    """Tell whether ``port`` can be bound on loopback now."""
    return port <= MAX_PORT and _try_to_bind(port) is None


def find_obstacle(port: int) -> str:
    """Return why ``port`` cannot be bound on loopback now; an empty text when it can."""
    if port > MAX_PORT:
        return f"beyond {MAX_PORT}, the last there is"
    error = _try_to_bind(port)
    if error is None:
        return ""
    if error.errno == errno.EADDRINUSE:
        return f"taken by {describe_holder(port)}"
    return f"not to be had ({error.strerror})"


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


def find_free(count: int) -> list[int]:
    """Return ``count`` neighbouring ports that are free now; raises ``PortInUseError`` when there are none."""
    first, end = FREE_PORTS
    for _ in range(TRIES):
        base = random.SystemRandom().randrange(first, max(first + 1, end - count))
        if all(is_free(port) for port in range(base, base + count)):
            return list(range(base, base + count))
    raise PortInUseError(
        f"no {count} neighbouring ports are free in {first}..{end}; try: stop other networks"
    )


def lay_out_ports(
    *, port_base: int, broker_port: int, shards: int, replicas: int, embedded: bool
) -> dict[str, int]:
    """Return the JSON-RPC port of every shard node; replica ``r`` of shard ``i`` answers at ``port_base + i + r * shards``.

    With ``port_base`` 0 all are 0 and mean a free one. Raises ``ConfigError`` when they cannot be, whoever has them.
    """
    names = [f"shard-{shard}-{replica}" for replica in range(replicas) for shard in range(shards)]
    if port_base == 0:
        return dict.fromkeys(names, 0)
    rpc = {name: port_base + offset for offset, name in enumerate(names)}
    _verify_apart(rpc, broker_port if embedded else 0)
    return rpc


def choose_ports(*, port_base: int, broker_port: int, shards: int, replicas: int, embedded: bool) -> Ports:
    """Return the ports of a network.

    Raises ``PortInUseError`` when one that was asked for is taken, and ``ConfigError`` when they cannot be.
    """
    rpc = lay_out_ports(
        port_base=port_base, broker_port=broker_port, shards=shards, replicas=replicas, embedded=embedded
    )
    if port_base == 0:
        free = find_free(len(rpc) + 1)
        return Ports(broker=free[0], rpc=dict(zip(rpc, free[1:], strict=True)))
    wanted = [("the broker", broker_port)] if embedded and broker_port else []
    wanted += [(f"JSON-RPC of {name}", port) for name, port in rpc.items()]
    for what, port in wanted:
        if obstacle := find_obstacle(port):
            raise PortInUseError(
                f"port {port} for {what} is {obstacle}; "
                "try: shardyard up --port-base 0   (picks free ports for everything)"
            )
    if broker_port:
        return Ports(broker=broker_port, rpc=rpc)
    free = find_free(len(rpc) + 1)  # one of these at least is none of the others'
    return Ports(broker=next(port for port in free if port not in rpc.values()), rpc=rpc)


def _verify_apart(rpc: Mapping[str, int], broker_port: int) -> None:
    """Raise ``ConfigError`` for ports that cannot be, and for one that two processes would listen on."""
    first, last = min(rpc.values()), max(rpc.values())
    if last > MAX_PORT:
        raise ConfigError(
            f"port_base: got {first} for {len(rpc)} nodes, the last of which would answer at {last}, "
            f"expected at most {MAX_PORT + 1 - len(rpc)}; try: --port-base 0   (picks free ports for everything)"
        )
    if broker_port in rpc.values():
        node = next(name for name, port in rpc.items() if port == broker_port)
        raise ConfigError(
            f"broker_port: got {broker_port}, which is the JSON-RPC port of {node} too, expected one outside "
            f"{first}..{last}; try: --broker-port {last + 1 if last < MAX_PORT else first - 1}, or another --port-base"
        )
