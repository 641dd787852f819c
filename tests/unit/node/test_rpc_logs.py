"""Logs, filters and what is pushed: the same logs whichever way they are asked for."""

import asyncio
import threading
import time
from collections import deque
from typing import Any

import pytest

from node.index import logs as index_logs
from node.refusal import LIMIT_EXCEEDED, RpcError
from node.rpc import eth_logs
from node.rpc.filters import FilterRegistry
from node.rpc.params import LATEST, LogQuery
from tests.unit.node.rpc_chain import CAROL, build_transfer
from tests.unit.node.test_rpc_methods import call_data, deploy

QUERY = LogQuery(LATEST, LATEST, None, (), ())


@pytest.fixture
async def counter(chain) -> str:
    """A contract that logs, called in blocks 2 and 4."""
    address = await deploy(chain, "counter")
    for height in range(2, 6):
        if height in {2, 4}:
            await chain.send(to=address, data=call_data("increment()"), gas=200_000)
        await chain.make_block([build_transfer(1, CAROL.address, 1)] if height == 4 else ())
    return address


async def test_logs_are_found_by_address_topic_range_and_block(chain, counter):
    found = await chain.call("eth_getLogs", {"fromBlock": "0x0", "toBlock": "latest", "address": counter})
    assert [log["blockNumber"] for log in found] == ["0x2", "0x4"]
    assert [log["transactionIndex"] for log in found] == ["0x0", "0x1"]
    topic = found[0]["topics"][0]
    assert await chain.call("eth_getLogs", {"fromBlock": "earliest", "topics": [topic]}) == found
    assert (
        await chain.call("eth_getLogs", {"fromBlock": "earliest", "topics": [["0x" + "00" * 32, topic]]})
        == found
    )
    assert await chain.call("eth_getLogs", {"fromBlock": "earliest", "topics": ["0x" + "00" * 32]}) == []
    assert await chain.call("eth_getLogs", {"blockHash": found[1]["blockHash"]}) == found[1:]
    receipt = await chain.call("eth_getTransactionReceipt", found[1]["transactionHash"])
    assert receipt["logs"] == found[1:]
    assert await chain.call("eth_getLogs", {}) == []


async def test_reversed_and_future_ranges_and_unknown_blocks_are_refused(chain, counter):
    for query in ({"fromBlock": "0x4", "toBlock": "0x2"}, {"fromBlock": "0x1", "toBlock": "0x99"}):
        assert (await chain.ask("eth_getLogs", query))["error"]["code"] == -32602
    unknown = await chain.ask("eth_getLogs", {"blockHash": "0x" + "ab" * 32})
    assert unknown["error"] == {"code": -32000, "message": "unknown block"}


async def test_ranges_and_results_are_capped(chain, counter, monkeypatch):
    monkeypatch.setattr(index_logs, "MAX_BLOCK_RANGE", 3)
    wide = await chain.ask("eth_getLogs", {"fromBlock": "0x0", "toBlock": "0x3"})
    assert (wide["error"]["code"], "block range" in wide["error"]["message"]) == (-32005, True)
    monkeypatch.setattr(index_logs, "MAX_BLOCK_RANGE", 100)
    monkeypatch.setattr(eth_logs, "MAX_LOGS", 1)
    many = await chain.ask("eth_getLogs", {"fromBlock": "0x0", "toBlock": "0x5"})
    assert "query returned more than 1 results" in many["error"]["message"]
    monkeypatch.setattr(eth_logs, "MAX_LOGS", 10)
    monkeypatch.setattr(eth_logs, "MAX_LOG_BYTES", 700)
    much = await chain.ask("eth_getLogs", {"fromBlock": "0x0", "toBlock": "0x5"})
    assert much["error"] == {"code": -32005, "message": "query returned more than 700 bytes"}


async def test_logs_of_a_block_that_came_by_a_snapshot_are_not_said_to_be_none(chain, counter, monkeypatch):
    (log,) = await chain.call("eth_getLogs", {"fromBlock": "0x2", "toBlock": "0x2"})
    monkeypatch.setattr(type(chain.backend.index), "first_height", 3)
    assert (await chain.ask("eth_getLogs", {"blockHash": log["blockHash"]}))["error"]["code"] == 4444


async def test_a_filter_with_more_logs_than_fit_gives_the_rest_at_the_next_poll(chain, monkeypatch):
    address = await deploy(chain, "counter")
    filter_id = await chain.call("eth_newFilter", {"address": address, "fromBlock": "0x0"})
    for _ in range(5):
        await chain.send(to=address, data=call_data("increment()"), gas=200_000)
        await chain.send(to=address, data=call_data("increment()"), gas=200_000)
        await chain.make_block()
    monkeypatch.setattr(eth_logs, "MAX_LOGS", 4)
    found = [await chain.call("eth_getFilterChanges", filter_id) for _ in range(4)]
    assert [len(logs) for logs in found] == [4, 4, 2, 0]
    monkeypatch.setattr(eth_logs, "MAX_LOGS", 100)
    assert [log for logs in found for log in logs] == await chain.call("eth_getLogs", {"fromBlock": "0x2"})
    monkeypatch.setattr(eth_logs, "MAX_LOGS", 3)  # pages end within blocks as well
    again = await chain.call("eth_newFilter", {"address": address})
    for _ in range(2):
        for _ in range(5):
            await chain.send(to=address, data=call_data("increment()"), gas=200_000)
        await chain.make_block()
    found = [await chain.call("eth_getFilterChanges", again) for _ in range(5)]
    assert [len(logs) for logs in found] == [3, 3, 3, 1, 0]
    places = [(log["blockNumber"], log["logIndex"]) for logs in found for log in logs]
    assert places == sorted(set(places))


