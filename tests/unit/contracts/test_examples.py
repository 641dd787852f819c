"""The example contracts across two shards: each message ends in exactly one reply, and no wei is lost on the way."""

import pytest
from eth_abi import decode, encode

from node.dev_accounts import DEV_ACCOUNTS
from shardyard._native import keccak256
from shardyard.ids import GATEWAY
from shardyard.receipts import ReceiptKind
from tests.unit.contracts.chain import Block, Chain, decode_reason, encode_call, encode_interop, selector

GWEI = 10**9
COST = 300_000 * GWEI
VALUE = 77 * GWEI
PENDING, DELIVERED, BOUNCED = 1, 2, 4
SEND = "send(bytes,bytes,bytes[])"
RECEIVED = b"MessageReceived(bytes32,bytes,bytes,uint256)"
OWNER = bytes(DEV_ACCOUNTS[0].address)


def encode_send(
    target: Chain, contract: bytes, payload: bytes = b"", attributes: tuple[bytes, ...] = ()
) -> bytes:
    recipient = encode_interop(target.chain_id, contract)
    return selector(SEND) + encode(["bytes", "bytes", "bytes[]"], [recipient, payload, attributes])


def deliver(block: Block, target: Chain) -> Block:
    """Hand the receipts of a block to the shard they are for, as the beacon would."""
    return target.execute(inbox=block.result.outbox)


def get_burnt(block: Block) -> int:
    return int.from_bytes(block.result.burnt, "big")


def test_a_message_counts_on_the_other_shard_and_its_sender_learns_of_it(chain: Chain, other: Chain) -> None:
    sender, counter = chain.deploy("sender"), other.deploy("counter")
    sent = chain.transact(sender, encode_send(other, counter, b"hello"), value=COST + VALUE)
    message_id = sent.receipts[0].id
    assert chain.read(sender, "statusOf(bytes32)", message_id) == PENDING

    delivered = deliver(sent, other)
    assert other.read(counter, "count()") == 1
    assert other.read(counter, "received()") == 1
    assert other.read(counter, "lastChainId()") == chain.chain_id
    assert other.read(counter, "lastSender()", returns="address") == "0x" + sender.hex()
    assert delivered.outcomes[0].logs[-1].topics == [keccak256(RECEIVED), message_id]
    assert decode(["bytes", "bytes", "uint256"], delivered.outcomes[0].logs[-1].data) == (
        encode_interop(chain.chain_id, sender),
        b"hello",
        VALUE,
    )
    assert other.balance(counter) == VALUE
    assert [receipt.kind for receipt in delivered.receipts] == [ReceiptKind.RESULT]

    replied = deliver(delivered, chain)
    assert replied.outcomes[0].status == 1
    assert chain.read(sender, "statusOf(bytes32)", message_id) == DELIVERED
    assert chain.read(sender, "delivered()") == 1
    assert chain.read(sender, "lastValue()") == 0
    assert replied.receipts == []


@pytest.mark.parametrize(
    ("payload", "reason"),
    [(b"\0", "the reverter reverts"), (b"\1", None), (b"\2", None)],
    ids=["reverts", "answers wrongly", "uses all gas"],
)
def test_a_message_that_fails_comes_back_with_its_value(
    chain: Chain, other: Chain, payload: bytes, reason: str | None
) -> None:
    sender, reverter = chain.deploy("sender"), other.deploy("reverter")
    sent = chain.transact(sender, encode_send(other, reverter, payload), value=COST + VALUE)
    delivered = deliver(sent, other)
    assert [receipt.kind for receipt in delivered.receipts] == [ReceiptKind.BOUNCE]
    assert other.read(reverter, "attempts()") == 0
    assert other.balance(reverter) == 0

    replied = deliver(delivered, chain)
    assert chain.read(sender, "statusOf(bytes32)", sent.receipts[0].id) == BOUNCED
    assert chain.read(sender, "lastValue()") == VALUE
    if reason is not None:
        ok, data, value = decode(["bool", "bytes", "uint256"], replied.outcomes[0].logs[0].data)
        assert (ok, decode_reason(data), value) == (False, reason, VALUE)


def test_a_message_past_its_deadline_comes_back_with_its_value(chain: Chain, other: Chain) -> None:
    sender, counter = chain.deploy("sender"), other.deploy("counter")
    deadline = selector("deadline(uint256)") + (10).to_bytes(32, "big")
    in_time, late = (
        chain.transact(sender, encode_send(other, counter, b"", (deadline,)), value=COST + VALUE)
        for _ in range(2)
    )
    taken = other.execute(inbox=in_time.result.outbox, beacon_height=10)
    assert [receipt.kind for receipt in taken.receipts] == [ReceiptKind.RESULT]
    expired = other.execute(inbox=late.result.outbox, beacon_height=11)
    assert [receipt.kind for receipt in expired.receipts] == [ReceiptKind.BOUNCE]
    assert other.read(counter, "count()") == 1
    deliver(expired, chain)
    assert chain.read(sender, "lastValue()") == VALUE


