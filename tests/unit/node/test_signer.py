"""The signer: what is signed is on record first, and without its record it signs nothing."""

import asyncio
import errno
import os

import pytest

import node.signer as module
from node.signer import KeyInUseError, Signer, SignerFailedError, SignerRecordError
from node.storage.data_dir import build_stamp, open_data_dir
from node.storage.frames import HEADER_BYTES
from shardyard import _native
from shardyard.consensus.votes import Domain, VoteKind, compute_vote_message
from shardyard.effects import SignRequest
from shardyard.ids import ZERO_HASH, Hash32, NodeId, ShardId, Slot

NETWORK = Hash32(b"n" * 32)
DOMAIN = Domain(network=NETWORK, shard=ShardId(0), valset_root=Hash32(b"v" * 32))
STAMP = build_stamp(NETWORK, NodeId("shard-0-0"), ShardId(0))
SECRETS = {index: _native.bls_secret_key(bytes([index + 1]) * 32) for index in range(4)}
A, B = Hash32(b"a" * 32), Hash32(b"b" * 32)


@pytest.fixture
def directory(tmp_path):
    with open_data_dir(tmp_path / "data", STAMP) as opened:
        yield opened


@pytest.fixture
def open_signer(directory, tmp_path):
    def build(**options):
        return Signer(directory, DOMAIN, SECRETS, lock_dir=tmp_path / "locks", **options)

    return build


def ask(kind, slot, block_hash=ZERO_HASH, validator=0):
    message = compute_vote_message(DOMAIN, kind, slot, block_hash)
    return SignRequest(
        kind=kind, slot=Slot(slot), block_hash=Hash32(block_hash), validator=validator, message=message
    )


async def test_allowed_votes_come_back_signed(open_signer):
    with open_signer() as signer:
        signed = await signer.sign([ask(VoteKind.NOTAR, 1, A, validator) for validator in range(4)])
        assert [vote.validator for vote in signed.votes] == [0, 1, 2, 3]
        keys = _native.BlsKeySet(
            [_native.bls_public_key(secret) for secret in SECRETS.values()],
            [_native.bls_prove_possession(secret) for secret in SECRETS.values()],
        )
        message = compute_vote_message(DOMAIN, VoteKind.NOTAR, 1, A)
        assert (
            keys.verify_votes([(vote.validator, message, vote.signature) for vote in signed.votes])
            == [True] * 4
        )


async def test_a_refused_vote_is_missing_and_the_others_are_not(open_signer):
    with open_signer() as signer:
        await signer.sign([ask(VoteKind.NOTAR, 1, A)])
        signed = await signer.sign([ask(VoteKind.NOTAR, 1, B), ask(VoteKind.NOTAR, 1, B, validator=1)])
        assert [vote.validator for vote in signed.votes] == [1]
        assert signer.counters["refused"] == 1


async def test_conflicting_requests_in_one_batch_give_one_signature(open_signer):
    with open_signer() as signer:
        signed = await signer.sign([ask(VoteKind.NOTAR, 1, A), ask(VoteKind.NOTAR, 1, B)])
        assert [vote.block_hash for vote in signed.votes] == [A]


async def test_what_was_signed_before_a_restart_still_counts(open_signer):
    with open_signer() as signer:
        before = await signer.sign([ask(VoteKind.NOTAR, 1, A), ask(VoteKind.SKIP, 2)])
    with open_signer() as signer:
        again = await signer.sign([ask(VoteKind.NOTAR, 1, A), ask(VoteKind.SKIP, 2)])
        assert again == before
        refused = await signer.sign([ask(VoteKind.NOTAR, 1, B), ask(VoteKind.FINAL, 2, A)])
        assert refused.votes == ()


async def test_the_record_is_on_disk_before_anything_is_signed(open_signer, monkeypatch):
    steps = []
    sync, sign = os.fdatasync, _native.bls_sign_many
    monkeypatch.setattr(os, "fdatasync", lambda descriptor: (steps.append("sync"), sync(descriptor)))

    class Native:
        @staticmethod
        def bls_sign_many(secrets, message):
            steps.append("sign")
            return sign(secrets, message)

    with open_signer() as signer:
        monkeypatch.setattr(module, "_native", Native)
        await signer.sign([ask(VoteKind.NOTAR, 1, A, validator) for validator in range(4)])
        assert steps == ["sync", "sign"]
        await signer.sign([ask(VoteKind.NOTAR, 1, A, validator) for validator in range(4)])
        assert steps == ["sync", "sign", "sign"]


