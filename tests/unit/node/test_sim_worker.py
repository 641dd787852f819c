"""The process that runs seeds, from inside: what one run leaves does not burden the next."""

import gc
import io
import weakref
from types import SimpleNamespace

import msgspec

from node.sim import run, worker
from node.sim.recipe import Recipe


class World:
    """Refers to itself, as a run's machines do to each other."""

    def __init__(self):
        self.world = self


def test_what_a_run_leaves_is_freed_before_the_next_and_its_time_counts(monkeypatch):
    worlds = []

    def run_recipe(recipe, listener):
        assert [world() for world in worlds] == [None] * len(worlds)
        worlds.append(weakref.ref(World()))
        return run.Result(recipe, recipe.build_scenario(), "", cpu_s=1.0, simulated_s=2.0, report=None)

    recipes = [Recipe(seed=seed) for seed in range(3)]
    orders = [worker._Order(msgspec.Raw(msgspec.json.encode(recipe)), tells=False) for recipe in recipes]
    given, answers = (
        io.BytesIO(b"".join(msgspec.json.encode(order) + b"\n" for order in orders)),
        io.BytesIO(),
    )
    monkeypatch.setattr(run, "run_recipe", run_recipe)
    monkeypatch.setattr(worker, "_collect_rarely", gc.disable)
    monkeypatch.setattr(worker, "_limit", lambda *_: None)
    monkeypatch.setattr(worker.signal, "signal", lambda *_: None)
    monkeypatch.setattr(worker.sys, "stdin", SimpleNamespace(buffer=given))
    monkeypatch.setattr(worker.sys, "stdout", SimpleNamespace(buffer=answers))
    try:
        worker.serve("")
    finally:
        gc.enable()
    results = [msgspec.json.decode(line, type=run.Result) for line in answers.getvalue().splitlines()]
    assert [result.recipe.seed for result in results] == [0, 1, 2]
    assert all(result.cpu_s > 1.0 for result in results)
