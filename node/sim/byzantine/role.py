"""A role: one way to misbehave, between an honest machine and the world; and the seat from which it is played.

A Byzantine node runs the same machine as everybody. What it says passes through its roles, which may keep it back, change
it, add to it or delay it; they hold the node's keys and hear what it hears. Nothing else is theirs: no other node's keys,
no other node's memory. Whoever holds several roles plays them one after the other.
"""

import random
from collections.abc import Callable, Iterable
from typing import ClassVar

import msgspec

from node.sim.mock_crypto import sign_mock
from shardyard import effects as fx
from shardyard.blocks import Block, Header
from shardyard.consensus.votes import Domain, Vote, VoteKind, compute_vote_message
from shardyard.events import Event
from shardyard.ids import Hash32, NodeId, ShardId, Slot
from shardyard.validators import ValidatorSet


class Seat:
    """What a Byzantine node has in its hands."""

    def __init__(
        self,
        name: NodeId,
        chain: ShardId,
        keys: tuple[int, ...],
        domain: Domain,
        committee: ValidatorSet,
        peers: tuple[NodeId, ...],
        chance: random.Random,
        later: Callable[[int, fx.Effect], None],
        tell: Callable[[str], None],
    ) -> None:
        """``peers`` are the other processes of the chain; ``later`` says something after so many milliseconds."""
        self.name = name
        self.chain = chain
        self.keys = keys
        self.domain = domain
        self.committee = committee
        self.peers = peers
        self.chance = chance
        self.later = later
        self.tell = tell
        """Counts an act by its name."""

    def sign(self, kind: VoteKind, slot: int, block_hash: Hash32, validator: int) -> Vote:
        """Return a vote of an own key with a good signature, whatever was signed before."""
        assert validator in self.keys, f"{self.name} does not hold the key of validator {validator}"
        message = compute_vote_message(self.domain, kind, slot, block_hash)
        signature = sign_mock(self.committee.validators[validator].public_key, message)
        return Vote(kind, Slot(slot), block_hash, validator, signature)

    def sign_block(self, block: Block, header: Header, proposer: int) -> Block:
        """Return ``block`` under another header, with a good signature of ``proposer``, an own key."""
        vote = self.sign(VoteKind.PROPOSE, header.slot, header.hash, proposer)
        return msgspec.structs.replace(block, header=header, signature=vote.signature)

    def draw_peers(self) -> tuple[list[NodeId], list[NodeId]]:
        """Return the peers in two halves, both of them with somebody in it where there are two peers."""
        peers = list(self.peers)
        self.chance.shuffle(peers)
        half = (len(peers) + self.chance.randrange(2)) // 2
        return peers[:half], peers[half:]


class Role:
    """Says everything as it is; the base of what does not."""

    name: ClassVar[str] = ""

    def __init__(self, seat: Seat) -> None:
        self.seat = seat

    def hear(self, event: Event) -> None:
        """Take note of what the node hears."""

    def say(self, effect: fx.Effect) -> Iterable[fx.Effect]:
        """Return what is done instead of ``effect``."""
        return (effect,)
