"""One input after the other through a target: how long each takes, how the process grows, when the time is up."""

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from node.lab.fuzz_targets import RENEW_EVERY, Target

MAX_INPUT_CPU_S: Final = 1.0
MAX_GROWTH_BYTES: Final = 192 * 1024 * 1024
"""How much a process may grow after its first tenth: the corpus that is held in memory, and nothing that piles up."""
CHECK_EVERY: Final = 256
"""Inputs between two looks at the clock and at the memory."""
PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")


class FindingError(AssertionError):
    """An input does what it must not do."""


class Tally(msgspec.Struct):
    """What one target came to."""

    target: str
    inputs: int = 0
    cpu_s: float = 0.0
    growth_bytes: int = 0
    corpus: int = 0
    findings: list[str] = msgspec.field(default_factory=list)


class Probe:
    """Runs one input after the other through a target and watches time and memory."""

    def __init__(
        self, target: Target, budget_s: float, on_end: Callable[["Probe"], None] = lambda _: None
    ) -> None:
        self.target = target
        self.inputs = 0
        self.growth_bytes = 0
        self._budget_s = budget_s
        self._on_end = on_end
        self._run = target.build()
        self._started_s = time.process_time()
        self._rss_before: int | None = None

    @property
    def cpu_s(self) -> float:
        """Processor time since the first input."""
        return time.process_time() - self._started_s

    def feed(self, data: bytes) -> None:
        """Run one input; raises ``FindingError`` when it takes too long, and whatever else it must not raise."""
        self.inputs += 1
        if self.inputs % RENEW_EVERY == 0:
            self._run = self.target.build()
        took = self._measure(data)
        if took > MAX_INPUT_CPU_S and self.inputs == 1:
            # The first one also fills the caches of its target, and so has a second chance to be fast.
            took = self._measure(data)
        if took > MAX_INPUT_CPU_S:
            raise FindingError(f"took {took:.1f} s of processor time, expected at most {MAX_INPUT_CPU_S:g} s")
        if self.inputs % CHECK_EVERY == 0:
            self._look_around()

    def _measure(self, data: bytes) -> float:
        """Run an input and return the processor time that it took, seconds."""
        before = time.thread_time()
        with contextlib.suppress(*self.target.errors):
            self._run(data)
        return time.thread_time() - before

    def _look_around(self) -> None:
        rss = _read_rss()
        if self._rss_before is None and self.cpu_s > self._budget_s / 10:
            self._rss_before = rss
        if self._rss_before is not None:
            self.growth_bytes = max(self.growth_bytes, rss - self._rss_before)
        if self.growth_bytes > MAX_GROWTH_BYTES:
            raise FindingError(
                f"grew by {self.growth_bytes >> 20} MiB over {self.inputs} inputs, expected at most "
                f"{MAX_GROWTH_BYTES >> 20} MiB"
            )
        if self.cpu_s > self._budget_s:
            self._on_end(self)


def _read_rss() -> int:
    """Return the resident memory of this process, bytes; 0 where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_bytes().split()[1]) * PAGE_BYTES
    except OSError:
        return 0
