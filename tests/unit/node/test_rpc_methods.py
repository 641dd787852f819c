"""The methods of a shard over a real core: heads, state, blocks, deliveries, refusals in geth's words."""

import re

import pytest
import rlp
from eth_utils import to_checksum_address

from node.artifacts import load_artifact
from node.index.records import build_indexed_block
from node.rpc import formats
from node.rpc.app import METHODS
from shardyard._native import keccak256
from tests.unit.node.rpc_chain import ALICE, BOB, CAROL, CHAIN_ID, GATEWAY, build_transfer

A = "0x" + ALICE.address.hex()
B = "0x" + BOB.address.hex()
C = "0x" + CAROL.address.hex()
NOBODY = "0x" + "c1ca" * 10
DEV_BALANCE = 10_000 * 10**18
TIER_1 = [
    "web3_clientVersion",
    "web3_sha3",
    "net_version",
    "net_listening",
    "net_peerCount",
    "eth_chainId",
    "eth_syncing",
    "eth_blockNumber",
    "eth_accounts",
    "eth_gasPrice",
    "eth_maxPriorityFeePerGas",
    "eth_feeHistory",
    "eth_getBalance",
    "eth_getTransactionCount",
    "eth_getCode",
    "eth_getStorageAt",
    "eth_getBlockByNumber",
    "eth_getBlockByHash",
    "eth_getBlockTransactionCountByNumber",
    "eth_getBlockTransactionCountByHash",
    "eth_getUncleCountByBlockNumber",
    "eth_getUncleCountByBlockHash",
    "eth_getTransactionByHash",
    "eth_getTransactionByBlockNumberAndIndex",
    "eth_getTransactionByBlockHashAndIndex",
    "eth_getTransactionReceipt",
    "eth_getBlockReceipts",
    "eth_call",
    "eth_estimateGas",
    "eth_sendRawTransaction",
    "eth_getLogs",
    "eth_newFilter",
    "eth_newBlockFilter",
    "eth_newPendingTransactionFilter",
    "eth_getFilterChanges",
    "eth_getFilterLogs",
    "eth_uninstallFilter",
    "eth_subscribe",
    "eth_unsubscribe",
    "eth_getProof",
]


def call_data(signature: str, *words: int) -> str:
    return "0x" + (keccak256(signature.encode())[:4] + b"".join(w.to_bytes(32, "big") for w in words)).hex()


async def deploy(chain, name: str) -> str:
    artifact = load_artifact(name)
    tx_hash = await chain.send(to=None, data=artifact.init_code, gas=2_000_000)
    await chain.make_block()
    receipt = await chain.call("eth_getTransactionReceipt", tx_hash)
    assert receipt["status"] == "0x1"
    return receipt["contractAddress"]


def test_tier_1_is_complete():
    assert set(TIER_1) <= set(METHODS)


async def test_the_node_says_who_it_is(chain):
    assert await chain.call("eth_chainId") == hex(CHAIN_ID)
    assert await chain.call("net_version") == str(CHAIN_ID)
    assert (await chain.call("web3_clientVersion")).startswith("Shardyard/v")
    assert await chain.call("web3_sha3", "0x68656c6c6f") == "0x" + keccak256(b"hello").hex()
    assert await chain.call("net_listening") is True
    assert await chain.call("eth_syncing") is False
    assert await chain.call("eth_accounts") == []


async def test_latest_is_shard_final_finalized_is_beacon_final_and_pending_the_notarized_tip(chain):
    blocks = [await chain.make_block() for _ in range(3)]
    chain.backend.on_beacon_final(1)
    await chain.send(value=5)
    tip = chain.execute()
    for tag, height in (("latest", 3), ("safe", 3), ("finalized", 1), ("earliest", 0), ("pending", 5)):
        block = await chain.call("eth_getBlockByNumber", tag)
        assert block["number"] == hex(height), tag
    assert (await chain.call("eth_getBlockByNumber", "latest"))["hash"] == "0x" + blocks[2].hash.hex()
    assert (await chain.call("eth_getBlockByNumber", "pending"))["parentHash"] == "0x" + tip.hash.hex()
    assert await chain.call("eth_getBalance", B, "latest") == hex(DEV_BALANCE)
    assert await chain.call("eth_getBalance", B, "pending") == hex(DEV_BALANCE + 5)
    assert await chain.call("eth_blockNumber") == "0x3"


