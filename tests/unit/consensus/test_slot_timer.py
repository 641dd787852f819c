"""L6: how long the leader of a slot is waited for, and when it is presumed away."""

import msgspec
import pytest

from shardyard.consensus.votes import VoteKind
from shardyard.effects import SetTimer
from shardyard.ids import ZERO_HASH
from shardyard.messages import Votes
from tests.unit.consensus.harness import BLOCK_TIME_MS, DELTA_MS, GENESIS
from tests.unit.consensus.solo import Solo

NOTAR, SKIP, FINAL = VoteKind.NOTAR, VoteKind.SKIP, VoteKind.FINAL


def miss_a_turn(solo):
    """Skip slot 3 without its leader, validator 3, after two slots that became final."""
    parent = GENESIS
    for slot in (1, 2):
        block = solo.propose(slot, parent)
        solo.certify_and_hear(NOTAR, slot, block.hash, validators=(0, 1, 2))
        solo.certify_and_hear(FINAL, slot, block.hash, validators=(0, 1, 2))
        parent = block
    assert solo.committee.get_leader(3) == 3
    solo.time_out()
    solo.certify_and_hear(SKIP, 3, validators=(0, 1, 2))
    return parent


def get_delay(solo, slot):
    return [output.delay_ms for output in solo.of(SetTimer) if output.name == f"engine.slot.{slot}"][-1]


def finish_slots(solo, parent, slots):
    """Let each of ``slots`` bring a final block by validators 0, 1 and 2."""
    skips = tuple(range(parent.header.slot + 1, slots[0]))
    for slot in slots:
        block = solo.propose(slot, parent, skips=skips)
        for kind in (NOTAR, FINAL):
            solo.certify_and_hear(kind, slot, block.hash, validators=(0, 1, 2))
        parent, skips = block, ()
    return parent


def test_a_leader_that_missed_its_turn_and_is_not_heard_is_waited_for_delta_only():
    solo = Solo()
    finish_slots(solo, miss_a_turn(solo), (4, 5, 6))
    assert get_delay(solo, 3) == get_delay(solo, 6) == BLOCK_TIME_MS + 2 * DELTA_MS
    assert get_delay(solo, 7) == DELTA_MS
    solo.fire("engine.slot.7")
    assert [vote.slot for vote in solo.votes_sent(SKIP)] == [3, 7]


@pytest.mark.parametrize("kind", [SKIP, NOTAR, FINAL])
@pytest.mark.parametrize("slot", [3, 5])
def test_a_leader_that_was_heard_since_its_turn_gets_all_its_time(kind, slot):
    solo = Solo()
    parent = miss_a_turn(solo)
    solo.hear(Votes((solo.vote(kind, slot, ZERO_HASH if kind is SKIP else parent.hash, validator=3),)))
    finish_slots(solo, parent, (4, 5, 6))
    assert get_delay(solo, 7) == BLOCK_TIME_MS + 2 * DELTA_MS


def test_what_a_leader_said_before_its_turn_does_not_count():
    solo = Solo()
    parent = miss_a_turn(solo)
    solo.hear(Votes((solo.vote(NOTAR, 2, parent.hash, validator=3),)))
    finish_slots(solo, parent, (4, 5, 6))
    assert get_delay(solo, 7) == DELTA_MS


def test_a_leader_heard_while_the_short_timer_runs_gets_the_rest_of_its_time():
    solo = Solo()
    parent = finish_slots(solo, miss_a_turn(solo), (4, 5, 6))
    solo.hear(Votes((solo.vote(FINAL, 6, parent.hash, validator=3),)))
    solo.fire("engine.slot.7")
    assert get_delay(solo, 7) == BLOCK_TIME_MS + DELTA_MS
    assert [vote.slot for vote in solo.votes_sent(SKIP)] == [3]
    solo.fire("engine.slot.7")
    assert [vote.slot for vote in solo.votes_sent(SKIP)] == [3, 7]


def test_a_proposal_within_the_short_timer_gets_its_extension():
    solo = Solo()
    parent = finish_slots(solo, miss_a_turn(solo), (4, 5, 6))
    block = solo.propose(7, parent)
    solo.fire("engine.slot.7")
    assert [vote.slot for vote in solo.votes_sent(SKIP)] == [3]
    assert [vote.slot for vote in solo.votes_sent(NOTAR) if vote.block_hash == block.hash] == [7]


def test_a_vote_of_nobody_and_one_far_ahead_make_no_leader_present_for_long():
    solo = Solo()
    parent = miss_a_turn(solo)
    solo.hear(Votes((solo.vote(NOTAR, 4, parent.hash, validator=3),)))
    solo.hear(
        Votes((msgspec.structs.replace(solo.vote(NOTAR, 2**40, parent.hash, validator=3), validator=2**40),))
    )
    parent = finish_slots(solo, parent, (4, 5, 6))
    solo.time_out()
    solo.certify_and_hear(SKIP, 7, validators=(0, 1, 2))
    finish_slots(solo, parent, (8, 9, 10))
    assert get_delay(solo, 11) == DELTA_MS
