"""Mutants: a planted bug is caught by a seed or by a test, what was caught stays on record, and survivors fail the run."""

import threading
from pathlib import Path

import msgspec
import pytest

from node.lab import mutation
from node.lab.mutation import (
    Hunter,
    Outcome,
    Records,
    compute_key,
    find_tests,
    main,
    run_tests,
    summarise,
)
from node.sim.mutants import PLANTS, get_plant
from node.sim.plants import read_module
from node.sim.run import Result
from node.sim.sources import is_simulated
from node.sim.worker import Worker

ROOT = Path(__file__).resolve().parents[2]


def test_a_bug_that_stops_finality_is_caught_by_a_seed(tmp_path, capsys):
    arguments = ["--only", "l3-no-final-after-notarcert", "--seeds", "1", "--state", str(tmp_path)]
    assert main(arguments) == 0
    assert "seed 0: I7" in capsys.readouterr().out
    assert len((tmp_path / "mutants.jsonl").read_bytes().split()) > 0


@pytest.mark.timeout(600)  # every process imports everything anew, on a machine that may be busy
def test_a_bug_that_no_seed_can_see_is_caught_by_a_test(monkeypatch):
    monkeypatch.setattr(mutation, "find_tests", lambda _module: ("tests/unit/consensus/test_votes.py",))
    outcome = Hunter(range(0), 1.0).hunt(get_plant("d1-votes-without-kind"))
    assert outcome.by.startswith("test tests/unit/consensus/test_votes.py::")


def test_tests_that_fail_without_a_bug_catch_nothing(tmp_path):
    broken = tmp_path / "test_broken.py"
    broken.write_text("def test_it():\n    assert False\n")
    assert run_tests("", [str(broken)])[0].startswith("test ")
    with pytest.raises(mutation.MutationError, match="fails without any planted bug"):
        Hunter(range(0), 1.0)._check_sound((str(broken),))


def test_a_test_whose_name_has_spaces_is_named_whole(tmp_path):
    path = tmp_path / "test_broken.py"
    path.write_text(
        "import pytest\n\n"
        "@pytest.mark.parametrize('words', ['outside 64 bits'])\n"
        "def test_it(words):\n"
        "    assert not words\n"
    )
    by, _ = run_tests("", [str(path)])
    assert by.endswith("test_broken.py::test_it[outside 64 bits]")


def test_a_seed_that_fails_without_the_bug_catches_nothing(monkeypatch):
    """Whatever is run breaks here: the mutant proves nothing, and that is said instead of counted."""
    plant = get_plant("l3-no-final-after-notarcert")
    original = Worker.run

    def fail(self, recipe, **words):
        return msgspec.structs.replace(original(self, recipe, **words), violation="I7: planted everywhere")

    monkeypatch.setattr(Worker, "run", fail)
    with pytest.raises(mutation.MutationError, match=r"seed 0 fails without any planted bug: I7.*try: "):
        Hunter(range(1), 0.5).hunt(plant)


def test_seeds_run_under_the_profile_of_the_plant(monkeypatch):
    plant = next(plant for plant in PLANTS if plant.profile != "default" and is_simulated(plant.module))
    seen = []

    def note(_, recipe, **__):
        seen.append(recipe)
        violation = "I7: it stands" if recipe.plant else ""
        return Result(recipe, recipe.build_scenario(), violation, 1.0, 1.0, None)

    monkeypatch.setattr(Worker, "run", note)
    assert Hunter(range(1), 0.5).hunt(plant).by == "seed 0"
    assert [recipe.profile for recipe in seen] == [plant.profile] * 2
    assert [recipe.plant for recipe in seen] == [plant.name, ""], (
        "the seed that caught it, and that without it"
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"old": "not there"}, "got 0 places"), ({"new": "    if (:\n"}, "expected Python; try: ")],
)
def test_a_mutant_that_cannot_be_planted_is_refused_before_anything_runs(
    changes, words, monkeypatch, tmp_path, capsys
):
    good = get_plant("l3-no-final-after-notarcert")
    table = (good, msgspec.structs.replace(get_plant("x0-reference-is-believed"), **changes))
    monkeypatch.setattr(mutation, "PLANTS", table)
    monkeypatch.setattr(Hunter, "hunt", lambda *_: pytest.fail("a mutant was run"))
    assert main(["--state", str(tmp_path)]) == mutation.EXIT_USAGE
    assert words in capsys.readouterr().err


def test_an_outcome_is_kept_for_the_module_and_the_tests_that_it_is_of(monkeypatch, tmp_path):
    plant = next(plant for plant in PLANTS if plant.module.startswith("node.bus"))
    tests = tmp_path / "tests"
    tests.mkdir()
    (tests / "test_it.py").write_text("one = 1\n")
    monkeypatch.setattr(mutation, "find_tests", lambda _module: (str(tests),))
    first = compute_key(plant)
    assert compute_key(plant) == first
    (tests / "test_it.py").write_text("one = 2\n")
    second = compute_key(plant)
    assert second != first
    monkeypatch.setattr(mutation, "read_module", lambda name: read_module(name) + "more = 1\n")
    assert compute_key(plant) != second


