"""JSON-RPC 2.0 as its specification says it, over a table of three methods."""

import asyncio
import contextlib
import time
from typing import Any

import msgspec
import pytest

from node.refusal import ParamError, RpcError, build_server_error
from node.rpc import protocol
from node.rpc.methods import MethodTable, Param
from node.rpc.protocol import Dispatcher, RpcLimits, check_text

TABLE = MethodTable()
CALLS: list[str] = []
PAUSE_S = 0.2


def read_number(value: Any) -> int:
    if not isinstance(value, int):
        raise ParamError("not a number")
    return value


@TABLE.method("echo", Param(read_number), Param(read_number, 7))
def echo(_: None, first: int, second: int) -> list[int]:
    CALLS.append("echo")
    return [first, second]


@TABLE.method("refuse")
def refuse(_: None) -> None:
    raise build_server_error("no")


@TABLE.method("break")
def break_down(_: None) -> None:
    raise KeyError("inside")


@TABLE.method("hang")
async def hang(_: None) -> None:
    await asyncio.Event().wait()


@TABLE.method("pause")
async def pause(_: None) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(PAUSE_S):
            await asyncio.Event().wait()


@TABLE.method("large")
def large(_: None) -> str:
    return "x" * 600


@pytest.fixture
def dispatcher() -> Dispatcher:
    CALLS.clear()
    return Dispatcher(
        TABLE, RpcLimits(max_batch=3, max_batch_bytes=1000, max_answer_bytes=1000, call_timeout_s=0.05)
    )


async def ask(dispatcher: Dispatcher, body: bytes) -> Any:
    answer = await dispatcher.answer(body, None)
    return None if answer is None else msgspec.json.decode(answer)


async def test_a_call_is_answered_with_its_id(dispatcher):
    answer = await ask(dispatcher, b'{"jsonrpc":"2.0","id":"a","method":"echo","params":[1]}')
    assert answer == {"jsonrpc": "2.0", "id": "a", "result": [1, 7]}


@pytest.mark.parametrize(
    "number", [b"1", b"-5", b"1.50", b"123456789012345678901234567890", b'"x\\u00e9"', b"null"]
)
async def test_an_id_comes_back_byte_for_byte(dispatcher, number):
    answer = await dispatcher.answer(b'{"jsonrpc":"2.0","id":%b,"method":"echo","params":[1]}' % number, None)
    assert b'"id":' + number + b"," in answer


@pytest.mark.parametrize("number", [b"1e400", b"-1e999", b"9" * 5000])
async def test_a_number_beyond_all_spoils_the_parameters_and_not_the_id(dispatcher, number):
    """Without its id the caller, on a WebSocket at least, would wait for ever."""
    request = b'{"jsonrpc":"2.0","id":5,"method":"echo","params":[1,{"a":%b}]}' % number
    for body in (request, b"[" + request + b"]"):
        answer = await ask(dispatcher, body)
        (answer,) = answer if isinstance(answer, list) else [answer]
        assert (answer["error"]["code"], answer["id"]) == (-32602, 5)
    assert await ask(dispatcher, request.replace(b'"id":5,', b"")) is None
    unknown = await ask(dispatcher, request.replace(b"echo", b"echoes"))
    assert (unknown["error"]["code"], unknown["id"]) == (-32601, 5)
    for part in (b'"2.0"', b'"echo"', b'[1,{"a":%b}]' % number):
        answer = await ask(dispatcher, request.replace(part, number))
        assert (answer["error"]["code"], answer["id"]) == (-32600, None)
    assert CALLS == []


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"jsonrpc":"2.0",}',
        b"[1,",
        b'{"id":1}x',
        b"\xff\xfe",
        b'{"jsonrpc":"2.0","id":"\xff","method":"echo"}',
        b'{"jsonrpc":"2.0","id":1,"method":"\xff"}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"jsonrpc":"2.0","id":1,"method":"echo","params":' + b"[" * 50_000 + b"]" * 50_000 + b"}",
        b"NaN",
    ],
)
async def test_what_is_no_json_is_a_parse_error(dispatcher, body):
    answer = await ask(dispatcher, body)
    assert (answer["error"]["code"], answer["id"]) == (-32700, None)


