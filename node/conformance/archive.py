"""Where test documents come from: a tar archive, a folder, or one JSON file; each with the name it has there.

Archives are read as streams, never unpacked to disk, so a name in one cannot name a place on this machine.
"""

import tarfile
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

from shardyard.errors import ShardyardError

ARCHIVES = (".tar", ".tar.xz", ".txz", ".tar.gz", ".tgz", ".tar.bz2")
MAX_DOCUMENT_BYTES = 256 * 2**20


class ArchiveError(ShardyardError):
    """What was given holds no state tests that can be read."""


class Document(NamedTuple):
    name: str
    text: bytes


def is_wanted(name: str, only: str | None) -> bool:
    """Return whether a glob means this document: its whole name, or the end of it from some folder on."""
    return name.endswith(".json") and (only is None or fnmatch(name, only) or fnmatch(name, f"*/{only}"))


def read_documents(place: Path, only: str | None = None) -> Iterator[Document]:
    """Yield the documents in the order of the archive, those of a folder sorted by name.

    Raises:
        ArchiveError: nothing is there, or it cannot be read as what its name says.

    """
    if place.is_dir():
        names = sorted(path.relative_to(place).as_posix() for path in place.rglob("*.json"))
        yield from (Document(name, (place / name).read_bytes()) for name in names if is_wanted(name, only))
    elif place.is_file() and place.name.endswith(ARCHIVES):
        yield from _read_archive(place, only)
    elif place.is_file() and place.suffix == ".json":
        yield Document(place.name, place.read_bytes())
    elif place.exists():
        raise ArchiveError(
            f"{place} is no archive of state tests. try: a folder, a .json or one of {', '.join(ARCHIVES)}"
        )
    else:
        raise ArchiveError(f"there is no {place}. try: the path of a GeneralStateTests archive")


def _read_archive(place: Path, only: str | None) -> Iterator[Document]:
    try:
        with tarfile.open(place) as archive:
            for member in archive:
                if not member.isfile() or not is_wanted(member.name, only):
                    continue
                if member.size > MAX_DOCUMENT_BYTES:
                    raise ArchiveError(
                        f"{member.name} has {member.size} bytes, expected at most {MAX_DOCUMENT_BYTES}"
                    )
                content = archive.extractfile(member)
                assert content is not None, "a regular file has content"
                yield Document(member.name, content.read())
    except (tarfile.TarError, EOFError, OSError) as error:
        raise ArchiveError(
            f"{place} cannot be read as an archive: {error}. try: download it again"
        ) from error
