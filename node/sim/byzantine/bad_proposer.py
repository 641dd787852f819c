"""Role BadProposer: its blocks are wrong in one thing each (``lies``), signed by it and voted for by it."""

from collections.abc import Iterable
from typing import ClassVar, Final

from node.sim.byzantine.lies import LIES, Lie
from node.sim.byzantine.role import Role, Seat
from shardyard import effects as fx
from shardyard.blocks import Block
from shardyard.consensus.votes import Vote, VoteKind
from shardyard.ids import Hash32
from shardyard.messages import Proposal, Votes

CHANCE: Final = 0.75
TRIES: Final = 8
MAX_REMEMBERED: Final = 256


class BadProposer(Role):
    """Proposes what no honest validator may vote for."""

    name: ClassVar[str] = "bad proposer"
    lies: tuple[Lie, ...] = LIES

    def __init__(self, seat: Seat) -> None:
        super().__init__(seat)
        self._told: dict[tuple[int, Hash32], Hash32] = {}
        """The hash that stands for a good block of ours, by slot and hash."""

    def say(self, effect: fx.Effect) -> Iterable[fx.Effect]:
        """Change proposals, and vote for what they were changed to."""
        if isinstance(effect, fx.Broadcast):
            match effect.message:
                case Proposal(block, access_list) if self._is_own(block):
                    return (fx.Broadcast(Proposal(self._lie(block), access_list)),)
                case Votes(votes) if self._told:
                    return (fx.Broadcast(Votes(tuple(self._stand_by(vote) for vote in votes))),)
                case _:
                    pass
        return (effect,)

    def _is_own(self, block: Block) -> bool:
        return block.header.proposer in self.seat.keys and self.seat.chance.random() < CHANCE

    def _lie(self, block: Block) -> Block:
        for _ in range(TRIES):
            lie = self.seat.chance.choice(self.lies)
            changed = lie.change(block)
            if changed is None or changed == block:
                continue
            if not lie.keeps_signature:
                changed = self.seat.sign_block(changed, changed.header, block.header.proposer)
            self.seat.tell(f"lied about {lie.name}")
            self._told[block.header.slot, block.hash] = changed.hash
            if len(self._told) > MAX_REMEMBERED:
                del self._told[next(iter(self._told))]
            return changed
        return block

    def _stand_by(self, vote: Vote) -> Vote:
        told = self._told.get((vote.slot, vote.block_hash))
        if told is None or vote.kind is not VoteKind.NOTAR or vote.validator not in self.seat.keys:
            return vote
        return self.seat.sign(vote.kind, vote.slot, told, vote.validator)
