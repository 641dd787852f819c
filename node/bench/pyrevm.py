"""``pyrevm`` beside the executor: sequential revm as a Python user can install it.

It lives in an environment of its own, .venv-pyrevm, made from a locked list of requirements, where ``node.bench.pyrevm_program``
runs as a process.
Where it cannot be installed the table says so.
"""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import msgspec

from node.artifacts import load_artifact
from node.bench.report import say
from shardyard import _native

ROOT = Path(__file__).resolve().parents[2]
REQUIREMENTS = ROOT / "requirements" / "pyrevm.txt"
ENVIRONMENT = ROOT / ".venv-pyrevm"
INSTALL_TIMEOUT_S = 180.0
RUN_TIMEOUT_S = 300.0
PROGRAM = Path(__file__).with_name("pyrevm_program.py")


class PyrevmRow(msgspec.Struct, frozen=True):
    """One workload: µs per transaction, the median of the rounds."""

    workload: str
    us: float
    version: str


async def measure_pyrevm(folder: Path, count: int, rounds: int) -> tuple[tuple[PyrevmRow, ...], str]:
    """Return the rows, or none and why."""
    try:
        python = await _install()
        task = folder / "pyrevm.json"
        task.write_text(json.dumps(build_task(count, rounds)))
        written = await _run(RUN_TIMEOUT_S, str(python), "-I", str(PROGRAM), str(task))
        return tuple(msgspec.json.decode(written, type=list[PyrevmRow])), ""
    except (OSError, TimeoutError, RuntimeError, msgspec.DecodeError) as error:
        return (), f"not measured: {str(error).strip() or type(error).__name__}"


def build_task(count: int, rounds: int) -> dict[str, Any]:
    """Return what the program needs: pairs of accounts, their balances' slots in the token, and the calls."""
    erc20 = load_artifact("erc20")
    variable = erc20.storage["balanceOf"].to_bytes(32, "big")
    selector = _native.keccak256(b"transfer(address,uint256)")[:4]
    accounts = [_native.keccak256(number.to_bytes(8, "big"))[12:] for number in range(2 * count)]
    words = [account.rjust(32, b"\0") for account in accounts]
    return {
        "rounds": rounds,
        "runtime": erc20.runtime,
        "accounts": ["0x" + account.hex() for account in accounts],
        "slots": [_native.keccak256(variable + word).hex() for word in words],
        "calls": [(selector + word + (1).to_bytes(32, "big")).hex() for word in words[1::2]],
    }


async def _install() -> Path:
    python = ENVIRONMENT / "bin" / "python"
    stamp = ENVIRONMENT / ".stamp-pyrevm"
    wanted = REQUIREMENTS.read_text()
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    say("pyrevm into .venv-pyrevm")
    await _run(INSTALL_TIMEOUT_S, sys.executable, "-m", "venv", "--clear", str(ENVIRONMENT))
    await _run(
        INSTALL_TIMEOUT_S,
        *(str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"),
        *("--only-binary", ":all:", "--require-hashes", "--requirement", str(REQUIREMENTS)),
    )
    stamp.write_text(wanted)
    return python


async def _run(timeout_s: float, *command: str) -> bytes:
    """Return what a command writes; raises ``RuntimeError`` with its last words when it fails."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(timeout_s):
            output, errors = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        words = errors.decode(errors="replace").strip().splitlines() or ["it said nothing"]
        raise RuntimeError(f"got exit code {process.returncode} of {command[0]}: {words[-1]}")
    return output
