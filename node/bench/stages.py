"""Where processor time goes: by process, by thread of the native pool, and by stage as the nodes time themselves."""

import asyncio
import contextlib
import os
import time
from pathlib import Path

import msgspec
import psutil

from shardyard import _native

POOL_THREAD = "shardyard-"
"""Threads of this name recover senders and execute blocks, and do nothing else."""
_TICKS = os.sysconf("SC_CLK_TCK")
_COLUMNS = 8
"""Of the system's processor times; what follows is counted in these already."""
MEMORY_POLL_S = 0.2


class CpuReading(msgspec.Struct, frozen=True):
    """Seconds of processor time so far."""

    by_process: dict[str, float]
    pool: float
    """Of the native pools of all processes: recovery, execution and commitment."""
    client: float
    """Of this process."""
    machine: float
    """Of everything that ran on this machine."""

    def since(self, before: "CpuReading") -> "CpuReading":
        """Return what was used between two readings."""
        used = {name: value - before.by_process.get(name, 0.0) for name, value in self.by_process.items()}
        return CpuReading(
            used, self.pool - before.pool, self.client - before.client, self.machine - before.machine
        )

    @property
    def total(self) -> float:
        """Of all processes and this one."""
        return sum(self.by_process.values()) + self.client

    @property
    def others(self) -> float:
        """Of everything that is not ours."""
        return max(0.0, self.machine - self.total)


def read_cpu(pids: dict[str, int]) -> CpuReading:
    """Read what the processes, by name, have used."""
    by_process = {name: sum(psutil.Process(pid).cpu_times()[:2]) for name, pid in pids.items()}
    pool = sum(_read_pool(pid) for pid in pids.values())
    return CpuReading(by_process, pool, time.process_time(), read_machine_s())


def read_machine_s() -> float:
    """Return the processor time that everything on this machine has used."""
    times = psutil.cpu_times()
    return float(sum(times[:_COLUMNS]) - times.idle - getattr(times, "iowait", 0.0))


class MemoryWatch:
    """Memory of processes, by name, in MB: at the beginning, and the largest that was seen since."""

    def __init__(self, pids: dict[str, int]) -> None:
        self._pids = pids
        self.first = read_memory_mb(pids)
        self.largest = dict(self.first)

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            await asyncio.sleep(MEMORY_POLL_S)
            for name, size in read_memory_mb(self._pids).items():
                self.largest[name] = max(self.largest[name], size)


def read_memory_mb(pids: dict[str, int]) -> dict[str, float]:
    """Return the resident memory of each process, less what it maps of files where the system tells them apart.

    Pages of files, the index above all, are the system's to take back, and grow with the chain and not with what is offered.
    """
    found = {name: psutil.Process(pid).memory_info() for name, pid in pids.items()}
    return {name: round((info.rss - getattr(info, "shared", 0)) / 1e6, 1) for name, info in found.items()}


def _read_pool(pid: int) -> float:
    """Return the time of a process's native threads; 0 where the system does not tell threads apart."""
    total = 0.0
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):
                name, _, fields = (task / "stat").read_text().partition("(")[2].rpartition(")")
                if name.startswith(POOL_THREAD):
                    user, system = fields.split()[11:13]
                    total += (int(user) + int(system)) / _TICKS
    return total


def measure_recovery_us(submission: _native.Submission, chain_id: int, shard: int) -> float:
    """Return the processor time that decoding and recovering one of these transactions takes, on one thread."""
    core = _native.Core(chain_id=chain_id, shard=shard)
    started = time.process_time()
    core.prepare_submissions([submission])
    return (time.process_time() - started) / len(submission) * 1e6
