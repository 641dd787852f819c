"""Answered transactions: included once, or provably not executable, or the promise is broken."""

import json

import msgspec
import pytest

from node.audit.answered import Answered, AnsweredBook, read_answered
from node.audit.findings import Findings, Promise
from shardyard.errors import ConfigError

HASHES = [bytes([number]) * 32 for number in range(1, 5)]
SENDER = "0x" + "aa" * 20


def build(nonce, shard=0):
    return Answered(shard=shard, hash="0x" + HASHES[nonce].hex(), sender=SENDER, nonce=nonce)


def judge(answered, blocks, next_nonce=0):
    findings = Findings()
    book = AnsweredBook(answered, findings)
    for height, hashes in enumerate(blocks, start=1):
        book.on_block(0, height, b"".join(hashes), [])
    return book.finish(lambda *_: next_nonce), findings.rows[Promise.ANSWERED]


def test_included_once_is_held():
    summary, row = judge([build(0), build(1)], [[HASHES[0]], [HASHES[1]]], next_nonce=2)
    assert (summary.included, summary.missing, row.held) == (2, 0, True)


def test_included_twice_is_broken():
    assert not judge([build(0)], [[HASHES[0]], [HASHES[0]]], next_nonce=1)[1].held


def test_included_on_another_shard_does_not_count():
    assert not judge([build(0, shard=1)], [[HASHES[0]]])[1].held


def test_nonce_used_by_another_transaction_is_replaced():
    summary, row = judge([build(0)], [], next_nonce=1)
    assert (summary.replaced, row.held) == (1, True)


def test_a_sender_without_a_nonce_proves_nothing():
    summary, row = judge([msgspec.structs.replace(build(0), nonce=-1)], [], next_nonce=1)
    assert (summary.replaced, summary.missing, row.held) == (0, 1, False)


def test_nonce_behind_one_that_nobody_answered_is_blocked():
    summary, row = judge([build(0), build(2)], [[HASHES[0]]], next_nonce=1)
    assert (summary.included, summary.blocked, row.held) == (1, 1, True)


def test_nonce_behind_answered_ones_is_missing():
    summary, row = judge([build(0), build(1), build(2)], [[HASHES[0]]], next_nonce=1)
    assert (summary.missing, row.broken) == (2, 2)


def test_file_of_a_load_run_is_read(tmp_path):
    path = tmp_path / "answered.json"
    path.write_text(json.dumps({"version": 1, "transactions": [{"shard": 0, "hash": "0x" + "01" * 32}]}))
    assert read_answered(path, 2)[0].shard == 0


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"version": 2, "transactions": []}',
        '{"transactions": []}',
        '{"version": 1, "transactions": [{"shard": 0, "hash": "0x12"}]}',
        '{"version": 1, "transactions": [{"shard": 2, "hash": "0x' + "01" * 32 + '"}]}',
    ],
)
def test_file_of_another_shape_is_refused_with_a_way_out(tmp_path, text):
    path = tmp_path / "answered.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match="try:"):
        read_answered(path, 2)
