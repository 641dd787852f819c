"""The flood's client against nodes that refuse, hang up and talk nonsense: counted where it is a refusal, named where not."""

import asyncio
import contextlib
import json
import time

import pytest

from node.bench.flood import Flood, FloodError, Pacing, Request, read_refusals

FULL = {"code": -32000, "message": "txpool is full"}


class ScriptedNode:
    """Answers each request of any connection with the next entry of ``script``; None hangs up without a word."""

    def __init__(self, *script):
        self.script = list(script)
        self.bodies = []
        self.connections = 0

    async def __aenter__(self):
        self.server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self.server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_):
        self.server.close()
        await self.server.wait_closed()

    async def serve(self, reader, writer):
        self.connections += 1
        with contextlib.suppress(asyncio.IncompleteReadError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
                self.bodies.append(json.loads(await reader.readexactly(length)))
                answer = self.script.pop(0)
                if answer is None:
                    break
                writer.write(answer(self.bodies[-1]) if callable(answer) else answer)
                await writer.drain()
                if b"connection: close" in (answer if isinstance(answer, bytes) else b""):
                    break
        writer.close()


def http(status, body, *headers):
    head = b"".join(b"%s\r\n" % line for line in headers)
    return b"HTTP/1.1 %d Some\r\n%scontent-length: %d\r\n\r\n%s" % (status, head, len(body), body)


def answer_each(status=200, refused=()):
    def answer(calls):
        items = [
            {"jsonrpc": "2.0", "id": call["id"]}
            | ({"error": FULL} if call["params"][0] in refused else {"result": "0x" + "ab" * 32})
            for call in calls
        ]
        return http(status, json.dumps(items, separators=(",", ":")).encode())

    return answer


TAKE, REFUSE = answer_each(), answer_each(429, refused=("a", "b", "c", "d", "e", "f"))


def build_request(names, first=0):
    calls = [
        {"jsonrpc": "2.0", "id": place, "method": "eth_sendRawTransaction", "params": [name]}
        for place, name in enumerate(names)
    ]
    return Request(json.dumps(calls).encode(), first, len(calls))


def read_names(bodies):
    return ["".join(call["params"][0] for call in body) for body in bodies]


async def flood(node, *queues, interval_s=0.0, again=False):
    client = Flood(node.url, [list(queue) for queue in queues])
    async with asyncio.timeout(10):
        await client.run(Pacing(time.monotonic(), 5.0, interval_s, is_offered_again=again))
    return client


async def test_answers_are_counted_and_refusals_told_by_their_words():
    async with ScriptedNode(TAKE, answer_each(refused=("d",))) as node:
        client = await flood(node, [build_request("abc"), build_request("def", 3)])
    assert (client.offered, client.accepted, client.statuses) == (6, 5, {200: 2})
    assert client.refusals == {"txpool is full": 1}
    assert client.queues[0][1].refused == (0,)
    assert client.is_exhausted


async def test_back_pressure_by_status_is_told_apart_from_a_refusal_of_single_transactions():
    async with ScriptedNode(REFUSE, TAKE) as node:
        client = await flood(node, [build_request("abc"), build_request("def", 3)])
    assert client.refusals == {"HTTP 429: txpool is full": 3}
    assert (client.offered, client.accepted, client.statuses) == (6, 3, {429: 1, 200: 1})


async def test_refused_request_is_offered_again_before_what_follows_it():
    async with ScriptedNode(REFUSE, REFUSE, TAKE, TAKE) as node:
        client = await flood(node, [build_request("abc"), build_request("def", 3)], again=True)
    assert read_names(node.bodies) == ["abc", "abc", "abc", "def"]
    assert (client.offered, client.accepted) == (12, 6)
    assert client.refusals == {"HTTP 429: txpool is full": 6}
    assert [request.refused for request in client.queues[0]] == [(), ()]


async def test_of_a_request_that_was_taken_in_part_only_the_rest_is_offered_again():
    async with ScriptedNode(answer_each(refused=("a", "c")), TAKE, TAKE) as node:
        client = await flood(node, [build_request("abc", 7), build_request("def", 10)], again=True)
    assert read_names(node.bodies) == ["abc", "ac", "def"]
    taken, rest, after = client.queues[0]
    assert (taken.refused, taken.accepted, rest.accepted, after.accepted) == ((0, 2), 1, 2, 3)
    assert [rest.get_number(position) for position in range(2)] == [7, 9]
    assert [after.get_number(position) for position in range(3)] == [10, 11, 12]


async def test_what_is_offered_again_keeps_to_the_schedule():
    async with ScriptedNode(REFUSE, REFUSE, REFUSE, TAKE) as node:
        started = time.monotonic()
        client = await flood(node, [build_request("abc")], interval_s=0.05, again=True)
    (request,) = client.queues[0]
    assert request.answered >= started + 3 * 0.05
    assert request.sent == pytest.approx(started + 3 * 0.05, abs=0.04)


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (503, b"Service Unavailable", "HTTP 503: Service Unavailable"),
        (500, b"<html>\n<h1>Internal Server Error</h1>", "HTTP 500: <html>\n<h1>Internal Server Error</h1>"),
        (
            413,
            b"content length too large: at most 5 bytes\n",
            "HTTP 413: content length too large: at most 5 bytes",
        ),
        (502, b"", "HTTP 502: "),
        (
            200,
            b'{"jsonrpc":"2.0","id":null,"error":{"code":-32600,"message":"batch too large: at most 2"}}',
            "batch too large",
        ),
    ],
)
async def test_status_or_error_for_the_whole_request_refuses_all_of_it(status, body, said):
    async with ScriptedNode(http(status, body), TAKE) as node:
        client = await flood(node, [build_request("abc"), build_request("def", 3)])
    assert client.refusals == {said: 3}
    assert (client.offered, client.accepted) == (6, 3)


