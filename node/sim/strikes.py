"""The strikes of a run: what hits when, as values that a seed draws, so that single ones can be left out.

Each strike has a generator of its own, from which the nemesis draws victims, depths and durations. Without one strike the
others still hit the same victims at the same instants; only what the network makes of them differs.
"""

import random

import msgspec

from node.sim.scenario import FaultProfile


class Strike(msgspec.Struct, frozen=True):
    """One fault that hits at an instant, milliseconds since the start of the run."""

    seed: int
    index: int
    at_ms: int
    kind: str

    def build_chance(self) -> random.Random:
        """Return the generator from which everything else about this strike is drawn."""
        return random.Random(f"strike {self.seed} {self.index}")


def draw_strikes(seed: int, profile: FaultProfile, fault_ms: int) -> list[Strike]:
    """Return the strikes of a run in order of their index; all instants lie in the first ``fault_ms`` of the run."""
    kinds = [kind for kind, count in profile.strikes.items() for _ in range(count)]
    return [
        Strike(seed, index, random.Random(f"instant {seed} {index}").randrange(max(1, fault_ms)), kind)
        for index, kind in enumerate(kinds)
    ]
