"""The mempool's journal: every answered transaction is there after a crash."""

import asyncio
import errno
import os
from itertools import accumulate

import pytest

from node.storage.journal import JournalFailedError, MempoolJournal
from shardyard.blocks import ShardBody
from shardyard.codec import encode

OWNER = b"o" * 32


def pack(transactions):
    ends = tuple(accumulate(map(len, transactions)))
    return encode(ShardBody(b"".join(transactions), ends))


def build_transactions(count, size=200):
    return [number.to_bytes(4, "big") * (size // 4) for number in range(count)]


async def test_answered_transactions_are_pending_after_reopening(tmp_path):
    path = tmp_path / "journal"
    with MempoolJournal(path, OWNER) as journal:
        await journal.append(pack(build_transactions(10)))
        await journal.append(pack(build_transactions(3)))
    with MempoolJournal(path, OWNER) as journal:
        assert journal.take_pending() == build_transactions(10) + build_transactions(3)
    with MempoolJournal(path, OWNER) as journal:
        assert journal.take_pending() == build_transactions(10) + build_transactions(3)


async def test_an_answered_transaction_is_in_the_file_before_append_returns(tmp_path):
    path = tmp_path / "journal"
    with MempoolJournal(path, OWNER) as journal:
        await journal.append(pack([b"secured"]))
        assert b"secured" in path.read_bytes()


async def test_calls_that_come_together_share_a_write(tmp_path, monkeypatch):
    with MempoolJournal(tmp_path / "journal", OWNER) as journal:
        writes = []
        write = os.write
        monkeypatch.setattr(os, "write", lambda *call: writes.append(call) or write(*call))
        await asyncio.gather(*(journal.append(pack([b"x" * 100])) for _ in range(100)))
        assert len(writes) <= 20


@pytest.mark.parametrize("cut", range(1, 300, 7))
async def test_a_torn_end_loses_only_the_batch_it_cut(tmp_path, cut):
    path = tmp_path / "journal"
    with MempoolJournal(path, OWNER) as journal:
        await journal.append(pack([b"a" * 100]))
        await journal.append(pack([b"b" * 300]))
    os.truncate(path, path.stat().st_size - cut)
    with MempoolJournal(path, OWNER) as journal:
        assert journal.take_pending() == [b"a" * 100]


async def test_what_stands_behind_damage_is_kept(tmp_path):
    path = tmp_path / "journal"
    with MempoolJournal(path, OWNER) as journal:
        for letter in b"abc":
            await journal.append(pack([bytes([letter]) * 100]))
    data = bytearray(path.read_bytes())
    data[data.index(b"b" * 100) + 50] ^= 1
    path.write_bytes(data)
    with MempoolJournal(path, OWNER) as journal:
        assert journal.take_pending() == [b"a" * 100, b"c" * 100]


async def test_the_journal_stays_small_when_transactions_leave(tmp_path):
    live = [b"still pending"]
    with MempoolJournal(tmp_path / "journal", OWNER, compact_above_bytes=10_000) as journal:
        journal.attach(lambda: [pack(live)])
        for _ in range(100):
            await journal.append(pack(build_transactions(10)))
            assert journal.size < 20_000
        await journal.append(pack([b"last"]))
    with MempoolJournal(tmp_path / "journal", OWNER) as journal:
        pending = journal.take_pending()
        assert b"still pending" in pending
        assert pending[-1] == b"last"


async def test_a_journal_does_not_grow_by_restarts(tmp_path):
    """What was read at a restart is no measure of what is pending: most of it was included before."""
    sizes = []
    for appends in (4, 3, 3, 3, 3):
        with MempoolJournal(tmp_path / "journal", OWNER, compact_above_bytes=10_000) as journal:
            journal.attach(lambda: [pack([b"still pending"])])
            assert journal.take_pending() or not sizes
            assert journal.take_pending() == []
            for _ in range(appends):
                await journal.append(pack(build_transactions(10)))
                sizes.append(journal.size)
    assert max(sizes) < 15_000


async def test_the_journal_of_another_network_is_put_aside(tmp_path):
    path = tmp_path / "journal"
    with MempoolJournal(path, OWNER) as journal:
        await journal.append(pack([b"theirs"]))
    with MempoolJournal(path, b"p" * 32) as journal:
        assert journal.take_pending() == []
    assert b"theirs" in (tmp_path / "journal.damaged").read_bytes()


@pytest.mark.parametrize(("call", "is_synced"), [("write", False), ("fdatasync", True)])
async def test_a_disk_that_fails_answers_nothing_any_more(tmp_path, monkeypatch, call, is_synced):
    with MempoolJournal(tmp_path / "journal", OWNER, is_synced=is_synced) as journal:

        def fail(*_):
            raise OSError(errno.ENOSPC, "no space")

        monkeypatch.setattr(os, call, fail)
        with pytest.raises(JournalFailedError):
            await journal.append(pack([b"x"]))
        monkeypatch.undo()
        with pytest.raises(JournalFailedError):
            await journal.append(pack([b"y"]))
