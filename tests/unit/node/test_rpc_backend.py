"""Admission and the backend: what an answered hash promises, in groups, and what happens when the disk fails."""

import asyncio
from array import array
from itertools import accumulate

import msgspec
import pytest

from node import admission
from node.held_back import MAX_HELD_BYTES, HeldBack
from node.refusal import RpcError
from node.rpc.api import CallContext
from node.storage.journal import MAX_BODY_BYTES, MempoolJournal
from shards.mempool import Mempool, MempoolLimits
from shardyard.blocks import ShardBody
from shardyard.codec import decode
from tests.unit.node.rpc_chain import ALICE, BOB, CAROL, RpcChain, build_transfer, open_chain


async def test_an_answered_hash_is_in_the_journal(chain):
    raw = chain.sign()
    await chain.backend.submit([raw])
    assert chain.journal.writes == [[raw]]


async def test_what_arrives_together_is_one_write(chain):
    raws = [chain.sign(nonce=nonce) for nonce in range(50)]
    answers = await asyncio.gather(*(chain.backend.submit([raw]) for raw in raws))
    assert all(isinstance(answer, bytes) for (answer,) in answers)
    assert [raw for write in chain.journal.writes for raw in write] == raws
    assert len(chain.journal.writes) <= 2


async def test_transactions_of_a_batch_are_admitted_together_and_in_order(chain):
    raws = [chain.sign(nonce=nonce) for nonce in range(40)]
    calls: list[dict[str, object]] = [
        {"jsonrpc": "2.0", "id": i, "method": "eth_sendRawTransaction", "params": ["0x" + raw.hex()]}
        for i, raw in enumerate(raws)
    ]
    count = ["0x" + ALICE.address.hex(), "pending"]
    calls.insert(20, {"jsonrpc": "2.0", "id": "n", "method": "eth_getTransactionCount", "params": count})
    text = await chain.app.dispatcher.answer(msgspec.json.encode(calls), CallContext(chain.api))
    answers = msgspec.json.decode(text)
    assert [answer["id"] for answer in answers] == [*range(20), "n", *range(20, 40)]
    assert answers[20]["result"] == hex(20)
    assert [raw for write in chain.journal.writes for raw in write] == raws
    assert len(chain.journal.writes) == 2


async def test_one_bad_transaction_does_not_spoil_its_group(chain):
    good, bad = chain.sign(nonce=0), b"\x02\xc0"
    answers = await chain.backend.submit([good, bad, good])
    assert isinstance(answers[0], bytes)
    assert isinstance(answers[1], RpcError)
    assert str(answers[2]) == "already known"
    assert chain.journal.writes == [[good]]


async def test_a_journal_that_fails_answers_nobody_and_stops_the_node(tmp_path):
    chain = RpcChain(tmp_path)
    chain.journal.error = OSError("no space")
    task = asyncio.create_task(chain.backend.run())
    (answer,) = await chain.backend.submit([chain.sign()])
    assert isinstance(answer, RpcError)
    with pytest.raises(ExceptionGroup) as found:
        await task
    assert found.group_contains(OSError, match="no space")
    assert len(chain.backend.mempool) == 0
    chain.app.close()
    chain.index.close()


async def test_only_what_came_by_rpc_is_passed_on(chain, eventually_async):
    raw = chain.sign(nonce=0)
    await chain.backend.submit([raw])
    other = chain.sign(BOB, nonce=0)
    chain.backend.receive(other, (len(other),))
    await eventually_async(lambda: len(chain.backend.mempool) == 2)
    assert chain.broadcasts == [(raw, (len(raw),))]
    assert chain.journal.writes == [[raw], [other]]


@pytest.mark.parametrize("ends", [(0,), (5, 3), (5, 5), (10_000,), (-1,)])
async def test_gossip_with_offsets_that_are_not_sound_is_dropped(chain, ends):
    chain.backend.receive(b"x" * 100, ends)
    assert chain.backend.admission.counters["gossip_dropped"] == 1


async def test_what_waits_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(admission, "MAX_WAITING", 3)
    chain = RpcChain(tmp_path)  # nobody admits
    waiting = asyncio.create_task(chain.backend.submit([chain.sign(nonce=n) for n in range(3)]))
    await asyncio.sleep(0)
    (answer,) = await chain.backend.submit([chain.sign(nonce=3)])
    assert str(answer) == "txpool is full"
    waiting.cancel()
    chain.app.close()
    chain.index.close()


