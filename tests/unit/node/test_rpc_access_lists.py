"""Block access lists told to people: with EIP-7928's names, only what the header commits to, and as long as they are kept."""

import asyncio

import msgspec
import pytest
import rlp

from node.block_stats import ExecutionHistory
from node.cli.block import list_access_rows, list_accesses, list_execution_rows
from node.executor import MIN_REPLAY_ITEMS, ShardExecutor, StateRecord
from node.storage import log as log_module
from node.storage.log import BlockLog, EntryKind
from shardyard import _native
from shardyard import effects as fx
from shardyard.events import Executed
from tests.unit.node.rpc_chain import ALICE, BOB, CAROL, RpcChain
from tests.unit.node.test_block_stats import build_stats, fill_block, pack
from tests.unit.node.test_rpc_http import request
from tests.unit.node.test_rpc_methods import call_data, deploy


async def test_a_list_names_what_a_block_changed_and_read(chain):
    counter = await deploy(chain, "counter")
    before = int(await chain.call("eth_getBalance", "0x" + BOB.address.hex()), 16)
    await chain.send(to=counter, data=call_data("increment()"), gas=99_000)
    await chain.send(sender=CAROL, to=BOB.checksum_address, value=7)
    block = await chain.make_block()
    found = await chain.call("shard_getBlockAccessList", "latest")
    assert found == await chain.call("shard_getBlockAccessList", "0x" + block.hash.hex())
    assert (found["blockNumber"], found["blockHash"]) == (2, "0x" + block.hash.hex())
    accounts = {account["address"]: account for account in found["accessList"]}
    assert list(accounts) == sorted(accounts)
    assert (found["accounts"], found["accessListHash"]) == (
        len(accounts),
        "0x" + block.header.shard_content.access_list_hash.hex(),
    )
    assert accounts[counter]["storageChanges"]
    for change in accounts[counter]["storageChanges"]:
        slot, (last,) = change["slot"], change["changes"]
        assert last["blockAccessIndex"] in {"0x1", "0x2"}
        assert await chain.call("eth_getStorageAt", counter, slot, "latest") == last["postValue"]
    bob = accounts["0x" + BOB.address.hex()]
    assert [change["postBalance"] for change in bob["balanceChanges"]] == [hex(before + 7)]
    alice = accounts["0x" + ALICE.address.hex()]
    assert [change["postNonce"] for change in alice["nonceChanges"]] == ["0x2"]
    slots = [
        len(account[name]) for name in ("storageChanges", "storageReads") for account in accounts.values()
    ]
    assert sum(slots) == found["slotsChanged"] + found["slotsRead"]


async def test_a_deployment_lists_the_code(chain):
    address = await deploy(chain, "counter")
    found = await chain.call("shard_getBlockAccessList", 1)
    (account,) = [account for account in found["accessList"] if account["address"] == address]
    assert account["codeChanges"] == [
        {"blockAccessIndex": "0x1", "newCode": await chain.call("eth_getCode", address)}
    ]


async def test_a_summary_is_the_list_without_its_accounts(chain):
    await chain.send(value=1)
    await chain.make_block()
    whole = await chain.call("shard_getBlockAccessList", 1, True)
    assert await chain.call("shard_getBlockAccessList", 1, False) == whole | {"accessList": None}


