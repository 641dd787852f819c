"""Looks for a run that breaks an invariant: recipe after recipe on all cores, each finished one in the ledger.

What the ledger holds already is counted and not run again. One run in a hundred is run once more in another process under
another hash seed: its trace must be the same (I15). Violations are shrunk, the first few of a hunt.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from typing import Final

import msgspec

from node.sim.crew import Crew
from node.sim.ledger import Entry, Ledger, Totals, add_up, build_entry
from node.sim.progress import Progress
from node.sim.recipe import Recipe
from node.sim.run import Result, describe_result
from node.sim.shrink import Shrinker, Shrunk
from node.sim.sources import describe_commit

REPEAT_EVERY: Final = 100
MAX_SHRUNK: Final = 3
SHRINK_S: Final = 15.0
"""Time given to making one violation small; what is left then is small enough to read."""


class Hunt(msgspec.Struct):
    """What a hunt has found."""

    entries: list[Entry] = msgspec.field(default_factory=list)
    """All of its runs, those that the ledger held already included."""
    known: int = 0
    """Runs that the ledger held already."""
    repeated: int = 0
    """Runs that were run again in another process."""
    failed: list[Result] = msgspec.field(default_factory=list)
    """Runs of this hunt that broke an invariant."""
    shrunk: list[Shrunk] = msgspec.field(default_factory=list)

    @property
    def totals(self) -> Totals:
        """All runs added up."""
        return add_up(self.entries)

    @property
    def known_violations(self) -> list[Entry]:
        """Violations that the ledger held already; those of this hunt are in ``failed``."""
        fresh = {result.recipe for result in self.failed}
        return [entry for entry in self.entries if entry.violation and entry.recipe not in fresh]

    @property
    def is_ok(self) -> bool:
        """Whether every invariant held in every run."""
        return not any(entry.violation for entry in self.entries)


def hunt(
    recipes: Iterable[Recipe],
    *,
    jobs: int = 1,
    ledger: Ledger | None = None,
    plant: str = "",
    stop_at: int = 0,
    is_over: Callable[[], bool] = lambda: False,
    progress: Progress | None = None,
) -> Hunt:
    """Run ``recipes`` and return what was found.

    Ends early after ``stop_at`` violations, unless that is 0, or when ``is_over`` says so between two runs.
    """
    found = Hunt()
    with Crew(jobs, plant, repeat_every=0 if plant else REPEAT_EVERY) as crew:
        with closing(crew.run(_leave_out(recipes, ledger, found))) as results:
            for result in results:
                found.entries.append(build_entry(result) if ledger is None else ledger.append(result))
                if not result.is_ok:
                    found.failed.append(result)
                    if progress:
                        progress.say(describe_result(result))
                if progress:
                    progress.update(len(found.entries), _describe(found))
                if is_over() or (stop_at and len(found.failed) >= stop_at):
                    break
        found.repeated = crew.repeated
        for result in found.failed[:MAX_SHRUNK]:
            if not result.violation.startswith("I15"):  # a run that is never the same twice cannot be shrunk
                found.shrunk.append(_shrink(crew, result, progress))
    return found


def _leave_out(recipes: Iterable[Recipe], ledger: Ledger | None, found: Hunt) -> Iterator[Recipe]:
    """Yield the recipes that are still to be run; the others are found already."""
    for recipe in recipes:
        if ledger is not None and recipe in ledger:
            found.entries.append(ledger.entries[recipe])
            found.known += 1
        else:
            yield recipe


def _shrink(crew: Crew, result: Result, progress: Progress | None) -> Shrunk:
    def say(runs: int, smaller: Result) -> None:
        if progress:
            progress.update(
                0, f"shrinking seed {result.seed}: {runs} runs, {len(smaller.command)} characters"
            )

    deadline = time.monotonic() + SHRINK_S
    return Shrinker(crew, result, say, lambda: time.monotonic() > deadline).shrink()


def _describe(found: Hunt) -> str:
    fresh = len(found.entries) - found.known
    known = f", {found.known} in the ledger" if found.known else ""
    return f"{fresh} runs{known}, {len(found.failed)} violations"


def summarise(found: Hunt) -> str:
    """Return the line a hunt ends with."""
    totals = found.totals
    runs = " + ".join(f"{count} seeds x {minutes:g}" for minutes, count in sorted(totals.seeds.items()))
    known = f" ({found.known} of them from the ledger)" if found.known else ""
    verdict = f"{len(totals.violations)} VIOLATIONS" if totals.violations else "all held"
    return (
        f"hunt: {runs or 'no seeds x 0'} simulated minutes{known}, {sum(totals.faults.values())} faults, "
        f"{totals.delivered} messages delivered, {found.repeated} repeated elsewhere, "
        f"{totals.speed:.0f} simulated seconds per second of one core, commit {describe_commit()}: {verdict}"
    )
