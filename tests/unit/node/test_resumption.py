"""Silent keys sign again above a slot that nobody has entered, or it is said why that slot is not known."""

import json

import pytest

from node.checks import verdict
from node.cli import validator
from node.cli.root import run
from node.config import Options
from node.control import ControlError
from node.doppelganger import is_recent
from node.network import create_network
from node.resumption import (
    MARGIN_SLOTS,
    MAX_AHEAD_SLOTS,
    Heard,
    Logged,
    ResumptionError,
    Silent,
    choose_slot,
    find_silent,
    hear_slots,
    read_slots,
    resume_keys,
    verify_above_floors,
    verify_reachable,
)
from node.runtime import open_node_data
from node.storage.log import BlockLog
from node.storage.signer_record import SignerRecord, SignerRecordError, Witness
from shardyard.consensus.signer import BLOCKED
from shardyard.consensus.votes import VoteKind, compute_vote_message
from shardyard.effects import CertificateRecord, FinalRecord, SignRequest
from shardyard.ids import BEACON, ZERO_HASH, ShardId, Slot
from tests.unit.node.certified_chain import CertifiedChain

SHARD = ShardId(0)
NODE = "shard-0-1"
KEYS = (1, 5)


@pytest.fixture
def network(home):
    return create_network(home / "mine", Options(name="mine", shards=1, nodes_per_shard=4, seed=5))


@pytest.fixture
def data(network):
    with open_node_data(network, NODE, SHARD) as found:
        yield found


@pytest.fixture
def witness(tmp_path):
    with_paths = Witness([tmp_path / "one.seen"])
    yield with_paths
    with_paths.close()


def skip(network, key, slot):
    message = compute_vote_message(network.genesis.get_domain(SHARD), VoteKind.SKIP, slot, ZERO_HASH)
    return SignRequest(VoteKind.SKIP, Slot(slot), ZERO_HASH, key, message)


@pytest.fixture
def signed(network, data, witness):
    """A record in which both keys signed in slot 40."""
    with SignerRecord(data, witness) as record:
        record.append([record.state.record(skip(network, key, 40)) for key in KEYS])
        yield record


NOTHING = Logged(0, {})


def block(record, *keys):
    record.append_floors([(key, BLOCKED) for key in keys])
    record.close()


def look(data, witness):
    return find_silent(data, witness, KEYS, NOTHING)


def test_blocked_keys_sign_above_their_slot_and_others_as_before(network, data, witness, signed):
    block(signed, 5)
    silent = look(data, witness)
    assert silent == Silent([5])
    resume_keys(data, witness, silent, [5], 90)
    assert look(data, witness) == Silent([])
    with SignerRecord(data, witness) as record:
        assert not record.state.check(skip(network, 5, 90))
        assert record.state.check(skip(network, 5, 91))
        assert record.state.get_entry(1, 40).skip
        assert record.state.check(skip(network, 1, 41))


def test_only_the_keys_that_were_named_sign_again(data, witness, signed):
    block(signed, *KEYS)
    resume_keys(data, witness, look(data, witness), [1], 90)
    assert look(data, witness) == Silent([5])


@pytest.mark.parametrize("damage", ["missing", "damaged", "old"])
def test_a_lost_record_begins_anew_above_the_slot(network, data, witness, signed, damage):
    path = data.signer_path
    copy = path.read_bytes()
    signed.append([signed.state.record(skip(network, 1, 41))])
    signed.close()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(copy if damage == "old" else copy[:-1] + bytes([copy[-1] ^ 1]))
    silent = look(data, witness)
    assert silent.keys == [*KEYS]
    assert {"missing": "missing", "damaged": "damaged", "old": "old copy"}[damage] in silent.reason
    resume_keys(data, witness, silent, [1], 90)
    assert look(data, witness) == Silent([5])
    with SignerRecord(data, witness) as record:
        assert not record.state.check(skip(network, 1, 90))
        assert record.state.check(skip(network, 1, 91))
    path.write_bytes(copy)  # what was before stays an old copy
    with pytest.raises(SignerRecordError, match="old copy"):
        SignerRecord(data, witness)


