"""How long finality is away after a kill.

Finality is back when every chain, the beacon included, has a final block that it had not when the process died. The heads of
the shards are those that the load's tracker reads all the time; the beacon is asked on its control socket. Stronger, and
reported beside it: until a block made after the kill is beacon-final on every shard.
"""

import asyncio
import time

import msgspec

from node.bench.devnet import Devnet
from node.control import ControlError
from node.load.tracker import Tracker

POLL_S = 0.02
GIVE_UP_S = 30.0


class Recovery(msgspec.Struct, frozen=True):
    """What one kill cost, in seconds from the signal; -1 for never within ``GIVE_UP_S``."""

    victim: str
    at_s: float
    """When, counted from the start of the bench."""
    resumed_s: float
    beacon_final_s: float


async def read_beacon_height(devnet: Devnet) -> int:
    """Return the beacon's final height, -1 while it does not answer."""
    try:
        return int((await devnet.ask("beacon-0", "status"))["height"])
    except (ControlError, KeyError, TypeError):
        return -1


async def kill_and_wait(devnet: Devnet, tracker: Tracker, victim: str, started: float) -> Recovery:
    """Kill ``victim``; return when finality is back everywhere, or given up."""
    beacon_before = await read_beacon_height(devnet)
    before = [heads.latest for heads in tracker.heads]
    killed = time.monotonic()
    await devnet.kill(victim)
    resumed = final = -1.0
    while final < 0 and time.monotonic() < killed + GIVE_UP_S:
        await asyncio.sleep(POLL_S)
        heads = list(zip(tracker.heads, before, strict=True))
        is_back = all(head.latest > height for head, height in heads)
        if resumed < 0 and is_back and await read_beacon_height(devnet) > beacon_before:
            resumed = time.monotonic() - killed
        if resumed >= 0 and all(head.finalized > height for head, height in heads):
            final = time.monotonic() - killed
    return Recovery(victim, round(killed - started, 2), round(resumed, 3), round(final, 3))
