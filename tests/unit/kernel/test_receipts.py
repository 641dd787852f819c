"""The arithmetic of receipts: what is in flight with one, what it takes of an inbox, in which order shards are visited."""

import msgspec
import pytest

from shardyard.codec import encode
from shardyard.crosslinks import compute_visit_order
from shardyard.errors import InvalidCrosslinkError, SupplyError
from shardyard.ids import ZERO_ADDRESS, ZERO_HASH
from shardyard.receipts import (
    MAX_DELIVERIES,
    TRANSFER_GAS,
    U256_MAX,
    Origin,
    Receipt,
    ReceiptKind,
    compute_delivery_gas,
    compute_escrow,
    compute_link_summaries,
    count_deliveries,
)


def build(kind=ReceiptKind.CALL, value=0, gas_limit=0, gas_price=0, reply_gas=0):
    return Receipt(
        version=1,
        kind=kind,
        src=0,
        dst=1,
        seq=1,
        id=ZERO_HASH,
        origin=Origin(ZERO_HASH, ZERO_ADDRESS, 0),
        parent_id=ZERO_HASH,
        sender=ZERO_ADDRESS,
        target=ZERO_ADDRESS,
        value=value.to_bytes(32, "big"),
        gas_limit=gas_limit,
        gas_price=gas_price,
        reply_gas=reply_gas,
        refund_to=ZERO_ADDRESS,
        deadline=0,
        payload=b"",
    )


def test_x2_value_and_the_gas_there_and_back_are_in_flight():
    assert compute_escrow(build(value=7, gas_limit=100, gas_price=3, reply_gas=20)) == 7 + (100 + 20) * 3
    assert compute_escrow(build(value=7, gas_limit=100, reply_gas=20)) == 7


@pytest.mark.parametrize(
    "receipt",
    [
        build(value=U256_MAX, gas_limit=1, gas_price=1),
        build(value=U256_MAX, reply_gas=1, gas_price=1),
        build(gas_limit=-2, gas_price=1),
    ],
)
def test_x2_what_leaves_256_bits_or_is_negative_is_refused(receipt):
    with pytest.raises(SupplyError):
        compute_escrow(receipt)


@pytest.mark.parametrize("seqs", [(1, 3), (1, 1), (2, 1), (1, 2, 4)])
def test_x1_sequences_of_a_link_are_dense(seqs):
    outbox = [encode(msgspec.structs.replace(build(), seq=seq)) for seq in seqs]
    with pytest.raises(InvalidCrosslinkError, match="got seq"):
        compute_link_summaries(outbox)


def test_x7_a_transfer_takes_what_an_ordinary_transfer_costs_and_a_call_what_it_may_use():
    assert compute_delivery_gas(build(ReceiptKind.TRANSFER)) == TRANSFER_GAS
    assert compute_delivery_gas(build(ReceiptKind.CALL, gas_limit=5)) == 5
    assert compute_delivery_gas(build(ReceiptKind.RESULT, gas_limit=0)) == 0


def test_x5_what_fits_must_be_taken_and_the_first_that_does_not_fit_ends_it():
    assert count_deliveries([40, 60, 1], 100) == 2
    assert count_deliveries([40, 61, 1], 100) == 1
    assert count_deliveries([101], 100) == 0
    assert count_deliveries([0] * (MAX_DELIVERIES + 1), 100) == MAX_DELIVERIES


def test_x5_the_visits_of_a_beacon_block_begin_one_shard_further_on_each_time():
    assert [compute_visit_order(height, 3) for height in (0, 1, 2, 3)] == [
        [0, 1, 2],
        [1, 2, 0],
        [2, 0, 1],
        [0, 1, 2],
    ]
