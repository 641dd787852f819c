"""The pace of a chain as somebody beside it sees it: time between blocks, slots passed, against the preset's block time.

A leader waits a block time after its parent, so an idle chain makes one block per block time; a chain that is short of
processor time makes its blocks late, or its slots end without one.
"""

import asyncio
import contextlib
import time
from collections.abc import Sequence
from itertools import pairwise
from math import ceil

import msgspec

from node.bench.devnet import Devnet
from node.control import ControlError

POLL_S = 0.05
SLOW = 2.0
"""Block times after which a block counts as slow."""


class Head(msgspec.Struct, frozen=True):
    """The newest block of a chain, when it was seen first."""

    seen: float
    height: int
    slot: int


class Pace(msgspec.Struct, frozen=True):
    """How regularly a chain made blocks during a run."""

    chain: str
    block_time_s: float
    """The preset's."""
    blocks: int
    interval_p95_s: float
    """Between blocks; of blocks seen together the mean."""
    of_block_time: float
    """Slots passed over the slots that the preset's block time allows for."""
    skipped: int
    """Slots without a block."""
    slow: int
    """Blocks that took more than twice the block time."""
    empty: int
    """Blocks without a transaction; the beacon's are not looked into."""


def compute_pace(
    chain: str, heads: Sequence[Head], begin: float, end: float, block_time_s: float, empty: int = 0
) -> Pace:
    """Return the pace between the first and the last head that was seen from ``begin`` to ``end``.

    What a chain lets pass before the first and after the last, beyond a block time, counts against it. A chain
    that showed no two heads has stood still all the time.
    """
    seen = [head for head in heads if begin <= head.seen <= end]
    if len(seen) < 2:
        return Pace(chain, block_time_s, len(seen), round(end - begin, 3), 0.0, 0, 1, empty)
    intervals: list[float] = []
    for last, head in pairwise(seen):
        intervals += [(head.seen - last.seen) / (head.height - last.height)] * (head.height - last.height)
    first, last = seen[0], seen[-1]
    waits = (first.seen - begin, end - last.seen)
    longest = max(intervals)
    intervals += [wait for wait in waits if wait > longest]  # what has not come by the end is late already
    blocks, slots = last.height - first.height, last.slot - first.slot
    # Up to a block time is waited for any block; the rest of a wait at either end are slots that did not pass.
    lost_s = sum(max(0.0, wait - block_time_s) for wait in waits)
    return Pace(
        chain=chain,
        block_time_s=block_time_s,
        blocks=blocks,
        interval_p95_s=round(sorted(intervals)[ceil(0.95 * len(intervals)) - 1], 3),
        of_block_time=round(slots * block_time_s / (last.seen - first.seen + lost_s), 3),
        skipped=slots - blocks,
        slow=sum(interval > SLOW * block_time_s for interval in intervals),
        empty=empty,
    )


async def watch_beacon(devnet: Devnet, heads: list[Head]) -> None:
    """Note the beacon's heads until cancelled."""
    while True:
        with contextlib.suppress(ControlError):
            status = await devnet.ask("beacon-0", "status")
            if not heads or status["height"] > heads[-1].height:
                heads.append(Head(time.monotonic(), status["height"], status["slot"]))
        await asyncio.sleep(POLL_S)
