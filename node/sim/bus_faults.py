"""Faults of the bus beside plain partitions: ones that flap, sessions that are lost, queues that overflow."""

import random
from collections.abc import Callable
from typing import Final

from node.sim.bus import Pair, SimBus
from node.sim.node import SimNode

FLAPS: Final = (3, 12)
"""How often a flapping cut opens and closes."""
FLAP_MS: Final = (50, 1_500)
SHORT_QUEUE: Final = (1, 8)
"""Messages that a short queue holds."""

Tell = Callable[[str, str, SimNode | None], None]
Ambush = Callable[[random.Random, SimNode, Callable[[], None]], None]
Later = Callable[[random.Random, tuple[int, int], Callable[[], None]], None]


class BusFaults:
    """Strikes at what lies between nodes."""

    def __init__(
        self, bus: SimBus, nodes: list[SimNode], *, tell: Tell, later: Later, ambush: Ambush
    ) -> None:
        self._bus = bus
        self._nodes = nodes
        self._tell = tell
        self._later = later
        self._ambush = ambush

    def flap(self, chance: random.Random) -> None:
        """Cut one node off from some others again and again, often only in one direction."""
        victim = chance.choice(self._nodes)
        others = sorted({node.name for node in self._nodes} - {victim.name})
        some = chance.sample(others, chance.randint(1, len(others)))
        cut = {(victim.name, other) for other in some} if chance.random() < 0.7 else set()
        if not cut or chance.random() < 0.5:
            cut |= {(other, victim.name) for other in some}
        count = chance.randint(*FLAPS)

        def begin() -> None:
            self._tell("flap", f"{victim.name} and {len(some)} others hear each other on and off", victim)
            self._open_and_close(chance, cut, count)

        self._ambush(chance, victim, begin)

    def _open_and_close(self, chance: random.Random, cut: set[Pair], count: int) -> None:
        self._bus.cut(cut)

        def open_again() -> None:
            self._bus.mend(cut)
            if count > 1:
                self._later(chance, FLAP_MS, lambda: self._open_and_close(chance, cut, count - 1))

        self._later(chance, FLAP_MS, open_again)

    def lose_session(self, chance: random.Random, gone_ms: tuple[int, int]) -> None:
        """A node's session at the broker is gone: it speaks to nobody and hears nobody until it is back."""
        node = chance.choice(self._nodes)

        def lose() -> None:
            self._bus.lose_session(node.name)
            self._tell("lost session", f"the broker forgets the session of {node.name}", node)
            self._later(chance, gone_ms, lambda: self._bus.regain_session(node.name))

        self._ambush(chance, node, lose)

    def overflow(self, chance: random.Random, slow_ms: tuple[int, int]) -> None:
        """A node reads slowly: its queue at the broker is full most of the time, and what comes then is dropped."""
        node = chance.choice(self._nodes)

        def begin() -> None:
            size = chance.randint(*SHORT_QUEUE)
            self._bus.shorten(node.name, size)
            self._tell("overflow", f"the queue of {node.name} holds {size} messages", node)
            self._later(chance, slow_ms, lambda: self._bus.lengthen(node.name, size))

        self._ambush(chance, node, begin)
