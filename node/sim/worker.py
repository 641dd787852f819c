"""A process that runs seeds for somebody else: a recipe per line in, a result per line out.

It can carry a planted bug, and be given another hash seed. If it dies over a run, or spends more processor time or memory
than any run may, that is a violation of I12 like any other, and the next run gets a new process.
"""

import contextlib
import gc
import os
import resource
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Final, Self

import msgspec

from node.sim.mutants import get_plant
from node.sim.plants import install_plant

if TYPE_CHECKING:
    from node.sim.recipe import Recipe
    from node.sim.run import Result

CPU_S: Final = 60
CPU_S_PER_MINUTE: Final = 60
"""Processor time a run may take: that much, and that much for each of its minutes; one second is usual for two minutes."""
MEMORY_BYTES: Final = 4 << 30
GARBAGE_THRESHOLDS: Final = (20_000, 20, 20)
"""Of the three generations of the garbage collector: nearly all that a run drops is freed without it."""


class _Order(msgspec.Struct, frozen=True):
    """What the process is asked for; the recipe is read by the child, once its bug is planted."""

    recipe: msgspec.Raw
    tells: bool


class Worker:
    """The parent's side of one process; started when it is first needed."""

    def __init__(self, plant: str = "", hash_seed: str | None = None) -> None:
        self._plant = plant
        self._environ = os.environ | ({} if hash_seed is None else {"PYTHONHASHSEED": hash_seed})
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, recipe: "Recipe", *, tells: bool = False) -> "Result":
        """Run ``recipe`` in the process and return what became of it, with its story if it ``tells``."""
        from node.sim.run import Result

        process = self._process = self._process or self._start()
        assert process.stdin is not None, "the process reads from a pipe"
        assert process.stdout is not None, "the process writes to a pipe"
        with contextlib.suppress(BrokenPipeError):
            order = _Order(msgspec.Raw(msgspec.json.encode(recipe)), tells)
            process.stdin.write(msgspec.json.encode(order) + b"\n")
            process.stdin.flush()
        line = process.stdout.readline()
        if line.endswith(b"\n"):
            return msgspec.json.decode(line, type=Result)
        code = process.wait()
        self.close()
        return Result(
            recipe=recipe,
            scenario=recipe.build_scenario(),
            violation=f"I12: the process that ran it {_describe_end(code)}",
            cpu_s=0.0,
            simulated_s=0.0,
            report=None,
        )

    def kill(self) -> None:
        """End the process in the middle of whatever it runs; may be called by another thread."""
        if self._process is not None:
            self._process.kill()

    def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()

    def _start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "node.sim.worker", self._plant],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=self._environ,
        )


def _describe_end(code: int) -> str:
    if code == -signal.SIGXCPU:
        return f"spent more than {CPU_S} s of processor time and {CPU_S_PER_MINUTE} s per simulated minute"
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


def serve(plant: str) -> None:
    """Run recipes from standard input until it ends."""
    if plant:
        install_plant(get_plant(plant))
    from node.sim.narration import Epilogue
    from node.sim.recipe import Recipe
    from node.sim.run import run_recipe

    _collect_rarely()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    _limit(resource.RLIMIT_AS, MEMORY_BYTES)
    for line in sys.stdin.buffer:
        order = msgspec.json.decode(line, type=_Order)
        recipe = msgspec.json.decode(order.recipe, type=Recipe)
        usage = resource.getrusage(resource.RUSAGE_SELF)
        spent = int(usage.ru_utime + usage.ru_stime) + 1
        _limit(resource.RLIMIT_CPU, spent + CPU_S + int(CPU_S_PER_MINUTE * recipe.minutes))
        epilogue = Epilogue() if order.tells else None
        result = run_recipe(recipe, listener=epilogue)
        if epilogue is not None and not result.is_ok:
            story = tuple(map(str, epilogue.tell(result.violation)))
            result = msgspec.structs.replace(result, story=story)
        # Its machines refer to each other: what is left of one run would make the next ones ever slower.
        result = msgspec.structs.replace(result, cpu_s=result.cpu_s + _collect())
        try:
            sys.stdout.buffer.write(msgspec.json.encode(result) + b"\n")
            sys.stdout.buffer.flush()
        except BrokenPipeError:  # whoever asked was killed meanwhile
            os._exit(1)


def _collect() -> float:
    """Free what a run has left; return the processor time that took, in seconds."""
    started = time.process_time()
    gc.collect()
    return time.process_time() - started


def _collect_rarely() -> None:
    """Let the garbage collector leave alone what was imported, and look less often at the blocks that a run keeps."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GARBAGE_THRESHOLDS)


def _limit(kind: int, value: int) -> None:
    """Lower the soft limit; one that the system has already, or does not know, stays."""
    _, hard = resource.getrlimit(kind)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(kind, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


if __name__ == "__main__":
    serve(sys.argv[1] if len(sys.argv) > 1 else "")
