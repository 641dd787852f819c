"""The gateway: what it accepts, what it logs, what it costs, and whose storage it touches."""

import pytest
from eth_abi import decode, encode

from node.artifacts import load_artifact
from node.dev_accounts import DEV_ACCOUNTS
from node.genesis_alloc import Alloc, build_alloc
from shardyard._native import keccak256
from shardyard.ids import GATEWAY, ZERO_HASH
from shardyard.receipts import ReceiptKind, compute_escrow
from tests.unit.contracts.chain import (
    SHARD_COUNT,
    Chain,
    decode_reason,
    encode_call,
    encode_interop,
    mapping_slot,
    selector,
)

SENDER = bytes(DEV_ACCOUNTS[0].address)
TARGET = b"\xcc" * 20
RECIPIENT = encode_interop(31338, TARGET)
SEND = "sendMessage(bytes,bytes,bytes[])"
GWEI = 10**9
DEFAULT_COST = 300_000 * GWEI
OUTBOX = "Outbox(bytes32,uint8,uint32,address,address,uint256,uint64,uint64,uint64,address,uint64,bytes)"
MESSAGE_SENT = "MessageSent(bytes32,bytes,bytes,bytes,uint256,bytes[])"
RECEIPT_GAS = 40_000


def attribute(name: str, value: int | bytes) -> bytes:
    kind = "address" if name == "refundTo" else "uint256"
    word = value.rjust(32, b"\0") if isinstance(value, bytes) else value.to_bytes(32, "big")
    return selector(f"{name}({kind})") + word


def encode_send(
    recipient: bytes = RECIPIENT, payload: bytes = b"", attributes: tuple[bytes, ...] = ()
) -> bytes:
    return selector(SEND) + encode(["bytes", "bytes", "bytes[]"], [recipient, payload, attributes])


def refusal(chain: Chain, data: bytes, value: int = DEFAULT_COST, gas: int = 5_000_000) -> str:
    result = chain.call(GATEWAY, data, value=value, gas=gas)
    assert result.status == "revert"
    return decode_reason(result.output)


def gateway_with(storage: dict[bytes, int], balance: int = 0) -> Alloc:
    """Return a gateway whose storage the executor has written."""
    name = "0x" + GATEWAY.hex()
    entry = build_alloc(shard_count=SHARD_COUNT, balances={})[name]
    words = {f"0x{slot.hex()}": f"0x{value:064x}" for slot, value in storage.items()}
    return {name: {**entry, "balance": hex(balance), "storage": {**entry["storage"], **words}}}


def test_names_of_functions_and_events_are_the_protocols() -> None:
    events = {
        f"{item['name']}({','.join(entry['type'] for entry in item['inputs'])})"
        for item in load_artifact("gateway").abi
        if item["type"] == "event"
    }
    assert {OUTBOX, MESSAGE_SENT} <= events
    assert keccak256(MESSAGE_SENT.encode()).hex().startswith("7446eaa0a0dda806")  # ERC-7786's topic
    assert selector("receiveMessage(bytes32,bytes,bytes)").hex() == "2432ef26"


def test_storage_slots_are_those_the_executor_writes() -> None:
    assert load_artifact("gateway").storage == {
        "nonces": 0,
        "base_fees": 1,
        "claimable": 2,
        "last_seq": 3,
        "shard_count": 4,
    }


def test_send_without_attributes_becomes_a_receipt_with_the_defaults(chain: Chain) -> None:
    block = chain.transact(GATEWAY, encode_send(payload=b"hello"), value=DEFAULT_COST + 7)
    (receipt,) = block.receipts
    assert receipt.kind == ReceiptKind.CALL
    assert (receipt.src, receipt.dst, receipt.seq) == (0, 1, 1)
    assert (receipt.sender, receipt.target) == (SENDER, TARGET)
    assert int.from_bytes(receipt.value, "big") == 7
    assert (receipt.gas_limit, receipt.gas_price, receipt.reply_gas) == (200_000, GWEI, 100_000)
    assert (receipt.refund_to, receipt.deadline, receipt.payload) == (SENDER, 0, b"hello")
    assert (receipt.origin.initiator, receipt.origin.depth, receipt.parent_id) == (SENDER, 0, ZERO_HASH)


