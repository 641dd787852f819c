"""Rejoins that others ask for: what they may cost, and whose turn it is."""

import pytest
from crosslink_test_model import build_genesis

from crosslink.rejoins import REJOIN_PERIOD, RejoinPool
from shardyard.errors import InvalidBlockError
from shardyard.ids import NodeId
from shardyard.rejoins import MAX_BLOCK_REJOINS, Rejoin

LIAR, HONEST = NodeId("beacon-3"), NodeId("beacon-1")
COUNT = 20


class CountingCrypto:
    """Says what verifies by the signature's first byte, and counts."""

    def __init__(self):
        self.verified = 0

    def verify_votes(self, _committee, items):
        self.verified += len(items)
        return [signature[0] == 1 for _, _, signature in items]


def rejoin(validator, nonce=1, *, is_valid=True):
    return Rejoin(validator, bytes([nonce]) * 32, bytes([is_valid]) * 96)


@pytest.fixture
def crypto():
    return CountingCrypto()


@pytest.fixture
def pool(crypto):
    found = RejoinPool(build_genesis(), crypto, ())
    found._committee = range(COUNT)  # larger than a test network's
    return found


def pass_period(pool):
    for _ in range(REJOIN_PERIOD):
        pool.on_final([])


def test_a_replica_that_was_refused_costs_nothing_more_in_its_period(pool, crypto):
    with pytest.raises(InvalidBlockError, match="does not verify"):
        pool.add(LIAR, [rejoin(validator, is_valid=False) for validator in range(16)])
    for nonce in range(2, 50):
        pool.add(LIAR, [rejoin(validator, nonce, is_valid=False) for validator in range(16)])
    assert crypto.verified == 16
    pool.add(HONEST, [rejoin(4)])  # nobody else pays for it
    assert pool.choose() == [rejoin(4)]
    pass_period(pool)
    with pytest.raises(InvalidBlockError):
        pool.add(LIAR, [rejoin(1, is_valid=False)])


def test_a_replica_asks_once_per_validator_and_period(pool, crypto):
    for nonce in range(1, 50):
        pool.add(HONEST, [rejoin(4, nonce)])
    assert crypto.verified == 1
    assert pool.choose() == [rejoin(4, 1)]
    pass_period(pool)
    pool.add(HONEST, [rejoin(4, 60)])
    assert pool.choose() == [rejoin(4, 60)]


def test_every_validator_comes_to_its_turn_though_others_ask_again_for_ever(pool):
    carried = set()
    for nonce in range(1, COUNT + 1):
        for sender in range(2):
            if nonce % REJOIN_PERIOD == 1:
                some = range(10 * sender, 10 * sender + 10)
                pool.add(NodeId(f"beacon-{sender}"), [rejoin(validator, nonce) for validator in some])
        chosen = pool.choose()
        positions = [found.validator for found in chosen]
        assert positions == sorted(positions)
        assert len(positions) == MAX_BLOCK_REJOINS
        carried |= set(positions)
        pool.on_final([])  # a leader that left them out
    assert carried == set(range(COUNT))


def test_a_rejoin_in_a_final_block_is_forgotten(pool):
    pool.add(HONEST, [rejoin(4), rejoin(5)])
    pool.on_final([rejoin(4), rejoin(5, 2)])
    assert pool.choose() == [rejoin(5)]
