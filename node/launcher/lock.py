"""One launcher per network: a lock on a file in it, held while the launcher lives, however it ends."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shardyard.errors import ShardyardError


class NetworkBusyError(ShardyardError):
    """Another launcher holds this network."""


@contextmanager
def lock_network(root: Path) -> Iterator[None]:
    """Hold the launcher lock of the network at ``root``; raises ``NetworkBusyError`` naming who has it."""
    descriptor = os.open(root / "launcher.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
            raise NetworkBusyError(
                f"network {root.name!r} is already running (launcher pid {holder or 'unknown'}); "
                f"try: shardyard status --name {root.name}, or shardyard down --name {root.name}"
            ) from error
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(descriptor)


def is_held(root: Path) -> bool:
    """Tell whether a launcher has the network at ``root`` now."""
    with contextlib.ExitStack() as stack:
        try:
            descriptor = os.open(root / "launcher.lock", os.O_RDWR)
        except FileNotFoundError:
            return False
        stack.callback(os.close, descriptor)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
        return False