def test_what_was_caught_is_not_run_again_and_what_survived_is(tmp_path, capsys):
    path = tmp_path / "mutants.jsonl"
    caught, survived = PLANTS[0], PLANTS[1]
    records = Records(path)
    records.add(Outcome(caught.name, compute_key(caught), "seed 3", "I5: two chains", 2.0))
    records.add(Outcome(survived.name, compute_key(survived), "", "", 2.0))
    with path.open("ab") as file:
        file.write(b'{"name": "cut sh')
    again = Records(path)
    assert again.get(caught.name, compute_key(caught)).by == "seed 3"
    assert again.get(caught.name, "other sources") is None
    assert again.get(survived.name, compute_key(survived)) is None
    assert Records(path, forget=True).get(caught.name, compute_key(caught)) is None
    assert main(["--only", caught.name, "--state", str(tmp_path)]) == 0
    assert "1 caught = 100.0 % (1 by seeds, 0 by tests)" in capsys.readouterr().out


@pytest.mark.timeout(300)
def test_a_mutant_that_cannot_be_imported_is_not_judged_and_fails_the_run(monkeypatch, tmp_path, capsys):
    """Its every seed and test would fail, and say nothing of what they look at."""
    name = "d1-votes-without-kind"
    program = mutation.IMPORT_PROGRAM.replace(
        "install_plant(plant)\n", "raise KeyError('a slip of the pen')\n"
    )
    monkeypatch.setattr(mutation, "IMPORT_PROGRAM", program)
    assert main(["--only", name, "--state", str(tmp_path)]) == mutation.EXIT_MISSED
    said = capsys.readouterr().out
    assert f"NOT JUDGED {name}" in said
    assert "raises KeyError: 'a slip of the pen'" in said
    assert "0 caught = 0.0 %" in said
    assert "1 not judged" in said
    assert Records(tmp_path / "mutants.jsonl").get(name, compute_key(get_plant(name))) is None


def test_every_listed_mutant_that_is_tried_here_can_be_imported():
    for plant in (PLANTS[0], PLANTS[-1]):
        assert mutation.find_import_error(plant) == ""


def test_what_caught_a_mutant_before_is_tried_first(monkeypatch):
    plant = get_plant("l3-no-final-after-notarcert")
    seen = []

    def note(_, recipe, **__):
        seen.append((recipe.seed, recipe.plant))
        violation = "I7: it stands" if recipe.plant else ""
        return Result(recipe, recipe.build_scenario(), violation, 1.0, 1.0, None)

    monkeypatch.setattr(Worker, "run", note)
    assert Hunter(range(9), 0.5).hunt(plant, "seed 7").by == "seed 7"
    assert seen == [(7, plant.name), (7, "")]
    tried = []
    monkeypatch.setattr(mutation, "run_tests", lambda name, tests: tried.append((name, tests)) or ("", ""))
    monkeypatch.setattr(Worker, "run", lambda *_, **__: pytest.fail("seeds come after what is known"))
    test = "tests/unit/consensus/test_votes.py"
    with pytest.raises(pytest.fail.Exception):
        Hunter(range(9), 0.5).hunt(plant, f"test {test}::test_it")
    assert tried == [("", (test,)), (plant.name, (test,))], "first without the bug"


def test_several_mutants_run_at_once_and_each_is_told_once(monkeypatch, tmp_path, capsys):
    both = threading.Barrier(2, timeout=30)

    def hunt(_, plant, hint):
        both.wait()
        return Outcome(plant.name, compute_key(plant), "seed 0", f"I5: {hint}", 1.0)

    monkeypatch.setattr(Hunter, "hunt", hunt)
    names = [PLANTS[0].name, PLANTS[1].name]
    only = [word for name in names for word in ("--only", name)]
    assert main([*only, "--jobs", "2", "--state", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert all(said.count(f"caught     {name} ") == 1 for name in names)
    assert "2 caught = 100.0 %" in said


def test_both_ways_to_plant_a_bug_agree_on_what_the_simulator_runs():
    simulated = {plant.name for plant in PLANTS if all(is_simulated(part.module) for part in plant.passages)}
    assert "s3-final-after-skip" in simulated
    assert "s5-signing-before-the-disk" not in simulated
    assert "s5-signer-record-unsynced" in simulated, "the simulated world has real records of signers"
    assert "x13-deliveries-come-last" not in simulated, "it has no index"


def test_a_key_does_not_depend_on_where_the_clone_is():
    files = mutation._read_tests(("tests/unit/consensus",))
    assert files
    assert all(name.startswith("tests/unit/consensus/") for name, _ in files)


def build_outcomes(survivors):
    return [
        Outcome(plant.name, "", "" if plant.name in survivors else "seed 1", "", 1.0)
        for plant in PLANTS[:100]
    ]


def test_one_survivor_that_may_lead_to_two_truths_is_too_many():
    liveness = [plant.name for plant in PLANTS[:100] if not plant.is_safety]
    safety = [plant.name for plant in PLANTS[:100] if plant.is_safety]
    assert summarise(build_outcomes([]), 1.0)[1]
    assert summarise(build_outcomes(liveness[:5]), 1.0)[1]
    assert not summarise(build_outcomes(liveness[:6]), 1.0)[1]
    line, is_enough = summarise(build_outcomes(safety[:1]), 1.0)
    assert not is_enough
    assert "NOT ENOUGH" in line


def test_every_plant_has_tests_that_exist():
    for plant in PLANTS:
        for test in find_tests(plant.module):
            assert (ROOT / test).exists(), test


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["--only", "nothing"], "expected a name or a rule"), (["--state", "/proc/no"], "try: ")],
)
def test_bad_options_are_told_with_what_to_try(arguments, words, capsys):
    assert main(arguments) == mutation.EXIT_USAGE
    assert words in capsys.readouterr().err


def test_the_list_names_every_mutant(capsys):
    assert main(["--list"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(PLANTS)