async def test_callers_of_a_node_that_stops_are_told(tmp_path):
    chain = RpcChain(tmp_path)
    task = asyncio.create_task(chain.backend.run())
    submitting = asyncio.create_task(chain.backend.submit([chain.sign()]))
    await asyncio.sleep(0)
    task.cancel()
    (answer,) = await submitting
    assert isinstance(answer, RpcError)
    await asyncio.gather(task, return_exceptions=True)
    chain.app.close()
    chain.index.close()


async def test_a_final_block_is_readable_when_its_head_is_announced(chain):
    seen: list[bool] = []
    chain.backend.on_head.append(
        lambda block: seen.append(chain.index.get_height(block.hash) == block.height)
    )
    await chain.make_block()
    assert seen == [True]


async def test_a_transaction_is_never_unknown_between_mempool_and_index(chain):
    tx_hash = bytes.fromhex((await chain.send())[2:])
    block = chain.execute()
    chain.core.finalise(block.hash)
    await chain.backend.on_final(block)
    assert chain.index.find_transaction(tx_hash) is None
    assert chain.backend.find_pending(tx_hash) is not None
    answer = await chain.call("eth_getTransactionByHash", "0x" + tx_hash.hex())
    assert answer["blockHash"] is None


async def test_the_pending_nonce_never_goes_back_while_a_block_becomes_final(chain, monkeypatch):
    """A wallet that signs with the lower one would be told that the nonce is too low."""
    nonces = []
    for _ in range(3):
        await chain.send(ALICE)
    settle = chain.backend.mempool.settle

    def settle_and_look(*arguments):
        nonces.append(chain.backend.get_pending_nonce(ALICE.address))
        settle(*arguments)
        nonces.append(chain.backend.get_pending_nonce(ALICE.address))

    monkeypatch.setattr(chain.backend.mempool, "settle", settle_and_look)
    await chain.make_block()
    nonces.append(chain.backend.get_pending_nonce(ALICE.address))
    assert nonces == [3, 3, 3]


async def test_being_told_twice_of_a_final_block_changes_nothing(chain):
    block = await chain.make_block()
    await chain.backend.on_final(block)
    assert chain.backend.latest.height == 1


async def test_the_mempool_forgets_what_became_final(chain):
    await chain.send(ALICE)
    await chain.send(CAROL)
    await chain.make_block()
    assert len(chain.backend.mempool) == 0


@pytest.mark.parametrize("is_indexed", [True, False])
async def test_journalled_transactions_return_after_a_restart_unless_used(tmp_path, monkeypatch, is_indexed):
    """Used ones that the index finds are dropped without recovering their senders."""
    async with open_chain(tmp_path / "a") as chain:
        used = [chain.sign(nonce=nonce) for nonce in range(5)]
        await chain.backend.submit(used)
        await chain.make_block()
        waiting = [chain.sign(nonce=5), chain.sign(nonce=6)]
        find = chain.index.find_recent if is_indexed else lambda _: ()
        mempool, recovered = chain.backend.mempool, []
        admit = mempool.admit
        monkeypatch.setattr(
            mempool, "admit", lambda core, batch: recovered.append(len(batch)) or admit(core, batch)
        )
        monkeypatch.setattr("node.index.places.MAX_SCANNED_BYTES", 1)  # one run at least is read
        journalled = [*used, waiting[0], b"\x00", waiting[1]]
        assert await admission.restore_journal(chain.core, mempool, journalled, find) == (2, [])
        assert len(mempool) == 2
        assert recovered == ([3] if is_indexed else [8])


async def test_no_transaction_is_lost_for_standing_in_the_journal_before_one_it_follows(tmp_path):
    async with open_chain(tmp_path / "a") as chain:
        gap = MempoolLimits().max_gap
        first, *later = [chain.sign(nonce=nonce) for nonce in range(2 * gap + 10)]
        orphan = chain.sign(nonce=4 * gap)
        count, waiting = await admission.restore_journal(
            chain.core, chain.backend.mempool, [*later, orphan, first], chain.index.find_recent
        )
        assert waiting == [orphan]
        assert count == len(chain.backend.mempool) == 2 * gap + 10


def start_mempool(chain) -> Mempool:
    mempool = Mempool(MempoolLimits())
    mempool.start_at(chain.tip.hash)
    return mempool


