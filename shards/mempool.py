"""The mempool: which transactions wait, in which order the builder gets them, and which are refused.

A pure data structure without I/O. Each sender has a queue by nonce; its *run* is the unbroken stretch from
the account's nonce on, and only the run is executable ("pending" in geth's words, the rest is "queued").
Refusals use geth's words, because wallets match on them. Everything is bounded: transactions and bytes in
all, transactions and nonce gap per sender. When the pool is full, the sender who holds the cheapest
transaction loses its *last* one: what follows a cheap nonce cannot run before it and so is worth no more,
and evicting from the middle would only tear the run. A newcomer that could not run now evicts nobody, so
filling the pool with gaps gains nothing. A replacement pays at least 110 % of both fees of what it replaces,
rounded down.

A block that is built or notarized but not final yet keeps its transactions here, marked; a child of it
passes them over, and when the block is discarded they are offered again without anybody having to bring
them back.

The tables are the native core's, which works on whole groups (``admit``, ``select_batch``, ``mark_batch``,
``settle``) without an object per transaction; the other methods are for those who ask about one.
"""

from collections.abc import Iterable, Iterator
from typing import Final

import msgspec

from shardyard import _native
from shardyard.errors import ShardyardError
from shardyard.ids import Address, Hash32

POOL_FULL: Final = "txpool is full"


class MempoolError(ShardyardError):
    """A transaction the pool does not take; ``reason`` is geth's sentinel, the text begins with it."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


class MempoolLimits(msgspec.Struct, frozen=True):
    """Caps of one pool (I14)."""

    max_transactions: int = 262_144
    max_bytes: int = 256 * 1024 * 1024
    """Of raw transactions, and of their access lists and authorizations as decoded."""
    max_per_sender: int = 4096
    max_gap: int = 64
    """A nonce may lead the sender's run by at most this."""
    max_gas: int = 600_000_000
    """Block gas limit: what asks for more can never run."""
    min_fee: int = 0
    """Wei per gas; a lower ``max_fee`` can never pay the base fee's floor."""


class MempoolEntry(msgspec.Struct, frozen=True, gc=False):
    """One decoded transaction; fees in wei per gas, ``cost`` = value + gas_limit · max_fee in wei."""

    hash: Hash32
    sender: Address
    nonce: int
    gas_limit: int
    max_fee: int
    tip: int
    cost: int
    raw: bytes


_Fields = tuple[bytes, bytes, int, int, int, int, bytes, bytes]


def _build_entry(fields: _Fields) -> MempoolEntry:
    tx_hash, sender, nonce, gas_limit, max_fee, tip, cost, raw = fields
    return MempoolEntry(
        hash=Hash32(tx_hash),
        sender=Address(sender),
        nonce=nonce,
        gas_limit=gas_limit,
        max_fee=max_fee,
        tip=tip,
        cost=int.from_bytes(cost, "big"),
        raw=raw,
    )


def _split_hashes(joined: bytes) -> list[Hash32]:
    return [Hash32(joined[at : at + 32]) for at in range(0, len(joined), 32)]


