"""Answered transactions: included once, or provably not executable, or the promise is broken."""

import json

import msgspec
import pytest

from node.audit.answered import Answered, AnsweredBook, read_answered
from node.audit.findings import Findings, Promise
from node.audit.flow import MessageFlow
from shardyard.codec import encode
from shardyard.errors import ConfigError
from tests.unit.node.test_audit_flow import build_crosslink, build_receipt, build_sent

HASHES = [bytes([number]) * 32 for number in range(1, 5)]
SENDER = "0x" + "aa" * 20


def build(nonce, shard=0):
    return Answered(shard=shard, hash="0x" + HASHES[nonce].hex(), sender=SENDER, nonce=nonce)


def judge(answered, blocks, next_nonce=0):
    findings = Findings()
    book = AnsweredBook(answered, findings)
    for hashes in blocks:
        book.on_block(0, b"".join(hashes), [])
    return book.finish(lambda *_: next_nonce, ()), findings.rows[Promise.ANSWERED]


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


MESSAGE = build_receipt(1)
SENDING = msgspec.structs.replace(build(0), message="0x" + MESSAGE.id.hex(), dst=1)


class Sending:
    """A transaction is in a block of shard 0 and sends a message to shard 1; tests say how far that gets."""

    def __init__(self):
        self.findings = Findings()
        self.flow = MessageFlow(2, self.findings)
        self.book = AnsweredBook([SENDING], self.findings)
        self.book.on_block(0, HASHES[0], [])

    def emit(self):
        self.flow.on_executed(0, 1, [], [encode(MESSAGE)])

    def carry(self):
        self.flow.on_crosslink(1, build_crosslink(0, 1, 1, [MESSAGE]))

    def deliver(self):
        taken = self.flow.inboxes[1].offer(0, 1, 100_000)
        self.flow.on_executed(1, 1, taken, [])
        self.book.on_block(1, b"", taken)

    def judge(self):
        in_flight = {(item.receipt.dst, item.receipt.id) for item in self.flow.iterate_in_flight()}
        return self.book.finish(lambda *_: 1, in_flight), self.findings.rows[Promise.ANSWERED]


@pytest.mark.parametrize(
    ("steps", "delivered", "in_flight"),
    [(["emit"], 0, 1), (["emit", "carry"], 0, 1), (["emit", "carry", "deliver"], 1, 0)],
)
def test_message_that_waits_where_the_logs_end_is_on_its_way(steps, delivered, in_flight):
    sending = Sending()
    for step in steps:
        getattr(sending, step)()
    summary, row = sending.judge()
    assert (summary.messages, summary.delivered, summary.in_flight) == (1, delivered, in_flight)
    assert row.held


def test_message_that_was_never_emitted_is_lost():
    summary, row = Sending().judge()
    assert (summary.delivered, summary.in_flight) == (0, 0)
    assert row.findings == [
        f"shard-0 transaction 0x{HASHES[0].hex()}: its message was delivered 0 times on shard 1, and is not on its way"
    ]


def test_message_that_was_counted_as_consumed_without_being_delivered_is_lost():
    sending = Sending()
    sending.emit()
    sending.carry()
    sending.flow.inboxes[1].take_escrow(1)  # a crosslink says that it was consumed
    assert not sending.judge()[1].held


def test_message_that_was_delivered_twice_is_found_even_if_it_waits_once_more():
    sending = Sending()
    sending.emit()
    sending.book.on_block(1, b"", [build_sent(MESSAGE)] * 2)
    assert "delivered 2 times on shard 1" in sending.judge()[1].findings[0]


def test_what_a_block_emits_that_was_not_executed_is_not_known():
    findings = Findings()
    book = AnsweredBook([SENDING, build(1)], findings)
    book.on_unexecuted(0, HASHES[0])
    summary = book.finish(lambda *_: 0, ())
    assert (summary.included, summary.missing, summary.in_flight) == (1, 1, 1)
    (finding,) = findings.rows[Promise.ANSWERED].findings
    assert finding == f"shard-0 transaction 0x{HASHES[1].hex()}: was answered and is in no final block"


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