async def test_a_replica_behind_the_beacon_says_that_it_syncs(chain):
    await chain.make_block()
    chain.backend.on_beacon_final(3)
    assert await chain.call("eth_syncing") == {
        "startingBlock": "0x0",
        "currentBlock": "0x1",
        "highestBlock": "0x3",
    }
    assert (await chain.call("eth_getBlockByNumber", "finalized"))["number"] == "0x1"
    await chain.make_block()
    await chain.make_block()
    assert await chain.call("eth_syncing") is False


async def test_state_is_read_at_numbers_hashes_and_objects_and_latest_is_the_default(chain):
    before = chain.tip
    await chain.send(value=7)
    after = await chain.make_block()
    new, old = hex(DEV_BALANCE + 7), hex(DEV_BALANCE)
    assert await chain.call("eth_getBalance", B) == new
    assert await chain.call("eth_getBalance", B, "0x0") == old
    assert await chain.call("eth_getBalance", B, "0x" + before.hash.hex()) == old
    assert (
        await chain.call(
            "eth_getBalance", B, {"blockHash": "0x" + after.hash.hex(), "requireCanonical": True}
        )
        == new
    )
    assert await chain.call("eth_getBalance", B, {"blockNumber": "0x0"}) == old
    assert await chain.call("eth_getBalance", NOBODY) == "0x0"
    assert await chain.call("eth_getCode", NOBODY, "latest") == "0x"
    assert await chain.call("eth_getStorageAt", NOBODY, "0x0", "latest") == "0x" + "00" * 32
    gateway = "0x" + GATEWAY.hex()
    assert await chain.call("eth_getStorageAt", gateway, "0x4", "latest") == "0x" + "00" * 31 + "04"
    assert len(await chain.call("eth_getCode", gateway)) > 1000


async def test_a_state_that_does_not_exist_has_geths_words(chain):
    assert (await chain.ask("eth_getBalance", A, "0x9"))["error"] == {
        "code": -32000,
        "message": "header not found",
    }
    missing = "0x" + "ab" * 32
    assert "header for hash not found" in (await chain.ask("eth_getBalance", A, missing))["error"]["message"]
    assert await chain.call("eth_getBlockByNumber", "0x9") is None
    assert await chain.call("eth_getBlockByHash", missing, True) is None


async def test_a_state_beyond_the_history_is_a_missing_trie_node(chain):
    for _ in range(260):
        await chain.make_block()
    for method, params in (("eth_getBalance", [A]), ("eth_getCode", [A]), ("eth_call", [{"to": B}])):
        error = (await chain.ask(method, *params, "0x1"))["error"]
        assert error["code"] == -32000
        assert error["message"].startswith("missing trie node"), method
    assert await chain.call("eth_getBalance", A, "0x10") == hex(DEV_BALANCE)


async def test_the_pending_nonce_counts_what_waits_and_what_is_in_open_blocks(chain):
    await chain.send()
    await chain.send()
    assert await chain.call("eth_getTransactionCount", A, "pending") == "0x2"
    block = chain.execute()
    await chain.send()
    assert await chain.call("eth_getTransactionCount", A, "pending") == "0x3"
    assert await chain.call("eth_getTransactionCount", A, "latest") == "0x0"
    await chain.finalise(block)
    assert await chain.call("eth_getTransactionCount", A, "latest") == "0x2"
    assert await chain.call("eth_getTransactionCount", A, "pending") == "0x3"


async def test_an_open_block_does_not_offer_its_transactions_again_unless_it_is_discarded(chain):
    await chain.send()
    parent = chain.tip
    block = chain.execute()
    assert chain.execute().header.shard_content.transaction_count == 0
    chain.backend.on_discarded(chain.tip.hash)
    chain.backend.on_discarded(block.hash)
    chain.tip = parent
    assert chain.execute().header.shard_content.transaction_count == 1


