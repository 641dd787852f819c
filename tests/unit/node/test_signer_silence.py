"""What keeps a key silent while its node follows on: a lost or old record, somebody else with the key, a watch, a floor."""

import asyncio
import errno
import fcntl
import os
import shutil
import threading
from functools import partial

import pytest

from node.doppelganger import MAX_CHECKS, DoppelgangerWatch, is_recent
from node.signer import KeyInUseError, Signer, SignerFailedError, SignerRecordError
from node.storage import signer_record
from node.storage.data_dir import build_stamp, open_data_dir
from node.storage.key_locks import build_lock_name, get_lock_dir, read_holder
from node.storage.signer_record import SignerRecord
from shardyard import _native
from shardyard.blocks import FinalityProof
from shardyard.consensus.signer import BLOCKED, SignerState
from shardyard.consensus.votes import Certificate, Domain, Vote, VoteKind, compute_vote_message
from shardyard.effects import CertificateRecord, SignRequest, SnapshotRecord
from shardyard.errors import InvalidBlockError
from shardyard.ids import BEACON, ZERO_HASH, Address, Hash32, Height, NodeId, ShardId, Slot
from shardyard.keys import BlsCrypto
from shardyard.messages import Status, Votes
from shardyard.quorum import encode_bitmap
from shardyard.rejoins import Rejoin, verify_rejoins
from shardyard.validators import Validator, ValidatorSet

NETWORK = Hash32(b"n" * 32)
SHARD = ShardId(0)
DOMAIN = Domain(network=NETWORK, shard=SHARD, valset_root=Hash32(b"v" * 32))
STAMP = build_stamp(NETWORK, NodeId("shard-0-0"), SHARD)
SECRETS = {index: _native.bls_secret_key(bytes([index + 1]) * 32) for index in range(4)}
COMMITTEE = ValidatorSet(
    tuple(
        Validator(_native.bls_public_key(secret), _native.bls_prove_possession(secret), 1, Address(bytes(20)))
        for secret in SECRETS.values()
    )
)
OWN = {1: SECRETS[1]}
A, B = Hash32(b"a" * 32), Hash32(b"b" * 32)


def ask(kind, slot, block_hash=ZERO_HASH, validator=1):
    message = compute_vote_message(DOMAIN, kind, slot, block_hash)
    return SignRequest(kind, Slot(slot), Hash32(block_hash), validator, message)


def vote(kind, slot, block_hash=ZERO_HASH, validator=1, secret=None):
    message = compute_vote_message(DOMAIN, kind, slot, block_hash)
    (signature,) = _native.bls_sign_many([secret or SECRETS[validator]], message)
    return Vote(kind, Slot(slot), Hash32(block_hash), validator, signature)


def certify(kind, slot, block_hash, signers):
    return CertificateRecord(Certificate(kind, Slot(slot), block_hash, encode_bitmap(signers, 4), bytes(96)))


@pytest.fixture
def home(tmp_path):
    return tmp_path


@pytest.fixture
def start(home):
    """A signer as a process of the network in ``home`` starts it."""
    opened = []

    def build(data="data", *, follows=True, domain=DOMAIN, secrets=OWN):
        stamp = build_stamp(NETWORK, NodeId("shard-0-0"), domain.shard)
        directory = open_data_dir(home / data, stamp)
        opened.append(directory)
        signer = Signer(
            directory,
            domain,
            secrets,
            lock_dir=home / "locks",
            witness_dir=home / "keys" / "witness",
            follows_without_record=follows,
            ways_back="what there is",
        )
        opened.append(signer)
        return signer

    def end():
        while opened:
            opened.pop().close()

    build.end = end
    yield build
    end()


async def test_a_lost_record_stops_signing_and_nothing_else(start, home):
    assert len((await start().sign([ask(VoteKind.NOTAR, 1, A)])).votes) == 1
    start.end()
    (home / "data" / "signer.log").unlink()
    signer = start()
    assert "missing" in signer.reason
    assert (await signer.sign([ask(VoteKind.NOTAR, 2, A)])).votes == ()
    await signer.prune(5)
    assert signer.describe()["state"] == "following only"
    start.end()
    with pytest.raises(SignerRecordError, match="missing"):
        start(follows=False)


