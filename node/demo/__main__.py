"""``python -P -m node.demo``: a sharded network in front of your eyes, killed in parts, audited, judged.

Everything happens in a folder of its own, which is named at the end and kept: chains, logs, report. All processes are
stopped whatever happens, Ctrl-C included. Exit 0 only if every promise held, 6 when one was broken, 1 when the demo itself
could not be carried out, 130 after Ctrl-C.
"""

import argparse
import asyncio
import json
import signal
import sys
import tempfile
import time
from pathlib import Path

import msgspec

from node.audit.answered import Answered
from node.audit.audit import audit_network
from node.bench.devnet import Devnet
from node.bench.recovery import Recovery, kill_and_wait
from node.config import Options
from node.demo.contracts import ShardUser, Story, tell_story
from node.demo.verdict import REPORT_VERSION, DemoReport, build_lines, print_verdict, write_report
from node.dev_accounts import DEV_ACCOUNTS
from node.load.keys import Account
from node.load.result import LoadResult
from node.load.run import LoadRun, RunOptions, write_result
from node.load.workload import Knobs
from shardyard.errors import ShardyardError

EXIT_BROKEN = 6
EXIT_INTERRUPTED = 130
VICTIMS = ("shard-2-0", "broker")
PAUSE_S = 2.0
MAX_DISTURBED_S = 90.0
SIGN_AHEAD_S = 6.0


class Demo:
    """One demo in ``folder``."""

    def __init__(self, folder: Path, tps: float, calm_s: float, seed: int) -> None:
        self.folder = folder
        self._tps = tps
        self._calm_s = calm_s
        self._seed = seed
        self._started = time.monotonic()
        self._answered: list[dict[str, object]] = []

    def say(self, text: str) -> None:
        """Print a line of progress with the seconds since the beginning."""
        sys.stderr.write(f"[{time.monotonic() - self._started:5.1f} s] {text}\n")
        sys.stderr.flush()

    async def run(self) -> DemoReport:
        """Carry it out; raises ``ShardyardError`` when something does not even start."""
        devnet = Devnet(self.folder / "home", Options(name="demo", shards=4, validators=4))
        self.say("starting broker, beacon and 4 shards with 4 validators each")
        try:
            async with devnet:
                self.say(f"all processes ready in {devnet.starts[0]:.2f} s")
                calm, story = await self._run_calm(devnet)
                disturbed, recoveries = await self._run_disturbed(devnet)
                self.say("stopping the network")
        finally:
            devnet.copy_logs(self.folder / "logs")
        self.say("auditing all chains offline: every block executed again, every certificate verified again")
        transactions = msgspec.convert(self._answered, list[Answered])
        audit = audit_network(devnet.network, transactions, lambda text: self.say(f"  {text}"))
        lines = build_lines(calm, disturbed, recoveries, story, audit)
        return DemoReport(
            version=REPORT_VERSION,
            held=all(line.held for line in lines),
            seconds=round(time.monotonic() - self._started, 1),
            start_s=round(devnet.starts[0], 3),
            lines=lines,
            calm=calm,
            disturbed=disturbed,
            recoveries=recoveries,
            story=story,
            audit=audit,
        )

    def _build_load(self, devnet: Devnet, seed: int, duration_s: float) -> LoadRun:
        knobs = Knobs(shards=4, tps=self._tps, cross_ratio=0.3, accounts=16, seed=seed)
        return LoadRun(
            devnet.urls,
            knobs,
            RunOptions(duration_s=duration_s, warm_up_s=1.0, sign_ahead_s=SIGN_AHEAD_S),
            self.say,
        )

    async def _run_calm(self, devnet: Devnet) -> tuple[LoadResult, Story]:
        """Load while nothing is broken, and contracts beside it."""
        load = self._build_load(devnet, self._seed, self._calm_s)
        await load.prepare()
        self.say(
            f"load: {self._tps:g} transactions/s for {self._calm_s:g} s, 30 % of them to another shard; contracts beside it"
        )
        account = Account(DEV_ACCOUNTS[0].private_key)
        users = [ShardUser(url, shard, account) for shard, url in enumerate(devnet.urls)]
        try:
            async with asyncio.TaskGroup() as group:
                sending = group.create_task(load.send())
                telling = group.create_task(tell_story(users))
        except* ShardyardError as errors:
            raise errors.exceptions[0] from None
        finally:
            for user in users:
                user.close()
        result, story = sending.result(), telling.result()
        self._answered += load.list_answered() + [entry for user in users for entry in user.answered]
        write_result(self.folder / "load-calm.json", result)
        self.say(
            f"contracts: called on their shard, from another one ({story.result_s:.1f} s), bounced ({story.bounce_s:.1f} s)"
        )
        self._tell_load(result)
        return result, story

    def _tell_load(self, result: LoadResult) -> None:
        final = result.latency["cross.beacon_final"]
        self.say(
            f"load: {result.settled} of {result.sent} settled, {result.rejected} rejected, {result.lost} lost; "
            f"cross-shard beacon-final p50 {final.p50:.2f} s, p95 {final.p95:.2f} s"
        )

    async def _run_disturbed(self, devnet: Devnet) -> tuple[LoadResult, tuple[Recovery, ...]]:
        """Load while processes die."""
        load = self._build_load(devnet, self._seed + 1, MAX_DISTURBED_S)
        await load.prepare()
        self.say(f"load again; now SIGKILL in mid-flight: {', then '.join(VICTIMS)}")
        recoveries: list[Recovery] = []
        sending = asyncio.create_task(load.send(), name="load")
        try:
            await asyncio.sleep(PAUSE_S)
            for victim in VICTIMS:
                recovery = await kill_and_wait(devnet, load.tracker, victim, self._started)
                recoveries.append(recovery)
                self.say(
                    f"killed {victim} at {recovery.at_s:.1f} s: every chain final again after {recovery.resumed_s:.1f} s, "
                    f"beacon-final after {recovery.beacon_final_s:.1f} s"
                )
                await asyncio.sleep(PAUSE_S)
            load.stop()
            result = await sending
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
        self._answered += load.list_answered()
        write_result(self.folder / "load-with-kills.json", result)
        self._tell_load(result)
        return result, tuple(recoveries)