def test_attributes_set_every_term(chain: Chain) -> None:
    attributes = (
        attribute("gasLimit", 50_000),
        attribute("gasPrice", 3 * GWEI),
        attribute("replyGas", 60_000),
        attribute("refundTo", TARGET),
        attribute("deadline", 99),
    )
    block = chain.transact(GATEWAY, encode_send(attributes=attributes), value=330_000 * GWEI + 1)
    (receipt,) = block.receipts
    assert (receipt.gas_limit, receipt.gas_price, receipt.reply_gas) == (50_000, 3 * GWEI, 60_000)
    assert (receipt.refund_to, receipt.deadline) == (TARGET, 99)
    assert int.from_bytes(receipt.value, "big") == 1


def test_of_a_repeated_attribute_the_last_one_counts(chain: Chain) -> None:
    attributes = (attribute("gasLimit", 1), attribute("gasLimit", 2))
    (receipt,) = chain.transact(GATEWAY, encode_send(attributes=attributes), value=DEFAULT_COST).receipts
    assert receipt.gas_limit == 2


def test_message_sent_is_logged_as_erc_7786_says(chain: Chain) -> None:
    attributes = (attribute("gasLimit", 50_000),)
    data = encode_send(payload=b"hello", attributes=attributes)
    block = chain.transact(GATEWAY, data, value=150_000 * GWEI + 5)
    sent, outbox = block.outcomes[0].logs
    assert sent.topics == [keccak256(MESSAGE_SENT.encode()), block.receipts[0].id]
    assert outbox.topics == [keccak256(OUTBOX.encode()), block.receipts[0].id]
    sender, recipient, payload, value, logged = decode(
        ["bytes", "bytes", "bytes", "uint256", "bytes[]"], sent.data
    )
    assert sender == encode_interop(31337, SENDER)
    assert (recipient, payload, value, logged) == (RECIPIENT, b"hello", 5, attributes)


def test_id_is_known_before_sending_and_never_repeats(chain: Chain) -> None:
    seen = []
    for nonce in range(3):
        assert chain.read(GATEWAY, "nonceOf(address)", SENDER) == nonce
        expected = keccak256(
            b"shardyard/message/v1" + (31337).to_bytes(32, "big") + SENDER + nonce.to_bytes(32, "big")
        )
        assert chain.read(GATEWAY, "computeId(address,uint256)", SENDER, nonce, returns="bytes32") == expected
        returned = chain.call(GATEWAY, encode_send(), value=DEFAULT_COST)
        assert returned.output == expected
        (receipt,) = chain.transact(GATEWAY, encode_send(), value=DEFAULT_COST).receipts
        assert receipt.id == expected
        seen.append(receipt.id)
    assert len(set(seen)) == 3


def test_escrow_leaves_the_gateway_with_the_block(chain: Chain) -> None:
    before = chain.balance(GATEWAY)
    (receipt,) = chain.transact(GATEWAY, encode_send(), value=DEFAULT_COST + 123).receipts
    assert compute_escrow(receipt) == DEFAULT_COST + 123
    assert chain.balance(GATEWAY) == before


def test_a_send_writes_no_slot_of_another_sender(chain: Chain) -> None:
    first, second = (bytes(DEV_ACCOUNTS[index].address) for index in (0, 1))
    chain.transact(GATEWAY, encode_send(), value=DEFAULT_COST, account=0)
    assert chain.slot(GATEWAY, mapping_slot(0, first)) == 1
    assert chain.slot(GATEWAY, mapping_slot(0, second)) == 0
    chain.transact(GATEWAY, encode_send(), value=DEFAULT_COST, account=1)
    assert chain.slot(GATEWAY, mapping_slot(0, first)) == 1
    assert chain.slot(GATEWAY, mapping_slot(0, second)) == 1


