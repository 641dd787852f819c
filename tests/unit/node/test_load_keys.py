"""Signatures of the load generator: the same bytes that wallets make, and senders that come out."""

import pytest

from node.load.keys import Account, Draft, Signer, SigningError, derive_account
from shardyard import _native
from shardyard.ids import compute_chain_id


def build_drafts(account, count):
    return [
        Draft(
            account, nonce, b"\x22" * 20, 10**15 + nonce, 21_000 + 700 * nonce, 10**10, 10**6, b"\x01" * nonce
        )
        for nonce in range(count)
    ]


def test_signed_bytes_and_hashes_are_those_of_eth_account():
    from eth_account import Account as Wallet

    secret = _native.keccak256(b"a wallet")
    wallet = Wallet.from_key(secret)
    drafts = build_drafts(Account(secret), 24)
    for draft, (raw, digest) in zip(drafts, Signer(3).sign(drafts), strict=True):
        expected = wallet.sign_transaction(
            {
                "type": 2,
                "chainId": compute_chain_id(3),
                "nonce": draft.nonce,
                "gas": draft.gas,
                "maxFeePerGas": draft.max_fee,
                "maxPriorityFeePerGas": draft.tip,
                "value": draft.value,
                "to": "0x" + draft.to.hex(),
                "data": draft.data,
            }
        )
        assert raw == bytes(expected.raw_transaction)
        assert digest == bytes(expected.hash)


def test_address_is_that_of_the_wallet():
    from eth_account import Account as Wallet

    secret = _native.keccak256(b"another wallet")
    assert "0x" + Account(secret).address.hex() == Wallet.from_key(secret).address.lower()


def test_accounts_depend_on_seed_shard_and_index_alone():
    assert derive_account(1, 2, 3).address == derive_account(1, 2, 3).address
    others = {derive_account(*numbers).address for numbers in [(1, 2, 3), (2, 2, 3), (1, 3, 3), (1, 2, 4)]}
    assert len(others) == 4


def test_creation_has_no_receiver():
    ((raw, _),) = Signer(0).sign([Draft(derive_account(1, 0, 0), 0, b"", 0, 100_000, 10**10, 1, b"\x00")])
    assert raw[0] == 2


def test_transaction_the_chain_would_refuse_is_not_signed():
    with pytest.raises(SigningError):
        Signer(0).sign([Draft(derive_account(1, 0, 0), 0, b"\x22" * 20, 1, 20_000, 10**10, 10**6)])


def test_workers_sign_the_same_bytes():
    drafts = build_drafts(derive_account(1, 0, 0), 24)
    assert Signer(0, threads=2).sign_all(drafts).raw == b"".join(raw for raw, _ in Signer(0).sign(drafts))
