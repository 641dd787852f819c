"""``latency``: how long a transaction takes on an idle machine, here and across shards, from the moment it was due."""

from pathlib import Path

import msgspec

from node.bench.devnet import Devnet
from node.bench.report import BenchReport, at_most, build_report, equals, say
from node.config import Options
from node.load.run import LoadRun, RunOptions
from node.load.workload import Knobs

TPS = 20.0
CROSS_RATIO = 0.5
EXECUTED_LIMIT_S = 4.0
FINAL_LIMIT_S = 6.0
WARM_UP_S = 3.0


async def measure_latency(folder: Path, duration_s: float, seed: int) -> BenchReport:
    """Run a light load, half of it across shards."""
    async with Devnet(folder, Options(name="latency", shards=4, validators=4)) as devnet:
        say(
            f"network ready in {devnet.starts[0]:.2f} s; {TPS:g} tx/s for {duration_s:g} s, half of them across shards"
        )
        knobs = Knobs(shards=4, tps=TPS, cross_ratio=CROSS_RATIO, accounts=16, seed=seed)
        result = await LoadRun(devnet.urls, knobs, RunOptions(duration_s + WARM_UP_S, WARM_UP_S), say).run()
    local, executed, final = (
        result.latency[name] for name in ("local.included", "cross.executed", "cross.beacon_final")
    )
    targets = [
        at_most("cross-shard executed, p95", executed.p95, EXECUTED_LIMIT_S, "s"),
        at_most("cross-shard beacon-final, p95", final.p95, FINAL_LIMIT_S, "s"),
        equals("not settled", result.sent - result.settled, 0, "transactions"),
    ]
    summary = (
        f"{final.count} cross-shard transfers at 1 s blocks: executed p50 {executed.p50:.2f} s p95 {executed.p95:.2f} s, "
        f"beacon-final p50 {final.p50:.2f} s p95 {final.p95:.2f} s; local final p50 {local.p50:.2f} s p95 {local.p95:.2f} s"
    )
    return build_report("latency", summary, targets, {"load": msgspec.to_builtins(result)})
