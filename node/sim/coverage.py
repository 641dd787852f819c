"""Which faults hit which phase of the protocol, as a table with its holes: a phase that no fault hits proves nothing."""

import re
from collections import Counter
from collections.abc import Mapping
from typing import Final

import msgspec

from node.sim.faults import PEACE
from node.sim.phases import PHASES, Phase

ENOUGH: Final = 100
"""Hits of a class of fault in a phase, below which the pair counts as a hole."""
_LEADING: Final = (Phase.WAITING_TO_PROPOSE, Phase.BUILDING, Phase.PROPOSING)
_OWN_SLOT: Final = "acts when its own slot begins: nobody else of its chain leads then, and the blocks before it are executed"
EXEMPT: Final[dict[str, tuple[tuple[Phase, ...], str]]] = {
    "withholder": ((*_LEADING, Phase.EXECUTING), _OWN_SLOT),
    "bad proposer": ((*_LEADING, Phase.EXECUTING), _OWN_SLOT),
    "tamperer": (
        (*_LEADING, Phase.EXECUTING, Phase.ANNOUNCING),
        f"{_OWN_SLOT}; and on shards, which do not announce",
    ),
}
"""Phases that a role does not meet by its nature (now and then it does, between nodes that are apart), and why: no holes."""
_PAIR: Final = re.compile(r"(?P<fault>.+?) while (?P<phase>.+)")


class Table(msgspec.Struct, frozen=True):
    """Counts by (fault, phase): every class and role that a profile may ask for, every phase that there is; most hit first."""

    faults: tuple[str, ...]
    phases: tuple[str, ...]
    counts: dict[tuple[str, str], int]

    @property
    def holes(self) -> list[tuple[str, str, int]]:
        """Pairs that were hit less than ``ENOUGH`` times, but for those that are exempt."""
        pairs = [
            (fault, phase) for fault in self.faults for phase in self.phases if not is_exempt(fault, phase)
        ]
        return [(*pair, self.counts.get(pair, 0)) for pair in pairs if self.counts.get(pair, 0) < ENOUGH]


def is_exempt(fault: str, phase: str) -> bool:
    """Tell whether ``fault`` does not meet ``phase`` by its nature."""
    return fault in EXEMPT and phase in EXEMPT[fault][0]


def build_table(coverage: Mapping[str, int]) -> Table:
    """Return the table of counters whose names read ``<fault> while <phase>``; others are passed over."""
    counts: Counter[tuple[str, str]] = Counter()
    faults = Counter(dict.fromkeys((*PEACE.strikes, *PEACE.roles), 0))
    phases = Counter(dict.fromkeys(map(str, PHASES), 0))
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
