"""EIP-3076: what moves with a key, that merging lowers nothing, and what is refused."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.cli import validator
from node.cli.root import run
from node.config import Options
from node.interchange import (
    MAX_RECORD_NUMBER,
    MAX_SLOT,
    InterchangeError,
    build_interchange,
    merge_interchange,
    read_interchange,
    verify_is_newest,
)
from node.network import create_network
from node.runtime import open_node_data
from node.storage.data_dir import build_stamp, open_data_dir
from node.storage.signer_record import SignerRecord, Witness, create_record
from shardyard.consensus.evidence import is_slashable
from shardyard.consensus.signer import BLOCKED, SignerState
from shardyard.consensus.votes import Domain, Vote, VoteKind, compute_vote_message
from shardyard.effects import SignRequest
from shardyard.ids import ZERO_HASH, Hash32, NodeId, ShardId, Slot

DOMAIN = Domain(network=Hash32(b"n" * 32), shard=ShardId(2), valset_root=Hash32(b"v" * 32))
GENESIS = Hash32(b"g" * 32)
KEYS = {0: b"\x01" * 48, 1: b"\x02" * 48}
A, B = Hash32(b"a" * 32), Hash32(b"b" * 32)


def ask(kind, slot, block_hash=ZERO_HASH, validator=0):
    message = compute_vote_message(DOMAIN, kind, slot, block_hash)
    return SignRequest(kind, Slot(slot), Hash32(block_hash), validator, message)


@pytest.fixture
def state():
    found = SignerState()
    for request in (
        ask(VoteKind.PROPOSE, 5, A),
        ask(VoteKind.NOTAR, 5, A),
        ask(VoteKind.FINAL, 5, A),
        ask(VoteKind.NOTAR, 6, B),
        ask(VoteKind.SKIP, 6),
        ask(VoteKind.NOTAR, 5, A, validator=1),
    ):
        found.record(request)
    found.prune(2)
    return found


def export(state, **options):
    return build_interchange(
        DOMAIN, GENESIS, KEYS, state, **{"is_minimal": False, "record_number": 7, **options}
    )


def load(data, state=None, keys=KEYS):
    state = SignerState() if state is None else state
    return state, merge_interchange(read_interchange(data, GENESIS, "file"), DOMAIN, keys, state, "file")


def test_the_complete_form_moves_every_vote(state):
    moved, merged = load(export(state))
    assert moved.entries() == state.entries()
    assert [(merge.validator, merge.added, merge.floor) for merge in merged] == [(0, 5, 2), (1, 1, 2)]
    # The same votes can be signed again, as after a restart, and no others.
    assert moved.check(ask(VoteKind.FINAL, 5, A))
    assert not moved.check(ask(VoteKind.SKIP, 5))
    assert not moved.check(ask(VoteKind.SKIP, 2))
    assert moved.check(ask(VoteKind.NOTAR, 7, A))


def test_the_file_has_the_form_of_the_eip(state):
    found = json.loads(export(state))
    assert found["metadata"] == {
        "interchange_format_version": "5",
        "genesis_validators_root": "0x" + GENESIS.hex(),
        "record_number": 7,
    }
    first = found["data"][0]
    assert first["pubkey"] == "0x" + KEYS[0].hex()
    root = "0x" + compute_vote_message(DOMAIN, VoteKind.PROPOSE, 5, A).hex()
    assert first["signed_blocks"] == [
        {"slot": "2"},
        {"slot": "5", "signing_root": root, "block_hash": "0x" + A.hex()},
    ]
    assert {vote["target_epoch"] for vote in first["signed_attestations"]} == {"2", "5", "6"}
    assert all(vote["source_epoch"] == vote["target_epoch"] for vote in first["signed_attestations"])


def test_the_minimal_form_raises_floors(state):
    data = export(state, is_minimal=True)
    assert [len(history["signed_attestations"]) for history in json.loads(data)["data"]] == [1, 1]
    moved, merged = load(data)
    assert len(moved) == 0
    assert [(merge.validator, merge.floor) for merge in merged] == [(0, 6), (1, 5)]
    assert not moved.check(ask(VoteKind.NOTAR, 6, B))
    assert moved.check(ask(VoteKind.NOTAR, 7, B))
    assert moved.check(ask(VoteKind.NOTAR, 6, B, validator=1))


def test_a_file_of_other_tools_is_read_by_its_highest_slot(state):
    found = json.loads(export(state))
    for history in found["data"]:
        for item in (*history["signed_blocks"], *history["signed_attestations"]):
            item.pop("kind", None)
            item.pop("block_hash", None)
    moved, _ = load(json.dumps(found).encode())
    assert moved.get_floor(0) == 6
    assert moved.get_floor(1) == 5


def test_merging_lowers_nothing_and_twice_is_once(state):
    newer = SignerState()
    newer.raise_floor(0, 100)
    _, merged = load(export(state), newer)
    assert newer.get_floor(0) == 100
    assert merged[0].added == 0
    once, _ = load(export(state))
    twice, merged = load(export(state), once)
    assert twice.entries() == state.entries()
    assert [merge.added for merge in merged] == [0, 0]


def test_two_hashes_of_one_vote_end_signing_in_that_slot(state):
    other = SignerState()
    other.record(ask(VoteKind.NOTAR, 5, B))
    merged, _ = load(export(state), other)
    assert merged.get_floor(0) == 5
    assert not merged.check(ask(VoteKind.SKIP, 5))
    assert merged.check(ask(VoteKind.SKIP, 6))  # known from the file, and still allowed


def test_votes_of_both_sides_of_one_slot_are_joined():
    one, other = SignerState(), SignerState()
    one.record(ask(VoteKind.NOTAR, 5, A))
    other.record(ask(VoteKind.SKIP, 5))
    joined, _ = load(export(one), other)
    assert not joined.check(ask(VoteKind.FINAL, 5, A))
    assert joined.check(ask(VoteKind.NOTAR, 5, A))


def test_a_blocked_key_is_not_exported():
    state = SignerState()
    state.raise_floor(0, BLOCKED)
    assert [found["pubkey"] for found in json.loads(export(state))["data"]] == ["0x" + KEYS[1].hex()]


@pytest.mark.parametrize("is_minimal", [False, True])
def test_what_a_file_says_of_a_blocked_key_counts_when_it_is_resumed(state, is_minimal):
    here = SignerState()
    here.raise_floor(0, BLOCKED)
    _, merged = load(export(state, is_minimal=is_minimal), here)
    assert merged[0].floor == BLOCKED
    assert not here.check(ask(VoteKind.SKIP, 99))
    here.resume(0, 1)
    assert not here.check(ask(VoteKind.NOTAR, 2, A))
    assert not here.check(ask(VoteKind.NOTAR, 5, B))
    assert not here.check(ask(VoteKind.NOTAR, 6, A))
    assert here.check(ask(VoteKind.NOTAR, 7, A))


@pytest.mark.parametrize("keys", [KEYS, {}])
def test_there_is_no_export_without_a_key(keys):
    state = SignerState()
    for key in keys:
        state.raise_floor(key, BLOCKED)
    with pytest.raises(InterchangeError, match=f"got {len(keys)} keys, .*try: shardyard validator resume"):
        build_interchange(DOMAIN, GENESIS, keys, state, record_number=7, is_minimal=False)


@pytest.fixture
def block(home, tmp_path, monkeypatch):
    """Give a way to block keys of shard-0-1, whose validators are 1 and 3, in a network that never ran."""
    monkeypatch.setattr(validator, "get_lock_dir", lambda: tmp_path / "locks")
    network = create_network(home / "mine", Options(name="mine", shards=1, nodes_per_shard=2, seed=5))

    def block(*keys):
        with (
            open_node_data(network, "shard-0-1", ShardId(0)) as data,
            Witness([]) as witness,
            SignerRecord(data, witness) as record,
        ):
            record.append_floors([(key, BLOCKED) for key in keys])

    return block


def call_export(*options):
    return run(["validator", "export", "shard-0-1", "--name", "mine", *options])


def test_the_command_counts_what_is_in_the_file_and_names_what_is_not(block, tmp_path, capsys):
    block(3)
    file = tmp_path / "moved.json"
    assert call_export("-o", str(file)) == 0
    told = capsys.readouterr().err
    assert "1 keys of shard-0-1 written" in told
    assert "left out: validators 3, " in told
    assert "try: shardyard validator resume shard-0-1 --name mine" in told
    assert len(json.loads(file.read_text())["data"]) == 1
    assert call_export("-o", str(tmp_path / "other.json"), "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["keys"], found["left_out"]) == (1, [3])
    assert call_export() == 0
    told = capsys.readouterr()
    assert len(json.loads(told.out)["data"]) == 1
    assert "left out: validators 3, " in told.err


def test_the_command_writes_no_file_without_a_key(block, tmp_path, capsys):
    block(1, 3)
    file = tmp_path / "moved.json"
    assert call_export("-o", str(file)) == 2
    assert "got 2 keys, 2 of them silent for good" in capsys.readouterr().err
    assert not file.exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda found: found["metadata"].update(genesis_validators_root="0x" + "00" * 32), "another network"),
        (lambda found: found["metadata"].update(interchange_format_version="4"), "format '4'"),
        (lambda found: found["metadata"].pop("interchange_format_version"), "no EIP-3076"),
        (lambda found: found.pop("data"), "no EIP-3076"),
        (lambda found: found["metadata"].update(record_number=-1), "got record number -1"),
        (lambda found: found["metadata"].update(record_number=(1 << 64) - 2), "got record number 1844"),
        (
            lambda found: found["metadata"].update(record_number=MAX_RECORD_NUMBER + 1),
            "expected 0 to 281474976710656",
        ),
        (lambda found: found["metadata"].update(record_number="7"), "no EIP-3076"),
        (lambda found: found["data"][0].update(pubkey="0x12"), "96 hexadecimal digits"),
        (lambda found: found["data"][0].update(pubkey="02" * 48), "0x and"),
        (lambda found: found["data"].clear(), "got 0 keys"),
        (lambda found: found["data"][0]["signed_blocks"][0].update(slot="-1"), "got slot '-1'"),
        (lambda found: found["data"][0]["signed_blocks"][0].update(slot="9" * 30), "got slot"),
        (lambda found: found["data"][0]["signed_blocks"][0].update(slot=str((1 << 64) - 1)), "got slot"),
        (lambda found: found["data"][0]["signed_blocks"][0].update(slot=str(MAX_SLOT + 1)), "got slot"),
        (
            lambda found: found["data"][0]["signed_attestations"][0].update(source_epoch=str((1 << 64) - 2)),
            "expected 0 to 281474976710656",
        ),
        (lambda found: found["data"][0]["signed_attestations"][1].update(kind="DANCE"), "got kind"),
        (lambda found: found["data"][0]["signed_attestations"][1].update(block_hash="0xzz"), "hexadecimal"),
        (lambda found: found["data"][0]["signed_attestations"][1].update(target_epoch="7"), "signing root"),
        (lambda found: found["data"][0]["signed_attestations"][1].pop("signing_root"), "signing root"),
    ],
)
def test_what_is_refused_changes_nothing(state, change, words):
    found = json.loads(export(state))
    change(found)
    target = SignerState()
    with pytest.raises(InterchangeError, match=words) as caught:
        load(json.dumps(found).encode(), target)
    assert "try: " in str(caught.value)
    assert len(target) == 0
    assert target.key_floors == {}


def test_a_lost_record_is_not_begun_anew_from_an_older_export(state):
    found = read_interchange(export(state), GENESIS, "file")
    verify_is_newest(found, 7, "file", otherwise="something else")
    words = "ends with entry 7, but the keys were used up to entry 8 .*; without one: something else"
    with pytest.raises(InterchangeError, match=words):
        verify_is_newest(found, 8, "file", otherwise="something else")
    foreign = json.loads(export(state))
    del foreign["metadata"]["record_number"]  # as other tools write it
    with pytest.raises(InterchangeError, match="ends with entry 0"):
        verify_is_newest(
            read_interchange(json.dumps(foreign).encode(), GENESIS, "file"), 1, "file", otherwise=""
        )


@pytest.mark.parametrize("is_lost", [False, True])
def test_a_record_goes_on_above_the_one_that_was_merged_into_it(state, tmp_path, is_lost):
    """So that an export from here is not older than one from there."""
    stamp = build_stamp(DOMAIN.network, NodeId("shard-2-0"), DOMAIN.shard)
    with open_data_dir(tmp_path, stamp) as data, Witness([tmp_path / "seen"]) as witness:
        if is_lost:
            create_record(data, state, witness, above=70)
        else:
            with SignerRecord(data, witness) as record:
                record.rewrite(above=70)
        with SignerRecord(data, witness) as record:
            assert record.number > 70
            assert witness.read() == record.number


def test_a_record_goes_on_above_the_greatest_number_that_a_file_may_have(state, tmp_path):
    found = read_interchange(export(state, record_number=MAX_RECORD_NUMBER), GENESIS, "file")
    stamp = build_stamp(DOMAIN.network, NodeId("shard-2-0"), DOMAIN.shard)
    with open_data_dir(tmp_path, stamp) as data, Witness([tmp_path / "seen"]) as witness:
        create_record(data, state, witness, above=found.metadata.record_number)
        with SignerRecord(data, witness) as record:
            record.append([record.state.record(ask(VoteKind.NOTAR, 7, A))])
            assert witness.read() == record.number > MAX_RECORD_NUMBER


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b'{"metadata": 3, "data": []}',
        b'{"metadata": {"interchange_format_version": "\xff"}}',
        b'{"else": ' + b"[" * 100_000,
    ],
    ids=range(8),
)
def test_garbage_is_named_as_such(data):
    with pytest.raises(InterchangeError, match="no EIP-3076"):
        read_interchange(data, GENESIS, "file")


def test_keys_of_others_are_passed_over(state):
    moved, merged = load(export(state), keys={4: KEYS[1]})
    assert [merge.validator for merge in merged] == [4]
    assert [entry.validator for entry in moved.entries()] == [4]


KINDS = st.sampled_from([VoteKind.PROPOSE, VoteKind.NOTAR, VoteKind.SKIP, VoteKind.FINAL])
REQUESTS = st.lists(st.tuples(KINDS, st.integers(1, 3), st.sampled_from([A, B])), max_size=12)


def sign_all(requests):
    """Sign what the rules allow, as two processes with one key and no knowledge of each other would."""
    state, votes = SignerState(), []
    for kind, slot, block_hash in requests:
        found = ask(kind, slot, ZERO_HASH if kind is VoteKind.SKIP else block_hash)
        if state.check(found):
            state.record(found)
            votes.append(Vote(found.kind, found.slot, found.block_hash, 0, b""))
    return state, votes


@given(REQUESTS, REQUESTS, st.booleans())
def test_after_an_import_nothing_can_be_signed_against_either_side(one, other, is_minimal):
    there, votes = sign_all(one)
    here, own = sign_all(other)
    load(export(there, is_minimal=is_minimal), here)
    for kind in VoteKind:
        for slot in range(1, 5):
            for block_hash in (A, B):
                wanted = ask(kind, slot, ZERO_HASH if kind is VoteKind.SKIP else block_hash)
                if here.check(wanted):
                    vote = Vote(wanted.kind, wanted.slot, wanted.block_hash, 0, b"")
                    assert not any(is_slashable(vote, given) for given in (*votes, *own))
