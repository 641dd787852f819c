"""Looks for a seed that breaks an invariant: ``python -m node.sim.hunt --seeds 300 --minutes 2``.

Runs seeds one after the other (or ``--jobs`` at a time), prints what it finds with the line that replays it, ends with a
summary of one line. One seed in a hundred is run again in another process under another hash seed: its trace must be the
same (I15). With ``--check`` a violation, too few seeds or too little speed ends with exit code 6.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Final

import msgspec

from node.sim.recipe import DEFAULT_MINUTES
from node.sim.run import Result, describe_result, run

EXIT_BROKEN: Final = 1
EXIT_MISSED: Final = 6
REPEAT_EVERY: Final = 100
TARGET_SPEED: Final = 20
"""Simulated seconds per second and process, over all topologies and faults that seeds draw."""
OTHER_HASH_SEED: Final = "12345"


class Hunt(msgspec.Struct):
    """What a hunt has found so far."""

    minutes: float
    seeds: int = 0
    violations: list[dict[str, object]] = msgspec.field(default_factory=list)
    repeated: int = 0
    simulated_s: float = 0.0
    run_s: float = 0.0
    faults: Counter[str] = msgspec.field(default_factory=Counter)
    coverage: Counter[str] = msgspec.field(default_factory=Counter)
    counters: Counter[str] = msgspec.field(default_factory=Counter)

    @property
    def speed(self) -> float:
        """Simulated seconds per second of one process."""
        return self.simulated_s / self.run_s if self.run_s else 0.0

    def add(self, result: Result) -> None:
        """Count a finished seed."""
        self.seeds += 1
        self.simulated_s += result.simulated_s
        self.run_s += result.cpu_s
        if result.report is not None:
            self.faults.update(result.report.faults)
            self.coverage.update(result.report.coverage)
            self.counters.update(result.report.counters)
        if not result.is_ok:
            self.violations.append(
                {"seed": result.seed, "violation": result.violation, "command": result.command}
            )


def compute_trace_hash_elsewhere(seed: int, minutes: float, *, faults: bool) -> str:
    """Return the trace hash of a seed as another process with another hash seed computes it."""
    code = (
        "from node.sim.run import run\n"
        f"result = run({seed}, minutes={minutes!r}, faults={faults!r})\n"
        "print(result.report.trace_hash if result.report else result.violation)"
    )
    environment = {**os.environ, "PYTHONHASHSEED": OTHER_HASH_SEED}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        cwd=_get_root(),
    )
    return done.stdout.strip()


def hunt(
    seeds: Iterable[int],
    *,
    minutes: float = DEFAULT_MINUTES,
    faults: bool = True,
    jobs: int = 1,
    within_s: float | None = None,
    say: Callable[[str], None] = print,
) -> Hunt:
    """Run ``seeds`` and return what was found; stops early after ``within_s`` seconds."""
    found = Hunt(minutes=minutes)
    deadline = None if within_s is None else time.monotonic() + within_s
    for result in _run_all(seeds, minutes, faults, jobs):
        found.add(result)
        if not result.is_ok:
            say(describe_result(result))
        elif (found.seeds - 1) % REPEAT_EVERY == 0 and result.report is not None:
            _check_repeat(found, result, say)
        if found.seeds % 10 == 0:
            say(f"  {found.seeds} seeds, {len(found.violations)} violations, {found.speed:.0f} simulated s/s")
        if deadline is not None and time.monotonic() > deadline:
            break
    return found


def _run_all(seeds: Iterable[int], minutes: float, faults: bool, jobs: int) -> Iterator[Result]:
    work = partial(_run_one, minutes=minutes, faults=faults)
    if jobs <= 1:
        yield from map(work, seeds)
        return
    with ProcessPoolExecutor(max_workers=jobs) as pool:
        yield from pool.map(work, seeds)


def _run_one(seed: int, *, minutes: float, faults: bool) -> Result:
    return run(seed, minutes=minutes, faults=faults)


def _check_repeat(found: Hunt, result: Result, say: Callable[[str], None]) -> None:
    """I15: the same seed, the same trace."""
    assert result.report is not None, "only finished runs are repeated"
    elsewhere = compute_trace_hash_elsewhere(result.seed, result.recipe.minutes, faults=result.recipe.faults)
    found.repeated += 1
    if elsewhere != result.report.trace_hash:
        text = (
            f"I15: seed {result.seed}: trace {result.report.trace_hash} here, {elsewhere} in another process"
        )
        say(text)
        found.violations.append({"seed": result.seed, "violation": text, "command": result.command})


def _get_root() -> Path:
    return Path(__file__).resolve().parents[2]


def _describe_commit() -> str:
    try:
        done = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"],
            capture_output=True,
            text=True,
            check=False,
            cwd=_get_root(),
        )
    except OSError:
        return "unknown"
    return done.stdout.strip() or "unknown"


def summarise(found: Hunt) -> str:
    """Return the line a hunt ends with."""
    verdict = "all held" if not found.violations else f"{len(found.violations)} VIOLATIONS"
    return (
        f"hunt: {found.seeds} seeds x {found.minutes:g} simulated minutes, {sum(found.faults.values())} faults, "
        f"{found.counters.get('delivered', 0)} messages delivered, {found.repeated} repeated elsewhere, "
        f"{found.speed:.0f} simulated seconds per second, commit {_describe_commit()}: {verdict}"
    )


def write_json(found: Hunt, path: Path) -> None:
    """Write what a hunt found."""
    content = msgspec.to_builtins(found) | {"simulated_s_per_s": found.speed, "commit": _describe_commit()}
    path.write_text(json.dumps(content, indent=2) + "\n")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="scripts/hunt", description="Looks for a seed that breaks an invariant."
    )
    parser.add_argument("--seeds", type=int, default=100, help="how many seeds to run (default %(default)s)")
    parser.add_argument("--start", type=int, default=0, help="the first seed (default %(default)s)")
    parser.add_argument("--minutes", type=float, default=DEFAULT_MINUTES, help="simulated minutes per seed")
    parser.add_argument("--jobs", type=int, default=1, help="processes (default %(default)s)")
    parser.add_argument("--within", type=float, metavar="SECONDS", help="stop after so many seconds")
    parser.add_argument(
        "--at-least", type=int, default=0, help="with --check: fewer seeds than this miss the target"
    )
    parser.add_argument("--no-faults", action="store_true", help="run in peace")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write what was found")
    parser.add_argument("--check", action="store_true", help=f"exit {EXIT_MISSED} when a target is missed")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Hunt as the command line says; return the exit code."""
    options = build_parser().parse_args(arguments)
    found = hunt(
        range(options.start, options.start + options.seeds),
        minutes=options.minutes,
        faults=not options.no_faults,
        jobs=options.jobs,
        within_s=options.within,
        say=partial(print, file=sys.stderr),
    )
    sys.stdout.write(summarise(found) + "\n")
    if options.json:
        write_json(found, options.json)
    if options.check:
        missed = found.violations or found.seeds < options.at_least or found.speed < TARGET_SPEED
        return EXIT_MISSED if missed else 0
    return EXIT_BROKEN if found.violations else 0


if __name__ == "__main__":
    sys.exit(main())
