"""``idle``: what a network costs that does nothing but make its blocks: processor time and memory of every process."""

import asyncio
import time
from pathlib import Path

import psutil

from node.bench.devnet import Devnet
from node.bench.report import BenchReport, at_most, build_report, say
from node.config import Options
from node.load.tracker import Tracker

CPU_LIMIT = 0.25
"""Of one core, for all processes together."""
USS_LIMIT_MB = 90.0
SETTLE_S = 6.0
BLOCK_TOLERANCE = 0.1


async def measure_idle(folder: Path, duration_s: float) -> BenchReport:
    """Let a network idle and read what its processes used."""
    async with Devnet(folder, Options(name="idle", shards=4, validators=4)) as devnet:
        say(f"network ready in {devnet.starts[0]:.2f} s; watching for {duration_s:g} s")
        await asyncio.sleep(SETTLE_S)
        processes = {name: psutil.Process(pid) for name, pid in (await devnet.get_pids()).items()}
        heads_before = await _read_heads(devnet.urls)
        before, started = _read_cpu(processes), time.monotonic()
        await asyncio.sleep(duration_s)
        after, took = _read_cpu(processes), time.monotonic() - started
        heads = await _read_heads(devnet.urls)
        uss = {name: process.memory_full_info().uss / 1e6 for name, process in processes.items()}
    cpu = {name: (after[name] - before[name]) / took for name in processes}
    rates = [(new - old) / took for old, new in zip(heads_before, heads, strict=True)]
    shards = max(uss[name] for name in uss if name.startswith("shard-"))
    targets = [
        at_most("processor time of the whole network", sum(cpu.values()), CPU_LIMIT, "cores"),
        at_most("largest shard process", shards, USS_LIMIT_MB, "MB USS"),
        at_most("slowest shard, short of a block per second by", 1 - min(rates), BLOCK_TOLERANCE, "blocks/s"),
    ]
    parts = ", ".join(f"{name} {share * 100:.1f} %" for name, share in cpu.items())
    say(parts)
    summary = (
        f"whole network {sum(cpu.values()) * 100:.1f} % of one core at {min(rates):.2f} blocks/s a shard, "
        f"largest shard {shards:.0f} MB USS, all processes {sum(uss.values()):.0f} MB"
    )
    details = {
        "cpu": {name: round(share, 4) for name, share in cpu.items()},
        "uss_mb": {name: round(size, 1) for name, size in uss.items()},
        "block_rates": [round(rate, 3) for rate in rates],
        "seconds": round(took, 2),
    }
    return build_report("idle", summary, targets, details)


def _read_cpu(processes: dict[str, psutil.Process]) -> dict[str, float]:
    return {name: sum(process.cpu_times()[:2]) for name, process in processes.items()}


async def _read_heads(urls: list[str]) -> list[int]:
    tracker = Tracker(urls)
    await tracker.start()
    return [heads.latest for heads in tracker.heads]
