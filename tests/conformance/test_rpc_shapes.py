"""Answers have the shape that execution-apis' own examples have: keys, hex forms, null for not-found, error codes.

The examples are of another chain, so each request is asked of ours with our values in it; what is compared is the form.
"""

import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from eth_account import Account

from node.artifacts import load_artifact
from shardyard._native import keccak256
from tests.unit.node.rpc_chain import ALICE, CAROL, CHAIN_ID, GATEWAY, RpcChain, build_transfer, open_chain
from tests.unit.node.test_rpc_methods import call_data

PLACE = Path(__file__).resolve().parents[2].parent / "shared" / "fixtures" / "rpc" / "tests"
EXAMPLES = sorted(str(path.relative_to(PLACE)) for path in PLACE.glob("*/*.io"))

QUANTITY = re.compile(r"0x(0|[1-9a-f][0-9a-f]*)\Z")
DATA = re.compile(r"0x([0-9a-f]{2})*\Z")
FIXED_LENGTHS = {18, 42, 66, 514}
DATA_KEYS = {"input", "data", "extraData", "eth_call", "eth_getCode"}
"""Bytes of any length, even when an example's happen to look like a number."""
NULLABLE = {"to", "contractAddress"}

ABSENT_METHODS = {"eth_createAccessList": -32601}
"""Not offered (yet): clients probe for exactly this code."""
REFUSED = {
    "eth_getProof/get-account-proof-with-storage.io": -32004,
    "eth_sendRawTransaction/send-blob-tx.io": -32000,
}
"""Refused with a reason: there is no trie to prove from, and no blob space."""
OF_OLDER_FORKS = {"root"}
"""Keys that this revision of the EVM has no more."""


class World:
    """A chain with something of everything, and the values that stand for those of the examples."""

    def __init__(self, chain: RpcChain) -> None:
        self.chain = chain
        self.counter = ""
        self.topic = ""
        self.creation = ""
        self.dynamic = ""
        self.set_code = ""
        self.first_hash = ""

    async def fill(self) -> None:
        chain = self.chain
        code = load_artifact("counter").init_code
        self.creation = await chain.send(to=None, data=code, gas=2_000_000, gasPrice=2 * 10**9)
        self.first_hash = "0x" + (await chain.make_block()).hash.hex()
        receipt = await chain.call("eth_getTransactionReceipt", self.creation)
        self.counter = receipt["contractAddress"]
        for height in range(2, 8):
            self.dynamic = await chain.send(to=self.counter, data=call_data("increment()"), gas=200_000)
            await chain.make_block([build_transfer(1, CAROL.address, 7)] if height == 5 else ())
        await chain.send(to=None, data=code, gas=2_000_000, gasPrice=2 * 10**9)
        signed = Account.sign_authorization(
            {"chainId": CHAIN_ID, "address": GATEWAY, "nonce": 0}, CAROL.private_key
        )
        self.set_code = await chain.send(authorizationList=[signed], gas=100_000)
        await chain.make_block()
        chain.backend.on_beacon_final(8)
        (log,) = await chain.call("eth_getLogs", {"fromBlock": "0x2", "toBlock": "0x2"})
        self.topic = log["topics"][0]

    def translate(self, name: str, params: list[Any]) -> list[Any]:
        """Return our parameters for those of an example."""
        gateway, alice = "0x" + GATEWAY.hex(), "0x" + ALICE.address.hex()
        logs = {"fromBlock": "0x1", "toBlock": "0x4"}
        ours: dict[str, list[Any]] = {
            "eth_call/call-callenv.io": [
                {"from": alice, "to": gateway, "input": call_data("shardCount()")},
                "latest",
            ],
            "eth_call/call-contract.io": [
                {"from": alice, "to": self.counter, "input": call_data("count()")},
                "latest",
            ],
            "eth_call/call-revert-abi-error.io": [
                {
                    "gas": "0x186a0",
                    "input": call_data("quote(uint256,uint256,uint256)", 1, 1, 1),
                    "to": gateway,
                }
            ],
            "eth_estimateGas/estimate-successful-call.io": [
                {"to": self.counter, "input": call_data("increment()")}
            ],
            "eth_getBalance/get-balance.io": [alice, "latest"],
            "eth_getBalance/get-balance-default-block.io": [alice],
            "eth_getBlockByHash/get-block-by-hash.io": [self.first_hash, True],
            "eth_getBlockByNumber/get-block-london-fork.io": ["0x2", False],
            "eth_getBlockByNumber/get-block-merge-fork.io": ["0x3", False],
            "eth_getBlockByNumber/get-block-shanghai-fork.io": ["0x5", False],
            "eth_getLogs/contract-addr.io": [{"address": [self.counter], **logs}],
            "eth_getLogs/topic-exact-match.io": [{"topics": [[self.topic]], **logs}],
            "eth_getLogs/topic-wildcard.io": [{"topics": [[], []], **logs}],
            "eth_getStorageAt/get-storage.io": [
                self.counter,
                params[1] if len(params) > 1 else "0x0",
                "latest",
            ],
            "eth_getTransactionByHash/get-setcode-tx.io": [self.set_code],
            "eth_getTransactionCount/get-nonce-default-block.io": [alice],
            "eth_getTransactionReceipt/get-legacy-input.io": [self.creation],
        }
        return ours.get(name, params)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with open_chain(tmp_path) as chain:
        found = World(chain)
        await found.fill()
        yield found


