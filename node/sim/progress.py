"""How far a hunt is: one live line on a terminal, a plain line now and then anywhere else."""

import sys
import time
from typing import Final, TextIO

LIVE_S: Final = 0.2
PLAIN_S: Final = 15.0


class Progress:
    """Tells a person, on ``stream``, without getting into the way of other lines."""

    def __init__(self, total: int, stream: TextIO = sys.stderr) -> None:
        self._total = total
        self._stream = stream
        self._is_live = stream.isatty()
        self._started = time.monotonic()
        self._told_at = self._started if not self._is_live else 0.0
        self._line = ""

    def update(self, done: int, text: str) -> None:
        """Say that ``done`` of all are finished, with ``text`` about them; most calls say nothing."""
        now = time.monotonic()
        if now - self._told_at < (LIVE_S if self._is_live else PLAIN_S):
            return
        self._told_at = now
        left_s = (now - self._started) / done * (self._total - done) if done else 0.0
        line = f"{done} of {self._total}  {text}" + (f"  {format_duration(left_s)} left" if done else "")
        if self._is_live:
            self._line = line
            self._stream.write(f"\r\x1b[2K{line}")
            self._stream.flush()
        else:
            self.say(line)

    def say(self, text: str) -> None:
        """Write a line that stays."""
        self.clear()
        self._stream.write(text + "\n")
        if self._line:
            self._stream.write(self._line)
        self._stream.flush()

    def clear(self) -> None:
        """Take the live line away."""
        if self._line:
            self._stream.write("\r\x1b[2K")
            self._stream.flush()

    def close(self) -> None:
        """Take the live line away for good."""
        self.clear()
        self._line = ""


def format_duration(seconds: float) -> str:
    """Return ``seconds`` as people say it: ``4 s``, ``3:07`` or ``2:04:11``."""
    whole = round(seconds)
    hours, minutes = whole // 3600, whole % 3600 // 60
    if hours:
        return f"{hours}:{minutes:02}:{whole % 60:02}"
    return f"{minutes}:{whole % 60:02}" if minutes else f"{whole} s"
