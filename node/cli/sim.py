"""``sim``: the same network from a seed in virtual time; the simulator itself is ``node.sim``.

A seed draws network, load and faults; every option that says what is run puts a choice of one's own in place of the drawn
one. The same options and commit give the same run on every machine, so a violation is replayed by its command line.
"""

import secrets
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import rich_click as click

from node.cli.output import json_option, print_json, say
from node.cli.root import EXIT_CHECK_FAILED, NamingGroup

if TYPE_CHECKING:
    from node.sim.recipe import Recipe
    from node.sim.run import Result
    from node.sim.trace import Listener

MAX_SHARDS: Final = 64
MAX_VALIDATORS: Final = 64
MAX_SEED: Final = 1 << 31
PROFILE_HELP: Final = (
    "Fault profile: calm, default, crashy, byzantine, wan, disk or chaos.  [default: default]"
)
MINUTES_HELP: Final = (
    "Minutes of virtual time; short runs with Byzantine nodes have more, for the quiet at their end."
)

F = TypeVar("F", bound=Callable[..., Any])


@click.group(cls=NamingGroup)
def sim() -> None:
    """Run the same network from a seed in virtual time."""


def parse_strikes(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    """Return the indices in ``3,7``, and none of them for ``none``."""
    if value is None:
        return None
    try:
        return () if value == "none" else tuple(sorted({int(word) for word in value.split(",")}))
    except ValueError:
        text = f"got {value!r}, expected indices such as 3,7, or none"
        raise click.BadParameter(text, ctx, param) from None


def parse_names(ctx: click.Context, param: click.Parameter, value: str) -> tuple[str, ...]:
    """Return the names in ``drop,duplicate``."""
    del ctx, param
    return tuple(dict.fromkeys(name.strip() for name in value.split(",") if name.strip()))


def recipe_options(function: F) -> F:
    """Add the options that say what is run."""
    drawn = "  [default: as the seed draws]"
    for option in (
        click.option("--plant", default="", metavar="NAME", help="Run with this bug planted."),
        click.option("--calm-from", type=click.FloatRange(0), help="Second at which faults and load end."),
        click.option(
            "--only-strikes",
            callback=parse_strikes,
            metavar="INDICES",
            help="Only these strikes hit: 3,7 or none.",
        ),
        click.option(
            "--calm",
            callback=parse_names,
            default="",
            metavar="NAMES",
            help="Knobs of the fault profile put to rest.",
        ),
        click.option("--tps", type=click.FloatRange(0, 1000), help=f"Transactions per second.{drawn}"),
        click.option(
            "--beacon-replicas", type=click.IntRange(1, MAX_VALIDATORS), help=f"Beacon processes.{drawn}"
        ),
        click.option(
            "--replicas", type=click.IntRange(1, MAX_VALIDATORS), help=f"Processes per shard.{drawn}"
        ),
        click.option(
            "--validators", type=click.IntRange(1, MAX_VALIDATORS), help="Validators per shard.  [default: 4]"
        ),
        click.option("--shards", type=click.IntRange(1, MAX_SHARDS), help=f"Shards.{drawn}"),
        click.option("--profile", default="default", metavar="NAME", help=PROFILE_HELP),
        click.option(
            "--faults/--no-faults", default=True, show_default=True, help="Crashes, losses, partitions, …"
        ),
        click.option("--minutes", default=2.0, show_default=True, help=MINUTES_HELP),
    ):
        function = option(function)
    return function


def build_recipe(seed: int, options: dict[str, Any]) -> "Recipe":
    """Return what the command line says, with the planted bug in this process.

    Raises ``PlantError`` or ``RecipeError``.
    """
    if plant := options["plant"]:
        from node.sim.mutants import get_plant
        from node.sim.plants import install_plant

        install_plant(get_plant(plant))
    from node.sim.recipe import Recipe

    names = {"calm_from": "calm_from_s"}
    recipe = Recipe(seed, **{names.get(name, name): value for name, value in options.items()})
    recipe.build_scenario()
    return recipe


@sim.command("run")
@click.option(
    "--seed", type=click.IntRange(0), default=None, help="What everything is drawn from.  [default: random]"
)
@click.option(
    "--html",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the run as a page to scrub through.",
)
@recipe_options
@json_option
def run_seed(*, seed: int | None, html: Path | None, as_json: bool, **options: Any) -> int:
    """Run one seed, check every invariant, say in one line what became of it."""
    import msgspec

    chosen = secrets.randbelow(MAX_SEED) if seed is None else seed
    recipe = build_recipe(chosen, options)
    if not as_json:
        say(f"seed {chosen}, {recipe.minutes:g} simulated minutes; the same seed gives the same run")
    result = _run(recipe, None) if html is None else _record(recipe, html)
    if as_json:
        print_json(msgspec.to_builtins(result) | {"command": recipe.command})
        return 0 if result.is_ok else EXIT_CHECK_FAILED
    return _report(result)


@sim.command()
@click.option("--seed", type=click.IntRange(0), required=True, help="Of the run to see again.")
@click.option("--grep", default="", metavar="TEXT", help="Only lines with this text in them.")
@click.option("--node", "nodes", multiple=True, help="Only this node, or all nodes of a chain: shard-0.")
@click.option("--from", "from_s", type=click.FloatRange(0), default=0.0, help="Only from this second on.")
@click.option("--to", "to_s", type=click.FloatRange(0), help="Only up to this second.")
@click.option("--all", "is_thorough", is_flag=True, help="Also steps that change nothing, writes and timers.")
@recipe_options
def replay(
    *,
    seed: int,
    grep: str,
    nodes: tuple[str, ...],
    from_s: float,
    to_s: float | None,
    is_thorough: bool,
    **options: Any,
) -> int:
    """Run one seed again and tell what happened, line by line: who did what when."""
    recipe = build_recipe(seed, options)
    from node.sim.narration import Filter, Line, Narrator

    wanted = Filter(grep, nodes, int(from_s * 1000), None if to_s is None else int(to_s * 1000))
    shown = 0

    def show(line: Line) -> None:
        nonlocal shown
        if wanted.admits(line):
            shown += 1
            click.echo(str(line))

    result = _run(recipe, Narrator(show, is_thorough=is_thorough))
    if not shown:
        say("no line fits; try: without --grep, --node, --from and --to, or with --all")
    return _report(result)


def _run(recipe: "Recipe", listener: "Listener | None") -> "Result":
    from node.sim.run import run_recipe

    return run_recipe(recipe, listener=listener)


def _record(recipe: "Recipe", path: Path) -> "Result":
    """Run ``recipe`` and write what happened to ``path``, one file that a browser opens by itself."""
    from node.sim.recording import Recorder, write_page

    path.parent.mkdir(parents=True, exist_ok=True)
    recorder = Recorder()
    result = _run(recipe, recorder)
    size = write_page(recorder, result, path)
    say(f"{path}: {size / 1e6:.1f} MB; open it in a browser")
    return result


def _report(result: "Result") -> int:
    from node.sim.run import describe_result

    if result.is_ok:
        click.echo(describe_result(result))
        return 0
    click.echo(f"seed {result.seed}: {result.violation}\n  at {result.simulated_s:.3f} s of virtual time")
    say(f"try: {result.command}")
    return EXIT_CHECK_FAILED


@sim.command("hunt")
@click.option("--seeds", type=click.IntRange(1), default=100, show_default=True, help="How many seeds.")
@click.option("--start", type=click.IntRange(0), default=0, show_default=True, help="The first of them.")
@click.option("--minutes", default=2.0, show_default=True, help=f"Per seed: {MINUTES_HELP}")
@click.option("--faults/--no-faults", default=True, show_default=True, help="Crashes, losses, partitions, …")
@click.option("--profile", metavar="NAME", help=PROFILE_HELP)
@click.option(
    "--with",
    "wanted",
    multiple=True,
    metavar="FAULT",
    help="Of the seeds only those that draw this class of fault or role, as sim ledger names it (repeatable).",
)
@click.option("--jobs", type=click.IntRange(1), help="Processes.  [default: one per core]")
@click.option("--within", type=click.FloatRange(0), metavar="SECONDS", help="End after so many seconds.")
@click.option("--at-least", type=click.IntRange(0), default=0, help="Fail (exit 6) with fewer seeds.")
@click.option(
    "--min-speed", type=float, default=0.0, help="Fail (exit 6) below so many simulated s/s per core."
)
@click.option(
    "--plant",
    default="",
    metavar="NAME",
    help="Plant this bug (a name, a rule, or list) and look until it is found.",
)
@click.option("--ledger", type=click.Path(path_type=Path), help="Where finished seeds are kept.")
@click.option("--no-ledger", is_flag=True, help="Run all seeds anew and keep nothing.")
@json_option
def hunt_seeds(*, plant: str, **options: Any) -> int:
    """Look for a seed that breaks an invariant: on all cores, resumable, violations made small."""
    from node.cli.sim_hunt import hunt_plant, hunt_range, list_plants

    if plant == "list":
        return list_plants(as_json=options["as_json"])
    return hunt_plant(plant, options) if plant else hunt_range(options)


@sim.command("ledger")
@click.option("--ledger", type=click.Path(path_type=Path), help="Where finished seeds are kept.")
@json_option
def show_ledger(*, ledger: Path | None, as_json: bool) -> int:
    """Say what the ledger holds for the present sources: seeds, faults, and what they hit."""
    from node.cli.sim_hunt import describe_ledger

    return describe_ledger(ledger, as_json=as_json)


def parse_shards(ctx: click.Context, param: click.Parameter, value: str) -> tuple[int, ...]:
    """Return the numbers in ``1,4,16``, each once, in order."""
    try:
        found = tuple(sorted({int(word) for word in value.split(",")}))
    except ValueError:
        text = f"got {value!r}, expected numbers of shards such as 1,4,16"
        raise click.BadParameter(text, ctx, param) from None
    return found


@sim.command("scale")
@click.option(
    "--shards",
    callback=parse_shards,
    default="1,4,16,64,256",
    show_default=True,
    metavar="NUMBERS",
    help="Numbers of shards, a point each; up to 256.",
)
@click.option("--validators", type=int, default=16, show_default=True, help="Keys per shard, up to 16.")
@click.option("--shard-nodes", type=int, help="Processes that share them.  [default: 4]")
@click.option(
    "--beacon-committee", type=int, default=128, show_default=True, help="Validators sampled for the beacon."
)
@click.option("--beacon-nodes", type=int, help="Processes that share their keys.  [default: 4]")
@click.option("--cores-per-node", type=int, default=2, show_default=True, help="Processors of every process.")
@click.option("--cross", type=float, default=0.2, show_default=True, help="Share that leaves its shard.")
@click.option(
    "--tps-per-shard", type=float, default=100.0, show_default=True, help="Transactions offered to each."
)
@click.option("--saturate", is_flag=True, help="Offer what fills every block to its gas target.")
@click.option("--block-time", type=int, default=1000, show_default=True, metavar="MS", help="Of all chains.")
@click.option("--seconds", type=float, default=20.0, show_default=True, help="Of virtual time, per point.")
@click.option("--regions", default="lan", show_default=True, help="Distances: none, lan, continent or world.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Same seed, same figures.")
@click.option("--costs", type=click.Path(path_type=Path), help="Measured before, instead of now.")
@click.option("--save-costs", type=click.Path(path_type=Path), help="Where to keep what is measured now.")
@click.option(
    "--svg", "--plot", "svg", type=click.Path(path_type=Path, file_okay=False), help="Folder for three plots."
)
@json_option
def scale(**options: Any) -> int:
    """Project TPS, latency and beacon load against shards: real machines, measured costs as virtual time."""
    from node.cli.sim_scale import run_scale

    return run_scale(options)
