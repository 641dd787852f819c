"""Deleting a network: what is cut short leaves it as a whole, or gone by its name with its rest waiting for the next deletion."""

import asyncio
import contextlib
import errno
import shutil
import tempfile
from pathlib import Path
from typing import Final

from node.cli.root import EXIT_CONFLICT, CliError
from node.launcher.lock import LOCK_NAME, NetworkBusyError, find_holder, lock_network
from node.network import Network, is_taken, open_network
from shardyard.errors import ShardyardError

WAKE_TIMEOUT_S: Final = 15.0
MAX_PASSES: Final = 10_000
"""Over a folder that somebody else deletes too; each ends at an entry that the other one was faster at."""
_STAMP: Final = "network.json"
_NOT_TO_BE_MOVED: Final = frozenset({errno.EXDEV, errno.EBUSY})
"""What a rename answers for a folder that came with a container's image, and for one that is a mount."""


def verify_deletable(root: Path) -> None:
    """Raise ``CliError`` for what ``delete_network`` would not delete: a network that runs, or what is none of ours."""
    if is_taken(root):
        _verify_ours(root)
        if (holder := find_holder(root)) is not None and not holder.is_deleting:
            raise _describe_running(root.name)


def _verify_ours(root: Path) -> None:
    if not (root / _STAMP).exists():
        raise CliError(
            f"{root} is in use, but not by a network of ours, and is left alone; "
            "try: another --name, or another folder in SHARDYARD_HOME"
        )


def _describe_running(name: str) -> CliError:
    return CliError(f"network {name!r} is running; try: shardyard down --name {name}", EXIT_CONFLICT)


def delete_network(root: Path) -> bool:
    """Delete a network that is not running, and what earlier deletions of it left; tell whether there was anything.

    Raises ``CliError`` when it is running, or when ``root`` is something else, and ``NetworkBusyError`` when somebody else
    deletes it. Where ``root`` is a link, what it leads to is deleted, and the link stays for the next network.
    """
    place = root.resolve()
    left = list(place.parent.glob(f".{place.name}.deleted-*"))
    if is_taken(root):
        _verify_ours(root)
        try:
            with lock_network(root, to_delete=True):
                _clear_up_after_launcher(root)
                left.append(_take_away(place))
        except NetworkBusyError as error:
            if error.holder is None or error.holder.is_deleting:
                raise
            raise _describe_running(root.name) from error
    for folder in left:
        _remove(folder)
    return bool(left)


def _clear_up_after_launcher(root: Path) -> None:
    """Let the processes of a launcher that was killed leave, and stop writing, before their files go; remove their sockets."""
    from node.launcher.launcher import wait_for_orphans

    with contextlib.suppress(ShardyardError):  # one that is damaged is deleted all the same
        network = open_network(root)
        wake_orphans(network)
        asyncio.run(wait_for_orphans(network))
        shutil.rmtree(network.run_dir, ignore_errors=True)


def wake_orphans(network: Network) -> int:
    """Wake what a launcher paused before it died, so that it leaves; return how many processes slept."""
    from node.launcher import laboratory

    return laboratory.wake_orphans(network, WAKE_TIMEOUT_S)


def _take_away(place: Path) -> Path:
    """Rename the network at ``place`` to what the next deletion finds, and return that; what cannot be renamed is emptied."""
    doomed = Path(tempfile.mkdtemp(prefix=f".{place.name}.deleted-", dir=place.parent))
    try:
        return place.rename(doomed)
    except OSError as error:
        doomed.rmdir()
        if error.errno not in _NOT_TO_BE_MOVED:
            raise
    _empty(place)
    return place


def _empty(place: Path) -> None:
    """Remove what is at ``place``, whose lock is held: as long as any of it is left it is a network, and can be deleted."""
    last = (LOCK_NAME, _STAMP)
    for path in sorted(place.iterdir(), key=lambda path: last.index(path.name) if path.name in last else -1):
        if path.is_dir() and not path.is_symlink():
            _remove(path)
        else:
            path.unlink(missing_ok=True)


def _remove(folder: Path) -> None:
    """Remove ``folder``, which somebody else may be removing too."""
    for _ in range(MAX_PASSES):
        try:
            shutil.rmtree(folder)
        except FileNotFoundError:  # until Python 3.13 it ends the whole
            if folder.exists():
                continue
        except OSError as error:
            if error.errno != errno.EBUSY or any(folder.iterdir()):  # an empty mount is as good as none
                raise
        return
