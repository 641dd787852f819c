"""What is in a shard's state at height 0, and that it works there."""

import json
import re

import pytest
from eth_abi import decode, encode
from eth_account import Account

from node.artifacts import load_artifact, load_canonical_contracts
from node.dev_accounts import DEV_ACCOUNTS, DEV_BALANCE, MNEMONIC
from node.genesis_alloc import (
    BURNER,
    MAX_SHARDS,
    build_alloc,
    compute_alloc_supply,
    encode_alloc,
    get_dev_balances,
)
from shardyard._native import keccak256
from shardyard.errors import ConfigError
from shardyard.ids import GATEWAY, Address
from tests.unit.contracts.chain import Chain, encode_call, selector

ADDRESSES = {contract.name: contract.address for contract in load_canonical_contracts()}


def test_every_shard_starts_from_the_same_bytes_and_the_same_root() -> None:
    first, second = (
        encode_alloc(build_alloc(shard_count=4, balances=balances))
        for balances in (get_dev_balances(), dict(reversed(get_dev_balances().items())))
    )
    assert first == second
    assert Chain(0).genesis_root == Chain(3).genesis_root


def test_predeployed_contracts_are_at_their_addresses(chain: Chain) -> None:
    expected = {GATEWAY: load_artifact("gateway").runtime_code, BURNER: b"\xfe"}
    expected |= {contract.address: contract.runtime_code for contract in load_canonical_contracts()}
    for address, code in expected.items():
        assert chain.core.code(chain.head, address) == code
        account = chain.core.account(chain.head, address)
        assert account is not None
        assert account[0] == 1, "EIP-161: a contract's nonce is 1"


def test_dev_accounts_are_those_of_the_mnemonic_and_are_funded(chain: Chain) -> None:
    assert MNEMONIC == "test test test test test test test test test test test junk"
    assert len({account.address for account in DEV_ACCOUNTS}) == 10
    assert DEV_ACCOUNTS[0].checksum_address == "0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266"
    for account in DEV_ACCOUNTS:
        assert Account.from_key(account.private_key).address == account.checksum_address
        assert chain.balance(account.address) == DEV_BALANCE


def test_supply_is_the_sum_of_the_balances(chain: Chain) -> None:
    alloc = build_alloc(shard_count=4, balances=get_dev_balances())
    supply = compute_alloc_supply(alloc)
    assert supply == 10 * DEV_BALANCE
    assert chain.supply() == supply


def test_alloc_is_plain_json_in_lower_case() -> None:
    alloc = json.loads(encode_alloc(build_alloc(shard_count=2, balances=get_dev_balances())))
    assert all(re.fullmatch("0x[0-9a-f]{40}", address) for address in alloc)
    assert alloc["0x" + GATEWAY.hex()]["storage"] == {f"0x{4:064x}": f"0x{2:064x}"}


@pytest.mark.parametrize("shard_count", [0, -1, MAX_SHARDS + 1])
def test_a_number_of_shards_without_chain_ids_is_refused(shard_count: int) -> None:
    with pytest.raises(ConfigError, match="shards: got"):
        build_alloc(shard_count=shard_count, balances={})


@pytest.mark.parametrize("balance", [-1, 1 << 256])
def test_a_balance_outside_256_bits_is_refused(balance: int) -> None:
    with pytest.raises(ConfigError, match="256"):
        build_alloc(shard_count=1, balances={Address(b"\x01" * 20): balance})


@pytest.mark.parametrize("address", [GATEWAY, BURNER, ADDRESSES["multicall3"]])
def test_no_balance_at_a_predeployed_contract(address: Address) -> None:
    with pytest.raises(ConfigError, match="predeployed"):
        build_alloc(shard_count=1, balances={address: 1})


def test_a_call_to_the_burner_burns_what_it_is_given(chain: Chain) -> None:
    result = chain.call(BURNER, gas=100_000)
    assert result.status == "halt"
    assert result.gas_used == 100_000


def test_the_create2_deployer_deploys_where_expected(chain: Chain) -> None:
    init_code, salt = load_artifact("counter").init_code, b"\x05" * 32
    chain.transact(ADDRESSES["create2_deployer"], salt + init_code)
    created = keccak256(b"\xff" + ADDRESSES["create2_deployer"] + salt + keccak256(init_code))[12:]
    assert chain.core.code(chain.head, created) == load_artifact("counter").runtime_code


def test_multicall3_batches_reads(chain: Chain) -> None:
    calls = [
        (GATEWAY, False, encode_call("shardCount()")),
        (ADDRESSES["multicall3"], False, encode_call("getChainId()")),
        (GATEWAY, True, encode_call("claim()")),
    ]
    data = selector("aggregate3((address,bool,bytes)[])") + encode(["(address,bool,bytes)[]"], [calls])
    result = chain.call(ADDRESSES["multicall3"], data)
    (answers,) = decode(["(bool,bytes)[]"], result.output)
    assert answers[0] == (True, (4).to_bytes(32, "big"))
    assert answers[1] == (True, chain.chain_id.to_bytes(32, "big"))
    assert answers[2][0] is False


def test_the_history_contract_knows_the_parent_of_a_block(chain: Chain) -> None:
    parent = chain.head
    chain.execute()
    result = chain.call(ADDRESSES["history_storage"], (0).to_bytes(32, "big"))
    assert (result.status, result.output) == ("success", parent)


def test_the_beacon_roots_contract_knows_the_beacon_root_of_a_block(chain: Chain) -> None:
    timestamp = 1_700_000_000 + chain.height
    chain.execute()
    result = chain.call(ADDRESSES["beacon_roots"], timestamp.to_bytes(32, "big"))
    assert (result.status, result.output) == ("success", b"\xbb" * 32)


def test_request_contracts_tell_their_fee(chain: Chain) -> None:
    chain.execute()
    for name in ("withdrawal_requests", "consolidation_requests"):
        result = chain.call(ADDRESSES[name])
        assert (result.status, int.from_bytes(result.output, "big")) == ("success", 1)
