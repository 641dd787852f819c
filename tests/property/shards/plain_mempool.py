"""The mempool's rules in plain Python, an object per transaction: what the native tables must do as well."""

from collections.abc import Container, Iterable, Iterator
from heapq import heapify, heappop, heappush, heapreplace, nlargest

from shards.mempool import MempoolEntry, MempoolError, MempoolLimits
from shardyard.ids import Address, Hash32

ALREADY_KNOWN = "already known"
NONCE_TOO_LOW = "nonce too low"
NONCE_TOO_HIGH = "nonce too high"
UNDERPRICED = "transaction underpriced"
REPLACEMENT_UNDERPRICED = "replacement transaction underpriced"
INSUFFICIENT_FUNDS = "insufficient funds for gas * price + value"
GAS_LIMIT = "exceeds block gas limit"
ACCOUNT_LIMIT = "account limit exceeded"
POOL_FULL = "txpool is full"
REPLACEMENT_PERCENT = 110


class _SenderQueue:
    """Transactions of one sender by nonce, with the account they would run on."""

    __slots__ = ("account_nonce", "balance", "by_nonce", "highest", "run_end", "total_cost")

    def __init__(self, account_nonce: int, balance: int) -> None:
        self.account_nonce = account_nonce
        self.balance = balance
        self.by_nonce: dict[int, MempoolEntry] = {}
        self.run_end = account_nonce
        """First nonce that is missing."""
        self.highest = account_nonce
        """Highest nonce held; meaningless when nothing is held."""
        self.total_cost = 0

    def put(self, entry: MempoolEntry) -> None:
        self.by_nonce[entry.nonce] = entry
        self.total_cost += entry.cost
        self.highest = max(self.highest, entry.nonce)
        while self.run_end in self.by_nonce:
            self.run_end += 1

    def take(self, nonce: int) -> MempoolEntry:
        entry = self.by_nonce.pop(nonce)
        self.total_cost -= entry.cost
        if self.account_nonce <= nonce < self.run_end:
            self.run_end = nonce
        while self.highest not in self.by_nonce and self.highest > self.account_nonce:
            self.highest -= 1
        return entry

    def get_from_end(self, offset: int) -> MempoolEntry:
        """Return the transaction with the ``offset``-th highest nonce."""
        nonce = nlargest(offset + 1, self.by_nonce)[offset] if offset else self.highest
        return self.by_nonce[nonce]

    def move_to(self, account_nonce: int, balance: int) -> list[MempoolEntry]:
        """Follow the account; returns what can never run any more: used nonces and what the balance cannot
        pay.
        """
        self.balance = balance
        gone: list[MempoolEntry] = []
        if account_nonce != self.account_nonce:
            gone = [self.take(nonce) for nonce in sorted(self.by_nonce) if nonce < account_nonce]
            self.account_nonce = self.run_end = account_nonce
            while self.run_end in self.by_nonce:
                self.run_end += 1
        if self.total_cost > balance:
            gone.extend(
                self.take(nonce) for nonce, entry in sorted(self.by_nonce.items()) if entry.cost > balance
            )
        return gone


