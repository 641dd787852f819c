"""X14: two replicas offer at a time, everybody has a turn, and pauses grow while the beacon stands still."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.turns import MAX_PAUSE, OFFERERS, OfferTurns

PARENTS = st.binary(min_size=32, max_size=32)


@given(st.integers(1, 64), PARENTS)
def test_the_first_turn_is_that_of_two_and_each_replica_has_one_in_every_round(validators, parent):
    replicas = [OfferTurns((key,), validators) for key in range(validators)]
    rounds = -(-validators // OFFERERS)
    attempts = [[replica.offer(parent) for replica in replicas] for _ in range(2 * rounds)]
    assert all(1 <= sum(attempt) <= OFFERERS for attempt in attempts)
    for attempt in (attempts[:rounds], attempts[rounds:]):
        assert all(sum(turns) == 1 for turns in zip(*attempt, strict=True))


@given(st.integers(1, 16), PARENTS, st.data())
def test_nobody_waits_longer_than_a_round_whatever_mix_of_offers_and_ticks_there_is(validators, parent, data):
    key = data.draw(st.integers(0, validators - 1))
    replica = OfferTurns((key,), validators)
    rounds, waited = -(-validators // OFFERERS), 0
    for _ in range(4 * rounds):
        is_mine = replica.offer(parent) if data.draw(st.booleans()) else _tick_until_taken(replica, parent)
        waited = 0 if is_mine else waited + 1
        assert waited < rounds


def _tick_until_taken(replica, parent):
    attempt = replica._attempt
    for _ in range(MAX_PAUSE):
        if replica.tick(parent):
            return True
        if replica._attempt > attempt:
            return False
    raise AssertionError("no attempt within the longest pause")


def test_which_two_are_first_depends_on_the_crosslink_before():
    firsts = [
        frozenset(
            key for key in range(16) if OfferTurns((key,), 16).offer(number.to_bytes(8, "big") + bytes(24))
        )
        for number in range(16)
    ]
    assert len(set(firsts)) == 16


def test_pauses_double_while_nothing_is_accepted_up_to_the_longest():
    replica = OfferTurns((0,), 1)
    assert replica.offer(bytes(32))
    heard = [tick for tick in range(1, 100) if replica.tick(bytes(32))]
    pauses = [after - before for before, after in itertools.pairwise(heard)]
    assert heard[0] == 1
    assert pauses == [2, 4, 8, *[MAX_PAUSE] * (len(pauses) - 3)]
    assert replica.offer(bytes(32))
    assert replica.tick(bytes(32)), "a new crosslink is said again soon"


@pytest.mark.parametrize("validators", [1, 4, 7])
def test_a_process_with_all_keys_offers_at_every_attempt(validators):
    replica = OfferTurns(tuple(range(validators)), validators)
    assert all(replica.offer(bytes(32)) for _ in range(10))
    assert not any(OfferTurns((), validators).offer(bytes(32)) for _ in range(10))
