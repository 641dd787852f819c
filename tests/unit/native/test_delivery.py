"""Deliveries (X5, X7, X8, X11): which receipts a block takes, how each can end, and that every wei is accounted for."""

from typing import Any

import msgspec
import pytest
from eth_abi import decode as abi_decode
from hypothesis import given, settings
from hypothesis import strategies as st

from shardyard import _native
from shardyard.receipts import Receipt, ReceiptKind, compute_escrow, compute_link_summaries, decode_receipt
from tests.unit.native.shard import (
    ACCEPTER,
    BASE_FEE,
    BENEFICIARY,
    BURNER,
    GENESIS,
    GWEI,
    RECEIPT_PRICE,
    REFUND_TO,
    REMOTE_SENDER,
    REVERTER,
    STORER,
    Shard,
    encode_receipt,
    make_receipt,
    read_outcomes,
    word,
)

BLOCK = b"\2" * 32
NOBODY = b"\x73" * 20
GATEWAY = _native.GATEWAY


class Delivered:
    """One receipt delivered in a block of its own, with the supply identity checked."""

    def __init__(self, receipt: Receipt, shard: Shard | None = None, **overrides: Any) -> None:
        self.shard = shard or Shard()
        before = self.shard.supply(GENESIS)
        self.result = self.shard.extend(GENESIS, BLOCK, inbox=[encode_receipt(receipt)], **overrides)
        assert self.result.inbox_taken == 1
        (self.outcome,) = read_outcomes(self.result)
        self.replies = [decode_receipt(data) for data in self.result.outbox]
        self.burnt = int.from_bytes(self.result.burnt, "big")
        emitted = sum(compute_escrow(reply) for reply in self.replies)
        assert before + compute_escrow(receipt) == self.shard.supply(BLOCK) + emitted + self.burnt
        assert self.burnt == self.outcome.gas_used * min(receipt.gas_price, BASE_FEE) * (
            receipt.kind is not ReceiptKind.TRANSFER
        )

    def balance(self, address: bytes) -> int:
        return self.shard.balance(BLOCK, address)

    def claimable(self, owner: bytes) -> int:
        slot = _native.keccak256(word(2) + owner.rjust(32, b"\0"))
        return int.from_bytes(self.shard.core.storage(BLOCK, GATEWAY, slot), "big")


def test_an_accepted_call_keeps_the_value_and_answers_with_the_refund() -> None:
    receipt = make_receipt()
    delivered = Delivered(receipt)
    (reply,) = delivered.replies
    used = delivered.outcome.gas_used
    refund = (100_000 - used) * RECEIPT_PRICE
    assert delivered.balance(ACCEPTER) == 1000
    assert (
        delivered.balance(BENEFICIARY)
        == used * (RECEIPT_PRICE - BASE_FEE)
        == int.from_bytes(delivered.result.tips, "big")
    )
    expected = make_receipt(
        ReceiptKind.RESULT,
        src=0,
        dst=3,
        id=_native.keccak256(b"shardyard/reply/v1" + receipt.id),
        origin=(b"\x0b" * 32, b"\x0c" * 20, 5),
        parent_id=receipt.id,
        sender=ACCEPTER,
        target=REMOTE_SENDER,
        value=word(refund),
        gas_limit=50_000,
        payload=msgspec.msgpack.encode([True, word(refund), bytes.fromhex("2432ef26") + bytes(28)]),
    )
    assert reply == expected
    outcome = delivered.outcome
    assert (outcome.type, outcome.status, outcome.sender, outcome.to) == (0x7E, 1, GATEWAY, ACCEPTER)
    assert outcome.tx_hash == receipt.id
    assert delivered.result.transactions_root == _native.merkle_root([receipt.id])


def test_gas_is_for_execution_alone_and_refunds_are_capped_as_in_transactions() -> None:
    assert (
        Delivered(make_receipt()).outcome.gas_used == 22
    )  # nine instructions, one word of memory, nothing else
    clearer = b"\x64" * 20
    shard = Shard()
    code = "5f5f55" + "632432ef2660e01b5f5260205ff3"  # slot 0 := 0, then accept
    alloc = {"0x" + clearer.hex(): {"code": "0x" + code, "storage": {"0x0": "0x1"}}}
    shard.core.init_genesis(msgspec.json.encode(alloc))
    shard.core.set_base(GENESIS, 0)
    spent = 22 + 4 + 5_000
    assert Delivered(make_receipt(target=clearer), shard).outcome.gas_used == spent - spent // 5


