"""One launcher per network: a lock on a file in it, held while the launcher lives, however it ends.

Whoever deletes the network holds it too. The file says who holds it, and, unless that is a launcher, for what.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec

from node.storage import file_locks
from node.storage.file_locks import FileLockedError, lock_file
from shardyard.errors import ShardyardError

LOCK_NAME: Final = "launcher.lock"
_DELETING: Final = "deletes the network"


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
    words = f"{os.getpid()} {_DELETING}" if to_delete else f"{os.getpid()}"
    try:
        descriptor = lock_file(root / LOCK_NAME, words)
    except FileLockedError as error:
        raise _describe_busy(
            root.name, None if error.holder is None else _parse_holder(error.holder)
        ) from None
    try:
        yield
    finally:
        os.close(descriptor)


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


def _parse_holder(words: str) -> Holder:
    pid, _, doing = words.partition(" ")
    return Holder(pid or "unknown", doing == _DELETING)


def find_holder(root: Path) -> Holder | None:
    """Return who has the network at ``root`` now, None when nobody has."""
    words = file_locks.find_holder(root / LOCK_NAME)
    return None if words is None else _parse_holder(words)


def is_held(root: Path) -> bool:
    """Tell whether somebody has the network at ``root`` now: a launcher, or who deletes it."""
    return find_holder(root) is not None
