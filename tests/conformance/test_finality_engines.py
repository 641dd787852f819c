"""What every engine promises its host, run over each of them."""

from itertools import pairwise

import pytest

from shardyard.effects import FinalRecord
from tests.unit.consensus.harness import BLOCK_TIME_MS, ENGINES, World, build_committee

STAKES = [3, 2, 2, 1]


@pytest.fixture(params=sorted(ENGINES))
def world(request):
    return World(build_committee(STAKES), [[0, 1, 2, 3], []], engine=request.param)


def test_all_keys_in_one_process_finalise_without_peers(world):
    world.nodes = world.nodes[:1]
    world.start().run(10 * BLOCK_TIME_MS)
    assert world.heights()[0] in {10, 11}


def test_an_idle_chain_makes_one_block_per_block_time(world):
    world.start().run(20 * BLOCK_TIME_MS)
    stamps = [block.header.timestamp_ms for block in world.nodes[0].finals]
    assert {later - earlier for earlier, later in pairwise(stamps)} == {BLOCK_TIME_MS}
    assert len(stamps) in {20, 21}


def test_a_follower_without_keys_has_the_same_chain(world):
    world.start().run_until(lambda: len(world.nodes[1].finals) >= 10)
    leader, follower = world.nodes
    assert follower.finals == leader.finals[: len(follower.finals)]
    assert follower.signed == []


def test_a_follower_that_was_away_catches_up(world):
    leader, follower = world.nodes
    world.start()
    world.crash(follower)
    world.run(200 * BLOCK_TIME_MS)
    world.restart(follower)
    world.run_until(lambda: len(follower.finals) >= len(leader.finals) - 1, 5_000)


def test_a_restart_goes_on_where_the_log_ends(world):
    leader = world.nodes[0]
    world.start().run(10 * BLOCK_TIME_MS)
    height = len(leader.finals)
    world.crash(leader)
    world.restart(leader)
    assert len(leader.finals) == height
    world.run_until(lambda: len(leader.finals) >= height + 5, 10_000)


def test_a_restart_from_any_prefix_of_the_log_goes_on(world):
    leader = world.nodes[0]
    world.nodes = [leader]
    world.start().run(3 * BLOCK_TIME_MS)
    for keep in range(len(leader.log) + 1):
        height = sum(isinstance(record, FinalRecord) for record in leader.log[:keep])
        fresh = World(world.committee, [[0, 1, 2, 3]], engine=world.engine)
        node = fresh.nodes[0]
        node.log, node.finals = leader.log[:keep], leader.finals[:height]
        fresh.restart(node)
        assert len(node.finals) == height
        fresh.run_until(lambda node=node, height=height: len(node.finals) > height + 2, 20_000)


def test_the_host_sees_final_blocks_in_order_and_once(world):
    world.drop, world.duplicate = 0.2, 0.3
    world.start().run(60 * BLOCK_TIME_MS)
    for node in world.nodes:
        heights = [block.header.height for block in node.finals]
        assert heights == list(range(1, len(heights) + 1))
    assert min(world.heights()) > 30


def test_timers_carry_the_engines_prefix(world):
    world.start().run(5 * BLOCK_TIME_MS)
    names = {name for node in world.nodes for name in node.timers}
    assert names
    assert all(name.startswith("engine.") for name in names)


def test_the_same_seed_gives_the_same_run(world):
    def run():
        other = World(world.committee, [[0, 1, 2, 3], []], seed=7, engine=world.engine)
        other.drop = 0.2
        return [block.hash for block in other.start().run(30_000).nodes[1].finals]

    assert run() == run()


def test_reads_answer_for_final_blocks(world):
    engine = world.start().run(10_000).nodes[0].engine
    tip = engine.final_block
    assert engine.get_final_block(tip.header.height) == tip
    assert engine.get_block(tip.hash) == tip
    assert engine.final_proof(tip.header.height).path[0].header == tip.header
    assert engine.get_final_block(0).header.height == 0
    assert engine.final_proof(0) is None
    assert engine.get_final_block(tip.header.height + 1) is None
