"""Files of JSON lines that several processes append to and that a kill may cut short: the ledgers of hunts, kills and mutants."""

import fcntl
import os
from pathlib import Path


def append_line(path: Path, line: bytes) -> None:
    """Append ``line`` and its end to ``path``, which need not exist; it is on disk when this returns. Raises ``OSError``.

    A line that somebody was killed in the middle of is ended first, so that it spoils no other: whoever reads passes it over.
    """
    data = line + b"\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        size = os.fstat(descriptor).st_size
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            data = b"\n" + data
        while data:
            data = data[os.write(descriptor, data) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
