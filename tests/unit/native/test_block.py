"""A block of user transactions: what is skipped and why, what outcomes say, where every wei went."""

import struct

import msgspec
import pytest
from eth_utils import keccak

from shardyard import _native
from tests.unit.native.shard import (
    ADDRESSES,
    BASE_FEE,
    BENEFICIARY,
    CHAIN_ID,
    GENESIS,
    GWEI,
    KEYS,
    REVERTER,
    RICH,
    STORER,
    Shard,
    read_outcomes,
    sign,
    word,
)


def test_outcomes_carry_what_receipts_of_json_rpc_need() -> None:
    shard = Shard()
    transactions = [
        sign(0, 0, STORER, data=word(5)),
        sign(1, 0, REVERTER, type=0, gasPrice=3 * GWEI),
        sign(2, 0, None, type=1, data=bytes.fromhex("60016000f3")),
    ]
    result = shard.extend(GENESIS, b"\2" * 32, transactions)
    stored, reverted, created = read_outcomes(result)
    assert (stored.type, stored.status, stored.effective_gas_price) == (2, 1, BASE_FEE + GWEI)
    assert (reverted.type, reverted.status, reverted.effective_gas_price) == (0, 0, 3 * GWEI)
    assert created.contract_address == keccak(b"\xd6\x94" + ADDRESSES[2] + b"\x80")[12:]
    assert (created.to, stored.contract_address, stored.to) == (b"", b"", STORER)
    assert [o.tx_hash for o in (stored, reverted, created)] == [keccak(raw) for raw in transactions]
    assert [o.sender for o in (stored, reverted, created)] == ADDRESSES[:3]
    assert (
        created.cumulative_gas_used
        == result.gas_used
        == stored.gas_used + reverted.gas_used + created.gas_used
    )
    assert result.transactions_root == _native.merkle_root([keccak(raw) for raw in transactions])
    encoded = [msgspec.msgpack.encode(outcome) for outcome in msgspec.msgpack.decode(result.outcomes)]
    assert result.outcomes_root == _native.merkle_root(encoded)


def test_the_builder_leaves_out_what_cannot_be_in_the_block_and_says_why() -> None:
    shard = Shard()
    transactions = [
        sign(0, 0, value=1),
        sign(0, 0, value=2),
        sign(0, 5),
        sign(1, 0, value=RICH),
        sign(2, 0, maxFeePerGas=BASE_FEE - 1, maxPriorityFeePerGas=0),
        sign(3, 0, gas=60_000_000),
        b"\x03junk",
        sign(3, 0, chainId=1),
        sign(0, 1, value=1),
    ]
    result = shard.execute(GENESIS, transactions)
    assert struct.unpack("<2I", result.included) == (0, 8)
    reasons = dict(result.skipped)
    assert reasons[1].startswith("nonce too low: address 0x")
    assert reasons[1].endswith("tx: 0 state: 1")
    assert reasons[2].startswith("nonce too high")
    assert reasons[3].startswith("insufficient funds for gas * price + value: address 0x")
    assert reasons[4].startswith("max fee per gas less than block base fee")
    assert reasons[5] == "gas limit reached"
    assert reasons[6] == "transaction type not supported"
    assert reasons[7].startswith("invalid chain id")


def test_for_the_validator_one_such_transaction_makes_the_block_invalid() -> None:
    shard = Shard()
    good = [sign(0, 0), sign(0, 1)]
    assert shard.execute(GENESIS, good, mode="validate").state_root == shard.execute(GENESIS, good).state_root
    for bad in (
        sign(0, 3),
        sign(1, 0, value=RICH),
        b"\x03",
        sign(1, 0, chainId=1),
        sign(1, 0, gas=59_990_000),
    ):
        with pytest.raises(_native.InvalidBlock, match="transaction 2"):
            shard.execute(GENESIS, [*good, bad], mode="validate")


