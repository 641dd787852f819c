"""The demo as a person runs it: a true verdict, and nothing left behind when it is interrupted."""

import asyncio
import json
import os
import signal
import sys

import psutil
import pytest

pytestmark = pytest.mark.network
EXIT_INTERRUPTED = 130


async def start_demo(folder, *arguments):
    environ = {**os.environ, "TMPDIR": str(folder)}
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",
        "-m",
        "node.demo",
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=environ,
    )


def list_processes_of(folder):
    """Return the command lines that name ``folder``."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        line = " ".join(process.info["cmdline"] or ())
        if str(folder) in line:
            found.append(line)
    return found


async def test_demo_ends_with_a_true_verdict_and_leaves_a_report(home):
    demo = await start_demo(home, "--seconds", "4", "--tps", "40")
    async with asyncio.timeout(110):
        out, err = await demo.communicate()
    assert demo.returncode == 0, err.decode()
    assert "verdict: all held" in out.decode()
    (report,) = home.glob("shardyard-demo-*/report.json")
    found = json.loads(report.read_text())
    assert found["held"]
    assert found["story"]["count"] == 2
    assert len(found["recoveries"]) == 2
    assert (report.parent / "logs" / "broker.log").exists()
    assert list_processes_of(home) == []


async def wait_for_load(demo, home):
    async with asyncio.timeout(60):
        async for line in demo.stderr:
            if b"load:" in line:
                break
    assert list_processes_of(home)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
async def test_interrupted_demo_stops_everything_it_started(home, number, eventually_async):
    demo = await start_demo(home)
    await wait_for_load(demo, home)
    demo.send_signal(number)
    async with asyncio.timeout(30):
        await demo.communicate()
    assert demo.returncode == EXIT_INTERRUPTED
    await eventually_async(lambda: not list_processes_of(home), 10)
    assert not list(home.glob("shardyard-demo-*/report.json"))


async def test_network_of_a_demo_that_is_killed_leaves_with_it(home, eventually_async):
    demo = await start_demo(home)
    await wait_for_load(demo, home)
    demo.kill()
    await demo.communicate()
    await eventually_async(lambda: not list_processes_of(home), 30)