@pytest.mark.parametrize(
    "body",
    [
        b"1",
        b'"text"',
        b"null",
        b"{}",
        b"[]",
        b'{"id":1,"method":"echo"}',
        b'{"jsonrpc":"1.0","id":1,"method":"echo"}',
        b'{"jsonrpc":2.0,"id":1,"method":"echo"}',
        b'{"jsonrpc":"2.0","id":1}',
        b'{"jsonrpc":"2.0","id":1,"method":5}',
        b'{"jsonrpc":"2.0","id":[1],"method":"echo"}',
        b'{"jsonrpc":"2.0","id":{},"method":"echo"}',
        b'{"jsonrpc":"2.0","id":true,"method":"echo"}',
        b'{"jsonrpc":"2.0","id":"' + b"x" * 300 + b'","method":"echo"}',
        b'{"jsonrpc":"2.0","id":1,"method":"echo","params":"text"}',
        b'{"jsonrpc":"2.0","id":1,"method":"echo","params":5}',
    ],
)
async def test_what_is_no_request_is_an_invalid_request(dispatcher, body):
    answer = await ask(dispatcher, body)
    assert answer["error"]["code"] == -32600


async def test_an_unknown_method_is_exactly_32601(dispatcher):
    answer = await ask(dispatcher, b'{"jsonrpc":"2.0","id":1,"method":"anvil_nothing"}')
    assert answer["error"]["code"] == -32601
    assert "does not exist" in answer["error"]["message"]


@pytest.mark.parametrize("params", [b"[]", b"[1,2,3]", b'["x"]', b'{"first":1}', b"[null]"])
async def test_parameters_that_do_not_fit_are_32602(dispatcher, params):
    answer = await ask(dispatcher, b'{"jsonrpc":"2.0","id":1,"method":"echo","params":%b}' % params)
    assert answer["error"]["code"] == -32602


async def test_null_stands_for_a_default(dispatcher):
    answer = await ask(dispatcher, b'{"jsonrpc":"2.0","id":1,"method":"echo","params":[1,null]}')
    assert answer["result"] == [1, 7]


async def test_a_notification_is_carried_out_and_not_answered(dispatcher):
    assert await ask(dispatcher, b'{"jsonrpc":"2.0","method":"echo","params":[1]}') is None
    assert await ask(dispatcher, b'{"jsonrpc":"2.0","method":"unknown"}') is None
    assert await ask(dispatcher, b'[{"jsonrpc":"2.0","method":"echo","params":[1]}]') is None
    assert CALLS == ["echo", "echo"]


async def test_one_bad_item_does_not_spoil_its_batch(dispatcher):
    body = b'[1,{"jsonrpc":"2.0","method":"echo","params":[1]},{"jsonrpc":"2.0","id":2,"method":"echo","params":[1]}]'
    answers = await ask(dispatcher, body)
    assert [(a["id"], "result" in a) for a in answers] == [(None, False), (2, True)]


async def test_a_batch_above_the_limit_is_refused_whole(dispatcher):
    answer = await ask(dispatcher, b"[1,2,3,4]")
    assert answer["error"]["code"] == -32600
    assert "batch too large" in answer["error"]["message"]


async def test_answers_of_a_batch_are_capped_in_sum(dispatcher):
    call = b'{"jsonrpc":"2.0","id":1,"method":"large"}'
    answers = await ask(dispatcher, b"[" + b",".join([call] * 3) + b"]")
    assert ["result" in answer for answer in answers] == [True, True, False]
    assert answers[2]["error"]["code"] == -32003


async def test_a_batch_has_no_more_time_than_a_call(dispatcher):
    call = b'{"jsonrpc":"2.0","id":1,"method":"hang"}'
    answers = await ask(dispatcher, b"[" + b",".join([call] * 3) + b"]")
    assert [answer["error"]["code"] for answer in answers] == [-32002] * 3
    assert dispatcher.counters["hang"] == 1


