"""The ASGI application over WebSocket: the same answers as HTTP, and what is pushed."""

import asyncio
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from node.rpc.protocol import RpcLimits
from tests.unit.node.rpc_chain import RpcChain, open_chain
from tests.unit.node.test_rpc_methods import call_data, deploy


class Socket:
    """The client's end of one connection."""

    def __init__(self, chain: RpcChain, headers: dict[str, str] | None = None, path: str = "/") -> None:
        given = {"host": "localhost", **(headers or {})}
        scope = {
            "type": "websocket",
            "path": path,
            "headers": [(k.encode(), v.encode()) for k, v in given.items()],
        }
        self.to_server: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.from_server: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.may_write = asyncio.Event()
        self.may_write.set()
        self.to_server.put_nowait({"type": "websocket.connect"})
        self.task = asyncio.create_task(chain.app(scope, self.to_server.get, self._take))

    async def _take(self, message: dict[str, Any]) -> None:
        await self.may_write.wait()
        self.from_server.put_nowait(message)

    async def next(self) -> dict[str, Any]:
        return await asyncio.wait_for(self.from_server.get(), 10)

    async def read(self) -> Any:
        message = await self.next()
        assert message["type"] == "websocket.send", message
        return msgspec.json.decode(message["text"])

    def write(self, method: str, *params: Any, number: int = 1) -> None:
        request = {"jsonrpc": "2.0", "id": number, "method": method, "params": params}
        self.to_server.put_nowait(
            {"type": "websocket.receive", "text": msgspec.json.encode(request).decode()}
        )

    async def ask(self, method: str, *params: Any) -> Any:
        self.write(method, *params)
        return await self.read()

    async def close(self) -> None:
        self.to_server.put_nowait({"type": "websocket.disconnect", "code": 1000})
        await asyncio.wait_for(self.task, 10)


@pytest.fixture
async def socket(chain):
    found = Socket(chain)
    assert (await found.next())["type"] == "websocket.accept"
    yield found
    await found.close()


async def test_answers_are_those_of_http(chain, socket):
    for method, *params in (
        ("eth_chainId",),
        ("eth_getBlockByNumber", "latest"),
        ("nothing",),
        ("eth_getBalance",),
    ):
        assert await socket.ask(method, *params) == await chain.ask(method, *params)
    socket.to_server.put_nowait({"type": "websocket.receive", "bytes": b"{"})
    assert (await socket.read())["error"]["code"] == -32700


async def test_new_heads_are_pushed_after_the_answer_that_names_the_subscription(chain, socket):
    subscription = (await socket.ask("eth_subscribe", "newHeads"))["result"]
    block = await chain.make_block()
    pushed = await socket.read()
    assert pushed["method"] == "eth_subscription"
    assert pushed["params"]["subscription"] == subscription
    header = pushed["params"]["result"]
    assert header["hash"] == "0x" + block.hash.hex()
    assert "transactions" not in header
    assert (await socket.ask("eth_unsubscribe", subscription))["result"] is True
    assert (await socket.ask("eth_unsubscribe", subscription))["error"]["message"] == "subscription not found"
    assert len(chain.app.hub) == 0


async def test_logs_are_pushed_as_get_logs_gives_them(chain, socket):
    address = await deploy(chain, "counter")
    await socket.ask("eth_subscribe", "logs", {"address": address})
    await socket.ask("eth_subscribe", "logs", {"address": "0x" + "11" * 20})
    await chain.send(to=address, data=call_data("increment()"), gas=200_000)
    await chain.make_block()
    pushed = (await socket.read())["params"]["result"]
    assert [pushed] == await chain.call("eth_getLogs", {"fromBlock": "0x2"})
    assert socket.from_server.empty()


async def test_logs_are_pushed_of_the_blocks_that_were_asked_for(chain, socket):
    address = await deploy(chain, "counter")
    ranges = ({"fromBlock": "0x3"}, {"toBlock": "0x2"}, {"fromBlock": "0x1", "toBlock": "latest"})
    wanted = [
        (await socket.ask("eth_subscribe", "logs", {"address": address} | blocks))["result"]
        for blocks in ranges
    ]
    heard = []
    for _ in range(2):
        await chain.send(to=address, data=call_data("increment()"), gas=200_000)
        block = await chain.make_block()
        for _ in range(2):
            params = (await socket.read())["params"]
            heard.append((wanted.index(params["subscription"]), int(params["result"]["blockNumber"], 16)))
        assert socket.from_server.empty()
    assert block.header.height == 3
    assert sorted(heard) == [(0, 3), (1, 2), (2, 2), (2, 3)]


async def test_pending_transactions_are_pushed_as_hashes_or_whole(chain, socket):
    short = (await socket.ask("eth_subscribe", "newPendingTransactions"))["result"]
    await socket.ask("eth_subscribe", "newPendingTransactions", True)
    tx_hash = await chain.send()
    results = {}
    for _ in range(2):
        params = (await socket.read())["params"]
        results[params["subscription"]] = params["result"]
    assert results.pop(short) == tx_hash
    (whole,) = results.values()
    assert (whole["hash"], whole["blockHash"]) == (tx_hash, None)


@pytest.mark.parametrize(
    "params", [["nothing"], ["syncing", True], [], ["newHeads", {}], ["logs", {"topics": 5}], ["logs", 5]]
)
async def test_subscriptions_that_do_not_exist_are_32602(chain, socket, params):
    assert (await socket.ask("eth_subscribe", *params))["error"]["code"] == -32602


