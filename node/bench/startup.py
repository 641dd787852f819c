"""``startup``: from ``shardyard up -s 4`` to an answer of every shard, on files that are warm and on a network that exists."""

import asyncio
import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import psutil

from node.bench.devnet import Devnet
from node.bench.report import BenchReport, at_most, build_report, say
from node.config import Options
from node.load.client import NoAnswerError, RefusedError, RpcConnection
from node.load.result import compute_latency

LIMIT_S = 3.0
GIVE_UP_S = 60.0
POLL_S = 0.01
COMMAND = (sys.executable, "-P", "-c", "from node.cli import main; main()")


class Start(msgspec.Struct, frozen=True):
    """One start, in seconds from the command: first answers of all shards, and the end of ``up -d``."""

    is_fresh: bool
    answered_s: float
    returned_s: float
    cpu_s: float
    """Processor time of all processes until then: what does not depend on who else was busy."""


async def measure_startup(folder: Path, count: int) -> BenchReport:
    """Start a network ``count`` times fresh, and as often from what is on disk."""
    starts: list[Start] = []
    for number in range(count):
        home = folder / f"run-{number}"
        devnet = Devnet(home, Options(name="startup", shards=4, validators=4))  # chooses ports
        for is_fresh in (True, False):
            start = await _start_once(devnet, home, is_fresh=is_fresh)
            starts.append(start)
            kind = "fresh" if is_fresh else "again"
            say(
                f"{kind}: every shard answers after {start.answered_s:.2f} s, `up -d` returns after {start.returned_s:.2f} s, "
                f"{start.cpu_s:.2f} s of processor time"
            )
    fresh = compute_latency(start.answered_s for start in starts if start.is_fresh)
    again = compute_latency(start.answered_s for start in starts if not start.is_fresh)
    cpu = compute_latency(start.cpu_s for start in starts)
    targets = [
        at_most("fresh network, median", fresh.p50, LIMIT_S, "s"),
        at_most("existing network, median", again.p50, LIMIT_S, "s"),
    ]
    summary = (
        f"`up -s 4` answers eth_blockNumber on all shards after {fresh.p50:.2f} s fresh (max {fresh.max:.2f} s), "
        f"{again.p50:.2f} s again (max {again.max:.2f} s), with {cpu.p50:.2f} s of processor time"
    )
    return build_report("startup", summary, targets, {"starts": msgspec.to_builtins(starts)})


async def _start_once(devnet: Devnet, home: Path, *, is_fresh: bool) -> Start:
    options = devnet.options
    ports = ["--port-base", str(options.port_base), "--broker-port", str(options.broker_port)]
    arguments = [
        "up",
        "-d",
        "--name",
        options.name,
        "-s",
        str(options.shards),
        *ports,
        *(["--fresh"] if is_fresh else []),
    ]
    environ = {**os.environ, "SHARDYARD_HOME": str(home)}
    launcher: psutil.Process | None = None
    before = _read_children_cpu_s()
    with (home / "up.log").open("ab") as log:
        started = time.monotonic()
        process = await asyncio.create_subprocess_exec(
            *COMMAND, *arguments, env=environ, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
    try:
        await asyncio.gather(*(_wait_answer(url) for url in devnet.urls))
        answered = time.monotonic() - started
        launcher = psutil.Process(int((devnet.network.root / "launcher.lock").read_text()))
        async with asyncio.timeout(GIVE_UP_S):
            await process.wait()
        returned = time.monotonic() - started
        cpu = measure_cpu_s(launcher) + _read_children_cpu_s() - before
    finally:
        await _stop(process, launcher)
    return Start(is_fresh, round(answered, 3), round(returned, 3), round(cpu, 2))


def measure_cpu_s(launcher: psutil.Process) -> float:
    """Return the processor time of a launcher and its children so far."""
    return sum(sum(process.cpu_times()[:2]) for process in (launcher, *launcher.children()))


def _read_children_cpu_s() -> float:
    """Return the processor time of our own children that have ended."""
    times = os.times()
    return times.children_user + times.children_system


async def _stop(process: asyncio.subprocess.Process, launcher: psutil.Process | None) -> None:
    """Stop the command if it still runs, and the launcher it left behind."""
    if process.returncode is None:
        children = psutil.Process(process.pid).children()
        launcher = launcher or next(iter(children), None)
        process.kill()
        await process.wait()
    if launcher is not None:
        with contextlib.suppress(psutil.NoSuchProcess):
            launcher.terminate()
            await asyncio.to_thread(launcher.wait, GIVE_UP_S)


async def _wait_answer(url: str) -> None:
    connection = RpcConnection(url)
    deadline = time.monotonic() + GIVE_UP_S
    try:
        while True:
            try:
                await connection.request("eth_blockNumber")
            except (NoAnswerError, RefusedError):
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(POLL_S)
            else:
                return
    finally:
        connection.close()
