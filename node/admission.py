"""Admission: signed transactions on their way into the mempool, in groups.

Whatever arrives while one group is being prepared forms the next: one call into the native core decodes, hashes and
recovers all senders, one puts what the rules allow into the mempool, one write to the journal makes it durable, and only
then are callers answered (so "nothing lost" counts every hash ever answered). Refusals use geth's words.

What may wait is bounded; beyond it the answer is geth's "txpool is full". When the pool itself is full, what pays no more
than its cheapest transaction is refused before its sender is recovered, so an overload costs little of what it displaces.
"""

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable, Container, Sequence
from itertools import accumulate
from typing import Final, Protocol

import msgspec

from node.refusal import RpcError, build_server_error
from shards.mempool import POOL_FULL, Mempool
from shardyard import _native
from shardyard.ids import Hash32

MAX_WAITING: Final = 65_536
MAX_WAITING_BYTES: Final = 64 * 1024 * 1024
MAX_GROUP: Final = 4096
MAX_GROUP_BYTES: Final = 4 * 1024 * 1024
TOO_EARLY: Final = "nonce too high"
"""What the pool says of a transaction that others of its sender have to come before."""
LACKS_FUNDS: Final = "insufficient funds"
"""What it says where a sender cannot pay this one, or all that wait."""
MAY_COME: Final = (TOO_EARLY, LACKS_FUNDS)
"""Beginnings of refusals that a later block may take back."""

Answer = Hash32 | RpcError


class Journal(Protocol):
    """Where accepted transactions are made durable before their senders hear of it."""

    async def append(self, body: bytes) -> None:
        """Return when the transactions of ``body`` (as a block's) survive the death of this process; raises ``OSError``."""
        ...


class AdmissionFullError(RpcError):
    """Too much waits already: come again later."""

    def __init__(self) -> None:
        refusal = build_server_error(POOL_FULL)
        super().__init__(refusal.code, refusal.message)


class Accepted(msgspec.Struct, frozen=True):
    """Transactions that the mempool took out of one group; ``indices`` (packed u32) are their places in ``batch``."""

    batch: _native.Batch
    indices: bytes

    @property
    def hashes(self) -> list[Hash32]:
        """Their hashes, in order of arrival."""
        joined = self.batch.hashes
        return [Hash32(joined[32 * i : 32 * i + 32]) for i in memoryview(self.indices).cast("I")]


class _Verdict(msgspec.Struct, frozen=True):
    """What became of a submission: its part of a group begins at ``first``."""

    admitted: _native.Admitted
    first: int


class _Waiting(msgspec.Struct, frozen=True):
    submission: _native.Submission
    verdict: "asyncio.Future[_Verdict] | None"
    """None for what a peer sent: nobody waits, nothing is passed on."""


