"""How blocks were executed, told to people: by ``shard_getBlockStats``, in status and as metrics."""

from typing import Any

import msgspec
import pytest
from eth_abi import encode as encode_abi

from node.artifacts import load_artifact
from node.block_stats import MAX_BLOCKS, RECENT_BLOCKS, BlockStats, ExecutionHistory, HotLocation
from node.cli.block import describe_location, list_execution_rows
from node.cli.network import describe_execution
from node.rpc.execution_stats import MAX_VARIABLES, name_locations, name_slots
from shardyard._native import keccak256
from shardyard.ids import GATEWAY, Address, Hash32
from tests.unit.node.rpc_chain import ALICE, BOB, CAROL, open_chain
from tests.unit.node.test_rpc_http import request
from tests.unit.node.test_rpc_methods import call_data

NOBODY = Address(b"\xee" * 20)


def build_stats(**fields: Any) -> BlockStats:
    values: dict[str, Any] = {
        "execute_us": 1000,
        "execute_cpu_us": 1900,
        "commit_us": 300,
        "transactions": 100,
        "deliveries": 0,
        "workers": 2,
        "incarnations": 110,
        "aborts": 10,
        "at_turn": 3,
        "solos": 0,
        "work_us": 1800,
    }
    return BlockStats(**values | fields)


def pack(stats: BlockStats) -> bytes:
    return msgspec.msgpack.encode(stats)


async def fill_block(chain: Any, count: int = 30) -> Any:
    for sender, to in ((ALICE, BOB), (BOB, CAROL), (CAROL, ALICE)):
        for _ in range(count):
            await chain.send(sender, to=to.checksum_address, value=1)
    return await chain.make_block()


def test_history_forgets_the_oldest_block_first():
    history = ExecutionHistory(2)
    hashes = [Hash32(number.to_bytes(32, "big")) for number in range(MAX_BLOCKS + 1)]
    for block_hash in hashes:
        history.record(block_hash, pack(build_stats()))
    assert history.get(hashes[0]) is None
    assert history.get(hashes[1]) == history.get(hashes[-1]) == build_stats()
    assert history.totals.blocks == MAX_BLOCKS + 1
    assert history.recent.blocks == RECENT_BLOCKS


def test_recent_figures_weigh_blocks_by_their_time_and_leave_empty_ones_out():
    history = ExecutionHistory(2)
    history.record(Hash32(b"\1" * 32), pack(build_stats(execute_us=1000, work_us=2000, aborts=0)))
    history.record(Hash32(b"\2" * 32), pack(build_stats(execute_us=3000, work_us=3000, aborts=20)))
    history.record(Hash32(b"\3" * 32), pack(build_stats(transactions=0, execute_us=9000, work_us=0)))
    found = history.describe()
    assert (found["speedUp"], found["abortRate"], found["recentBlocks"]) == (1.25, 0.1, 2)


def test_nothing_executed_is_no_figure():
    history = ExecutionHistory(1)
    history.record(Hash32(b"\1" * 32), b"")
    assert history.describe() == {
        "executors": 1,
        "recentBlocks": 0,
        "recentItems": 0,
        "speedUp": None,
        "abortRate": None,
    }
    assert describe_execution(history.describe()) == ("1", "-", "-")


@pytest.mark.parametrize("threads", [1, 2])
async def test_a_block_says_on_how_many_threads_it_ran_and_what_that_gained(tmp_path, threads):
    async with open_chain(tmp_path, threads=threads) as chain:
        await fill_block(chain)
        block = await chain.call("eth_getBlockByNumber", "0x1", False)
        stats = await chain.call("shard_getBlockStats", 1)
        assert stats == await chain.call("shard_getBlockStats", block["hash"])
        assert (stats["transactions"], stats["executors"]) == (90, threads)
        if threads == 1:
            assert (stats["workers"], stats["incarnations"], stats["speedUp"]) == (0, 0, 1.0)
        else:
            assert stats["workers"] == 2
            assert stats["incarnations"] >= 90
            assert stats["workUs"] > 0
        status = (await chain.call("shard_status"))["execution"]
        assert (status["executors"], status["recentBlocks"], status["recentItems"]) == (threads, 1, 90)
        assert status["speedUp"] == stats["speedUp"]


async def test_a_block_this_process_did_not_execute_has_no_statistics(chain):
    block = await chain.make_block()
    chain.backend.execution = ExecutionHistory(1)
    assert await chain.call("shard_getBlockStats", "0x" + block.hash.hex()) is None
    assert await chain.call("shard_getBlockStats", "latest") is None
    assert await chain.call("shard_getBlockStats", "0x" + "12" * 32) is None
    assert (await chain.ask("shard_getBlockStats", 99))["error"]["code"] == -32000
    assert list_execution_rows(None) == []