async def test_a_damaged_record_stops_signing_and_nothing_else(start, home):
    await start().sign([ask(VoteKind.NOTAR, 1, A)])
    start.end()
    path = home / "data" / "signer.log"
    image = bytearray(path.read_bytes())
    image[-1] ^= 1
    path.write_bytes(image)
    signer = start()
    assert "damaged at offset" in signer.reason
    assert signer.reason.endswith("; try: what there is")
    assert (await signer.sign([ask(VoteKind.SKIP, 9)])).votes == ()


async def test_an_old_copy_of_the_record_is_behind_its_witness(start, home):
    await start().sign([ask(VoteKind.NOTAR, 1, A)])
    start.end()
    path = home / "data" / "signer.log"
    copy = path.read_bytes()
    await start().sign([ask(VoteKind.FINAL, 1, A)])
    start.end()
    path.write_bytes(copy)
    signer = start()
    assert "old copy" in signer.reason
    assert (await signer.sign([ask(VoteKind.SKIP, 1)])).votes == ()


async def test_a_deleted_data_directory_is_a_lost_record_too(start, home):
    await start().sign([ask(VoteKind.NOTAR, 1, A)])
    start.end()
    (home / "data").rename(home / "gone")
    assert "old copy, or new" in start().reason


async def test_a_compacted_record_is_not_behind_its_witness(start):
    signer = start()
    for slot in range(1, 20):
        await signer.sign([ask(VoteKind.NOTAR, slot, A)])
    await signer.prune(15)
    signer._record.rewrite()
    await signer.sign([ask(VoteKind.NOTAR, 30, A)])
    start.end()
    signer = start()
    assert signer.reason == ""
    assert (await signer.sign([ask(VoteKind.NOTAR, 15, B)])).votes == ()


def read_log(signer, *records):
    check = signer.begin_cover_check()
    for record in records:
        check(record)


async def test_a_record_behind_the_chains_own_log_is_an_old_copy(start):
    signer = start()
    await signer.sign([ask(VoteKind.NOTAR, 5, A)])
    read_log(
        signer, certify(VoteKind.NOTAR, 5, A, (0, 1, 2)), certify(VoteKind.SKIP, 6, ZERO_HASH, (0, 2, 3))
    )
    assert signer.reason == ""
    read_log(signer, certify(VoteKind.SKIP, 6, ZERO_HASH, (0, 1, 2)))
    assert "old copy" in signer.reason
    assert (await signer.sign([ask(VoteKind.NOTAR, 9, A)])).votes == ()


async def test_a_certificate_with_a_vote_that_is_not_on_record_stops_the_key(start):
    signer = start()
    await signer.sign([ask(VoteKind.NOTAR, 5, A)])
    signer.take_records([certify(VoteKind.NOTAR, 5, A, (1, 2, 3)), certify(VoteKind.FINAL, 5, A, (0, 2, 3))])
    assert signer.stopped == {}
    signer.take_records([certify(VoteKind.FINAL, 5, A, (0, 1, 2))])
    assert "FINAL vote of slot 5" in signer.stopped[1]
    assert (await signer.sign([ask(VoteKind.NOTAR, 6, A)])).votes == ()
    assert signer.describe()["silent"] == 1


async def test_a_stopped_key_is_stopped_after_a_restart_too(start):
    signer = start()
    foreign = certify(VoteKind.NOTAR, 7, A, (0, 1, 2))
    await signer.sign([ask(VoteKind.NOTAR, 5, A)])
    signer.take_records([foreign])
    start.end()
    signer = start()
    read_log(signer, foreign)
    assert signer.reason == ""  # a lost record would lead to a Rejoin
    assert signer.build_rejoins() == ()
    assert (await signer.sign([ask(VoteKind.NOTAR, 99, A)])).votes == ()
    assert "another process was seen" in signer.describe()["reason"]