async def test_requests_that_come_together_share_a_sync(open_signer, monkeypatch):
    syncs = []
    real = os.fdatasync
    with open_signer() as signer:
        monkeypatch.setattr(os, "fdatasync", lambda descriptor: (syncs.append(1), real(descriptor)))
        await asyncio.gather(*(signer.sign([ask(VoteKind.NOTAR, slot, A)]) for slot in range(1, 50)))
        assert len(syncs) <= 2


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
async def test_a_disk_that_fails_ends_the_signer(open_signer, monkeypatch, number):
    with open_signer() as signer:

        def fail(_):
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(os, "fdatasync", fail)
        with pytest.raises(SignerFailedError):
            await signer.sign([ask(VoteKind.NOTAR, 1, A)])
        monkeypatch.undo()
        with pytest.raises(SignerFailedError):
            await signer.sign([ask(VoteKind.NOTAR, 2, A)])


async def test_a_missing_record_is_refused(open_signer, directory):
    with open_signer() as signer:
        await signer.sign([ask(VoteKind.NOTAR, 1, A)])
    directory.signer_path.unlink()
    with pytest.raises(SignerRecordError, match="missing"):
        open_signer()


async def test_an_emptied_record_is_refused(open_signer, directory):
    with open_signer() as signer:
        await signer.sign([ask(VoteKind.NOTAR, 1, A)])
    os.truncate(directory.signer_path, 0)
    with pytest.raises(SignerRecordError):
        open_signer()


async def test_a_bit_flipped_anywhere_in_the_record_is_refused(open_signer, directory):
    with open_signer() as signer:
        for slot in (1, 2, 3):
            await signer.sign([ask(VoteKind.NOTAR, slot, A)])
    path = directory.signer_path
    image = path.read_bytes()
    for position in range(len(image)):
        broken = bytearray(image)
        broken[position] ^= 1 << position % 8
        path.write_bytes(broken)
        with pytest.raises(SignerRecordError):
            open_signer()


async def test_a_record_torn_at_any_byte_remembers_every_whole_batch(open_signer, directory):
    ends = [HEADER_BYTES]
    with open_signer() as signer:
        for slot in range(1, 5):
            await signer.sign([ask(VoteKind.NOTAR, slot, A)])
            ends.append(directory.signer_path.stat().st_size)
    image = directory.signer_path.read_bytes()
    for size in range(HEADER_BYTES, len(image)):
        directory.signer_path.write_bytes(image[:size])
        whole = sum(end <= size for end in ends) - 1
        with open_signer() as signer:
            signed = await signer.sign([ask(VoteKind.NOTAR, slot, B) for slot in range(1, whole + 1)])
            assert signed.votes == ()
            assert len(signer._state) == whole


async def test_a_pruned_and_compacted_record_refuses_what_it_forgot(open_signer, directory):
    with open_signer(compact_above_bytes=5_000) as signer:
        for slot in range(1, 200):
            await signer.sign([ask(VoteKind.NOTAR, slot, A, validator) for validator in range(4)])
            await signer.prune(slot - 3)
        assert directory.signer_path.stat().st_size < 20_000
        floor = signer.floor
    with open_signer() as signer:
        assert signer.floor <= floor
        assert (await signer.sign([ask(VoteKind.NOTAR, slot, B) for slot in range(1, 200)])).votes == ()
        assert len((await signer.sign([ask(VoteKind.NOTAR, 200, B)])).votes) == 1


async def test_a_message_that_is_not_the_requests_is_refused(open_signer):
    with open_signer() as signer:
        lie = SignRequest(
            kind=VoteKind.NOTAR,
            slot=Slot(1),
            block_hash=A,
            validator=0,
            message=compute_vote_message(DOMAIN, VoteKind.NOTAR, 1, B),
        )
        assert (await signer.sign([lie])).votes == ()


async def test_a_strangers_position_is_refused(open_signer):
    with open_signer() as signer:
        assert (await signer.sign([ask(VoteKind.NOTAR, 1, A, validator=7)])).votes == ()


async def test_one_key_serves_one_process_per_chain(open_signer, tmp_path):
    other = Domain(network=NETWORK, shard=ShardId(1), valset_root=DOMAIN.valset_root)
    stamp = build_stamp(NETWORK, NodeId("shard-1-0"), ShardId(1))
    with open_signer():
        with pytest.raises(KeyInUseError):
            open_signer()
        with (
            open_data_dir(tmp_path / "other", stamp) as directory,
            Signer(directory, other, SECRETS, lock_dir=tmp_path / "locks"),
        ):
            pass
    with open_signer():
        pass
