"""Virtual time: a heap of (instant, seeded tie-break, action). Two actions of one instant run in an order that the seed draws."""

import heapq
import random
from collections.abc import Callable
from itertools import count
from typing import Final

MAX_PENDING: Final = 200_000
"""Actions waiting at a time (I14): more means that something multiplies."""


class Clock:
    """Runs actions in order of their instant, milliseconds since the start of the run."""

    def __init__(self, chance: random.Random) -> None:
        self.now_ms = 0
        self._draw = chance.random
        self._heap: list[tuple[int, float, int, Callable[[], None]]] = []
        self._order = count()

    def schedule(self, delay_ms: int, action: Callable[[], None]) -> None:
        """Run ``action`` after ``delay_ms``."""
        entry = (self.now_ms + delay_ms, self._draw(), next(self._order), action)
        heapq.heappush(self._heap, entry)

    def run_until(self, end_ms: int) -> None:
        """Run everything up to and including ``end_ms``."""
        heap, pop = self._heap, heapq.heappop
        while heap and heap[0][0] <= end_ms:
            self.now_ms, _, _, action = pop(heap)
            action()
        self.now_ms = end_ms

    def __len__(self) -> int:
        return len(self._heap)