@pytest.mark.parametrize(
    ("recipient", "reason"),
    [
        (encode_interop(31337, TARGET), "the destination is this shard"),
        (encode_interop(31337 + SHARD_COUNT, TARGET), "unknown shard"),
        (encode_interop(31336, TARGET), "unknown shard"),
        (encode_interop(1, TARGET), "unknown shard"),
        (b"", "recipient: expected 28 bytes of ERC-7930"),
        (TARGET, "recipient: expected 28 bytes of ERC-7930"),
        (RECIPIENT + b"\0", "recipient: expected 28 bytes of ERC-7930"),
        (RECIPIENT[:-1], "recipient: expected 28 bytes of ERC-7930"),
        (b"\0\x02" + RECIPIENT[2:], "recipient: not a shard's ERC-7930"),
        (RECIPIENT[:2] + b"\0\x02" + RECIPIENT[4:], "recipient: not a shard's ERC-7930"),
        (RECIPIENT[:4] + b"\x03" + RECIPIENT[5:], "recipient: not a shard's ERC-7930"),
        (RECIPIENT[:7] + b"\x13" + RECIPIENT[8:], "recipient: not a shard's ERC-7930"),
    ],
)
def test_recipient_must_be_another_shard_of_this_network(chain: Chain, recipient: bytes, reason: str) -> None:
    assert refusal(chain, encode_send(recipient)) == reason


@pytest.mark.parametrize(
    ("attributes", "value", "reason"),
    [
        ((), DEFAULT_COST - 1, "msg.value does not cover the gas of delivery and reply"),
        ((attribute("gasLimit", 16_000_001),), 10**20, "gasLimit above the limit of a receipt"),
        ((attribute("replyGas", 16_000_001),), 10**20, "replyGas above the limit of a receipt"),
        ((attribute("gasLimit", 2**256 - 1),), 10**20, "gasLimit above the limit of a receipt"),
        ((attribute("gasPrice", 2**64),), 10**20, "gasPrice too high"),
        ((attribute("deadline", 2**64),), 10**20, "deadline too high"),
        ((attribute("refundTo", b"\x01" + bytes(20)),), 10**20, "refundTo: not an address"),
        ((attribute("gasLimit", 1)[:-1],), 10**20, "attribute: expected a selector and one word"),
        ((attribute("gasLimit", 1) + b"\0",), 10**20, "attribute: expected a selector and one word"),
        ((b"abc",), 10**20, "attribute: no selector"),
    ],
)
def test_terms_outside_their_limits_are_refused(
    chain: Chain, attributes: tuple[bytes, ...], value: int, reason: str
) -> None:
    assert refusal(chain, encode_send(attributes=attributes), value) == reason


def test_an_unknown_attribute_is_refused_with_its_selector(chain: Chain) -> None:
    unknown = b"\x12\x34\x56\x78" + bytes(100)
    expected = encode_call("UnsupportedAttribute(bytes4)", unknown[:4])
    assert refusal(chain, encode_send(attributes=(unknown,))) == f"0x{expected.hex()}"


def test_supports_attribute_names_the_five(chain: Chain) -> None:
    names = [
        "gasLimit(uint256)",
        "gasPrice(uint256)",
        "replyGas(uint256)",
        "refundTo(address)",
        "deadline(uint256)",
    ]
    for name in names:
        assert chain.read(GATEWAY, "supportsAttribute(bytes4)", selector(name), returns="bool")
    for unknown in (bytes(4), selector("gasLimit(uint64)")):
        assert not chain.read(GATEWAY, "supportsAttribute(bytes4)", unknown, returns="bool")


