"""Virtual time in microseconds, and processors in it: a processor does one job after the other, so a busy one answers late.

A job begins when the processor is free, says what its operations cost, and has its effects when that time is over. Completions
go before messages, as in the driver of a real process (M1). Instants that are equal keep the order in which they were asked for.
"""

import heapq
from collections import Counter, deque
from collections.abc import Callable
from itertools import count
from typing import Final

Work = dict[str, float]
"""Microseconds by operation."""
Finish = Callable[[], None]
Job = Callable[[], tuple[Work, Finish]]

MAX_QUEUED: Final = 4096
"""Messages waiting for a processor; more are lost, as in the queue of a real process."""


class MicroClock:
    """Runs actions in order of their instant, microseconds since the start of the run."""

    def __init__(self) -> None:
        self.now_us = 0
        self._heap: list[tuple[int, int, Finish]] = []
        self._order = count()

    def schedule(self, delay_us: int, action: Finish) -> None:
        """Run ``action`` after ``delay_us``."""
        heapq.heappush(self._heap, (self.now_us + delay_us, next(self._order), action))

    def run_until(self, end_us: int) -> None:
        """Run everything up to and including ``end_us``."""
        heap, pop = self._heap, heapq.heappop
        while heap and heap[0][0] <= end_us:
            self.now_us, _, action = pop(heap)
            action()
        self.now_us = end_us


class Processor:
    """One processor of a process."""

    def __init__(self, clock: MicroClock) -> None:
        self._clock = clock
        self._urgent: deque[Job] = deque()
        self._usual: deque[Job] = deque()
        self._is_busy = False
        self.busy: Counter[str] = Counter()
        """Microseconds by operation since the measurement began."""
        self.dropped = 0
        """Messages that found the queue full."""
        self.longest_queue = 0

    def submit(self, job: Job) -> None:
        """Do ``job`` before everything that came by ``offer``."""
        self._urgent.append(job)
        if not self._is_busy:
            self._serve()

    def offer(self, job: Job) -> None:
        """Do ``job`` when its turn comes; it is lost when too many wait."""
        if len(self._usual) >= MAX_QUEUED:
            self.dropped += 1
            return
        self._usual.append(job)
        if not self._is_busy:
            self._serve()
        elif len(self._usual) > self.longest_queue:
            self.longest_queue = len(self._usual)

    def _serve(self) -> None:
        work, finish = (self._urgent or self._usual).popleft()()
        self._is_busy = True
        total = 0.0
        for operation, cost_us in work.items():
            self.busy[operation] += cost_us  # type: ignore[assignment]  # a counter of fractions
            total += cost_us

        def end() -> None:
            finish()
            self._is_busy = False
            if self._urgent or self._usual:
                self._serve()

        self._clock.schedule(round(total), end)
