"""Accounts of a load run and the signatures of their transactions.

A run signs tens of thousands of transactions. ``eth-account`` takes 5 ms for each in pure Python; OpenSSL takes a tenth of
that and gives the same bytes, because both draw the nonce of a signature as RFC 6979 says. OpenSSL does not tell on which
side of the curve the nonce's point lies, and that bit is part of an Ethereum signature: the native core recovers the
sender of each candidate, and where another account comes out the bit is the other one.
"""

from collections.abc import Iterable, Sequence
from functools import cached_property

import msgspec
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed, decode_dss_signature

from shardyard import _native
from shardyard.ids import Address, Hash32, compute_chain_id

CURVE_ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
DYNAMIC_FEE_TYPE = b"\x02"
_ALGORITHM = ec.ECDSA(Prehashed(hashes.SHA256()), deterministic_signing=True)


class SigningError(Exception):
    """A transaction cannot be signed so that its sender comes out."""


class Account:
    """A key and its address."""

    def __init__(self, secret: bytes) -> None:
        self._key = ec.derive_private_key(int.from_bytes(secret, "big"), ec.SECP256K1())

    @cached_property
    def address(self) -> Address:
        """The account's address: the last 20 bytes of the hash of its public key."""
        point = self._key.public_key().public_numbers()
        return Address(_native.keccak256(point.x.to_bytes(32, "big") + point.y.to_bytes(32, "big"))[12:])

    def sign(self, digest: bytes) -> tuple[int, int, bool]:
        """Return r, s (the low one, EIP-2) and whether s was turned around for that."""
        r, s = decode_dss_signature(self._key.sign(digest, _ALGORITHM))
        return (r, CURVE_ORDER - s, True) if s > CURVE_ORDER // 2 else (r, s, False)


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


def encode_rlp(items: Iterable[int | bytes | None]) -> bytes:
    """Return the RLP list of ``items``: numbers without leading zeros, byte strings, and None for an empty list."""
    payload = b"".join(_encode_item(item) for item in items)
    return _encode_length(len(payload), 0xC0) + payload


def _encode_item(item: int | bytes | None) -> bytes:
    if item is None:
        return b"\xc0"
    data = item.to_bytes((item.bit_length() + 7) // 8, "big") if isinstance(item, int) else item
    return data if len(data) == 1 and data[0] < 0x80 else _encode_length(len(data), 0x80) + data


def _encode_length(length: int, offset: int) -> bytes:
    if length < 56:
        return bytes((offset + length,))
    size = length.to_bytes((length.bit_length() + 7) // 8, "big")
    return bytes((offset + 55 + len(size),)) + size


class Signer:
    """Signs the transactions of one shard."""

    def __init__(self, shard: int) -> None:
        self._chain_id = compute_chain_id(shard)
        self._core = _native.Core(chain_id=self._chain_id, shard=shard)

    def sign(self, drafts: Sequence[Draft]) -> list[tuple[bytes, Hash32]]:
        """Return raw bytes and hash of every draft; raises ``SigningError`` when a sender does not come out."""
        signed = [self._sign_one(draft) for draft in drafts]
        guesses = [_finish(fields, parity) for fields, parity in signed]
        batch = self._prepare(guesses)
        senders = batch.senders
        for index, draft in enumerate(drafts):
            if senders[20 * index : 20 * index + 20] != draft.sender.address:
                fields, parity = signed[index]
                guesses[index] = _finish(fields, 1 - parity)
        batch = self._prepare(guesses)
        senders, digests = batch.senders, batch.hashes
        for index, draft in enumerate(drafts):
            problem = batch.error(index)
            if problem is not None or senders[20 * index : 20 * index + 20] != draft.sender.address:
                raise SigningError(
                    f"transaction {draft.nonce} of 0x{draft.sender.address.hex()}: {problem or 'wrong sender'}"
                )
        return [(raw, Hash32(digests[32 * i : 32 * i + 32])) for i, raw in enumerate(guesses)]

    def _prepare(self, raws: Sequence[bytes]) -> _native.Batch:
        offsets = [0]
        for raw in raws:
            offsets.append(offsets[-1] + len(raw))
        return self._core.prepare(b"".join(raws), offsets)

    def _sign_one(self, draft: Draft) -> tuple[list[int | bytes | None], int]:
        fields: list[int | bytes | None] = [
            self._chain_id,
            draft.nonce,
            draft.tip,
            draft.max_fee,
            draft.gas,
            draft.to,
            draft.value,
            draft.data,
            None,
        ]
        digest = _native.keccak256(DYNAMIC_FEE_TYPE + encode_rlp(fields))
        r, s, turned = draft.sender.sign(digest)
        return [*fields, r, s], int(turned)


def _finish(fields: list[int | bytes | None], parity: int) -> bytes:
    return DYNAMIC_FEE_TYPE + encode_rlp([*fields[:9], parity, *fields[9:]])
