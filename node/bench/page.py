"""``page``: runs the benches of speed and writes docs/performance.md, its plots and the reports they are made from.

One command makes everything anew, so that the page never mixes runs of different commits without saying so: each report
carries its machine, commit and time, and the page shows them. A report of the code as it is now is kept, so a run that was
stopped goes on where it ended; ``--force`` measures all the same. With ``--render`` the page is made of the reports that are
there.
"""

import asyncio
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

import msgspec
from eth_account import Account

from node.bench.anvil import find_anvil
from node.bench.e2e import TARGET_TPS, E2eOptions
from node.bench.page_plots import draw_plots
from node.bench.page_text import PageParts, Reports, write_page
from node.bench.report import BenchReport, Target, build_report, is_same_code, say
from node.dev_accounts import DEV_ACCOUNTS
from shardyard import _native
from shardyard.errors import ShardyardError
from shardyard.ids import ShardId, compute_chain_id

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "performance.md"
REPORTS = ROOT / "docs" / "performance"
PLOTS = ROOT / "docs" / "plots"
SHARDS, CROSS = (1, 2, 4), (0, 10, 50)
"""Of the end-to-end runs; one shard has nowhere to send across."""
ACROSS_SECONDS = 20.0
"""Of each leg of a run for which no rate is promised."""
FLOODS = {
    f"e2e-{kind}" + (f"-{shards}-{cross}" if shards > 1 else ""): (
        E2eOptions(kind=kind, overload=True)
        if shards == 1
        else E2eOptions(kind=kind, shards=shards, cross=cross / 100, seconds=ACROSS_SECONDS)
    )
    for kind in TARGET_TPS
    for shards in SHARDS
    for cross in (CROSS if shards > 1 else CROSS[:1])
}
"""The end-to-end runs by the names of their reports. The overload is judged where the peak is promised."""
RUNS: Mapping[str, str] = {"executor": "executor", "commitment": "commitment"} | dict.fromkeys(FLOODS, "e2e")
"""Reports by name, and the bench that makes each."""
CHOICES = tuple(dict.fromkeys((*RUNS, *RUNS.values())))
"""What may be measured alone: a report, or all of a bench."""
RECOVERIES, RECOVERY_ROUNDS = 100, 7


class PageError(ShardyardError):
    """The page cannot be made."""


class PageOptions(msgspec.Struct, frozen=True):
    """What to measure for the page; nothing chosen is everything."""

    only: Sequence[str] = ()
    """Names of reports or of benches."""
    is_rendered_only: bool = False
    is_forced: bool = False
    """Measure what has a report of this code already."""
    seconds: float = 0.0
    """Of each leg of the end-to-end runs; 0 for their own."""


async def make_page(options: PageOptions) -> BenchReport:
    """Measure what ``options`` chooses and has no report of this code, write the page, and report all promises.

    Raises:
        PageError: there is no report of the executor to make a page of.

    """
    if not (ROOT / ".git").exists():
        raise PageError(
            f"{ROOT} is no clone, so there is no page to write. try: scripts/bench page in a clone"
        )
    REPORTS.mkdir(parents=True, exist_ok=True)
    if not options.is_rendered_only:
        await measure_missing(options)
    reports = read_reports(REPORTS)
    if reports.executor is None:
        raise PageError(f"no report of the executor in {REPORTS}. try: scripts/bench page")
    PLOTS.mkdir(parents=True, exist_ok=True)
    plots = draw_plots(reports)
    for name, drawn in plots.items():
        (PLOTS / name).write_text(drawn)
    PAGE.write_text(write_page(PageParts(reports, tuple(plots))))
    targets = [
        Target(f"{found.bench}: {target.name}", target.got, target.limit, target.unit, target.held)
        for found in reports.list_all()
        for target in found.targets
    ]
    summary = f"wrote {PAGE.relative_to(ROOT)}, {len(plots)} plots, from {len(reports.list_all())} reports"
    return build_report("page", summary, targets, {})


async def measure_missing(options: PageOptions) -> None:
    """Run the benches whose reports are wanted and are not there, and say how long that takes."""
    chosen = [name for name, bench in RUNS.items() if not options.only or {name, bench} & set(options.only)]
    found = {name: read_report(REPORTS / f"{name}.json") for name in chosen}
    missing = [
        name
        for name, report in found.items()
        if options.is_forced or report is None or not is_current(name, report, options.seconds)
    ]
    known = [report.machine.get("took_s", 0) for name in missing if (report := found[name]) is not None]
    say(
        f"page: {len(chosen) - len(missing)} of {len(chosen)} reports are of this code already, {len(missing)} to measure"
        + (f"; {len(known)} of them took {sum(known) / 60:.0f} minutes the last time" if any(known) else "")
    )
    started = time.monotonic()
    for number, name in enumerate(missing, 1):
        say(
            f"page: {name} ({number} of {len(missing)}, {(time.monotonic() - started) / 60:.0f} minutes so far)"
        )
        await _run_bench(name, list_arguments(name, options.seconds))
    if missing or not (REPORTS / "recovery.json").exists():
        measure_recovery()


