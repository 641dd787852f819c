"""Accounts of a load run and the signatures of their transactions.

A run signs tens of thousands of transactions; the native core does so in one call, with nonces of signatures drawn as RFC
6979 says, so the bytes are those that any wallet would make. What it signed is decoded and recovered again: a transaction
that the chain would refuse is found here and not in the middle of a run.
"""

from collections.abc import Sequence

import msgspec

from shardyard import _native
from shardyard.ids import Address, Hash32, compute_chain_id


class SigningError(Exception):
    """A transaction cannot be signed so that its sender comes out."""


class Account:
    """A key and its address: the last 20 bytes of the hash of its public key."""

    def __init__(self, secret: bytes) -> None:
        self.secret = secret
        self.address = Address(_native.compute_address(secret))


def derive_account(seed: int, shard: int, index: int) -> Account:
    """Return account ``index`` of ``shard`` in the run ``seed``: the same numbers, the same account."""
    return Account(_native.keccak256(f"shardyard/load/{seed}/{shard}/{index}".encode()))


class Draft(msgspec.Struct):
    """A transaction before it is signed (EIP-1559); wei, and gas in units."""

    sender: Account
    nonce: int
    to: bytes
    value: int
    gas: int
    max_fee: int
    tip: int
    data: bytes = b""


class Signer:
    """Signs the transactions of one shard."""

    def __init__(self, shard: int, threads: int = 1) -> None:
        self._chain_id = compute_chain_id(shard)
        self._threads = threads
        self._core = _native.Core(chain_id=self._chain_id, shard=shard, threads=threads)

    def sign(self, drafts: Sequence[Draft]) -> list[tuple[bytes, Hash32]]:
        """Return raw bytes and hash of every draft; raises ``SigningError`` for one that the chain would refuse."""
        submission = self.sign_all(drafts)
        raw, ends = submission.raw, submission.ends
        batch = self._core.prepare_submissions([submission])
        senders, digests = batch.senders, batch.hashes
        found: list[tuple[bytes, Hash32]] = []
        start = 0
        for index, (draft, end) in enumerate(zip(drafts, ends, strict=True)):
            problem = batch.error(index)
            if problem is not None or senders[20 * index : 20 * index + 20] != draft.sender.address:
                raise SigningError(
                    f"transaction {draft.nonce} of 0x{draft.sender.address.hex()}: {problem or 'wrong sender'}"
                )
            found.append((raw[start:end], Hash32(digests[32 * index : 32 * index + 32])))
            start = end
        return found

    def sign_all(self, drafts: Sequence[Draft]) -> _native.Submission:
        """Return every draft signed, in order, without looking at them again."""
        fields = [
            (
                draft.sender.secret,
                draft.nonce,
                draft.tip,
                draft.max_fee,
                draft.gas,
                draft.to,
                draft.value.to_bytes(32, "big"),
                draft.data,
            )
            for draft in drafts
        ]
        return _native.sign_transactions(self._chain_id, fields, self._threads)

    def hash_all(self, submission: _native.Submission) -> bytes:
        """Return the hashes of signed transactions, 32 bytes each."""
        return _native.keccak256_many(submission.raw, (0, *submission.ends))
