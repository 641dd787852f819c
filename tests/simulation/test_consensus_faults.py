"""Engines under faults from a seed: safety always (the world checks it at every final block), liveness once faults stop."""

import random

import pytest

from shardyard.codec import decode
from shardyard.consensus.evidence import VoteEvidence, verify_evidence
from shardyard.effects import Broadcast, Send
from shardyard.messages import BlockResponse, Proposal, Votes
from tests.unit.consensus.harness import World, build_committee

SPLIT = [[0], [1], [2], [3]]
SEEDS = range(12)


def shake(world, chance, duration_ms):
    """Crash, restart, cut and heal at random for a while, then let everything come back."""
    faults = chance.randint(5, 12)
    cut: set[tuple[str, str]] = set()
    world.links = lambda a, b: (a, b) not in cut
    for _ in range(faults):
        world.at(chance.randint(0, duration_ms), lambda: strike(world, chance, cut))
    world.run(duration_ms)
    cut.clear()
    world.drop = 0.0
    world.validation_ms = 5
    for node in world.nodes:
        if not node.is_up:
            world.restart(node)


def strike(world, chance, cut):
    node = chance.choice(world.nodes)
    match chance.randint(0, 3):
        case 0:
            world.crash(node)
        case 1:
            if not node.is_up:
                world.restart(node)
        case 2:
            other = chance.choice(world.nodes)
            cut.add((node.name, other.name))
        case _:
            cut.clear()


@pytest.mark.parametrize("seed", SEEDS)
def test_any_faults_leave_one_chain_that_goes_on_once_they_stop(seed):
    chance = random.Random(seed)
    stakes = chance.choice([[1, 1, 1, 1], [3, 2, 2, 1], [5, 3, 3, 2]])
    world = World(build_committee(stakes), SPLIT, seed=seed)
    world.drop, world.duplicate = chance.choice([0.0, 0.1, 0.3]), 0.1
    world.latency = chance.choice([(1, 20), (1, 400), (100, 900)])
    world.validation_ms = chance.choice([5, 300, 1500])
    world.start()
    shake(world, chance, 60_000)
    world.latency = (1, 50)
    height = max(world.heights())
    world.run_until(lambda: min(world.heights()) > height + 5, 40_000)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_key_used_by_two_processes_is_found_out_and_breaks_nothing(seed):
    world = World(build_committee([1, 1, 1, 1]), [*SPLIT, [3]], seed=seed)
    world.drop = 0.1
    world.start().run(60_000)
    assert min(world.heights()) > 10
    accused = set()
    for node in world.nodes:
        for notice in node.notices:
            if notice.kind == "evidence":
                evidence = decode(notice.data["evidence"], VoteEvidence, max_bytes=4096)
                verify_evidence(
                    world.nodes[0].engine._pool._crypto, node.config.domain, world.committee, evidence
                )
                accused.add(evidence.first.validator)
    assert accused == {3}


@pytest.mark.parametrize("seed", range(6))
def test_without_a_quorum_the_chain_halts_and_goes_on_when_it_is_back(seed):
    world = World(build_committee([1, 1, 1, 1]), SPLIT, seed=seed)
    world.start().run(5_000)
    for node in world.nodes[2:]:
        world.crash(node)
    world.run(3_000)
    height = max(world.heights())
    world.run(120_000)
    assert max(world.heights()) == height
    for node in world.nodes[2:]:
        world.restart(node)
    world.run_until(lambda: min(world.heights()) > height + 2, 10_000)


@pytest.mark.parametrize("seed", range(6))
def test_a_partition_heals_within_five_seconds(seed):
    world = World(build_committee([1, 1, 1, 1]), SPLIT, seed=seed)
    world.start().run(5_000)
    world.links = lambda a, b: (a in {"n0", "n1"}) == (b in {"n0", "n1"})
    world.run(300_000)
    height = max(world.heights())
    world.links = lambda _a, _b: True
    world.latency = (200, 250)
    world.run_until(lambda: min(world.heights()) > height, 5_000)


def test_a_silent_leader_costs_one_timeout_per_turn():
    world = World(build_committee([1, 1, 1, 1]), SPLIT)
    world.start()
    world.crash(world.nodes[2])
    world.run(60_000)
    assert min(len(world.nodes[index].finals) for index in (0, 1, 3)) >= 40


def test_a_leader_that_withholds_its_blocks_is_skipped():
    world = World(build_committee([1, 1, 1, 1]), SPLIT)

    def withhold(node, effect):
        message = effect.message if isinstance(effect, Broadcast | Send) else None
        return None if isinstance(message, Proposal | BlockResponse) and node.name == "n2" else effect

    world.tamper = withhold
    world.start().run(60_000)
    assert min(world.heights()) >= 40
    # The votes of the withholder name a block that nobody can fetch from anybody else.
    assert all(block.header.proposer != 2 for block in world.nodes[0].finals)


def test_l10_a_leader_whose_proposals_are_lost_leads_all_the_same():
    world = World(build_committee([1, 1, 1, 1]), SPLIT)

    def lose(node, effect):
        is_proposal = isinstance(effect, Broadcast) and isinstance(effect.message, Proposal)
        return None if is_proposal and node.name == "n2" else effect

    world.tamper = lose
    world.start().run(60_000)
    led = sum(block.header.proposer == 2 for block in world.nodes[0].finals)
    assert led >= len(world.nodes[0].finals) // 5


def test_one_correct_validator_that_holds_the_certificate_tells_the_others():
    """A3: notar votes that reached one node only do not strand it; its certificate brings everybody along."""
    world = World(build_committee([1, 1, 1, 1]), SPLIT)
    world.start().run(4_500)

    def only_to_one(node, effect):
        if isinstance(effect, Broadcast) and isinstance(effect.message, Votes) and node.name != "n1":
            for other in world.nodes:
                if other.name == "n1":
                    world.post(node, other, effect.message)
            return None
        return effect

    world.tamper = only_to_one
    height = max(world.heights())
    world.run_until(lambda: min(world.heights()) > height + 5, 40_000)


def test_a_validator_whose_block_is_invalid_to_the_rest_is_outvoted():
    world = World(build_committee([1, 1, 1, 1]), SPLIT)
    world.is_valid = lambda _node, block: not block.body.startswith(b"n3")
    world.start().run(60_000)
    assert min(world.heights()) >= 40
    assert all(block.header.proposer != 3 for block in world.nodes[0].finals)


def test_slow_execution_stretches_timeouts_and_the_chain_goes_on():
    world = World(build_committee([1, 1, 1, 1]), SPLIT)
    world.validation_ms = 6_000
    world.start().run(120_000)
    assert min(world.heights()) >= 5


def test_clocks_an_hour_apart_do_not_stop_the_chain():
    world = World(build_committee([1, 1, 1, 1]), SPLIT)
    clocks = {"n0": 3_600_000, "n1": 0, "n2": -900_000, "n3": 17}
    for node in world.nodes:
        for name in ("start", "on_message", "on_timer", "on_signed", "on_proposed", "on_validated"):
            skew(node.engine, name, clocks[node.name])
    world.start().run(60_000)
    assert min(world.heights()) >= 40


def skew(engine, name, offset_ms):
    original = getattr(engine, name)
    setattr(engine, name, lambda *args: original(*args[:-1], args[-1] + offset_ms))
