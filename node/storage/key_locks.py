"""Locks of validator keys: on one machine one process signs with a key on a chain, whichever files it started from (K4).

The lock files lie below the home of the user that the process runs as, as the system knows it: two directories of one
network, two values of ``SHARDYARD_HOME`` or a copied network still meet there. A file's name says genesis, chain and key,
because these are what a signature covers (D1): the same key in another network can contradict nothing. A lock is the
kernel's and ends with its process; the file says who holds it, and goes when the holder closes in order.
"""

import fcntl
import os
import pwd
import time
from collections.abc import Iterable
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Final, Self

from node.storage.file_locks import FileLockedError, find_holder, is_named, lock_file
from shardyard import _native
from shardyard.consensus.votes import Domain
from shardyard.errors import ShardyardError
from shardyard.ids import describe_shard

SWEEP_AFTER_S: Final = 24 * 3600.0
MAX_SWEPT: Final = 256
_UNKNOWN: Final = "another process"


class KeyInUseError(ShardyardError):
    """Another process signs with this key on this chain."""


def get_lock_dir() -> Path:
    """Return where the locks of this machine's user are, whatever the environment says."""
    user = os.getuid()
    with suppress(KeyError):
        home = Path(pwd.getpwuid(user).pw_dir)
        if os.access(home, os.W_OK):
            return home / ".local" / "state" / "shardyard" / "locks"
    return Path("/var/tmp") / f"shardyard-{user}" / "locks"  # noqa: S108  # kept over a restart, and 0700


def build_lock_name(domain: Domain, public_key: bytes) -> str:
    """Return the name of the file that locks ``public_key`` on the chain of ``domain``."""
    return f"{domain.network.hex()[:16]}-{describe_shard(domain.shard)}-{public_key.hex()[:40]}.lock"


class KeyLocks:
    """Locks held by this process; ``close`` gives them back."""

    def __init__(self, directory: Path, domain: Domain, secrets: Iterable[bytes], owner: Path) -> None:
        """Lock every key of ``secrets`` on the chain of ``domain``; ``owner`` is told to whoever comes second.

        Raises ``KeyInUseError`` with the path of the lock, and ``OSError``.
        """
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._held: list[tuple[Path, int]] = []
        _sweep(directory)
        try:
            for secret in secrets:
                path = directory / build_lock_name(domain, _native.bls_public_key(secret))
                self._held.append((path, _lock(path, domain, owner)))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Give the locks back; the files go while they are still held, so that nobody locks one that is gone."""
        held, self._held = self._held, []
        for path, descriptor in held:
            with suppress(OSError):
                path.unlink()
            os.close(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def read_holder(directory: Path, domain: Domain, public_key: bytes) -> str:
    """Return who holds the lock of ``public_key``, or an empty text when nobody does; takes no lock for longer."""
    holder = find_holder(directory / build_lock_name(domain, public_key))
    return "" if holder is None else holder or _UNKNOWN


def _lock(path: Path, domain: Domain, owner: Path) -> int:
    try:
        return lock_file(path, f"process {os.getpid()} with the record in {owner}")
    except FileLockedError as error:
        raise KeyInUseError(
            f"{path}: {error.holder or _UNKNOWN} signs with this key on {describe_shard(domain.shard)}; "
            "try: stop that process, or shardyard validator list"
        ) from None


def _sweep(directory: Path) -> None:
    """Remove a few files that killed processes of networks long gone left behind; what is held stays."""
    old = time.time() - SWEEP_AFTER_S
    for path in islice(directory.glob("*.lock"), MAX_SWEPT):
        with suppress(OSError):
            if path.stat().st_mtime > old:
                continue
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if is_named(descriptor, path):
                    path.unlink()
            finally:
                os.close(descriptor)
