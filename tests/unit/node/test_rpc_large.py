"""Large answers: put into JSON off the loop, whatever makes them large, and not made to the end when they become too large."""

import threading

import msgspec
import pytest

from node.refusal import RESPONSE_TOO_LARGE
from node.rpc import formats, protocol
from node.rpc.params import read_log_query
from node.rpc.subscriptions import build_subscription
from tests.unit.node.rpc_chain import ALICE, RpcChain

LOGGER = bytes.fromhex("5b60006000a05a6110001060005700")
"""Writes empty logs while it has more than 4,096 gas."""
DEPLOYMENT = bytes.fromhex("600f600c600039600f6000f3") + LOGGER
WAYS = ("eth_getTransactionReceipt", "eth_getBlockReceipts", "eth_getLogs")


@pytest.fixture
async def questions(chain: RpcChain) -> dict[str, object]:
    """What each way to logs is asked for those of block 2: one transaction that wrote some thousand."""
    created = await chain.send(to=None, data=DEPLOYMENT, gas=100_000)
    await chain.make_block()
    contract = (await chain.call("eth_getTransactionReceipt", created))["contractAddress"]
    tx_hash = await chain.send(to=contract, gas=1_000_000)
    block = await chain.make_block()
    return dict(zip(WAYS, (tx_hash, "0x2", {"blockHash": "0x" + block.hash.hex()}), strict=True))


@pytest.fixture
def threads(monkeypatch) -> list[threading.Thread]:
    """The thread of every log that was put into JSON."""
    found: list[threading.Thread] = []
    format_log = formats.format_log

    def note(log):
        found.append(threading.current_thread())
        return format_log(log)

    monkeypatch.setattr(formats, "format_log", note)
    monkeypatch.setattr("node.rpc.eth_logs.format_log", note)
    monkeypatch.setattr("node.rpc.subscriptions.format_log", note)
    return found


@pytest.mark.parametrize("way", WAYS)
async def test_a_transaction_of_many_logs_does_not_hold_up_the_loop(chain, questions, threads, way):
    answer = await chain.call(way, questions[way])
    logs = answer if way == "eth_getLogs" else (answer[0] if isinstance(answer, list) else answer)["logs"]
    assert [int(log["logIndex"], 16) for log in logs] == list(range(len(logs)))
    assert len(logs) == len(threads) > 2000
    assert threading.main_thread() not in threads


@pytest.mark.parametrize("way", WAYS)
async def test_of_an_answer_that_becomes_too_large_the_rest_is_not_made(
    chain, questions, threads, monkeypatch, way
):
    monkeypatch.setattr(protocol, "MAX_ANSWER_BYTES", 10_000)
    answer = await chain.ask(way, questions[way])
    assert answer["error"] == {"code": RESPONSE_TOO_LARGE, "message": "response too large"}
    assert len(threads) < 50


@pytest.mark.parametrize("method", ["txpool_content", "txpool_contentFrom"])
async def test_of_a_mempool_that_is_too_large_for_an_answer_the_rest_is_not_told(chain, monkeypatch, method):
    for nonce in range(10):
        await chain.send(nonce=nonce, data=bytes(1000), gas=100_000)
    described: list[bytes] = []

    def note(raw, core):
        described.append(raw)
        return formats.format_waiting(raw, core)

    monkeypatch.setattr("node.rpc.txpool.format_waiting", note)
    monkeypatch.setattr(protocol, "MAX_ANSWER_BYTES", 10_000)
    answer = await chain.ask(method, *(["0x" + ALICE.address.hex()] if method.endswith("From") else []))
    assert answer["error"] == {"code": RESPONSE_TOO_LARGE, "message": "response too large"}
    assert 0 < len(described) < 10


async def test_the_logs_of_a_large_block_are_told_in_turns_and_before_the_next_head(
    chain, questions, threads
):
    told: list[tuple[str, int]] = []

    def subscribe(kind, options, limit=1 << 30):
        def send(text):
            params = msgspec.json.decode(text)["params"]
            result = params["result"]
            told.append((kind, int(result.get("logIndex", result.get("number")), 16)))
            return len(told) < limit

        subscription = build_subscription(kind, options, send)
        chain.app.hub.add(subscription)
        return subscription

    contract = (await chain.call("eth_getTransactionReceipt", questions["eth_getTransactionReceipt"]))["to"]
    subscribe("newHeads", None)
    logs = subscribe("logs", read_log_query({"address": contract}))
    await chain.send(to=contract, gas=1_000_000)
    threads.clear()
    await chain.make_block()
    await chain.make_block()
    count = len(threads)
    assert count > 2000
    assert threading.main_thread() not in threads
    assert told == [("newHeads", 3), *(("logs", index) for index in range(count)), ("newHeads", 4)]
    chain.app.hub.remove(logs.id)
    told.clear()
    subscribe("logs", read_log_query({}), limit=3)
    await chain.send(to=contract, gas=1_000_000)
    await chain.make_block()
    assert told == [("newHeads", 5), ("logs", 0), ("logs", 1)]
