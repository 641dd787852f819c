"""What tests of every room ask for by name: places outside the tree that may be absent, and waiting without sleeping.

A test that needs something this machine lacks is skipped with the reason, and pytest counts it (``-ra``).
"""

import asyncio
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parent.parent

# CI must fail for what changed, not for what it happened to draw; a person's run draws anew each time.
settings.register_profile("person", deadline=None)
settings.register_profile(
    "ci", deadline=None, derandomize=True, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("ci" if os.environ.get("CI") else "person")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts what it puts into the background deaf to Ctrl-C, and so would be every process that a test interrupts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    # Under nohup this process goes on without its terminal, but what it starts must hear of a closed one: handlers end at exec.
    signal.signal(signal.SIGHUP, lambda *_: None)

POLL_S = 0.02


@pytest.fixture(scope="session")
def root() -> Path:
    """The top of the source tree."""
    return ROOT


@pytest.fixture(scope="session")
def fixtures() -> Path:
    """The folder of large published test vectors: the one that SHARDYARD_FIXTURES names, or the one beside the clone."""
    named = os.environ.get("SHARDYARD_FIXTURES")
    place = Path(named) if named else ROOT.parent / "shared" / "fixtures"
    if not place.is_dir():
        pytest.skip(
            f"no {named or '../shared/fixtures beside this clone, and SHARDYARD_FIXTURES is not set'}"
        )
    return place


@pytest.fixture(scope="session")
def oracle_python() -> Path:
    """The interpreter that can import the independent EVM (``scripts/setup --oracle``)."""
    python = ROOT / ".venv-oracle" / "bin" / "python"
    if not python.exists():
        pytest.skip("no .venv-oracle; scripts/setup --oracle makes it")
    return python


@pytest.fixture(scope="session")
def cast() -> Path:
    """The command-line wallet of other people (``scripts/setup --cast``)."""
    place = ROOT / "requirements" / "cast" / "node_modules" / ".bin" / "cast"
    found = place if place.exists() else shutil.which("cast")
    if found is None:
        pytest.skip("no cast; scripts/setup --cast installs it where npm is there")
    return Path(found)


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty SHARDYARD_HOME; its path is short, because the name of a Unix socket may have 107 bytes at most."""
    place = Path(tempfile.mkdtemp(prefix="sy-"))
    monkeypatch.setenv("SHARDYARD_HOME", str(place))
    yield place
    shutil.rmtree(place, ignore_errors=True)


Eventually = Callable[..., object]
EventuallyAsync = Callable[..., Awaitable[object]]


@pytest.fixture(scope="session")
def eventually() -> Eventually:
    """``eventually(condition, within_s=10)``: the first true answer of the condition, or a failure that says the last."""

    def wait(condition: Callable[[], object], within_s: float = 10.0) -> object:
        deadline = time.monotonic() + within_s
        while not (answer := condition()):
            if time.monotonic() > deadline:
                pytest.fail(f"not within {within_s} s: the condition last answered {answer!r}")
            time.sleep(POLL_S)
        return answer

    return wait


@pytest.fixture(scope="session")
def eventually_async() -> EventuallyAsync:
    """The same in the event loop; the condition may be a plain or an async function."""

    async def wait(condition: Callable[[], object], within_s: float = 10.0) -> object:
        deadline = time.monotonic() + within_s
        while True:
            answer = condition()
            if isinstance(answer, Awaitable):
                answer = await answer
            if answer:
                return answer
            if time.monotonic() > deadline:
                pytest.fail(f"not within {within_s} s: the condition last answered {answer!r}")
            await asyncio.sleep(POLL_S)

    return wait