async def test_subscriptions_need_a_socket(chain):
    answer = await chain.ask("eth_subscribe", "newHeads")
    assert answer["error"]["code"] == -32001


async def test_a_closed_connection_leaves_nothing_behind(chain):
    socket = Socket(chain)
    await socket.next()
    await socket.ask("eth_subscribe", "newHeads")
    assert len(chain.app.hub) == 1
    await socket.close()
    assert len(chain.app.hub) == 0


@pytest.mark.parametrize("turns", range(8))
async def test_a_request_that_comes_while_a_connection_ends_leaves_no_subscription_behind(chain, turns):
    class Broken(Socket):
        async def _take(self, message: dict[str, Any]) -> None:
            await super()._take(message)
            if message["type"] == "websocket.send":
                raise OSError("the client is gone")

    socket = Broken(chain)
    await socket.next()
    socket.may_write.clear()
    socket.write("eth_chainId")
    await chain.call("eth_getBlockByNumber", "pending", True)  # its answer waits to be written by now
    socket.may_write.set()
    for _ in range(turns):
        await asyncio.sleep(0)
    socket.write("eth_subscribe", "newHeads")
    await asyncio.wait_for(socket.task, 10)
    assert len(chain.app.hub) == 0


async def test_subscriptions_of_a_connection_are_bounded(tmp_path):
    async with open_chain(tmp_path, limits=RpcLimits(max_subscriptions_per_socket=2)) as chain:
        socket = Socket(chain)
        await socket.next()
        answers = [await socket.ask("eth_subscribe", "newHeads") for _ in range(3)]
        assert [answer.get("error", {}).get("code") for answer in answers] == [None, None, -32005]
        await socket.close()


async def test_a_reader_that_does_not_keep_up_is_disconnected_and_the_chain_goes_on(tmp_path):
    async with open_chain(tmp_path, limits=RpcLimits(max_outgoing_bytes=4000)) as chain:
        socket = Socket(chain)
        await socket.next()
        await socket.ask("eth_subscribe", "newHeads")
        socket.may_write.clear()
        for _ in range(8):
            await chain.make_block()
        socket.may_write.set()
        while (message := await socket.next())["type"] == "websocket.send":
            continue
        assert (message["type"], message["code"]) == ("websocket.close", 1013)
        await asyncio.wait_for(socket.task, 10)
        assert len(chain.app.hub) == 0


async def test_a_fast_reader_gets_any_number_of_notifications_at_once(chain, socket):
    """All of a group's, or of a block's, are queued in one go: what counts is whether they are taken, not how many they are."""
    subscription = (await socket.ask("eth_subscribe", "newPendingTransactions"))["result"]
    hashes = [number.to_bytes(32, "big") for number in range(3000)]
    chain.app.hub._on_pending(SimpleNamespace(hashes=hashes))
    for tx_hash in hashes:
        params = (await socket.read())["params"]
        assert params == {"subscription": subscription, "result": "0x" + tx_hash.hex()}
    assert not socket.task.done()


def test_where_nobody_listens_a_transaction_costs_nothing(chain):
    class Untouched:
        @property
        def hashes(self):
            raise AssertionError("nobody wants them")

    chain.app.hub._on_pending(Untouched())


async def test_while_much_waits_for_a_reader_its_requests_wait_too(tmp_path):
    async with open_chain(
        tmp_path, limits=RpcLimits(max_waiting_bytes=1000, max_outgoing_bytes=1 << 30)
    ) as chain:
        socket = Socket(chain)
        await socket.next()
        socket.may_write.clear()
        for number in range(200):
            socket.write("eth_getBlockByNumber", "latest", number=number)
        for _ in range(5):  # other calls are answered meanwhile
            await chain.call("eth_getBlockByNumber", "pending", True)
        assert socket.to_server.qsize() > 100
        socket.may_write.set()
        assert sorted([(await socket.read())["id"] for _ in range(200)]) == list(range(200))
        await socket.close()


async def test_a_subscription_of_another_connection_is_not_ended(chain, socket):
    other = Socket(chain)
    await other.next()
    subscription = (await other.ask("eth_subscribe", "newHeads"))["result"]
    assert (await socket.ask("eth_unsubscribe", subscription))["error"]["message"] == "subscription not found"
    await chain.make_block()
    assert (await other.read())["params"]["subscription"] == subscription
    await other.close()


async def test_catching_up_is_told_when_it_begins_and_when_it_is_over(chain, socket):
    subscription = (await socket.ask("eth_subscribe", "syncing"))["result"]
    chain.backend.on_beacon_final(chain.backend.latest.height + 3)
    for _ in range(2):
        await chain.make_block()
    params = (await socket.read())["params"]
    assert params["subscription"] == subscription
    assert params["result"]["syncing"] is True
    assert set(params["result"]["status"]) == {"startingBlock", "currentBlock", "highestBlock"}
    await chain.make_block()
    assert (await socket.read())["params"]["result"] is False


@pytest.mark.parametrize(("headers", "path"), [({"origin": "https://evil.example"}, "/"), ({}, "/admin")])
async def test_a_handshake_that_may_not_be_is_refused(chain, headers, path):
    socket = Socket(chain, headers, path)
    assert (await socket.next())["type"] == "websocket.close"
    await socket.task


async def test_a_slow_call_does_not_hold_up_the_others(chain, socket):
    socket.write("eth_getBlockByNumber", "pending", True, number=1)
    for number in range(2, 12):
        socket.write("eth_chainId", number=number)
    answers = [await socket.read() for _ in range(11)]
    assert {answer["id"] for answer in answers} == set(range(1, 12))
    assert all("result" in answer for answer in answers)
