"""Accountability (I6): a coalition above a third can fork the chain, and the two proofs convict it and nobody else."""

import pytest

from node.lab import forks
from node.lab.forks import draw_plan, fork, main
from shardyard.quorum import is_quorum, sum_stake

SEEDS = range(60)


def test_two_final_chains_convict_a_third_of_the_stake_and_no_honest_validator():
    trials = [fork(seed) for seed in SEEDS]
    assert [trial.problem for trial in trials] == [""] * len(trials)
    assert all(trial.is_forked and 3 * trial.share > 100 for trial in trials)
    # Both ways to fork occur: two blocks of one slot, and a slot that is final here and skipped there.
    kinds = {kind for trial in trials for kind in trial.kinds}
    assert kinds >= {"FINAL+FINAL", "FINAL+SKIP", "FINAL+NOTAR"}


@pytest.mark.parametrize("seed", range(200))
def test_a_plan_is_a_coalition_that_can_fork(seed):
    plan = draw_plan(seed)
    assert draw_plan(seed) == plan
    assert forks.MIN_SHARE <= plan.share <= forks.MAX_SHARE
    everybody = [*plan.coalition, *plan.sides[0], *plan.sides[1]]
    assert sorted(everybody) == list(range(len(plan.stakes)))
    for side, cast in zip(plan.sides, plan.casts, strict=True):
        assert set(cast) <= set(plan.coalition)
        assert is_quorum(sum_stake((*side, *cast), plan.stakes), sum(plan.stakes))


def test_a_coalition_gives_both_sides_the_blocks_that_it_voted_for():
    """Else a block that is notarized as the cut begins, and held on one side alone, is a parent that the other never gets."""
    assert fork(460).problem == ""


def test_the_same_seed_forks_the_same_way():
    assert fork(3) == fork(3)


def test_a_coalition_that_cannot_fork_is_a_problem(monkeypatch, capsys):
    """The verdict has teeth: what does not fork, and evidence that says too little, is told and fails."""
    monkeypatch.setattr(forks, "SPLIT_MS", 0)
    assert main(["--count", "1"]) == forks.EXIT_MISSED
    assert "no fork within 0 s" in capsys.readouterr().out


def test_evidence_that_is_overlooked_is_a_problem(monkeypatch, capsys):
    monkeypatch.setattr(forks, "find_conflict", lambda *_arguments: [])
    assert main(["--count", "1"]) == forks.EXIT_MISSED
    assert "stake in evidence" in capsys.readouterr().out


def test_an_accused_honest_member_is_a_problem(monkeypatch, capsys):
    original = forks.find_conflict

    def blame(one, other, size):
        found = original(one, other, size)
        return [type(item)(item.first, item.second, tuple(range(size))) for item in found]

    monkeypatch.setattr(forks, "find_conflict", blame)
    assert main(["--count", "1"]) == forks.EXIT_MISSED
    assert "honest members" in capsys.readouterr().out


def test_bad_options_are_told_with_what_to_try(capsys):
    with pytest.raises(SystemExit):
        main(["--count", "many"])
    assert "got 'many', expected a positive number; try: --count 100" in capsys.readouterr().err