async def test_polls_that_come_together_tell_each_log_once(chain):
    address = await deploy(chain, "counter")
    filter_id = await chain.call("eth_newFilter", {"address": address})
    await chain.send(to=address, data=call_data("increment()"), gas=200_000)
    await chain.make_block()
    found = await asyncio.gather(*(chain.call("eth_getFilterChanges", filter_id) for _ in range(3)))
    assert sorted(map(len, found)) == [0, 0, 1]


async def test_a_poll_that_fails_loses_no_log(chain, monkeypatch):
    address = await deploy(chain, "counter")
    filter_id = await chain.call("eth_newFilter", {"address": address})
    await chain.send(to=address, data=call_data("increment()"), gas=200_000)
    await chain.make_block()

    async def refuse(_work):
        raise RpcError(LIMIT_EXCEEDED, "too many requests")

    with monkeypatch.context() as patch:
        patch.setattr(chain.backend, "read", refuse)
        assert (await chain.ask("eth_getFilterChanges", filter_id))["error"]["code"] == -32005
    assert len(await chain.call("eth_getFilterChanges", filter_id)) == 1


async def test_a_search_that_nobody_waits_for_any_more_ends(chain, counter, monkeypatch, eventually_async):
    began, ended, looks = threading.Event(), threading.Event(), deque(maxlen=1)

    def find(_index, _pattern, first, last, *, should_stop):
        began.set()
        deadline = time.monotonic() + 20  # so that a fault of the mechanism ends the test, and fails it
        while not should_stop() and time.monotonic() < deadline:
            looks.append(first)
        ended.set()
        yield from ()

    monkeypatch.setattr(eth_logs, "find_logs", find)
    asking = asyncio.create_task(chain.ask("eth_getLogs", {"fromBlock": "0x0"}))
    await eventually_async(began.is_set)
    asking.cancel()
    await eventually_async(ended.is_set)
    assert looks


async def test_filters_that_stay_name_a_bounded_number_of_alternatives(chain):
    many = ["0x" + number.to_bytes(20, "big").hex() for number in range(600)]
    assert await chain.call("eth_getLogs", {"address": many}) == []
    assert (await chain.ask("eth_newFilter", {"address": many}))["error"]["code"] == -32602
    reversed_range = await chain.ask("eth_newFilter", {"fromBlock": "0x5", "toBlock": "0x4"})
    assert "invalid block range params" in reversed_range["error"]["message"]


async def test_a_log_filter_gives_each_log_once(chain):
    address = await deploy(chain, "counter")
    filter_id = await chain.call("eth_newFilter", {"address": address, "fromBlock": "0x0"})
    assert await chain.call("eth_getFilterChanges", filter_id) == []
    await chain.send(to=address, data=call_data("increment()"), gas=200_000)
    await chain.make_block()
    (log,) = await chain.call("eth_getFilterChanges", filter_id)
    assert log["blockNumber"] == "0x2"
    assert await chain.call("eth_getFilterChanges", filter_id) == []
    assert await chain.call("eth_getFilterLogs", filter_id) == [log]
    assert await chain.call("eth_uninstallFilter", filter_id) is True
    assert await chain.call("eth_uninstallFilter", filter_id) is False
    assert (await chain.ask("eth_getFilterChanges", filter_id))["error"]["message"] == "filter not found"


async def test_block_and_pending_filters_give_what_is_new(chain):
    blocks = await chain.call("eth_newBlockFilter")
    pending = await chain.call("eth_newPendingTransactionFilter")
    tx_hash = await chain.send()
    block = await chain.make_block()
    assert await chain.call("eth_getFilterChanges", blocks) == ["0x" + block.hash.hex()]
    assert await chain.call("eth_getFilterChanges", pending) == [tx_hash]
    assert await chain.call("eth_getFilterChanges", blocks) == []
    assert await chain.call("eth_getFilterChanges", pending) == []
    assert (await chain.ask("eth_getFilterLogs", blocks))["error"]["message"] == "filter not found"


def test_filters_that_nobody_polls_are_forgotten_and_their_number_is_bounded(monkeypatch):
    now = [0.0]
    registry = FilterRegistry(lambda: now[0])
    kept, left = registry.add_block_filter(1), registry.add_log_filter(QUERY, 1)
    now[0] = 200.0
    registry.poll(kept)
    now[0] = 400.0
    registry.poll(kept)
    with pytest.raises(Exception, match="filter not found"):
        registry.poll(left)
    monkeypatch.setattr("node.rpc.filters.MAX_FILTERS", 10)
    for _ in range(50):
        registry.add_block_filter(1)
    assert len(registry) == 10


def test_hashes_are_not_kept_for_a_pending_filter_that_nobody_polls():
    now = [0.0]
    registry = FilterRegistry(lambda: now[0])
    registry.add_pending_filter()
    assert registry.wants_pending
    now[0] = 301.0
    assert not registry.wants_pending
    assert len(registry) == 0


def test_pending_hashes_are_kept_for_slow_pollers_up_to_a_bound(monkeypatch):
    monkeypatch.setattr("node.rpc.filters.MAX_PENDING_KEPT", 8)
    registry = FilterRegistry()
    slow: Any = registry.poll(registry.add_pending_filter())
    hashes = [bytes([i]) * 32 for i in range(100)]
    for item in hashes:
        registry.note_pending([item])
    found = registry.take_pending(slow)
    assert found == hashes[-len(found) :]
    assert 8 <= len(found) <= 16
    assert registry.take_pending(slow) == []
