"""The hunt: planted bugs are found, made small and replayed; a ledger is gone on from; no dead process stops it."""

import os
import shlex
import signal
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from node.sim.crew import Crew
from node.sim.hunt import hunt, summarise
from node.sim.ledger import Ledger
from node.sim.narration import Epilogue, Filter, Line
from node.sim.recipe import Recipe
from node.sim.run import Result, run_recipe
from node.sim.shrink import describe_shrunk, list_strikes
from node.sim.worker import Worker

ROOT = Path(__file__).resolve().parents[2]
CLI = [sys.executable, "-P", "-c", "from node.cli import main; main()"]
SHORT = 0.5


def run_cli(*words, home):
    environ = {**os.environ, "SHARDYARD_HOME": str(home), "PYTHONPATH": str(ROOT)}
    return subprocess.run([*CLI, *words], capture_output=True, text=True, check=False, env=environ)


def test_a_planted_bug_is_found_made_small_and_replayed_by_its_line(tmp_path):
    done = run_cli("sim", "hunt", "--plant", "s3-final-after-skip", "--jobs", "1", home=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "I6: " in done.stdout
    assert "found after " in done.stdout
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("replay: "))
    words = shlex.split(line.removeprefix("replay: shardyard "))
    again = run_cli(*words, home=tmp_path)
    assert again.returncode == 6
    assert "HOLDS EVIDENCE against validator" in again.stdout
    assert "I6: " in again.stdout.splitlines()[-2]
    clean = run_cli(*words[: words.index("--plant")], home=tmp_path)
    assert clean.returncode == 0, "without the bug the same run holds"


def test_shrinking_takes_away_whatever_is_not_needed():
    found = hunt([Recipe(0, plant="l7-standstill-is-silent")], plant="l7-standstill-is-silent")
    (shrunk,) = found.shrunk
    assert shrunk.after.invariant == shrunk.before.invariant == "I7"
    assert len(list_strikes(shrunk.after)) < len(list_strikes(shrunk.before)) // 2
    assert shrunk.after.simulated_s < shrunk.before.simulated_s
    lines = describe_shrunk(shrunk)
    assert lines[-1] == f"replay: {shrunk.after.command}"
    assert any("I7: " in line for line in lines)
    assert len(lines) < 80


def test_a_plant_that_is_harmless_is_not_found_and_says_so(tmp_path):
    words = [
        "sim",
        "hunt",
        "--plant",
        "codec-two-encodings-of-one-value",
        "--seeds",
        "2",
        "--minutes",
        "0.5",
    ]
    done = run_cli(*words, "--jobs", "1", home=tmp_path)
    assert done.returncode == 6
    assert "not found in 2 seeds" in done.stdout
    assert "try: " in done.stderr


def test_a_plant_that_the_simulator_never_runs_is_refused(tmp_path):
    done = run_cli("sim", "hunt", "--plant", "s5-signing-before-the-disk", home=tmp_path)
    assert done.returncode == 2
    assert "node.driver is run by real processes" in done.stderr


def test_a_hunt_goes_on_where_the_ledger_ends(tmp_path):
    path = tmp_path / "ledger.jsonl"
    first = hunt([Recipe(seed, minutes=SHORT) for seed in range(2)], ledger=Ledger(path))
    assert (len(first.entries), first.known, first.repeated) == (2, 0, 1)
    second = hunt([Recipe(seed, minutes=SHORT) for seed in range(3)], ledger=Ledger(path))
    assert (len(second.entries), second.known) == (3, 2)
    assert second.totals.seeds == {SHORT: 3}
    assert "(2 of them from the ledger)" in summarise(second)
    assert len(path.read_bytes().splitlines()) == 3


def test_a_hunt_runs_the_profile_that_it_is_told(tmp_path):
    path = tmp_path / "ledger.jsonl"
    words = ["sim", "hunt", "--seeds", "2", "--minutes", "0.5", "--jobs", "1", "--ledger", str(path)]
    done = run_cli(*words, "--profile", "calm", home=tmp_path)
    assert done.returncode == 0, done.stderr
    assert {recipe.profile for recipe in Ledger(path).entries} == {"calm"}
    done = run_cli(*words, "--profile", "nonsense", home=tmp_path)
    assert done.returncode == 2
    assert "nonsense" in done.stderr


def test_a_hunt_runs_only_the_seeds_that_draw_what_is_wanted(tmp_path):
    words = ["sim", "hunt", "--profile", "disk", "--seeds", "8", "--minutes", str(SHORT), "--jobs", "1"]
    wanted = ["--with", "lost record", "--with", "old record"]
    done = run_cli(*words, *wanted, home=tmp_path)
    assert done.returncode == 0, done.stderr
    ran = [entry.recipe for entry in Ledger(tmp_path / "sim" / "ledger.jsonl").entries.values()]
    profiles = {seed: Recipe(seed, SHORT, profile="disk").build_scenario().profile for seed in range(8)}
    draw = [seed for seed, profile in profiles.items() if profile.lost_records and profile.old_records]
    assert 0 < len(draw) < 8, "else nothing is picked"
    assert [recipe.seed for recipe in ran] == draw
    assert f"{len(draw)} of seeds 0 to 7" in done.stderr


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ("lost-record", "--with: got 'lost-record', expected one of crash, partition"),
        ("twin", "--with: got 'twin', expected what some seed from 0 to 7 draws"),
    ],
)
def test_a_hunt_with_what_no_seed_draws_is_refused(tmp_path, wanted, expected):
    words = ["sim", "hunt", "--profile", "disk", "--seeds", "8", "--minutes", str(SHORT)]
    done = run_cli(*words, "--with", wanted, home=tmp_path)
    assert done.returncode == 2
    assert expected in done.stderr