def list_arguments(name: str, seconds: float) -> list[str]:
    """Return the command that makes the report ``name``; ``seconds`` of each leg, 0 for its own."""
    if name not in FLOODS:
        return [RUNS[name]]
    flood = FLOODS[name]
    pairs = {
        "--kind": flood.kind,
        "--shards": flood.shards,
        "--cross": f"{flood.cross * 100:g}",
        "--seconds": f"{seconds or flood.seconds:g}",
    }
    arguments = [str(item) for pair in pairs.items() for item in pair]
    return ["e2e", *arguments, *(["--overload"] if flood.overload else [])]


def is_current(name: str, report: BenchReport, seconds: float) -> bool:
    """Whether a report says what measuring anew would: the same code, the same run, anvil beside it if it is there now."""
    if not is_same_code(report.machine.get("commit", "")):
        return False
    if name not in FLOODS:
        return True
    flood, made = FLOODS[name], report.details["options"]
    wanted = (flood.kind, flood.shards, flood.cross, seconds or flood.seconds, flood.overload)
    is_same = wanted == tuple(made.get(key) for key in ("kind", "shards", "cross", "seconds", "overload"))
    lacks_anvil = flood.is_promised and find_anvil() is not None and report.details.get("anvil") is None
    return is_same and not lacks_anvil


async def _run_bench(name: str, arguments: Sequence[str]) -> None:
    """Run a bench in a process of its own; what it misses is told by its report."""
    command = ("-P", "-m", "node.bench", *arguments, "--json", str(REPORTS / f"{name}.json"))
    process = await asyncio.create_subprocess_exec(
        sys.executable, *command, stdin=asyncio.subprocess.DEVNULL, stdout=2, cwd=ROOT
    )
    try:
        code = await process.wait()
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()
    if code != 0:
        raise PageError(
            f"got exit code {code} of the bench {arguments[0]} for {name}, expected 0. try: read what it said above, and "
            "run the same again: what is measured already is kept"
        )


def measure_recovery() -> None:
    """Write what one core needs to recover the sender of a transfer: the limit of every chain of this kind."""
    shard = ShardId(0)
    core = _native.Core(chain_id=compute_chain_id(shard), shard=shard, threads=1)
    times = []
    for number in range(RECOVERY_ROUNDS):
        parts = [_sign(shard, RECOVERIES * number + nonce) for nonce in range(RECOVERIES)]
        ends = [sum(map(len, parts[: place + 1])) for place in range(len(parts))]
        raw = b"".join(parts)
        started = time.thread_time_ns()
        core.prepare(raw, (0, *ends))
        times.append((time.thread_time_ns() - started) / RECOVERIES / 1000)
    (REPORTS / "recovery.json").write_text(
        msgspec.json.encode({"us": round(median(times), 2)}).decode() + "\n"
    )


def _sign(shard: ShardId, nonce: int) -> bytes:
    account = DEV_ACCOUNTS[0]
    fields = {
        "chainId": compute_chain_id(shard),
        "nonce": nonce,
        "gas": 21_000,
        "value": 1,
        "to": account.checksum_address,
        "maxFeePerGas": 2 * 10**9,
        "maxPriorityFeePerGas": 1,
    }
    return bytes(Account.sign_transaction(fields, account.private_key).raw_transaction)


def read_report(path: Path) -> BenchReport | None:
    """Return a report, None when there is none; raises ``PageError`` for one that cannot be read."""
    if not path.exists():
        return None
    try:
        return msgspec.json.decode(path.read_bytes(), type=BenchReport)
    except msgspec.DecodeError as error:
        raise PageError(f"{path}: {error}. try: remove it, then scripts/bench page") from error


def read_reports(folder: Path) -> Reports:
    """Return the reports in ``folder``; raises ``PageError`` for one that cannot be read."""
    found = {name: read_report(folder / f"{name}.json") for name in RUNS}
    recovery = folder / "recovery.json"
    recovery_us = msgspec.json.decode(recovery.read_bytes())["us"] if recovery.exists() else 0.0
    return Reports(
        executor=found["executor"],
        commitment=found["commitment"],
        e2e=tuple(report for name in FLOODS if (report := found[name]) is not None),
        recovery_us=recovery_us,
    )
