"""The open loop against a node that refuses connections, hangs up, and answers strangely."""

import asyncio
import json
import os
import signal
import time

import pytest

from node.cli.load import run_interruptibly
from node.load.client import NoAnswerError, RefusedError, RpcConnection
from node.load.run import LoadError, LoadRun, LoadStoppedError, RunOptions, SeedUsedError
from node.load.sender import ShardSender
from node.load.tracker import Tracked
from node.load.workload import Knobs, Workload


class FakeNode:
    """Answers JSON-RPC as ``script`` says, one entry per request; hangs up where it says None."""

    def __init__(self, script):
        self.script = list(script)
        self.bodies = []
        self.server = None

    async def __aenter__(self):
        self.server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        port = self.server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        return self

    async def __aexit__(self, *_):
        self.server.close()
        await self.server.wait_closed()

    async def serve(self, reader, writer):
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
                body = json.loads(await reader.readexactly(length))
                self.bodies.append(body)
                answer = self.script.pop(0)
                if answer is None:
                    return
                text = answer(body) if callable(answer) else answer
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(text), text))
                await writer.drain()
        except asyncio.IncompleteReadError:
            return
        finally:
            writer.close()


def accept(body):
    return json.dumps(
        [{"jsonrpc": "2.0", "id": item["id"], "result": "0x1"} for item in reversed(body)]
    ).encode()


def refuse(message):
    def answer(body):
        error = {"code": -32000, "message": message}
        return json.dumps([{"jsonrpc": "2.0", "id": item["id"], "error": error} for item in body]).encode()

    return answer


def build_tracked(count):
    now = time.monotonic()
    plans = Workload(Knobs(shards=1, tps=1000, accounts=2, seed=3)).draw(count)
    return [Tracked(plan, due=now) for plan in plans]


async def send(url, tracked, others=()):
    refused = []
    sender = ShardSender(url, refused.append, others)
    sender.queue.extend(tracked)
    sender.finish()
    async with asyncio.timeout(10):
        await sender.run()
    return sender, refused


async def test_what_is_due_goes_out_in_one_batch_in_order_of_nonces():
    tracked = build_tracked(5)
    raws = [item.plan.raw for item in tracked]
    async with FakeNode([accept]) as node:
        await send(node.url, tracked)
    assert [item["params"][0] for item in node.bodies[0]] == raws
    assert all(item.is_accepted for item in tracked)


async def test_unanswered_batch_is_sent_again_with_the_same_bytes():
    tracked = build_tracked(3)
    async with FakeNode([None, None, accept]) as node:
        sender, _ = await send(node.url, tracked)
    assert node.bodies[0] == node.bodies[1] == node.bodies[2]
    assert sender.retries == 2
    assert [item.attempts for item in tracked] == [3, 3, 3]


@pytest.mark.parametrize("words", ["already known", "nonce too low: next nonce 4, tx nonce 3"])
async def test_after_a_lost_answer_these_words_count_as_answered(words):
    tracked = build_tracked(2)
    async with FakeNode([None, refuse(words)]) as node:
        _, refused = await send(node.url, tracked)
    assert all(item.is_accepted for item in tracked)
    assert not refused


async def test_transaction_seen_in_a_block_is_not_refused_whatever_its_second_attempt_is_answered():
    tracked = build_tracked(2)
    tracked[0].included = time.monotonic()
    async with FakeNode([None, refuse("txpool is full")]) as node:
        _, refused = await send(node.url, tracked)
    assert tracked[0].is_accepted
    assert refused == tracked[1:]


async def test_node_on_its_way_down_is_asked_again_for_what_it_did_not_take():
    def take_first(body):
        refusals = json.loads(refuse("the node is stopping")(body))
        return json.dumps([{"jsonrpc": "2.0", "id": 0, "result": "0x1"}, *refusals[1:]]).encode()

    tracked = build_tracked(3)
    raws = [item.plan.raw for item in tracked]
    async with FakeNode([take_first, accept]) as node:
        await send(node.url, tracked)
    assert [item["params"][0] for item in node.bodies[1]] == raws[1:]
    assert all(item.is_accepted for item in tracked)


async def test_next_replica_is_asked_while_one_does_not_answer_or_stops():
    tracked = build_tracked(4)
    async with FakeNode([None, accept]) as first, FakeNode([refuse("the node is stopping")]) as second:
        sender, refused = await send(first.url, tracked, (second.url,))
    assert [len(node.bodies) for node in (first, second)] == [2, 1]
    assert first.bodies[0] == second.bodies[0] == first.bodies[1]
    assert all(item.is_accepted for item in tracked)
    assert (sender.sent, sender.retries, refused) == (4, 2, [])


async def test_what_is_answered_is_forgotten_but_for_what_the_result_needs():
    tracked = build_tracked(2)
    hashes = [item.plan.tx_hash for item in tracked]
    async with FakeNode([accept]) as node:
        await send(node.url, tracked)
    assert [(item.plan.raw, item.plan.tx_hash) for item in tracked] == [("", found) for found in hashes]


