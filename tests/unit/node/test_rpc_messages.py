"""Cross-shard messages as each of their shards tells them: calls, answers, bounces and replies that come home."""

import msgspec

from shardyard._native import keccak256
from shardyard.codec import encode
from shardyard.ids import Hash32
from shardyard.receipts import ReceiptKind
from tests.unit.node.rpc_chain import ALICE, GATEWAY, RpcChain, build_message
from tests.unit.node.test_rpc_methods import call_data, deploy

GAS = {"gas_limit": 200_000, "gas_price": 2 * 10**9, "reply_gas": 100_000}
ORIGIN = "0x" + keccak256(b"origin").hex()


async def deliver_call(chain: RpcChain, target: str) -> dict:
    """Deliver a CALL with 5 wei to ``target``; returns what the shard tells of it."""
    message = build_message(
        ReceiptKind.CALL, 1, target=bytes.fromhex(target[2:]), value=(5).to_bytes(32, "big"), **GAS
    )
    await chain.make_block([encode(message)])
    return await chain.call("shard_getMessage", "0x" + message.id.hex())


async def test_a_call_that_succeeds_is_answered_by_a_result(chain):
    counter = await deploy(chain, "counter")
    told = await deliver_call(chain, counter)
    assert (told["stage"], told["delivered"]["status"], told["reply"]["kind"]) == ("answered", 1, "RESULT")
    reply = await chain.call("shard_getMessage", told["reply"]["id"])
    assert (reply["stage"], reply["parentId"], reply["dst"]) == ("emitted", told["id"], 0)
    (first, second) = (await chain.call("shard_getCrossTx", ORIGIN))["messages"]
    assert (first, second) == (told, reply)
    receipt = await chain.call("eth_getTransactionReceipt", told["id"])
    assert receipt["status"] == "0x1"
    assert {log["address"] for log in receipt["logs"]} == {counter}
    transaction = await chain.call("eth_getTransactionByHash", told["id"])
    assert (transaction["gas"], transaction["gasPrice"]) == (hex(200_000), hex(2 * 10**9))


async def test_a_call_that_fails_is_bounced_and_its_receipt_says_so(chain):
    told = await deliver_call(chain, "0x" + "c1ca" * 10)
    assert (told["stage"], told["delivered"]["status"], told["reply"]["kind"]) == ("bounced", 0, "BOUNCE")
    assert (await chain.call("eth_getTransactionReceipt", told["id"]))["status"] == "0x0"
    assert (await chain.call("shard_getMessages", {"kind": "BOUNCE"}))[0]["id"] == told["reply"]["id"]


async def test_a_reply_that_comes_home_is_told_at_the_message_it_answers(chain):
    word = "0x" + GATEWAY.hex()
    data = call_data("transfer(uint256,address)", 0, int.from_bytes(ALICE.address, "big"))
    tx_hash = await chain.send(to=word, data=data, value=10**18, gas=300_000)
    await chain.make_block()
    (sent,) = (await chain.call("shard_getCrossTx", tx_hash))["messages"]
    payload = msgspec.msgpack.encode([True, bytes(32), b""])
    reply = build_message(
        ReceiptKind.RESULT,
        1,
        parent_id=Hash32(bytes.fromhex(sent["id"][2:])),
        target=ALICE.address,
        payload=payload,
    )
    await chain.make_block([encode(reply)])
    told = await chain.call("shard_getMessage", sent["id"])
    assert (told["stage"], told["reply"]["id"]) == ("answered", "0x" + reply.id.hex())
    assert told["reply"]["blockNumber"] == 2
    assert told["emitted"]["blockNumber"] == 1


async def test_the_tip_is_final_when_nothing_is_notarized_above_the_head(chain):
    block = await chain.make_block()
    assert await chain.call("shard_getFinality", "pending") == await chain.call("shard_getFinality", "latest")
    tip = chain.execute()
    told = {"stage": "notarized", "blockNumber": 2, "blockHash": "0x" + tip.hash.hex()}
    assert await chain.call("shard_getFinality", "pending") == told
    assert await chain.call("shard_getFinality", "0x" + tip.hash.hex()) == told
    assert (await chain.call("shard_getFinality", "0x" + block.hash.hex()))["stage"] == "final"


async def test_messages_of_blocks_below_the_snapshot_are_not_said_to_be_none(chain, monkeypatch):
    await chain.make_block([encode(build_message(ReceiptKind.TRANSFER, 1))])
    await chain.make_block()
    await chain.make_block()
    monkeypatch.setattr(type(chain.backend.index), "first_height", 4)
    pruned = await chain.ask("shard_getMessages", {"fromBlock": 1, "toBlock": 2})
    assert pruned["error"] == {
        "code": 4444,
        "message": "pruned history unavailable: this node has blocks from 4 on",
    }
    assert await chain.call("shard_getMessages", {"fromBlock": 3, "toBlock": 3}) == []
    assert (await chain.call("shard_getFinality", 3))["blockNumber"] == 3
    assert (await chain.ask("shard_getFinality", 2))["error"]["code"] == 4444


async def test_a_replica_that_came_by_a_snapshot_says_what_it_holds_of_a_tag(chain, monkeypatch):
    """Genesis as ``finalized`` would be a step back, and a head without its transactions a lie."""
    for _ in range(3):
        await chain.make_block()
    monkeypatch.setattr(type(chain.backend.index), "first_height", 4)
    held = "pruned history unavailable: this node has blocks from 4 on, "
    chain.backend.on_beacon_final(1)
    for method, *params in (
        ("eth_getBlockByNumber", "finalized", False),
        ("eth_getBalance", "0x" + bytes(20).hex(), "finalized"),
        ("shard_getFinality", "finalized"),
        ("eth_feeHistory", 1, "finalized"),
    ):
        refused = (await chain.ask(method, *params))["error"]
        assert refused == {"code": 4444, "message": held + "the finalized block is below its snapshot"}
    chain.backend.on_beacon_final(3)
    for tag in ("latest", "safe", "finalized"):
        refused = (await chain.ask("eth_getBlockByNumber", tag, False))["error"]
        assert refused == {"code": 4444, "message": held + "of block 3 it has header and state"}
        assert (await chain.call("shard_getFinality", tag))["blockNumber"] == 3
        assert await chain.call("eth_getBalance", "0x" + bytes(20).hex(), tag) == "0x0"
    await chain.make_block()
    assert (await chain.call("eth_getBlockByNumber", "latest", False))["number"] == "0x4"
    assert (await chain.call("eth_getBlockByNumber", "earliest", False))["number"] == "0x0"