async def test_what_a_running_pool_keeps_beyond_the_balance_is_not_lost_by_a_restart(chain):
    """Another replica took a dearer transaction with the first nonce, and what is left does not pay for both that follow."""
    ether = 10**18
    journalled = [
        chain.sign(nonce=nonce, value=value * ether) for nonce, value in ((0, 0), (1, 3000), (2, 3000))
    ]
    await chain.backend.submit(journalled)
    running = start_mempool(chain)
    running.admit(
        chain.core, chain.core.prepare(b"".join(journalled), [0, *accumulate(map(len, journalled))])
    )
    chain.backend.mempool.remove(entry.hash for entry in chain.backend.mempool)
    other = chain.sign(nonce=0, value=5000 * ether)
    await chain.backend.submit([other])
    block = await chain.make_block()
    nonce, balance, _ = chain.core.account(block.hash, ALICE.address)
    running.on_final(block.hash, [(ALICE.address, nonce, int.from_bytes(balance, "big"))])
    assert {entry.raw for entry in running} == {*journalled[1:]}

    restarted = start_mempool(chain)
    restored, waiting = await admission.restore_journal(
        chain.core, restarted, journalled, chain.index.find_recent
    )
    assert (restored, waiting) == (1, journalled[2:])
    held = HeldBack(chain.core, restarted)
    held.hold(waiting)
    (body,) = held.encode_bodies()
    assert decode(body, ShardBody, max_bytes=len(body)).raw == journalled[2]
    await held.on_head(chain.backend.latest)
    assert (len(held), len(restarted)) == (1, 1)
    block = await chain.make_block([build_transfer(1, ALICE.address, 2000 * ether)])
    restarted.start_at(block.hash)
    await held.on_head(chain.backend.latest)
    assert {entry.raw for entry in restarted} == {*journalled[1:]}
    assert (len(held), held.encode_bodies()) == (0, [])


async def test_what_can_never_run_is_held_back_no_longer(chain):
    held = HeldBack(chain.core, start_mempool(chain))
    held.hold([chain.sign(nonce=0, value=1), chain.sign(nonce=0), chain.sign(nonce=10_000)])
    await held.on_head(chain.backend.latest)
    assert len(held) == 1  # the one that nothing leads to so far


async def test_what_is_held_back_is_bounded_and_the_rest_is_told_of(chain, monkeypatch, caplog):
    monkeypatch.setattr("node.held_back.MAX_HELD", 2)
    held = HeldBack(chain.core, start_mempool(chain))
    held.hold([chain.sign(nonce=nonce) for nonce in range(5)])
    assert len(held) == 2
    assert [record.getMessage().split(",")[0] for record in caplog.records][1:] == [
        "3 more are lost: no more than 2 are held"
    ]


async def test_what_is_held_back_is_bounded_in_bytes_and_the_journal_gives_all_of_it_back(chain, tmp_path):
    """Some are as large as transactions may be: as one frame, the journal could not read them at the next restart."""
    raws = [chain.sign(nonce=nonce, gas=3_000_000, data=bytes(127 * 1024)) for nonce in range(300)]
    held = HeldBack(chain.core, start_mempool(chain))
    held.hold(raws)
    assert len(held) == MAX_HELD_BYTES // len(raws[-1]) < len(raws)
    assert all(len(body) < 1.1 * MAX_BODY_BYTES for body in held.encode_bodies())
    with MempoolJournal(tmp_path / "journal", bytes(32), compact_above_bytes=1) as journal:
        journal.attach(held.encode_bodies)
        await journal.append(b"")
    with MempoolJournal(tmp_path / "journal", bytes(32)) as journal:
        assert journal.take_pending() == raws[: len(held)]


async def test_what_a_builder_could_not_use_is_judged_again_by_the_final_state(chain):
    raws = [chain.sign(nonce=nonce) for nonce in range(3)]
    await chain.backend.submit(raws)
    block = chain.execute()
    stale = Mempool(MempoolLimits())  # of a node that heard of the transactions and not of whose they were
    stale.start_at(block.header.parent)
    offsets = [0]
    for raw in raws:
        offsets.append(offsets[-1] + len(raw))
    batch = chain.core.prepare(b"".join(raws), offsets)
    stale.admit(chain.core, batch)
    chain.core.finalise(block.hash)
    stale.start_at(block.hash)
    assert len(stale) == 3
    assert stale.refresh(chain.core, batch, array("I", [1]).tobytes()) == 3
    assert len(stale) == 0
