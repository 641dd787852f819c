"""What a run sends, and when: a stream of signed transactions that depends on its numbers and its seed alone.

Accounts are dealt per shard and used by nobody else, so the nonces of a run are known before it begins, and with them the
hash of every transaction and the id of every cross-shard message (X1). Arrivals are evenly spaced over the whole network;
shards, senders and receivers are drawn from the seed.
"""

import random
from collections.abc import Sequence
from itertools import accumulate

import msgspec

from node.load.keys import Account, Draft, Signer, derive_account
from shardyard import _native
from shardyard.ids import GATEWAY, Address, Hash32, compute_chain_id

TRANSFER_GAS = 21_000
GATEWAY_TRANSFER_GAS = 150_000
"""Enough for ``transfer(uint256,address)``, RECEIPT_GAS included (X2)."""
TRANSFER_VALUE = 1_000
MESSAGE_TAG = b"shardyard/message/v1"
SELECTOR_TRANSFER = _native.keccak256(b"transfer(uint256,address)")[:4]


class Knobs(msgspec.Struct, frozen=True):
    """The numbers of a workload. ``cross_ratio`` is the share of transactions that leave their shard."""

    shards: int
    tps: float
    cross_ratio: float = 0.0
    accounts: int = 32
    """Per shard."""
    zipf: float = 0.0
    """Skew of the receivers: 0 is even, 1 makes the first account take the most."""
    seed: int = 1


class Fees(msgspec.Struct, frozen=True):
    """What a shard's transactions offer, wei per gas."""

    max_fee: int
    tip: int


class Planned(msgspec.Struct, frozen=True):
    """A signed transaction with the second at which it is due, counted from the start of the run."""

    due_s: float
    shard: int
    dst: int
    """Equals ``shard`` for a local transfer."""
    sender: Address
    nonce: int
    raw: str
    tx_hash: str
    message: str
    """Id of the message it emits (0x hex); empty for a local transfer."""


class Wallet:
    """One account of the run with its next nonces on its own shard."""

    def __init__(self, account: Account, shard: int) -> None:
        self.account = account
        self.shard = shard
        self.nonce = 0
        self.gateway_nonce = 0

    def take_message_id(self) -> Hash32:
        """Return the id of the next message this account sends (X1) and count it."""
        self.gateway_nonce += 1
        return compute_message_id(self.shard, self.account.address, self.gateway_nonce - 1)


def compute_message_id(shard: int, sender: Address, gateway_nonce: int) -> Hash32:
    """Return the id of the message that ``sender`` sends from ``shard`` as its ``gateway_nonce``-th (X1)."""
    chain, nonce = compute_chain_id(shard).to_bytes(32, "big"), gateway_nonce.to_bytes(32, "big")
    return Hash32(_native.keccak256(MESSAGE_TAG + chain + sender + nonce))


def encode_gateway_transfer(dst: int, to: bytes) -> bytes:
    """Return the call of the gateway that moves value to ``to`` on shard ``dst``."""
    return SELECTOR_TRANSFER + dst.to_bytes(32, "big") + bytes(12) + to


class Workload:
    """Draws and signs the transactions of a run, in order of the time at which they are due."""

    def __init__(self, knobs: Knobs) -> None:
        if not 0 <= knobs.cross_ratio <= 1 or (knobs.shards == 1 and knobs.cross_ratio):
            raise ValueError(
                f"cross ratio: got {knobs.cross_ratio}, expected 0 to 1, and 0 where there is one shard"
            )
        if knobs.tps <= 0 or knobs.accounts < 1:
            raise ValueError(
                f"got {knobs.tps} tps and {knobs.accounts} accounts, expected more than none of both"
            )
        self.knobs = knobs
        self.wallets = [
            [Wallet(derive_account(knobs.seed, shard, index), shard) for index in range(knobs.accounts)]
            for shard in range(knobs.shards)
        ]
        self.fees = [Fees(max_fee=10 * 10**9, tip=10**6)] * knobs.shards
        self._signers = [Signer(shard) for shard in range(knobs.shards)]
        self._random = random.Random(knobs.seed)
        weights = [1 / (rank**knobs.zipf) for rank in range(1, knobs.accounts + 1)]
        self._weights = list(accumulate(weights))
        self._count = 0

    def compute_funding(self, transactions: int) -> int:
        """Return the wei an account needs that may send its share of ``transactions``, three times over.

        Senders are drawn, so some send more than others.
        """
        share = 3 * transactions // (self.knobs.shards * self.knobs.accounts) + 20
        gas = GATEWAY_TRANSFER_GAS if self.knobs.cross_ratio else TRANSFER_GAS
        return int(share * (gas * max(fees.max_fee for fees in self.fees) + TRANSFER_VALUE))

    def draw(self, count: int) -> list[Planned]:
        """Return the next ``count`` transactions, signed."""
        picks = [self._pick() for _ in range(count)]
        signed: list[tuple[bytes, Hash32] | None] = [None] * count
        for shard, signer in enumerate(self._signers):
            mine = [index for index, pick in enumerate(picks) if pick[0].shard == shard]
            for index, result in zip(mine, signer.sign([picks[index][1] for index in mine]), strict=True):
                signed[index] = result
        return [
            self._plan(pick, result) for pick, result in zip(picks, signed, strict=True) if result is not None
        ]

    def _pick(self) -> tuple[Wallet, Draft, int, str]:
        rng = self._random
        shard = rng.randrange(self.knobs.shards)
        wallet = self.wallets[shard][rng.randrange(self.knobs.accounts)]
        is_cross = rng.random() < self.knobs.cross_ratio
        dst = (shard + rng.randrange(1, self.knobs.shards)) % self.knobs.shards if is_cross else shard
        receiver = self._pick_receiver(self.wallets[dst])
        fees = self.fees[shard]
        draft = Draft(
            sender=wallet.account,
            nonce=wallet.nonce,
            to=GATEWAY if is_cross else receiver,
            value=TRANSFER_VALUE,
            gas=GATEWAY_TRANSFER_GAS if is_cross else TRANSFER_GAS,
            max_fee=fees.max_fee,
            tip=fees.tip,
            data=encode_gateway_transfer(dst, receiver) if is_cross else b"",
        )
        wallet.nonce += 1
        message = "0x" + wallet.take_message_id().hex() if is_cross else ""
        return wallet, draft, dst, message

    def _pick_receiver(self, wallets: Sequence[Wallet]) -> Address:
        return self._random.choices(wallets, cum_weights=self._weights)[0].account.address

    def _plan(self, pick: tuple[Wallet, Draft, int, str], signed: tuple[bytes, Hash32]) -> Planned:
        wallet, draft, dst, message = pick
        raw, digest = signed
        due_s = self._count / self.knobs.tps
        self._count += 1
        return Planned(
            due_s=due_s,
            shard=wallet.shard,
            dst=dst,
            sender=wallet.account.address,
            nonce=draft.nonce,
            raw="0x" + raw.hex(),
            tx_hash="0x" + digest.hex(),
            message=message,
        )
