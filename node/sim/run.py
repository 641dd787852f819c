"""One run: run it, replay it with a readable trace, say in one line what became of it.

The same recipe and commit give the same run on every machine.
"""

import time
import traceback
from collections.abc import Callable

import msgspec

from node.sim.invariants import InvariantError
from node.sim.recipe import DEFAULT_MINUTES, MIN_MINUTES, Recipe
from node.sim.scenario import Scenario
from node.sim.world import Report, World


class Result(msgspec.Struct, frozen=True):
    """What became of one run."""

    recipe: Recipe
    scenario: Scenario
    violation: str
    """Empty when every invariant held."""
    cpu_s: float
    """Seconds of processor time: what else this machine does must not look like a slow simulator."""
    simulated_s: float
    report: Report | None
    """None when the run did not come to its end."""

    @property
    def seed(self) -> int:
        """What everything is drawn from."""
        return self.recipe.seed

    @property
    def is_ok(self) -> bool:
        """Whether every invariant held."""
        return not self.violation

    @property
    def invariant(self) -> str:
        """The number of the invariant that broke; empty when all held."""
        return self.violation.partition(":")[0]

    @property
    def command(self) -> str:
        """The one line that replays this run."""
        return self.recipe.command


def run(
    seed: int,
    *,
    minutes: float = DEFAULT_MINUTES,
    faults: bool = True,
    scenario: Scenario | None = None,
    show: Callable[[str], None] | None = None,
) -> Result:
    """Run ``seed`` for ``minutes`` of virtual time, or a scenario of one's own."""
    recipe = Recipe(seed, minutes=max(minutes, MIN_MINUTES), faults=faults)
    return run_recipe(recipe, scenario=scenario, show=show)


def run_recipe(
    recipe: Recipe, *, scenario: Scenario | None = None, show: Callable[[str], None] | None = None
) -> Result:
    """Run what ``recipe`` says; an exception of a machine is a violation like any other (I12).

    Raises ``RecipeError`` when the recipe cannot be run.
    """
    scenario = scenario or recipe.build_scenario()
    world = World(recipe.seed, scenario, show)
    started = time.process_time()
    report: Report | None = None
    violation = ""
    try:
        report = world.run()
    except InvariantError as error:
        violation = str(error)
    except Exception as error:  # noqa: BLE001  # whatever a machine raises is what is being looked for
        last = traceback.extract_tb(error.__traceback__)[-1]
        violation = f"I12: {type(error).__name__}: {error} (in {last.name}, {last.filename}:{last.lineno})"
    return Result(
        recipe=recipe,
        scenario=scenario,
        violation=violation,
        cpu_s=time.process_time() - started,
        simulated_s=world.clock.now_ms / 1000,
        report=report,
    )


def replay(
    seed: int,
    *,
    minutes: float = DEFAULT_MINUTES,
    faults: bool = True,
    scenario: Scenario | None = None,
    show: Callable[[str], None] = print,
) -> Result:
    """Run ``seed`` again and show every step."""
    return run(seed, minutes=minutes, faults=faults, scenario=scenario, show=show)


def describe_result(result: Result) -> str:
    """Return what became of a run in one line."""
    speed = result.simulated_s / result.cpu_s if result.cpu_s else 0.0
    if not result.is_ok or result.report is None:
        return f"seed {result.seed}: {result.violation}\n  at {result.simulated_s:.3f} s; replay: {result.command}"
    heights = " ".join(str(height) for height in result.report.heights.values())
    return (
        f"seed {result.seed}: all held; heights {heights}, {result.report.counters.get('delivered', 0)} messages delivered, "
        f"{sum(result.report.faults.values())} faults, {speed:.0f} simulated seconds per second of one core, "
        f"trace {result.report.trace_hash}"
    )
