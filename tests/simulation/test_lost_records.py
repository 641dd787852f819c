"""Signer records that are lost or restored from an old copy: never two conflicting signatures, and the beacon's way back."""

import random
from itertools import combinations

import pytest

from node.sim.disk import SignerDisk, SimDisk
from node.sim.scenario import FaultProfile, Scenario
from node.sim.world import World
from shardyard.consensus.evidence import is_slashable
from shardyard.events import Signed

LOSS_MS = 15_000
NOISY = FaultProfile(latency_ms=(1, 100), drop=0.05, duplicate=0.1, disk_ms=(0, 30))


def build_world(seed, *, replicas=1, beacon_replicas=4):
    return World(
        seed,
        Scenario(
            shards=1,
            replicas=replicas,
            beacon_replicas=beacon_replicas,
            duration_ms=60_000,
            settle_ms=30_000,
            tps=0.5,
            profile=NOISY,
        ),
    )


def collect_votes(node):
    """Every vote the node was ever given, over all its lives."""
    votes, step = {}, node.step

    def look(event):
        if isinstance(event, Signed):
            votes.update(
                ((vote.validator, vote.slot, vote.kind, vote.block_hash), vote) for vote in event.votes
            )
        step(event)

    node.step = look
    return votes


def find_conflicts(votes):
    by_slot = {}
    for vote in votes.values():
        by_slot.setdefault((vote.validator, vote.slot), []).append(vote)
    return [pair for found in by_slot.values() for pair in combinations(found, 2) if is_slashable(*pair)]


def lose_at(world, name, *, with_copy, check=None):
    """Crash ``name`` at LOSS_MS and take its record; an old copy lacks some batches."""
    node = next(node for node in world.nodes if node.name == name)

    def strike():
        if node.is_up:
            node.crash()
        if with_copy:
            assert node.record.restore_copy(random.Random(1), 40) > 0
            node.record.witness = 1 << 20  # it was not set back
        else:
            node.record.is_missing = True
        world.clock.schedule(500, node.start)

    world.clock.schedule(LOSS_MS, strike)
    if check is not None:
        world.clock.schedule(LOSS_MS + 510, lambda: check(node))
    return node


@pytest.mark.parametrize("with_copy", [False, True])
@pytest.mark.parametrize("seed", [1, 2])
def test_a_beacon_replica_signs_again_once_its_rejoin_is_final(seed, with_copy):
    world = build_world(seed)
    lost_at = []
    node = lose_at(
        world,
        "beacon-1",
        with_copy=with_copy,
        check=lambda node: lost_at.append((node.is_record_lost, max(votes)[1])),
    )
    votes = collect_votes(node)
    world.run()  # evidence against an honest validator would end it (I6)
    ((was_lost, last_slot),) = lost_at
    assert was_lost
    assert not node.is_record_lost
    assert max(vote.slot for vote in votes.values()) > last_slot + 10  # it votes again, for good
    assert find_conflicts(votes) == []


@pytest.mark.parametrize("with_copy", [False, True])
def test_a_shard_replica_follows_and_signs_nothing(with_copy):
    world = build_world(4, replicas=4, beacon_replicas=1)
    counts = []
    node = lose_at(world, "shard-0-1", with_copy=with_copy, check=lambda _: counts.append(len(votes)))
    votes = collect_votes(node)
    world.run()
    assert node.is_record_lost
    assert [len(votes)] == counts
    peers = [other for other in world.nodes if other.chain == node.chain]
    assert node.final_block.header.height >= max(peer.final_block.header.height for peer in peers) - 3


def test_a_record_that_is_simply_begun_anew_signs_conflicts():
    """What the rule prevents: the same loss with a signer that begins anew gives two votes that exclude each other."""
    world = build_world(6)
    node = next(node for node in world.nodes if node.name == "beacon-1")
    votes = collect_votes(node)

    def begin_anew():
        node.crash()
        node.disk, node.record = SimDisk(world.genesis.network), SignerDisk(world.genesis.network)
        node.start()

    world.clock.schedule(LOSS_MS, begin_anew)
    world.run()
    assert find_conflicts(votes)


def test_a_rejoin_of_another_life_moves_nobody():
    world = build_world(5)
    node = lose_at(world, "beacon-1", with_copy=False)
    carried = []

    def draw_anew():
        carried.append(node.nonce)
        node.nonce = b"\x01" * 32  # the process knows another nonce now; blocks go on to carry the old one

    world.clock.schedule(LOSS_MS + 600, draw_anew)
    world.run()
    assert carried
    assert node.is_record_lost
