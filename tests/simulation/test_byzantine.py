"""Byzantine roles: each acts, honest nodes refuse what it sends for the right reason, evidence is found, nothing breaks."""

import random
from collections import Counter

import pytest

from node.sim.byzantine import bad_proposer, equivocator
from node.sim.byzantine.answers import Corrupter
from node.sim.byzantine.bad_proposer import BadProposer
from node.sim.byzantine.garbage import EPOCH_SLOTS, Garbler
from node.sim.byzantine.lies import LIES
from node.sim.byzantine.role import Seat
from node.sim.byzantine.roles import ROLES
from node.sim.invariants import Checker
from node.sim.node import SimNode
from node.sim.recipe import Recipe
from node.sim.run import describe_result, run, run_recipe
from node.sim.scenario import FaultProfile, Scenario, build_sim_genesis
from node.sim.weights import Weights
from node.sim.world import World
from shardyard import effects as fx
from shardyard.consensus.pool import VotePool
from shardyard.consensus.simplex import SimplexEngine
from shardyard.consensus.votes import Vote, VoteKind
from shardyard.ids import BEACON, NodeId, ShardId, describe_shard
from shardyard.messages import BlockResponse, Votes

FIELDS = {
    "equivocator": "equivocators",
    "withholder": "withholders",
    "silent": "silents",
    "garbler": "garblers",
    "late voter": "late_voters",
    "bad proposer": "bad_proposers",
    "tamperer": "tamperers",
    "replayer": "replayers",
    "corrupter": "corrupters",
}
ROUGH = {"latency_ms": (1, 150), "drop": 0.05, "duplicate": 0.1}


def build_world(seed=1, **changes):
    scenario = {"duration_ms": 30_000, "settle_ms": 15_000} | changes
    return World(seed, Scenario(**scenario))


def find_players(world, role):
    return [node for node in world.nodes if role in {played.name for played in node.roles}]


@pytest.fixture
def reasons(monkeypatch):
    """Why honest nodes refused what peers sent, by chain: texts of errors and of verdicts on blocks."""
    found = {}
    original_refuse, original_init = SimplexEngine._refuse, World.__init__

    def refuse(self, sender, error):
        found.setdefault(self._config.shard, Counter())[str(error)] += 1
        original_refuse(self, sender, error)

    def init(self, *arguments, **options):
        original_init(self, *arguments, **options)
        look = self.checker.on_notice

        def on_notice(node, notice):
            if "reason" in notice.data and not node.is_byzantine:
                found.setdefault(node.chain, Counter())[notice.data["reason"]] += 1
            look(node, notice)

        self.checker.on_notice = on_notice

    monkeypatch.setattr(SimplexEngine, "_refuse", refuse)
    monkeypatch.setattr(World, "__init__", init)
    return found


@pytest.fixture
def honest_votes(monkeypatch):
    """Every hash that a node without roles asked its signer to notarize."""
    asked = set()
    original = SimNode._sign

    def sign(self, requests):
        if not self.is_byzantine:
            asked.update(request.block_hash for request in requests if request.kind is VoteKind.NOTAR)
        original(self, requests)

    monkeypatch.setattr(SimNode, "_sign", sign)
    return asked


def test_every_role_can_be_asked_for_by_a_profile():
    assert set(FIELDS) == set(ROLES)
    assert set(FaultProfile().roles) == {*ROLES, "twin"}
    for role, field in FIELDS.items():
        assert FaultProfile(**{field: 2}).roles[role] == 2


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("seed", range(2))
def test_one_node_per_committee_in_a_role_breaks_nothing(seed, role):
    profile = FaultProfile(**{FIELDS[role]: 1}, **ROUGH)
    result = run(seed, scenario=Scenario(duration_ms=60_000, settle_ms=25_000, profile=profile))
    assert result.is_ok, describe_result(result)
    # A role counts from its first act, and only blocks of shards have access lists to change.
    assert result.report.faults[role] == (2 if role == "tamperer" else 3), "one node of every chain"
    assert sum(result.report.acts.values()) > 15