def read_example(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    lines = (PLACE / name).read_text().splitlines()
    request = next(json.loads(line[3:]) for line in lines if line.startswith(">> "))
    answer = next(json.loads(line[3:]) for line in lines if line.startswith("<< "))
    return request, answer


def check_form(theirs: Any, ours: Any, path: str) -> None:
    """Fail unless ``ours`` has the form of ``theirs``."""
    key = path.rpartition(".")[2]
    if key in NULLABLE and (theirs is None or ours is None):
        return
    if isinstance(theirs, dict):
        assert isinstance(ours, dict), path
        missing = theirs.keys() - ours.keys() - OF_OLDER_FORKS
        assert not missing, f"{path}: no {missing}"
        for inner, value in theirs.items():
            if inner in ours:
                check_form(value, ours[inner], f"{path}.{inner}")
    elif isinstance(theirs, list):
        assert isinstance(ours, list), path
        if theirs and ours:
            check_form(theirs[0], ours[0], path)
    elif isinstance(theirs, str) and theirs.startswith("0x"):
        check_hex(theirs, ours, path)
    else:
        assert type(theirs) is type(ours), path


def check_hex(theirs: str, ours: Any, path: str) -> None:
    assert isinstance(ours, str), path
    key = path.rpartition(".")[2]
    is_quantity = bool(QUANTITY.match(theirs)) and len(theirs) not in FIXED_LENGTHS
    if key in {"r", "s"} or (is_quantity and key not in DATA_KEYS):
        assert QUANTITY.match(ours), f"{path}: {ours} is no quantity"
        return
    assert DATA.match(ours), f"{path}: {ours} is no data"
    if len(theirs) in FIXED_LENGTHS and key not in DATA_KEYS:
        assert len(ours) == len(theirs), path


@pytest.mark.skipif(not EXAMPLES, reason="no ../shared/fixtures beside this clone")
@pytest.mark.parametrize("name", EXAMPLES)
async def test_the_answer_has_the_form_of_the_example(world, name):
    request, theirs = read_example(name)
    params = world.translate(name, request.get("params", []))
    ours = await world.chain.ask(request["method"], *params)
    assert ours["jsonrpc"] == "2.0"
    if (code := ABSENT_METHODS.get(request["method"], REFUSED.get(name))) is not None:
        assert ours["error"]["code"] == code
    elif "error" in theirs:
        assert ours["error"]["code"] == theirs["error"]["code"]
        assert ours["error"].keys() == theirs["error"].keys()
    elif theirs["result"] is None:
        assert ours == {"jsonrpc": "2.0", "id": 1, "result": None}
    else:
        assert "result" in ours, ours
        assert ours["result"] is not None
        check_form(theirs["result"], ours["result"], request["method"])


async def test_every_post_merge_field_of_a_header_is_there_and_no_withdrawal_or_blob_ever(world):
    block = await world.chain.call("eth_getBlockByNumber", "latest", False)
    assert block["withdrawals"] == block["uncles"] == []
    assert block["nonce"] == "0x0000000000000000"
    assert block["difficulty"] == block["blobGasUsed"] == block["excessBlobGas"] == "0x0"
    assert block["sha3Uncles"] == "0x" + keccak256(b"\xc0").hex()
    assert block["withdrawalsRoot"] == "0x" + keccak256(b"\x80").hex()
    for key in (
        "parentBeaconBlockRoot",
        "requestsHash",
        "mixHash",
        "stateRoot",
        "receiptsRoot",
        "transactionsRoot",
    ):
        assert re.fullmatch(r"0x[0-9a-f]{64}", block[key]), key


async def test_web3_py_reads_blocks_with_deliveries_and_all_types(world):
    web3 = pytest.importorskip("web3")
    from web3._utils.method_formatters import PYTHONIC_RESULT_FORMATTERS

    block = await world.chain.call("eth_getBlockByNumber", "0x5", True)
    read = PYTHONIC_RESULT_FORMATTERS["eth_getBlockByNumber"](block)
    assert read["number"] == 5
    assert [transaction["type"] for transaction in read["transactions"]] == [0, 2]
    assert web3.Web3.to_hex(read["hash"]) == block["hash"]