def test_skipped_transactions_leave_no_trace() -> None:
    shard = Shard()
    clean = shard.execute(GENESIS, [sign(0, 0), sign(0, 1)])
    noisy = shard.execute(GENESIS, [sign(0, 0), sign(0, 9), sign(1, 0, value=RICH), b"", sign(0, 1)])
    assert (noisy.state_root, noisy.diff, noisy.outcomes) == (clean.state_root, clean.diff, clean.outcomes)


def test_fees_are_burnt_or_paid_and_nothing_else_leaves() -> None:
    shard = Shard()
    block = b"\2" * 32
    result = shard.extend(GENESIS, block, [sign(0, 0, value=10**18), sign(1, 0, STORER, data=word(9))])
    burnt, tips = (int.from_bytes(field, "big") for field in (result.burnt, result.tips))
    assert burnt == result.gas_used * BASE_FEE
    assert tips == result.gas_used * GWEI == shard.balance(block, BENEFICIARY)
    assert shard.supply(block) == shard.supply(GENESIS) - burnt


def test_parents_and_modes_that_do_not_exist_are_refused() -> None:
    shard = Shard()
    shard.numbers[b"\7" * 32] = 0
    with pytest.raises(_native.UnknownParent):
        shard.execute(b"\7" * 32)
    with pytest.raises(ValueError, match="mode"):
        shard.execute(GENESIS, mode="guess")
    with pytest.raises(ValueError, match="expected 32 bytes, got 3"):
        shard.core.account(b"abc", bytes(20))


def test_prague_keeps_block_hashes_and_beacon_roots_in_the_state() -> None:
    history = bytes.fromhex("0000F90827F1C53a10cb7A02335B175320002935")
    code = (
        "3373fffffffffffffffffffffffffffffffffffffffe14604657602036036042575f35600143038111604257611fff8143031160"
        "4257611fff9006545f5260205ff35b5f5ffd5b5f35611fff60014303065500"
    )
    # Stores BLOCKHASH(NUMBER - 1) in slot 0.
    asker = b"\x61" * 20
    alloc = {
        "0x" + history.hex(): {"nonce": "0x1", "code": "0x" + code},
        "0x" + asker.hex(): {"code": "0x60014303405f5500"},
        "0x" + ADDRESSES[0].hex(): {"balance": str(RICH)},
    }
    shard = Shard()
    shard.core.init_genesis(msgspec.json.encode(alloc))
    shard.core.set_base(GENESIS, 0)
    shard.extend(GENESIS, b"\2" * 32, [sign(0, 0, asker)])
    assert shard.core.storage(b"\2" * 32, asker, word(0)) == GENESIS
    assert shard.core.storage(b"\2" * 32, history, word(0)) == GENESIS
    shard.extend(b"\2" * 32, b"\3" * 32, [sign(0, 1, asker)])
    assert shard.core.storage(b"\3" * 32, asker, word(0)) == b"\2" * 32


def test_an_account_that_delegates_runs_the_code_it_named_with_its_own_storage() -> None:
    shard = Shard()
    signed = KEYS[1].sign_authorization({"chainId": CHAIN_ID, "address": STORER, "nonce": 0})
    delegating = sign(0, 0, ADDRESSES[1], type=4, data=word(5), authorizationList=[signed])
    result = shard.extend(GENESIS, b"\2" * 32, [delegating])
    assert [outcome.type for outcome in read_outcomes(result)] == [4]
    assert shard.core.storage(b"\2" * 32, ADDRESSES[1], word(0)) == word(5)
    assert shard.core.code(b"\2" * 32, ADDRESSES[1]) == b"\xef\x01\x00" + STORER


def test_a_block_with_an_authorization_for_every_chain_is_invalid() -> None:
    shard = Shard()
    signed = KEYS[1].sign_authorization({"chainId": 0, "address": STORER, "nonce": 0})
    delegating = sign(0, 0, ADDRESSES[1], type=4, authorizationList=[signed])
    assert [reason for _, reason in shard.execute(GENESIS, [delegating]).skipped] != []
    with pytest.raises(_native.InvalidBlock, match="chain id 0"):
        shard.execute(GENESIS, [delegating], mode="validate")
