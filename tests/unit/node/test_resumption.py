"""Silent keys sign again above a slot that nobody has entered, or it is said why that slot is not known."""

import pytest

from node.checks import verdict
from node.config import Options
from node.control import ControlError
from node.doppelganger import is_recent
from node.network import create_network
from node.resumption import (
    MARGIN_SLOTS,
    ResumptionError,
    SlotsHeard,
    choose_slot,
    find_silent,
    hear_slots,
    read_newest_slot,
    resume_keys,
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


def block(record, *keys):
    record.append_floors([(key, BLOCKED) for key in keys])
    record.close()


def test_blocked_keys_sign_above_their_slot_and_others_as_before(network, data, witness, signed):
    block(signed, 5)
    assert find_silent(data, witness, KEYS) == ([5], "")
    resume_keys(data, witness, KEYS, [5], 90)
    assert find_silent(data, witness, KEYS) == ([], "")
    with SignerRecord(data, witness) as record:
        assert not record.state.check(skip(network, 5, 90))
        assert record.state.check(skip(network, 5, 91))
        assert record.state.get_entry(1, 40).skip
        assert record.state.check(skip(network, 1, 41))


def test_only_the_keys_that_were_named_sign_again(data, witness, signed):
    block(signed, *KEYS)
    resume_keys(data, witness, KEYS, [1], 90)
    assert find_silent(data, witness, KEYS) == ([5], "")


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
    silent, reason = find_silent(data, witness, KEYS)
    assert silent == [*KEYS]
    assert {"missing": "missing", "damaged": "damaged", "old": "old copy"}[damage] in reason
    resume_keys(data, witness, KEYS, [1], 90)
    assert find_silent(data, witness, KEYS) == ([5], "")
    with SignerRecord(data, witness) as record:
        assert not record.state.check(skip(network, 1, 90))
        assert record.state.check(skip(network, 1, 91))
    path.write_bytes(copy)  # what was before stays an old copy
    with pytest.raises(SignerRecordError, match="old copy"):
        SignerRecord(data, witness)


def test_whoever_resumes_listens_before_it_signs(data, witness, signed):
    assert is_recent(data.signer_path)
    block(signed, 5)
    resume_keys(data, witness, KEYS, [5], 90)
    assert not is_recent(data.signer_path)


# --- which slot ---


@pytest.fixture
def answering(network, monkeypatch):
    """Nodes by the slot they tell; the others are silent."""
    slots = {}

    async def ask(path, method, *, timeout_s, **params):
        for node, slot in slots.items():
            if path == network.get_control_path(node):
                if method == "finals":
                    return {"height": 1, "first": 1, "hashes": [], "slot": slot}
                assert method == "status"
                return {"signer": {"silent": int(node == "shard-0-2")}}
        raise ControlError("nobody there")

    monkeypatch.setattr(verdict, "ask", ask)
    return slots


async def test_other_nodes_of_the_chain_tell_and_nobody_else(network, data, answering):
    answering |= {"beacon-0": 900, "shard-0-0": 70, "shard-0-1": 800, "shard-0-2": 71}
    heard = await hear_slots(network, NODE, data, is_record_lost=False)
    stake = sum(network.genesis.committees[SHARD].stakes) // 4
    assert heard == SlotsHeard(slot=71, stake=2 * stake, signing=stake)


@pytest.fixture
def logged(network, data):
    """The node's own log ends with the finality of block 3 and a certificate of slot 30."""
    chain = CertifiedChain(network)
    for _ in range(3):
        chain.extend()
    proof = chain.prove(3)
    late = type(proof.notarization)(VoteKind.SKIP, Slot(30), ZERO_HASH, b"\x0f", bytes(96))
    with BlockLog(data.log_path, data.owner) as log:
        head = chain.blocks[3]
        log.append_records([CertificateRecord(late), FinalRecord(head.header.height, head.hash, proof)])
        log.sync_now()


async def test_the_own_log_counts_as_a_node_unless_it_may_be_as_old_as_the_record(
    network, data, answering, logged
):
    assert read_newest_slot(data) == 30
    answering["shard-0-0"] = 20
    stake = sum(network.genesis.committees[SHARD].stakes) // 4
    assert await hear_slots(network, NODE, data, is_record_lost=False) == SlotsHeard(30, 2 * stake, stake)
    assert await hear_slots(network, NODE, data, is_record_lost=True) == SlotsHeard(30, stake, stake)


def test_a_log_that_is_damaged_or_not_there_tells_nothing(data, logged):
    (segment,) = data.log_path.iterdir()
    image = bytearray(segment.read_bytes())
    image[100] ^= 1
    with BlockLog(data.log_path, data.owner) as log:
        log.append_node(SlotsHeard(0, 0, 0))
        log.sync_now()
    image += segment.read_bytes()[len(image) :]
    segment.write_bytes(image)
    assert read_newest_slot(data) == 0
    segment.unlink()
    data.log_path.rmdir()
    assert read_newest_slot(data) == 0
    assert not data.log_path.exists()


def test_too_little_stake_that_tells_is_refused(network):
    committee = network.genesis.committees[SHARD]
    lacking = committee.total_stake - committee.quorum
    with pytest.raises(
        ResumptionError, match=rf"nodes with {lacking} of .*, expected at least {lacking + 1}"
    ):
        choose_slot(network, SHARD, SlotsHeard(70, lacking, committee.quorum), None)
    heard = SlotsHeard(70, lacking + 1, committee.quorum)
    assert choose_slot(network, SHARD, heard, None) == 70 + MARGIN_SLOTS


def test_a_chain_that_cannot_get_there_without_the_keys_is_named(network):
    """The chain would wait for a vote in a slot in which the keys may not sign."""
    committee = network.genesis.committees[SHARD]
    heard = SlotsHeard(70, committee.total_stake, committee.quorum - 1)
    for above in (None, 71):
        with pytest.raises(
            ResumptionError, match=rf"have {committee.quorum - 1} of .*at least {committee.quorum}:"
        ):
            choose_slot(network, SHARD, heard, above)
    assert choose_slot(network, SHARD, SlotsHeard(0, 0, 0), 9) == 9  # nobody is up who could tell


def test_a_slot_that_was_entered_is_refused_with_one_that_was_not(network):
    with pytest.raises(
        ResumptionError, match=r"got 70, expected more than 70, .* beacon .*try: .* --above 102"
    ):
        choose_slot(network, BEACON, SlotsHeard(70, 0, 0), 70)