@pytest.mark.parametrize("contract", ["counter", "reverter"])
def test_what_a_round_trip_burns_is_all_that_two_shards_lose(
    chain: Chain, other: Chain, contract: str
) -> None:
    sender, receiver = chain.deploy("sender"), other.deploy(contract)
    at_source, elsewhere = chain.supply(), other.supply()
    sent = chain.transact(sender, encode_send(other, receiver), value=COST + VALUE)
    in_flight = COST + VALUE  # in nobody's balance
    assert chain.supply() == at_source - in_flight - get_burnt(sent)
    delivered = deliver(sent, other)
    replied = deliver(delivered, chain)
    burnt = sum(get_burnt(block) for block in (sent, delivered, replied))
    assert burnt > 0
    assert chain.supply() + other.supply() == at_source + elsewhere - burnt


def test_a_message_to_no_code_bounces(chain: Chain, other: Chain) -> None:
    sender = chain.deploy("sender")
    sent = chain.transact(sender, encode_send(other, b"\xee" * 20), value=COST + VALUE)
    deliver(deliver(sent, other), chain)
    assert chain.read(sender, "bounced()") == 1
    assert chain.read(sender, "lastValue()") == VALUE
    assert other.balance(b"\xee" * 20) == 0


def test_value_of_a_reply_that_is_refused_can_be_claimed(chain: Chain, other: Chain) -> None:
    refuser, reverter = chain.deploy("reverter"), other.deploy("reverter")
    sent = chain.transact(refuser, encode_send(other, reverter, b"\0"), value=COST + VALUE)
    deliver(deliver(sent, other), chain)
    assert chain.read(GATEWAY, "claimableOf(address)", refuser) == VALUE
    assert chain.balance(GATEWAY) == VALUE
    before = chain.balance(refuser)
    chain.transact(refuser, encode_call("claim()"))
    assert chain.balance(refuser) == before + VALUE
    assert chain.balance(GATEWAY) == 0
    assert chain.read(GATEWAY, "claimableOf(address)", refuser) == 0


def test_a_transfer_arrives_in_full_and_needs_no_code(chain: Chain, other: Chain) -> None:
    before = other.balance(OWNER)
    sent = chain.transact(GATEWAY, encode_call("transfer(uint256,address)", 1, OWNER), value=VALUE)
    delivered = deliver(sent, other)
    assert other.balance(OWNER) == before + VALUE
    assert delivered.receipts == []


def test_a_contract_can_transfer_too(chain: Chain, other: Chain) -> None:
    sender = chain.deploy("sender")
    sent = chain.transact(sender, encode_call("sendValue(uint256,address)", 1, b"\xee" * 20), value=VALUE)
    assert sent.receipts[0].sender == sender
    deliver(sent, other)
    assert other.balance(b"\xee" * 20) == VALUE


def test_only_the_gateway_delivers(chain: Chain) -> None:
    counter, sender = chain.deploy("counter"), chain.deploy("sender")
    message = encode_call("receiveMessage(bytes32,bytes,bytes)", bytes(32), encode_interop(31338, OWNER), b"")
    reply = encode_call("receiveReply(bytes32,bool,bytes)", bytes(32), True, b"")
    assert chain.call(counter, message).status == "revert"
    assert chain.call(sender, reply).status == "revert"


def test_the_counter_counts_on_its_own_shard(chain: Chain) -> None:
    counter = chain.deploy("counter")
    for _ in range(3):
        chain.transact(counter, encode_call("increment()"))
    assert chain.read(counter, "count()") == 3
    assert chain.read(counter, "received()") == 0


def test_the_token_moves_and_never_more_than_there_is(chain: Chain) -> None:
    deployer, friend = (bytes(DEV_ACCOUNTS[index].address) for index in (9, 1))
    token = chain.deploy("erc20", "Yard", "YRD", 1_000, types=("string", "string", "uint256"))
    chain.transact(token, encode_call("transfer(address,uint256)", friend, 300), account=9)
    assert chain.read(token, "balanceOf(address)", deployer) == 700
    assert chain.read(token, "balanceOf(address)", friend) == 300
    assert chain.read(token, "totalSupply()") == 1_000
    assert chain.read(token, "symbol()", returns="string") == "YRD"
    too_much = encode_call("transfer(address,uint256)", deployer, 301)
    assert chain.call(token, too_much, account=1).status == "revert"


def test_the_token_moves_by_allowance_and_uses_it_up(chain: Chain) -> None:
    deployer, spender = (bytes(DEV_ACCOUNTS[index].address) for index in (9, 1))
    token = chain.deploy("erc20", "Yard", "YRD", 1_000, types=("string", "string", "uint256"))
    chain.transact(token, encode_call("approve(address,uint256)", spender, 10), account=9)
    take = encode_call("transferFrom(address,address,uint256)", deployer, spender, 6)
    chain.transact(token, take, account=1)
    assert chain.read(token, "allowance(address,address)", deployer, spender) == 4
    assert chain.call(token, take, account=1).status == "revert"