@pytest.mark.parametrize("seed", range(2))
def test_the_quiet_after_a_short_run_is_enough_for_messages_on_their_way(seed):
    """Those who are still Byzantine in it cost every block on the way a slot that is given up."""
    result = run_recipe(Recipe(seed, minutes=0.5, profile="byzantine"))
    assert result.is_ok, describe_result(result)
    assert result.report.counters["delivered"] > 0


@pytest.mark.parametrize("seed", range(3))
def test_all_roles_at_once_stay_below_a_third_of_every_committee(seed):
    profile = FaultProfile(**dict.fromkeys(FIELDS.values(), 1), twins=1, **ROUGH, crashes=4, partitions=2)
    world = build_world(seed, duration_ms=70_000, settle_ms=35_000, profile=profile)
    for chain, committee in world.genesis.committees.items():
        keys = {key for node in world.nodes if node.chain == chain and node.is_byzantine for key in node.keys}
        assert 0 < 3 * sum(committee.stakes[key] for key in keys) < committee.total_stake
    assert {role.name for node in world.nodes for role in node.roles} == set(ROLES)
    world.run()


def test_nobody_is_byzantine_where_every_process_holds_a_third_or_more():
    world = build_world(replicas=2, beacon_replicas=1, profile=FaultProfile(silents=1, twins=1))
    assert not any(node.is_byzantine for node in world.nodes)
    assert "silent" not in world.run().faults


def test_weights_count_every_validator_once_and_refuse_a_third():
    weights = Weights(build_sim_genesis(2, 4))
    shard = ShardId(0)
    assert weights.fail(shard, (0,))
    assert weights.fail(shard, (0,)), "it has failed already"
    assert not weights.fail(shard, (1,)), "a half"
    assert weights.has_failed(shard, (0,))
    assert not weights.has_failed(shard, (0, 1))
    assert weights.fail(BEACON, (0, 1))
    assert not weights.fail(BEACON, (2,)), "three of eight"


# BadProposer


@pytest.mark.parametrize("lie", LIES, ids=lambda lie: lie.name)
def test_every_lie_of_a_proposer_is_refused_for_its_reason_and_never_voted_for(
    lie, monkeypatch, reasons, honest_votes
):
    monkeypatch.setattr(bad_proposer, "CHANCE", 1.0)
    monkeypatch.setattr(BadProposer, "lies", (lie,))
    world = build_world(profile=FaultProfile(bad_proposers=1), duration_ms=20_000, settle_ms=10_000)
    report = world.run()
    assert report.acts[f"lied about {lie.name}"] >= 2
    liars = [(node, role) for node in world.nodes for role in node.roles]
    told = {node.chain: set(role._told.values()) for node, role in liars}
    lied = {chain for chain, hashes in told.items() if hashes}
    assert lied
    for chain in lied:
        texts = reasons.get(chain, {})
        assert any(lie.reason in text for text in texts), f"{describe_shard(chain)}: {dict(texts)}"
    if not lie.keeps_signature and lie.name != "another body":  # those leave the hash of the good block
        assert honest_votes.isdisjoint(set().union(*told.values()))
    assert honest_votes


def test_lies_have_names_of_their_own():
    assert len({lie.name for lie in LIES}) == len(LIES) >= 45


# Equivocator


def test_every_slashable_pair_told_to_all_is_found(monkeypatch):
    monkeypatch.setattr(equivocator, "SPLIT_CHANCE", 0.0)
    world = build_world(profile=FaultProfile(equivocators=1), duration_ms=60_000, settle_ms=20_000)
    world.run()
    for node in find_players(world, "equivocator"):
        role = node.roles[0]
        assert {"PROPOSE PROPOSE", "NOTAR NOTAR", "NOTAR FINAL", "FINAL SKIP", "FINAL FINAL"} <= set(
            role.shown
        )
        found = Counter()
        for (chain, validator, kinds), count in world.checker.convicted.items():
            if chain == node.chain:
                assert validator in node.keys
                found["PROPOSE PROPOSE" if "PROPOSE" in kinds else " ".join(sorted(kinds.split()))] += count
        for pair in role.shown:
            assert found["PROPOSE PROPOSE" if "PROPOSE" in pair else " ".join(sorted(pair.split()))], pair


