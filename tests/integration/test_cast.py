"""The command-line wallet of other people, unchanged, on the first and the last shard of a real network."""

import json
import subprocess

import pytest

from node.artifacts import load_artifact
from node.dev_accounts import DEV_ACCOUNTS

pytestmark = pytest.mark.network

KEY = "0x" + DEV_ACCOUNTS[7].private_key.hex()
SENDER = DEV_ACCOUNTS[7].checksum_address
NOBODY = "0x00000000000000000000000000000000000Ca570"
GATEWAY = "0x0000000000000000000000000000000000005a7d"


@pytest.fixture(params=[0, 3], ids=["shard 0", "shard 3"])
def shard(request):
    return request.param


@pytest.fixture
def call(network, cast, shard):
    """``call("send", …)``: what cast prints about this shard."""

    def run(command, *arguments):
        done = subprocess.run(
            [cast, command, "--rpc-url", network.get_url(shard), *arguments],
            capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, f"cast {command} {' '.join(arguments)}\n{done.stdout}\n{done.stderr}"
        return done.stdout.strip()

    return run


@pytest.fixture
def send(call):
    """``send(to, …)``: the receipt of a transaction that cast signed, sent and waited for."""

    def run(*arguments):
        receipt = json.loads(call("send", "--json", "--private-key", KEY, *arguments))
        assert receipt["status"] == "0x1", receipt
        return receipt

    return run


def test_chain_and_heads(call, shard, eventually):
    assert call("chain-id") == str(31337 + shard)

    def read_finalized():
        return int(json.loads(call("block", "finalized", "--full", "--json"))["number"], 16)

    eventually(lambda: read_finalized() > 0, 30)  # a network is ready before the beacon has accepted anything
    assert read_finalized() <= int(call("block-number")) <= read_finalized() + 100
    assert "transactionsRoot" in call("block", "finalized", "--full")


def test_send_changes_balances_and_nonce_by_what_the_receipt_says(call, send):
    before, nonce = int(call("balance", SENDER)), int(call("nonce", SENDER))
    held = int(call("balance", NOBODY))
    receipt = send(NOBODY, "--value", "1gwei")
    fee = int(receipt["gasUsed"], 16) * int(receipt["effectiveGasPrice"], 16)
    assert int(call("balance", SENDER)) == before - 10**9 - fee
    assert int(call("balance", NOBODY)) == held + 10**9
    assert int(call("nonce", SENDER)) == nonce + 1
    again = json.loads(call("receipt", receipt["transactionHash"], "--json"))
    assert again["blockHash"] == receipt["blockHash"]
    found = json.loads(call("tx", receipt["transactionHash"], "--json"))
    assert found["hash"] == receipt["transactionHash"]


def test_contract_is_created_called_sent_to_and_its_log_found(call, send):
    counter = send("--create", "0x" + load_artifact("counter").init_code.hex())["contractAddress"]
    assert call("code", counter) == "0x" + load_artifact("counter").runtime_code.hex()
    receipt = send(counter, "increment()")
    assert call("call", counter, "count()(uint256)") == "1"
    assert int(call("storage", counter, "0"), 16) >= 0
    height = int(receipt["blockNumber"], 16)
    logs = json.loads(
        call("logs", "--json", "--address", counter, "--from-block", str(height), "--to-block", str(height))
    )
    assert [log["transactionHash"] for log in logs] == [receipt["transactionHash"]]
    assert int(call("estimate", counter, "increment()", "--from", SENDER)) > 21_000


def test_account_of_another_signer_delegates(network, cast, shard, call, send):
    counter = send("--create", "0x" + load_artifact("counter").init_code.hex())["contractAddress"]
    made = json.loads(subprocess.check_output([cast, "wallet", "new", "--json"]))[0]
    wish = [cast, "wallet", "sign-auth", counter, "--private-key", made["private_key"]]
    told = subprocess.check_output([*wish, "--rpc-url", network.get_url(shard)], text=True)
    signed = told.strip()
    receipt = send(made["address"], "increment()", "--auth", signed)
    assert receipt["type"] == "0x4"
    assert call("call", made["address"], "count()(uint256)") == "1"
    assert call("code", made["address"]) == "0xef0100" + counter[2:].lower()
    shown = json.loads(call("tx", receipt["transactionHash"], "--json"))["authorizationList"]
    assert [entry["address"].lower() for entry in shown] == [counter.lower()]


def test_block_with_transactions_decodes_in_full(call, send):
    receipt = send(NOBODY, "--value", "1")
    block = json.loads(call("block", str(int(receipt["blockNumber"], 16)), "--full", "--json"))
    assert receipt["transactionHash"] in [transaction["hash"] for transaction in block["transactions"]]


def test_delivery_of_another_shard_decodes_as_a_transaction(network, cast, call, shard):
    source = 1
    sent = network.read(
        "tx",
        "xsend",
        "--from",
        "8",
        "--src",
        str(source),
        "--dst",
        str(shard),
        "--to",
        NOBODY,
        "--value",
        "2gwei",
    )
    (hop,) = sent["hops"]
    delivery = json.loads(call("tx", hop["id"], "--json"))
    assert delivery["from"].lower() == GATEWAY
    assert delivery["to"].lower() == NOBODY.lower()
    assert int(delivery["value"], 16) == 2 * 10**9
    receipt = json.loads(call("receipt", hop["id"], "--json"))
    assert receipt["status"] == "0x1"
    assert int(receipt["blockNumber"], 16) == hop["delivered"]["blockNumber"]
    block = json.loads(call("block", str(hop["delivered"]["blockNumber"]), "--full", "--json"))
    assert hop["id"] in [transaction["hash"] for transaction in block["transactions"]]


def test_cast_can_send_across_shards_by_itself(network, call, send, shard, eventually):
    destination = 2
    receipt = send(GATEWAY, "transfer(uint256,address)", str(destination), NOBODY, "--value", "3gwei")
    status = network.read("tx", "status", receipt["transactionHash"])
    (hop,) = status["hops"]
    assert (hop["kind"], hop["src"], hop["dst"]) == ("TRANSFER", shard, destination)
    network.call("tx", "wait", "--cross", receipt["transactionHash"])
