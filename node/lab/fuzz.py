"""``scripts/fuzz``: feeds every decoder and every place where bytes come in with changed real encodings, guided by coverage.

Each target runs in a process of its own under atheris (libFuzzer), which keeps inputs that reach new code in a corpus below the
state directory; the next run goes on from there. Minutes are processor time, shared evenly by the targets. Findings are
exceptions that a target may not raise, inputs that take more than a second, growth of the process beyond a bound, and crashes;
each is kept as a file that ``--replay`` runs again. Exit code 6 when there is any.
"""

import argparse
import hashlib
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from node.config import get_home
from node.lab.fuzz_probe import Probe, Tally
from node.lab.fuzz_targets import TARGETS, Target, get_target
from shardyard.errors import ConfigError

EXIT_USAGE: Final = 2
EXIT_MISSED: Final = 6
EXIT_STOPPED: Final = 130
DEFAULT_MINUTES: Final = 0.4
MAX_FINDINGS: Final = 3
"""Findings after which a target is left alone for this run: they are usually one."""


class FuzzError(ConfigError):
    """Fuzzing cannot begin."""


def write_seeds(target: Target, corpus: Path) -> None:
    """Put the seeds of ``target`` into its corpus, beside what earlier runs found."""
    corpus.mkdir(parents=True, exist_ok=True)
    for data in target.list_seeds():
        if len(data) <= target.max_bytes:
            name = hashlib.sha1(data, usedforsecurity=False).hexdigest()
            path = corpus / name
            if not path.exists():
                path.write_bytes(data)


def run_target(target: Target, state: Path, budget_s: float) -> Tally:
    """Fuzz ``target`` in a process for so much processor time; begins again after a finding until the time is up."""
    directory = state / target.name
    (directory / "findings").mkdir(parents=True, exist_ok=True)
    write_seeds(target, directory / "corpus")
    total = Tally(target.name)
    told: set[Path] = set()
    while total.cpu_s < budget_s:
        (directory / "tally.json").unlink(missing_ok=True)
        before = _list_findings(directory)
        left_s = str(budget_s - total.cpu_s)
        command = [sys.executable, "-P", "-m", "node.lab.fuzz_worker", target.name, str(directory), left_s]
        done = subprocess.run(command, capture_output=True, check=False)
        text = (done.stderr + done.stdout).decode(errors="replace")
        part = _read_tally(directory / "tally.json", target.name)
        total.inputs += part.inputs
        total.cpu_s += part.cpu_s
        total.growth_bytes = max(total.growth_bytes, part.growth_bytes)
        if done.returncode == 0:
            break
        written = {path for path, _ in _list_findings(directory) - before}
        new, told = written - told, told | written
        if written and not new:
            break  # the corpus itself holds what was found: the same input ends every process at once
        if not new:
            raise FuzzError(f"{target.name}: exit code {done.returncode}: {text[-600:].strip()}")
        (directory / "last-finding.txt").write_text(text, encoding="utf-8")
        total.findings += [f"{path}: {_describe_finding(text)}" for path in sorted(new)]
        if len(total.findings) >= MAX_FINDINGS:
            break
    total.corpus = len(list((directory / "corpus").iterdir()))
    return total


def _list_findings(directory: Path) -> set[tuple[Path, int]]:
    """Return the findings and when each was written: an input that is found again has the same name."""
    return {(path, path.stat().st_mtime_ns) for path in (directory / "findings").iterdir()}


def _read_tally(path: Path, name: str) -> Tally:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Tally)
    except OSError:
        return Tally(
            name, cpu_s=1.0
        )  # ended before it could say: a crash, which must not be repeated for ever


def _describe_finding(text: str) -> str:
    lines = [
        line.strip() for line in text.splitlines() if "Error" in line or "ERROR" in line or "deadly" in line
    ]
    return lines[-1][:160] if lines else "see last-finding.txt beside it"


def describe_tally(tally: Tally) -> str:
    """Return a line of the table."""
    found = f"{len(tally.findings)} FINDINGS" if tally.findings else "nothing"
    return (
        f"{tally.target:12} {tally.inputs:>10,} inputs {tally.cpu_s:7.1f} s  corpus {tally.corpus:5}  "
        f"grew {tally.growth_bytes >> 20:3} MiB  {found}" + "".join(f"\n  {line}" for line in tally.findings)
    )