async def test_the_core_reads_what_a_library_of_rlp_reads(chain):
    await deploy(chain, "counter")
    await fill_block(chain)

    def words(changes):
        return [[number(index), value.lstrip(b"\0")] for index, value in changes]

    def number(value):
        return value.to_bytes((value.bit_length() + 7) // 8, "big")

    for encoded in (*chain.access_lists.values(), b"\xc0"):
        found = [
            [
                address,
                [[slot.lstrip(b"\0"), words(changes)] for slot, changes in storage],
                [slot.lstrip(b"\0") for slot in reads],
                words(balances),
                [[number(index), number(nonce)] for index, nonce in nonces],
                [[number(index), code] for index, code in codes],
            ]
            for address, storage, reads, balances, nonces, codes in _native.decode_access_list(encoded)
        ]
        assert found == rlp.decode(encoded)
    with pytest.raises(_native.CoreError, match="access list"):
        _native.decode_access_list(b"\xc1")


async def test_an_unknown_block_is_null_and_a_list_that_is_gone_says_so(chain):
    for _ in range(3):
        await chain.make_block()
    assert await chain.call("shard_getBlockAccessList", "0x" + "12" * 32) is None
    assert await chain.call("shard_getBlockAccessList", 99) is None
    assert "never executed" in (await chain.ask("shard_getBlockAccessList", 0))["error"]["message"]
    preset = msgspec.structs.replace(chain.genesis.preset, history_blocks=2)
    chain.backend.genesis = msgspec.structs.replace(chain.genesis, preset=preset)
    assert (await chain.call("shard_getBlockAccessList", 2))["blockNumber"] == 2
    error = (await chain.ask("shard_getBlockAccessList", 1))["error"]
    assert (error["code"], "no longer held: lists are kept for the last 2 blocks" in error["message"]) == (
        -32000,
        True,
    )
    chain.access_lists.clear()
    assert "no longer held" in (await chain.ask("shard_getBlockAccessList", 3))["error"]["message"]


async def test_a_list_that_is_not_the_headers_is_not_served(chain):
    block = await chain.make_block()
    key = (1, block.hash)
    chain.access_lists[key] = chain.access_lists[key][:-1] + b"\x01"
    error = (await chain.ask("shard_getBlockAccessList", 1))["error"]
    assert "its header says 0x" + block.header.shard_content.access_list_hash.hex() in error["message"]


# --- where they are kept ---

OWNER = b"o" * 32


async def test_the_log_finds_a_list_before_and_after_it_is_opened_again(tmp_path):
    with BlockLog(tmp_path / "log", OWNER) as log:
        log.append_access_list(7, b"h" * 32, b"list")
        assert log.get_access_list(7, b"h" * 32) is None  # not on disk yet
        await log.sync()
        assert log.get_access_list(7, b"h" * 32) == b"list"
    with BlockLog(tmp_path / "log", OWNER) as log:
        assert log.get_access_list(7, b"h" * 32) == b"list"
        assert log.get_access_list(8, b"h" * 32) is None
        assert log.get_access_list(7, b"x" * 32) is None
        assert [entry.kind for entry in log.iterate()] == [EntryKind.ACCESS_LIST]


async def test_the_log_finds_the_newest_lists_the_same_after_it_is_opened_again(tmp_path, monkeypatch):
    monkeypatch.setattr(log_module, "MAX_ACCESS_LISTS", 3)

    def find(log):
        return [height for height in range(9) if log.get_access_list(height, b"h" * 32)]

    with BlockLog(tmp_path / "log", OWNER) as log:
        for height in (0, 1, 2, 4, 3, 5):
            log.append_access_list(height, b"h" * 32, b"list")
        await log.sync()
        assert find(log) == [3, 4, 5]
    with BlockLog(tmp_path / "log", OWNER) as log:
        assert find(log) == [3, 4, 5]


class RecordingCore:
    """The core, and with which list it was asked to execute."""

    def __init__(self, core):
        self._core = core
        self.given = []

    def __getattr__(self, name):
        return getattr(self._core, name)

    def execute(self, parent, batch, env, mode, inbox, access_list=None):
        self.given.append(access_list)
        return self._core.execute(parent, batch, env, mode, inbox, access_list)


class Follower:
    """The executor of another process, on a shard of its own, that hears of the blocks of ``chain``."""

    def __init__(self, chain, place, executors):
        self.chain, self.written, self.adopted, self.events = chain, [], [], []
        self.shard = RpcChain(place, threads=executors)
        self.core = RecordingCore(self.shard.core)
        self.done = asyncio.Event()
        self.executor = ShardExecutor(
            shard=chain.backend.shard,
            core=self.core,
            source=self.shard.backend,
            max_body_bytes=chain.genesis.preset.max_body_bytes,
            complete=self.complete,
            enqueue=lambda work: asyncio.get_running_loop().create_task(work()) and None,
            write_state=self.written.append,
            write_access_list=lambda *values: self.written.append(values),
            on_adopted=self.adopted.append,
            executors=executors,
        )

    def complete(self, event):
        self.events.append(event)
        self.done.set()

    async def execute(self, block, env, access_list):
        self.done.clear()
        self.executor.start_execute(fx.Execute(block, env, (), access_list))
        async with asyncio.timeout(20):
            await self.done.wait()
        await asyncio.sleep(0)
        return self.events[-1]

    def close(self):
        self.executor.close()
        self.shard.app.close()
        self.shard.index.close()


@pytest.fixture
async def follow(chain, tmp_path):
    followers = []

    def make(executors):
        followers.append(Follower(chain, tmp_path / f"follower-{len(followers)}", executors))
        return followers[-1]

    yield make
    for follower in followers:
        follower.close()


async def build_full_block(chain, count=MIN_REPLAY_ITEMS // 3 + 1):
    block = await fill_block(chain, count)
    return block, chain.envs[block.hash], chain.access_lists[1, block.hash]


@pytest.mark.parametrize("executors", [1, 2])
async def test_a_block_is_executed_by_its_list_where_several_threads_gain_by_it(chain, follow, executors):
    block, env, access_list = await build_full_block(chain)
    follower = follow(executors)
    event = await follower.execute(block, env, access_list)
    assert event.error == ""
    assert event.summary.state_root == block.header.shard_content.state_root
    is_replayed = executors > 1
    assert follower.core.given == [access_list if is_replayed else None]
    (execution,) = follower.adopted
    assert execution.mode == ("replay" if is_replayed else "validate")
    history = ExecutionHistory(executors)
    history.record(execution.block_hash, execution.stats, execution.mode)
    assert history.get(execution.block_hash).workers == 0  # nothing was speculated
    assert (history.totals.validated_blocks, history.totals.replayed_blocks) == (1, is_replayed)


async def test_a_small_block_and_one_without_list_are_executed_plainly(chain, follow):
    block, env, access_list = await build_full_block(chain, 5)
    follower = follow(2)
    assert (await follower.execute(block, env, access_list)).error == ""
    assert (follower.core.given, follower.adopted[0].mode) == ([None], "validate")
    block, env, _ = await build_full_block_on(chain, follower)
    assert (await follower.execute(block, env, b"")).error == ""
    assert (follower.core.given, follower.adopted[1].mode) == ([None, None], "validate")


async def build_full_block_on(chain, follower):
    follower.core.finalise(chain.tip.hash)
    block = await fill_block(chain, MIN_REPLAY_ITEMS // 3 + 1)
    return block, chain.envs[block.hash], chain.access_lists[2, block.hash]


async def test_a_list_that_is_not_the_blocks_makes_it_invalid(chain, follow):
    """That the list is the header's is the machine's to see to (B6); here it is the word of the proposer."""
    block, env, access_list = await build_full_block(chain)
    event = await follow(2).execute(block, env, access_list[:-1] + bytes((access_list[-1] ^ 1,)))
    assert event.summary is None
    assert "access list" in event.error


async def test_whoever_executes_a_block_keeps_its_list_ahead_of_its_state(chain, follow):
    block, env, access_list = await build_full_block(chain)
    follower = follow(1)
    await follower.execute(block, env, b"")
    kept, state = follower.written
    assert kept == (1, block.hash, access_list)
    assert isinstance(state, StateRecord)
    assert isinstance(follower.events[0], Executed)


# --- what people are told ---


async def test_metrics_and_statistics_tell_replayed_blocks_apart(chain):
    block = await fill_block(chain)
    stats = pack(build_stats(workers=0, work_us=1000))
    chain.backend.execution = ExecutionHistory(2)
    chain.backend.execution.record(b"\1" * 32, stats, "build")
    chain.backend.execution.record(b"\2" * 32, stats, "validate")
    chain.backend.execution.record(block.hash, stats, "replay")
    _, _, body = await request(chain, b"", method="GET", path="/metrics")
    values = dict(line.rsplit(" ", 1) for line in body.decode().splitlines() if not line.startswith("#"))
    assert float(values['shardyard_executed_blocks_total{shard="1"}']) == 3
    assert float(values['shardyard_validated_blocks_total{shard="1"}']) == 2
    assert float(values['shardyard_replayed_blocks_total{shard="1"}']) == 1
    assert float(values['shardyard_recent_speed_up{shard="1"}']) == 1  # of the two whose work was measured
    found = await chain.call("shard_getBlockStats", 1)
    assert (found["mode"], found["speedUp"], found["workUs"]) == ("replay", None, 0)
    assert dict(list_execution_rows(found))["executed"].startswith("by its access list (2 executors), ")


async def test_a_person_reads_what_a_block_looked_at(chain):
    counter = await deploy(chain, "counter")
    await chain.send(to=counter, data=call_data("increment()"), gas=99_000)
    await chain.make_block()
    found = await chain.call("shard_getBlockAccessList", 2)
    rows = dict(list_access_rows(found))
    assert rows["access list"].startswith(
        f"{found['accounts']} accounts, {found['slotsChanged']} slots changed"
    )
    assert rows["access list hash"] == found["accessListHash"]
    assert list_access_rows(None) == []
    told = list_accesses(found["accessList"])
    assert ("0x" + ALICE.address.hex(), "nonce", "1", "2") in told
    (change,) = next(a for a in found["accessList"] if a["address"] == counter)["storageChanges"][0][
        "changes"
    ]
    assert any(row[0] == counter and row[2:] == ("1", change["postValue"]) for row in told)
    assert {row[0] for row in told} == {account["address"] for account in found["accessList"]}
    code = await chain.call("shard_getBlockAccessList", 1)
    size = len(await chain.call("eth_getCode", counter)) // 2 - 1
    assert (counter, "code", "1", f"{size} bytes") in list_accesses(code["accessList"])
