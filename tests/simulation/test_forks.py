"""Accountability (I6): a coalition above a third can fork the chain, and the two proofs convict it and nobody else."""

import pytest

from shardyard.consensus.evidence import find_conflict
from shardyard.consensus.proofs import build_certified_header
from shardyard.quorum import sum_stake
from tests.unit.consensus.harness import World, build_committee

CASES = [
    # stakes, coalition, the honest on either side of the cut
    ([1, 1, 1, 1], [2, 3], ([0], [1])),
    ([3, 2, 2, 1, 1], [0, 1], ([2], [3, 4])),
    ([5, 3, 3, 2, 2, 1, 1], [0, 1], ([2, 5], [3, 4, 6])),
]


class Forked(World):
    """Lets both sides of a fork become final; the test looks at what they hold."""

    def check_final(self, node, block, proof):
        node.finals.append(block)
        node.proofs[block.header.height] = (block, proof)


def fork(stakes, coalition, honest, seed):
    """Cut the network in two halves that both hold the coalition's keys; return one honest node of each side."""
    committee = build_committee(stakes)
    world = Forked(committee, [honest[0], coalition, honest[1], coalition], seed=seed)
    sides = {"n0": 0, "n1": 0, "n2": 1, "n3": 1}
    world.links = lambda a, b: sides[a] == sides[b]
    world.start().run(30_000)
    return world.nodes[0], world.nodes[2]


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize(("stakes", "coalition", "honest"), CASES)
def test_two_final_chains_convict_a_third_of_the_stake_and_no_honest_validator(
    stakes, coalition, honest, seed
):
    one, other = fork(stakes, coalition, honest, seed)
    assert one.finals
    assert other.finals
    height = next(
        height
        for height in range(1, 1 + min(len(one.finals), len(other.finals)))
        if one.finals[height - 1].hash != other.finals[height - 1].hash
    )
    ancestry = [build_certified_header(block) for node in (one, other) for block in node.finals]
    found = find_conflict(one.proofs[height][1], other.proofs[height][1], len(stakes), ancestry)
    convicted = set().union(*(set(conflict.validators) for conflict in found))
    assert convicted == set(coalition)
    assert any(3 * sum_stake(conflict.validators, stakes) > sum(stakes) for conflict in found)