def test_a_violation_that_the_ledger_holds_is_told_with_its_line(tmp_path):
    path = tmp_path / "ledger.jsonl"
    recipe = Recipe(0, minutes=SHORT)
    Ledger(path).append(Result(recipe, recipe.build_scenario(), "I7: it stands", 1.0, 1.0, None))
    words = ["sim", "hunt", "--seeds", "1", "--minutes", "0.5", "--jobs", "1", "--ledger", str(path)]
    done = run_cli(*words, home=tmp_path)
    assert done.returncode == 6
    assert f"I7: it stands (from the ledger)\n  replay: {recipe.command}\n" in done.stdout


def test_a_hunt_that_is_killed_loses_at_most_what_was_running(tmp_path, eventually):
    path = tmp_path / "ledger.jsonl"
    environ = {**os.environ, "SHARDYARD_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    words = ["sim", "hunt", "--seeds", "50", "--minutes", "0.5", "--jobs", "1", "--ledger", str(path)]
    process = subprocess.Popen([*CLI, *words], env=environ, stderr=subprocess.PIPE, start_new_session=True)
    eventually(lambda: path.exists() and path.read_bytes().count(b"\n") >= 2, within_s=60)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    held = Ledger(path)
    count = len(held.entries)
    assert count >= 2
    found = hunt([Recipe(seed, minutes=0.5) for seed in range(count + 1)], ledger=held)
    assert found.known == count
    told = run_cli("sim", "ledger", "--ledger", str(path), home=tmp_path)
    assert told.returncode == 0
    assert f"{count + 1} x 0.5 simulated minutes" in told.stdout
    assert "faults by the phase that they hit" in told.stdout


def test_a_process_that_dies_over_a_run_is_a_violation_and_the_next_run_gets_another():
    with Worker() as worker:
        assert worker.run(Recipe(1, minutes=0.5)).is_ok
        worker.kill()
        result = worker.run(Recipe(2, minutes=0.5))
        assert result.violation == "I12: the process that ran it was ended by SIGKILL"
        assert worker.run(Recipe(2, minutes=0.5)).is_ok


def test_a_process_whose_hunt_was_killed_ends_without_a_word():
    with subprocess.Popen(
        [sys.executable, "-P", "-m", "node.sim.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as process:
        process.stdout.close()
        order = {"recipe": Recipe(1, minutes=SHORT), "tells": False}
        process.stdin.write(msgspec.json.encode(order) + b"\n")
        process.stdin.flush()
        assert process.wait(60) == 1
        assert process.stderr.read() == b""


def test_results_of_a_crew_are_those_of_one_process():
    recipes = [Recipe(seed, minutes=0.5) for seed in range(3)]
    with Crew(2) as crew:
        side_by_side = {result.seed: result.report for result in crew.run(recipes)}
    assert side_by_side == {recipe.seed: run_recipe(recipe).report for recipe in recipes}


def test_a_crew_that_was_stopped_early_goes_on_with_new_processes():
    is_idle = threading.Event()

    def give():
        yield Recipe(0, minutes=SHORT)
        yield Recipe(1, minutes=20.0)
        is_idle.set()

    with Crew(2) as crew:
        with closing(crew.run(give())) as results:
            assert next(results).is_ok
            assert is_idle.wait(60), "one process has nothing to do, the other one works on"
        again = list(crew.run([Recipe(seed, minutes=SHORT) for seed in range(2)]))
        assert [result.violation for result in again] == ["", ""]


def test_one_run_in_so_many_is_repeated_however_they_come():
    recipes = [Recipe(seed, minutes=SHORT) for seed in range(3)]
    with Crew(1, repeat_every=10) as crew:
        assert crew.find_first(recipes, "I7") is None
        assert crew.repeated == 1, "and not one of every batch"


def test_a_story_has_all_faults_and_the_last_steps_of_the_chain_that_failed():
    epilogue = Epilogue(3)
    result = run_recipe(Recipe(2, minutes=0.5), listener=epilogue)
    assert result.is_ok
    story = epilogue.tell("I7: shard-1 grew from 8 to 8")
    assert any(line.who == "nemesis" for line in story)
    steps = [line for line in story if line.who != "nemesis"]
    assert len(steps) == 3
    assert all(line.who.startswith("shard-1-") for line in steps)
    assert [line.now_ms for line in story] == sorted(line.now_ms for line in story)


@pytest.mark.parametrize(
    ("wanted", "is_shown"),
    [
        (Filter(), True),
        (Filter(grep="crash"), True),
        (Filter(grep="vote"), False),
        (Filter(nodes=("shard-0",)), True),
        (Filter(nodes=("shard-1", "beacon")), False),
        (Filter(from_ms=1500), True),
        (Filter(from_ms=1501), False),
        (Filter(to_ms=1499), False),
        (Filter(to_ms=1500), True),
    ],
)
def test_lines_are_filtered_by_text_node_and_time(wanted, is_shown):
    assert wanted.admits(Line(1500, "shard-0-2", "crashes")) is is_shown
    assert Filter(nodes=("beacon",)).admits(Line(0, "nemesis", "cut")), "faults concern everybody"
