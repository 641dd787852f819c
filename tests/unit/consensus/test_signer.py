"""Rules S1 to S4 as a table, and what a signer's record keeps."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardyard.consensus.signer import BLOCKED, SignerState
from shardyard.consensus.votes import VoteKind
from shardyard.effects import SignRequest
from shardyard.errors import LocalProtocolError
from shardyard.ids import ZERO_HASH

A, B = b"a" * 32, b"b" * 32
NOTAR, SKIP, FINAL, PROPOSE = VoteKind.NOTAR, VoteKind.SKIP, VoteKind.FINAL, VoteKind.PROPOSE


def request(kind, block_hash=A, slot=5, validator=0):
    return SignRequest(
        kind=kind,
        slot=slot,
        block_hash=ZERO_HASH if kind is SKIP else block_hash,
        validator=validator,
        message=b"m" * 32,
    )


@pytest.mark.parametrize(
    ("before", "wanted", "allowed"),
    [
        ([], (NOTAR, A), True),
        ([(NOTAR, A)], (NOTAR, B), False),
        ([(NOTAR, A)], (NOTAR, A), True),
        ([(NOTAR, A)], (SKIP, A), True),
        ([(SKIP, A)], (NOTAR, A), False),
        ([(NOTAR, A), (SKIP, A)], (NOTAR, A), True),
        ([(NOTAR, A), (SKIP, A)], (NOTAR, B), False),
        ([], (FINAL, A), False),
        ([(NOTAR, A)], (FINAL, A), True),
        ([(NOTAR, A)], (FINAL, B), False),
        ([(NOTAR, A), (SKIP, A)], (FINAL, A), False),
        ([(SKIP, A)], (FINAL, A), False),
        ([(NOTAR, A), (FINAL, A)], (SKIP, A), False),
        ([(NOTAR, A), (FINAL, A)], (FINAL, A), True),
        ([(PROPOSE, A)], (PROPOSE, B), False),
        ([(PROPOSE, A)], (PROPOSE, A), True),
        ([(SKIP, A)], (PROPOSE, A), True),
    ],
)
def test_s1_to_s4_decide_what_may_follow_what(before, wanted, allowed):
    state = SignerState()
    for kind, block_hash in before:
        state.record(request(kind, block_hash))
    assert state.check(request(*wanted)) is allowed
    if not allowed:
        with pytest.raises(LocalProtocolError):
            state.record(request(*wanted))


def test_slots_and_keys_do_not_concern_each_other():
    state = SignerState()
    state.record(request(NOTAR, A))
    assert state.check(request(NOTAR, B, slot=6))
    assert state.check(request(NOTAR, B, validator=1))


def test_d2_genesis_slot_takes_no_votes():
    assert not SignerState().check(request(SKIP, slot=0))


def test_nothing_is_signed_at_or_below_the_floor():
    state = SignerState()
    state.record(request(NOTAR, A))
    state.prune(5)
    assert len(state) == 0
    assert not state.check(request(NOTAR, A))
    assert state.check(request(NOTAR, A, slot=6))


CHANGES = st.lists(
    st.tuples(
        st.sampled_from(["raise", "block", "resume", "prune", "restart"]),
        st.integers(0, 1),
        st.sampled_from([0, 1, 5, 300, BLOCKED - 1]),
    ),
    max_size=12,
)


@given(CHANGES)
def test_no_floor_sinks_through_blocks_and_resumptions_and_restarts(changes):
    state, highest, blocked = SignerState(), [0, 0], set()
    for change, validator, slot in changes:
        match change:
            case "raise":
                state.raise_floor(validator, slot)
            case "block":
                state.raise_floor(validator, BLOCKED)
                blocked.add(validator)
            case "resume":
                state.resume(validator, slot)
                blocked.discard(validator)
            case "prune":
                state.prune(slot)
            case _:
                restarted = SignerState(state.floor)
                for pair in state.list_floors():
                    restarted.raise_floor(*pair)
                state = restarted
        if change in {"raise", "resume"}:
            highest[validator] = max(highest[validator], slot)
        if change == "prune":
            highest = [max(known, slot) for known in highest]
        for key, known in enumerate(highest):
            assert state.get_known_floor(key) == known
            assert state.get_floor(key) == (BLOCKED if key in blocked else known)
            assert not state.check(request(SKIP, slot=known, validator=key))
            assert state.check(request(SKIP, slot=known + 1, validator=key)) is (key not in blocked)


SEQUENCES = st.lists(
    st.tuples(st.sampled_from(list(VoteKind)), st.sampled_from([A, B]), st.sampled_from([5, 6]))
)


@given(SEQUENCES)
def test_a_replayed_record_allows_exactly_what_the_lived_one_does(sequence):
    lived, entries = SignerState(), []
    for kind, block_hash, slot in sequence:
        if lived.check(request(kind, block_hash, slot)):
            entries.append(lived.record(request(kind, block_hash, slot)))
    replayed = SignerState()
    for entry in entries:
        replayed.replay(entry)
    assert replayed.entries() == lived.entries()


@given(SEQUENCES)
def test_no_sequence_of_requests_yields_a_slashable_pair(sequence):
    from shardyard.consensus.evidence import find_evidence
    from shardyard.consensus.votes import Vote

    state, votes = SignerState(), []
    for kind, block_hash, slot in sequence:
        wanted = request(kind, block_hash, slot)
        if state.check(wanted):
            state.record(wanted)
            votes.append(Vote(kind, slot, wanted.block_hash, 0, b""))
    assert find_evidence(votes) == []