async def test_accounts_of_a_shard_are_dealt_to_its_replicas_and_each_stays_with_its_own():
    knobs = Knobs(shards=2, tps=100, accounts=5, seed=3)
    replicas = [["http://127.0.0.1:1", "http://127.0.0.1:2"], ["http://127.0.0.1:3"]]
    load = LoadRun([found[0] for found in replicas], knobs, RunOptions(duration_s=1), replicas=replicas)
    senders = [
        [load._routes[wallet.account.address] for wallet in wallets] for wallets in load.workload.wallets
    ]
    first, second, third = load._senders
    assert senders == [[first, second, first, second, first], [third] * 5]
    assert list(second._connection._urls) == ["http://127.0.0.1:2", "http://127.0.0.1:1"]


def answer_preparation(nonce):
    """Answer what a run asks first: the newest block, and the nonces of its accounts."""

    def answer(body):
        if isinstance(body, dict):
            return json.dumps({"jsonrpc": "2.0", "id": 1, "result": {"baseFeePerGas": "0x7"}}).encode()
        return json.dumps([{"jsonrpc": "2.0", "id": item["id"], **nonce} for item in body]).encode()

    return answer


@pytest.mark.parametrize(
    ("nonce", "kind", "words"),
    [
        ({"result": "0x1"}, SeedUsedError, "accounts of seed 1 were used before; try: another --seed"),
        (
            {"error": {"code": -32005, "message": "too many requests"}},
            LoadError,
            "shard 0: too many requests",
        ),
    ],
)
async def test_accounts_that_were_used_before_are_no_failure_of_a_shard(nonce, kind, words):
    answer = answer_preparation(nonce)
    async with FakeNode([None]) as silent, FakeNode([answer, answer]) as node:
        load = LoadRun(
            [silent.url],
            Knobs(shards=1, tps=1, cross_ratio=0, accounts=2, seed=1),
            RunOptions(duration_s=1),
            replicas=[[silent.url, node.url]],
        )
        with pytest.raises(LoadError, match=words) as raised:
            await asyncio.wait_for(load.run(), 20)
    assert type(raised.value) is kind


async def test_nonce_too_low_at_the_first_attempt_is_a_refusal():
    tracked = build_tracked(2)
    async with FakeNode([refuse("nonce too low: next nonce 4, tx nonce 3")]) as node:
        sender, refused = await send(node.url, tracked)
    assert refused == tracked
    assert sender.refusals == {"nonce too low": 2}


async def test_half_a_batch_of_answers_is_no_answer():
    def answer_first(body):
        return json.dumps([{"jsonrpc": "2.0", "id": 0, "result": "0x1"}]).encode()

    tracked = build_tracked(2)
    async with FakeNode([answer_first, accept]) as node:
        sender, _ = await send(node.url, tracked)
    assert sender.retries == 1


async def test_refused_connection_is_no_answer():
    async with FakeNode([]) as node:
        url = node.url
    connection = RpcConnection(url)
    with pytest.raises(NoAnswerError):
        await connection.request("eth_chainId")


async def test_silent_node_is_no_answer():
    async with FakeNode([b"this is no json"]) as node:
        connection = RpcConnection(node.url)
        with pytest.raises(NoAnswerError, match="no JSON-RPC"):
            await connection.request("eth_chainId")
        connection.close()


async def test_error_of_a_single_call_is_raised_with_its_code():
    answer = b'{"jsonrpc":"2.0","id":1,"error":{"code":-32601,"message":"the method does not exist"}}'
    async with FakeNode([answer]) as node:
        connection = RpcConnection(node.url)
        with pytest.raises(RefusedError, match="does not exist") as caught:
            await connection.request("eth_nothing")
        connection.close()
    assert caught.value.code == -32601


async def test_run_that_is_stopped_while_it_prepares_ends_at_once():
    asked = asyncio.Event()

    async def listen(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        asked.set()
        await reader.read()
        writer.close()

    async with await asyncio.start_server(listen, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        load = LoadRun(
            [url], Knobs(shards=1, tps=1, cross_ratio=0, accounts=1, seed=1), RunOptions(duration_s=1)
        )
        running = asyncio.create_task(load.run())
        await asyncio.wait_for(asked.wait(), 20)
        load.stop()
        with pytest.raises(LoadStoppedError, match="what funds its accounts may be on its way"):
            await asyncio.wait_for(running, 20)


class Endless:
    """A run that drains for ever."""

    def __init__(self):
        self.is_running = asyncio.Event()
        self.is_stopped = asyncio.Event()

    def stop(self):
        self.is_stopped.set()

    async def run(self):
        self.is_running.set()
        await asyncio.Event().wait()


async def test_second_interrupt_ends_what_the_first_one_only_stops():
    load = Endless()
    running = asyncio.create_task(run_interruptibly(load))
    await asyncio.wait_for(load.is_running.wait(), 20)
    os.kill(os.getpid(), signal.SIGINT)
    await asyncio.wait_for(load.is_stopped.wait(), 20)
    assert not running.done()
    os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(running, 20)