def test_the_target_learns_id_sender_and_payload() -> None:
    # Returns its whole input, which makes the answer wrong: the input comes back in the bounce.
    echo = b"\x62" * 20
    shard = Shard()
    alloc = {"0x" + echo.hex(): {"code": "0x365f5f37365ffd"}}
    shard.core.init_genesis(msgspec.json.encode(alloc))
    shard.core.set_base(GENESIS, 0)
    (reply,) = Delivered(make_receipt(target=echo, payload=b"x" * 40), shard).replies
    _, _, data = msgspec.msgpack.decode(reply.payload)
    assert data[:4].hex() == "2432ef26"
    received_id, sender, payload = abi_decode(["bytes32", "bytes", "bytes"], data[4:])
    assert (received_id, payload) == (b"\x0a" * 32, b"x" * 40)
    assert sender == bytes.fromhex("0001000002") + (31340).to_bytes(2, "big") + b"\x14" + REMOTE_SENDER


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        (REVERTER, bytes.fromhex("deadbeef")),
        (BURNER, b"invalid opcode: INVALID"),
        (STORER, b"wrong answer"),
        (NOBODY, b"no code"),
    ],
    ids=["reverts", "burns all gas", "wrong answer", "no code"],
)
def test_a_failed_call_leaves_nothing_and_bounces_the_value(target: bytes, reason: bytes) -> None:
    delivered = Delivered(make_receipt(target=target))
    (reply,) = delivered.replies
    refund = (100_000 - delivered.outcome.gas_used) * RECEIPT_PRICE
    assert reply.kind is ReceiptKind.BOUNCE
    assert int.from_bytes(reply.value, "big") == 1000 + refund
    assert msgspec.msgpack.decode(reply.payload) == [False, word(refund), reason]
    assert delivered.outcome.status == 0
    assert delivered.balance(target) == delivered.balance(GATEWAY) == 0
    assert delivered.shard.core.storage(BLOCK, STORER, word(0)) == bytes(32)


def test_expiry_is_decided_by_the_beacon_height_alone() -> None:
    assert Delivered(make_receipt(deadline=10), beacon_height=10).outcome.status == 1
    late = Delivered(make_receipt(deadline=10), beacon_height=11)
    assert late.outcome.status == late.outcome.gas_used == 0
    assert msgspec.msgpack.decode(late.replies[0].payload)[2] == b"expired"


def test_a_transfer_credits_and_answers_nothing() -> None:
    delivered = Delivered(make_receipt(ReceiptKind.TRANSFER, target=REVERTER))
    assert delivered.balance(REVERTER) == 1000
    assert delivered.replies == []
    assert (delivered.outcome.status, delivered.outcome.gas_used) == (1, 21_000)


def test_a_reply_pays_its_value_to_the_sender_and_the_refund_to_whom_it_is_due() -> None:
    for kind in (ReceiptKind.RESULT, ReceiptKind.BOUNCE):
        delivered = Delivered(make_receipt(kind, target=ACCEPTER))
        used = delivered.outcome.gas_used
        assert delivered.balance(ACCEPTER) == 600
        assert delivered.balance(REFUND_TO) == 400 + (100_000 - used) * RECEIPT_PRICE
        assert delivered.replies == []
        assert delivered.outcome.status == 1


def test_a_reply_to_an_account_without_code_goes_to_the_refund_address() -> None:
    delivered = Delivered(make_receipt(ReceiptKind.BOUNCE, target=NOBODY))
    assert delivered.balance(REFUND_TO) == 1000 + 100_000 * RECEIPT_PRICE
    assert (delivered.outcome.status, delivered.outcome.gas_used) == (1, 0)


@pytest.mark.parametrize("target", [REVERTER, BURNER], ids=["reverts", "burns all gas"])
def test_a_reply_that_is_not_taken_becomes_claimable_and_never_bounces(target: bytes) -> None:
    delivered = Delivered(make_receipt(ReceiptKind.BOUNCE, target=target))
    assert delivered.replies == []
    assert delivered.outcome.status == 0
    assert delivered.claimable(REFUND_TO) == delivered.balance(GATEWAY) == 600
    assert delivered.balance(REFUND_TO) == 400 + (100_000 - delivered.outcome.gas_used) * RECEIPT_PRICE


@pytest.mark.parametrize(
    "payload",
    [b"", b"junk", msgspec.msgpack.encode([True, word(1001), b""])],
    ids=["none", "junk", "refund too big"],
)
def test_a_reply_nobody_can_read_is_claimable_whole(payload: bytes) -> None:
    delivered = Delivered(make_receipt(ReceiptKind.RESULT, payload=payload))
    assert delivered.claimable(REFUND_TO) == 1000 + 100_000 * RECEIPT_PRICE
    assert delivered.outcome.status == 0