def test_the_largest_message_passes_and_one_byte_more_does_not(chain: Chain) -> None:
    attributes = (attribute("gasLimit", 16_000_000), attribute("replyGas", 16_000_000))
    data = encode_send(payload=b"\xff" * 16_384, attributes=attributes)
    (receipt,) = chain.transact(GATEWAY, data, value=32_000_000 * GWEI).receipts
    assert (len(receipt.payload), receipt.gas_limit, receipt.reply_gas) == (16_384, 16_000_000, 16_000_000)
    assert refusal(chain, encode_send(payload=b"\xff" * 16_385)) == "0x"


def test_nine_attributes_are_too_many(chain: Chain) -> None:
    one = attribute("gasLimit", 1)
    assert chain.call(GATEWAY, encode_send(attributes=(one,) * 8), value=DEFAULT_COST).status == "success"
    assert refusal(chain, encode_send(attributes=(one,) * 9)) == "0x"


def test_gas_price_must_reach_the_base_fee_of_the_destination(chain: Chain) -> None:
    chain.execute(link_base_fees=[(1, 5 * GWEI)])
    assert chain.read(GATEWAY, "baseFeeOf(uint256)", 1) == 5 * GWEI
    below, enough = (
        encode_send(attributes=(attribute("gasPrice", price),)) for price in (5 * GWEI - 1, 5 * GWEI)
    )
    assert refusal(chain, below, 10**18) == "gasPrice below the base fee of the destination"
    assert chain.call(GATEWAY, enough, value=10**18).status == "success"


def test_quote_is_what_a_send_without_a_gas_price_costs(chain: Chain) -> None:
    quote = "quote(uint256,uint256,uint256)"
    assert chain.read(GATEWAY, quote, 1, 200_000, 100_000) == DEFAULT_COST
    chain.execute(link_base_fees=[(1, 5 * GWEI)])
    cost = chain.read(GATEWAY, quote, 1, 200_000, 100_000)
    assert cost == 300_000 * 10 * GWEI
    (receipt,) = chain.transact(GATEWAY, encode_send(), value=cost).receipts
    assert (receipt.gas_price, int.from_bytes(receipt.value, "big")) == (10 * GWEI, 0)
    assert refusal(chain, encode_send(), cost - 1).startswith("msg.value does not cover")
    assert refusal(chain, encode_call(quote, SHARD_COUNT, 1, 1), 0) == "unknown shard"


def test_no_gas_limit_lets_a_send_burn_less_than_its_receipt_gas(chain: Chain) -> None:
    data = encode_send(payload=b"hello")
    chain.transact(GATEWAY, data, value=DEFAULT_COST)
    costs = set()
    for gas in range(40_000, 140_000, 1_000):
        result = chain.call(GATEWAY, data, value=DEFAULT_COST, gas=gas)
        if result.status == "success":
            costs.add(result.gas_used)
    assert len(costs) == 1, "the price of a send depends on the gas it was given"
    assert RECEIPT_GAS + 21_000 < costs.pop() < 90_000


def test_too_little_gas_for_the_receipt_is_refused_with_a_reason(chain: Chain) -> None:
    assert refusal(chain, encode_send(), gas=70_000) == "not enough gas for the receipt"


def test_transfer_becomes_a_receipt_without_gas(chain: Chain) -> None:
    block = chain.transact(GATEWAY, encode_call("transfer(uint256,address)", 2, TARGET), value=12_345)
    (receipt,) = block.receipts
    assert receipt.kind == ReceiptKind.TRANSFER
    assert (receipt.src, receipt.dst, receipt.sender, receipt.target) == (0, 2, SENDER, TARGET)
    assert (receipt.gas_limit, receipt.gas_price, receipt.reply_gas, receipt.deadline) == (0, 0, 0, 0)
    assert (receipt.refund_to, receipt.payload, compute_escrow(receipt)) == (SENDER, b"", 12_345)
    assert receipt.id == chain.read(GATEWAY, "computeId(address,uint256)", SENDER, 0, returns="bytes32")


