"""The open loop: every transaction leaves when it is due, whatever became of those before it.

One task and one connection per replica, which has accounts of its own, so a batch keeps the order of nonces. What is due goes
out together. A node that does not answer is asked again with the same bytes until it does, or the next replica is: "already
known" then says that the first attempt had arrived, and so does "nonce too low" for an account that nobody else uses, and any
refusal of what was seen in a block. A node on its way down says that it is stopping, and is asked again too: a refusal would
leave a gap behind which the sender's later transactions wait for ever. Latency counts from the moment a transaction was due,
so a generator or a node that falls behind cannot hide it.
"""

import asyncio
import contextlib
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence

import msgspec

from node.load.client import Answer, NoAnswerError, RpcConnection
from node.load.tracker import NEVER, Tracked

MAX_BATCH = 250
TICK_S = 0.01
RETRY_DELAYS_S = (0.02, 0.05, 0.1, 0.2)
KNOWN = "already known"
USED = "nonce too low"
STOPPING = "the node is stopping"


class ShardSender:
    """Sends transactions of one shard to its replica at ``url``, or, when that does not answer, to ``others`` in turn."""

    def __init__(self, url: str, on_refused: Callable[[Tracked], None], others: Sequence[str] = ()) -> None:
        self.queue: deque[Tracked] = deque()
        self.refusals: Counter[str] = Counter()
        self.sent = 0
        """Transactions."""
        self.retries = 0
        """Batches that had to be sent again because nobody answered."""
        self._connection = RpcConnection(url, others=others)
        self._on_refused = on_refused
        self._is_closed = False

    def finish(self) -> None:
        """Nothing more will be queued: ``run`` returns when all is answered."""
        self._is_closed = True

    async def run(self) -> None:
        """Send what is queued when it is due."""
        try:
            while True:
                now = time.monotonic()
                batch = self._take_due(now)
                if batch:
                    await self._send(batch)
                    continue
                if self._is_closed and not self.queue:
                    return
                wait = self.queue[0].due - now if self.queue else TICK_S
                await asyncio.sleep(min(max(wait, 0.001), TICK_S))
        finally:
            self._connection.close()

    def _take_due(self, now: float) -> list[Tracked]:
        batch: list[Tracked] = []
        queue = self.queue
        while queue and queue[0].due <= now and len(batch) < MAX_BATCH:
            batch.append(queue.popleft())
        return batch

    async def _send(self, batch: Sequence[Tracked]) -> None:
        waiting = batch
        failures = 0
        self.sent += len(batch)
        while waiting:
            now = time.monotonic()
            for tracked in waiting:
                tracked.sent = tracked.sent or now
                tracked.attempts += 1
            with contextlib.suppress(NoAnswerError):
                answers = await self._connection.send_raw([tracked.plan.raw for tracked in waiting])
                waiting = self._on_answers(waiting, answers)
            if waiting:
                self.retries += 1
                await asyncio.sleep(RETRY_DELAYS_S[min(failures, len(RETRY_DELAYS_S) - 1)])
                failures += 1

    def _on_answers(self, batch: Sequence[Tracked], answers: Sequence[Answer]) -> list[Tracked]:
        """Return those that must be sent again."""
        now = time.monotonic()
        again: list[Tracked] = []
        for tracked, answer in zip(batch, answers, strict=True):
            if answer.error is not None and STOPPING in answer.error.message:
                again.append(tracked)
            else:
                self._on_answer(tracked, answer, now)
        if again:
            self._connection.turn()
        return again

    def _on_answer(self, tracked: Tracked, answer: Answer, now: float) -> None:
        assert tracked.answered == NEVER, "a transaction is answered once"
        tracked.answered = now
        tracked.plan = msgspec.structs.replace(tracked.plan, raw="")  # it is not sent again
        error = answer.error
        if error is None or KNOWN in error.message or (USED in error.message and tracked.attempts > 1):
            return
        if tracked.included != NEVER:  # a full pool, for one, refuses before it looks whether it has had it
            return
        tracked.refusal = error.message
        # Texts carry amounts and addresses; the words before them tell the kinds apart.
        self.refusals[error.message.split(":")[0][:80]] += 1
        self._on_refused(tracked)