async def test_a_late_call_of_a_batch_has_the_time_that_is_left():
    dispatcher = Dispatcher(TABLE, RpcLimits(call_timeout_s=0.4))
    calls = [b'{"jsonrpc":"2.0","id":1,"method":"pause"}', b'{"jsonrpc":"2.0","id":2,"method":"hang"}']
    began = asyncio.get_running_loop().time()
    answers = await ask(dispatcher, b"[" + b",".join(calls) + b"]")
    took = asyncio.get_running_loop().time() - began
    assert ["result" in answer for answer in answers] == [True, False]
    assert answers[1]["error"]["code"] == -32002
    assert took < PAUSE_S + dispatcher.limits.call_timeout_s


async def test_others_have_their_turn_while_a_batch_is_answered(dispatcher, monkeypatch):
    monkeypatch.setattr(protocol, "SLICE_S", 0.0)
    body = b'[{"jsonrpc":"2.0","id":1,"method":"refuse"},{"jsonrpc":"2.0","id":2,"method":"refuse"}]'
    asking = asyncio.create_task(ask(dispatcher, body))
    await asyncio.sleep(0)
    assert not asking.done()
    assert len(await asking) == 2


@pytest.mark.parametrize(
    ("text", "is_fine"),
    [
        (b"[" * 64 + b"]" * 64, True),
        (b"[" * 65 + b"]" * 65, False),
        (b"[" + b"[]," * 500 + b"[" * 63 + b"]" * 63 + b"]", True),
        (b"[" + b"[]," * 500 + b"[" * 64 + b"]" * 64 + b"]", False),
        (b'{"a":' * 64 + b"1" + b"}" * 64, True),
        (b'["' + b"[" * 200 + b'"]', True),
        (b'["\\"' + b"[" * 200 + b'\\\\"]', True),
        (b'["\\\\",' + b"[" * 100 + b"]" * 100 + b"]", False),
        (b"[" * 65 + b'"', False),
    ],
)
def test_nesting_is_bounded_whatever_strings_hold(text, is_fine):
    if is_fine:
        check_text(text)
    else:
        with pytest.raises(RecursionError):
            check_text(text)


@pytest.mark.parametrize("unit", [b'\\"', b'"', b'"x', b"[]", b"[[]]", b"\\", b'\\\\"'])
def test_looking_through_a_text_takes_time_in_proportion_to_its_length(unit):
    def measure(size: int) -> float:
        text = b"[" * 65 + b'"' + unit * (size // len(unit))
        began = time.thread_time()
        with pytest.raises(RecursionError):
            check_text(text)
        return time.thread_time() - began

    # Ten times the length: the square would be a hundred times the work, and hours for a body as large as is allowed.
    small = min(measure(100_000) for _ in range(3))
    assert min(measure(1_000_000) for _ in range(3)) < 40 * small + 0.05


async def test_a_call_that_hangs_is_cut_off(dispatcher):
    answer = await ask(dispatcher, b'{"jsonrpc":"2.0","id":1,"method":"hang"}')
    assert answer["error"] == {"code": -32002, "message": "request timed out"}


async def test_a_fault_of_ours_is_an_internal_error_without_details(dispatcher):
    answer = await ask(dispatcher, b'{"jsonrpc":"2.0","id":1,"method":"break"}')
    assert answer["error"] == {"code": -32603, "message": "internal error"}


async def test_an_error_has_data_only_when_there_is_some(dispatcher):
    answer = await ask(dispatcher, b'{"jsonrpc":"2.0","id":1,"method":"refuse"}')
    assert answer["error"] == {"code": -32000, "message": "no"}
    assert RpcError(3, "execution reverted", "0x").data == "0x"


async def test_calls_and_errors_are_counted_by_method_and_unknown_names_take_no_memory(dispatcher):
    for number in range(50):
        await ask(dispatcher, b'{"jsonrpc":"2.0","id":1,"method":"made_up_%d"}' % number)
    await ask(dispatcher, b'{"jsonrpc":"2.0","id":1,"method":"echo","params":[1]}')
    assert dispatcher.counters["echo"] == 1
    assert dispatcher.counters["errors"] == 50
    assert len(dispatcher.counters) <= 4
