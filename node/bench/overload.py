"""The overload leg of ``e2e``: twice what the network just took, in an open loop, and what must hold meanwhile.

Offered means sent: a request that is refused comes again in the next turn of its connection, so senders keep their nonces,
and nothing is sent beside the schedule. Connections are so many that what waits for an answer exceeds what a node lets wait:
otherwise the client would wait instead of being told to. Memory may grow by what the caps of the mempool and of what waits
for it allow, in bytes of raw transactions. A run too short to fill what may wait shows no back-pressure, and misses it.
"""

from collections.abc import Sequence
from math import ceil

import msgspec

from node.admission import MAX_WAITING, MAX_WAITING_BYTES
from node.bench.legs import Leg
from node.bench.report import Target, at_least, at_most, equals
from node.bench.signed import FloodKnobs
from shards.mempool import POOL_FULL, MempoolLimits

FACTOR = 2.0
"""Offered, over the rate of the peak leg."""
OFFERED = 1.5
"""What of that must really have been sent: the client shares the machine, and the network is busy with what it took."""
RATE_SHARE = 0.9
PACE_SHARE = 0.9
INTERVAL = 1.5
"""Block times, for 95 of 100 blocks."""
BATCH = 500
"""At least: with smaller requests it would take more connections than a node accepts."""
OUTSTANDING = 1.5
"""Transactions under way, over what a node lets wait."""
BACK_PRESSURE = (POOL_FULL, f"HTTP 429: {POOL_FULL}")


def build_overload_knobs(knobs: FloodKnobs) -> FloodKnobs:
    """Return the knobs of a flood that does not wait for answers before a node is full."""
    batch = max(knobs.batch, BATCH)
    connections = max(knobs.connections, ceil(OUTSTANDING * MAX_WAITING / batch))
    return msgspec.structs.replace(
        knobs, batch=batch, connections=connections, accounts=max(knobs.accounts, 2 * connections)
    )


def compute_cap_mb() -> float:
    """Return the MB that a node declares to hold of transactions that are in no block."""
    return (MempoolLimits().max_bytes + MAX_WAITING_BYTES) / 1e6


def get_growth_mb(leg: Leg) -> float:
    """Return by how much the shard that grew most did during a run."""
    return max(
        size - leg.first_mb[name] for name, size in leg.largest_mb.items() if name.startswith("shard-")
    )


def judge_overload(peak: Leg, leg: Leg) -> list[Target]:
    """Return what must hold of an overload after ``peak``; that nothing is lost is judged for every leg."""
    other = sum(count for said, count in leg.refusals.items() if said not in BACK_PRESSURE)
    refused = sum(leg.refusals.values()) - other
    shards = [pace for pace in leg.pace if pace.chain != "beacon"]
    beacon = [pace for pace in leg.pace if pace.chain == "beacon"]
    targets = [
        at_least(
            "overload: offered over the peak's rate",
            _ratio(leg.offered_tps, peak.final_tps),
            OFFERED,
            "times",
        ),
        at_least("overload: refused by back-pressure", refused, 1, "transactions"),
        equals("overload: refused in other words", other, 0, "transactions"),
        at_least(
            "overload: rate over the peak's", _ratio(leg.final_tps, peak.final_tps), RATE_SHARE, "times"
        ),
        at_most("overload: growth of a shard's memory", get_growth_mb(leg), compute_cap_mb(), "MB"),
    ]
    for name, paces in (("shards", shards), ("beacon", beacon)):
        targets += [
            at_least(
                f"overload: slots of the {name}",
                min(pace.of_block_time for pace in paces),
                PACE_SHARE,
                "of the block time's",
            ),
            at_most(
                f"overload: time between blocks of the {name}, p95",
                max(pace.interval_p95_s for pace in paces),
                INTERVAL * paces[0].block_time_s,
                "s",
            ),
        ]
    return targets


def find_leg(legs: Sequence[Leg], role: str) -> Leg | None:
    """Return the leg with this role."""
    return next((leg for leg in legs if leg.role == role), None)


def _ratio(got: float, base: float) -> float:
    return round(got / max(1.0, base), 3)
