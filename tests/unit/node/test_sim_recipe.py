"""A recipe says what is run, its command line says it back, and what a seed does not have is refused with a way out."""

import re
import shlex

import pytest
from click.testing import CliRunner

from node.cli.sim import sim
from node.sim.recipe import Recipe, RecipeError, list_knobs
from node.sim.scenario import PRESET, SETTLE_MS, compute_quiet_ms, draw_scenario
from node.sim.sources import ROOT, _dump_code, compute_sources_hash, find_sources
from node.sim.strikes import draw_strikes
from shardyard import _native
from shardyard.errors import ConfigError
from shardyard.preset import get_preset

FULL = Recipe(
    7,
    minutes=0.5,
    profile="crashy",
    shards=3,
    validators=4,
    replicas=2,
    beacon_replicas=1,
    tps=0.5,
    calm=("drop", "duplicate"),
    calm_from_s=12.5,
    only_strikes=(0, 2),
)


def test_a_plain_recipe_is_what_the_seed_draws():
    assert Recipe(7, minutes=1.0).build_scenario() == draw_scenario(7, 60_000)
    assert Recipe(7).command == "shardyard sim replay --seed 7 --minutes 2"


def test_everything_that_is_said_is_in_the_scenario():
    scenario = FULL.build_scenario()
    assert (scenario.shards, scenario.replicas, scenario.beacon_replicas, scenario.tps) == (3, 2, 1, 0.5)
    assert (scenario.only_strikes, scenario.calm_from_ms) == ((0, 2), 12_500)
    assert scenario.profile.drop == scenario.profile.duplicate == 0.0
    assert scenario.calm_ms == 12_500
    assert scenario.end_ms == 12_500 + scenario.settle_ms


@pytest.mark.parametrize("minutes", [0.5, 1.0, 2.0, 10.0])
@pytest.mark.parametrize("profile", ["byzantine", "crashy"])
def test_quiet_is_as_long_as_those_who_still_misbehave_need(minutes, profile):
    scenario = Recipe(0, minutes=minutes, profile=profile).build_scenario()
    needed_ms = compute_quiet_ms(get_preset(PRESET))
    asked_ms = int(minutes * 60_000)
    assert needed_ms <= SETTLE_MS, "long runs last as long as they are told to"
    assert scenario.settle_ms == max(
        min(SETTLE_MS, asked_ms // 2), needed_ms if profile == "byzantine" else 0
    )
    assert scenario.fault_ms == asked_ms - min(SETTLE_MS, asked_ms // 2), "faults have the time they had"
    assert scenario.end_ms == scenario.duration_ms == max(asked_ms, scenario.fault_ms + scenario.settle_ms)


@pytest.mark.parametrize(
    "recipe",
    [FULL, Recipe(3), Recipe(3, faults=False), Recipe(3, only_strikes=(), plant="x5-delivered-twice")],
)
def test_a_command_line_gives_its_recipe_back(recipe, monkeypatch):
    told = []

    def build(seed, options):
        names = {"calm_from": "calm_from_s"}
        told.append(Recipe(seed, **{names.get(name, name): value for name, value in options.items()}))
        raise RecipeError("enough")

    monkeypatch.setattr("node.cli.sim.build_recipe", build)
    CliRunner().invoke(sim, shlex.split(recipe.command)[2:])
    assert told == [recipe]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"minutes": 0.1}, "expected 0.5 to 1440"),
        ({"only_strikes": (999,)}, "--only-strikes: got 999, expected 0 to"),
        (
            {"only_strikes": (999,), "profile": "disk"},
            "try: shardyard sim replay --seed 7 --minutes 2 --profile disk --grep strike",
        ),
        ({"tps": float("nan")}, "--tps: got nan, expected a finite number"),
        ({"calm_from_s": float("inf")}, "--calm-from: got inf, expected a finite number"),
        ({"faults": False, "only_strikes": (0,)}, "expected none, for there are no strikes"),
        ({"calm": ("nonsense",)}, "--calm: got 'nonsense', expected knobs"),
        ({"profile": "nonsense"}, "expected one of calm, default"),
    ],
)
def test_what_a_seed_does_not_have_is_refused(changes, words):
    with pytest.raises(ConfigError) as caught:
        Recipe(7, **changes).build_scenario()
    assert words in str(caught.value)


def test_numbers_keep_all_their_digits():
    options = Recipe(1, minutes=1.2345678, tps=3.0, calm_from_s=1234567.125, shards=2).options
    assert options[1:] == ["--minutes 1.2345678", "--shards 2", "--tps 3", "--calm-from 1234567.125"]


def test_knobs_are_what_can_rest_without_renumbering_the_strikes():
    scenario = Recipe(7).build_scenario()
    knobs = list_knobs(scenario.profile)
    assert knobs
    assert "crashes" not in knobs
    calm = Recipe(7, calm=tuple(knobs)).build_scenario()
    assert list_knobs(calm.profile) == []
    assert draw_strikes(7, calm.profile, calm.fault_ms) == draw_strikes(
        7, scenario.profile, scenario.fault_ms
    )


def test_sources_are_the_inner_rooms_and_what_the_world_imports():
    found = list(find_sources())
    names = {f"{path.parent.name}/{path.name}" for path in found}
    assert {
        "consensus/simplex.py",
        "shards/replica.py",
        "crosslink/beacon.py",
        "artifacts/counter.json",
    } <= names
    assert {"sim/world.py", "sim/nemesis.py", "node/executor.py"} <= names
    assert {"sim/hunt.py", "sim/shrink.py", "sim/ledger.py", "cli/root.py"}.isdisjoint(names)
    assert len(compute_sources_hash()) == 16


def test_real_processes_are_decided_by_the_built_library_and_simulated_ones_by_what_it_was_built_from(
    monkeypatch,
):
    simulated, real = (("node.sim.run",), ("node.process",))
    assert not any("_native." in path.name and path.suffix == ".so" for path in find_sources(simulated))
    assert any("_native." in path.name and path.suffix == ".so" for path in find_sources(real))
    assert any(path.name == "lanes.rs" for path in find_sources(real))
    assert len(_native.SEQUENTIAL_SOURCES) == 16
    before = compute_sources_hash.__wrapped__()
    monkeypatch.setattr(_native, "SEQUENTIAL_SOURCES", "0" * 16)
    assert compute_sources_hash.__wrapped__() != before


def test_one_thread_enters_nothing_of_what_is_left_out_of_the_hash():
    """Outside of ``parallel`` the core names its types, and its entrances, which want workers."""
    core = ROOT / "native" / "core" / "src"
    named = set()
    for path in core.rglob("*.rs"):
        if not path.is_relative_to(core / "parallel"):
            for names in re.findall(r"crate::parallel::(\{[^}]*\}|\w+)", path.read_text()):
                named |= set(re.findall(r"\w+", names))
    assert named <= {"Between", "RunStats", "Value", "execute_in_parallel", "replay"}
    assert {"execute_in_parallel", "Value"} <= named
    block = (core / "block.rs").read_text()
    for entrance in ("execute_in_parallel(", "replay("):
        (line,) = (line for line in block.splitlines() if entrance in line)
        assert line.strip().startswith("(Some(workers), "), line


def test_words_do_not_change_the_hash_of_sources_and_code_does():
    source = b'"""Words."""\n\n\ndef f(x):\n    """More."""\n    return x + 1  # why\n'
    assert _dump_code(source) == _dump_code(b'"""Others."""\ndef f(x):\n    return x + 1\n')
    assert _dump_code(source) != _dump_code(source.replace(b"+ 1", b"+ 2"))