def run(targets: Sequence[Target], state: Path, minutes: float) -> bool:
    """Fuzz the targets one after the other and print what came of it; tell whether nothing was found."""
    budget_s = 60 * minutes / len(targets)
    tallies = []
    for target in targets:
        tally = run_target(target, state, budget_s)
        tallies.append(tally)
        sys.stdout.write(describe_tally(tally) + "\n")
        sys.stdout.flush()
    findings = sum(len(tally.findings) for tally in tallies)
    total = sum(tally.inputs for tally in tallies)
    spent = sum(tally.cpu_s for tally in tallies)
    sys.stdout.write(
        f"fuzz: {len(targets)} targets, {total:,} inputs in {spent / 60:.1f} minutes of processor time: "
        f"{f'{findings} FINDINGS' if findings else 'no crash, no hang, no growth'}\n"
    )
    with (state / "runs.jsonl").open("ab") as file:
        file.write(msgspec.json.encode({"at": int(time.time()), "targets": tallies}) + b"\n")
    return not findings


def replay(target: Target, path: Path) -> bool:
    """Run one input through a target, with nothing around it; tell whether it does nothing that it must not do.

    Raises ``FuzzError`` when there is no such file.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise FuzzError(f"{path}: {error.strerror}; try: a file below findings") from error
    try:
        Probe(target, 1.0).feed(data)
    except Exception as error:  # noqa: BLE001  # whatever a target raises is what was found
        last = traceback.extract_tb(error.__traceback__)[-1]
        sys.stdout.write(
            f"{path}: {len(data)} bytes: {type(error).__name__}: {error} (in {last.name}, {last.filename}:{last.lineno})\n"
        )
        return False
    sys.stdout.write(f"{path}: {len(data)} bytes are taken or refused as they should be\n")
    return True


def parse_minutes(text: str) -> float:
    """Return a positive number of minutes."""
    try:
        minutes = float(text)
    except ValueError:
        minutes = 0.0
    if not 0 < minutes <= 60 * 24 * 7:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected minutes above 0; try: --minutes 10")
    return minutes


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="scripts/fuzz", description="Fuzzes every decoder and every place where bytes of others come in."
    )
    parser.add_argument(
        "--minutes",
        type=parse_minutes,
        default=DEFAULT_MINUTES,
        help="processor time in all (default %(default)s)",
    )
    parser.add_argument("--only", action="append", metavar="TARGET", help="one target; may be repeated")
    parser.add_argument("--list", action="store_true", help="only say what there is to fuzz")
    parser.add_argument(
        "--state", type=Path, metavar="DIR", help="where corpora lie (default the data directory)"
    )
    parser.add_argument(
        "--replay", type=Path, metavar="FILE", help="run one input through the target of --only"
    )
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Fuzz as the command line says; return the exit code."""
    options = build_parser().parse_args(arguments)
    if options.list:
        sys.stdout.write("".join(f"{target.name:12} {target.what}\n" for target in TARGETS))
        return 0
    try:
        targets = [get_target(name) for name in options.only] if options.only else list(TARGETS)
        if options.replay is not None:
            if len(targets) != 1:
                raise FuzzError(
                    "--replay: got no single target, expected one; try: --only message --replay FILE"
                )
            return 0 if replay(targets[0], options.replay) else EXIT_MISSED
        _check_engine()
        state = options.state or get_home() / "lab" / "fuzz"
        return 0 if run(targets, state, options.minutes) else EXIT_MISSED
    except ConfigError as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_USAGE
    except KeyboardInterrupt:
        sys.stderr.write("stopped; the corpora are kept, and the next run goes on from there\n")
        return EXIT_STOPPED


def _check_engine() -> None:
    from importlib.util import find_spec

    if find_spec("atheris") is None:
        raise FuzzError(
            "atheris: not installed here (there are wheels for Linux on x86-64); try: scripts/setup"
        )


if __name__ == "__main__":
    sys.exit(main())