def test_a_record_that_the_log_is_ahead_of_is_an_old_copy(network, data, witness, signed):
    """Its witness went with it, so only the chain's own log knows: the node follows and signs nothing (``begin_cover_check``)."""
    signed.close()
    silent = find_silent(data, witness, KEYS, Logged(45, {1: 40, 5: 45}))
    assert silent.keys == [*KEYS]
    assert "ends at slot 40 for validator 5, but the chain's log has a vote of slot 45" in silent.reason
    resume_keys(data, witness, silent, [5], 90)
    assert find_silent(data, witness, KEYS, Logged(45, {1: 40, 5: 45})) == Silent([1])


def test_a_floor_never_sinks(network, data, witness, signed):
    signed.append_floors([(1, 500)])
    signed.close()
    witness.write(1 << 20)  # so it counts as an old copy
    resume_keys(data, witness, look(data, witness), KEYS, 90)
    with SignerRecord(data, witness) as record:
        assert [record.state.get_floor(key) for key in KEYS] == [500, 90]


@pytest.mark.parametrize("is_compacted", [False, True])
def test_a_blocked_key_comes_back_above_the_floor_that_it_had(network, data, witness, signed, is_compacted):
    """It may have signed elsewhere up to there; a person who resumes it later need not remember."""
    signed.append_floors([(5, 500)])
    block(signed, 5)
    if is_compacted:
        with SignerRecord(data, witness) as record:
            record.rewrite()
    silent = look(data, witness)
    assert silent == Silent([5], floors={5: 500})
    assert resume_keys(data, witness, silent, KEYS, 90) == {5: 500}
    assert look(data, witness) == Silent([])
    with SignerRecord(data, witness) as record:
        assert not record.state.check(skip(network, 5, 500))
        assert record.state.check(skip(network, 5, 501))


def test_floors_go_from_life_to_life_while_their_key_stays_blocked(data, witness, signed):
    signed.append_floors([(1, 300), (5, 500)])
    block(signed, *KEYS)
    assert resume_keys(data, witness, look(data, witness), [1], 400) == {1: 400}
    assert look(data, witness) == Silent([5], floors={5: 500})
    with SignerRecord(data, witness) as record:
        block(record, 1)
    assert look(data, witness) == Silent([1, 5], floors={1: 400, 5: 500})


def test_a_floor_that_only_an_old_copy_tells_counts(data, witness, signed):
    signed.append_floors([(5, 500)])
    block(signed, 5)
    witness.write(1 << 20)
    silent = look(data, witness)
    assert (silent.keys, silent.floors) == ([*KEYS], {5: 500})
    assert resume_keys(data, witness, silent, KEYS, 90) == {1: 90, 5: 500}


def test_a_record_whose_blocked_keys_have_no_other_floor_is_read(data, witness, signed):
    """As it was once written: the floor of a blocked key was overwritten when the file was written anew."""
    block(signed, 5)
    with SignerRecord(data, witness) as record:
        assert record.state.list_floors() == ((5, BLOCKED),)
        record.append_floors([(1, 300), (5, BLOCKED)])
    with SignerRecord(data, witness) as record:
        assert record.state.list_floors() == ((1, 300), (5, BLOCKED))
        assert record.state.get_entry(5, 40).skip


@pytest.mark.parametrize(
    ("above", "newest", "words"),
    [
        (
            499,
            70,
            "got 499, expected at least 500, the floor of validator 5 on record: .*; try: the same with --above 500, or",
        ),
        (90, 70, "got 90, expected at least 500"),
        (90, 500 - MAX_AHEAD_SLOTS - 1, "expected at least 500, .*; try: without --above while"),
    ],
)
def test_a_slot_below_the_floor_of_a_key_is_refused(above, newest, words):
    silent = Silent([1, 5, 7], floors={1: 95, 5: 500, 7: 900})
    with pytest.raises(ResumptionError, match=words):
        verify_above_floors(silent, [1, 5], above, newest)
    verify_above_floors(silent, [1, 5], 500, newest)
    verify_above_floors(silent, [1], 499, newest)