class PlainMempool:
    """Pending transactions of one shard. Not thread-safe: one owner, in its event loop."""

    def __init__(self, limits: MempoolLimits) -> None:
        self._limits = limits
        self._by_hash: dict[Hash32, MempoolEntry] = {}
        self._queues: dict[Address, _SenderQueue] = {}
        self._bytes = 0
        self._arrivals: dict[Hash32, int] = {}
        self._next_arrival = 0
        self._cheapest: list[tuple[int, int, int, Hash32]] = []
        """Heap over (max_fee, tip, −arrival, hash); entries that left the pool are skipped when they
        surface.
        """
        self._included: dict[Hash32, frozenset[Hash32]] = {}
        """Transactions of blocks that are not final yet, by block."""

    def __len__(self) -> int:
        return len(self._by_hash)

    def __contains__(self, tx_hash: object) -> bool:
        return tx_hash in self._by_hash

    def __iter__(self) -> Iterator[MempoolEntry]:
        """Yield every transaction in order of arrival."""
        return iter(self._by_hash.values())

    @property
    def size_bytes(self) -> int:
        """Bytes of raw transactions held."""
        return self._bytes

    def get(self, tx_hash: Hash32) -> MempoolEntry | None:
        """Return a waiting transaction."""
        return self._by_hash.get(tx_hash)

    def get_by_nonce(self, sender: Address, nonce: int) -> MempoolEntry | None:
        """Return the transaction that ``sender`` has waiting at ``nonce``."""
        queue = self._queues.get(sender)
        return queue.by_nonce.get(nonce) if queue else None

    def get_next_nonce(self, sender: Address, account_nonce: int) -> int:
        """Return the nonce after the run of ``sender``: what geth answers for "pending"."""
        queue = self._queues.get(sender)
        return max(account_nonce, queue.run_end) if queue else account_nonce

    def get_status(self) -> tuple[int, int]:
        """Return how many transactions are executable and how many wait behind a gap."""
        pending = sum(queue.run_end - queue.account_nonce for queue in self._queues.values())
        return pending, len(self._by_hash) - pending

    def get_content(self) -> tuple[dict[Address, list[MempoolEntry]], dict[Address, list[MempoolEntry]]]:
        """Return executable and gapped transactions by sender, in order of nonce (``txpool_content``)."""
        pending: dict[Address, list[MempoolEntry]] = {}
        queued: dict[Address, list[MempoolEntry]] = {}
        for sender, queue in self._queues.items():
            for nonce in sorted(queue.by_nonce):
                part = pending if nonce < queue.run_end else queued
                part.setdefault(sender, []).append(queue.by_nonce[nonce])
        return pending, queued

    # --- taking transactions ---

    def add(self, entry: MempoolEntry, account_nonce: int, balance: int) -> list[Hash32]:
        """Take ``entry``, whose sender has ``account_nonce`` and ``balance`` at the latest block.

        Returns the hashes of what had to leave for it (replaced or evicted). Raises ``MempoolError``, and
        then the pool is as before.
        """
        queue = self._queues.get(entry.sender)
        if queue is not None:
            # Whoever read the account may have done so before the last final block.
            account_nonce = max(account_nonce, queue.account_nonce)
        self._check_entry(entry, account_nonce, balance)
        if queue is not None and account_nonce > queue.account_nonce:
            self._forget(queue.move_to(account_nonce, balance))
            self._drop_if_empty(entry.sender)
            queue = self._queues.get(entry.sender)
        replaced = queue.by_nonce.get(entry.nonce) if queue is not None else None
        self._check_sender(entry, queue, replaced, account_nonce, balance)
        removed: list[Hash32] = []
        if replaced is not None and queue is not None:
            self._forget([queue.take(entry.nonce)])
            removed.append(replaced.hash)
        else:
            is_executable = entry.nonce == self.get_next_nonce(entry.sender, account_nonce)
            removed.extend(self._make_room(entry, is_executable=is_executable))
            queue = self._queues.get(entry.sender)
        if queue is None:
            queue = self._queues[entry.sender] = _SenderQueue(account_nonce, balance)
        queue.balance = balance
        queue.put(entry)
        self._by_hash[entry.hash] = entry
        self._bytes += len(entry.raw)
        self._next_arrival += 1
        self._arrivals[entry.hash] = self._next_arrival
        heappush(self._cheapest, (entry.max_fee, entry.tip, -self._next_arrival, entry.hash))
        self._compact_heap()
        return removed

    def _check_entry(self, entry: MempoolEntry, account_nonce: int, balance: int) -> None:
        limits = self._limits
        if entry.hash in self._by_hash:
            raise MempoolError(ALREADY_KNOWN)
        if entry.gas_limit > limits.max_gas:
            raise MempoolError(GAS_LIMIT, f"got {entry.gas_limit}, expected at most {limits.max_gas}")
        if entry.max_fee < limits.min_fee:
            raise MempoolError(UNDERPRICED, f"gas fee cap {entry.max_fee}, minimum needed {limits.min_fee}")
        if entry.nonce < account_nonce:
            raise MempoolError(NONCE_TOO_LOW, f"next nonce {account_nonce}, tx nonce {entry.nonce}")
        if entry.cost > balance:
            overshot = entry.cost - balance
            raise MempoolError(
                INSUFFICIENT_FUNDS, f"balance {balance}, tx cost {entry.cost}, overshot {overshot}"
            )

    def _check_sender(
        self,
        entry: MempoolEntry,
        queue: _SenderQueue | None,
        replaced: MempoolEntry | None,
        account_nonce: int,
        balance: int,
    ) -> None:
        spent = 0 if queue is None else queue.total_cost - (replaced.cost if replaced else 0)
        if spent + entry.cost > balance:
            raise MempoolError(
                INSUFFICIENT_FUNDS,
                f"balance {balance}, queued cost {spent}, tx cost {entry.cost}, "
                f"overshot {spent + entry.cost - balance}",
            )
        if replaced is not None:
            if not _outbids(entry, replaced):
                raise MempoolError(REPLACEMENT_UNDERPRICED)
            if self._bytes - len(replaced.raw) + len(entry.raw) > self._limits.max_bytes:
                raise MempoolError(POOL_FULL)
            return
        run_end = max(account_nonce, queue.run_end) if queue else account_nonce
        if entry.nonce - run_end > self._limits.max_gap:
            raise MempoolError(NONCE_TOO_HIGH, f"next nonce {run_end}, tx nonce {entry.nonce}")
        if queue is not None and len(queue.by_nonce) >= self._limits.max_per_sender:
            raise MempoolError(ACCOUNT_LIMIT, f"pooled {len(queue.by_nonce)} txs")

    def _make_room(self, entry: MempoolEntry, *, is_executable: bool) -> list[Hash32]:
        """Choose all victims first, evict them then: a refusal must leave the pool as it was."""
        limits = self._limits
        count = len(self._by_hash) + 1 - limits.max_transactions
        size = self._bytes + len(entry.raw) - limits.max_bytes
        if count <= 0 and size <= 0:
            return []
        if not is_executable:
            raise MempoolError(POOL_FULL, "only executable transactions may displace others")
        victims: dict[Hash32, MempoolEntry] = {}
        taken: dict[Address, int] = {}
        surfaced: list[tuple[int, int, int, Hash32]] = []
        while count > 0 or size > 0:
            cheapest = self._pop_cheapest(surfaced, victims)
            if cheapest is None or cheapest.sender == entry.sender or cheapest.max_fee >= entry.max_fee:
                for item in surfaced:
                    heappush(self._cheapest, item)
                raise MempoolError(POOL_FULL)
            offset = taken.get(cheapest.sender, 0)
            taken[cheapest.sender] = offset + 1
            victim = self._queues[cheapest.sender].get_from_end(offset)
            victims[victim.hash] = victim
            count, size = count - 1, size - len(victim.raw)
            if victim is not cheapest:
                heappush(
                    self._cheapest, surfaced.pop()
                )  # the cheap one stays and may cost its sender another
        for victim in victims.values():
            self._forget([self._queues[victim.sender].take(victim.nonce)])
            self._drop_if_empty(victim.sender)
        return list(victims)

    def _pop_cheapest(
        self, surfaced: list[tuple[int, int, int, Hash32]], passed_over: Container[Hash32]
    ) -> MempoolEntry | None:
        """Take the cheapest waiting transaction off the heap, and note in ``surfaced`` how to put it back."""
        while self._cheapest:
            item = heappop(self._cheapest)
            if self._arrivals.get(item[3]) != -item[2]:
                continue  # it left the pool since
            surfaced.append(item)
            if item[3] not in passed_over:
                return self._by_hash[item[3]]
        return None

    def _compact_heap(self) -> None:
        if len(self._cheapest) > 2 * len(self._by_hash) + 64:
            self._cheapest = [
                (entry.max_fee, entry.tip, -self._arrivals[entry.hash], entry.hash)
                for entry in self._by_hash.values()
            ]
            heapify(self._cheapest)

    def _forget(self, entries: Iterable[MempoolEntry]) -> None:
        for entry in entries:
            del self._by_hash[entry.hash]
            del self._arrivals[entry.hash]
            self._bytes -= len(entry.raw)

    def _drop_if_empty(self, sender: Address) -> None:
        if not self._queues[sender].by_nonce:
            del self._queues[sender]

    # --- offering transactions ---

    def select(
        self, base_fee: int, gas_limit: int, max_bytes: int, ancestors: Iterable[Hash32] = ()
    ) -> tuple[bytes, tuple[int, ...], tuple[Hash32, ...]]:
        """Return the best-paying executable transactions as one blob, the end of each in it, and their
        hashes.

        By effective tip, then by arrival; nonces of a sender in order; sums of gas limits and bytes within
        the caps. Transactions of ``ancestors`` (blocks not final yet, told by ``mark_included``) are passed
        over.
        """
        excluded = frozenset[Hash32]().union(*(self._included.get(block, frozenset()) for block in ancestors))
        heads = self._find_heads(base_fee, excluded)
        arrivals = self._arrivals
        raws: list[bytes] = []
        ends: list[int] = []
        hashes: list[Hash32] = []
        gas_left, size = gas_limit, 0
        while heads and gas_left > 0:
            _, _, entry, queue = heads[0]
            end = size + len(entry.raw)
            if entry.gas_limit > gas_left or end > max_bytes:
                heappop(heads)  # the sender's later nonces must wait with it
                continue
            gas_left -= entry.gas_limit
            size = end
            raws.append(entry.raw)
            ends.append(end)
            hashes.append(entry.hash)
            after = queue.by_nonce.get(entry.nonce + 1)
            while after is not None and after.hash in excluded:
                after = queue.by_nonce.get(after.nonce + 1)
            if after is not None and after.max_fee >= base_fee:
                tip = min(after.tip, after.max_fee - base_fee)
                heapreplace(heads, (-tip, arrivals[after.hash], after, queue))
            else:
                heappop(heads)
        return b"".join(raws), tuple(ends), tuple(hashes)

    def _find_heads(
        self, base_fee: int, excluded: frozenset[Hash32]
    ) -> list[tuple[int, int, MempoolEntry, _SenderQueue]]:
        """Return the next transaction of every sender as a heap: best tip first, then the earliest arrival."""
        heads: list[tuple[int, int, MempoolEntry, _SenderQueue]] = []
        for queue in self._queues.values():
            entry = queue.by_nonce.get(queue.account_nonce)
            while entry is not None and entry.hash in excluded:
                entry = queue.by_nonce.get(entry.nonce + 1)
            if entry is not None and entry.max_fee >= base_fee:
                tip = min(entry.tip, entry.max_fee - base_fee)
                heads.append((-tip, self._arrivals[entry.hash], entry, queue))
        heapify(heads)
        return heads

    # --- following the chain ---

    def mark_included(self, block_hash: Hash32, hashes: Iterable[Hash32]) -> None:
        """Note what a block that is not final yet contains; undone by ``on_discarded`` or settled by
        ``on_final``.
        """
        self._included[block_hash] = frozenset(hashes)

    def on_discarded(self, block_hash: Hash32) -> None:
        """The block will never be final: its transactions are offered again."""
        self._included.pop(block_hash, None)

    def on_final(self, block_hash: Hash32, accounts: Iterable[tuple[Address, int, int]]) -> list[Hash32]:
        """Follow a final block: ``accounts`` are (sender, nonce, balance) after it. Returns the hashes that
        left.
        """
        self._included.pop(block_hash, None)
        removed: list[Hash32] = []
        for sender, nonce, balance in accounts:
            queue = self._queues.get(sender)
            if queue is None:
                continue
            gone = queue.move_to(nonce, balance)
            self._forget(gone)
            removed.extend(entry.hash for entry in gone)
            self._drop_if_empty(sender)
        return removed

    def remove(self, hashes: Iterable[Hash32]) -> None:
        """Drop transactions that the builder found invalid; unknown hashes are ignored."""
        for tx_hash in hashes:
            entry = self._by_hash.get(tx_hash)
            if entry is not None:
                self._forget([self._queues[entry.sender].take(entry.nonce)])
                self._drop_if_empty(entry.sender)

    def get_senders(self) -> tuple[Address, ...]:
        """Return every sender with transactions here: whose accounts matter when a block becomes final."""
        return tuple(self._queues)


def _outbids(entry: MempoolEntry, replaced: MempoolEntry) -> bool:
    return (
        entry.max_fee > replaced.max_fee
        and entry.tip > replaced.tip
        and entry.max_fee * 100 >= replaced.max_fee * REPLACEMENT_PERCENT
        and entry.tip * 100 >= replaced.tip * REPLACEMENT_PERCENT
    )
