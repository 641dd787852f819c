"""Mutants: a planted bug is caught by a seed or by a test, what was caught stays on record, and survivors fail the run."""

from pathlib import Path

import pytest

from node.lab import mutation
from node.lab.mutation import Hunter, Outcome, Records, compute_key, find_tests, main, run_tests, summarise
from node.sim.mutants import PLANTS, get_plant

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
    assert "1 caught (1 by seeds, 0 by tests)" in capsys.readouterr().out


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