async def test_every_way_to_a_transaction_gives_the_same(chain):
    raw = chain.sign(value=3)
    tx_hash = await chain.call("eth_sendRawTransaction", "0x" + raw.hex())
    assert tx_hash == "0x" + keccak256(raw).hex()
    waiting = await chain.call("eth_getTransactionByHash", tx_hash)
    assert (waiting["blockHash"], waiting["transactionIndex"]) == (None, None)
    assert await chain.call("eth_getTransactionReceipt", tx_hash) is None
    block = await chain.make_block()
    found = await chain.call("eth_getTransactionByHash", tx_hash)
    block_hash = "0x" + block.hash.hex()
    assert found["blockHash"] == block_hash
    assert found["from"] == A
    assert await chain.call("eth_getTransactionByBlockHashAndIndex", block_hash, "0x0") == found
    assert await chain.call("eth_getTransactionByBlockNumberAndIndex", "0x1", "0x0") == found
    assert (await chain.call("eth_getBlockByHash", block_hash, True))["transactions"] == [found]
    assert (await chain.call("eth_getBlockByNumber", "latest", False))["transactions"] == [tx_hash]
    assert await chain.call("eth_getTransactionByBlockNumberAndIndex", "0x1", "0x1") is None
    receipt = await chain.call("eth_getTransactionReceipt", tx_hash)
    assert await chain.call("eth_getBlockReceipts", block_hash) == [receipt]
    assert receipt["effectiveGasPrice"] == found["gasPrice"]
    assert await chain.call("eth_getBlockTransactionCountByNumber", "0x1") == "0x1"
    assert await chain.call("eth_getBlockTransactionCountByHash", block_hash) == "0x1"
    assert await chain.call("eth_getUncleCountByBlockNumber", "0x1") == "0x0"
    assert await chain.call("eth_getUncleCountByBlockHash", "0x" + "ab" * 32) is None


@pytest.mark.parametrize("fields", [{"gasPrice": 2 * 10**9}, {"gasPrice": 2 * 10**9, "accessList": []}, {}])
async def test_types_0_1_and_2_are_taken_and_shown(chain, fields):
    tx_hash = await chain.send(**fields)
    await chain.make_block()
    found = await chain.call("eth_getTransactionByHash", tx_hash)
    kind = 2 if not fields else 1 if "accessList" in fields else 0
    assert found["type"] == hex(kind)
    assert ("accessList" in found, "yParity" in found, "maxFeePerGas" in found) == (
        kind > 0,
        kind > 0,
        kind == 2,
    )
    assert (await chain.call("eth_getTransactionReceipt", tx_hash))["type"] == hex(kind)


async def refuse(chain, raw: bytes | str) -> str:
    text = raw if isinstance(raw, str) else "0x" + raw.hex()
    answer = await chain.ask("eth_sendRawTransaction", text)
    assert answer["error"]["code"] == -32000, answer
    return answer["error"]["message"]


async def test_refusals_speak_geths_words(chain):
    raw = chain.sign(nonce=0)
    await chain.call("eth_sendRawTransaction", "0x" + raw.hex())
    assert await refuse(chain, raw) == "already known"
    underpriced = chain.sign(nonce=0, value=9)
    assert await refuse(chain, underpriced) == "replacement transaction underpriced"
    poor = chain.sign(nonce=1, value=2 * DEV_BALANCE)
    assert (await refuse(chain, poor)).startswith("insufficient funds for gas * price + value")
    assert (await refuse(chain, chain.sign(nonce=1, gas=20_999))).startswith("intrinsic gas too low")
    await chain.make_block()
    assert (await refuse(chain, chain.sign(nonce=0, value=1))).startswith("nonce too low")
    assert "gas limit" in await refuse(chain, chain.sign(gas=700_000_000, maxFeePerGas=10**7))