@pytest.mark.parametrize(
    ("dst", "to", "value", "reason"),
    [
        (1, TARGET, 0, "nothing to transfer"),
        (1, bytes(20), 1, "transfer to the zero address"),
        (0, TARGET, 1, "the destination is this shard"),
        (SHARD_COUNT, TARGET, 1, "unknown shard"),
        (0xFFFF_FFFF, TARGET, 1, "unknown shard"),
        (2**256 - 1, TARGET, 1, "unknown shard"),
    ],
)
def test_transfer_refuses(chain: Chain, dst: int, to: bytes, value: int, reason: str) -> None:
    assert refusal(chain, encode_call("transfer(uint256,address)", dst, to), value) == reason


def test_sends_and_transfers_of_one_sender_share_its_nonces(chain: Chain) -> None:
    first = chain.transact(GATEWAY, encode_send(), value=DEFAULT_COST).receipts[0]
    second = chain.transact(GATEWAY, encode_call("transfer(uint256,address)", 1, TARGET), value=1).receipts[0]
    assert (first.seq, second.seq) == (1, 2)
    assert first.id != second.id
    assert chain.read(GATEWAY, "lastSequenceOf(uint256)", 1) == 2


def test_claim_pays_once(chain: Chain) -> None:
    owed = gateway_with({mapping_slot(2, SENDER): 1_000}, balance=1_500)
    rich = Chain(extra=owed)
    assert rich.read(GATEWAY, "claimableOf(address)", SENDER) == 1_000
    rich.transact(GATEWAY, encode_call("claim()"))
    assert rich.balance(GATEWAY) == 500
    assert rich.read(GATEWAY, "claimableOf(address)", SENDER) == 0
    assert refusal(rich, encode_call("claim()"), 0) == "nothing to claim"
    assert refusal(chain, encode_call("claim()"), 0) == "nothing to claim"


def test_claim_cannot_be_re_entered() -> None:
    # Whoever calls it, this contract calls claim() and ignores the answer: paid by the gateway, it claims again.
    claim = (
        b"\x63"
        + selector("claim()")
        + bytes.fromhex("5f525f5f6004601c5f73")
        + GATEWAY
        + bytes.fromhex("5af100")
    )
    thief = b"\xdd" * 20
    owed = gateway_with({mapping_slot(2, thief): 1_000}, balance=3_000)
    code = "0x" + claim.hex()
    chain = Chain(extra={**owed, "0x" + thief.hex(): {"balance": "0x0", "nonce": "0x1", "code": code}})
    chain.transact(thief, account=1)
    assert chain.balance(thief) == 1_000
    assert chain.balance(GATEWAY) == 2_000


def test_a_claim_that_cannot_be_paid_stays() -> None:
    # Called by the gateway, that is paid, it reverts; called by anyone else it claims.
    claim = (
        b"\x63"
        + selector("claim()")
        + bytes.fromhex("5f525f5f6004601c5f73")
        + GATEWAY
        + bytes.fromhex("5af100")
    )
    branch = b"\x73" + GATEWAY + b"\x33\x14\x60"
    code = branch + bytes([len(branch) + 2 + len(claim)]) + b"\x57" + claim + bytes.fromhex("5b5f5ffd")
    refuser = b"\xdd" * 20
    owed = gateway_with({mapping_slot(2, refuser): 1_000}, balance=1_000)
    chain = Chain(extra={**owed, "0x" + refuser.hex(): {"nonce": "0x1", "code": "0x" + code.hex()}})
    chain.transact(refuser, account=1)
    assert chain.balance(GATEWAY) == 1_000
    assert chain.read(GATEWAY, "claimableOf(address)", refuser) == 1_000


def test_plain_ether_is_refused(chain: Chain) -> None:
    # Nobody could ever get it back.
    assert refusal(chain, b"", 1) == "0x"


def test_shard_count_comes_from_genesis(chain: Chain) -> None:
    assert chain.read(GATEWAY, "shardCount()") == SHARD_COUNT
