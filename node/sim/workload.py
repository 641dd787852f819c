"""The transactions of a run: a fixed table per shard, sender and nonce, signed once per process and used by every seed.

A seed only decides when which of them is offered. Local transfers, transfers to other shards, calls of a contract that
takes them, and calls of an account without code, which bounce: every path of a message is walked.
"""

import random
from functools import lru_cache
from typing import Final

from node.load.keys import Account, Draft, Signer, derive_account
from node.load.workload import encode_gateway_transfer
from node.sim.scenario import ACCOUNT_SEED, ACCOUNTS, COUNTER
from shardyard import _native
from shardyard.ids import GATEWAY, Address, Hash32, compute_chain_id

GWEI: Final = 10**9
MAX_FEE: Final = 50 * GWEI
TIP: Final = GWEI
STRANGER: Final = Address(b"\xee" * 20)
BATCH: Final = 16
"""Nonces signed at a time."""
_SEND_MESSAGE: Final = _native.keccak256(b"sendMessage(bytes,bytes,bytes[])")[:4]


@lru_cache(maxsize=256)
def get_account(shard: int, index: int) -> Account:
    """Return sender ``index`` of ``shard``."""
    return derive_account(ACCOUNT_SEED, shard, index)


@lru_cache(maxsize=8)
def _get_signer(shard: int) -> Signer:
    return Signer(shard)


@lru_cache(maxsize=4096)
def _sign_batch(shards: int, shard: int, index: int, first: int) -> tuple[tuple[bytes, Hash32], ...]:
    drafts = [_draft(shards, shard, index, nonce) for nonce in range(first, first + BATCH)]
    return tuple(_get_signer(shard).sign(drafts))


def get_transaction(shards: int, shard: int, index: int, nonce: int) -> tuple[bytes, Hash32]:
    """Return the signed transaction of a sender and nonce, with its hash."""
    return _sign_batch(shards, shard, index, nonce - nonce % BATCH)[nonce % BATCH]


def _draft(shards: int, shard: int, index: int, nonce: int) -> Draft:
    draw = random.Random(f"transaction {shard} {index} {nonce}")
    account = get_account(shard, index)
    dst = (shard + draw.randrange(1, shards)) % shards if shards > 1 else shard
    receiver = get_account(dst, draw.randrange(ACCOUNTS)).address
    kind = (
        draw.choice(["local", "local", "local", "transfer", "transfer", "call", "bounce"])
        if dst != shard
        else "local"
    )
    value, gas, to, data = 1_000 + nonce, 21_000, receiver, b""
    match kind:
        case "transfer":
            gas, to, data = 200_000, GATEWAY, encode_gateway_transfer(dst, receiver)
        case "call" | "bounce":
            target = COUNTER if kind == "call" else STRANGER
            # The default terms: gas for delivery and reply at twice the destination's base fee, here with room to spare.
            value, gas, to, data = 10**16, 400_000, GATEWAY, encode_message(dst, target, b"ping")
        case _:
            pass
    return Draft(
        sender=account, nonce=nonce, to=to, value=value, gas=gas, max_fee=MAX_FEE, tip=TIP, data=data
    )


def encode_message(dst: int, target: Address, payload: bytes) -> bytes:
    """Return the call of ``sendMessage`` on the gateway, with default terms (ERC-7786, ERC-7930)."""
    recipient = b"\x00\x01\x00\x00\x02" + compute_chain_id(dst).to_bytes(2, "big") + b"\x14" + target
    parts = [_encode_bytes(recipient), _encode_bytes(payload), bytes(32)]
    offsets, at = [], 32 * len(parts)
    for part in parts:
        offsets.append(at.to_bytes(32, "big"))
        at += len(part)
    return _SEND_MESSAGE + b"".join(offsets) + b"".join(parts)


def _encode_bytes(data: bytes) -> bytes:
    return len(data).to_bytes(32, "big") + data + bytes(-len(data) % 32)


class TransactionPool:
    """What the clients of one shard have offered: they offer it again to whichever replica is up."""

    def __init__(self, shards: int, shard: int) -> None:
        self._shards = shards
        self.shard = shard
        self.addresses = [get_account(shard, index).address for index in range(ACCOUNTS)]
        self._packed = b"".join(self.addresses)
        self.offered = [0] * ACCOUNTS
        """Transactions offered by each sender: nonces below this."""

    def offer(self, index: int) -> None:
        """Offer the next transaction of a sender."""
        self.offered[index] += 1

    def select(self, core: _native.Core, parent: Hash32) -> tuple[bytes, tuple[int, ...]]:
        """Return what a block on ``parent`` could include: one blob and the end of each transaction."""
        raws: list[bytes] = []
        for index, nonce in enumerate(self.get_nonces(core, parent)):
            offered = self.offered[index]
            raws.extend(
                get_transaction(self._shards, self.shard, index, number)[0]
                for number in range(nonce, offered)
            )
        ends: list[int] = []
        total = 0
        for raw in raws:
            total += len(raw)
            ends.append(total)
        return b"".join(raws), tuple(ends)

    def get_nonces(self, core: _native.Core, at: Hash32) -> list[int]:
        """Return the nonce of every sender in the state after a block."""
        packed = core.nonces_balances(at, self._packed)
        return [int.from_bytes(packed[40 * index : 40 * index + 8], "little") for index in range(ACCOUNTS)]
