"""Exclusive locks on files that say who holds them, and that their holder may remove or rename.

A lock is the kernel's and ends with its process. Whoever only looks takes a shared one for a moment, so a held lock is tried
again for a while. A file that was removed or made anew between opening and locking it locks nothing: then the next one
of its name is tried.
"""

import fcntl
import os
import time
from pathlib import Path
from typing import Final

from node.storage.frames import write_all

RETRY_FOR_S: Final = 0.25
RETRY_EVERY_S: Final = 0.01
_HOLDER_BYTES: Final = 4096


class FileLockedError(Exception):
    """Somebody else holds the lock; ``holder`` is what they wrote, None when the file was only made anew again and again."""

    def __init__(self, holder: str | None) -> None:
        super().__init__(f"held by {holder or 'others, one after the other'}")
        self.holder = holder


def lock_file(path: Path, holder: str) -> int:
    """Lock the file at ``path``, creating it if it is missing, and write ``holder`` into it; return its descriptor.

    Closing the descriptor gives the lock back. Raises ``FileLockedError`` and ``OSError``.
    """
    give_up_at = time.monotonic() + RETRY_FOR_S
    while True:
        found = None
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if is_named(descriptor, path):
                os.ftruncate(descriptor, 0)
                write_all(descriptor, holder.encode())
                return descriptor
        except BlockingIOError:
            found = _read_holder(descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        if time.monotonic() >= give_up_at:
            raise FileLockedError(found)
        time.sleep(RETRY_EVERY_S)


def find_holder(path: Path) -> str | None:
    """Return what the holder of a lock wrote, None when nobody holds it."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
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


def is_named(descriptor: int, path: Path) -> bool:
    """Tell whether the open file is the one that ``path`` names now."""
    try:
        named = path.stat()
    except FileNotFoundError:
        return False
    held = os.fstat(descriptor)
    return (held.st_dev, held.st_ino) == (named.st_dev, named.st_ino)


def _read_holder(descriptor: int) -> str:
    return os.pread(descriptor, _HOLDER_BYTES, 0).decode(errors="replace").strip()