def test_two_stories_for_two_halves_never_both_come_to_a_certificate(monkeypatch):
    monkeypatch.setattr(equivocator, "SPLIT_CHANCE", 1.0)
    for seed in range(3):
        world = build_world(
            seed, profile=FaultProfile(equivocators=1, **ROUGH), duration_ms=60_000, settle_ms=25_000
        )
        report = world.run()  # I5 and I6 are looked at at every final block
        assert report.acts["proposed twice"] > 5
        assert all(not role.shown for node in world.nodes for role in node.roles)


# Others


def test_slots_of_a_silent_leader_are_skipped():
    world = build_world(profile=FaultProfile(silents=1))
    report = world.run()
    assert report.counters["slot.skipped"] > 10
    for node in find_players(world, "silent"):
        tip = next(other for other in world.nodes if other.chain == node.chain and other is not node)
        heights = range(1, tip.final_block.header.height + 1)
        proposers = {tip.machine.engine.get_final_block(height).header.proposer for height in heights}
        assert proposers.isdisjoint(node.keys)


def test_a_withheld_proposal_shown_to_one_peer_strands_nobody():
    for seed in range(4):
        world = build_world(
            seed, profile=FaultProfile(withholders=1, **ROUGH), duration_ms=60_000, settle_ms=25_000
        )
        assert world.run().acts["withheld a proposal"] > 10


def test_what_is_replayed_from_elsewhere_is_refused_by_domain_slot_and_signature(reasons, monkeypatch):
    seen = Counter()
    original = VotePool._drop

    def drop(self, slot, entry):
        seen["forged"] += 1
        original(self, slot, entry)

    original_count = SimplexEngine._count_vote

    def count(self, vote, sender):
        if vote.slot >= EPOCH_SLOTS:
            seen["of another epoch"] += 1
            assert not self._is_in_window(vote.slot)
        elif vote.slot <= self.final_slot:
            seen["old"] += 1
        original_count(self, vote, sender)

    monkeypatch.setattr(VotePool, "_drop", drop)
    monkeypatch.setattr(SimplexEngine, "_count_vote", count)
    for seed in range(5):
        world = build_world(seed, profile=FaultProfile(replayers=1), duration_ms=60_000, settle_ms=25_000)
        report = world.run()
        assert "evidence" not in report.counters, "nothing that was replayed may speak against anybody"
        assert report.acts["replayed votes"] > 20
    texts = [text for texts in reasons.values() for text in texts]
    assert any("another network or of shard" in text for text in texts), "proposals of another chain"
    refusals = ("aggregate signature does not verify", "got stake", "bits beyond validator")
    assert any(refusal in text for text in texts for refusal in refusals), "certificates of another chain"
    assert seen["of another epoch"] > 10
    assert seen["old"] > 100
    assert seen["forged"] > 0, "votes of another chain, verified when they could complete a quorum"


def build_role_alone(kind):
    """Return a role that plays from a seat of no network, and what it has told."""
    told = []
    names = ("name", "chain", "keys", "domain", "committee", "peers")
    seat = Seat(**dict.fromkeys(names), chance=random.Random(1), later=None, tell=told.append)
    return kind(seat), told


def test_an_answer_without_anything_to_damage_is_not_counted_as_damaged():
    corrupter, told = build_role_alone(Corrupter)
    empty = fx.Send(NodeId("x"), BlockResponse(ShardId(0), (), ()))
    said = [tuple(corrupter.say(empty)) for _ in range(100)]
    assert told.count("withheld a BlockResponse") == said.count(()) > 0
    assert "damaged a BlockResponse" not in told
    assert set(said) == {(), (empty,)}


