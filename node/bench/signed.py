"""Signed transactions for a flood: all of them before the clock starts, in batches whose senders stay on one connection.

Accounts are dealt to connections, so the order of nonces holds whatever connection is served first. Receivers are other
accounts of the run, drawn from the seed; a cross-shard transaction calls the gateway and pays an account of another shard.
"""

import random

import msgspec

from node.bench.flood import Request
from node.load.keys import Account, Draft, Signer, derive_account
from node.load.workload import (
    GATEWAY_TRANSFER_GAS,
    TRANSFER_GAS,
    compute_message_id,
    encode_gateway_transfer,
)
from shardyard import _native
from shardyard.ids import GATEWAY, Hash32

CHUNK = 20_000
VALUE = 1_000
SELECTOR = _native.keccak256(b"transfer(address,uint256)")[:4]


class FloodKnobs(msgspec.Struct, frozen=True):
    """What a flood sends to every shard; ``cross`` is the share of transactions that leave theirs."""

    kind: str
    shards: int
    cross: float
    accounts: int
    connections: int
    batch: int
    seed: int
    max_fee: int
    tip: int
    threads: int


class Token(msgspec.Struct, frozen=True):
    """The ERC-20 token of a shard, and the gas that a transfer of it takes."""

    address: bytes
    gas: int


class Crossing(msgspec.Struct, frozen=True):
    """A transaction that leaves its shard: its number in the plan, where it goes, and its message's id (X1)."""

    number: int
    dst: int
    message: Hash32


class SignedPlan(msgspec.Struct):
    """The transactions of one shard in order of signing, cut into requests."""

    shard: int
    hashes: bytes
    """32 bytes each."""
    queues: list[list[Request]]
    crossings: list[Crossing] = []

    def get_hash(self, number: int) -> Hash32:
        """Return the hash of transaction ``number``."""
        return Hash32(self.hashes[32 * number : 32 * number + 32])


class ShardSource:
    """Draws and signs the transactions of one shard."""

    def __init__(self, knobs: FloodKnobs, shard: int) -> None:
        self.shard = shard
        self.token: Token | None = None
        """What is transferred; value when there is none."""
        self._knobs = knobs
        self.accounts = [derive_account(knobs.seed, shard, index) for index in range(knobs.accounts)]
        self._others = [
            [derive_account(knobs.seed, other, index).address for index in range(min(64, knobs.accounts))]
            for other in range(knobs.shards)
        ]
        self._nonces = [0] * knobs.accounts
        self._turns = [0] * knobs.connections
        self._gateway_nonces = [0] * knobs.accounts
        self._crossings: list[Crossing] = []
        self._drawn = 0
        self._random = random.Random(f"{knobs.seed}/{shard}")
        self._signer = Signer(shard, knobs.threads)

    def sign(self, count: int) -> SignedPlan:
        """Return about ``count`` signed transactions."""
        knobs = self._knobs
        queues: list[list[Request]] = [[] for _ in range(knobs.connections)]
        hashes: list[bytes] = []
        first = 0
        self._crossings, self._drawn = [], 0
        turns = max(1, CHUNK // knobs.batch)
        while first < count:
            begun = first // knobs.batch
            owners = [turn % knobs.connections for turn in range(begun, begun + turns)]
            drafts = [self._draft(owner) for owner in owners for _ in range(knobs.batch)]
            signed = self._signer.sign_all(drafts)
            for turn, owner in enumerate(owners):
                start = turn * knobs.batch
                body = signed.encode_request(start, start + knobs.batch)
                queues[owner].append(Request(body, first + start, knobs.batch))
            hashes.append(self._signer.hash_all(signed))
            first += len(drafts)
        return SignedPlan(self.shard, b"".join(hashes), queues, self._crossings)

    def encode_pay(self, to: bytes, amount: int) -> bytes:
        """Return the call that moves tokens."""
        return SELECTOR + bytes(12) + to + amount.to_bytes(32, "big")

    def _draft(self, owner: int) -> Draft:
        index = self._take_sender(owner)
        sender, nonce = self.accounts[index], self._nonces[index]
        self._nonces[index] += 1
        self._drawn += 1
        knobs = self._knobs
        if knobs.cross and self._random.random() < knobs.cross:
            other = (self.shard + self._random.randrange(1, knobs.shards)) % knobs.shards
            message = compute_message_id(self.shard, sender.address, self._gateway_nonces[index])
            self._gateway_nonces[index] += 1
            self._crossings.append(Crossing(self._drawn - 1, other, message))
            data = encode_gateway_transfer(other, self._random.choice(self._others[other]))
            return Draft(sender, nonce, GATEWAY, VALUE, GATEWAY_TRANSFER_GAS, knobs.max_fee, knobs.tip, data)
        receiver: Account = self.accounts[self._random.randrange(knobs.accounts)]
        if self.token is not None:
            data = self.encode_pay(receiver.address, 1)
            return Draft(sender, nonce, self.token.address, 0, self.token.gas, knobs.max_fee, knobs.tip, data)
        return Draft(sender, nonce, receiver.address, VALUE, TRANSFER_GAS, knobs.max_fee, knobs.tip)

    def _take_sender(self, owner: int) -> int:
        """Return the next account of a connection, in turn."""
        mine = range(owner, self._knobs.accounts, self._knobs.connections)
        turn = self._turns[owner]
        self._turns[owner] = turn + 1
        return mine[turn % len(mine)]
