"""The phases of the protocol: what a node is doing when a fault strikes it, told by what it has just done or is about to do.

Nothing here looks into a machine. A node's last step that did anything says which phase it is in: who asked for an
execution is executing until something else follows. A fault that strikes between two effects of a step is told by the
effect that would have come next.
"""

from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import Final

from shardyard import effects as fx
from shardyard.consensus.pacing import TIMER_PROPOSE, TIMER_SLOT, TIMER_STANDSTILL
from shardyard.consensus.votes import VoteKind
from shardyard.events import Event, Started, TimerFired
from shardyard.messages import (
    BlockRequest,
    BlockResponse,
    BundleAnnouncement,
    BundleRequest,
    Certificates,
    CrosslinkRequest,
    FinalBlock,
    Message,
    Proposal,
    RangeRequest,
    RangeResponse,
    SubmitCrosslink,
    Votes,
)


class Phase(StrEnum):
    """What a node is doing."""

    STARTING = "starting"
    """It has read its log and says where it stands."""
    ENTERING_SLOT = "entering a slot"
    """It has entered a slot and waits for its proposal (L1)."""
    WAITING_TO_PROPOSE = "waiting to propose"
    BUILDING = "building"
    PROPOSING = "proposing"
    EXECUTING = "executing"
    """A block of somebody else, before it may be voted for (L2)."""
    VOTING_NOTAR = "voting NOTAR"
    CERTIFYING = "certifying"
    """It has formed or heard a certificate and tells it (L3, L4, A3)."""
    VOTING_FINAL = "voting FINAL"
    SKIPPING = "skipping"
    FINALISING = "finalising"
    STANDING_STILL = "standing still"
    """Nothing becomes final, and it says everything again (L7)."""
    CATCHING_UP = "catching up"
    """It asks for what it lacks: blocks, ranges, bodies, bundles (L9, X10)."""
    SERVING = "serving"
    """It answers somebody who asked."""
    FOLLOWING = "following the beacon"
    SUBMITTING = "submitting a crosslink"
    ANNOUNCING = "announcing"
    """The beacon tells a final block and hands out its bundles."""


PHASES: Final = tuple(Phase)
BRIEF: Final = (
    Phase.BUILDING,
    Phase.EXECUTING,
    Phase.WAITING_TO_PROPOSE,
    Phase.PROPOSING,
    Phase.CERTIFYING,
)
"""Phases that nodes are seldom seen in."""
AIMS: Final = (*PHASES, *BRIEF * 3)
"""What faults aim at, the brief phases more often: otherwise hunts of any length hit them least."""
_OF_VOTES: Final = {
    VoteKind.PROPOSE: Phase.PROPOSING,
    VoteKind.NOTAR: Phase.VOTING_NOTAR,
    VoteKind.FINAL: Phase.VOTING_FINAL,
    VoteKind.SKIP: Phase.SKIPPING,
}
_OF_MESSAGES: Final[dict[type, Phase]] = {
    Proposal: Phase.PROPOSING,
    Certificates: Phase.CERTIFYING,
    BlockRequest: Phase.CATCHING_UP,
    RangeRequest: Phase.CATCHING_UP,
    BundleRequest: Phase.CATCHING_UP,
    CrosslinkRequest: Phase.CATCHING_UP,
    BlockResponse: Phase.SERVING,
    RangeResponse: Phase.SERVING,
    SubmitCrosslink: Phase.SUBMITTING,
    FinalBlock: Phase.ANNOUNCING,
    BundleAnnouncement: Phase.ANNOUNCING,
}
_OF_RECORDS: Final[dict[type, Phase]] = {
    fx.FinalRecord: Phase.FINALISING,
    fx.SnapshotRecord: Phase.CATCHING_UP,
    fx.BeaconRecord: Phase.FOLLOWING,
    fx.CertificateRecord: Phase.CERTIFYING,
    fx.ExecutionRecord: Phase.EXECUTING,
    fx.BlockRecord: Phase.VOTING_NOTAR,
    fx.SubmissionRecord: Phase.VOTING_NOTAR,
}


def find_phase(event: Event, effects: Sequence[object], at: object = None) -> Phase:
    """Return the phase of a node whose last step took ``event`` and gave ``effects``.

    ``at`` is the effect that comes next, when the fault strikes before it; whatever is no effect of a machine is passed over.
    """
    if isinstance(event, Started):
        return Phase.STARTING
    if event == TimerFired(TIMER_STANDSTILL):
        return Phase.STANDING_STILL
    if at is not None:
        found = _find_phase_of(at)
        if found is not None:
            return found
    return _find_last(effects) or Phase.ENTERING_SLOT


def _find_last(effects: Iterable[object]) -> Phase | None:
    """Return the phase that the last telling effect of a step leads into."""
    phase = None
    for effect in effects:
        phase = _find_phase_of(effect) or phase
    return phase


def _find_phase_of(effect: object) -> Phase | None:
    match effect:
        case fx.SetTimer(name):
            if name.startswith(TIMER_SLOT):
                return Phase.ENTERING_SLOT
            return Phase.WAITING_TO_PROPOSE if name.startswith(TIMER_PROPOSE) else None
        case fx.Build() | fx.Adopt():
            return Phase.BUILDING
        case fx.Execute():
            return Phase.EXECUTING
        case fx.Sign(requests):
            return _OF_VOTES[requests[0].kind]
        case fx.Persist(records):
            return _OF_RECORDS.get(type(records[-1]))
        case fx.Finalise():
            return Phase.FINALISING
        case fx.Broadcast(message) | fx.Send(_, message):
            return _find_phase_of_message(message, is_answer=isinstance(effect, fx.Send))
        case _:
            return None


def _find_phase_of_message(message: Message, *, is_answer: bool) -> Phase | None:
    if isinstance(message, Votes):
        return _OF_VOTES[message.votes[-1].kind] if message.votes else None
    if is_answer and isinstance(message, SubmitCrosslink | BundleAnnouncement):
        return Phase.SERVING
    return _OF_MESSAGES.get(type(message))
