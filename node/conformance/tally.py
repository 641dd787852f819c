"""What came of the vectors: counts per mode, the failures one by one, and what was skipped with the reason.

A vector that fails is skipped only if its file stands in ``skips.toml``, and never if the executor panicked. One that
stands there and passes counts as passed, so the list cannot hide what works.
"""

import tomllib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec

SKIPS = Path(__file__).with_name("skips.toml")
PANIC = "panicked"


class Report(msgspec.Struct, frozen=True, array_like=True):
    """One vector in one mode, as the native core says it; ``reason`` is empty when it passed."""

    test: str
    fork: str
    data: int
    gas: int
    value: int
    mode: str
    reason: str
    workers: int


_DECODER = msgspec.msgpack.Decoder(list[Report])


def decode_reports(encoded: bytes) -> list[Report]:
    """Return the reports of one document."""
    return _DECODER.decode(encoded)


def load_skips(path: Path = SKIPS) -> dict[str, str]:
    """Return the reason for each file whose vectors may fail."""
    table = tomllib.loads(path.read_text(encoding="utf-8"))
    return {name: entry["reason"] for entry in table["skip"] for name in entry["files"]}


@dataclass(slots=True)
class Tally:
    """The vectors of one mode; ``parallel`` counts those whose block was executed by several workers."""

    mode: str
    skips: dict[str, str]
    passed: int = 0
    parallel: int = 0
    seconds: float = 0.0
    failures: list[dict[str, Any]] = field(default_factory=list)
    skipped: Counter[tuple[str, str]] = field(default_factory=Counter)

    @property
    def vectors(self) -> int:
        return self.passed + len(self.failures) + self.skipped.total()

    def add(self, document: str, reports: Iterable[Report]) -> None:
        """Count the vectors of one document."""
        name = PurePosixPath(document).name
        for report in reports:
            if not report.reason:
                self.passed += 1
                self.parallel += report.workers > 1
            elif name in self.skips and report.reason != PANIC:
                self.skipped[name, self.skips[name]] += 1
            else:
                self.failures.append({"file": document, **msgspec.structs.asdict(report)})

    def add_unreadable(self, document: str, reason: str) -> None:
        """Count a document that is no state test as one failure."""
        self.failures.append({"file": document, "test": "", "fork": "", "mode": self.mode, "reason": reason})

    def as_dict(self) -> dict[str, Any]:
        """Return what the JSON report says of this mode."""
        return {
            "mode": self.mode,
            "vectors": self.vectors,
            "passed": self.passed,
            "failed": len(self.failures),
            "skipped": self.skipped.total(),
            "in_parallel_blocks": self.parallel,
            "seconds": round(self.seconds, 1),
            "failures": self.failures,
            "skips": [
                {"file": name, "vectors": count, "reason": reason}
                for (name, reason), count in sorted(self.skipped.items())
            ],
        }
