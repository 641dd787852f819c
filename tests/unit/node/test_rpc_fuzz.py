"""Whatever a client sends, every method answers with a result or a typed error; nothing is an internal error or a crash."""

import random
from typing import Any

import msgspec
import pytest

from node.rpc.api import CallContext
from node.rpc.app import METHODS
from tests.unit.node.rpc_chain import ALICE, BOB, CAROL, RpcChain, build_transfer

ADDRESS, OTHER = "0x" + ALICE.address.hex(), "0x" + "5a" * 20
CALLS_PER_METHOD = 120


def list_values(chain: RpcChain) -> list[Any]:
    """Values that some parameter of some method takes, and their neighbours that none does."""
    block_hash = "0x" + chain.tip.hash.hex()
    raw = "0x" + chain.sign(BOB).hex()
    numbers = [
        "0x0",
        "0x1",
        "0x2",
        "0xff",
        hex(2**64 - 1),
        hex(2**64),
        hex(2**256 - 1),
        "0x00",
        "0x",
        "1",
        "-0x1",
    ]
    tags = ["latest", "pending", "finalized", "safe", "earliest", "newest", ""]
    plain = [
        None,
        True,
        False,
        0,
        1,
        -1,
        2**70,
        1.5,
        1e300,
        [],
        {},
        "",
        "0x0g",
        "\x00",
        "ż",
        [[]],
        [None],
        {"a": {}},
    ]
    calls = [
        {"from": ADDRESS, "to": OTHER, "value": "0x1"},
        {"to": None, "data": "0x60006000fd"},
        {"data": "0xfe", "gas": "0x5208"},
        {"from": ADDRESS, "to": OTHER, "gas": "0x0", "gasPrice": hex(2**255)},
        {"from": OTHER, "value": hex(2**256 - 1), "maxFeePerGas": hex(2**128), "maxPriorityFeePerGas": "0x0"},
        {"to": OTHER, "accessList": [{"address": OTHER, "storageKeys": [block_hash]}]},
        {"to": "0x0000000000000000000000000000000000000002", "input": "0x" + "00" * 100},
    ]
    filters = [
        {"fromBlock": "0x0", "toBlock": "0x2"},
        {"fromBlock": "pending", "toBlock": "pending", "topics": [None, [None], [block_hash]]},
        {"blockHash": block_hash},
        {"address": [ADDRESS], "topics": []},
        {"direction": "in", "limit": 5},
        {"blockHash": block_hash, "requireCanonical": False},
    ]
    return [
        *numbers,
        *tags,
        *plain,
        *calls,
        *filters,
        ADDRESS,
        OTHER,
        block_hash,
        raw,
        raw[:-2],
        raw + "00",
        [10, 90],
    ]


def mutate(draw: random.Random, value: Any) -> Any:
    """Return a value near to ``value``."""
    if isinstance(value, str) and value and draw.random() < 0.5:
        place = draw.randrange(len(value))
        return value[:place] + draw.choice("0fxXg \u00e9") + value[place + draw.randrange(2) :]
    if isinstance(value, dict) and value:
        changed = dict(value)
        changed[draw.choice(list(changed))] = draw.choice([None, 1, "0x", [], {}, "0x1", value])
        return changed
    return value


@pytest.mark.parametrize("method", sorted(METHODS))
async def test_no_parameters_break_a_method(chain, method):
    await chain.send(value=1)
    await chain.make_block([build_transfer(1, CAROL.address, 5)])
    await chain.send(value=2)
    chain.execute()
    values = list_values(chain)
    draw = random.Random(method)
    for _ in range(CALLS_PER_METHOD):
        params = [draw.choice(values) for _ in range(draw.randrange(5))]
        if draw.random() < 0.4:
            params = [mutate(draw, value) for value in params]
        request = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
        text = await chain.app.dispatcher.answer(msgspec.json.encode(request), CallContext(chain.api))
        assert text is not None
        answer = msgspec.json.decode(text)
        assert answer.get("error", {}).get("code") != -32603, request


async def test_mutilated_requests_are_answered_or_refused(chain):
    draw = random.Random(1)
    whole = msgspec.json.encode(
        [{"jsonrpc": "2.0", "id": 1, "method": "eth_getBlockByNumber", "params": ["latest", True]}] * 2
    )
    for _ in range(3000):
        damaged = bytearray(whole)
        for _ in range(draw.randrange(1, 6)):
            place = draw.randrange(len(damaged))
            match draw.randrange(3):
                case 0:
                    damaged[place] = draw.randrange(256)
                case 1:
                    del damaged[place : place + draw.randrange(9)]
                case _:
                    damaged[place:place] = draw.choice([b"[", b"{", b'"', b"\\", b"\xff", b"null", b"1e999"])
            if not damaged:
                break
        text = await chain.app.dispatcher.answer(bytes(damaged), CallContext(chain.api))
        if text is not None:
            answers = msgspec.json.decode(text)
            for answer in answers if isinstance(answers, list) else [answers]:
                assert answer.get("error", {}).get("code") != -32603, bytes(damaged)