@pytest.mark.parametrize(
    "kind", [ReceiptKind.DEPOSIT, ReceiptKind.EXIT, ReceiptKind.GOVERN, ReceiptKind.WITHDRAWAL]
)
def test_what_a_captured_shard_sends_cannot_halt_this_one(kind: ReceiptKind) -> None:
    delivered = Delivered(make_receipt(kind))
    assert delivered.claimable(REFUND_TO) == 1000 + 150_000 * RECEIPT_PRICE


def test_a_cheap_message_burns_its_whole_price_and_tips_nothing() -> None:
    delivered = Delivered(make_receipt(gas_price=BASE_FEE // 2))
    assert delivered.balance(BENEFICIARY) == 0


def test_the_inbox_is_taken_in_order_until_the_first_that_does_not_fit() -> None:
    shard = Shard()
    inbox = [
        encode_receipt(make_receipt(id=bytes([number]) * 32, gas_limit=gas))
        for number, gas in enumerate([100_000, 50_000, 70_000, 10_000])
    ]
    for room, taken in [(0, 0), (99_999, 0), (100_000, 1), (219_999, 2), (220_000, 3), (230_000, 4)]:
        assert shard.execute(GENESIS, inbox=inbox, inbox_gas=room).inbox_taken == taken
    transfers = [encode_receipt(make_receipt(ReceiptKind.TRANSFER, id=bytes([n]) * 32)) for n in range(3)]
    assert shard.execute(GENESIS, inbox=transfers, inbox_gas=62_999).inbox_taken == 2


def test_sequences_go_on_where_the_state_left_them() -> None:
    shard = Shard()
    inboxes = [
        [encode_receipt(make_receipt(id=bytes([block, n]) * 16, src=3 + n % 2)) for n in range(4)]
        for block in (1, 2)
    ]
    first = shard.extend(GENESIS, BLOCK, inbox=inboxes[0])
    second = shard.extend(BLOCK, b"\3" * 32, inbox=inboxes[1])
    again = shard.execute(BLOCK, inbox=inboxes[1])
    for result, seqs in ((first, (1, 1, 2, 2)), (second, (3, 3, 4, 4)), (again, (3, 3, 4, 4))):
        assert tuple(decode_receipt(data).seq for data in result.outbox) == seqs
    for dst in (3, 4):
        slot = _native.keccak256(word(3) + word(dst))
        assert shard.core.storage(b"\3" * 32, GATEWAY, slot) == word(4)


def test_the_links_of_a_block_are_those_the_kernel_computes() -> None:
    shard = Shard()
    inbox = [
        encode_receipt(make_receipt(id=bytes([n]) * 32, src=2 + n % 3, payload=b"p" * n)) for n in range(7)
    ]
    result = shard.execute(GENESIS, inbox=inbox)
    summaries = compute_link_summaries(result.outbox)
    assert result.links == msgspec.msgpack.encode(summaries)
    assert result.outbox_root == _native.merkle_root([msgspec.msgpack.encode(link) for link in summaries])
    assert [decode_receipt(data).dst for data in result.outbox] == [2, 3, 4, 2, 3, 4, 2]


def test_a_receipt_for_another_shard_or_not_canonical_is_refused() -> None:
    shard = Shard()
    for data in (
        encode_receipt(make_receipt(dst=1)),
        encode_receipt(make_receipt()) + b"\0",
        encode_receipt(make_receipt(value=word(2**256 - 1))),
        b"",
        b"\xdd\xff\xff\xff\xff",
    ):
        with pytest.raises(_native.CoreError):
            shard.execute(GENESIS, inbox=[data])


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(list(ReceiptKind)),
    target=st.sampled_from(
        [ACCEPTER, REVERTER, BURNER, STORER, NOBODY, GATEWAY, BENEFICIARY, bytes(19) + b"\4"]
    ),
    refund_to=st.sampled_from([REFUND_TO, GATEWAY, BENEFICIARY, ACCEPTER]),
    value=st.integers(0, 10**30),
    gas_limit=st.integers(0, 200_000),
    gas_price=st.integers(0, 5 * GWEI),
    payload=st.one_of(
        st.binary(max_size=64),
        st.tuples(st.booleans(), st.integers(0, 2000), st.binary(max_size=40)).map(
            lambda reply: msgspec.msgpack.encode([reply[0], word(reply[1]), reply[2]])
        ),
    ),
)
def test_no_delivery_creates_or_loses_value(kind: ReceiptKind, **fields: Any) -> None:
    fields["value"] = word(fields["value"])
    if kind is ReceiptKind.TRANSFER:
        fields |= {"gas_limit": 0, "gas_price": 0}
    Delivered(make_receipt(kind, **fields))