async def test_a_foreign_chain_id_trailing_bytes_and_unprotected_transactions_are_refused(chain):
    assert "chain id" in await refuse(chain, chain.sign(chainId=CHAIN_ID + 1))
    assert "rlp" in (await refuse(chain, chain.sign() + b"\0")).lower()
    assert "replay-protected" in await refuse(chain, chain.sign(chainId=None, gasPrice=10**10))
    assert "transaction type not supported" in await refuse(chain, b"\x03" + chain.sign()[1:])
    for text in ("0x", "0x00", "0xc0", "0x02", "0x7f"):
        assert await refuse(chain, text)
    assert (await chain.ask("eth_sendRawTransaction", "02"))["error"]["code"] == -32602


async def test_a_malleable_signature_is_refused(chain):
    raw = chain.sign()
    order = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
    fields = rlp.decode(raw[1:])
    parity, s = int.from_bytes(fields[-3], "big"), int.from_bytes(fields[-1], "big")
    fields[-3] = b"" if parity else b"\x01"
    fields[-1] = (order - s).to_bytes(32, "big").lstrip(b"\0")
    assert await refuse(chain, raw[:1] + rlp.encode(fields)) == "invalid transaction v, r, s values"


async def test_an_oversized_transaction_is_refused(chain):
    raw = chain.sign(data=bytes(131_100), gas=10_000_000)
    assert "oversized data" in await refuse(chain, raw)


async def test_calls_return_data_and_reverts_answer_code_3_with_data(chain):
    gateway = "0x" + GATEWAY.hex()
    assert (
        await chain.call("eth_call", {"to": gateway, "data": call_data("shardCount()")}) == "0x" + f"{4:064x}"
    )
    assert await chain.call("eth_call", {"to": NOBODY, "data": "0x01"}, "latest") == "0x"
    answer = await chain.ask(
        "eth_call", {"to": gateway, "input": call_data("quote(uint256,uint256,uint256)", 1, 1, 1)}
    )
    error = answer["error"]
    assert (error["code"], error["message"]) == (3, "execution reverted: the destination is this shard")
    assert error["data"].startswith("0x08c379a0")
    estimate = await chain.ask("eth_estimateGas", {"to": gateway, "input": call_data("nothing()")})
    assert estimate["error"] == {"code": 3, "message": "execution reverted", "data": "0x"}


async def test_a_call_that_names_a_price_must_afford_and_cover_the_base_fee(chain):
    low = await chain.ask("eth_call", {"from": A, "to": B, "gasPrice": "0x1"})
    assert "max fee per gas less than block base fee" in low["error"]["message"]
    poor = await chain.ask("eth_call", {"from": NOBODY, "to": B, "value": "0x1"})
    assert "insufficient funds" in poor["error"]["message"]
    assert await chain.call("eth_call", {"from": A, "to": B, "maxFeePerGas": hex(2 * 10**9)}) == "0x"


@pytest.mark.parametrize("method", ["eth_call", "eth_estimateGas"])
async def test_a_call_is_judged_by_the_highest_fee_that_it_names_as_its_transaction_would_be(chain, method):
    """The base fee is far below: what could pay that alone would be signed by a wallet, and refused by the mempool."""
    fee, gas = 10**15, 100_000
    request = {"from": A, "to": B, "maxFeePerGas": hex(fee), "gas": hex(gas)}
    enough = DEV_BALANCE - gas * fee
    assert await chain.call(method, request | {"value": hex(enough)}) in {"0x", "0x5208"}
    answer = await chain.ask(method, request | {"value": hex(enough + 1)})
    if method == "eth_call":
        assert answer["error"] == {
            "code": -32000,
            "message": f"insufficient funds for gas * price + value: address {ALICE.checksum_address} "
            f"have {DEV_BALANCE} want {DEV_BALANCE + 1}",
        }
        huge = await chain.ask(method, request | {"value": hex(2**256 - 1)})
        assert huge["error"]["message"].endswith(
            f"{ALICE.checksum_address} required balance exceeds 256 bits"
        )
    else:
        assert answer["result"] == "0x5208"  # with a little less gas
        poor = await chain.ask(method, request | {"value": hex(DEV_BALANCE - 20_999 * fee)})
        assert poor["error"] == {"code": -32000, "message": "gas required exceeds allowance (20999)"}
        broke = await chain.ask(method, request | {"value": hex(DEV_BALANCE + 1)})
        assert broke["error"]["message"] == "insufficient funds for transfer"
        assert await chain.call(method, request | {"gas": "0x1"}) == "0x5208"


