"""Fault profiles: drawn by name from a seed, as rich as they promise; and phases, told by effects alone."""

from collections import Counter

import pytest

from node.sim.faults import DEFAULT_PROFILE, PEACE, PROFILES, FaultProfile
from node.sim.phases import PHASES, Phase, find_phase
from node.sim.scenario import draw_scenario
from shardyard import effects as fx
from shardyard.consensus.pacing import TIMER_PROPOSE, TIMER_SLOT, TIMER_STANDSTILL
from shardyard.consensus.votes import Vote, VoteKind
from shardyard.errors import ConfigError
from shardyard.events import MessageReceived, Signed, Started, TimerFired
from shardyard.ids import BEACON, NodeId
from shardyard.messages import BundleAnnouncement, Certificates, RangeRequest, SubmitCrosslink, Votes

TWO_MINUTES = 120_000
HASH = bytes(32)
ANY = MessageReceived(NodeId("x"), BEACON, Certificates(()))


def count_classes(profile):
    return sum(count > 0 for count in (*profile.strikes.values(), *profile.roles.values()))


@pytest.mark.parametrize("name", PROFILES)
def test_a_seed_draws_the_same_profile_for_ever_and_other_seeds_other_ones(name):
    drawn = [draw_scenario(seed, TWO_MINUTES, profile=name) for seed in range(20)]
    assert drawn == [draw_scenario(seed, TWO_MINUTES, profile=name) for seed in range(20)]
    assert len({repr(scenario.profile) for scenario in drawn}) == (1 if name == "calm" else 20)


@pytest.mark.parametrize("name", sorted(set(PROFILES) - {"calm"}))
def test_two_minutes_have_ten_faults_of_five_classes(name):
    for seed in range(200):
        profile = draw_scenario(seed, TWO_MINUTES, profile=name).profile
        assert profile.count >= 10, seed
        assert count_classes(profile) >= 5, seed


def test_ten_minutes_have_thirty_faults_and_a_short_run_has_a_few():
    for seed in range(100):
        long = draw_scenario(seed, 600_000).profile
        assert long.count >= 30
        short = draw_scenario(seed, 15_000).profile
        assert 5 <= short.count <= 20


def test_every_class_of_fault_is_drawn_by_default():
    seen = Counter()
    for seed in range(300):
        profile = draw_scenario(seed, TWO_MINUTES).profile
        seen.update(kind for kind, count in (profile.strikes | profile.roles).items() if count)
    assert set(seen) == set(FaultProfile().strikes) | set(FaultProfile().roles)
    assert min(seen.values()) > 5


def test_nobody_fails_for_ever_where_a_process_holds_more_than_a_fourth():
    for name in PROFILES:
        for seed in range(100):
            scenario = draw_scenario(seed, TWO_MINUTES, profile=name)
            profile = scenario.profile
            if scenario.replicas < 4 or scenario.beacon_replicas < 4:
                assert not any(profile.roles.values())
                assert profile.bit_flips == profile.lost_records == profile.old_records == 0


def test_calm_and_no_faults_are_peace():
    assert draw_scenario(4, TWO_MINUTES, profile="calm").profile == PEACE
    assert draw_scenario(4, TWO_MINUTES, faults=False, profile="chaos").profile == PEACE
    assert (
        draw_scenario(4, TWO_MINUTES).profile
        == draw_scenario(4, TWO_MINUTES, profile=DEFAULT_PROFILE).profile
    )


@pytest.mark.parametrize("faults", [True, False])
def test_an_unknown_profile_is_refused_with_those_there_are(faults):
    with pytest.raises(
        ConfigError, match=r"got 'cahos', expected one of calm, default, crashy, .*; try: default"
    ):
        draw_scenario(1, TWO_MINUTES, faults=faults, profile="cahos")


# Phases


def sign(*kinds):
    return fx.Sign(tuple(fx.SignRequest(kind, 1, HASH, 0, HASH) for kind in kinds))


def send_votes(kind):
    return fx.Broadcast(Votes((Vote(kind, 1, HASH, 0, bytes(96)),)))


@pytest.mark.parametrize(
    ("event", "effects", "phase"),
    [
        (Started(), [sign(VoteKind.NOTAR)], Phase.STARTING),
        (TimerFired(TIMER_STANDSTILL), [send_votes(VoteKind.SKIP)], Phase.STANDING_STILL),
        (ANY, [], Phase.ENTERING_SLOT),
        (ANY, [fx.Finalise(None, None), fx.SetTimer(f"{TIMER_SLOT}7", 10)], Phase.ENTERING_SLOT),
        (
            ANY,
            [fx.SetTimer(f"{TIMER_SLOT}7", 10), fx.SetTimer(f"{TIMER_PROPOSE}7", 5)],
            Phase.WAITING_TO_PROPOSE,
        ),
        (ANY, [fx.Build(1, None, (), 0)], Phase.BUILDING),
        (ANY, [sign(VoteKind.PROPOSE, VoteKind.NOTAR)], Phase.PROPOSING),
        (ANY, [fx.Execute(None, None, ()), fx.Notice("x", 0, {})], Phase.EXECUTING),
        (ANY, [fx.Persist((fx.BlockRecord(None),)), sign(VoteKind.NOTAR)], Phase.VOTING_NOTAR),
        (Signed(()), [send_votes(VoteKind.FINAL)], Phase.VOTING_FINAL),
        (ANY, [sign(VoteKind.SKIP)], Phase.SKIPPING),
        (ANY, [fx.Broadcast(Certificates(()))], Phase.CERTIFYING),
        (ANY, [fx.Persist((fx.FinalRecord(1, HASH, None),))], Phase.FINALISING),
        (ANY, [fx.Persist((fx.BeaconRecord(None, None, ()),))], Phase.FOLLOWING),
        (ANY, [fx.Send(NodeId("y"), RangeRequest(0, 1, 8))], Phase.CATCHING_UP),
        (ANY, [fx.Send(NodeId("y"), BundleAnnouncement(None))], Phase.SERVING),
        (ANY, [fx.Broadcast(BundleAnnouncement(None))], Phase.ANNOUNCING),
        (ANY, [fx.Broadcast(SubmitCrosslink(None))], Phase.SUBMITTING),
    ],
)
def test_a_phase_is_told_by_the_last_telling_effect_of_a_step(event, effects, phase):
    assert find_phase(event, effects) is phase


def test_between_two_effects_the_next_one_tells():
    effects = [fx.Execute(None, None, ()), sign(VoteKind.NOTAR)]
    assert find_phase(ANY, effects, at=effects[0]) is Phase.EXECUTING
    assert find_phase(ANY, effects, at=fx.Notice("x", 0, {})) is Phase.VOTING_NOTAR, "a notice tells nothing"
    assert find_phase(ANY, effects, at=object()) is Phase.VOTING_NOTAR, "and neither does what is no effect"


def test_every_phase_has_words_of_its_own():
    assert len({str(phase) for phase in PHASES}) == len(PHASES) == 17
