"""Benches of the native core: Cargo builds and runs one, and it leaves its figures as JSON.

They need the sources, so they run from a clone and not from an installed wheel.
"""

import asyncio
import shutil
from pathlib import Path
from typing import TypeVar

import msgspec

from shardyard.errors import ShardyardError

MANIFEST = Path(__file__).resolve().parents[2] / "native" / "Cargo.toml"
Shape = TypeVar("Shape")


class NativeBenchError(ShardyardError):
    """A bench of the native core could not be run or said nothing."""


async def run_native_bench(folder: Path, name: str, shape: type[Shape], *arguments: str) -> Shape:
    """Run the bench ``name`` of shardyard-core and return what it leaves; its table goes to standard error.

    Raises:
        NativeBenchError: no Cargo, no sources, or a bench that failed.

    """
    cargo = shutil.which("cargo")
    if cargo is None or not MANIFEST.exists():
        missing = "cargo was not found" if cargo is None else f"there is no {MANIFEST}"
        raise NativeBenchError(f"{missing}. try: scripts/bench in a clone, with Rust installed")
    written = folder / f"{name}.json"
    process = await asyncio.create_subprocess_exec(
        *(cargo, "bench", "--quiet", "--locked", "--manifest-path", str(MANIFEST)),
        *("--package", "shardyard-core", "--bench", name, "--", "--json", str(written), *arguments),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=2,  # humans read standard error; standard output belongs to the one-line summary
    )
    try:
        code = await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if code != 0:
        raise NativeBenchError(
            f"got exit code {code} of the bench {name}, expected 0. try: read what it said above"
        )
    return msgspec.json.decode(written.read_bytes(), type=shape)
