"""``page``: runs the benches of speed and writes docs/performance.md, its plots and the reports they are made from.

One command makes everything anew, so that the page never mixes runs of different commits without saying so: each report
carries its machine, commit and time, and the page shows them. With ``--render`` the page is made of the reports that are there.
"""

import asyncio
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

import msgspec
from eth_account import Account

from node.bench.page_plots import draw_plots
from node.bench.page_text import PageParts, Reports, write_page
from node.bench.report import BenchReport, Target, build_report, say
from node.dev_accounts import DEV_ACCOUNTS
from shardyard import _native
from shardyard.errors import ShardyardError
from shardyard.ids import ShardId, compute_chain_id

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "performance.md"
REPORTS = ROOT / "docs" / "performance"
PLOTS = ROOT / "docs" / "plots"
RUNS: Mapping[str, tuple[str, ...]] = {
    "executor": ("executor",),
    "commitment": ("commitment",),
    "e2e-transfer": ("e2e", "--kind", "transfer"),
    "e2e-erc20": ("e2e", "--kind", "erc20"),
    "e2e-2-shards": ("e2e", "--kind", "transfer", "--shards", "2", "--cross", "10"),
    "e2e-4-shards": ("e2e", "--kind", "transfer", "--shards", "4", "--cross", "50"),
}
"""Reports by name, and the bench that makes each."""
RECOVERIES, RECOVERY_ROUNDS = 100, 7


class PageError(ShardyardError):
    """The page cannot be made."""


async def make_page(names: Sequence[str], *, benches: Sequence[str], is_rendered_only: bool) -> BenchReport:
    """Run what ``names`` chooses of ``RUNS`` (all when empty), write the page, and report all promises.

    Raises:
        PageError: there is no report of the executor to make a page of.

    """
    if not (ROOT / ".git").exists():
        raise PageError(
            f"{ROOT} is no clone, so there is no page to write. try: scripts/bench page in a clone"
        )
    REPORTS.mkdir(parents=True, exist_ok=True)
    if not is_rendered_only:
        for name, (bench, *arguments) in RUNS.items():
            if bench in benches and (not names or name in names):
                await _run_bench(name, bench, *arguments)
        measure_recovery()
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


async def _run_bench(name: str, bench: str, *arguments: str) -> None:
    """Run a bench in a process of its own; what it misses is told by its report."""
    say(f"page: {name}")
    command = ("-P", "-m", "node.bench", bench, *arguments, "--json", str(REPORTS / f"{name}.json"))
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
            f"got exit code {code} of the bench {bench}, expected 0. try: read what it said above"
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


def read_reports(folder: Path) -> Reports:
    """Return the reports in ``folder``; raises ``PageError`` for one that cannot be read."""
    found: dict[str, BenchReport] = {}
    for name in RUNS:
        path = folder / f"{name}.json"
        if path.exists():
            try:
                found[name] = msgspec.json.decode(path.read_bytes(), type=BenchReport)
            except msgspec.DecodeError as error:
                raise PageError(f"{path}: {error}. try: scripts/bench page") from error
    recovery = folder / "recovery.json"
    recovery_us = msgspec.json.decode(recovery.read_bytes())["us"] if recovery.exists() else 0.0
    return Reports(
        executor=found.get("executor"),
        commitment=found.get("commitment"),
        e2e=tuple(found[name] for name, (bench, *_) in RUNS.items() if bench == "e2e" and name in found),
        recovery_us=recovery_us,
    )
