"""The ledger of finished runs: one JSON line per run, keyed by the sources that decided it, added up over all hunts.

A hunt may be killed at any instant: a line is written whole or its rest is passed over, and the next line begins anew. Two
hunts may write to one ledger; runs that another one has finished in the meantime are counted once.
"""

from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec

from node.json_lines import append_line
from node.sim.recipe import Recipe
from node.sim.run import Result
from node.sim.sources import compute_sources_hash, describe_commit
from shardyard.errors import ConfigError

FILE_NAME: Final = "ledger.jsonl"
MAX_LINE_BYTES: Final = 1 << 20


class LedgerError(ConfigError):
    """A ledger cannot be read or written."""


class Entry(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a ledger keeps of a run."""

    sources: str
    recipe: Recipe
    violation: str = ""
    trace_hash: str = ""
    cpu_s: float = 0.0
    simulated_s: float = 0.0
    faults: dict[str, int] = {}
    coverage: dict[str, int] = {}
    delivered: int = 0
    blocks: int = 0
    commit: str = ""
    at: str = ""
    """When the run was finished, UTC."""


class _Key(msgspec.Struct, frozen=True):
    """What is read of an entry of other sources."""

    sources: str


def build_entry(result: Result) -> Entry:
    """Return what the ledger keeps of ``result``, a run of the present sources."""
    report = result.report
    return Entry(
        sources=compute_sources_hash(),
        recipe=result.recipe,
        violation=result.violation,
        trace_hash=report.trace_hash if report else "",
        cpu_s=round(result.cpu_s, 3),
        simulated_s=result.simulated_s,
        faults=report.faults if report else {},
        coverage=report.coverage if report else {},
        delivered=report.counters.get("delivered", 0) if report else 0,
        blocks=report.counters.get("final_blocks", 0) if report else 0,
        commit=describe_commit(),
        at=datetime.now(UTC).isoformat(timespec="seconds"),
    )


class Ledger:
    """The runs of the present sources, and how many there are of others."""

    def __init__(self, path: Path) -> None:
        """Read ``path``, which need not exist; raises ``LedgerError``."""
        self.path = path
        self.entries: dict[Recipe, Entry] = {}
        self.others: Counter[str] = Counter()
        """Runs of other sources, by their hash."""
        self.torn = 0
        """Lines that are not whole: where a hunt was killed."""
        self._read()

    def _read(self) -> None:
        present = compute_sources_hash()
        key_decoder, decoder = msgspec.json.Decoder(_Key), msgspec.json.Decoder(Entry)
        try:
            with self.path.open("rb") as file:
                for line in iter(lambda: file.readline(MAX_LINE_BYTES), b""):
                    try:
                        sources = key_decoder.decode(line).sources
                        if sources == present:
                            self._keep(decoder.decode(line))
                        else:
                            self.others[sources] += 1
                    except msgspec.DecodeError:
                        self.torn += bool(line.strip())
        except FileNotFoundError:
            pass
        except OSError as error:
            raise LedgerError(f"ledger: {error}; try: --ledger PATH of a file that can be read") from error

    def _keep(self, entry: Entry) -> None:
        """Keep an entry; a violation is never forgotten for a later run that held."""
        known = self.entries.get(entry.recipe)
        if known is None or (entry.violation and not known.violation):
            self.entries[entry.recipe] = entry

    def __contains__(self, recipe: Recipe) -> bool:
        return recipe in self.entries

    def append(self, result: Result) -> Entry:
        """Add a finished run; it is on disk when this returns.

        Raises ``LedgerError`` when it cannot be written.
        """
        entry = build_entry(result)
        try:
            append_line(self.path, msgspec.json.encode(entry))
        except OSError as error:
            raise LedgerError(f"ledger: {error}; try: --ledger PATH of a file that can be written") from error
        self._keep(entry)
        return entry


class Totals(msgspec.Struct):
    """Entries added up."""

    seeds: Counter[float] = msgspec.field(default_factory=Counter)
    """Runs by their minutes of virtual time."""
    peaceful: int = 0
    """Of these: without faults."""
    simulated_s: float = 0.0
    cpu_s: float = 0.0
    delivered: int = 0
    blocks: int = 0
    faults: Counter[str] = msgspec.field(default_factory=Counter)
    coverage: Counter[str] = msgspec.field(default_factory=Counter)
    fewest_faults: int | None = None
    """Faults in the run with faults that had the fewest."""
    fewest_classes: int | None = None
    violations: list[Entry] = msgspec.field(default_factory=list)

    @property
    def speed(self) -> float:
        """Simulated seconds per second of one core."""
        return self.simulated_s / self.cpu_s if self.cpu_s else 0.0


def add_up(entries: Iterable[Entry]) -> Totals:
    """Return the totals of ``entries``."""
    totals = Totals()
    for entry in entries:
        totals.seeds[entry.recipe.minutes] += 1
        totals.simulated_s += entry.simulated_s
        totals.cpu_s += entry.cpu_s
        totals.delivered += entry.delivered
        totals.blocks += entry.blocks
        totals.faults.update(entry.faults)
        totals.coverage.update(entry.coverage)
        if entry.violation:
            totals.violations.append(entry)
        elif not entry.recipe.faults:
            totals.peaceful += 1
        else:
            count, classes = sum(entry.faults.values()), len(entry.faults)
            totals.fewest_faults = min(count, count if totals.fewest_faults is None else totals.fewest_faults)
            totals.fewest_classes = min(
                classes, classes if totals.fewest_classes is None else totals.fewest_classes
            )
    return totals
