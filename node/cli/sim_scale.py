"""What ``sim scale`` does and prints."""

import sys
import time
from pathlib import Path
from typing import Any

import click

from node.bench.report import describe_commit
from node.cli.output import print_json, print_table, say
from node.scale.costs import Costs, CostsError, read_costs, write_costs
from node.scale.measure import measure_costs
from node.scale.network import Plan
from node.scale.report import (
    COLUMNS,
    PROJECTION,
    build_row,
    describe_assumptions,
    describe_finding,
    describe_limits,
    draw_plots,
    to_json,
)
from node.scale.world import Point, World
from node.sim.progress import Progress

AUTO_NODES = 4


def run_scale(options: dict[str, Any]) -> int:
    """Run every number of shards, print what was found; return the exit code. Raises ``ConfigError``."""
    plans = build_plans(options)
    folder, saved = options["svg"], options["save_costs"]
    for path in (folder, saved.parent if saved else None):
        _make_folder(path)
    costs = _get_costs(options["costs"], saved)
    say(PROJECTION)
    points = _run(plans, costs)
    if options["as_json"]:
        print_json(to_json(points, costs, describe_commit()))
    else:
        click.echo(PROJECTION)
        print_table(COLUMNS, [build_row(point) for point in points])
        click.echo(f"\n{describe_finding(points)}")
        for line in describe_limits(points):
            click.echo(line)
        click.echo(describe_assumptions(points[-1]))
    if folder is not None:
        for name, text in draw_plots(points).items():
            _write(folder / name, text)
        say(f"{folder}: {', '.join(draw_plots(points))}")
    return 0


def build_plans(options: dict[str, Any]) -> list[Plan]:
    """Return a plan per number of shards; raises ``ScaleError``."""
    plans = []
    for shards in options["shards"]:
        plan = Plan(
            shards=shards,
            validators=options["validators"],
            shard_nodes=_choose(options["shard_nodes"], options["validators"]),
            beacon_committee=options["beacon_committee"],
            beacon_nodes=_choose(
                options["beacon_nodes"], min(options["beacon_committee"], shards * options["validators"])
            ),
            cores=options["cores_per_node"],
            cross=options["cross"],
            tps_per_shard=0.0 if options["saturate"] else options["tps_per_shard"],
            block_time_ms=options["block_time"],
            seconds=options["seconds"],
            regions="" if options["regions"] == "none" else options["regions"],
            seed=options["seed"],
        )
        plan.verify()
        plans.append(plan)
    return plans


def _choose(wanted: int | None, keys: int) -> int:
    """Return how many processes share ``keys``: as wanted, or the usual number as far as there are keys."""
    return min(AUTO_NODES, keys) if wanted is None else wanted


def _make_folder(path: Path | None) -> None:
    if path is None:
        return
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CostsError(f"{path}: cannot make this folder: {error.strerror}; try: another path") from error


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise CostsError(f"{path}: cannot write: {error.strerror}; try: another folder") from error


def _get_costs(path: Path | None, saved: Path | None) -> Costs:
    if path is not None:
        costs = read_costs(path)
        say(f"costs of {path}: {costs.machine}")
    else:
        started = time.monotonic()
        costs = measure_costs(lambda what: say(f"measuring {what}"))
        say(f"costs measured in {time.monotonic() - started:.0f} s: {costs.machine}")
    if saved is not None:
        write_costs(costs, saved)
        say(f"{saved}: the same costs again by --costs {saved}")
    return costs


def _run(plans: list[Plan], costs: Costs) -> list[Point]:
    total = sum(plan.shards for plan in plans)
    progress = Progress(total)
    points: list[Point] = []
    done = 0
    try:
        for plan in plans:
            world = World(plan, costs)

            def tell(now_s: float, plan: Plan = plan, before: int = done) -> None:
                share = plan.shards * now_s / plan.seconds
                progress.update(
                    max(1, round(before + share)), f"{plan.shards} shards, {now_s:.1f} of {plan.seconds:g} s"
                )

            point = world.run(tell)
            points.append(point)
            done += plan.shards
            progress.say(
                f"{plan.shards} shards: {point.final_tps:,.0f} final/s, beacon busy {point.beacon_busy:.0%}, "
                f"{point.wall_s:.0f} s of wall time"
            )
    finally:
        progress.close()
        sys.stderr.flush()
    return points
