"""``torn``: a log of 64 KiB on disk, cut, flipped and zeroed at every byte, and opened again each time.

The log is written and opened by ``node.storage.log``, in a real file; every entry is synced before the next. At every offset
the file is damaged in three ways: it ends there (a short write), one bit there is flipped, it is zeros from there on (a
file that grew before its data came). Then either the log opens with a prefix of its entries, which for a bit flip has
every entry before the damaged one, or it is refused with ``CorruptFileError``. One wrong entry, or one entry less than
were whole, fails. A flip before the last entry must be refused: what was synced behind it says that it was durable.
"""

import time
from collections import Counter
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Final

from node.bench.report import BenchReport, build_report, equals, say
from node.storage.frames import CorruptFileError
from node.storage.log import BlockLog, EntryKind, LogEntry

LOG_BYTES: Final = 64 * 1024
ENTRY_BYTES: Final = 2700
OWNER: Final = bytes(range(32))


class Damage(StrEnum):
    """What is done to the file at one offset."""

    CUT = "cut"
    FLIP = "flip"
    ZEROS = "zeros"


async def measure_torn(folder: Path) -> BenchReport:
    """Damage a log at every offset in every way; return how each was met."""
    path = folder / "blocks"
    entries, ends = await write_log(path)
    file = path / "00000000.log"
    image = file.read_bytes()
    started = time.monotonic()
    verdicts: Counter[str] = Counter()
    wrong: list[str] = []
    for damage in Damage:
        before = Counter(verdicts)
        for offset in range(len(image)):
            file.write_bytes(apply_damage(image, damage, offset))
            verdict = judge_opening(path, entries, ends, damage, offset)
            verdicts[verdict] += 1
            if verdict == "wrong":
                wrong.append(f"{damage} at {offset}")
        say(f"{damage}: {dict(verdicts - before)}")
    total, met = 3 * len(image), verdicts["recovered"] + verdicts["detected"]
    summary = (
        f"{len(image)} bytes with {len(entries)} entries, {total} damaged files: {verdicts['recovered']} recovered, "
        f"{verdicts['detected']} detected, {len(wrong)} wrong: {100 * met / total:.2f} % detect or recover, "
        f"in {time.monotonic() - started:.0f} s"
    )
    targets = [
        equals("damaged files that were met", met, total, "files"),
        equals("wrong or lost entries", len(wrong), 0, "files"),
    ]
    return build_report("torn", summary, targets, {"verdicts": dict(verdicts), "wrong": wrong[:100]})


async def write_log(path: Path) -> tuple[list[LogEntry], list[int]]:
    """Write a log of at least ``LOG_BYTES``; return its entries, and where each ends in the file."""
    entries: list[LogEntry] = []
    ends: list[int] = []
    with BlockLog(path, OWNER) as log:
        while not ends or ends[-1] < LOG_BYTES:
            number = len(entries)
            payload = bytes([number % 251]) * (ENTRY_BYTES + number % 7)
            entry = LogEntry(EntryKind.NODE, payload, b"entry %d" % number)
            log.append(entry.kind, entry.payload, label=entry.label)
            await log.sync()
            entries.append(entry)
            ends.append(log.size)
    return entries, ends


def apply_damage(image: bytes, damage: Damage, offset: int) -> bytes:
    """Return ``image`` damaged at ``offset``."""
    match damage:
        case Damage.CUT:
            return image[:offset]
        case Damage.FLIP:
            return image[:offset] + bytes([image[offset] ^ 1 << offset % 8]) + image[offset + 1 :]
        case Damage.ZEROS:
            return image[:offset] + bytes(len(image) - offset)


def judge_opening(
    path: Path, entries: Sequence[LogEntry], ends: Sequence[int], damage: Damage, offset: int
) -> str:
    """Open the log at ``path`` and return ``recovered``, ``detected`` or ``wrong``."""
    whole = sum(end <= offset for end in ends)
    try:
        with BlockLog(path, OWNER) as log:
            found = list(log.iterate())
    except CorruptFileError:
        # A cut or unfinished end is no corruption, unless the file's own header is hit.
        return "detected" if damage is Damage.FLIP or offset < ends[0] else "wrong"
    is_prefix = found == list(entries[: len(found)]) and len(found) >= whole
    if damage is Damage.FLIP:
        is_prefix = is_prefix and len(found) == whole == len(entries) - 1
    return "recovered" if is_prefix else "wrong"
