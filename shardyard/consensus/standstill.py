"""L7, L11: what a node says again: to all when nothing becomes final, and to a peer that came late to the slot.

All certificates above the last final slot and all own votes, in turn within a byte budget: with only the highest
certificate two nodes that each miss a different SkipCert would wait for ever. Nothing is signed here, only repeated: a
fresh FINAL made on a rebroadcast after SKIP was a real mistake of a real network.
"""

from collections.abc import Sequence

from shardyard.consensus.tree import BlockTree
from shardyard.consensus.voter import Voter
from shardyard.consensus.votes import Certificate, Vote
from shardyard.effects import Broadcast, Send
from shardyard.ids import NodeId
from shardyard.messages import Certificates, Proposal, Votes

STANDSTILL_BYTES = 256 * 1024
"""What one rebroadcast may weigh."""
ITEM_BYTES = 160
"""Weight of a vote or certificate without its bitmap, encoded."""
MAX_ITEMS_PER_MESSAGE = 512
MAX_GREETED = 64
"""Peers that are told again in one slot what was said in it."""


class Greeter:
    """L11: tells a peer that says where it stands what was said in this slot before it could hear it, once in a slot."""

    def __init__(self, tree: BlockTree, voter: Voter) -> None:
        self._tree = tree
        self._voter = voter
        self._slot = 0
        self._greeted: set[NodeId] = set()

    def greet(self, peer: NodeId, its_slot: int, slot: int) -> list[Send]:
        """Return the own proposal and the own votes of ``slot``, the current one, if ``peer`` stands no further."""
        if slot != self._slot:
            self._slot, self._greeted = slot, set()
        votes = tuple(self._voter.get_own_votes(slot)) if its_slot <= slot else ()
        if not votes or peer in self._greeted or len(self._greeted) >= MAX_GREETED:
            return []
        self._greeted.add(peer)
        blocks = [entry.block for entry in self._tree.get_at_slot(slot)]
        own = [block for block in blocks if block.signature and self._voter.is_local(block.header.proposer)]
        return [*(Send(peer, Proposal(block)) for block in own), Send(peer, Votes(votes))]


class Standstill:
    """Remembers where the last rebroadcast ended."""

    def __init__(self) -> None:
        self._cursor = 0

    def build(self, certificates: Sequence[Certificate], own_votes: Sequence[Vote]) -> list[Broadcast]:
        """Return the messages of this round, beginning where the last round stopped."""
        items: list[Certificate | Vote] = [*certificates, *own_votes]
        if not items:
            return []
        start = self._cursor % len(items)
        chosen: list[Certificate | Vote] = []
        size = 0
        for item in [*items[start:], *items[:start]]:
            size += ITEM_BYTES + (len(item.bitmap) if isinstance(item, Certificate) else 0)
            if chosen and size > STANDSTILL_BYTES:
                break
            chosen.append(item)
        self._cursor = (start + len(chosen)) % len(items)
        return [*_pack_certificates(chosen), *_pack_votes(chosen)]

    def reset(self) -> None:
        """Begin anew: something became final."""
        self._cursor = 0


def _pack_certificates(items: Sequence[Certificate | Vote]) -> list[Broadcast]:
    found = [item for item in items if isinstance(item, Certificate)]
    return [
        Broadcast(Certificates(tuple(found[at : at + MAX_ITEMS_PER_MESSAGE])))
        for at in range(0, len(found), MAX_ITEMS_PER_MESSAGE)
    ]


def _pack_votes(items: Sequence[Certificate | Vote]) -> list[Broadcast]:
    found = [item for item in items if isinstance(item, Vote)]
    return [
        Broadcast(Votes(tuple(found[at : at + MAX_ITEMS_PER_MESSAGE])))
        for at in range(0, len(found), MAX_ITEMS_PER_MESSAGE)
    ]
