"""Log files of a network: kept small by the launcher, also while processes write to them.

Whoever writes has the file open and appends to it. So a file that has grown is copied and then emptied where it is, and its
writer goes on at the new end. What is written between the last byte copied and the emptying is lost: microseconds of a log.
"""

import asyncio
import contextlib
import logging
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Final

LOG_LIMIT_BYTES: Final = 16 * 1024 * 1024
CHECK_S: Final = 5.0

_log = logging.getLogger(__name__)


def get_older(path: Path) -> Path:
    """Return where what was in ``path`` before it was emptied is kept."""
    return path.with_name(path.name + ".1")


def rotate(path: Path, limit_bytes: int = LOG_LIMIT_BYTES) -> bool:
    """Empty ``path`` if it has more than ``limit_bytes``; tell whether it had. What was in it replaces what was kept before.

    Raises ``OSError`` when it cannot be kept, as on a full disk; ``path`` is left as it is then.
    """
    with contextlib.suppress(FileNotFoundError), path.open("r+b") as file:
        if os.fstat(file.fileno()).st_size <= limit_bytes:
            return False
        fresh = path.with_name(path.name + ".new")
        try:
            with fresh.open("wb") as copy:
                shutil.copyfileobj(file, copy)
        except OSError:
            fresh.unlink(missing_ok=True)
            raise
        file.truncate(0)
        fresh.replace(get_older(path))
        return True
    return False


async def keep_small(paths: Iterable[Path]) -> None:
    """Rotate each of ``paths`` whenever it has grown, until cancelled."""
    watched = dict.fromkeys(paths, True)
    while True:
        await asyncio.sleep(CHECK_S)
        for path, was_fine in watched.items():
            try:
                await asyncio.to_thread(rotate, path)
            except OSError as error:
                if was_fine:
                    _log.warning("%s: it grows, and cannot be rotated: %s", path, error)
                watched[path] = False
            else:
                watched[path] = True
