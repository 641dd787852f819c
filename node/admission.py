"""Admission: signed transactions on their way into the mempool, in groups.

Whatever arrives while one group is being prepared forms the next: one call into the native core decodes, hashes and
recovers all senders, one write to the journal makes all accepted ones durable, and only then are callers answered (so
"nothing lost" counts every hash ever answered). Refusals use geth's words. What may wait is bounded; beyond it the answer
is geth's "txpool is full".
"""

import asyncio
import contextlib
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Final, Protocol

import msgspec

from node.refusal import RpcError, build_server_error
from shards.mempool import POOL_FULL, Mempool, MempoolEntry, MempoolError, unpack_entries
from shardyard import _native
from shardyard.ids import Hash32

MAX_WAITING: Final = 65_536
MAX_WAITING_BYTES: Final = 64 * 1024 * 1024
MAX_GROUP: Final = 4096
ACCOUNT_BYTES: Final = 40
"""Length of one account in what ``Core.nonces_balances`` returns: u64 little endian nonce, 32 bytes balance."""

Answer = Hash32 | RpcError


class Journal(Protocol):
    """Where accepted transactions are made durable before their senders hear of it."""

    async def append(self, transactions: Sequence[bytes]) -> None:
        """Return when ``transactions`` survive the death of this process; raises ``OSError``."""
        ...


class _Waiting(msgspec.Struct, frozen=True):
    raw: bytes
    answer: "asyncio.Future[Answer] | None"
    """None for what a peer sent: nobody waits, nothing is passed on."""


class Admission:
    """Takes transactions from RPC and from peers; ``run`` must be running."""

    def __init__(
        self,
        *,
        core: _native.Core,
        mempool: Mempool,
        journal: Journal,
        get_final_hash: Callable[[], Hash32],
        on_accepted: Callable[[Sequence[MempoolEntry], bool], None],
    ) -> None:
        self.counters: Counter[str] = Counter()
        self._core = core
        self._mempool = mempool
        self._journal = journal
        self._get_final_hash = get_final_hash
        self._on_accepted = on_accepted
        self._waiting: deque[_Waiting] = deque()
        self._waiting_bytes = 0
        self._arrived = asyncio.Event()

    async def submit(self, transactions: Sequence[bytes]) -> list[Answer]:
        """Return for each raw transaction its hash, once durable, or why it is refused."""
        answers: list[asyncio.Future[Answer]] = []
        loop = asyncio.get_running_loop()
        for raw in transactions:
            answer: asyncio.Future[Answer] = loop.create_future()
            answers.append(answer)
            if not self._enqueue(_Waiting(raw, answer)):
                answer.set_result(build_server_error(POOL_FULL))
        return [await answer for answer in answers]

    def receive(self, raw: bytes, ends: Sequence[int]) -> None:
        """Take what a peer passed on; malformed offsets and what does not fit are dropped and counted."""
        start = 0
        for end in ends:
            if not start < end <= len(raw) or not self._enqueue(_Waiting(raw[start:end], None)):
                self.counters["gossip_dropped"] += 1
                return
            start = end

    def _enqueue(self, item: _Waiting) -> bool:
        size = len(item.raw)
        if len(self._waiting) >= MAX_WAITING or self._waiting_bytes + size > MAX_WAITING_BYTES:
            self.counters["overflow"] += 1
            return False
        self._waiting.append(item)
        self._waiting_bytes += size
        self._arrived.set()
        return True

    async def run(self) -> None:
        """Admit groups until cancelled; raises what the journal raises, for then nothing may be acknowledged."""
        group: list[_Waiting] = []
        try:
            while True:
                await self._arrived.wait()
                self._arrived.clear()
                while self._waiting:
                    group = [self._waiting.popleft() for _ in range(min(MAX_GROUP, len(self._waiting)))]
                    self._waiting_bytes -= sum(len(item.raw) for item in group)
                    await self._admit(group)
        finally:
            for item in (*group, *self._waiting):
                if item.answer is not None and not item.answer.done():
                    item.answer.set_result(build_server_error("the node is stopping"))
            self._waiting.clear()

    async def _admit(self, group: Sequence[_Waiting]) -> None:
        raw = b"".join(item.raw for item in group)
        offsets = [0]
        for item in group:
            offsets.append(offsets[-1] + len(item.raw))
        batch = await asyncio.to_thread(self._core.prepare, raw, offsets)
        answers, accepted = self._add_to_mempool(batch, raw, offsets[1:])
        try:
            if entries := [entry for _, entry in accepted]:
                await self._journal.append([entry.raw for entry in entries])
        except BaseException:
            self._mempool.remove(entry.hash for _, entry in accepted)
            raise
        for item, answer in zip(group, answers, strict=True):
            if item.answer is not None and not item.answer.done():
                item.answer.set_result(answer)
        local = [entry for i, entry in accepted if group[i].answer is not None]
        passed_on = [entry for i, entry in accepted if group[i].answer is None]
        for found, is_local in ((local, True), (passed_on, False)):
            if found:
                self._on_accepted(found, is_local)

    def _add_to_mempool(
        self, batch: _native.Batch, raw: bytes, ends: Sequence[int]
    ) -> tuple[list[Answer], list[tuple[int, MempoolEntry]]]:
        accounts = self._core.nonces_balances(self._get_final_hash(), batch.senders)
        status = batch.status
        answers: list[Answer] = []
        accepted: list[tuple[int, MempoolEntry]] = []
        for i, entry in enumerate(unpack_entries(batch, raw, ends)):
            if status[i]:
                answers.append(build_server_error(batch.error(i) or "invalid transaction"))
                self.counters["invalid"] += 1
                continue
            account = accounts[ACCOUNT_BYTES * i : ACCOUNT_BYTES * (i + 1)]
            nonce, balance = int.from_bytes(account[:8], "little"), int.from_bytes(account[8:], "big")
            try:
                self._mempool.add(entry, nonce, balance)
            except MempoolError as error:
                answers.append(build_server_error(str(error)))
                self.counters["refused"] += 1
                continue
            answers.append(entry.hash)
            accepted.append((i, entry))
        self.counters["accepted"] += len(accepted)
        return answers, accepted


async def restore_journal(
    core: _native.Core, mempool: Mempool, final_hash: Hash32, transactions: Sequence[bytes]
) -> int:
    """Put journalled transactions back into the pool after a restart; returns how many still had a place.

    What was included meanwhile has a used nonce and is refused, which is how the journal forgets it.
    """
    restored = 0
    for start in range(0, len(transactions), MAX_GROUP):
        group = transactions[start : start + MAX_GROUP]
        offsets = [0]
        for raw in group:
            offsets.append(offsets[-1] + len(raw))
        blob = b"".join(group)
        batch = await asyncio.to_thread(core.prepare, blob, offsets)
        accounts = core.nonces_balances(final_hash, batch.senders)
        for i, entry in enumerate(unpack_entries(batch, blob, offsets[1:])):
            account = accounts[ACCOUNT_BYTES * i : ACCOUNT_BYTES * (i + 1)]
            nonce, balance = int.from_bytes(account[:8], "little"), int.from_bytes(account[8:], "big")
            if not batch.status[i]:
                with contextlib.suppress(MempoolError):
                    mempool.add(entry, nonce, balance)
                    restored += 1
    return restored
