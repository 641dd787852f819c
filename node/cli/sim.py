"""``sim``: the same network from a seed in virtual time; the simulator itself is ``node.sim``.

A seed draws network, load and faults; ``--shards`` and ``--validators`` put a number of one's own in place of the drawn
one. The same options and commit give the same run on every machine, so a violation is replayed by its command line.
"""

import secrets
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec
import rich_click as click

from node.cli.output import json_option, print_json, say
from node.cli.root import EXIT_CHECK_FAILED, NamingGroup

if TYPE_CHECKING:
    from node.sim.run import Result

MAX_SHARDS: Final = 64
MAX_VALIDATORS: Final = 64
MAX_SEED: Final = 1 << 31

F = TypeVar("F", bound=Callable[..., Any])


@click.group(cls=NamingGroup)
def sim() -> None:
    """Run the same network from a seed in virtual time."""


def scenario_options(function: F) -> F:
    """Add the options that say what is run."""
    for option in (
        click.option(
            "--faults/--no-faults", default=True, show_default=True, help="Crashes, losses, partitions, …"
        ),
        click.option("--minutes", default=2.0, show_default=True, help="Minutes of virtual time."),
        click.option(
            "--validators", type=click.IntRange(1, MAX_VALIDATORS), help="Validators per shard.  [default: 4]"
        ),
        click.option(
            "--shards", type=click.IntRange(1, MAX_SHARDS), help="Shards.  [default: as the seed draws]"
        ),
    ):
        function = option(function)
    return function


@sim.command("run")
@click.option(
    "--seed", type=click.IntRange(0), default=None, help="What everything is drawn from.  [default: random]"
)
@scenario_options
@json_option
def run_seed(
    *,
    seed: int | None,
    shards: int | None,
    validators: int | None,
    minutes: float,
    faults: bool,
    as_json: bool,
) -> int:
    """Run one seed, check every invariant, say in one line what became of it."""
    chosen = secrets.randbelow(MAX_SEED) if seed is None else seed
    if not as_json:
        say(f"seed {chosen}, {minutes:g} simulated minutes; the same seed gives the same run")
    result = _run(chosen, shards, validators, minutes, faults=faults, show=None)
    if as_json:
        command = build_replay_command(chosen, shards, validators, minutes, faults=faults)
        print_json(msgspec.to_builtins(result) | {"command": command})
        return 0 if result.is_ok else EXIT_CHECK_FAILED
    return _report(result, build_replay_command(chosen, shards, validators, minutes, faults=faults))


@sim.command()
@click.option("--seed", type=click.IntRange(0), required=True, help="Of the run to see again.")
@click.option("--grep", default="", help="Only steps with this text in them.")
@scenario_options
def replay(
    *, seed: int, grep: str, shards: int | None, validators: int | None, minutes: float, faults: bool
) -> int:
    """Run one seed again and show every step."""

    def show(line: str) -> None:
        if grep in line:
            click.echo(line)

    result = _run(seed, shards, validators, minutes, faults=faults, show=show)
    return _report(result, build_replay_command(seed, shards, validators, minutes, faults=faults))


def _run(
    seed: int,
    shards: int | None,
    validators: int | None,
    minutes: float,
    *,
    faults: bool,
    show: Callable[[str], None] | None,
) -> "Result":
    from node.sim.recipe import MIN_MINUTES
    from node.sim.run import run
    from node.sim.scenario import draw_scenario

    if minutes < MIN_MINUTES:
        raise click.BadParameter(
            f"minutes: got {minutes:g}, expected at least {MIN_MINUTES:g}: faults need quiet after them"
        )
    scenario = draw_scenario(seed, int(minutes * 60_000), faults=faults)
    if shards is not None:
        scenario = msgspec.structs.replace(scenario, shards=shards)
    if validators is not None:
        replicas = min(scenario.replicas, validators)
        scenario = msgspec.structs.replace(scenario, validators=validators, replicas=replicas)
    return run(seed, minutes=minutes, faults=faults, scenario=scenario, show=show)


def build_replay_command(
    seed: int, shards: int | None, validators: int | None, minutes: float, *, faults: bool
) -> str:
    """Return the command line that shows this very run step by step."""
    words = ["shardyard sim replay", f"--seed {seed}", f"--minutes {minutes:g}"]
    words += [f"--shards {shards}"] if shards is not None else []
    words += [f"--validators {validators}"] if validators is not None else []
    return " ".join([*words, *([] if faults else ["--no-faults"])])


def _report(result: "Result", command: str) -> int:
    from node.sim.run import describe_result

    if result.is_ok:
        click.echo(describe_result(result))
        return 0
    click.echo(f"seed {result.seed}: {result.violation}\n  at {result.simulated_s:.3f} s of virtual time")
    say(f"try: {command}")
    return EXIT_CHECK_FAILED