async def test_an_estimate_is_enough_and_a_plain_transfer_costs_21000(chain):
    assert await chain.call("eth_estimateGas", {"from": A, "to": B, "value": "0x1"}) == "0x5208"
    counter = await deploy(chain, "counter")
    gas = int(
        await chain.call("eth_estimateGas", {"from": A, "to": counter, "data": call_data("increment()")}), 16
    )
    tx_hash = await chain.send(to=counter, data=call_data("increment()"), gas=gas)
    await chain.make_block()
    assert (await chain.call("eth_getTransactionReceipt", tx_hash))["status"] == "0x1"


async def test_calls_on_pending_see_the_tip_and_the_next_block_number(chain):
    counter = await deploy(chain, "counter")
    await chain.send(to=counter, data=call_data("increment()"), gas=200_000)
    chain.execute()
    read = {"to": counter, "data": call_data("count()")}
    assert int(await chain.call("eth_call", read, "latest"), 16) == 0
    assert int(await chain.call("eth_call", read, "pending"), 16) == 1


async def test_the_pending_block_is_the_builders_preview(chain):
    tx_hash = await chain.send(value=1)
    block = await chain.call("eth_getBlockByNumber", "pending", True)
    assert block["hash"] is None
    assert [(t["hash"], t["blockHash"]) for t in block["transactions"]] == [(tx_hash, None)]
    assert int(block["gasUsed"], 16) == 21_000
    assert await chain.call("eth_getBlockTransactionCountByNumber", "pending") == "0x1"
    assert (await chain.call("eth_getBlockByNumber", "latest"))["number"] == "0x0"
    made = await chain.make_block()
    assert made.header.shard_content.transaction_count == 1


async def test_a_delivery_appears_as_a_transaction_before_the_users(chain):
    tx_hash = await chain.send(value=1)
    encoded = build_transfer(1, CAROL.address, 77)
    message = formats.data(keccak256(b"message" + bytes([0, 1])))
    block = await chain.make_block([encoded])
    found = await chain.call("eth_getTransactionByHash", message)
    assert (found["transactionIndex"], found["from"], found["to"]) == ("0x0", "0x" + GATEWAY.hex(), C)
    assert (found["type"], found["v"], found["r"], found["s"]) == ("0x0",) * 4
    assert found["value"] == hex(77)
    full = await chain.call("eth_getBlockByNumber", "latest", True)
    assert [t["hash"] for t in full["transactions"]] == [message, tx_hash]
    receipt = await chain.call("eth_getTransactionReceipt", message)
    assert (receipt["status"], receipt["type"], receipt["gasUsed"]) == ("0x1", "0x0", "0x5208")
    later = await chain.call("eth_getTransactionReceipt", tx_hash)
    assert int(later["cumulativeGasUsed"], 16) == block.header.shard_content.gas_used == 42_000
    assert await chain.call("eth_getBalance", C) == hex(DEV_BALANCE + 77)


async def test_proofs_are_refused_with_the_reason(chain):
    for params in ([A, [], "latest"], [A, ["0x0"]], []):
        code = (await chain.ask("eth_getProof", *params))["error"]["code"]
        assert code == (-32004 if params else -32602)
    error = (await chain.ask("eth_getProof", A, [], "latest"))["error"]
    assert "LtHash" in error["message"]


async def test_who_pays_no_tip_does_not_make_wallets_pay_none(chain):
    for tip in (0, 1):
        await chain.send(maxPriorityFeePerGas=tip)
        await chain.make_block()
        assert await chain.call("eth_maxPriorityFeePerGas") == hex(1_000_000)
    await chain.send(maxPriorityFeePerGas=9_000_000)
    await chain.make_block()
    assert await chain.call("eth_maxPriorityFeePerGas") == hex(9_000_000)


