"""``python -P -m node.bench NAME``: run one bench; without a name, say what there is to measure.

Every bench ends with one line, writes JSON with ``--json PATH``, and with ``--check`` exits 6 when a target is missed.
"""

import argparse
import asyncio
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from node.bench.commitment import measure_commitment
from node.bench.e2e import CONNECTIONS, E2eOptions, measure_e2e
from node.bench.executor import ExecutorOptions, measure_executor
from node.bench.faults import FaultOptions, measure_faults
from node.bench.hostile import measure_hostile
from node.bench.hundredk import measure_hundred_k
from node.bench.idle import measure_idle
from node.bench.kill import measure_kills
from node.bench.kill_ledger import DEFAULT_PATH, KillOptions
from node.bench.latency import measure_latency
from node.bench.page import CHOICES, PageOptions, make_page
from node.bench.report import BenchReport, finish, say
from node.bench.startup import measure_startup
from node.bench.torn import measure_torn
from shardyard.errors import ShardyardError

EXIT_INTERRUPTED = 130
BENCHES = {
    "kill": "random SIGKILLs over all processes under load, then the audit",
    "faults": "processes down, cut off, asleep, without a disk, lying: pace, halt, and time to finality after each",
    "latency": "how long transfers take on an idle machine, here and across shards",
    "idle": "processor time and memory of a network that does nothing",
    "e2e": "signed transactions in at the public JSON-RPC, beacon-final out",
    "hundred-k": "what 100,000 signed token calls per second to beacon-final take: measured, or projected",
    "startup": "from `shardyard up -s 4` to an answer of every shard",
    "executor": "what the parallel executor gains over sequential revm, by workload, threads and block size",
    "hostile": "what blocks made to hurt the executor cost over executing them in order, in time and processor",
    "page": "runs the benches of speed and writes docs/performance.md with its plots",
    "torn": "a log of 64 KiB cut, flipped and zeroed at every byte, opened again each time",
    "commitment": "what hashing a block costs: elements, leaves, whole blocks, on one thread and on several",
}
Measure = Callable[[argparse.Namespace, Path], Awaitable[BenchReport]]


async def _kill(options: argparse.Namespace, folder: Path) -> BenchReport:
    names = ("seed", "tps", "shards", "nodes_per_shard", "validators", "leg")
    chosen = KillOptions(**{name: getattr(options, name) for name in names})
    return await measure_kills(folder, chosen, options.ledger, options.count, is_summary=options.summary)


async def _faults(options: argparse.Namespace, folder: Path) -> BenchReport:
    chosen = FaultOptions(options.seed, options.shards, options.seconds, options.pause, options.seconds / 2)
    return await measure_faults(folder, chosen)


async def _latency(options: argparse.Namespace, folder: Path) -> BenchReport:
    return await measure_latency(folder, options.seconds, options.seed)


async def _idle(options: argparse.Namespace, folder: Path) -> BenchReport:
    return await measure_idle(folder, options.seconds)


async def _startup(options: argparse.Namespace, folder: Path) -> BenchReport:
    return await measure_startup(folder, options.count)


async def _commitment(_: argparse.Namespace, folder: Path) -> BenchReport:
    return await measure_commitment(folder)


async def _torn(_: argparse.Namespace, folder: Path) -> BenchReport:
    return await measure_torn(folder)


async def _e2e(options: argparse.Namespace, folder: Path) -> BenchReport:
    names = (
        "kind",
        "shards",
        "seconds",
        "rate",
        "connections",
        "batch",
        "accounts",
        "executors",
        "seed",
        "overload",
        "anvil",
    )
    chosen = {name: getattr(options, name) for name in names}
    return await measure_e2e(folder, E2eOptions(cross=options.cross / 100, **chosen))


async def _hundred_k(options: argparse.Namespace, folder: Path) -> BenchReport:
    return await measure_hundred_k(folder, options.earlier, options.seed)


async def _executor(options: argparse.Namespace, folder: Path) -> BenchReport:
    chosen = ExecutorOptions(
        options.blocks, options.threads, options.rounds, options.only, not options.no_pyrevm
    )
    return await measure_executor(folder, chosen)


async def _hostile(options: argparse.Namespace, folder: Path) -> BenchReport:
    return await measure_hostile(folder, options.rounds, options.only)


async def _page(options: argparse.Namespace, _: Path) -> BenchReport:
    chosen = PageOptions(options.only, options.render, options.force, options.seconds)
    return await make_page(chosen)


