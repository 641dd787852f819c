"""Bounded model check: no fork below a third, convicting evidence above it, and a fork without any one of the rules."""

import pytest

from node.lab import model_check
from node.lab.model_check import NECESSARY, check, check_without, find_byzantine_sets, main
from node.sim.mutants import PLANTS


def test_c1_one_byzantine_member_of_four_forks_nothing_in_three_slots():
    verdict = check((1, 1, 1, 1), (0,), 3)
    assert (verdict.forks, verdict.offenders, verdict.problem) == (0, 0, "")
    assert (verdict.states, verdict.vote_sets) == (9_318, 294_674)


def test_c2_c3_every_fork_by_two_of_four_convicts_them_alone():
    verdict = check((1, 1, 1, 1), (0, 1), 2)
    assert (verdict.forks, verdict.least_evidence, verdict.problem) == (146, 2, "")
    assert (verdict.states, verdict.vote_sets) == (882, 882)


def test_c1_c2_hold_with_mixed_stakes_too():
    verdicts = [check((2, 1, 1, 1, 1), byzantine, 2) for byzantine in find_byzantine_sets((2, 1, 1, 1, 1))]
    assert [verdict.problem for verdict in verdicts] == [""] * 7
    assert [verdict.is_tolerated for verdict in verdicts].count(True) == 1
    forked = [verdict for verdict in verdicts if verdict.forks]
    assert forked
    assert all(3 * verdict.least_evidence > verdict.total_stake for verdict in forked)


@pytest.mark.parametrize("plant", [plant for _, plant in NECESSARY])
def test_without_the_rule_one_byzantine_member_of_four_forks_the_chain(plant):
    verdict = check_without(plant, 2)
    assert verdict.forks
    assert "are both final" in verdict.counterexample
    assert verdict.problem.startswith("two conflicting blocks are final with less than a third")
    assert ("evidence: none" in verdict.counterexample) == plant.startswith("a1-")


def test_every_rule_that_is_left_out_is_a_planted_bug():
    assert {plant for _, plant in NECESSARY} <= {plant.name for plant in PLANTS}


def test_a_complete_check_says_so_and_a_missed_one_fails(capsys, monkeypatch):
    monkeypatch.setattr(model_check, "NECESSARY", NECESSARY[1:2])
    assert main(["--slots", "2"]) == 0
    assert "result: complete, as proven; each of 1 rules is needed" in capsys.readouterr().out
    monkeypatch.setattr(model_check, "NECESSARY", (("P4", "p4-time-stands-still"),))
    assert main(["--slots", "1"]) == model_check.EXIT_MISSED
    assert "(p4-time-stands-still): PROBLEM: no fork" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--slots", "0"], "got '0', expected 1 to 4"),
        (["--stakes", "1,1"], "expected 4 to 7 positive numbers"),
        (["--stakes", "1,1,1,-1"], "expected 4 to 7 positive numbers"),
        (["--without", "nothing"], "expected a name or a rule"),
    ],
)
def test_bad_options_are_told_with_what_to_try(arguments, words, capsys):
    with pytest.raises(SystemExit) as raised:
        main(arguments)
    assert raised.value.code == model_check.EXIT_USAGE
    told = capsys.readouterr().err
    assert words in told
    assert "try:" in told
