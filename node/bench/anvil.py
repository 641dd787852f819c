"""The same flood against anvil, as a measure of what one machine does for a developer elsewhere.

One second blocks, a gas limit that does not bind, the chain id of shard 0: the transactions, the client, the batches and the
connections are those of the run beside it. Mined is all that anvil knows, there is no finality; it keeps nothing on disk.
"""

import asyncio
import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import psutil

from node.bench.devnet import DevnetError
from node.bench.flood import Flood, Pacing
from node.bench.funding import deploy_token, fund_accounts
from node.bench.settled import Watched, compute_rate
from node.bench.signed import FloodKnobs, ShardSource
from node.bench.stages import read_machine_s
from node.launcher.ports import is_free
from node.load.client import NoAnswerError, RpcConnection
from shardyard.ids import compute_chain_id

BLOCK_GAS = 1_000_000_000
BALANCE_ETHER = 10**12
MINING = {"--block-time": 1, "--order": "fifo"}
SMALLER = (4, 50)
"""Connections and batch of the second try."""
EXPECTED_TPS = 20_000.0
"""Transactions per second to sign for: above what it takes."""
READY_S = 20.0
POLL_S = 0.05
DRAIN_S = 5.0
PORTS = range(30_100, 30_200)


class AnvilLeg(msgspec.Struct, frozen=True):
    """What anvil did with one flood."""

    version: str
    flags: str
    connections: int
    batch: int
    accepted: int
    refused: int
    is_exhausted: bool
    """Whether more could have been taken than was signed: then the rate is no measure."""
    mined_tps: float
    cpu_us: float
    """Of anvil's process, per mined transaction."""
    cores_others: float
    """Taken meanwhile by what is neither anvil nor the client."""


def list_anvil_knobs(knobs: FloodKnobs) -> list[FloodKnobs]:
    """Return the floods whose best counts: that of the run beside it, and one of smaller requests, which anvil may prefer."""
    smaller = msgspec.structs.replace(knobs, connections=SMALLER[0], batch=SMALLER[1])
    return [knobs] if smaller == knobs else [knobs, smaller]


def describe_anvil(leg: AnvilLeg) -> str:
    """Return a try for people."""
    return (
        f"{leg.version} ({leg.flags}), {leg.connections} connections, batches of {leg.batch}: {leg.mined_tps:,.0f} mined tx/s, "
        f"accepted {leg.accepted}, refused {leg.refused}, {leg.cpu_us:.0f} us of its own CPU per transaction, "
        f"{leg.cores_others:.2f} cores taken by others"
        + ("; it took all that was signed before the time was over" if leg.is_exhausted else "")
    )


async def measure_anvil(program: Path, knobs: FloodKnobs, seconds: float, warm_up_s: float) -> AnvilLeg:
    """Flood a new anvil as fast as it answers."""
    port = next(port for port in PORTS if is_free(port))
    url = f"http://127.0.0.1:{port}"
    count = round(EXPECTED_TPS * seconds)
    with _start(program, port) as process:
        version = await _wait_ready(url, process)
        source = ShardSource(knobs, 0)
        if knobs.kind == "erc20":
            source.token = await deploy_token(url, 0)
        source.token = await fund_accounts(url, source, source.token, count, settled="latest")
        plan = await asyncio.to_thread(source.sign, count)
        watched = Watched()
        watching = asyncio.create_task(_watch(url, watched), name="watch-anvil")
        flood = Flood(url, plan.queues)
        before, machine, own = _read_cpu_s(process.pid), read_machine_s(), time.process_time()
        started = time.monotonic()
        try:
            await flood.run(Pacing(started, seconds))
            ended = time.monotonic()
            await asyncio.sleep(DRAIN_S)
            cpu_s = _read_cpu_s(process.pid) - before
            others_s = read_machine_s() - machine - cpu_s - (time.process_time() - own)
            elapsed_s = time.monotonic() - started
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
        blocks = await _read_blocks(url, watched)
    mined = sum(map(len, blocks.values()))
    return AnvilLeg(
        version=version,
        flags=" ".join(_list_flags()),
        connections=knobs.connections,
        batch=knobs.batch,
        accepted=flood.accepted,
        refused=sum(flood.refusals.values()),
        is_exhausted=flood.is_exhausted,
        mined_tps=round(compute_rate(watched, blocks, started + warm_up_s, ended), 1),
        cpu_us=round(cpu_s / max(1, mined) * 1e6, 1),
        cores_others=round(max(0.0, others_s) / elapsed_s, 2),
    )


def _list_flags() -> list[str]:
    flags = {
        "--chain-id": compute_chain_id(0),
        "--gas-limit": BLOCK_GAS,
        "--balance": BALANCE_ETHER,
        **MINING,
    }
    return [str(item) for pair in flags.items() for item in pair]


@contextlib.contextmanager
def _start(program: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    try:
        process = subprocess.Popen(
            [program, "--silent", "--port", str(port), *_list_flags()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    except OSError as error:
        raise DevnetError(f"anvil: {error}; try: scripts/setup --anvil") from error
    try:
        yield process
    finally:
        # What npm installs is a wrapper; the program itself is its child, and may outlive it.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _read_cpu_s(pid: int) -> float:
    root = psutil.Process(pid)
    return sum(sum(process.cpu_times()[:2]) for process in (root, *root.children(recursive=True)))


async def _wait_ready(url: str, process: subprocess.Popen[bytes]) -> str:
    connection = RpcConnection(url)
    deadline = time.monotonic() + READY_S
    try:
        while time.monotonic() < deadline and process.poll() is None:
            with contextlib.suppress(NoAnswerError):
                return str(await connection.request("web3_clientVersion"))
            await asyncio.sleep(POLL_S)
    finally:
        connection.close()
    raise DevnetError(
        f"anvil does not answer on {url}; try: run it by hand with --port {url.rpartition(':')[2]}"
    )


async def _watch(url: str, watched: Watched) -> None:
    connection = RpcConnection(url, timeout_s=30.0)
    watched.first = watched.finalized = int(await connection.request("eth_blockNumber"), 16)
    while True:
        await asyncio.sleep(POLL_S)
        with contextlib.suppress(NoAnswerError):
            height = int(await connection.request("eth_blockNumber"), 16)
            if height > watched.finalized:
                watched.finalized = height
                watched.finals = [*watched.finals, (time.monotonic(), height)]


async def _read_blocks(url: str, watched: Watched) -> dict[int, list[str]]:
    connection = RpcConnection(url, timeout_s=60.0)
    blocks: dict[int, list[str]] = {}
    for height in range(watched.first + 1, watched.finalized + 1):
        block = await connection.request("eth_getBlockByNumber", hex(height), False)
        blocks[height] = block["transactions"]
    connection.close()
    return blocks


def find_anvil() -> Path | None:
    """Return the anvil that npm installed below ``requirements``, if it did."""
    folder = Path(__file__).parents[2] / "requirements"
    return next(iter(sorted(folder.glob("*/node_modules/.bin/anvil"))), None)