def read_count(text: str) -> int:
    """Return a number from 1 on."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a number from 1 on")
    return int(text)


def read_counts(text: str) -> tuple[int, ...]:
    """Return the numbers of a list such as ``1000,10000``."""
    counts = tuple(int(part) for part in text.split(","))
    if min(counts) < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected numbers from 1 on, such as 1000,10000")
    return counts


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(prog="scripts/bench", description="Measure one promise of a network.")
    commands = parser.add_subparsers(dest="bench")
    made = {name: commands.add_parser(name, help=text, description=text) for name, text in BENCHES.items()}
    for command in made.values():
        command.add_argument("--json", type=Path, default=None, metavar="PATH", help="write the report here")
        command.add_argument("--check", action="store_true", help="exit 6 when a target is missed")
        command.add_argument("--keep", action="store_true", help="keep chains and logs, and say where")
        command.add_argument("--seed", type=int, default=1, help="of load and victims")
    _add_kill_arguments(made["kill"])
    made["faults"].add_argument("--shards", type=int, default=2, help="of four processes each")
    made["faults"].add_argument(
        "--seconds", type=float, default=30.0, help="to watch a pace; half for a halt"
    )
    made["faults"].add_argument("--pause", type=float, default=30.0, help="seconds of SIGSTOP")
    made["latency"].add_argument("--seconds", type=float, default=30.0, help="length of the load")
    made["idle"].add_argument("--seconds", type=float, default=20.0, help="how long to watch")
    e2e = made["e2e"]
    e2e.add_argument("--kind", choices=("transfer", "erc20"), default="transfer", help="what is sent")
    e2e.add_argument("--shards", type=int, default=1)
    e2e.add_argument("--cross", type=float, default=0.0, metavar="PERCENT", help="that leave their shard")
    e2e.add_argument("--seconds", type=float, default=30.0, help="length of each run")
    e2e.add_argument(
        "--rate", type=float, default=0.0, help="transactions/s; 0: as fast as answered, then half the target"
    )
    e2e.add_argument(
        "--connections", type=int, default=0, help=f"to each shard; 0 shares {CONNECTIONS} among the shards"
    )
    e2e.add_argument("--batch", type=int, default=200, help="transactions a request")
    e2e.add_argument("--accounts", type=int, default=1000, help="senders a shard")
    e2e.add_argument("--executors", type=int, default=0, help="threads a shard; 0 divides the cores")
    e2e.add_argument(
        "--overload",
        action="store_true",
        help="after the peak offer twice of it, and judge what must hold then",
    )
    e2e.add_argument(
        "--anvil", type=Path, default=None, metavar="PATH", help="instead of the one of scripts/setup --anvil"
    )
    executor = made["executor"]
    executor.add_argument("--blocks", type=read_counts, default=(1000, 10_000), metavar="N,N", help="sizes")
    executor.add_argument("--threads", type=read_counts, default=(1, 2), metavar="N,N", help="executors")
    executor.add_argument("--rounds", type=int, default=12, help="of which medians are taken")
    executor.add_argument("--only", default="", metavar="PART", help="of the workloads' names")
    executor.add_argument("--no-pyrevm", action="store_true", help="leave pyrevm out")
    made["hostile"].add_argument("--rounds", type=int, default=15, help="of whose ratios medians are taken")
    made["hostile"].add_argument("--only", default="", metavar="PART", help="of the blocks' names")
    page = made["page"]
    page.add_argument(
        "--only",
        action="append",
        choices=CHOICES,
        default=[],
        help="report, or bench, to measure; may be repeated",
    )
    page.add_argument("--force", action="store_true", help="measure what has a report of this code already")
    page.add_argument("--seconds", type=float, default=0.0, help="of each leg end to end; 0 for their own")
    page.add_argument("--render", action="store_true", help="run nothing, use the reports that are there")
    made["hundred-k"].add_argument(
        "--from",
        dest="earlier",
        type=Path,
        action="append",
        default=[],
        metavar="E2E_REPORT.json",
        help="costs of this earlier run with --kind erc20 instead of new ones; may be repeated",
    )
    made["startup"].add_argument("--count", type=int, default=3, help="starts of each kind")
    return parser


def _add_kill_arguments(kill: argparse.ArgumentParser) -> None:
    kill.add_argument("--count", type=read_count, default=50, help="kills that the ledger shall hold")
    kill.add_argument("--tps", type=float, default=60.0, help="load over all shards")
    kill.add_argument("--shards", type=read_count, default=2)
    kill.add_argument("--nodes-per-shard", type=read_count, default=1, help="processes of each shard")
    kill.add_argument("--validators", type=read_count, default=4, help="of each shard")
    kill.add_argument(
        "--leg", type=read_count, default=50, help="kills of one network, up to the end of a bag"
    )
    kill.add_argument("--ledger", type=Path, default=DEFAULT_PATH, metavar="PATH", help="where legs are kept")
    kill.add_argument("--summary", action="store_true", help="run nothing, judge what the ledger holds")


async def _run_interruptibly(measure: Measure, options: argparse.Namespace, folder: Path) -> BenchReport:
    task = asyncio.current_task()
    assert task is not None, "a coroutine runs in a task"
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await measure(options, folder)


def main(arguments: list[str] | None = None) -> int:
    """Run one bench and return its exit code."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    if options.bench is None:
        parser.print_help()
        return 0
    measures: dict[str, Measure] = {
        "kill": _kill,
        "faults": _faults,
        "latency": _latency,
        "idle": _idle,
        "startup": _startup,
        "commitment": _commitment,
        "torn": _torn,
        "e2e": _e2e,
        "hundred-k": _hundred_k,
        "executor": _executor,
        "hostile": _hostile,
        "page": _page,
    }
    folder = Path(tempfile.mkdtemp(prefix=f"shardyard-bench-{options.bench}-"))
    is_kept = True
    started = time.monotonic()
    try:
        report = asyncio.run(_run_interruptibly(measures[options.bench], options, folder))
        report.machine["took_s"] = round(time.monotonic() - started)
        is_kept = options.keep or not report.held
    except (KeyboardInterrupt, asyncio.CancelledError):
        say("interrupted; everything is stopped")
        return EXIT_INTERRUPTED
    except ShardyardError as error:
        say(f"error: {error}")
        return 1
    finally:
        if is_kept:
            say(f"chains and logs are in {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    return finish(report, options.json, is_check=options.check)


if __name__ == "__main__":
    sys.exit(main())
