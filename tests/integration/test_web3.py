"""A web3.py script as its documentation teaches it: deploy, transact, read events; on the first and the last shard."""

import pytest
from web3 import Web3
from web3.exceptions import ContractLogicError, TransactionNotFound, Web3RPCError

from node.artifacts import load_artifact
from node.cli.wallet import GATEWAY_HEX
from node.dev_accounts import DEV_ACCOUNTS

pytestmark = pytest.mark.network

NOBODY = Web3.to_checksum_address("0x" + "b0b" + 37 * "0")


@pytest.fixture(params=[0, 3], ids=["shard 0", "shard 3"])
def shard(request):
    return request.param


@pytest.fixture
def web3(network, shard):
    found = Web3(Web3.HTTPProvider(network.get_url(shard)))
    yield found
    found.provider._request_session_manager.session_cache.clear()


@pytest.fixture
def account(web3):
    return web3.eth.account.from_key(DEV_ACCOUNTS[5].private_key)


@pytest.fixture
def transact(web3, account):
    """``transact(transaction)``: sign, send, wait; the receipt."""

    def run(transaction):
        filled = {"nonce": web3.eth.get_transaction_count(account.address, "pending"), **transaction}
        signed = account.sign_transaction(filled)
        return web3.eth.wait_for_transaction_receipt(
            web3.eth.send_raw_transaction(signed.raw_transaction), timeout=20, poll_latency=0.05
        )

    return run


def build(web3, account, **more):
    base_fee = web3.eth.get_block("latest")["baseFeePerGas"]
    tip = web3.eth.max_priority_fee
    return {
        "from": account.address, "chainId": web3.eth.chain_id, "maxFeePerGas": 2 * base_fee + tip,
        "maxPriorityFeePerGas": tip, **more,
    }  # fmt: skip


def deploy(web3, account, transact, name, *arguments):
    artifact = load_artifact(name)
    factory = web3.eth.contract(abi=list(artifact.abi), bytecode=artifact.init_code)
    receipt = transact(factory.constructor(*arguments).build_transaction(build(web3, account)))
    assert receipt["status"] == 1
    return web3.eth.contract(address=receipt["contractAddress"], abi=list(artifact.abi))


def test_chain_is_the_shards_own(web3, shard):
    assert web3.is_connected()
    assert web3.eth.chain_id == 31337 + shard
    assert web3.client_version.startswith("Shardyard/")


def test_deploy_transact_events(web3, account, transact):
    token = deploy(web3, account, transact, "erc20", "Gold", "GLD", 10**24)
    assert token.functions.symbol().call() == "GLD"
    receipt = transact(token.functions.transfer(NOBODY, 5).build_transaction(build(web3, account)))
    (event,) = token.events.Transfer().process_receipt(receipt)
    assert list(event["args"].values()) == [account.address, NOBODY, 5]
    found = token.events.Transfer().get_logs(from_block=receipt["blockNumber"], argument_filters={})
    assert receipt["transactionHash"] in [log["transactionHash"] for log in found]
    assert token.functions.balanceOf(NOBODY).call() == 5
    assert token.functions.balanceOf(NOBODY).call(block_identifier=receipt["blockNumber"] - 1) == 0


def test_account_delegates_to_a_contract_and_runs_its_code(web3, account, transact):
    counter = deploy(web3, account, transact, "counter")
    owner = web3.eth.account.create()
    wish = {"chainId": web3.eth.chain_id, "address": counter.address, "nonce": 0}
    signed = owner.sign_authorization(wish)
    call = build(web3, account, to=owner.address, data=counter.encode_abi("increment"))
    call |= {"authorizationList": [signed]}
    gas = web3.eth.estimate_gas(call)
    receipt = transact(call | {"gas": gas})
    assert (receipt["type"], receipt["status"]) == (4, 1)
    assert web3.eth.contract(address=owner.address, abi=counter.abi).functions.count().call() == 1
    assert counter.functions.count().call() == 0
    assert bytes(web3.eth.get_code(owner.address)) == bytes.fromhex("ef0100" + counter.address[2:])
    for found in (
        web3.eth.get_transaction(receipt["transactionHash"]),
        web3.eth.get_block(receipt["blockNumber"], full_transactions=True)["transactions"][-1],
    ):
        (shown,) = found["authorizationList"]
        assert (shown["chainId"], shown["nonce"], shown["r"]) == (web3.eth.chain_id, 0, signed.r)
    everywhere = owner.sign_authorization(wish | {"chainId": 0, "nonce": 1})
    nonce = web3.eth.get_transaction_count(account.address)
    raw = account.sign_transaction(call | {"authorizationList": [everywhere], "gas": gas, "nonce": nonce})
    with pytest.raises(Web3RPCError, match="would replay on all"):
        web3.eth.send_raw_transaction(raw.raw_transaction)


def test_filter_tells_of_new_blocks_and_events(web3, account, transact, eventually):
    counter = deploy(web3, account, transact, "counter")
    blocks = web3.eth.filter("latest")
    events = counter.events.Counted.create_filter(from_block="latest")
    receipt = transact(counter.functions.increment().build_transaction(build(web3, account)))
    seen = []
    eventually(lambda: seen.extend(blocks.get_new_entries()) or receipt["blockHash"] in seen)
    assert [event["transactionHash"] for event in events.get_all_entries()] == [receipt["transactionHash"]]


def test_revert_carries_its_reason(web3, account, transact):
    token = deploy(web3, account, transact, "erc20", "Gold", "GLD", 10)
    with pytest.raises(ContractLogicError, match="ERC20: transfer amount exceeds balance"):
        token.functions.transfer(NOBODY, 11).call({"from": account.address})


def test_refusals_are_geths(web3, account):
    pauper = web3.eth.account.create()
    transaction = build(web3, pauper, to=NOBODY, value=1, gas=21_000, nonce=0)
    with pytest.raises(Web3RPCError, match=r"insufficient funds for gas \* price \+ value"):
        web3.eth.send_raw_transaction(pauper.sign_transaction(transaction).raw_transaction)
    with pytest.raises(TransactionNotFound):
        web3.eth.get_transaction("0x" + "77" * 32)


def test_heads_are_ordered_and_finalized_reaches_a_transaction(web3, account, transact, eventually):
    receipt = transact(build(web3, account, to=NOBODY, value=1, gas=21_000))
    height = receipt["blockNumber"]
    eventually(lambda: web3.eth.get_block("finalized")["number"] >= height, 20)
    heads = [web3.eth.get_block(tag)["number"] for tag in ("earliest", "finalized", "latest", "pending")]
    assert heads == sorted(heads)


def test_message_to_another_shard_is_a_call_of_the_gateway(network, web3, account, transact, shard):
    gateway = web3.eth.contract(
        address=Web3.to_checksum_address(GATEWAY_HEX), abi=list(load_artifact("gateway").abi)
    )
    destination = 1
    call = gateway.functions.transfer(destination, NOBODY).build_transaction(
        build(web3, account, value=10**15)
    )
    receipt = transact(call)
    sent = network.read("tx", "wait", "--cross", receipt["transactionHash"].to_0x_hex())
    (hop,) = sent["hops"]
    assert (hop["src"], hop["dst"], int(hop["value"], 16)) == (shard, destination, 10**15)
    there = Web3(Web3.HTTPProvider(network.get_url(destination)))
    assert there.eth.get_transaction_receipt(hop["id"])["status"] == 1
