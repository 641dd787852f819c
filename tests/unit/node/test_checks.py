"""The sum of all wei: what holds, what breaks it, and what cannot be counted."""

import re

import pytest

from node.checks.conservation import judge_supply
from node.checks.forks import describe_accused

GENESIS = 300


def build_books(**more):
    rows = [
        {"shard": 0, "height": 7, "head": "aa", "balance": "90", "burnt": "10", "in_flight": "0"},
        {"shard": 1, "height": 9, "head": "bb", "balance": "180", "burnt": "5", "in_flight": "15"},
    ]
    return {"height": 12, "genesis": str(GENESIS), "shards": rows} | more


def test_sum_of_all_accounts_in_flight_and_burnt_is_genesis():
    verdict = judge_supply(build_books(), {0: 90, 1: 180}, 2)
    assert verdict.held
    assert (verdict.figures["total"], verdict.figures["in_flight"]) == ("300", "15")
    assert "at beacon height 12" in verdict.words


@pytest.mark.parametrize(
    ("books", "counted", "words"),
    [
        ({}, {0: 91, 1: 180}, "shard-0: its accounts hold 91 wei at height 7, the beacon's books say 90"),
        ({}, {0: 91, 1: 180}, r"got 301 wei in all, genesis made 300: \+1 wei"),
        ({"genesis": "299"}, {0: 90, 1: 180}, r"genesis made 299: \+1 wei"),
        ({}, {0: 90}, "shard-1: no node could count its wei at height 9"),
    ],
)
def test_what_breaks_the_sum_is_named(books, counted, words):
    verdict = judge_supply(build_books(**books), counted, 2)
    assert not verdict.held
    assert any(re.search(words, finding) for finding in verdict.findings)


def test_accused_are_named_with_their_shard_and_with_who_holds_the_evidence():
    twice = {
        "validator 1: notarize and notarize in one slot": 2,
        "validator 1: skip and finalize in one slot": 1,
    }
    evidence = {
        "shard-0-0": twice,
        "shard-0-2": twice,
        "shard-1-0": {"validator 1: skip and finalize in one slot": 1},
    }
    assert describe_accused(evidence) == (
        "validator 1 of shard-0, held by shard-0-0, shard-0-2; validator 1 of shard-1, held by shard-1-0"
    )