def test_garbled_votes_are_other_votes():
    garbler, told = build_role_alone(Garbler)
    vote = Vote(VoteKind.NOTAR, 5, bytes(32), 1, bytes([7]) * 96)
    for _ in range(400):
        (said,) = garbler.say(fx.Broadcast(Votes((vote,))))
        before = len(told)
        assert (said.message.votes != (vote,)) == (before > 0)
        told.clear()


def test_what_a_late_voter_holds_back_passes_through_its_other_roles():
    """A proposer of bad blocks votes for them, late or not, and never for the good ones in their place."""
    world = build_world(profile=FaultProfile(late_voters=1, bad_proposers=1))
    stood_by, strayed = set(), set()
    for node in find_players(world, "late voter"):
        player = next(role for role in node.roles if role.name == "bad proposer")

        def publish(sender, message, told=player._told, original=node._publish):
            for vote in message.votes if isinstance(message, Votes) else ():
                if vote.kind is VoteKind.NOTAR and vote.validator in sender.keys:
                    if vote.block_hash in told.values():
                        stood_by.add(vote.block_hash)
                    elif (vote.slot, vote.block_hash) in told:
                        strayed.add(vote.block_hash)
            original(sender, message)

        node._publish = publish
    world.run()
    assert len(stood_by) > 5
    assert not strayed


def test_late_votes_bring_skips_and_certificates_about_together_and_nothing_else():
    """With another node down, every quorum needs the late vote."""
    profile = FaultProfile(late_voters=1, latency_ms=(10, 300))
    world = build_world(3, profile=profile, duration_ms=90_000, settle_ms=30_000)
    for chain in world.genesis.committees:
        victim = next(node for node in world.nodes if node.chain == chain and not node.is_byzantine)
        world.clock.schedule(5_000, victim.crash)
    report = world.run()
    assert report.acts["voted late"] > 50
    assert report.counters["slot.skipped"] > 0
    assert "evidence" not in report.counters


def test_garbled_votes_cost_their_sender_its_voice_and_nobody_else(reasons):
    report = build_world(profile=FaultProfile(garblers=1), duration_ms=60_000, settle_ms=25_000).run()
    assert report.acts["garbled votes"] > 30
    assert report.acts["garbled certificates"] > 30
    texts = [text for texts in reasons.values() for text in texts]
    for reason in ("aggregate signature does not verify", "got stake", "bitmap"):
        assert any(reason in text for text in texts), reason
    assert "evidence" not in report.counters


def test_damaged_answers_are_refused_and_had_from_others(reasons):
    """Crashes make catch-up happen, losses make bodies and bundles missing."""
    acts = Counter()
    profile = FaultProfile(corrupters=1, crashes=8, drop=0.15, latency_ms=(1, 200), down_ms=(3_000, 9_000))
    for seed in range(4):
        world = build_world(seed, profile=profile, duration_ms=80_000, settle_ms=35_000, tps=6.0)
        acts.update(world.run().acts)  # I2 at its end: everything that was emitted is executed
    for kind in ("BundleAnnouncement", "SubmitCrosslink", "BlockResponse", "RangeResponse", "FinalBlock"):
        assert acts[f"damaged a {kind}"] > 3, acts
        assert acts[f"withheld a {kind}"] > 0, acts
    texts = {text for texts in reasons.values() for text in texts}
    for reason in (
        "the body is not the one",
        "aggregate signature does not verify",
        "got receipts of root",
    ):
        assert any(reason in text for text in texts), (reason, sorted(texts))


def test_what_a_liar_proves_is_final_for_shards_before_honest_replicas_have_told_of_it(monkeypatch):
    """A shard follows the beacon by proofs, whoever serves them; twins were the first to hand out a final block here."""
    early = []
    original = Checker._on_delivery

    def on_delivery(self, shard, block, data, receipt):
        original(self, shard, block, data, receipt)
        early.extend(key for key in self._claimed if key[0] == BEACON)

    monkeypatch.setattr(Checker, "_on_delivery", on_delivery)
    for seed in (42, 91, 111):
        result = run_recipe(Recipe(seed, profile="byzantine"))
        assert result.is_ok, describe_result(result)
    assert early