async def test_a_stop_that_cannot_be_written_ends_the_signer(start, monkeypatch):
    signer = start()

    def fail(_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fdatasync", fail)
    signer.take_records([certify(VoteKind.NOTAR, 7, A, (0, 1, 2))])
    signer._worker.shutdown(wait=True)
    monkeypatch.undo()
    with pytest.raises(SignerFailedError, match="must stop"):
        await signer.sign([ask(VoteKind.NOTAR, 99, A)])


async def test_a_batch_that_waited_behind_a_stop_that_fails_gets_no_signature(start, monkeypatch):
    signer = start(secrets=SECRETS)
    written = threading.Event()

    def fail(_):
        written.wait(10)
        monkeypatch.undo()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fdatasync", fail)
    signer.take_records([certify(VoteKind.NOTAR, 7, A, (1, 2, 3))])
    waiting = asyncio.ensure_future(signer.sign([ask(VoteKind.NOTAR, 9, A, validator=0)]))
    await asyncio.sleep(0)  # it finds the signer alive, and is handed over
    written.set()
    with pytest.raises(SignerFailedError, match="must stop"):
        await waiting


@pytest.mark.parametrize(
    "work",
    [(SignerState, "record"), (os, "fdatasync"), (_native, "bls_sign_many")],
    ids=["record", "sync", "sign"],
)
async def test_no_vote_of_a_key_leaves_after_its_stop_though_its_batch_was_taken(start, monkeypatch, work):
    """The thread found its request allowed, and records, writes or signs; votes of others are wanted all the same."""
    signer = start(secrets=SECRETS)
    real, is_taken, may_go_on = getattr(*work), threading.Event(), threading.Event()

    def wait_and_work(*arguments):
        is_taken.set()
        assert may_go_on.wait(10)
        return real(*arguments)

    monkeypatch.setattr(*work, wait_and_work)
    batch = [ask(VoteKind.NOTAR, 9, A, validator) for validator in (1, 0)]
    waiting = asyncio.ensure_future(signer.sign(batch))
    assert await asyncio.to_thread(is_taken.wait, 10)
    signer.stop_key(1, 7, "a certificate shows it")
    may_go_on.set()
    assert [found.validator for found in (await waiting).votes] == [0]
    assert signer.counters["refused"] == 1


async def test_the_proof_of_a_snapshot_tells_of_newer_votes_too(start):
    proof = FinalityProof(
        path=(),
        notarization=certify(VoteKind.NOTAR, 7, A, (0, 2, 3)).certificate,
        finalization=certify(VoteKind.FINAL, 7, A, (0, 1, 2)).certificate,
    )
    signer = start()
    read_log(signer, SnapshotRecord(None, proof, ()))
    assert "FINAL vote of slot 7" in signer.reason


async def test_what_is_behind_the_floor_is_no_evidence(start):
    signer = start()
    await signer.prune(10)
    signer.take_records([certify(VoteKind.FINAL, 10, A, (0, 1, 2))])
    assert signer.stopped == {}


# The watch


def watch(signer, height=7):
    return DoppelgangerWatch(signer, BlsCrypto(), DOMAIN, COMMITTEE, lambda: height)


async def test_a_vote_of_the_own_key_from_elsewhere_stops_it(start):
    signer = start()
    await signer.sign([ask(VoteKind.NOTAR, 5, A)])
    watcher = watch(signer)
    watcher.observe(SHARD, Votes((vote(VoteKind.NOTAR, 5, A), vote(VoteKind.SKIP, 5, validator=2))))
    assert signer.stopped == {}  # our own vote, sent back, and somebody else's
    watcher.observe(SHARD, Votes((vote(VoteKind.SKIP, 6, secret=SECRETS[2]),)))
    assert signer.stopped == {}  # forged
    watcher.observe(ShardId(1), Votes((vote(VoteKind.SKIP, 6),)))
    assert signer.stopped == {}  # another chain's topic
    watcher.observe(SHARD, Votes((vote(VoteKind.SKIP, 6),)))
    assert "a peer sent its SKIP vote of slot 6" in signer.stopped[1]


async def test_forged_votes_cost_no_more_than_a_bounded_number_of_pairings(start, monkeypatch):
    signer = start()
    watcher = watch(signer)
    calls = []
    monkeypatch.setattr(
        watcher._crypto, "verify_votes", lambda _, items: calls.append(items) or [False] * len(items)
    )
    for slot in range(1, 3 * MAX_CHECKS):
        watcher.observe(SHARD, Votes((vote(VoteKind.SKIP, slot, secret=SECRETS[0]),)))
    assert len(calls) == MAX_CHECKS


async def test_requests_wait_until_the_watch_is_over(start):
    signer = start()
    watch(signer).begin(0.05, is_needed=True)
    assert "watching" in signer.describe()["state"]
    task = asyncio.create_task(signer.sign([ask(VoteKind.NOTAR, 1, A)]))
    for _ in range(5):
        await asyncio.sleep(0)
    assert not task.done()
    assert len((await task).votes) == 1


async def test_no_height_that_peers_tell_ends_the_watch(start, caplog):
    """It may be a laggard's, or the last word of a peer that is gone; and our own moves while we catch up."""
    signer = start()
    heights = iter((7, 9))
    watcher = DoppelgangerWatch(signer, BlsCrypto(), DOMAIN, COMMITTEE, lambda: next(heights))
    caplog.set_level("INFO")
    watcher.begin(0.05, is_needed=True)
    for height in (6, 7, 8):
        watcher.observe(SHARD, Status(SHARD, Slot(height), Height(height), A))
    assert "watching" in signer.describe()["state"]
    assert len((await signer.sign([ask(VoteKind.NOTAR, 10, A)])).votes) == 1
    assert "validators [1] from height 7 to 9: heard none" in caplog.text


async def test_a_watch_that_heard_a_twin_ends_in_silence(start):
    signer = start()
    watcher = watch(signer)
    watcher.begin(0.05, is_needed=True)
    task = asyncio.create_task(signer.sign([ask(VoteKind.NOTAR, 6, A)]))
    watcher.observe(SHARD, Votes((vote(VoteKind.NOTAR, 6, B),)))
    assert (await task).votes == ()


async def test_only_a_record_that_was_just_written_needs_no_watch(start, home):
    path = home / "data" / "signer.log"
    assert not is_recent(path)
    signer = start()
    assert signer.is_unused
    await signer.sign([ask(VoteKind.NOTAR, 1, A)])
    assert not signer.is_unused
    now = path.stat().st_mtime
    assert is_recent(path, now + 1)
    assert not is_recent(path, now + 60)
    assert not is_recent(path, now - 3600)  # the clock was set back: nothing is known


@pytest.mark.parametrize("copy", [shutil.copytree, partial(shutil.copytree, copy_function=shutil.copyfile)])
async def test_a_copied_record_is_not_that_of_a_restart(start, home, copy):
    await start().sign([ask(VoteKind.NOTAR, 1, A)])
    start.end()
    assert is_recent(home / "data" / "signer.log")
    copy(home / "data", home / "copy")
    start("copy")
    assert not is_recent(home / "copy" / "signer.log")
    assert is_recent(home / "data" / "signer.log")


async def test_a_record_that_came_without_its_mark_is_not_that_of_a_restart(start, home):
    await start().sign([ask(VoteKind.NOTAR, 1, A)])
    start.end()
    (home / "data" / "signer.mark").unlink()
    start()
    assert not is_recent(home / "data" / "signer.log")


async def test_a_record_of_another_start_of_the_machine_is_not_that_of_a_restart(start, home, monkeypatch):
    await start().sign([ask(VoteKind.NOTAR, 1, A)])
    (home / "boot").write_text("another\n")
    monkeypatch.setattr(signer_record, "BOOT_ID_PATH", home / "boot")
    assert not is_recent(home / "data" / "signer.log")


async def test_a_compacted_record_is_marked_and_an_imported_one_only_when_something_was_signed(start, home):
    path = home / "data" / "signer.log"
    signer = start()
    await signer.sign([ask(VoteKind.NOTAR, 1, A)])
    signer._record.rewrite()  # as an import does
    assert not is_recent(path)
    signer._record._compact_above_bytes = 0
    await signer.sign([ask(VoteKind.NOTAR, 2, A)])
    assert is_recent(path)


# Locks


async def test_a_key_is_refused_to_a_second_process_with_the_path_of_its_lock(start, home):
    start()
    with pytest.raises(KeyInUseError) as caught:
        start("copy")
    path = home / "locks" / build_lock_name(DOMAIN, COMMITTEE.validators[1].public_key)
    assert str(path) in str(caught.value)
    assert str(home / "data") in str(caught.value)
    assert read_holder(home / "locks", DOMAIN, COMMITTEE.validators[1].public_key).startswith("process ")


@pytest.mark.parametrize("mode", [fcntl.LOCK_SH, fcntl.LOCK_EX])
async def test_whoever_looks_at_a_lock_for_a_moment_keeps_no_process_from_starting(start, home, mode):
    """``read_holder`` shares it, and a sweep takes it; both may come between any two steps of a start."""
    (home / "locks").mkdir()
    path = home / "locks" / build_lock_name(DOMAIN, COMMITTEE.validators[1].public_key)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    fcntl.flock(descriptor, mode)
    timer = threading.Timer(0.05, os.close, (descriptor,))
    timer.start()
    start()
    timer.join()
    assert read_holder(home / "locks", DOMAIN, COMMITTEE.validators[1].public_key).startswith("process ")


async def test_a_lock_ends_with_its_holder_and_leaves_nothing(start, home):
    start()
    start.end()
    assert list((home / "locks").iterdir()) == []
    assert read_holder(home / "locks", DOMAIN, COMMITTEE.validators[1].public_key) == ""
    start()


async def test_files_that_killed_processes_left_long_ago_are_swept_and_held_ones_are_not(start, home):
    start()
    (held,) = (home / "locks").iterdir()
    stale, fresh = home / "locks" / "stale.lock", home / "locks" / "fresh.lock"
    for path in (stale, fresh):
        path.touch()
    for path in (stale, held):
        os.utime(path, (0, 0))
    start("other", domain=Domain(NETWORK, ShardId(7), DOMAIN.valset_root))
    assert not stale.exists()
    assert fresh.exists()
    assert held.exists()
    with pytest.raises(KeyInUseError):
        start("copy")


def test_locks_are_where_no_environment_moves_them(monkeypatch, tmp_path):
    before = get_lock_dir()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SHARDYARD_HOME", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert get_lock_dir() == before


# Rejoin

BEACON_DOMAIN = Domain(network=NETWORK, shard=BEACON, valset_root=DOMAIN.valset_root)


async def test_a_final_rejoin_lets_all_keys_sign_above_its_slot(start, home):
    await start("beacon", domain=BEACON_DOMAIN).sign([ask_beacon(3)])
    start.end()
    (home / "beacon" / "signer.log").unlink()
    signer = start("beacon", domain=BEACON_DOMAIN)
    (rejoin,) = signer.build_rejoins()
    verify_rejoins(BlsCrypto(), BEACON_DOMAIN, COMMITTEE, [rejoin])
    await signer.on_final(8, [Rejoin(1, b"\x07" * 32, rejoin.signature)])  # of another life
    assert signer.reason
    await signer.on_final(9, [rejoin])
    assert signer.reason == ""
    assert (await signer.sign([ask_beacon(9)])).votes == ()
    assert len((await signer.sign([ask_beacon(10)])).votes) == 1
    start.end()
    signer = start("beacon", domain=BEACON_DOMAIN)  # and the record is whole again
    assert signer.reason == ""
    assert signer.build_rejoins() == ()
    assert (await signer.sign([ask_beacon(3)])).votes == ()


def ask_beacon(slot):
    message = compute_vote_message(BEACON_DOMAIN, VoteKind.NOTAR, slot, A)
    return SignRequest(VoteKind.NOTAR, Slot(slot), A, 1, message)


@pytest.fixture
async def lost(start, home):
    """A beacon signer whose record was lost."""
    await start("beacon", domain=BEACON_DOMAIN).sign([ask_beacon(3)])
    start.end()
    (home / "beacon" / "signer.log").unlink()
    return start("beacon", domain=BEACON_DOMAIN)


def beacon_vote(slot, secret=SECRETS[1]):
    message = compute_vote_message(BEACON_DOMAIN, VoteKind.NOTAR, slot, A)
    return Vote(VoteKind.NOTAR, Slot(slot), A, 1, _native.bls_sign_many([secret], message)[0])


def watch_beacon(signer):
    return DoppelgangerWatch(signer, BlsCrypto(), BEACON_DOMAIN, COMMITTEE, lambda: 7)


@pytest.mark.parametrize("by_certificate", [True, False])
async def test_a_twin_heard_before_the_rejoin_is_final_stops_the_key_then(lost, by_certificate):
    if by_certificate:
        lost.take_records(
            [certify(VoteKind.NOTAR, 10, A, (0, 1, 2)), certify(VoteKind.NOTAR, 4, A, (0, 1, 2))]
        )
    else:
        watch_beacon(lost).observe(BEACON, Votes((beacon_vote(10), beacon_vote(4))))
    assert lost.stopped == {}
    await lost.on_final(9, lost.build_rejoins())
    assert "vote of slot 10" in lost.stopped[1]
    assert (await lost.sign([ask_beacon(11)])).votes == ()


async def test_a_stopped_key_does_not_rejoin_when_its_record_turns_out_old(start, home):
    signer = start("beacon", domain=BEACON_DOMAIN)
    await signer.sign([ask_beacon(3)])
    signer.take_records([certify(VoteKind.NOTAR, 5, A, (0, 1, 2))])
    start.end()
    (witness,) = (home / "keys" / "witness").iterdir()
    witness.write_bytes((99).to_bytes(8, "big"))
    signer = start("beacon", domain=BEACON_DOMAIN)
    assert "old copy" in signer.reason
    await signer.on_final(9, signer.build_rejoins())
    assert signer.reason == ""
    assert (await signer.sign([ask_beacon(11)])).votes == ()


async def test_floors_outlive_a_stop_a_lost_record_and_its_rejoin(start, home):
    signer = start("beacon", domain=BEACON_DOMAIN)
    await signer.sign([ask_beacon(3)])
    signer.state.raise_floor(1, 500)
    signer.take_records([certify(VoteKind.NOTAR, 501, A, (0, 1, 2))])
    start.end()
    (witness,) = (home / "keys" / "witness").iterdir()
    witness.write_bytes((99).to_bytes(8, "big"))
    signer = start("beacon", domain=BEACON_DOMAIN)
    await signer.on_final(9, signer.build_rejoins())
    start.end()
    signer = start("beacon", domain=BEACON_DOMAIN)
    assert signer.reason == ""
    assert signer.state.list_floors() == ((1, 500), (1, BLOCKED))


async def test_old_votes_up_to_the_slot_of_the_rejoin_stop_nothing(lost):
    lost.take_records([certify(VoteKind.NOTAR, 9, A, (0, 1, 2))])
    await lost.on_final(9, lost.build_rejoins())
    assert lost.stopped == {}
    assert len((await lost.sign([ask_beacon(11)])).votes) == 1


async def test_what_is_heard_while_the_record_is_lost_costs_the_watch_nothing(lost):
    watcher = watch_beacon(lost)
    for slot in range(20, 21 + MAX_CHECKS):
        watcher.observe(BEACON, Votes((beacon_vote(slot, SECRETS[2]),)))
    await lost.on_final(9, lost.build_rejoins())
    watcher.observe(BEACON, Votes((beacon_vote(10),)))
    assert "NOTAR vote of slot 10" in lost.stopped[1]


async def test_a_record_that_begins_anew_is_watched_like_a_start(lost):
    watcher = watch_beacon(lost)
    watcher.begin(0.1, is_needed=True)
    assert (await lost.sign([ask_beacon(11)])).votes == ()  # lost: it says so at once
    await lost.on_final(9, lost.build_rejoins())
    assert "watching" in lost.describe()["state"]
    task = asyncio.create_task(lost.sign([ask_beacon(11)]))
    watcher.observe(BEACON, Votes((beacon_vote(12),)))
    assert (await task).votes == ()
    assert lost.describe()["state"] == "following only"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda good: [good, good], "each once"),
        (lambda good: [Rejoin(7, good.nonce, good.signature)], "expected one of 4"),
        (lambda good: [Rejoin(2, good.nonce, good.signature)], "does not verify"),
        (lambda good: [Rejoin(1, b"\x01" * 32, good.signature)], "does not verify"),
        (lambda good: [Rejoin(1, b"", good.signature)], "a nonce of 0"),
        (lambda good: [Rejoin(index, good.nonce, good.signature) for index in range(17)], "at most 16"),
    ],
)
async def test_rejoins_that_no_block_may_carry(start, home, change, words):
    await start("beacon", domain=BEACON_DOMAIN).sign([ask(VoteKind.NOTAR, 3, A)])
    start.end()
    (home / "beacon" / "signer.log").unlink()
    (good,) = start("beacon", domain=BEACON_DOMAIN).build_rejoins()
    with pytest.raises(InvalidBlockError, match=words):
        verify_rejoins(BlsCrypto(), BEACON_DOMAIN, COMMITTEE, change(good))


def test_a_record_of_an_earlier_version_is_read(home):
    """Frames once had no numbers; they count as they stand."""
    with open_data_dir(home / "data", STAMP) as directory, SignerRecord(directory) as record:
        assert record.number == 0
