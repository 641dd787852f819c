"""Which faults hit which phase of the protocol, as a table with its holes: a phase that no fault hits proves nothing."""

import re
from collections import Counter
from collections.abc import Mapping
from typing import Final

import msgspec

ENOUGH: Final = 100
"""Hits of a class of fault in a phase, below which the pair counts as a hole."""
_PAIR: Final = re.compile(r"(?P<fault>.+?) (?:after|while|during) (?P<phase>.+)")


class Table(msgspec.Struct, frozen=True):
    """Counts by (fault, phase); both axes by their own totals, most first."""

    faults: tuple[str, ...]
    phases: tuple[str, ...]
    counts: dict[tuple[str, str], int]

    @property
    def holes(self) -> list[tuple[str, str, int]]:
        """Pairs that were hit less than ``ENOUGH`` times."""
        pairs = [(fault, phase) for fault in self.faults for phase in self.phases]
        return [(*pair, self.counts.get(pair, 0)) for pair in pairs if self.counts.get(pair, 0) < ENOUGH]


def build_table(coverage: Mapping[str, int]) -> Table:
    """Return the table of counters whose names read ``<fault> after <phase>``; others are passed over."""
    counts: Counter[tuple[str, str]] = Counter()
    faults: Counter[str] = Counter()
    phases: Counter[str] = Counter()
    for name, count in coverage.items():
        pair = _PAIR.fullmatch(name)
        if pair is not None:
            counts[pair["fault"], pair["phase"]] += count
            faults[pair["fault"]] += count
            phases[pair["phase"]] += count
    return Table(
        faults=tuple(sorted(faults, key=lambda name: (-faults[name], name))),
        phases=tuple(sorted(phases, key=lambda name: (-phases[name], name))),
        counts=dict(counts),
    )