async def _run_interruptibly(demo: Demo) -> DemoReport:
    """SIGTERM and SIGHUP end the demo as Ctrl-C does: everything that was started is stopped first."""
    task = asyncio.current_task()
    assert task is not None, "a coroutine runs in a task"
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup makes it: then it outlives its terminal
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    return await demo.run()


def main(arguments: list[str] | None = None) -> int:
    """Run the demo and return its exit code."""
    parser = argparse.ArgumentParser(prog="scripts/demo", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tps", type=float, default=60.0, help="transactions per second over all shards")
    parser.add_argument("--seconds", type=float, default=12.0, help="how long the calm load lasts")
    parser.add_argument("--seed", type=int, default=1, help="of the load")
    parser.add_argument("--json", type=Path, default=None, help="write the report here as well")
    options = parser.parse_args(arguments)
    folder = Path(tempfile.mkdtemp(prefix="shardyard-demo-"))
    demo = Demo(folder, options.tps, options.seconds, options.seed)
    try:
        report = asyncio.run(_run_interruptibly(demo))
    except (KeyboardInterrupt, asyncio.CancelledError):
        demo.say(f"interrupted; everything is stopped, what there is lies in {folder}")
        return EXIT_INTERRUPTED
    except ShardyardError as error:
        demo.say(f"error: {error}")
        demo.say(f"logs in {folder / 'logs'}")
        (folder / "report.json").write_text(
            json.dumps({"version": REPORT_VERSION, "error": str(error)}) + "\n"
        )
        return 1
    for path in (folder / "report.json", options.json):
        if path is not None:
            write_report(path, report)
    print_verdict(report, folder)
    return 0 if report.held else EXIT_BROKEN


if __name__ == "__main__":
    sys.exit(main())
