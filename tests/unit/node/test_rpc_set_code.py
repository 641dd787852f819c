"""Set-code transactions (EIP-7702) over JSON-RPC: shown as geth shows them, simulated as they would run, refused when an
authorization would replay on other shards (P1).
"""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from eth_account import Account

from shardyard.ids import GATEWAY
from tests.unit.node.rpc_chain import ALICE, BOB, CAROL, CHAIN_ID, RpcChain, open_chain
from tests.unit.node.test_rpc_methods import call_data

FEES = {"maxFeePerGas": 3_000_000_000, "maxPriorityFeePerGas": 5_000_000}


@pytest.fixture
async def chain(tmp_path: Path) -> AsyncIterator[RpcChain]:
    async with open_chain(tmp_path) as found:
        yield found


def authorize(signer: Any, target: bytes, nonce: int = 0, chain_id: int = CHAIN_ID) -> Any:
    return Account.sign_authorization(
        {"chainId": chain_id, "address": target, "nonce": nonce}, signer.private_key
    )


def spell(signed: Any, **changes: str) -> dict[str, str]:
    """An authorization in JSON."""
    return {
        "chainId": hex(signed.chain_id),
        "address": "0x" + signed.address.hex(),
        "nonce": hex(signed.nonce),
        "yParity": hex(signed.y_parity),
        "r": hex(signed.r),
        "s": hex(signed.s),
    } | changes


async def send_set_code(chain: RpcChain, *signed: Any, **fields: Any) -> str:
    data = call_data("shardCount()")
    return await chain.send(
        gas=200_000, to=CAROL.checksum_address, data=data, authorizationList=list(signed), **FEES, **fields
    )


async def test_transaction_and_block_show_the_authorizations_as_signed(chain):
    signed = authorize(CAROL, GATEWAY)
    tx_hash = await send_set_code(chain, signed)
    waiting = await chain.call("eth_getTransactionByHash", tx_hash)
    await chain.make_block()
    found = await chain.call("eth_getTransactionByHash", tx_hash)
    assert found["type"] == "0x4"
    assert found["authorizationList"] == waiting["authorizationList"] == [spell(signed)]
    assert found["maxFeePerGas"] == hex(FEES["maxFeePerGas"])
    assert found["accessList"] == []
    assert found["yParity"] == found["v"]
    block = await chain.call("eth_getBlockByNumber", "latest", True)
    assert block["transactions"] == [found]
    receipt = await chain.call("eth_getTransactionReceipt", tx_hash)
    assert (receipt["type"], receipt["status"]) == ("0x4", "0x1")
    assert receipt["effectiveGasPrice"] == found["gasPrice"]
    assert await chain.call("eth_getCode", CAROL.checksum_address, "latest") == "0xef0100" + GATEWAY.hex()
    assert await chain.call("eth_getTransactionCount", CAROL.checksum_address, "latest") == "0x1"


async def test_a_nonce_that_an_authorization_used_in_the_notarized_tip_is_not_told_as_pending(chain):
    """A transaction with it would be answered with its hash, and lost when the block becomes final."""
    await send_set_code(chain, authorize(CAROL, GATEWAY))
    asked = ("eth_getTransactionCount", CAROL.checksum_address)
    block = chain.execute()
    assert await chain.call(*asked, "latest") == "0x0"
    assert await chain.call(*asked, "pending") == "0x1"
    tx_hash = await chain.send(CAROL)
    assert await chain.call(*asked, "pending") == "0x2"
    await chain.finalise(block)
    assert await chain.call(*asked, "pending") == "0x2"
    await chain.make_block()
    assert (await chain.call("eth_getTransactionReceipt", tx_hash))["status"] == "0x1"


async def test_authorization_for_every_chain_is_refused_and_one_for_another_chain_does_nothing(chain):
    for_all = authorize(CAROL, GATEWAY, chain_id=0)
    raw = chain.sign(gas=200_000, to=CAROL.checksum_address, authorizationList=[for_all], **FEES)
    answer = await chain.ask("eth_sendRawTransaction", "0x" + raw.hex())
    assert answer["error"]["code"] == -32000
    assert "chain id 0" in answer["error"]["message"]
    assert f"sign it for {CHAIN_ID}" in answer["error"]["message"]
    await send_set_code(chain, authorize(CAROL, GATEWAY, chain_id=CHAIN_ID + 1))
    await chain.make_block()
    assert await chain.call("eth_getCode", CAROL.checksum_address, "latest") == "0x"


async def test_call_and_estimate_run_under_the_authorizations_they_name(chain):
    asked = {"from": ALICE.checksum_address, "to": CAROL.checksum_address, "input": call_data("shardCount()")}
    delegated = asked | {"authorizationList": [spell(authorize(CAROL, GATEWAY))]}
    assert await chain.call("eth_call", asked, "latest") == "0x"
    assert len(await chain.call("eth_call", delegated, "latest")) == 66
    plain, more = [int(await chain.call("eth_estimateGas", each), 16) for each in (asked, delegated)]
    assert more >= plain + 12_500
    tx_hash = await chain.send(
        gas=more,
        to=CAROL.checksum_address,
        data=call_data("shardCount()"),
        authorizationList=[authorize(CAROL, GATEWAY)],
        **FEES,
    )
    await chain.make_block()
    assert (await chain.call("eth_getTransactionReceipt", tx_hash))["status"] == "0x1"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"authorizationList": []}, "expected a list of 1 to"),
        ({"authorizationList": [{}]}, "missing 'chainId'"),
        ({"authorizationList": ["0x"]}, "expected objects"),
        (
            {"authorizationList": [spell(authorize(CAROL, GATEWAY), chainId="0x0")]},
            "chainId 0 is for every chain",
        ),
        ({"authorizationList": [spell(authorize(CAROL, GATEWAY), yParity="0x100")]}, "hex number > 8 bits"),
        ({"authorizationList": [spell(authorize(CAROL, GATEWAY), nonce="0x010")]}, "leading zero digits"),
        (
            {"to": None, "authorizationList": [spell(authorize(CAROL, GATEWAY))]},
            "cannot be used to create contract",
        ),
    ],
)
async def test_malformed_authorizations_are_refused_with_what_is_wrong(chain, change, words):
    request = {"from": ALICE.checksum_address, "to": BOB.checksum_address} | change
    for method in ("eth_call", "eth_estimateGas"):
        answer = await chain.ask(method, request)
        assert answer["error"]["code"] == -32602
        assert words in answer["error"]["message"]


async def test_authorization_that_nobody_signed_is_passed_over(chain):
    request = {
        "to": CAROL.checksum_address,
        "input": call_data("shardCount()"),
        "authorizationList": [spell(authorize(CAROL, GATEWAY), r="0x0")],
    }
    assert await chain.call("eth_call", request, "latest") == "0x"


async def test_call_with_an_access_list_is_of_this_chain(chain):
    request = {
        "to": "0x" + GATEWAY.hex(),
        "input": call_data("shardCount()"),
        "accessList": [{"address": "0x" + GATEWAY.hex(), "storageKeys": []}],
    }
    assert len(await chain.call("eth_call", request, "latest")) == 66
    plain = {key: value for key, value in request.items() if key != "accessList"}
    gas = [int(await chain.call("eth_estimateGas", each), 16) for each in (request, plain)]
    assert gas[0] > gas[1]
