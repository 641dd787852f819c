"""X10 and X5: no block emits more than a crosslink can carry, whatever its inbox makes it run."""

import msgspec
import pytest
from eth_abi import encode as abi_encode

from shardyard import _native
from shardyard.preset import PRESETS
from shardyard.receipts import MAX_DELIVERIES, ReceiptKind, decode_receipt
from tests.unit.native import shard as shard_module
from tests.unit.native.shard import GENESIS, Shard, encode_receipt, make_receipt, read_outcomes, sign

OUTBOX_TOPIC = _native.keccak256(
    b"Outbox(bytes32,uint8,uint32,address,address,uint256,uint64,uint64,uint64,address,uint64,bytes)"
)
RELAY = b"\x5a" * 20
# LOG2(topic, first word of the input) over the rest of the input: emits whatever receipt it is told to.
EMITTER = bytes.fromhex("365f5f37" + "5f51" + "7f" + OUTBOX_TOPIC.hex() + "60203603" + "6020" + "a2" + "00")


def build_emission(payload: bytes) -> bytes:
    types = (
        "uint8",
        "uint32",
        "address",
        "address",
        "uint256",
        "uint64",
        "uint64",
        "uint64",
        "address",
        "uint64",
        "bytes",
    )
    address = "0x" + "11" * 20
    values = (ReceiptKind.CALL, 5, address, address, 0, 0, 0, 0, address, 0, payload)
    return b"\x77" * 32 + abi_encode(types, values)


def build_relay(call: bytes) -> bytes:
    """Return code that calls the gateway with ``call`` and then answers as a receiver of messages must."""
    size = f"62{len(call):06x}"
    forward = f"5f5f{size}5f5f73{_native.GATEWAY.hex()}5af150"
    answer = "632432ef2660e01b5f5260205ff3"
    copy_bytes = 8
    data_at = copy_bytes + len(bytes.fromhex(forward + answer))
    copy = f"{size}60{data_at:02x}5f39"
    assert len(bytes.fromhex(copy)) == copy_bytes
    return bytes.fromhex(copy + forward + answer) + call


@pytest.fixture
def shard(monkeypatch: pytest.MonkeyPatch) -> Shard:
    monkeypatch.setitem(shard_module.CODE, _native.GATEWAY, EMITTER)
    monkeypatch.setitem(shard_module.CODE, RELAY, build_relay(build_emission(b"p" * 4096)))
    return Shard()


def make_inbox(count: int) -> list[bytes]:
    """Return a call of the relay and behind it ``count - 1`` calls that ask for no gas."""
    first = make_receipt(target=RELAY, gas_limit=2_000_000)
    return [encode_receipt(first)] + [
        encode_receipt(make_receipt(id=n.to_bytes(32, "big"), seq=n, gas_limit=0, value=bytes(32)))
        for n in range(2, count + 1)
    ]


def test_the_presets_and_the_executor_name_the_same_limit() -> None:
    assert {preset.max_bundle_bytes for preset in PRESETS.values()} == {_native.MAX_OUTBOX_BYTES}
    assert MAX_DELIVERIES == _native.MAX_DELIVERIES


def test_a_delivery_that_sends_on_succeeds_while_there_is_room(shard: Shard) -> None:
    result = shard.execute(GENESIS, inbox=make_inbox(1))
    assert [decode_receipt(data).kind for data in result.outbox] == [ReceiptKind.CALL, ReceiptKind.RESULT]


def test_a_delivery_bounces_when_its_messages_would_leave_no_room_for_replies(shard: Shard) -> None:
    result = shard.execute(GENESIS, inbox=make_inbox(MAX_DELIVERIES))
    assert result.inbox_taken == MAX_DELIVERIES
    reply = decode_receipt(result.outbox[0])
    assert reply.kind is ReceiptKind.BOUNCE
    assert msgspec.msgpack.decode(reply.payload)[2] == b"outbox full"
    assert sum(map(len, result.outbox)) <= _native.MAX_OUTBOX_BYTES
    assert (
        shard.execute(GENESIS, inbox=make_inbox(MAX_DELIVERIES), mode="validate").state_root
        == result.state_root
    )


def test_receipts_that_ask_for_no_gas_are_taken_up_to_a_count(shard: Shard) -> None:
    assert shard.execute(GENESIS, inbox=make_inbox(MAX_DELIVERIES + 5)).inbox_taken == MAX_DELIVERIES


def test_the_longest_reply_fits_the_room_that_is_kept_for_it(shard: Shard) -> None:
    huge = make_receipt(
        target=RELAY,
        gas_limit=2**32,
        gas_price=2**62,
        reply_gas=2**63,
        seq=2**60,
        origin=(b"\x0b" * 32, b"\x0c" * 20, 2**30),
    )
    result = shard.execute(GENESIS, inbox=[encode_receipt(huge)], inbox_gas=2**40)
    assert result.inbox_taken == 1
    assert len(result.outbox[-1]) + 512 < 1024


def test_a_transaction_that_finds_the_outbox_full_waits_for_the_next_block(shard: Shard) -> None:
    inbox = make_inbox(MAX_DELIVERIES)
    transaction = sign(0, 0, _native.GATEWAY, data=build_emission(b"q" * 8192), gas=3_000_000)
    full = shard.execute(GENESIS, [transaction] * 1, inbox)
    sent = sum(map(len, full.outbox))
    filler = [
        sign(1, nonce, _native.GATEWAY, data=build_emission(b"q" * 16_000), gas=3_000_000)
        for nonce in range((_native.MAX_OUTBOX_BYTES - sent) // 16_000 + 2)
    ]
    env = {"gas_limit": 3_000_000_000}
    result = shard.execute(GENESIS, filler, inbox, **env)
    assert result.skipped
    assert {reason for _, reason in result.skipped if "nonce" not in reason} == {"outbox limit reached"}
    assert sum(map(len, result.outbox)) <= _native.MAX_OUTBOX_BYTES
    with pytest.raises(_native.InvalidBlock, match="outbox limit reached"):
        shard.execute(GENESIS, filler, inbox, "validate", **env)
    assert len(read_outcomes(result)) == MAX_DELIVERIES + len(filler) - len(result.skipped)