async def test_a_call_for_another_chain_is_refused(chain):
    request = {"from": A, "to": B, "value": "0x1"}
    for method in ("eth_call", "eth_estimateGas"):
        answer = await chain.ask(method, request | {"chainId": hex(CHAIN_ID + 1)})
        assert answer["error"] == {
            "code": -32000,
            "message": f"chainId does not match node's (have={CHAIN_ID + 1}, want={CHAIN_ID})",
        }
        assert (await chain.ask(method, request | {"chainId": "1"}))["error"]["code"] == -32602
        for same in (hex(CHAIN_ID), None):
            assert "result" in await chain.ask(method, request | {"chainId": same})


async def test_fees_follow_the_base_fee_and_what_others_paid(chain):
    assert await chain.call("eth_maxPriorityFeePerGas") == hex(1_000_000)
    await chain.send(maxPriorityFeePerGas=9_000_000)
    await chain.make_block()
    assert await chain.call("eth_maxPriorityFeePerGas") == hex(9_000_000)
    history = await chain.call("eth_feeHistory", "0x5", "latest", [0, 50, 100])
    assert history["oldestBlock"] == "0x0"
    assert len(history["baseFeePerGas"]) == 3
    assert history["reward"] == [["0x0"] * 3, [hex(9_000_000)] * 3]
    next_fee = int(history["baseFeePerGas"][-1], 16)
    assert int(await chain.call("eth_gasPrice"), 16) == next_fee + 9_000_000
    block = await chain.make_block()
    assert block.header.shard_content.base_fee == next_fee
    assert (await chain.call("eth_feeHistory", 1, "latest")).keys() == {
        "oldestBlock",
        "baseFeePerGas",
        "gasUsedRatio",
        "baseFeePerBlobGas",
        "blobGasUsedRatio",
    }
    for bad in ([50, 10], [101], ["1"], [-1]):
        assert (await chain.ask("eth_feeHistory", "0x1", "latest", bad))["error"]["code"] == -32602
    assert (await chain.ask("eth_feeHistory", "0x1", "0x99"))["error"][
        "message"
    ] == "request beyond head block"


async def test_all_that_waits_of_a_sender_is_told_also_far_behind_a_gap_that_came_later(chain):
    hashes = [await chain.send(nonce=nonce) for nonce in range(100)]
    chain.backend.mempool.remove([bytes.fromhex(hashes[5][2:])])
    found = await chain.call("txpool_contentFrom", A)
    assert sorted(map(int, found["pending"])) == list(range(5))
    assert sorted(map(int, found["queued"])) == list(range(6, 100))


async def test_the_shard_methods_tell_of_heads_messages_and_finality(chain):
    gateway = "0x" + GATEWAY.hex()
    tx_hash = await chain.send(
        to=gateway, data=call_data("transfer(uint256,address)", 2, int(B, 16)), value=10**18, gas=300_000
    )
    await chain.make_block([build_transfer(1, CAROL.address, 77)])
    (sent,) = await chain.call("shard_getMessages", {"direction": "out"})
    assert (sent["kind"], sent["src"], sent["dst"], sent["stage"]) == ("TRANSFER", 1, 2, "emitted")
    assert sent["originTransaction"] == tx_hash
    assert (await chain.call("shard_getCrossTx", tx_hash))["messages"] == [sent]
    assert (await chain.call("shard_getFinality", tx_hash))["stage"] == "final"
    chain.backend.on_beacon_final(1)
    assert (await chain.call("shard_getMessage", sent["id"]))["stage"] == "relayed"
    assert (await chain.call("shard_getFinality", tx_hash))["stage"] == "beacon-final"
    (received,) = await chain.call("shard_getMessages", {"direction": "in", "src": 0})
    assert received["delivered"]["transactionIndex"] == 0
    assert await chain.call("shard_getMessages", {"src": 3}) == []
    assert (await chain.ask("shard_getMessages", {"sorc": 3}))["error"]["code"] == -32602
    assert (await chain.ask("shard_getFinality", True))["error"]["code"] == -32602
    assert await chain.call("shard_getMessage", "0x" + "00" * 32) is None
    status = await chain.call("shard_status")
    assert status["heads"]["latest"]["height"] == status["heads"]["finalized"]["height"] == 1
    assert status["inbox"]["consumed"] == 1
    assert [s["shard"] for s in await chain.call("shard_list")] == [0, 1, 2, 3]
    assert (await chain.call("shard_info"))["chainId"] == CHAIN_ID
    assert len((await chain.call("shard_getCommittee"))["validators"]) == 4


