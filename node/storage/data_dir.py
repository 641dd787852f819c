"""The directory of one process: stamped with what it belongs to, and locked while it is open.

Opening a directory of another network, node or format is refused with the two ways out, ``--fresh`` and ``--name``. The
signer's record is created before the stamp, so a stamped directory without one has lost it: nothing may be signed then,
for what was signed before is unknown.
"""

import contextlib
import fcntl
import os
import shutil
import time
from pathlib import Path
from typing import Final, Self

import msgspec

from node.storage.frames import encode_header, sync_directory, write_all
from shardyard.errors import ConfigError, ShardyardError
from shardyard.ids import Hash32, NodeId, ShardId, describe_shard

FORMAT_VERSION: Final = 1
SIGNER_FILE_KIND: Final = 2
SIGNER_FILE: Final = "signer.log"
LOW_DISK_BYTES: Final = 64 * 1024 * 1024
_STAMP: Final = "stamp.json"
_LOCK: Final = "lock"
_INCARNATION: Final = "incarnation"


class DataDirBusyError(ShardyardError):
    """Another process holds the directory."""


class LowDiskError(ShardyardError):
    """Too little space is left to go on; stopping now leaves the files whole."""


class DataStamp(msgspec.Struct, frozen=True):
    """What a data directory belongs to."""

    network: str
    """Hash of the genesis, in hex."""
    node: str
    chain: str
    format: int = FORMAT_VERSION


def build_stamp(network: Hash32, node: NodeId, chain: ShardId) -> DataStamp:
    """Return the stamp of ``node``'s directory for ``chain``."""
    return DataStamp(network=network.hex(), node=node, chain=describe_shard(chain))


class DataDir:
    """An open data directory; ``close`` or leaving ``with`` gives it back."""

    def __init__(self, path: Path, stamp: DataStamp, lock: int) -> None:
        """Use ``open_data_dir``."""
        self.path = path
        self.stamp = stamp
        self._lock = lock

    @property
    def owner(self) -> bytes:
        """Hash of the genesis: stands in the header of every file in here."""
        return bytes.fromhex(self.stamp.network)

    @property
    def log_path(self) -> Path:
        """Directory of the block log's segments."""
        return self.path / "blocks"

    @property
    def signer_path(self) -> Path:
        """The signer's record."""
        return self.path / SIGNER_FILE

    @property
    def journal_path(self) -> Path:
        """The mempool's journal."""
        return self.path / "mempool.journal"

    @property
    def index_path(self) -> Path:
        """The index, a cache."""
        return self.path / "index"

    def take_incarnation(self) -> int:
        """Return a number greater than in any earlier life of this process, even when the clock went back."""
        path = self.path / _INCARNATION
        with contextlib.suppress(FileNotFoundError, ValueError):
            last = int(path.read_text())
            return _write_incarnation(path, max(last + 1, time.time_ns() // 1000))
        return _write_incarnation(path, time.time_ns() // 1000)

    def verify_space(self) -> None:
        """Raise ``LowDiskError`` when little space is left."""
        verify_space(self.path)

    def close(self) -> None:
        """Give the directory back."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def open_data_dir(path: Path, stamp: DataStamp) -> DataDir:
    """Open the directory at ``path``, or create it when there is nothing there.

    Raises ``DataDirBusyError`` when another process has it, and ``ConfigError`` when it belongs to something else.
    """
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = os.open(path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        _lock(lock, path)
        if (path / _STAMP).exists():
            _verify_stamp(path, stamp)
        else:
            _create(path, stamp)
    except BaseException:
        os.close(lock)
        raise
    return DataDir(path, stamp, lock)


def verify_space(path: Path, at_least: int = LOW_DISK_BYTES) -> None:
    """Raise ``LowDiskError`` when fewer than ``at_least`` bytes are left on the disk of ``path``."""
    free = shutil.disk_usage(path).free
    if free < at_least:
        raise LowDiskError(
            f"{path}: got {free} bytes of free disk, expected at least {at_least}; try: make room"
        )


def _lock(descriptor: int, path: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(descriptor, 20, 0).decode(errors="replace")
        raise DataDirBusyError(
            f"{path}: process {holder or 'unknown'} has it open; try: shardyard status"
        ) from None
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, str(os.getpid()).encode(), 0)


def _verify_stamp(path: Path, stamp: DataStamp) -> None:
    try:
        found = msgspec.json.decode((path / _STAMP).read_bytes(), type=DataStamp)
    except msgspec.MsgspecError as error:
        raise ConfigError(f"{path}: damaged stamp ({error}); {_WAYS_OUT}") from error
    for name in ("format", "network", "node", "chain"):
        got, expected = getattr(found, name), getattr(stamp, name)
        if got != expected:
            raise ConfigError(f"{path}: got data of {name} {got}, expected {expected}; {_WAYS_OUT}")


_WAYS_OUT: Final = "try: shardyard up --fresh to start anew, or --name for another network beside it"


def _create(path: Path, stamp: DataStamp) -> None:
    # A creation that was cut short left these at most; anything else is not ours to stamp.
    strangers = {entry.name for entry in path.iterdir()} - {_LOCK, SIGNER_FILE, _INCARNATION, f".{_STAMP}"}
    if strangers:
        raise ConfigError(f"{path}: it holds {min(strangers)!r} and no stamp; {_WAYS_OUT}")
    _write_durably(path / SIGNER_FILE, encode_header(SIGNER_FILE_KIND, bytes.fromhex(stamp.network), 0))
    sync_directory(path)
    _write_durably(path / f".{_STAMP}", msgspec.json.encode(stamp))
    (path / f".{_STAMP}").replace(path / _STAMP)
    sync_directory(path)
    sync_directory(path.parent)


def _write_incarnation(path: Path, number: int) -> int:
    staged = path.with_suffix(".new")
    _write_durably(staged, str(number).encode())
    staged.replace(path)
    sync_directory(path.parent)
    return number


def _write_durably(path: Path, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        write_all(descriptor, content)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