def test_the_command_refuses_a_slot_below_a_floor_and_says_the_one_it_takes(
    network, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(validator, "get_lock_dir", lambda: tmp_path / "locks")
    with (
        open_node_data(network, NODE, SHARD) as data,
        Witness([]) as none,
        SignerRecord(data, none) as record,
    ):
        record.append_floors([(1, 500)])
        record.append_floors([(1, BLOCKED)])

    def call(*options):
        return run(["validator", "resume", NODE, "--name", "mine", "--yes", *options])

    assert call("--above", "499") == 1
    told = capsys.readouterr().err
    assert "got 499, expected at least 500, the floor of validator 1 on record" in told
    assert "try: the same with --above 500" in told
    assert call("--above", "500", "--json") == 0
    assert json.loads(capsys.readouterr().out)["items"] == [{"validator": 1, "floor": 500}]


def test_whoever_resumes_listens_before_it_signs(data, witness, signed):
    assert is_recent(data.signer_path)
    block(signed, 5)
    resume_keys(data, witness, look(data, witness), [5], 90)
    assert not is_recent(data.signer_path)


# --- which slot ---


@pytest.fixture
def answering(network, monkeypatch):
    """Nodes by the slot they tell and what they tell of their signers; the others are silent."""
    told = {}

    async def ask(path, method, *, timeout_s, **params):
        for node, (slot, status) in told.items():
            if path == network.get_control_path(node):
                if method == "finals":
                    return {"height": 1, "first": 1, "hashes": [], "slot": slot}
                assert method == "status"
                return status
        raise ControlError("nobody there")

    monkeypatch.setattr(verdict, "ask", ask)
    return told


def sign(**floors):
    return {"signer": {"floors": {key.strip("_"): floor for key, floor in floors.items()}}}


def sum_stake(network, *keys):
    return sum(network.genesis.committees[SHARD].stakes[key] for key in keys)


async def test_other_nodes_of_the_chain_tell_and_nobody_else(network, answering):
    answering |= {
        "beacon-0": (900, sign(_0=0)),
        "shard-0-0": (70, sign(_0=0)),
        "shard-0-1": (800, sign(_1=0)),
    }
    answering |= {"shard-0-2": (71, sign(_2=71)), "shard-0-3": (60, sign())}
    heard = await hear_slots(network, NODE, Silent([1]), NOTHING)
    assert heard == Heard(
        71, knowing=sum_stake(network, 0, 2), signing=sum_stake(network, 0, 2), has_answers=True
    )


async def test_a_key_below_its_floor_knows_and_does_not_sign(network, answering):
    answering |= {"shard-0-0": (70, sign(_0=71)), "shard-0-2": (70, sign(_2=0))}
    heard = await hear_slots(network, NODE, Silent([1]), NOTHING)
    assert (heard.knowing, heard.signing) == (sum_stake(network, 0, 2), sum_stake(network, 2))


async def test_a_node_that_comes_by_a_snapshot_tells_its_slot_alone(network, answering):
    answering["shard-0-0"] = (90, {"state": "fetching a snapshot", "height": 8, "chunks": 1, "missing": 1})
    assert await hear_slots(network, NODE, Silent([1]), NOTHING) == Heard(90, 0, 0, has_answers=True)


async def test_the_own_log_gives_its_slot_and_own_keys_that_are_sound_count(home, answering):
    network = create_network(home / "one", Options(name="one", shards=1, seed=5))
    keys = list(range(len(network.genesis.committees[SHARD])))
    heard = await hear_slots(network, "shard-0-0", Silent(keys[1:2]), Logged(30, {}))
    stake = sum_stake(network, *keys) - sum_stake(network, keys[1])
    assert heard == Heard(30, stake, stake, has_answers=False)
    assert choose_slot(network, SHARD, heard, None) == 30 + MARGIN_SLOTS
    verify_reachable(network, SHARD, Silent(keys[1:2]))
    with pytest.raises(ResumptionError, match=r"all validators but these have 0 of .* validator import"):
        verify_reachable(network, SHARD, Silent(keys, "the record is lost"))
    with pytest.raises(
        ResumptionError, match="try: leave them to the process that signs with them, or"
    ) as caught:
        verify_reachable(network, SHARD, Silent(keys))
    assert "import" not in str(caught.value)  # it takes back no block of a sound record


@pytest.fixture
def logged(network, data):
    """The node's own log ends with the finality of block 3 and a certificate of slot 30."""
    chain = CertifiedChain(network)
    for _ in range(3):
        chain.extend()
    proof = chain.prove(3)
    late = type(proof.notarization)(VoteKind.SKIP, Slot(30), ZERO_HASH, b"\x0d", bytes(96))
    with BlockLog(data.log_path, data.owner) as log:
        head = chain.blocks[3]
        log.append_records([CertificateRecord(late), FinalRecord(head.header.height, head.hash, proof)])
        log.sync_now()
    return chain


def test_the_log_tells_the_newest_slot_and_those_of_own_votes(data, logged):
    found = read_slots(data, [0, 1])
    assert found == Logged(30, {0: 30, 1: logged.blocks[3].header.slot})


def test_of_a_damaged_log_counts_what_is_in_front_and_none_is_made(data, logged):
    (segment,) = data.log_path.iterdir()
    with BlockLog(data.log_path, data.owner) as log:
        place = log.size
        for _ in range(2):
            log.append_records([CertificateRecord(logged.prove(3).notarization)])
            log.sync_now()
    image = bytearray(segment.read_bytes())
    image[place + 50] ^= 1
    segment.write_bytes(image)
    assert read_slots(data, []).slot == 30
    segment.unlink()
    data.log_path.rmdir()
    assert read_slots(data, []) == Logged(0, {})
    assert not data.log_path.exists()


def test_too_little_stake_that_tells_is_refused(network):
    committee = network.genesis.committees[SHARD]
    lacking = committee.total_stake - committee.quorum
    with pytest.raises(
        ResumptionError, match=rf"nodes with {lacking} of .*, expected at least {lacking + 1}"
    ):
        choose_slot(network, SHARD, Heard(70, lacking, committee.quorum, has_answers=True), None)
    heard = Heard(70, lacking + 1, committee.quorum, has_answers=True)
    assert choose_slot(network, SHARD, heard, None) == 70 + MARGIN_SLOTS


def test_a_chain_that_does_not_get_there_without_the_keys_is_named(network):
    """The chain would wait for a vote in a slot in which the keys may not sign."""
    committee = network.genesis.committees[SHARD]
    heard = Heard(70, committee.total_stake, committee.quorum - 1, has_answers=True)
    for above in (None, 71):
        with pytest.raises(
            ResumptionError, match=rf"have {committee.quorum - 1} of .*at least {committee.quorum}:"
        ):
            choose_slot(network, SHARD, heard, above)
    assert (
        choose_slot(network, SHARD, Heard(0, 0, 0, has_answers=False), 9) == 9
    )  # nobody is up who could tell


FAR = 71 + MAX_AHEAD_SLOTS


@pytest.mark.parametrize(
    ("above", "words"),
    [
        (70, r"got 70, expected more than 70, .* beacon .*try: .* --above 102"),
        (FAR, r"expected at most 10070, .*nothing takes it back; try: a smaller --above"),
    ],
)
def test_a_slot_that_was_entered_or_is_far_away_is_refused(network, above, words):
    stake = network.genesis.committees[BEACON].total_stake
    with pytest.raises(ResumptionError, match=words):
        choose_slot(network, BEACON, Heard(70, stake, stake, has_answers=True), above)


@pytest.mark.parametrize("above", [70, FAR])
@pytest.mark.parametrize(
    ("has_answers", "remedy"), [(False, "shardyard up"), (True, "bring other nodes back first")]
)
def test_where_the_chain_may_be_further_no_other_slot_is_advised(network, above, has_answers, remedy):
    """It could be one that was entered long ago: the chain may be at 60,000 when the own log is lost."""
    committee = network.genesis.committees[SHARD]
    lacking = committee.total_stake - committee.quorum
    with pytest.raises(ResumptionError, match=rf"newer slot than 70 may be unknown; try: {remedy}") as caught:
        choose_slot(network, SHARD, Heard(70, lacking, lacking, has_answers=has_answers), above)
    assert "smaller" not in str(caught.value)
    assert "--above" not in str(caught.value)


def test_a_person_may_name_a_slot_while_nobody_answers(network):
    for above in (71, 70 + MAX_AHEAD_SLOTS):
        assert choose_slot(network, SHARD, Heard(70, 0, 0, has_answers=False), above) == above


def test_a_far_slot_that_was_refused_is_taken_once_the_others_tell_theirs(network):
    stake = network.genesis.committees[SHARD].quorum
    with pytest.raises(ResumptionError, match="the others tell how far it is"):
        choose_slot(network, SHARD, Heard(0, 0, 0, has_answers=False), 60_100)
    assert choose_slot(network, SHARD, Heard(60_000, stake, stake, has_answers=True), 60_100) == 60_100
