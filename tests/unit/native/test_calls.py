"""Calls and estimates: geth's answers, over any state held, without leaving a trace."""

from typing import Any

import msgspec
import pytest

from shardyard import _native
from tests.unit.native.shard import (
    ADDRESSES,
    BURNER,
    GENESIS,
    GWEI,
    REVERTER,
    RICH,
    STORER,
    Shard,
    make_env,
    sign,
    word,
)

BLOCK = b"\2" * 32
IDENTITY = bytes(19) + b"\4"


@pytest.fixture(scope="module")
def shard() -> Shard:
    shard = Shard()
    shard.extend(GENESIS, BLOCK, [sign(0, 0, STORER, data=word(5))])
    return shard


def call(shard: Shard, at: bytes = BLOCK, **fields: Any) -> _native.CallResult:
    return shard.core.call(at, make_env(2), msgspec.msgpack.encode(fields))


def estimate(shard: Shard, at: bytes = BLOCK, **fields: Any) -> _native.CallResult:
    return shard.core.estimate_gas(at, make_env(2), msgspec.msgpack.encode({"from": ADDRESSES[0]} | fields))


def test_a_call_answers_and_leaves_no_trace(shard: Shard) -> None:
    result = call(shard, to=IDENTITY, input=b"abc")
    assert (result.status, result.output, result.halt_reason) == ("success", b"abc", None)
    assert msgspec.msgpack.decode(result.logs) == []
    root = shard.core.state_root(BLOCK)
    assert call(shard, to=STORER, input=word(6)).status == "success"
    assert shard.core.storage(BLOCK, STORER, word(0)) == word(5)
    assert shard.core.state_root(BLOCK) == root


def test_a_call_sees_the_state_it_asks_for(shard: Shard) -> None:
    reader = bytes.fromhex(
        "5f545f5260205ff3"
    )  # returns slot 0: as init code of a creation it reads a fresh account
    assert call(shard, input=reader).output == bytes(32)
    with pytest.raises(_native.MissingState):
        call(shard, at=b"\7" * 32, to=STORER)


def test_failures_have_their_kind_and_geths_words(shard: Shard) -> None:
    reverted = call(shard, to=REVERTER)
    assert (reverted.status, reverted.output.hex()) == ("revert", "deadbeef")
    halted = call(shard, to=BURNER, gas=50_000)
    assert (halted.status, halted.gas_used, halted.halt_reason) == ("halt", 50_000, "invalid opcode: INVALID")
    poor = call(shard, **{"from": b"\x99" * 20}, to=STORER, value=word(1))
    assert poor.status == "halt"
    assert poor.halt_reason is not None
    assert poor.halt_reason.startswith("insufficient funds for gas * price + value")
    tight = call(shard, to=STORER, gas=20_000)
    assert tight.halt_reason == "intrinsic gas too low: have 20000, want 21000"


def test_a_call_may_come_from_a_contract_and_at_no_price(shard: Shard) -> None:
    assert call(shard, **{"from": STORER}, to=IDENTITY).status == "success"
    cheap = call(shard, **{"from": ADDRESSES[0]}, to=IDENTITY, gasPrice=1)
    assert cheap.halt_reason is not None
    assert cheap.halt_reason.startswith("max fee per gas less than block base fee")


def test_a_plain_transfer_is_estimated_exactly(shard: Shard) -> None:
    assert estimate(shard, to=b"\x98" * 20, value=word(1)).gas == 21_000


@pytest.mark.parametrize(
    "fields",
    [{"to": STORER, "input": word(9)}, {"to": IDENTITY, "input": b"\1" * 500}, {"input": b"\x60\x01"}],
)
def test_an_estimate_suffices_and_is_tight(shard: Shard, fields: dict[str, Any]) -> None:
    found = estimate(shard, **fields)
    assert found.status == "success"
    assert call(shard, **fields, **{"from": ADDRESSES[0]}, gas=found.gas).status == "success"
    assert found.gas_used <= found.gas <= found.gas_used * 1.03 + 2_400


def test_an_estimate_leaves_room_for_the_gas_a_forwarded_call_holds_back(shard: Shard) -> None:
    # Calls the storer with all gas: 1/64 stays behind, and the clearing refund comes only at the end.
    code = bytes.fromhex("5f5f5f5f5f73" + STORER.hex() + "5af1501f")[:-1]
    caller = b"\x63" * 20
    core = Shard().core
    alloc = {
        "0x" + STORER.hex(): {"code": "0x5f355f55", "storage": {"0x0": "0x1"}},
        "0x" + caller.hex(): {"code": "0x" + code.hex()},
        "0x" + ADDRESSES[0].hex(): {"balance": str(RICH)},
    }
    core.init_genesis(msgspec.json.encode(alloc))
    core.set_base(GENESIS, 0)
    request = {"from": ADDRESSES[0], "to": caller}
    found = core.estimate_gas(GENESIS, make_env(1), msgspec.msgpack.encode(request))
    assert found.gas > found.gas_used
    result = core.call(GENESIS, make_env(1), msgspec.msgpack.encode(request | {"gas": found.gas}))
    assert result.status == "success"


def test_estimates_of_what_fails_say_how(shard: Shard) -> None:
    assert estimate(shard, to=REVERTER).status == "revert"
    assert estimate(shard, to=REVERTER).output.hex() == "deadbeef"
    burns = estimate(shard, to=BURNER)
    assert (burns.status, burns.halt_reason) == ("halt", "invalid opcode: INVALID")
    short = estimate(shard, to=STORER, input=word(2**200), gas=22_000)
    assert short.halt_reason == "gas required exceeds allowance (22000)"
    poor = estimate(shard, **{"from": b"\x99" * 20}, to=STORER, gasPrice=2 * GWEI)
    assert poor.halt_reason == "gas required exceeds allowance (0)"


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"",
        b"\x80\0",
        b"\x81",
        msgspec.msgpack.encode({"too": bytes(20)}),
        msgspec.msgpack.encode({"to": bytes(19)}),
    ],
)
def test_malformed_requests_are_refused(shard: Shard, request_bytes: bytes) -> None:
    with pytest.raises(_native.CoreError, match="malformed"):
        shard.core.call(BLOCK, make_env(2), request_bytes)