async def test_heights_of_messages_out_of_range_are_refused(chain):
    for bad in ({"fromBlock": -1}, {"toBlock": -1}, {"fromBlock": 2**64}):
        assert (await chain.ask("shard_getMessages", bad))["error"]["code"] == -32602


async def test_overrides_that_override_nothing_are_taken_and_others_refused_with_the_reason(chain):
    call = {"to": B}
    for method in ("eth_call", "eth_estimateGas"):
        plain = await chain.call(method, call, "latest")
        for overrides in ([None], [{}], [{}, None], [None, {}]):
            assert await chain.call(method, call, "latest", *overrides) == plain
        for overrides in ([{B: {"balance": "0x1"}}], [{}, {"number": "0x1"}], ["x"]):
            error = (await chain.ask(method, call, "latest", *overrides))["error"]
            assert (error["code"], "overrides" in error["message"]) == (-32004, True)


async def test_what_waits_is_told_in_geths_shapes(chain, monkeypatch):
    assert await chain.call("txpool_status") == {"pending": "0x0", "queued": "0x0"}
    first = await chain.send(value=5)
    await chain.send(nonce=7)
    assert await chain.call("txpool_status") == {"pending": "0x1", "queued": "0x1"}
    content = await chain.call("txpool_content")
    sender = to_checksum_address(A)
    assert content["pending"].keys() == content["queued"].keys() == {sender}
    assert content["pending"][sender].keys() == {"0"}
    assert content["pending"][sender]["0"]["hash"] == first
    assert content["queued"][sender].keys() == {"7"}
    assert await chain.call("txpool_contentFrom", A) == {part: content[part][sender] for part in content}
    assert await chain.call("txpool_contentFrom", B) == {"pending": {}, "queued": {}}
    told = (await chain.call("txpool_inspect"))["pending"][sender]["0"]
    assert told == f"{to_checksum_address(B)}: 5 wei + 21000 gas × 3000000000 wei"
    monkeypatch.setattr("node.rpc.txpool.MAX_CONTENT", 1)
    assert (await chain.ask("txpool_content"))["error"]["code"] == -32005
    assert set(await chain.call("rpc_modules")) == {name.partition("_")[0] for name in METHODS}


async def test_a_transaction_that_becomes_final_meanwhile_is_never_unknown(chain, monkeypatch):
    tx_hash = await chain.send()
    chain.execute()

    def miss(_):
        chain.index.append(build_indexed_block(*chain.logged[-1]))

    monkeypatch.setattr(chain.backend, "find_pending", miss)
    assert (await chain.call("shard_getFinality", tx_hash))["stage"] == "final"


async def test_there_are_no_blobs_and_their_gas_has_the_least_price(chain):
    assert await chain.call("eth_blobBaseFee") == "0x1"
    assert (await chain.call("eth_feeHistory", "1", "latest"))["baseFeePerBlobGas"] == ["0x1"] * 2


async def test_a_hash_that_is_right_in_its_first_half_alone_is_unknown(chain):
    tx_hash = await chain.send()
    await chain.make_block()
    other = tx_hash[:34] + "00" * 16
    assert await chain.call("eth_getTransactionByHash", other) is None
    assert await chain.call("eth_getTransactionReceipt", other) is None
    assert await chain.call("shard_getFinality", other) is None


def test_the_page_names_every_method(root):
    page = (root / "docs" / "json-rpc.md").read_text()
    told = set(re.findall(r"`((?:eth|net|web3|shard|txpool|rpc)_\w+)", page))
    assert told == set(METHODS)
