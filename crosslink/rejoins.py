"""Rejoins on their way into a beacon block: those of this replica's keys, and what other replicas ask for."""

from collections.abc import Sequence
from typing import Final

from shardyard.consensus.votes import Crypto
from shardyard.effects import Broadcast, Effect, SetTimer
from shardyard.errors import InvalidBlockError
from shardyard.genesis import Genesis
from shardyard.ids import BEACON, NodeId
from shardyard.messages import Rejoins
from shardyard.rejoins import MAX_BLOCK_REJOINS, Rejoin, verify_rejoins

REJOIN_TIMER: Final = "beacon.rejoin"
REJOIN_PERIOD: Final = 4
"""Block times after which an own Rejoin that is not final yet is said again; and final blocks after which a replica that was
refused is listened to again, and may ask for a validator once more."""


class RejoinPool:
    """One Rejoin per validator, the newest heard; own ones are said until they are final.

    Every Rejoin costs a pairing, so each replica may ask once per validator and period, and not at all for the rest of the
    period in which it asked for what does not verify.
    """

    def __init__(self, genesis: Genesis, crypto: Crypto, own: Sequence[Rejoin]) -> None:
        self._crypto = crypto
        self._domain = genesis.get_domain(BEACON)
        self._committee = genesis.committees[BEACON]
        self._period_ms = REJOIN_PERIOD * genesis.preset.block_time_ms
        self._own = {rejoin.validator: rejoin for rejoin in own}
        self._waiting = dict(self._own)
        self._final_blocks = 0
        self._refused: set[NodeId] = set()
        self._asked: set[tuple[NodeId, int]] = set()

    def start(self) -> list[Effect]:
        """Say the own ones, and set the timer to say them again; nothing once they are final."""
        if not self._own:
            return []
        said = [self._own[validator] for validator in sorted(self._own)]
        return [
            *(
                Broadcast(Rejoins(tuple(said[at : at + MAX_BLOCK_REJOINS])))
                for at in range(0, len(said), MAX_BLOCK_REJOINS)
            ),
            SetTimer(REJOIN_TIMER, self._period_ms),
        ]

    def add(self, sender: NodeId, rejoins: Sequence[Rejoin]) -> None:
        """Take what ``sender`` asks for; raises ``InvalidBlockError`` for what no block may carry."""
        if sender in self._refused:
            return
        fresh = [
            rejoin
            for rejoin in rejoins
            if self._waiting.get(rejoin.validator) != rejoin and (sender, rejoin.validator) not in self._asked
        ]
        try:
            verify_rejoins(self._crypto, self._domain, self._committee, fresh)
        except InvalidBlockError:
            self._refused.add(sender)
            raise
        for rejoin in fresh:
            self._asked.add((sender, rejoin.validator))
            if rejoin.validator not in self._own:  # of an own key nobody else knows better
                self._waiting[rejoin.validator] = rejoin

    def choose(self) -> list[Rejoin]:
        """Return what the next block shall carry, ordered by validator.

        Every final block lets another validator come first, so that a few who ask again and again keep nobody
        out of a block. (One who says an old Rejoin of the same validator again after each new one does keep that one out:
        the last one heard waits.)
        """
        count = len(self._committee)
        turns = sorted(self._waiting, key=lambda validator: (validator - self._final_blocks) % count)
        return [self._waiting[validator] for validator in sorted(turns[:MAX_BLOCK_REJOINS])]

    def on_final(self, rejoins: Sequence[Rejoin]) -> None:
        """Forget what a final block carries; a period ends after every ``REJOIN_PERIOD`` of them."""
        self._final_blocks += 1
        if self._final_blocks % REJOIN_PERIOD == 0:
            self._refused.clear()
            self._asked.clear()
        for held in (self._waiting, self._own):
            for rejoin in rejoins:
                if held.get(rejoin.validator) == rejoin:
                    del held[rejoin.validator]
