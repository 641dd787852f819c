"""What ``sim hunt`` and ``sim ledger`` do and print."""

import os
import time
from pathlib import Path
from typing import Any, Final

import msgspec
import rich_click as click

from node.cli.output import print_json, print_table, say
from node.cli.root import EXIT_CHECK_FAILED
from node.config import get_home
from node.sim.coverage import ENOUGH, EXEMPT, Table, build_table
from node.sim.faults import DEFAULT_PROFILE, PEACE
from node.sim.hunt import Hunt, hunt, summarise
from node.sim.ledger import FILE_NAME, Ledger, add_up
from node.sim.mutants import PLANTS, get_plant
from node.sim.plants import Plant, PlantError, apply_plant, read_module
from node.sim.progress import Progress, format_duration
from node.sim.recipe import Recipe
from node.sim.shrink import describe_shrunk
from node.sim.sources import compute_sources_hash, describe_commit, is_simulated
from shardyard.errors import ConfigError

MAX_HOLES: Final = 20
"""Holes that are named; of more the number is told."""


def open_ledger(path: Path | None) -> Ledger:
    """Return the ledger at ``path``, or the usual one below the home of all data; raises ``LedgerError``."""
    return Ledger(path or get_home() / "sim" / FILE_NAME)


def hunt_range(options: dict[str, Any]) -> int:
    """Hunt over a range of seeds; return the exit code."""
    ledger = None if options["no_ledger"] else open_ledger(options["ledger"])
    start, count, minutes = options["start"], options["seeds"], options["minutes"]
    recipes = _build_recipes(options)
    jobs = options["jobs"] or os.cpu_count() or 1
    where = f", ledger {ledger.path}" if ledger else ", no ledger"
    some = f"{len(recipes)} of " if len(recipes) < count else ""
    say(
        f"{some}seeds {start} to {start + count - 1} x {minutes:g} simulated minutes, {jobs} processes{where}"
    )
    progress = Progress(len(recipes))
    started = time.monotonic()
    try:
        found = hunt(
            recipes,
            jobs=jobs,
            ledger=ledger,
            is_over=_build_deadline(options["within"]),
            progress=progress,
        )
    finally:
        progress.close()
    for shrunk in found.shrunk:
        say("\n".join(describe_shrunk(shrunk)))
    missed = _find_missed(found, options)
    if options["as_json"]:
        print_json(_to_json(found, time.monotonic() - started) | {"missed": missed})
    else:
        for entry in found.known_violations:
            click.echo(f"{entry.violation} (from the ledger)\n  replay: {entry.recipe.command}")
        click.echo(summarise(found))
        for text in missed:
            say(f"missed: {text}")
    return 0 if found.is_ok and not missed else EXIT_CHECK_FAILED


def _build_recipes(options: dict[str, Any], plant: Plant | None = None) -> list[Recipe]:
    """Return a recipe per seed that draws all that is wanted; raises ``ConfigError`` when they cannot be run."""
    usual = DEFAULT_PROFILE if plant is None else plant.profile
    fields = {
        "minutes": options["minutes"],
        "faults": options["faults"],
        "profile": options["profile"] or usual,
        "plant": "" if plant is None else plant.name,
    }
    start = options["start"]
    recipes = [Recipe(seed, **fields) for seed in range(start, start + options["seeds"])]
    recipes[0].build_scenario()
    return _pick(recipes, options["wanted"])


def _pick(recipes: list[Recipe], wanted: tuple[str, ...]) -> list[Recipe]:
    """Return the recipes whose seeds draw every class of fault and role of ``wanted``; raises ``ConfigError`` for none."""
    known = (*PEACE.strikes, *PEACE.roles)
    for name in wanted:
        if name not in known:
            raise ConfigError(f"--with: got {name!r}, expected one of {', '.join(known)}")
    if not wanted:
        return recipes
    picked = [recipe for recipe in recipes if _draws(recipe, wanted)]
    if not picked:
        raise ConfigError(
            f"--with: got {' and '.join(map(repr, wanted))}, expected what some seed from {recipes[0].seed} to "
            f"{recipes[-1].seed} draws; try: more --seeds, or a --profile that has it"
        )
    return picked


def _draws(recipe: Recipe, wanted: tuple[str, ...]) -> bool:
    profile = recipe.build_scenario().profile
    counts = profile.strikes | profile.roles
    return all(counts[name] for name in wanted)


def _build_deadline(within_s: float | None) -> Any:
    if within_s is None:
        return lambda: False
    deadline = time.monotonic() + within_s
    return lambda: time.monotonic() > deadline


def _find_missed(found: Hunt, options: dict[str, Any]) -> list[str]:
    missed = []
    if len(found.entries) < options["at_least"]:
        missed.append(f"got {len(found.entries)} seeds, expected at least {options['at_least']}")
    if found.totals.speed < options["min_speed"]:
        missed.append(
            f"got {found.totals.speed:.0f} simulated seconds per second of one core, expected at least "
            f"{options['min_speed']:g}"
        )
    return missed


def _to_json(found: Hunt, took_s: float) -> dict[str, Any]:
    totals = found.totals
    return {
        "sources": compute_sources_hash(),
        "commit": describe_commit(),
        "seeds": len(found.entries),
        "from_ledger": found.known,
        "repeated": found.repeated,
        "took_s": round(took_s, 3),
        "simulated_s_per_s": round(totals.speed, 1),
        "faults": dict(totals.faults),
        "coverage": dict(totals.coverage),
        "violations": [
            {"violation": entry.violation, "command": entry.recipe.command} for entry in totals.violations
        ],
        "shrunk": [
            {
                "violation": shrunk.after.violation,
                "command": shrunk.after.command,
                "runs": shrunk.runs,
                "story": list(shrunk.after.story),
            }
            for shrunk in found.shrunk
        ],
    }