async def test_ethereums_methods_answer_alike_however_a_block_was_executed(tmp_path):
    answers = []
    for threads in (1, 2):
        async with open_chain(tmp_path / str(threads), threads=threads) as chain:
            await fill_block(chain)
            answers.append(await chain.call("eth_getBlockByNumber", "0x1", True))
    assert answers[0] == answers[1]


async def test_a_hot_slot_of_our_token_is_told_as_variable_and_key(chain):
    token = load_artifact("erc20")
    arguments = encode_abi(("string", "string", "uint256"), ("Yard", "YRD", 1000))
    created = await chain.send(to=None, data=token.init_code + arguments, gas=3_000_000)
    await chain.make_block()
    address = (await chain.call("eth_getTransactionReceipt", created))["contractAddress"]
    await chain.send(
        to=address, data=call_data("transfer(address,uint256)", int(BOB.address.hex(), 16), 7), gas=99_000
    )
    await chain.make_block()
    variable = token.storage["balanceOf"].to_bytes(32, "big")
    slot = keccak256(variable + BOB.address.rjust(32, b"\0"))
    assert int(await chain.call("eth_getStorageAt", address, "0x" + slot.hex(), "latest"), 16) == 7
    hottest = (
        HotLocation(Address(bytes.fromhex(address[2:])), slot, 9),
        HotLocation(GATEWAY, None, 4),
        HotLocation(NOBODY, b"\xab" * 32, 1),
    )
    named = name_locations(chain.core, chain.backend.latest, build_stats(hottest=hottest))
    assert named[0] | {"slot": None} == {
        "address": address,
        "slot": None,
        "aborts": 9,
        "contract": "erc20",
        "variable": "balanceOf",
        "variableSlot": token.storage["balanceOf"],
        "key": "0x" + BOB.address.hex(),
    }
    assert [describe_location(found)[1] for found in named] == [
        f"balanceOf[0x{BOB.address.hex()}]",
        "account",
        "slot 0x" + "ab" * 32,
    ]
    assert describe_location(named[1])[0].endswith("(gateway)")


def test_mappings_are_known_in_both_layouts():
    key, variable = bytes(ALICE.address), (3).to_bytes(32, "big")
    word = key.rjust(32, b"\0")
    slots = {keccak256(word + variable), keccak256(variable + word), (5).to_bytes(32, "big"), b"\xff" * 32}
    found = name_slots(slots, [key])
    assert sorted((name.variable, name.key) for name in found.values() if name.key) == [(3, key), (3, key)]
    assert found[(5).to_bytes(32, "big")].key is None
    assert b"\xff" * 32 not in found
    assert MAX_VARIABLES > 5


async def test_metrics_tell_what_was_executed(tmp_path):
    async with open_chain(tmp_path, threads=2) as chain:
        await fill_block(chain)
        status, headers, body = await request(chain, b"", method="GET", path="/metrics")
        assert (status, headers["content-type"].partition(";")[0]) == (200, "text/plain")
        lines = body.decode().splitlines()
        values = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        assert float(values['shardyard_executors{shard="1"}']) == 2
        assert float(values['shardyard_executed_items_total{shard="1"}']) == 90
        assert float(values['shardyard_incarnations_total{shard="1"}']) >= 90
        assert float(values['shardyard_parallel_blocks_total{shard="1"}']) == 1
        assert float(values['shardyard_execute_seconds_total{shard="1"}']) > 0
        assert float(values['shardyard_latest_height{shard="1"}']) == 1


async def test_metrics_are_for_this_machine_only(chain):
    status, _, _ = await request(chain, b"", method="GET", path="/metrics", headers={"host": "evil.example"})
    assert status == 403
    assert (await request(chain, b"", method="GET", path="/metric"))[0] == 404


def test_rows_of_a_parallel_block_name_its_speed_up_and_what_was_thrown_away():
    stats = {
        "transactions": 100,
        "deliveries": 2,
        "mode": "build",
        "executors": 2,
        "workers": 2,
        "executeUs": 1500,
        "commitUs": 500,
        "speedUp": 1.7,
        "incarnations": 110,
        "aborts": 8,
        "atTurn": 3,
        "solos": 0,
    }
    rows = dict(list_execution_rows(stats))
    assert rows["executed"] == "on 2 threads, 1.50 ms; commitment 0.50 ms"
    assert rows["speed-up"].startswith("1.70x")
    assert rows["executions"] == "110 of 102 items, 8 thrown away"
