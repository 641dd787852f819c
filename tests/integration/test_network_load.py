"""Real processes under load: killed in parts, stopped and started again; nothing lost, nothing doubled, supply exact."""

import asyncio
import os
import signal

import msgspec
import pytest

from node.audit.answered import Answered
from node.audit.audit import audit_network
from node.bench.devnet import LAUNCHER, Devnet
from node.bench.recovery import kill_and_wait
from node.config import Options
from node.dev_accounts import DEV_ACCOUNTS
from node.executor import MIN_REPLAY_ITEMS
from node.load.client import RpcConnection
from node.load.run import LoadError, LoadRun, RunOptions
from node.load.workload import Knobs

pytestmark = pytest.mark.network
DEADLINE_S = 30.0


def build_load(devnet, *, seed, duration_s, shards=2):
    knobs = Knobs(shards=shards, tps=40, cross_ratio=0.3 if shards > 1 else 0, accounts=4, seed=seed)
    return LoadRun(devnet.urls, knobs, RunOptions(duration_s, warm_up_s=0, drain_s=60, sign_ahead_s=3))


def assert_audit_holds(network, loads):
    answered = [entry for load in loads for entry in load.list_answered()]
    report = audit_network(network, msgspec.convert(answered, list[Answered]))
    assert {row.promise: row.findings for row in report.rows if row.broken} == {}
    assert report.in_flight == 0
    assert report.answered.included == len(answered)


async def read_state(url):
    connection = RpcConnection(url)
    try:
        addresses = [account.checksum_address for account in DEV_ACCOUNTS]
        calls = [("eth_getBalance", (address, "latest")) for address in addresses]
        calls += [("eth_getTransactionCount", (address, "latest")) for address in addresses]
        calls.append(("eth_getBlockByNumber", ("0x5", True)))
        return [answer.result for answer in await connection.request_batch(calls)]
    finally:
        connection.close()


@pytest.mark.parametrize("victim", ["shard-1-0", "broker", "beacon-0", LAUNCHER])
async def test_nothing_is_lost_or_doubled_when_a_process_is_killed_under_load(
    tmp_path, eventually_async, victim
):
    async with Devnet(tmp_path, Options(name="killed", shards=2, validators=4, block_time_ms=500)) as devnet:
        load = build_load(devnet, seed=3, duration_s=60)
        await load.prepare()
        sending = asyncio.create_task(load.send())
        await eventually_async(lambda: load.accepted > 40, DEADLINE_S)
        recovery = await kill_and_wait(devnet, load.tracker, victim, 0.0)
        load.stop()
        result = await sending
    assert recovery.beacon_final_s > 0
    assert result.is_valid
    assert result.settled == result.sent == result.accepted
    assert_audit_holds(devnet.network, [load])


async def test_restart_after_down_has_balances_nonces_and_history(tmp_path):
    devnet = Devnet(tmp_path, Options(name="restarted", shards=2, validators=4, block_time_ms=250))
    async with devnet:
        first = build_load(devnet, seed=5, duration_s=1)
        assert (await first.run()).settled == 40
        before = [await read_state(url) for url in devnet.urls]
    async with devnet:
        assert [await read_state(url) for url in devnet.urls] == before
        second = build_load(devnet, seed=6, duration_s=1)
        assert (await second.run()).settled == 40
    assert_audit_holds(devnet.network, [first, second])


async def test_network_of_one_shard_carries_load(tmp_path):
    async with Devnet(tmp_path, Options(name="one", shards=1, validators=1, block_time_ms=250)) as devnet:
        load = build_load(devnet, seed=7, duration_s=1, shards=1)
        result = await load.run()
        with pytest.raises(LoadError, match="--seed"):
            await build_load(devnet, seed=7, duration_s=1, shards=1).run()
    assert result.settled == result.sent == 40
    assert_audit_holds(devnet.network, [load])


async def read_execution(url):
    """Return the modes in which a node executed its blocks with more transactions than run in order, and their lists."""
    connection = RpcConnection(url)
    try:
        head = int((await connection.request_batch([("eth_blockNumber", ())]))[0].result, 16)
        calls = [("shard_getBlockStats", (height,)) for height in range(1, head + 1)]
        stats = [answer.result for answer in await connection.request_batch(calls)]
        full = [found for found in stats if found["transactions"] + found["deliveries"] >= MIN_REPLAY_ITEMS]
        calls = [("shard_getBlockAccessList", (found["blockNumber"],)) for found in full]
        lists = [answer.result for answer in await connection.request_batch(calls)] if calls else []
        return {found["blockHash"]: (found["mode"], text) for found, text in zip(full, lists, strict=True)}
    finally:
        connection.close()


async def test_replicas_execute_each_others_full_blocks_by_their_access_lists(tmp_path):
    options = Options(name="lists", shards=1, nodes_per_shard=2, validators=4, block_time_ms=500, executors=2)
    async with Devnet(tmp_path, options) as devnet:
        knobs = Knobs(shards=1, tps=300, cross_ratio=0, accounts=4, seed=9)
        load = LoadRun(devnet.urls, knobs, RunOptions(4, warm_up_s=0, drain_s=60))
        result = await load.run()
        urls = devnet.network.read_endpoints()["shards"][0]["nodes"].values()
        first, second = [await read_execution(url) for url in urls]
    assert result.settled == result.sent
    both = first.keys() & second.keys()
    assert both
    assert {first[block][1]["accessListHash"] for block in both} == {
        second[block][1]["accessListHash"] for block in both
    }
    modes = {tuple(sorted((first[block][0], second[block][0]))) for block in both}
    assert ("build", "replay") in modes
    assert modes <= {
        ("build", "replay"),
        ("build", "validate"),
    }  # a proposal may be lost, and is fetched without list
    assert_audit_holds(devnet.network, [load])


async def test_peers_of_a_node_are_those_it_hears(tmp_path, eventually_async):
    options = Options(name="peers", shards=1, nodes_per_shard=2, validators=4, block_time_ms=250)

    async with Devnet(tmp_path, options) as devnet:
        connection = RpcConnection(devnet.urls[0])
        heard = []

        async def hears(*nodes):
            status = (await devnet.ask("shard-0-0", "status"))["bus"]["peers"]
            heard[:] = [status, await connection.request("net_peerCount")]
            return heard == [list(nodes), hex(len(nodes))]

        try:
            await eventually_async(lambda: hears("beacon-0", "shard-0-1"), DEADLINE_S)
            pid = (await devnet.get_pids())["shard-0-1"]
            os.kill(pid, signal.SIGSTOP)
            await eventually_async(lambda: hears("beacon-0"), DEADLINE_S)
            os.kill(pid, signal.SIGCONT)
            await eventually_async(lambda: hears("beacon-0", "shard-0-1"), DEADLINE_S)
        finally:
            connection.close()


async def test_two_replicas_of_a_shard_hold_one_chain_and_outlive_the_loss_of_one(tmp_path, eventually_async):
    options = Options(name="pair", shards=2, nodes_per_shard=2, validators=4, block_time_ms=500)
    async with Devnet(tmp_path, options) as devnet:
        load = build_load(devnet, seed=8, duration_s=60)
        await load.prepare()
        sending = asyncio.create_task(load.send())
        await eventually_async(lambda: load.accepted > 40, DEADLINE_S)
        recovery = await kill_and_wait(devnet, load.tracker, "shard-0-1", 0.0)
        load.stop()
        result = await sending
    assert recovery.beacon_final_s > 0
    assert result.settled == result.sent
    assert_audit_holds(devnet.network, [load])