class Admission:
    """Takes transactions from RPC and from peers; ``run`` must be running."""

    def __init__(
        self,
        *,
        core: _native.Core,
        mempool: Mempool,
        journal: Journal,
        on_accepted: Callable[[Accepted, bool], None],
    ) -> None:
        self.counters: Counter[str] = Counter()
        """Transactions by fate, and microseconds by stage; ``own`` is processor time of the thread that asked."""
        self._core = core
        self._mempool = mempool
        self._journal = journal
        self._on_accepted = on_accepted
        self._waiting: deque[_Waiting] = deque()
        self._waiting_count = 0
        self._waiting_bytes = 0
        self._arrived = asyncio.Event()
        self._is_stopping = False

    async def submit(self, transactions: Sequence[bytes]) -> list[Answer]:
        """Return for each raw transaction its hash, once durable, or why it is refused."""
        offsets = [0]
        for raw in transactions:
            offsets.append(offsets[-1] + len(raw))
        try:
            verdict = await self._wait(_native.Submission(b"".join(transactions), offsets))
        except RpcError as error:
            return [error] * len(transactions)
        answers: list[Answer] = []
        hashes = verdict.admitted.hashes
        for i in range(verdict.first, verdict.first + len(transactions)):
            problem = verdict.admitted.error(i)
            answers.append(
                Hash32(hashes[32 * i : 32 * i + 32]) if problem is None else build_server_error(problem)
            )
        return answers

    async def submit_request(self, submission: _native.Submission) -> bytes:
        """Return the JSON-RPC answer to the request that ``submission`` was read from.

        Raises ``AdmissionFullError`` when all of it is refused because too much waits.
        """
        try:
            verdict = await self._wait(submission)
        except AdmissionFullError:
            raise
        except RpcError as error:
            return submission.encode_refusal(error.code, error.message)
        return submission.encode_answers(verdict.admitted, verdict.first)

    async def _wait(self, submission: _native.Submission) -> _Verdict:
        if self._is_stopping:
            raise _build_stopping()
        verdict: asyncio.Future[_Verdict] = asyncio.get_running_loop().create_future()
        if not self._enqueue(_Waiting(submission, verdict)):
            raise AdmissionFullError
        return await verdict

    def receive(self, raw: bytes, ends: Sequence[int]) -> None:
        """Take what a peer passed on; malformed offsets and what does not fit are dropped and counted."""
        start = 0
        for end in ends:
            if not start < end <= len(raw):
                self.counters["gossip_dropped"] += 1
                return
            start = end
        if ends and not self._enqueue(_Waiting(_native.Submission(raw[:start], (0, *ends)), None)):
            self.counters["gossip_dropped"] += 1

    def _enqueue(self, item: _Waiting) -> bool:
        count, size = len(item.submission), item.submission.size
        if self._waiting_count + count > MAX_WAITING or self._waiting_bytes + size > MAX_WAITING_BYTES:
            self.counters["overflow"] += count
            return False
        self._waiting.append(item)
        self._waiting_count += count
        self._waiting_bytes += size
        self._arrived.set()
        return True

    def _take_group(self) -> list[_Waiting]:
        """Take submissions up to the caps of a group, and at least one."""
        group: list[_Waiting] = []
        count = size = 0
        while self._waiting:
            submission = self._waiting[0].submission
            count, size = count + len(submission), size + submission.size
            if group and (count > MAX_GROUP or size > MAX_GROUP_BYTES):
                break
            group.append(self._waiting.popleft())
            self._waiting_count -= len(submission)
            self._waiting_bytes -= submission.size
        return group

    async def run(self) -> None:
        """Admit groups until cancelled; raises what the journal raises, for then nothing may be acknowledged."""
        group: list[_Waiting] = []
        try:
            while True:
                await self._arrived.wait()
                self._arrived.clear()
                while group := self._take_group():
                    await self._admit(group)
        finally:
            self._is_stopping = True  # connections are still open, and whoever asked now would wait in vain
            for item in (*group, *self._waiting):
                if item.verdict is not None and not item.verdict.done():
                    item.verdict.set_exception(_build_stopping())
            self._waiting.clear()

    async def _admit(self, group: Sequence[_Waiting]) -> None:
        batch, admitted = await asyncio.to_thread(self._prepare, [item.submission for item in group])
        accepted = admitted.accepted(0, len(admitted))
        try:
            if accepted:
                started = time.perf_counter_ns()
                await self._journal.append(batch.encode_body(accepted))
                self._count_time("journal_us", started)
        except BaseException:
            self._mempool.remove(Accepted(batch, accepted).hashes)
            raise
        self.counters["accepted"] += len(accepted) // 4
        self.counters["refused"] += len(admitted) - len(accepted) // 4
        self.counters["groups"] += 1
        first = 0
        parts: dict[bool, list[bytes]] = {True: [], False: []}
        for item in group:
            stop = first + len(item.submission)
            parts[item.verdict is not None].append(admitted.accepted(first, stop))
            if item.verdict is not None and not item.verdict.done():
                item.verdict.set_result(_Verdict(admitted, first))
            first = stop
        for is_local, found in parts.items():
            if indices := b"".join(found):
                self._on_accepted(Accepted(batch, indices), is_local)

    def _prepare(self, submissions: Sequence[_native.Submission]) -> tuple[_native.Batch, _native.Admitted]:
        """Recover the senders and put what the rules allow into the pool; runs in a thread."""
        started, own = time.perf_counter_ns(), time.thread_time_ns()
        batch = self._core.prepare_submissions(submissions, self._mempool.get_least_fee())
        self.counters["recover_own_us"] += (time.thread_time_ns() - own) // 1000
        started = self._count_time("recover_us", started)
        admitted = self._mempool.admit(self._core, batch)
        self._count_time("mempool_us", started)
        return batch, admitted

    def _count_time(self, stage: str, started: int) -> int:
        now = time.perf_counter_ns()
        self.counters[stage] += (now - started) // 1000
        return now


def _build_stopping() -> RpcError:
    return build_server_error("the node is stopping")


async def restore_journal(
    core: _native.Core,
    mempool: Mempool,
    transactions: Sequence[bytes],
    find_included: Callable[[Sequence[bytes]], Container[bytes]],
) -> tuple[int, list[bytes]]:
    """Put journalled transactions back into the pool after a restart.

    Returns how many still had a place, and those that may have one later: their senders cannot pay all of theirs at the
    moment, or those before them are missing.

    Most of a journal was included meanwhile. What ``find_included`` finds of their hashes is dropped at once. Included ones that
    it does not find are refused for their nonce, but only after their sender was recovered, which takes longest of all this.
    A transaction may stand in the journal before those that it follows, where one of them was replaced by another with a higher
    fee: what comes too early is offered again, as long as others before it found a place.
    """
    restored = 0
    waiting = await asyncio.to_thread(_drop_included, transactions, find_included)
    while waiting:
        found, waiting = await _offer(core, mempool, waiting)
        restored += found
        if not found:
            break
    return restored, waiting


def _drop_included(
    transactions: Sequence[bytes], find_included: Callable[[Sequence[bytes]], Container[bytes]]
) -> list[bytes]:
    ends = accumulate(map(len, transactions), initial=0)
    digests = _native.keccak256_many(b"".join(transactions), list(ends))
    hashes = [digests[at : at + 32] for at in range(0, len(digests), 32)]
    included = find_included(hashes)
    return [raw for raw, tx_hash in zip(transactions, hashes, strict=True) if tx_hash not in included]


async def _offer(
    core: _native.Core, mempool: Mempool, transactions: Sequence[bytes]
) -> tuple[int, list[bytes]]:
    """Offer transactions to the pool; returns how many it took, and those that it may take later."""
    taken, waiting = 0, []
    for start in range(0, len(transactions), MAX_GROUP):
        group = transactions[start : start + MAX_GROUP]
        offsets = [0]
        for raw in group:
            offsets.append(offsets[-1] + len(raw))
        batch = await asyncio.to_thread(core.prepare, b"".join(group), offsets)
        admitted = mempool.admit(core, batch)
        accepted = len(admitted.accepted(0, len(admitted))) // 4
        taken += accepted
        if accepted < len(group):
            waiting += [
                raw for place, raw in enumerate(group) if (admitted.error(place) or "").startswith(MAY_COME)
            ]
    return taken, waiting
