"""Ballots: which votes a process signed first in its life, and which new ones of other processes it took as they came.

Of both together one sees when a process that was started again votes as its peers count it: the first of its votes that a
peer, when it came, had neither heard before nor left behind its last final block. What signs nothing but slots that are
long final does not vote. Signatures are the engine's to verify; this book is for people and benches, and decides nothing.
"""

import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

from shardyard.consensus.votes import Vote, VoteKind
from shardyard.ids import ShardId
from shardyard.messages import Message, Votes

MAX_SIGNED: Final = 32
"""Votes of this life that are kept, the first ones."""
MAX_TAKEN: Final = 32
"""Votes kept per validator of other processes, the newest ones."""

Ballot = tuple[str, int, int]
"""Kind, slot, and when: milliseconds of the wall clock, which the processes of one machine share."""


class BallotBook:
    """The votes that one process signed and took for one chain."""

    def __init__(
        self,
        chain: ShardId,
        committee_size: int,
        get_final_slot: Callable[[], int],
        get_time_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self._chain = chain
        self._size = committee_size
        self._get_final_slot = get_final_slot
        self._get_time_ms = get_time_ms
        self._signed: list[Ballot] = []
        self._taken: dict[int, deque[Ballot]] = {}

    def on_signed(self, votes: Sequence[Vote]) -> None:
        """Note what the signer gave; proposals are no votes."""
        for vote in votes:
            if vote.kind is not VoteKind.PROPOSE and len(self._signed) < MAX_SIGNED:
                self._signed.append((vote.kind.name, vote.slot, self._get_time_ms()))

    def observe(self, chain: ShardId, message: Message) -> None:
        """Look at a peer's message on its way to the machine."""
        if chain != self._chain or not isinstance(message, Votes):
            return
        final_slot = self._get_final_slot()
        for vote in message.votes:
            if vote.slot > final_slot and 0 <= vote.validator < self._size:
                taken = self._taken.setdefault(vote.validator, deque(maxlen=MAX_TAKEN))
                if not any(ballot[:2] == (vote.kind.name, vote.slot) for ballot in taken):
                    taken.append((vote.kind.name, vote.slot, self._get_time_ms()))

    async def answer(self, params: dict[str, Any]) -> dict[str, Any]:
        """Answer ``ballots`` on the control socket."""
        del params
        return {
            "pid": os.getpid(),
            "signed": self._signed,
            "taken": {str(validator): list(taken) for validator, taken in self._taken.items()},
        }