class Mempool:
    """Pending transactions of one shard. Any thread may call; every call is atomic."""

    def __init__(self, limits: MempoolLimits) -> None:
        self._native = _native.Mempool(
            max_transactions=limits.max_transactions,
            max_bytes=limits.max_bytes,
            max_per_sender=limits.max_per_sender,
            max_gap=limits.max_gap,
            max_gas=limits.max_gas,
            min_fee=limits.min_fee,
        )

    def __len__(self) -> int:
        return len(self._native)

    def __contains__(self, tx_hash: object) -> bool:
        return isinstance(tx_hash, bytes) and self._native.get(tx_hash) is not None

    def __iter__(self) -> Iterator[MempoolEntry]:
        """Yield every transaction in order of arrival."""
        return map(_build_entry, self._native.entries())

    @property
    def size_bytes(self) -> int:
        """Bytes of raw transactions held, and of their access lists and authorizations as decoded."""
        return self._native.size_bytes

    def get(self, tx_hash: Hash32) -> MempoolEntry | None:
        """Return a waiting transaction."""
        fields = self._native.get(tx_hash)
        return _build_entry(fields) if fields is not None else None

    def get_by_nonce(self, sender: Address, nonce: int) -> MempoolEntry | None:
        """Return the transaction that ``sender`` has waiting at ``nonce``."""
        fields = self._native.get_by_nonce(sender, nonce)
        return _build_entry(fields) if fields is not None else None

    def get_next_nonce(self, sender: Address, account_nonce: int) -> int:
        """Return the nonce after the run of ``sender``: what geth answers for "pending"."""
        return self._native.next_nonce(sender, account_nonce)

    def get_status(self) -> tuple[int, int]:
        """Return how many transactions are executable and how many wait behind a gap."""
        return self._native.status()

    def get_content(self) -> tuple[dict[Address, list[MempoolEntry]], dict[Address, list[MempoolEntry]]]:
        """Return executable and gapped transactions by sender, in order of nonce (``txpool_content``)."""
        pending: dict[Address, list[MempoolEntry]] = {}
        queued: dict[Address, list[MempoolEntry]] = {}
        for entry in sorted(self, key=lambda entry: (entry.sender, entry.nonce)):
            part = pending if entry.nonce < self.get_next_nonce(entry.sender, 0) else queued
            part.setdefault(entry.sender, []).append(entry)
        return pending, queued

    def get_senders(self) -> tuple[Address, ...]:
        """Return every sender with transactions here: whose accounts matter when a block becomes final."""
        return tuple(map(Address, self._native.senders()))

    def encode_bodies(self, max_bytes: int) -> list[bytes]:
        """Return all raw transactions in order of arrival, as encoded bodies of about ``max_bytes`` each."""
        return self._native.encode_bodies(max_bytes)

    # --- taking transactions ---

    def add(self, entry: MempoolEntry, account_nonce: int, balance: int) -> list[Hash32]:
        """Take ``entry``, whose sender has ``account_nonce`` and ``balance`` at the latest block.

        Returns the hashes of what had to leave for it (replaced or evicted). Raises ``MempoolError``, and
        then the pool is as before.
        """
        removed, reason, detail = self._native.add(
            entry.hash,
            entry.sender,
            entry.nonce,
            entry.gas_limit,
            entry.max_fee,
            entry.tip,
            entry.cost.to_bytes(32, "big"),
            entry.raw,
            account_nonce,
            balance.to_bytes(32, "big"),
        )
        if reason:
            raise MempoolError(reason, detail)
        return _split_hashes(removed)

    def start_at(self, block_hash: Hash32) -> None:
        """Judge newcomers by the accounts after ``block_hash``, until a final block is told."""
        self._native.start_at(block_hash)

    def get_least_fee(self) -> int:
        """Return the wei per gas below which a newcomer has no chance: above the cheapest when the pool is full."""
        return self._native.least_fee()

    def admit(self, core: _native.Core, batch: _native.Batch) -> _native.Admitted:
        """Take what the rules allow of a prepared batch, in its order, by the accounts of the newest final block."""
        return self._native.admit(core, batch)

    # --- offering transactions ---

    def select(
        self, base_fee: int, gas_limit: int, max_bytes: int, ancestors: Iterable[Hash32] = ()
    ) -> tuple[bytes, tuple[int, ...], tuple[Hash32, ...]]:
        """Return what ``select_batch`` does as one blob, the end of each transaction in it, and their hashes."""
        batch = self.select_batch(base_fee, gas_limit, max_bytes, ancestors)
        return batch.raw, tuple(batch.ends), tuple(_split_hashes(batch.hashes))

    def select_batch(
        self, base_fee: int, gas_limit: int, max_bytes: int, ancestors: Iterable[Hash32] = ()
    ) -> _native.Batch:
        """Return the best-paying executable transactions, decoded and with their senders.

        By effective tip, then by arrival; nonces of a sender in order; sums of gas limits and bytes within
        the caps. Transactions of ``ancestors`` (blocks not final yet, told by ``mark_included``) are passed
        over.
        """
        return self._native.select(base_fee, gas_limit, max_bytes, list(ancestors))

    # --- following the chain ---

    def mark_included(self, block_hash: Hash32, hashes: Iterable[Hash32]) -> None:
        """Note what a block that is not final yet contains; undone by ``on_discarded`` or settled by
        ``on_final``.
        """
        self._native.mark_included(block_hash, b"".join(hashes))

    def mark_batch(self, block_hash: Hash32, batch: _native.Batch, included: bytes) -> None:
        """Note that a block contains the transactions at ``included`` (packed u32) of ``batch``; ``settle`` follows."""
        self._native.mark_batch(block_hash, batch, included)

    def on_discarded(self, block_hash: Hash32) -> None:
        """The block will never be final: its transactions are offered again."""
        self._native.on_discarded(block_hash)

    def on_final(self, block_hash: Hash32, accounts: Iterable[tuple[Address, int, int]]) -> list[Hash32]:
        """Follow a final block: ``accounts`` are (sender, nonce, balance) after it. Returns the hashes that
        left.
        """
        packed = [(sender, nonce, balance.to_bytes(32, "big")) for sender, nonce, balance in accounts]
        return _split_hashes(self._native.on_final(block_hash, packed))

    def settle(self, core: _native.Core, block_hash: Hash32) -> int:
        """Follow a final block told by ``mark_batch``, by the accounts of its senders; returns how many left."""
        return len(self._native.settle(core, block_hash)) // 32

    def refresh(self, core: _native.Core, batch: _native.Batch, indices: bytes) -> int:
        """Read the accounts again whose transactions (packed u32 ``indices`` of ``batch``) a builder could not use.

        Code that acts for an account may have spent what its transactions need. Returns how many left.
        """
        return len(self._native.refresh(core, batch, indices)) // 32

    def remove(self, hashes: Iterable[Hash32]) -> None:
        """Drop transactions that the builder found invalid; unknown hashes are ignored."""
        self._native.remove(b"".join(hashes))