async def test_connection_that_the_node_closes_with_its_answer_is_opened_again():
    async with ScriptedNode(http(503, b"Service Unavailable", b"Connection: close"), TAKE) as node:
        node.script[0] = node.script[0].replace(b"Connection: close", b"connection: close")
        client = await flood(node, [build_request("abc"), build_request("def", 3)])
    assert node.connections == 2
    assert client.accepted == 3


@pytest.mark.parametrize(
    ("answer", "named"),
    [
        (http(200, b"<html>hello"), "got HTTP 200 with b'<html>hello'"),
        (http(200, b""), "got HTTP 200 with b''"),
        (http(200, b'[{"jsonrpc":"2.0","id":0,"result":"0x1"}]'), "got HTTP 200 with b'\\[{"),
        (http(200, b'{"jsonrpc":"2.0","id":0,"result":"0x1"}'), "got HTTP 200 with b'{"),
        (http(200, b'[{"id":0},{"id":1},{"id":2}]'), "got the result None for transaction 0"),
        (b"nonsense\r\n\r\n", "the head is not HTTP, got b'nonsense"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: many\r\n\r\n", "the head is not HTTP"),
        (
            b"HTTP/1.1 200 OK\r\ncontent-length: 90\r\nconnection: close\r\n\r\n[{",
            "the connection ended .*got b'HTTP/1.1 200",
        ),
        (None, "the connection ended .*got b''"),
    ],
)
async def test_answer_that_does_not_say_what_became_of_the_transactions_is_named(answer, named):
    async with ScriptedNode(answer) as node:
        with pytest.raises(FloodError, match=rf"port \d+: .*{named}.*expected an answer to each of 3.*try:"):
            await flood(node, [build_request("abc")])


async def test_node_that_is_not_there_is_named():
    async with ScriptedNode() as node:
        pass
    with pytest.raises(FloodError, match=r"port \d+: .*try:"):
        await flood(node, [build_request("abc")])


def test_whole_answers_of_a_status_that_refuses_are_read_item_by_item():
    items = [
        {"id": 0, "result": "0x1"},
        {"id": 1, "error": FULL | {"message": "nonce too low: next nonce 3"}},
    ]
    request = build_request("ab")
    assert read_refusals(500, json.dumps(items).encode(), request) == {1: "HTTP 500: nonce too low"}
