"""``load run``: send load, measure what comes of it, and leave the result in a folder."""

import asyncio
import contextlib
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import rich_click as click

from node.cli.output import network_option, print_json, print_table, say
from node.cli.root import EXIT_CHECK_FAILED, EXIT_CONFLICT, EXIT_USAGE, CliError
from node.cli.session import Session
from node.load.result import LATENCY_COLUMNS, LoadResult, build_rows
from node.load.run import (
    LoadRun,
    LoadStoppedError,
    RunOptions,
    SeedUsedError,
    write_answered,
    write_result,
    write_transactions,
)
from node.load.workload import Knobs

SCENARIOS = ("transfers",)
REPORT_EVERY_S = 5.0
MAX_TPS = 1_000_000
MAX_ACCOUNTS = 1000
MAX_ZIPF = 100
MAX_DURATION_S = 7 * 24 * 3600
BYTES_PER_TRANSACTION = 1500
"""Of a run, measured: hash, message, moments, and where they are looked up."""


@click.group()
def load() -> None:
    """Send load and measure what comes of it."""


@load.command("run")
@click.argument("scenario", type=click.Choice(SCENARIOS), default="transfers")
@click.option(
    "--tps", type=float, default=100.0, show_default=True, help="Transactions per second over all shards."
)
@click.option(
    "--cross", default="0%", show_default=True, help="Share that goes to another shard, for example 20%."
)
@click.option("--duration", default="30s", show_default=True, help="How long to send, for example 30s or 2m.")
@click.option("--accounts", type=int, default=32, show_default=True, help="Accounts per shard.")
@click.option("--zipf", type=float, default=0.0, show_default=True, help="Skew of receivers; 0 is even.")
@click.option("--warm-up", default="2s", show_default=True, help="Left out of the latencies.")
@click.option("--drain", default="60s", show_default=True, help="How long to wait for what was sent.")
@click.option(
    "--seed", type=int, default=None, help="The same seed sends the same transactions; fresh by default."
)
@click.option("--out", type=click.Path(path_type=Path), default=None, help="Folder for the result.")
@network_option
def run(
    *,
    scenario: str,
    tps: float,
    cross: str,
    duration: str,
    accounts: int,
    zipf: float,
    warm_up: str,
    drain: str,
    seed: int | None,
    out: Path | None,
    name: str,
    as_json: bool,
) -> int:
    """Send signed transactions through the public RPC at a fixed rate, whatever the answers, and follow each to its end.

    The accounts of a shard are dealt to its replicas; while one does not answer, the next gets what it would have got.
    """
    session = Session(name)
    cross_ratio = parse_share(cross)
    if cross_ratio and session.shard_count == 1:
        raise CliError("cross: the network has one shard, so nothing can cross; try: --cross 0%", EXIT_USAGE)
    for word, figure, is_fine, expected in (
        ("tps", tps, 0 < tps <= MAX_TPS, f"above 0 and at most {MAX_TPS}; try: --tps 100"),
        ("accounts", accounts, 1 <= accounts <= MAX_ACCOUNTS, f"1..{MAX_ACCOUNTS}; try: --accounts 32"),
        ("zipf", zipf, 0 <= zipf <= MAX_ZIPF, f"0..{MAX_ZIPF}; try: --zipf 1"),
    ):
        if not is_fine:
            raise CliError(f"{word}: got {figure:g}, expected {expected}", EXIT_USAGE)
    chosen = seed if seed is not None else time.time_ns() % 2**32
    knobs = Knobs(session.shard_count, tps, cross_ratio, accounts, zipf, chosen)
    options = RunOptions(
        parse_seconds(duration, "duration"),
        parse_seconds(warm_up, "warm-up"),
        parse_seconds(drain, "drain"),
        scenario,
        report_every_s=REPORT_EVERY_S,
    )
    if options.warm_up_s and options.warm_up_s >= options.duration_s:
        raise CliError(
            f"warm-up: got {warm_up} of a run of {duration}, expected less, for nothing else is measured; try: --warm-up 0s",
            EXIT_USAGE,
        )
    verify_memory(round(tps * options.duration_s))
    session.ask_launcher("ping")
    shards = session.endpoints["shards"]
    urls = [endpoint["rpc"] for endpoint in shards]
    replicas = [list(endpoint.get("nodes", {}).values()) or [endpoint["rpc"]] for endpoint in shards]
    folder = out or session.root / "load" / time.strftime("%Y%m%d-%H%M%S")
    with have_folder(folder):
        runner = LoadRun(urls, knobs, options, say, replicas)
        try:
            result = asyncio.run(run_interruptibly(runner))
        except SeedUsedError as error:
            raise CliError(str(error), EXIT_CONFLICT) from error
        except LoadStoppedError as error:
            say(str(error))
            raise click.Abort from error
        except asyncio.CancelledError as error:
            raise click.Abort from error
    write_result(folder / "result.json", result)
    write_answered(folder / "answered.json", runner.iterate_answered())
    write_transactions(folder / "transactions.csv", runner.tracked)
    _print(result, folder, as_json=as_json)
    return 0 if result.is_valid else EXIT_CHECK_FAILED


