"""One launcher per network: a lock on a file in it, held while the launcher lives, however it ends."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from shardyard.errors import ShardyardError

RETRY_FOR_S: Final = 0.25
"""How long a held lock is tried again: whoever only looks at it holds it for far less."""
RETRY_EVERY_S: Final = 0.01
_LOCK: Final = "launcher.lock"


class NetworkBusyError(ShardyardError):
    """Another launcher holds this network."""


@contextmanager
def lock_network(root: Path) -> Iterator[None]:
    """Hold the launcher lock of the network at ``root``; raises ``NetworkBusyError`` naming who has it, and ``OSError``."""
    descriptor = _lock(root)
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(descriptor)


def _lock(root: Path) -> int:
    path = root / _LOCK
    give_up_at = time.monotonic() + RETRY_FOR_S
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_named(descriptor, path):
                return descriptor
        except BlockingIOError as error:
            holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
            os.close(descriptor)
            if time.monotonic() < give_up_at:
                time.sleep(RETRY_EVERY_S)
                continue
            raise NetworkBusyError(
                f"network {root.name!r} is already running (launcher pid {holder or 'unknown'}); "
                f"try: shardyard status --name {root.name}, or shardyard down --name {root.name}"
            ) from error
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # the network was deleted between our opening and locking it


def _is_named(descriptor: int, path: Path) -> bool:
    try:
        named = path.stat()
    except FileNotFoundError:
        return False
    held = os.fstat(descriptor)
    return (held.st_dev, held.st_ino) == (named.st_dev, named.st_ino)


def is_held(root: Path) -> bool:
    """Tell whether a launcher has the network at ``root`` now.

    To look takes a lock that others who look share, and for which a starting launcher waits.
    """
    try:
        descriptor = os.open(root / _LOCK, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