def list_plants(*, as_json: bool) -> int:
    """Say which bugs can be planted."""
    if as_json:
        print_json({"plants": msgspec.to_builtins(PLANTS)})
        return 0
    rows = [
        (plant.name, plant.rule, "safety" if plant.is_safety else "liveness", plant.what) for plant in PLANTS
    ]
    print_table(("name", "rule", "breaks", "what the code does then"), rows)
    return 0


def hunt_plant(name: str, options: dict[str, Any]) -> int:
    """Plant a bug and hunt until it is found; the exit code is 0 when it is."""
    plant = get_plant(name)
    for passage in plant.passages:
        apply_plant(plant, passage.module, read_module(passage.module))
        if not is_simulated(passage.module):
            raise PlantError(
                f"plant {plant.name}: {passage.module} is run by real processes, not by the simulator; "
                f"try: scripts/mutants --only {plant.name}"
            )
    start, count = options["start"], options["seeds"]
    recipes = _build_recipes(options, plant)
    say(f"planted {plant.name} ({plant.rule}) in {plant.module}: {plant.what}")
    progress = Progress(len(recipes))
    started = time.monotonic()
    try:
        found = hunt(
            recipes,
            jobs=options["jobs"] or os.cpu_count() or 1,
            plant=plant.name,
            stop_at=1,
            is_over=_build_deadline(options["within"]),
            progress=progress,
        )
    finally:
        progress.close()
    took_s = time.monotonic() - started
    if options["as_json"]:
        print_json(_to_json(found, took_s) | {"plant": plant.name, "is_found": bool(found.failed)})
    elif found.failed:
        for shrunk in found.shrunk:
            click.echo("\n".join(describe_shrunk(shrunk)))
        click.echo(f"found after {len(found.entries)} seeds, shrunk and told in {took_s:.1f} s")
    else:
        click.echo(f"not found in {len(found.entries)} seeds, {format_duration(took_s)}")
        say(f"try: shardyard sim hunt --plant {plant.name} --start {start + count} --seeds {10 * count}")
    return 0 if found.failed else EXIT_CHECK_FAILED


def describe_ledger(path: Path | None, *, as_json: bool) -> int:
    """Say what a ledger holds for the present sources; return the exit code."""
    ledger = open_ledger(path)
    totals = add_up(ledger.entries.values())
    table = build_table(totals.coverage)
    if as_json:
        print_json(
            {
                "path": str(ledger.path),
                "sources": compute_sources_hash(),
                "commit": describe_commit(),
                "torn_lines": ledger.torn,
                "other_sources": dict(ledger.others),
                "totals": msgspec.to_builtins(totals, str_keys=True),
                "holes": table.holes,
            }
        )
        return EXIT_CHECK_FAILED if totals.violations else 0
    rows: list[tuple[str, object]] = [
        ("ledger", ledger.path),
        ("sources", f"{compute_sources_hash()} (commit {describe_commit()})"),
    ]
    rows += [
        ("seeds", f"{count:,} x {minutes:g} simulated minutes")
        for minutes, count in sorted(totals.seeds.items())
    ]
    rows += [
        (
            "simulated",
            f"{totals.simulated_s / 3600:,.1f} hours at {totals.speed:.0f} seconds per second of one core",
        ),
        ("faults", f"{sum(totals.faults.values()):,} of {len(totals.faults)} classes"),
        ("per seed", f"at least {totals.fewest_faults or 0} faults of {totals.fewest_classes or 0} classes"),
        ("delivered", f"{totals.delivered:,} messages between shards"),
        ("final", f"{totals.blocks:,} blocks"),
        ("violations", len(totals.violations)),
    ]
    if ledger.others:
        rows.append(
            ("other sources", f"{sum(ledger.others.values()):,} seeds with {len(ledger.others)} others")
        )
    if ledger.torn:
        rows.append(("torn lines", ledger.torn))
    print_table(("what", "how much"), rows)
    for entry in totals.violations:
        click.echo(f"{entry.violation}\n  replay: {entry.recipe.command}")
    _print_coverage(table)
    if not ledger.entries:
        say("nothing yet for these sources; try: shardyard sim hunt")
    return EXIT_CHECK_FAILED if totals.violations else 0


def _print_coverage(table: Table) -> None:
    if not table.counts:
        return
    click.echo("\nfaults by the phase that they hit")
    rows = [
        [phase, *(table.counts.get((fault, phase), 0) for fault in table.faults)] for phase in table.phases
    ]
    print_table(["phase", *table.faults], rows)
    holes = table.holes
    if holes:
        named = ", ".join(f"{fault} while {phase} ({count})" for fault, phase, count in holes[:MAX_HOLES])
        more = f" and {len(holes) - MAX_HOLES} more" if len(holes) > MAX_HOLES else ""
        click.echo(f"\n{len(holes)} holes (hit less than {ENOUGH} times): {named}{more}")
    else:
        click.echo(f"\nno holes: every class of fault hit every phase at least {ENOUGH} times")
    for fault, (phases, reason) in EXEMPT.items():
        click.echo(f"left out: {fault} while {', '.join(phases)}: it {reason}")