def verify_memory(count: int) -> None:
    """Raise ``CliError`` when a run of ``count`` transactions has no room: each is remembered to the end, for its result."""
    import psutil

    needed, free = count * BYTES_PER_TRANSACTION, psutil.virtual_memory().available
    if needed > free:
        raise CliError(
            f"load: got {count} transactions, which take {needed / 1e9:.1f} GB of memory until their result is written, "
            f"expected at most {free / 1e9:.1f} GB, which are free; try: a lower --tps, or a shorter --duration",
            EXIT_USAGE,
        )


@contextlib.contextmanager
def have_folder(folder: Path) -> Iterator[None]:
    """Have ``folder`` before a long run, which must not fail at it in the end; one that was made for no result goes again."""
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):  # what somebody put there meanwhile stays
            if is_new:
                folder.rmdir()
        raise


async def run_interruptibly(runner: LoadRun) -> LoadResult:
    """Ctrl-C once stops sending; what was sent is still followed and reported. A second one ends that too."""
    task = asyncio.current_task()
    assert task is not None, "a coroutine runs in a task"
    interrupts = 0

    def interrupt() -> None:
        nonlocal interrupts
        interrupts += 1
        if interrupts > 1:
            task.cancel()
            return
        say("stopping: what was sent is followed to its end; Ctrl-C again ends at once, without a result")
        runner.stop()

    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, interrupt)
    return await runner.run()


def _print(result: LoadResult, folder: Path, *, as_json: bool) -> None:
    import msgspec

    if as_json:
        print_json(msgspec.to_builtins(result) | {"valid": result.is_valid, "folder": str(folder)})
        return
    print_table(LATENCY_COLUMNS, build_rows(result))
    say(
        f"sent {result.sent} at {result.sent_tps:g}/s of {result.target_tps:g}/s wanted: accepted {result.accepted}, "
        f"rejected {result.rejected}, lost {result.lost}; settled {result.settled} ({result.settled_tps:g}/s, "
        f"half-and-half {result.half_and_half_tps:g}/s)"
    )
    for reason, count in result.refusals.items():
        say(f"refused {count}: {reason}")
    say("valid" if result.is_valid else "INVALID: " + "; ".join(result.problems))
    say(f"result in {folder}")


def parse_seconds(text: str, option: str) -> float:
    """Return the seconds in ``30s``, ``250ms``, ``2m`` or a plain number, which ``option`` was given."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|m|h)?", text.strip().lower())
    if found is None:
        raise CliError(
            f"{option}: got {text[:40]!r}, expected for example 30s, 250ms or 2m; try: --{option} 30s",
            EXIT_USAGE,
        )
    seconds = float(found[1]) * {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, None: 1.0}[found[2]]
    if seconds > MAX_DURATION_S:
        raise CliError(
            f"{option}: got {text[:40]!r}, expected at most {MAX_DURATION_S // 3600}h; try: --{option} 30s",
            EXIT_USAGE,
        )
    return seconds


def parse_share(text: str) -> float:
    """Return the share in ``20%`` or ``0.2``."""
    stripped = text.strip()
    try:
        share = float(stripped[:-1]) / 100 if stripped.endswith("%") else float(stripped)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise CliError(f"share: got {text!r}, expected for example 20% or 0.2; try: --cross 20%", EXIT_USAGE)
    return share
