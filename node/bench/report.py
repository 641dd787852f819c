"""What every bench ends with: a line, JSON where it is wanted, and an exit code."""

import contextlib
import json
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import psutil

REPORT_VERSION = 1
EXIT_MISSED = 6
ROOT = Path(__file__).resolve().parents[2]
CHANGED = " with changes"
CODE = (".", ":!docs", ":!*.md")
"""What a measurement depends on: the page that is being made lies in docs/."""


class Target(msgspec.Struct, frozen=True):
    """One figure that must be reached."""

    name: str
    got: float
    limit: float
    unit: str
    held: bool


def at_most(name: str, got: float, limit: float, unit: str) -> Target:
    """Return a target that holds when ``got`` is not above ``limit``."""
    return Target(name, round(got, 4), limit, unit, got <= limit)


def at_least(name: str, got: float, limit: float, unit: str) -> Target:
    """Return a target that holds when ``got`` is not below ``limit``."""
    return Target(name, round(got, 4), limit, unit, got >= limit)


def equals(name: str, got: float, wanted: float, unit: str) -> Target:
    """Return a target that holds when ``got`` is exactly ``wanted``."""
    return Target(name, got, wanted, unit, got == wanted)


class BenchReport(msgspec.Struct, frozen=True):
    """The result of one bench."""

    version: int
    bench: str
    held: bool
    summary: str
    targets: tuple[Target, ...]
    machine: dict[str, Any]
    details: dict[str, Any]


def build_report(bench: str, summary: str, targets: list[Target], details: dict[str, Any]) -> BenchReport:
    """Return the report of ``bench``; a bench without targets has measured nothing."""
    held = bool(targets) and all(target.held for target in targets)
    return BenchReport(REPORT_VERSION, bench, held, summary, tuple(targets), describe_machine(), details)


def describe_machine() -> dict[str, Any]:
    """Return what figures depend on."""
    return {
        "cpu": describe_cpu(),
        "commit": describe_commit(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "cores": psutil.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "load_1m": psutil.getloadavg()[0],
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def describe_cpu() -> str:
    """Return the processor's name as the system tells it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def describe_commit() -> str:
    """Return the commit that is measured, marked when files differ from it; empty outside a clone."""
    _, commit = _ask_git("describe", "--always", "--abbrev=12")
    return commit + (CHANGED if _ask_git("status", "--porcelain", "--", *CODE)[1] else "")


def is_same_code(commit: str) -> bool:
    """Whether what is measured now is what was at ``commit``, as ``describe_commit`` gave it."""
    if not commit or commit.endswith(CHANGED):
        return False  # nobody knows which changes those were
    code, _ = _ask_git("diff", "--quiet", commit, "--", *CODE)
    return code == 0 and not _ask_git("ls-files", "--others", "--exclude-standard", "--", *CODE)[1]


def _ask_git(*command: str) -> tuple[int, str]:
    """Return exit code and output of git in this clone; outside of one, a failure that says nothing."""
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        return 1, ""
    found = subprocess.run([git, "-C", str(ROOT), *command], capture_output=True, text=True, check=False)
    return found.returncode, found.stdout.strip()


def say(text: str) -> None:
    """Print a line of progress for people."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def finish(report: BenchReport, json_path: Path | None, *, is_check: bool) -> int:
    """Say which targets were missed, print the one-line summary, write JSON, and return the exit code."""
    for target in report.targets:
        if not target.held:
            say(f"missed: {target.name}: got {target.got:g} {target.unit}, target {target.limit:g}")
    if json_path is not None:
        json_path.parent.mkdir(parents=True, exist_ok=True)
        json_path.write_text(json.dumps(msgspec.to_builtins(report), indent=1) + "\n")
    sys.stdout.write(
        f"{report.bench}: {report.summary}; {'all targets met' if report.held else 'TARGETS MISSED'}\n"
    )
    sys.stdout.flush()
    return EXIT_MISSED if is_check and not report.held else 0
