"""Roles that say too little or too late: Silent, Withholder, LateVoter."""

from collections.abc import Iterable
from typing import ClassVar, Final

from node.sim.byzantine.role import Role, Seat
from shardyard import effects as fx
from shardyard.blocks import Block
from shardyard.consensus.pacing import TIMER_SLOT
from shardyard.consensus.votes import Vote
from shardyard.messages import BlockResponse, Proposal, Votes

SHARE_CHANCE: Final = 0.4
"""How often a withheld proposal goes to one peer after all."""
AROUND_MS: Final = 150
"""A late vote leaves at most so long before or after the moment at which others give its slot up."""
MAX_DEADLINES: Final = 256


class Silent(Role):
    """Hears everything and says nothing: to others a node that is down, whose slots all pass empty."""

    name: ClassVar[str] = "silent"

    def say(self, effect: fx.Effect) -> Iterable[fx.Effect]:
        """Keep every message back."""
        if isinstance(effect, fx.Broadcast | fx.Send):
            self.seat.tell("kept silent")
            return ()
        return (effect,)


class Withholder(Role):
    """Keeps its proposals to itself, or shows one to a single peer, which must not be stranded with it (A3, L9)."""

    name: ClassVar[str] = "withholder"

    def say(self, effect: fx.Effect) -> Iterable[fx.Effect]:
        """Keep proposals back, from those who ask for what it votes for as well (L10, L11)."""
        match effect:
            case fx.Send(message=Proposal()):
                return ()
            case fx.Send(message=BlockResponse(blocks=blocks)) if any(map(self._is_own, blocks)):
                return ()
            case fx.Broadcast(message=Proposal() as proposal):
                return self._withhold(proposal)
            case _:
                return (effect,)

    def _is_own(self, block: Block) -> bool:
        return block.header.proposer in self.seat.keys

    def _withhold(self, proposal: Proposal) -> Iterable[fx.Effect]:
        self.seat.tell("withheld a proposal")
        if self.seat.peers and self.seat.chance.random() < SHARE_CHANCE:
            return (fx.Send(self.seat.chance.choice(self.seat.peers), proposal),)
        return ()


class LateVoter(Role):
    """Votes when others are about to give the slot up (L6): certificates and SKIPs of one slot come about together.

    The node's own slot timer tells the moment: everybody's runs about as long.
    """

    name: ClassVar[str] = "late voter"

    def __init__(self, seat: Seat) -> None:
        super().__init__(seat)
        self._timers: dict[int, int] = {}
        """How long the timer of a slot runs, from when it was set."""

    def say(self, effect: fx.Effect) -> Iterable[fx.Effect]:
        """Hold votes back until the timer of their slot runs out."""
        if isinstance(effect, fx.SetTimer) and effect.name.startswith(TIMER_SLOT):
            self._timers[int(effect.name.removeprefix(TIMER_SLOT))] = effect.delay_ms
            if len(self._timers) > MAX_DEADLINES:
                del self._timers[next(iter(self._timers))]
        elif isinstance(effect, fx.Broadcast) and isinstance(effect.message, Votes):
            for slot, votes in _group(effect.message.votes).items():
                self._delay(slot, votes)
            return ()
        return (effect,)

    def _delay(self, slot: int, votes: list[Vote]) -> None:
        # A NOTAR follows the start of its slot's timer by little; a FINAL comes when the next slot has begun.
        wait_ms = self._timers.get(slot, self._timers.get(slot + 1, 0))
        delay_ms = max(0, wait_ms - self.seat.chance.randint(-AROUND_MS, 2 * AROUND_MS))
        self.seat.tell("voted late")
        self.seat.later(delay_ms, fx.Broadcast(Votes(tuple(votes))))


def _group(votes: tuple[Vote, ...]) -> dict[int, list[Vote]]:
    groups: dict[int, list[Vote]] = {}
    for vote in votes:
        groups.setdefault(vote.slot, []).append(vote)
    return groups
