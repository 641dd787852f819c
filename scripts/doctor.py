"""Names what is missing on this machine before anything is built.

Standard library only, and run by whatever Python is there, so its syntax stays below what the project itself may
use. Prints one line per finding, each with a ``try:`` line, and exits 1 when something needed is missing;
``--verbose`` prints what is there as well. A running network is looked at by ``shardyard doctor``, not here.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYTHON_NEEDED = (3, 11)
COLD_BUILD_BYTES = 4 * 1024**3
WARM_BUILD_BYTES = 512 * 1024**2


class Finding:
    def __init__(self, name: str, detail: str, remedy: str = "") -> None:
        self.name = name
        self.detail = detail
        self.remedy = remedy

    @property
    def is_missing(self) -> bool:
        return bool(self.remedy)


def parse_version(text: str) -> tuple[int, ...]:
    match = re.search(r"(\d+)\.(\d+)(?:\.(\d+))?", text)
    return tuple(int(part or 0) for part in match.groups()) if match else ()


def get_rust_needed() -> tuple[int, ...]:
    """Read ``rust-version`` of the workspace, the one place where it is written."""
    manifest = (ROOT / "native" / "Cargo.toml").read_text(encoding="utf-8")
    match = re.search(r'^rust-version\s*=\s*"([^"]+)"', manifest, re.MULTILINE)
    return parse_version(match.group(1)) if match else ()


def dotted(version: tuple[int, ...]) -> str:
    return ".".join(str(part) for part in version)


def check_system() -> Finding:
    if os.name == "nt" or sys.platform in ("cygwin", "msys"):
        return Finding("system", "Windows without WSL", "wsl --install, then run this inside its Linux")
    return Finding("system", platform.platform())


def check_python() -> Finding:
    found = sys.version_info[:3]
    if found[:2] < PYTHON_NEEDED:
        return Finding(
            "python",
            f"got {dotted(found)}, expected {dotted(PYTHON_NEEDED)} or newer",
            "install a newer Python and name it: PYTHON=python3.11 scripts/setup",
        )
    return Finding("python", f"{dotted(found)} at {sys.executable}")


def check_venv() -> Finding:
    # Debian ships `venv` without the `ensurepip` it needs; only the second tells.
    missing = [name for name in ("venv", "ensurepip") if importlib.util.find_spec(name) is None]
    if missing:
        package = f"python{sys.version_info[0]}.{sys.version_info[1]}-venv"
        return Finding("venv", f"this Python has no {' and no '.join(missing)}", f"apt-get install {package}")
    return Finding("venv", "there")


def check_compiler() -> Finding:
    named = os.environ.get("CC", "").split()[:1]
    for candidate in [*named, "cc", "gcc", "clang"]:
        path = shutil.which(candidate)
        if path:
            return Finding("C compiler", path)
    return Finding(
        "C compiler", "none of cc, gcc, clang found (the BLS library is C)", "apt-get install build-essential"
    )


def check_perl() -> Finding:
    path = shutil.which("perl")
    if path is None:
        return Finding("perl", "not found (it writes the assembly of keccak256)", "apt-get install perl")
    return Finding("perl", path)


def check_cargo() -> Finding:
    needed = get_rust_needed()
    path = shutil.which("cargo")
    if path is None:
        return Finding("cargo", "not found", f"install Rust {dotted(needed)} or newer, for example by rustup")
    try:
        told = subprocess.run(
            [path, "--version"], check=True, capture_output=True, text=True, cwd=str(ROOT), timeout=60
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError) as error:
        return Finding("cargo", f"{path} does not answer: {error}", "rustup default stable")
    if parse_version(told) < needed:
        return Finding("cargo", f"got {told}, expected {dotted(needed)} or newer", "rustup update stable")
    return Finding("cargo", told)


def check_disk() -> Finding:
    target = Path(os.environ.get("CARGO_TARGET_DIR") or ROOT / "native" / "target")
    needed = WARM_BUILD_BYTES if (target / "release").is_dir() else COLD_BUILD_BYTES
    place = target
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    told = f"{free / 1024**3:.1f} GiB free at {place}"
    if free < needed:
        return Finding(
            "disk",
            f"{told}, expected {needed / 1024**3:.1f} GiB",
            "free some, or build elsewhere: CARGO_TARGET_DIR=/a/larger/disk scripts/setup",
        )
    return Finding("disk", told)


def check_optional(program: str, use: str) -> Finding:
    return Finding(program, shutil.which(program) or f"not found; only needed for {use}")


def main() -> int:
    verbose = "--verbose" in sys.argv[1:]
    findings = [
        check_system(),
        check_python(),
        check_venv(),
        check_compiler(),
        check_perl(),
        check_cargo(),
        check_disk(),
    ]
    if verbose:
        findings.append(check_optional("npm", "tests that use cast, and anvil beside scripts/bench e2e"))
        findings.append(check_optional("mosquitto", "a faster broker than the embedded one"))
    for finding in findings:
        if finding.is_missing:
            sys.stderr.write(f"missing  {finding.name}: {finding.detail}\n         try: {finding.remedy}\n")
        elif verbose:
            sys.stderr.write(f"ok       {finding.name}: {finding.detail}\n")
    return 1 if any(finding.is_missing for finding in findings) else 0


if __name__ == "__main__":
    sys.exit(main())
