"""Log files of a network: kept small by the launcher, also while processes write to them.

Whoever writes has the file open and appends to it. So a file that has grown is copied and then emptied where it is, and its
writer goes on at the new end. What is written between the last byte copied and the emptying is lost: logs are for people to
read, what must not be lost is in the block log.
"""

import asyncio
import contextlib
import logging
import os
import shutil
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO, Final

LOG_LIMIT_BYTES: Final = 16 * 1024 * 1024
CHECK_S: Final = 5.0
MAX_LOOKS: Final = 1000
"""How often a line that is not whole is looked for; one whose writer stops within it is kept as it is."""

_ROTATING: Final = threading.Lock()
"""One rotation at a time: that of a start may meet the one that comes round."""

_log = logging.getLogger(__name__)


def get_older(path: Path) -> Path:
    """Return where what was in ``path`` before it was emptied is kept."""
    return path.with_name(path.name + ".1")


def rotate(path: Path, limit_bytes: int = LOG_LIMIT_BYTES) -> bool:
    """Empty ``path`` if it has more than ``limit_bytes``; tell whether it had. What was in it replaces what was kept before.

    Raises ``OSError`` when it cannot be kept, as on a full disk; ``path`` is left as it is then.
    """
    with contextlib.suppress(FileNotFoundError), _ROTATING, path.open("r+b", 0) as file:
        if os.fstat(file.fileno()).st_size <= limit_bytes:
            return False
        fresh = path.with_name(path.name + ".new")
        try:
            # Buffered: an unbuffered write may take a part only, and says nothing of the rest.
            with fresh.open("wb") as copy:
                shutil.copyfileobj(file, copy)
                copy.flush()
                fresh.replace(get_older(path))
                _copy_rest(file, copy)
                copy.flush()
                file.truncate(0)
        except OSError:
            fresh.unlink(missing_ok=True)
            raise
        return True
    return False


def _copy_rest(file: BinaryIO, copy: BinaryIO) -> None:
    """Copy what was written meanwhile, up to the end of a line: a line that is just being written may be there in part."""
    end = b"\n"
    for _ in range(MAX_LOOKS):
        data = file.read()
        if not data and end == b"\n":
            return
        copy.write(data)
        end = data[-1:] or end


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
                    _log.warning(
                        "%s: it grows and cannot be rotated: %s; try: make room on its disk", path, error
                    )
                watched[path] = False
            else:
                watched[path] = True
