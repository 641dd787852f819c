"""Role Equivocator: says one thing to some and another to others: every slashable pair there is.

Of a slot it leads it proposes two blocks, both valid: they differ in their timestamp. Of a slot it votes in it notarizes
two hashes, skips what it finalizes, finalizes another hash than it notarized. Half of the time the two are told to
different halves of its peers, who must not both come to a certificate; else to everybody, who must find the evidence.
"""

from collections import Counter
from collections.abc import Iterable
from typing import ClassVar, Final

import msgspec

from node.sim.byzantine.role import Role, Seat
from shardyard import effects as fx
from shardyard.blocks import Block
from shardyard.consensus.votes import Vote, VoteKind
from shardyard.hashing import TAG_VOTE, hash_tagged
from shardyard.ids import ZERO_HASH, Hash32, Millis
from shardyard.messages import Proposal, Votes

CHANCE: Final = 0.6
SPLIT_CHANCE: Final = 0.5
"""How often the two sides of a lie go to different peers."""
MAX_SIBLINGS: Final = 256
RIVALS: Final = {
    VoteKind.NOTAR: (VoteKind.NOTAR, VoteKind.FINAL),
    VoteKind.FINAL: (VoteKind.SKIP, VoteKind.FINAL),
    VoteKind.SKIP: (VoteKind.FINAL,),
}
"""What is slashable together with a vote of each kind."""


class Equivocator(Role):
    """Signs two things where one is allowed (S1 to S4)."""

    name: ClassVar[str] = "equivocator"

    def __init__(self, seat: Seat) -> None:
        super().__init__(seat)
        self.shown: Counter[str] = Counter()
        """Slashable pairs told to everybody, by their kinds: whoever hears both must find them."""
        self._siblings: dict[int, Hash32] = {}

    def say(self, effect: fx.Effect) -> Iterable[fx.Effect]:
        """Tell a second story beside the first."""
        if not isinstance(effect, fx.Broadcast) or self.seat.chance.random() > CHANCE:
            return (effect,)
        match effect.message:
            case Proposal(block, access_list) if block.header.proposer in self.seat.keys:
                sibling = self._forge_sibling(block)
                self.seat.tell("proposed twice")
                return self._tell_both(
                    "PROPOSE PROPOSE", effect, fx.Broadcast(Proposal(sibling, access_list))
                )
            case Votes(votes) if all(self._is_own(vote) for vote in votes):
                return self._contradict(effect, votes)
            case _:
                return (effect,)

    def _is_own(self, vote: Vote) -> bool:
        return vote.validator in self.seat.keys and vote.kind in RIVALS

    def _forge_sibling(self, block: Block) -> Block:
        """Return a block for the same slot that is as valid: a millisecond later, in the same second where possible."""
        header = block.header
        step = -1 if header.timestamp_ms % 1000 == 999 else 1
        other = msgspec.structs.replace(header, timestamp_ms=Millis(header.timestamp_ms + step))
        self._siblings[header.slot] = other.hash
        if len(self._siblings) > MAX_SIBLINGS:
            del self._siblings[next(iter(self._siblings))]
        return self.seat.sign_block(block, other, header.proposer)

    def _contradict(self, effect: fx.Broadcast, votes: tuple[Vote, ...]) -> Iterable[fx.Effect]:
        lies = [self._draw_lie(vote) for vote in votes]
        pair = f"{votes[0].kind.name} {lies[0].kind.name}"
        self.seat.tell(f"voted {pair}")
        return self._tell_both(pair, effect, fx.Broadcast(Votes(tuple(lies))))

    def _draw_lie(self, vote: Vote) -> Vote:
        """Return a vote that is slashable together with ``vote``."""
        sibling = self._siblings.get(vote.slot) or Hash32(hash_tagged(TAG_VOTE, vote.block_hash + b"sibling"))
        kind = self.seat.chance.choice(RIVALS[vote.kind])
        block_hash = Hash32(ZERO_HASH) if kind is VoteKind.SKIP else sibling
        return self.seat.sign(kind, vote.slot, block_hash, vote.validator)

    def _tell_both(self, pair: str, first: fx.Broadcast, second: fx.Broadcast) -> Iterable[fx.Effect]:
        if self.seat.chance.random() < SPLIT_CHANCE:
            some, others = self.seat.draw_peers()
            return (
                *(fx.Send(peer, first.message) for peer in some),
                *(fx.Send(peer, second.message) for peer in others),
            )
        self.shown[pair] += 1
        return (first, second)
