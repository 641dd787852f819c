"""How fast blocks become final while some validators are away (L6): the usual pace, and all leaders back once they are."""

import pytest

from tests.unit.consensus.harness import BLOCK_TIME_MS, World, build_committee

PACE_BLOCKS = 60
DELTA_MS = BLOCK_TIME_MS // 2
"""As the devnet preset has it: a slot given up after the block time and 2Δ is too late to be made up for."""


def build_world(count, seed):
    split = [[index] for index in range(count)]
    return World(build_committee([1] * count), split, seed, delta_ms=DELTA_MS).start()


def count_finals(world, node, duration_ms):
    before = len(node.finals)
    world.run(duration_ms)
    return len(node.finals) - before


def list_proposers(node, blocks):
    return [block.header.proposer for block in node.finals[-blocks:]]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("count", "away"), [(4, (3,)), (7, (2, 3)), (7, (1, 4)), (10, (2, 5, 8))])
def test_validators_that_are_down_for_ever_do_not_slow_the_chain(count, away, seed):
    world = build_world(count, seed)
    world.run_until(lambda: min(world.heights()) >= 3)
    for index in away:
        world.crash(world.nodes[index])
    world.run(2 * count * (BLOCK_TIME_MS + 2 * DELTA_MS))  # each misses one turn at full length
    assert count_finals(world, world.nodes[0], PACE_BLOCKS * BLOCK_TIME_MS) >= PACE_BLOCKS - 1
    assert set(list_proposers(world.nodes[0], 2 * count)) == set(range(count)) - set(away)


@pytest.mark.parametrize("seed", range(3))
def test_a_validator_that_returns_leads_again_within_a_round(seed):
    world = build_world(4, seed)
    world.run_until(lambda: min(world.heights()) >= 3)
    world.crash(world.nodes[3])
    world.run(30 * BLOCK_TIME_MS)
    world.restart(world.nodes[3])
    world.run_until(lambda: world.heights()[3] >= world.heights()[0])
    world.run(8 * BLOCK_TIME_MS)
    assert 3 in list_proposers(world.nodes[0], 6)
    assert count_finals(world, world.nodes[0], PACE_BLOCKS * BLOCK_TIME_MS) >= PACE_BLOCKS - 1


@pytest.mark.parametrize("seed", range(3))
def test_a_validator_whose_votes_are_always_the_last_is_not_taken_for_one_that_is_away(seed):
    """Its votes come when certificates are formed without them and their slot is final; it still leads its slots."""
    world = build_world(4, seed)
    slow = world.nodes[3]
    send = world.post

    def post_late(sender, receiver, message):
        if sender is slow:
            world.at(DELTA_MS // 2, lambda: send(sender, receiver, message))
        else:
            send(sender, receiver, message)

    world.post = post_late
    world.crash(slow)
    world.run(10 * BLOCK_TIME_MS)
    world.restart(slow)
    world.run(10 * BLOCK_TIME_MS)
    assert count_finals(world, world.nodes[0], 40 * BLOCK_TIME_MS) >= 36
    assert list_proposers(world.nodes[0], 8).count(3) == 2


@pytest.mark.parametrize("seed", range(3))
def test_all_leaders_that_seemed_away_lead_again_after_a_halt(seed):
    """Half are cut off until nothing is final for long; every leader missed turns, and none is left out after it heals."""
    world = build_world(4, seed)
    world.run_until(lambda: min(world.heights()) >= 3)
    world.drop = 0.9
    world.run(30 * BLOCK_TIME_MS)
    world.drop = 0.0
    world.run(40 * BLOCK_TIME_MS)
    assert count_finals(world, world.nodes[0], 40 * BLOCK_TIME_MS) >= 39
    assert set(list_proposers(world.nodes[0], 4)) == {0, 1, 2, 3}
