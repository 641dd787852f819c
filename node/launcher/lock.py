"""One launcher per network: a lock on a file in it, held while the launcher lives, however it ends.

Whoever deletes the network holds it too. The file says who holds it, and, unless that is a launcher, for what.
"""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec

from shardyard.errors import ShardyardError

RETRY_FOR_S: Final = 0.25
"""How long a held lock is tried again: whoever only looks at it holds it for far less."""
RETRY_EVERY_S: Final = 0.01
LOCK_NAME: Final = "launcher.lock"
_DELETING: Final = "deletes the network"
_HOLDER_BYTES: Final = 64


class Holder(msgspec.Struct, frozen=True):
    """Who has a network, as far as its lock says."""

    pid: str = "unknown"
    is_deleting: bool = False

    def describe(self) -> str:
        """Return it in words."""
        return f"pid {self.pid}, which {_DELETING}" if self.is_deleting else f"launcher pid {self.pid}"


class NetworkBusyError(ShardyardError):
    """Somebody else holds this network; ``holder`` is None when it was only made anew again and again."""

    def __init__(self, message: str, holder: Holder | None = None) -> None:
        super().__init__(message)
        self.holder = holder


@contextmanager
def lock_network(root: Path, *, to_delete: bool = False) -> Iterator[None]:
    """Hold the launcher lock of the network at ``root``; raises ``NetworkBusyError`` naming who has it, and ``OSError``."""
    descriptor = _lock(root)
    try:
        words = f"{os.getpid()} {_DELETING}" if to_delete else f"{os.getpid()}"
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, words.encode(), 0)
        yield
    finally:
        os.close(descriptor)


def _lock(root: Path) -> int:
    path = root / LOCK_NAME
    give_up_at = time.monotonic() + RETRY_FOR_S
    while True:
        holder = None
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_named(descriptor, path):
                return descriptor
        except BlockingIOError:
            holder = _read_holder(descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        os.close(
            descriptor
        )  # held by somebody, or the network was deleted between our opening and locking it
        if time.monotonic() >= give_up_at:
            raise _describe_busy(root.name, holder)
        time.sleep(RETRY_EVERY_S)


def _describe_busy(name: str, holder: Holder | None) -> NetworkBusyError:
    if holder is None or holder.is_deleting:
        by = f" by process {holder.pid}" if holder is not None else ""
        return NetworkBusyError(
            f"network {name!r} is being deleted{by}; try: the same again when that is done", holder
        )
    return NetworkBusyError(
        f"network {name!r} is already running ({holder.describe()}); "
        f"try: shardyard status --name {name}, or shardyard down --name {name}",
        holder,
    )


def _is_named(descriptor: int, path: Path) -> bool:
    try:
        named = path.stat()
    except FileNotFoundError:
        return False
    held = os.fstat(descriptor)
    return (held.st_dev, held.st_ino) == (named.st_dev, named.st_ino)


def _read_holder(descriptor: int) -> Holder:
    pid, _, doing = os.pread(descriptor, _HOLDER_BYTES, 0).decode(errors="replace").strip().partition(" ")
    return Holder(pid or "unknown", doing == _DELETING)


def find_holder(root: Path) -> Holder | None:
    """Return who has the network at ``root`` now, None when nobody has.

    To look takes a lock that others who look share, and for which a starting launcher waits.
    """
    try:
        descriptor = os.open(root / LOCK_NAME, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _read_holder(descriptor)
    else:
        return None
    finally:
        os.close(descriptor)


def is_held(root: Path) -> bool:
    """Tell whether somebody has the network at ``root`` now: a launcher, or who deletes it."""
    return find_holder(root) is not None
