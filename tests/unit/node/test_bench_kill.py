"""The bench of kills: fair bags, a vote that counts, and a ledger that loses the leg under way at most."""

import random
from collections import Counter

import msgspec
import pytest

from node.bench.kill import add_up_all, judge, plan_bag, plan_leg
from node.bench.kill_ledger import KillLedger, KillLedgerError, KillOptions, Leg
from node.bench.revival import Away, Revival, Round

NODES = ["beacon-0", *(f"shard-{shard}-{number}" for shard in range(2) for number in range(4))]
OPTIONS = KillOptions(nodes_per_shard=4)


def build_leg(ledger, number, *, voting_s=1.0, **found):
    rounds = (
        Round(1.0, 0.5, (Revival("shard-0-0", 1, 0.1, voting_s, voting_s - 0.1),)),
        Round(9.0, 4.0, (Revival("launcher", 9, 0.9, 2.5, 1.6),)),
    )
    counts = {"lost": 0, "doubled": 0, "equivocations": 0, "broken": {}, "error": ""} | found
    return Leg(
        ledger.sources, ledger.options, number, "ab", rounds, 100, **counts, seconds=1.0, commit="", at=""
    )


def test_a_bag_kills_everything_once_and_one_of_a_shard_at_a_time():
    rounds = plan_bag(NODES, random.Random(1))
    assert Counter(name for one in rounds for name in one) == Counter([*NODES, "broker", "launcher"])
    for one in rounds:
        assert len({name.rsplit("-", 1)[0] for name in one}) == len(one)
        assert len(one) == 1 or not {"broker", "launcher"} & set(one)


def test_lone_processes_of_their_shards_die_alone():
    assert all(len(one) == 1 for one in plan_bag(["beacon-0", "shard-0-0", "shard-1-0"], random.Random(1)))


def test_a_leg_follows_from_seed_and_number_and_ends_with_a_whole_bag():
    plan = plan_leg(NODES, 50, seed=1, number=2)
    assert plan == plan_leg(NODES, 50, seed=1, number=2) != plan_leg(NODES, 50, seed=1, number=3)
    assert set(Counter(name for one in plan for name in one).values()) == {5}


def test_a_vote_that_peers_took_before_it_was_signed_again_does_not_count():
    away = Away("shard-0-0", old_pid=1, validators=[2])
    away.signed = [["NOTAR", 7, 500], ["NOTAR", 8, 900]]
    away.match({"2": [["NOTAR", 7, 101], ["NOTAR", 9, 950]], "1": [["NOTAR", 8, 910]]})
    assert away.voting_ms == 0
    away.match({"2": [["NOTAR", 8, 930]]})
    away.match({"2": [["NOTAR", 8, 920]]})
    assert away.voting_ms == 920


def test_a_ledger_goes_on_behind_a_torn_line_and_leaves_other_options_apart(tmp_path):
    path = tmp_path / "deep" / "ledger.jsonl"
    ledger = KillLedger(path, OPTIONS)
    ledger.append(build_leg(ledger, 1))
    with path.open("ab") as file:
        file.write(path.read_bytes()[:40])
    KillLedger(path, OPTIONS).append(build_leg(ledger, 2))
    again = KillLedger(path, OPTIONS)
    assert ([leg.number for leg in again.legs], again.kills, again.torn) == ([1, 2], 4, 1)
    assert again.next_number == 3
    other = KillLedger(path, msgspec.structs.replace(OPTIONS, tps=1.0))
    assert (other.legs, other.others) == ([], 2)


@pytest.mark.parametrize(
    ("found", "missed"),
    [
        ({}, set()),
        ({"lost": 1}, {"lost", "legs that failed"}),
        ({"equivocations": 1}, {"equivocations", "legs that failed"}),
        ({"broken": {"supply": 2}}, {"broken: supply", "legs that failed"}),
        ({"error": "not ready"}, {"legs that failed"}),
        ({"voting_s": 3.1}, {"restart to voting, p99"}),
        ({"voting_s": -1.0}, {"restart to voting, p99", "processes that stayed away"}),
    ],
)
def test_one_bad_leg_decides_the_verdict_over_all(tmp_path, found, missed):
    ledger = KillLedger(tmp_path / "ledger.jsonl", OPTIONS)
    ledger.append(build_leg(ledger, 1))
    ledger.append(build_leg(ledger, 2, **found))
    assert {target.name for target in judge(ledger, 4).targets if not target.held} == missed


def test_an_empty_ledger_proves_nothing(tmp_path):
    assert not judge(KillLedger(tmp_path / "none", OPTIONS), 1).held


def test_a_launchers_death_counts_like_any_and_what_follows_it_is_told_apart_too(tmp_path):
    ledger = KillLedger(tmp_path / "ledger.jsonl", OPTIONS)
    totals = add_up_all([build_leg(ledger, 1)])
    assert (totals.voting.max, totals.finality.max) == (2.5, 4.0)
    assert (totals.launcher_voting.max, totals.launcher_finality.max) == (2.5, 4.0)
    assert totals.voting.p50 < 2.5


def test_a_ledger_that_cannot_be_read_says_what_to_try(tmp_path):
    with pytest.raises(KillLedgerError, match="--ledger PATH"):
        KillLedger(tmp_path, OPTIONS)
