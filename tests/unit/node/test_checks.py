"""The sum of all wei: what holds, what breaks it, and what cannot be counted."""

import re

import pytest

from node.checks import verdict as asking
from node.checks.conservation import judge_supply
from node.checks.forks import check_no_forks, describe_accused
from node.config import Options
from node.control import ControlError
from node.network import create_network

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


def test_wei_that_nobody_could_count_are_not_called_wrong():
    assert judge_supply(build_books(), {0: 90}, 2).words == "the sum cannot be counted at beacon height 12"
    assert judge_supply(build_books(), {0: 91}, 2).words == "the sum does not hold at beacon height 12"


@pytest.fixture
def tell_final(home, monkeypatch):
    """Let the nodes of a network call these blocks final, from height 1 on; one that is not named does not answer."""
    network = create_network(home / "mine", Options(name="mine", shards=1, nodes_per_shard=2, seed=5))

    def tell_them(**hashes):
        told = {network.get_control_path(node.replace("_", "-")): row for node, row in hashes.items()}

        async def ask(path, method, *, timeout_s, first=1, count=1):
            if path not in told or method == "supply":
                raise ControlError("nobody there")
            row = told[path]
            found = {"height": len(row), "first": first, "hashes": row[first - 1 : first - 1 + count]}
            return found if method == "finals" else {}

        monkeypatch.setattr(asking, "ask", ask)
        return network

    return tell_them


async def test_two_final_blocks_of_one_height_are_a_fork(tell_final):
    network = tell_final(beacon_0=["aa"], shard_0_0=["bb", "cc"], shard_0_1=["bb", "dd"])
    verdict = await check_no_forks(network)
    assert verdict.words.startswith("FORKED")
    assert verdict.findings == (
        "shard-0: 1 heights with several final blocks, first at 2: shard-0-0: 0xcc…; shard-0-1: 0xdd…",
    )


async def test_chain_that_nobody_tells_of_fails_the_check_and_is_not_called_forked(tell_final):
    verdict = await check_no_forks(tell_final(beacon_0=["aa"]))
    assert not verdict.held
    assert verdict.words.startswith("1 of 2 chains cannot be compared; no two nodes differ")
    assert verdict.findings == ("shard-0: no node answers",)
