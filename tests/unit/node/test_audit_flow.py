"""Messages derived anew: every way of losing, doubling, reordering or inventing one is found."""

import msgspec
import pytest

from node.audit.findings import Findings, Promise
from node.audit.flow import MessageFlow, Sent
from shardyard.codec import encode
from shardyard.crosslinks import Crosslink
from shardyard.ids import ZERO_HASH
from shardyard.receipts import (
    Origin,
    Receipt,
    ReceiptKind,
    compute_delivery_gas,
    compute_escrow,
    summarise_links,
)

INBOX_GAS = 100_000


def build_receipt(seq, src=0, dst=1, **changes):
    receipt = Receipt(
        version=1,
        kind=ReceiptKind.TRANSFER,
        src=src,
        dst=dst,
        seq=seq,
        id=bytes([src, dst, seq]) + bytes(29),
        origin=Origin(bytes(32), bytes(20), 0),
        parent_id=ZERO_HASH,
        sender=bytes(20),
        target=bytes(20),
        value=(1000 + seq).to_bytes(32, "big"),
        gas_limit=0,
        gas_price=0,
        reply_gas=0,
        refund_to=bytes(20),
        deadline=0,
        payload=b"",
    )
    return msgspec.structs.replace(receipt, **changes)


def build_sent(receipt, beacon_height=1):
    return Sent(
        encode(receipt), receipt, compute_escrow(receipt), compute_delivery_gas(receipt), beacon_height
    )


def build_crosslink(shard, first, last, receipts):
    return Crosslink(
        shard=shard,
        epoch=0,
        parent=ZERO_HASH,
        first_height=first,
        last_height=last,
        head_hash=ZERO_HASH,
        state_root=ZERO_HASH,
        links=summarise_links((encode(receipt), receipt) for receipt in receipts),
        inbox_position=0,
        burnt=bytes(32),
        congestion=0,
        base_fee=7,
    )


@pytest.fixture
def findings():
    return Findings()


@pytest.fixture
def flow(findings):
    return MessageFlow(3, findings)


def get_broken(findings):
    return {promise for promise, row in findings.rows.items() if row.broken}


def emit(flow, receipts, height=1, shard=0):
    flow.on_executed(shard, height, [], [encode(receipt) for receipt in receipts])


def test_message_goes_from_outbox_through_crosslink_into_inbox(flow, findings):
    receipts = [build_receipt(1), build_receipt(1, dst=2), build_receipt(2)]
    emit(flow, receipts)
    assert flow.on_crosslink(4, build_crosslink(0, 1, 1, receipts)) == 1001 + 1001 + 1002
    assert [item.receipt.seq for item in flow.inboxes[1].offer(0, 4, INBOX_GAS)] == [1, 2]
    assert [item.receipt.dst for item in flow.inboxes[2].offer(0, 4, INBOX_GAS)] == [2]
    assert get_broken(findings) == set()


def test_block_sees_only_what_its_beacon_reference_has(flow):
    for height, receipt in enumerate([build_receipt(1), build_receipt(2)], start=1):
        emit(flow, [receipt], height)
        flow.on_crosslink(height + 5, build_crosslink(0, height, height, [receipt]))
    assert len(flow.inboxes[1].offer(0, 5, INBOX_GAS)) == 0
    assert len(flow.inboxes[1].offer(0, 6, INBOX_GAS)) == 1
    assert len(flow.inboxes[1].offer(0, 7, INBOX_GAS)) == 2


def test_block_takes_what_fits_its_gas_and_stops_at_the_first_that_does_not(flow):
    receipts = [build_receipt(seq) for seq in range(1, 8)]
    emit(flow, receipts)
    flow.on_crosslink(1, build_crosslink(0, 1, 1, receipts))
    assert len(flow.inboxes[1].offer(0, 1, INBOX_GAS)) == 4  # 21,000 each
    assert [item.receipt.seq for item in flow.inboxes[1].offer(4, 1, INBOX_GAS)] == [5, 6, 7]


def test_links_that_are_not_what_blocks_emit_are_found(flow, findings):
    emit(flow, [build_receipt(1)])
    flow.on_crosslink(1, build_crosslink(0, 1, 1, [build_receipt(1, value=bytes(31) + b"\x09")]))
    assert get_broken(findings) == {Promise.CROSSLINKS}


def test_message_delivered_twice_is_found(flow, findings):
    item = build_sent(build_receipt(1))
    flow.on_executed(1, 1, [item], [])
    flow.on_executed(1, 2, [item], [])
    assert get_broken(findings) == {Promise.EXACTLY_ONCE}


def test_message_for_another_shard_is_found(flow, findings):
    flow.on_executed(2, 1, [build_sent(build_receipt(1))], [])
    assert get_broken(findings) == {Promise.EXACTLY_ONCE}


def test_message_left_out_is_found(flow, findings):
    flow.on_executed(1, 1, [build_sent(build_receipt(1)), build_sent(build_receipt(3))], [])
    assert get_broken(findings) == {Promise.ORDER}


def test_gap_in_what_a_shard_emits_is_found(flow, findings):
    emit(flow, [build_receipt(1), build_receipt(3)])
    assert get_broken(findings) == {Promise.ORDER}


def test_reply_without_its_message_is_found(flow, findings):
    reply = build_receipt(1, src=1, dst=0, kind=ReceiptKind.RESULT, parent_id=b"\x07" * 32)
    flow.on_executed(1, 1, [], [encode(reply)])
    assert get_broken(findings) == {Promise.ORDER}


def test_reply_in_the_block_of_its_message_is_in_order(flow, findings):
    message = build_receipt(1)
    reply = build_receipt(1, src=1, dst=0, kind=ReceiptKind.RESULT, parent_id=message.id)
    flow.on_executed(1, 1, [build_sent(message)], [encode(reply)])
    assert get_broken(findings) == set()


def test_wei_in_flight_are_those_emitted_and_not_consumed(flow):
    receipts = [build_receipt(1), build_receipt(2)]
    emit(flow, receipts)
    assert flow.sum_in_flight() == 2003  # no crosslink has them yet
    flow.on_crosslink(1, build_crosslink(0, 1, 1, receipts))
    assert flow.sum_in_flight() == 2003
    flow.on_executed(1, 1, flow.inboxes[1].offer(0, 1, INBOX_GAS)[:1], [])
    assert (flow.sum_in_flight(), flow.count_in_flight()) == (1002, 1)
    assert flow.inboxes[1].take_escrow(1) == 1001
    assert flow.inboxes[1].get_waiting_escrow(1) == 1002
