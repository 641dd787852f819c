"""When to propose and when to give up: names of timers, growth of timeouts, the leader's wait, timestamps.

An idle network makes exactly one block per block time: the leader waits until its parent's timestamp plus the block time,
and stamps the block with that instant unless it is late by a whole block time. It never waits longer than one block time
from entering its slot, whatever the timestamps of others say: so a clock an hour ahead cannot stop the chain (P4).
Timeouts grow with the distance from the last final slot and shrink only by a new finalisation (L6).
"""

from enum import Enum, auto
from typing import Final

from shardyard.consensus.engine import TIMER_PREFIX, EngineConfig
from shardyard.ids import Millis

TIMER_PROPOSE: Final = TIMER_PREFIX + "propose."
TIMER_SLOT: Final = TIMER_PREFIX + "slot."
"""Both are followed by the slot's number, so that a stale one is known by its name."""
TIMER_STANDSTILL: Final = TIMER_PREFIX + "standstill"
TIMER_FETCH: Final = TIMER_PREFIX + "fetch"
TIMER_RANGE: Final = TIMER_PREFIX + "range"

FUTURE_SLOTS: Final = 64
"""Votes, certificates and proposals are taken up to this many slots ahead; a node further behind asks for ranges."""
MAX_GROWTH = 32
"""Timeouts grow by at most this many Δ."""
USUAL_DISTANCE = 2
"""Slots between the last final one and the current one when all goes well."""


class ProposalPhase(Enum):
    """How far the local leader of the current slot has come."""

    WAITING = auto()
    """No parent that it can justify and has executed."""
    TIMED = auto()
    DUE = auto()
    ASKED = auto()
    """The host is building."""
    DONE = auto()


def compute_growth(config: EngineConfig, slot: int, final_slot: int) -> int:
    """Return by how many milliseconds the timeouts of ``slot`` exceed the usual ones (L6)."""
    return config.delta_ms * min(MAX_GROWTH, max(0, slot - final_slot - USUAL_DISTANCE))


def compute_standstill_period(config: EngineConfig) -> int:
    """Return how long nothing may become final before everything is said again (L7)."""
    return config.block_time_ms + 2 * config.delta_ms


def compute_wait(config: EngineConfig, parent_ms: int, now_ms: int) -> int:
    """Return how long the leader waits before it builds on a parent of that timestamp."""
    return min(config.block_time_ms, max(0, parent_ms + config.block_time_ms - now_ms))


def compute_timestamp(config: EngineConfig, parent_ms: int, now_ms: int) -> Millis:
    """Return the timestamp of a block proposed now (P4)."""
    due = parent_ms + config.block_time_ms
    if due <= now_ms < due + config.block_time_ms:
        return Millis(due)
    return Millis(max(parent_ms + 1, min(now_ms, parent_ms + config.max_step_ms)))
