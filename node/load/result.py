"""What a run came to: counts that must add up, latencies by stage, and whether the run may be believed.

A run is invalid when accepted + rejected + lost is not what was sent, and when nothing is left to measure: zeros are never
shown as if they were latencies. A cross-shard transaction counts once, when its last effect is beacon-final; the half-and-half
count of other tools stands beside it.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from node.load.tracker import NEVER, Tracked

RESULT_VERSION = 1


class Latency(msgspec.Struct, frozen=True):
    """A distribution of seconds; all zero when it is empty."""

    count: int
    p50: float
    p95: float
    p99: float
    max: float


class LoadResult(msgspec.Struct, frozen=True):
    """The result of one run, as ``result.json`` has it. Times in seconds, rates per second."""

    version: int
    scenario: str
    seed: int
    shards: int
    target_tps: float
    cross_ratio: float
    duration_s: float
    """From the first due moment to the last."""
    sent: int
    accepted: int
    rejected: int
    lost: int
    """Sent, and nobody ever answered."""
    settled: int
    """Accepted, and the last effect is beacon-final."""
    unsettled: int
    """Accepted, and not settled."""
    repeated: int
    retries: int
    refusals: dict[str, int]
    sent_tps: float
    """By the moments of sending: below the target where the generator or a node made transactions wait."""
    settled_tps: float
    """Each transaction once, whether it stayed or crossed."""
    half_and_half_tps: float
    """A cross-shard transaction as one half where it began and one half where it ended."""
    latency: dict[str, Latency]
    problems: tuple[str, ...]

    @property
    def is_valid(self) -> bool:
        """Whether the numbers may be believed."""
        return not self.problems


def compute_latency(values: Iterable[float]) -> Latency:
    """Return the distribution of ``values`` by nearest rank."""
    ordered = sorted(values)
    if not ordered:
        return Latency(0, 0.0, 0.0, 0.0, 0.0)

    def rank(share: float) -> float:
        return round(ordered[max(0, math.ceil(share * len(ordered)) - 1)], 3)

    return Latency(len(ordered), rank(0.5), rank(0.95), rank(0.99), round(ordered[-1], 3))


def compute_latencies(tracked: Sequence[Tracked]) -> dict[str, Latency]:
    """Return the latency of every stage from the moment a transaction was due."""
    local = [item for item in tracked if not item.is_cross]
    cross = [item for item in tracked if item.is_cross]

    def stage(items: Sequence[Tracked], name: str) -> Latency:
        moments = ((getattr(item, name), item.due) for item in items)
        return compute_latency(moment - due for moment, due in moments if moment != NEVER)

    return {
        "answered": stage([item for item in tracked if item.is_accepted], "answered"),
        "local.included": stage(local, "included"),
        "local.beacon_final": stage(local, "settled"),
        "cross.included": stage(cross, "included"),
        "cross.executed": stage(cross, "executed"),
        "cross.beacon_final": stage(cross, "settled"),
    }


def build_result(
    tracked: Sequence[Tracked],
    *,
    scenario: str,
    seed: int,
    shards: int,
    target_tps: float,
    cross_ratio: float,
    warm_up_s: float,
    refusals: Mapping[str, int],
    retries: int,
    late_s: float = 0.0,
) -> LoadResult:
    """Add up what became of every transaction of a run."""
    sent = [item for item in tracked if item.sent != NEVER]
    accepted = sum(item.is_accepted for item in sent)
    rejected = sum(bool(item.refusal) for item in sent)
    lost = sum(item.answered == NEVER for item in sent)
    settled = [item for item in sent if item.is_accepted and item.settled != NEVER]
    repeated = sum(item.is_repeated for item in sent)
    first, last = (min(item.due for item in sent), max(item.due for item in sent)) if sent else (0.0, 0.0)
    duration = max(last - first, 1 / target_tps)
    measured = [item for item in sent if item.due >= first + warm_up_s]
    last_sent = max((item.sent for item in sent), default=last)
    end = max((item.settled for item in settled), default=last)
    problems = []
    if not sent:
        problems.append("nothing was sent")
    if accepted + rejected + lost != len(sent):
        problems.append(
            f"accepted {accepted} + rejected {rejected} + lost {lost} is not the {len(sent)} sent"
        )
    if late_s:
        problems.append(
            f"signing fell {late_s:.1f} s behind, so the generator was measured; try: a lower rate"
        )
    if repeated:
        problems.append(f"{repeated} transactions or messages were seen in two blocks")
    if sent and not any(item.is_accepted and item.settled != NEVER for item in measured):
        problems.append(
            f"nothing that was due after the warm-up of {warm_up_s:g} s became beacon-final, so nothing was measured; "
            "try: a longer --duration, or a shorter --warm-up"
        )
    span = max(end - first, duration)  # a chain that stopped half-way was not faster for it
    return LoadResult(
        version=RESULT_VERSION,
        scenario=scenario,
        seed=seed,
        shards=shards,
        target_tps=target_tps,
        cross_ratio=cross_ratio,
        duration_s=round(duration, 3),
        sent=len(sent),
        accepted=accepted,
        rejected=rejected,
        lost=lost,
        settled=len(settled),
        unsettled=accepted - len(settled),
        repeated=repeated,
        retries=retries,
        refusals=dict(Counter(refusals)),
        sent_tps=round(len(sent) / (max(last_sent, last) - first + 1 / target_tps), 2),
        settled_tps=round(len(settled) / span, 2),
        half_and_half_tps=round(_count_halves(sent) / span, 2),
        latency=compute_latencies(measured),
        problems=tuple(problems),
    )


def _count_halves(tracked: Iterable[Tracked]) -> float:
    return sum(
        (0.5 * (item.included != NEVER) + 0.5 * (item.executed != NEVER))
        if item.is_cross
        else item.included != NEVER
        for item in tracked
    )


def build_rows(result: LoadResult) -> list[tuple[str, ...]]:
    """Return the latency table: stage, count, p50, p95, p99, max."""
    return [
        (name, str(found.count), *(f"{value:.3f}" for value in (found.p50, found.p95, found.p99, found.max)))
        for name, found in result.latency.items()
    ]


LATENCY_COLUMNS = ("Stage", "Count", "p50 s", "p95 s", "p99 s", "max s")
