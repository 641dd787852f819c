"""Roles that send nonsense beside what they should: Garbler, Tamperer, Replayer."""

from collections import deque
from collections.abc import Iterable
from typing import ClassVar, Final

import msgspec

from node.sim.byzantine.role import Role, Seat
from shardyard import effects as fx
from shardyard.consensus.votes import Certificate, Vote, VoteKind
from shardyard.events import Event, MessageReceived
from shardyard.ids import Hash32, Slot
from shardyard.messages import Certificates, Message, Proposal, Votes
from shardyard.validators import SIGNATURE_BYTES

GARBLE_CHANCE: Final = 0.3
TAMPER_CHANCE: Final = 0.8
REPLAY_CHANCE: Final = 0.25
RECENT: Final = 48
"""Messages, the newest that were heard, of which every other one that is said again comes."""
FAR_SLOTS: Final = 1 << 20
EPOCH_SLOTS: Final = 1 << 32
"""D2: the same slot, one epoch later."""
MAX_SPOOL: Final = 1024


class Garbler(Role):
    """Sends votes and certificates with wrong slots, wrong signatures, wrong kinds and wrong signers now and then."""

    name: ClassVar[str] = "garbler"

    def say(self, effect: fx.Effect) -> Iterable[fx.Effect]:
        """Garble some messages."""
        if not isinstance(effect, fx.Broadcast) or self.seat.chance.random() > GARBLE_CHANCE:
            return (effect,)
        match effect.message:
            case Votes(votes):
                self.seat.tell("garbled votes")
                return (fx.Broadcast(Votes(tuple(self._garble_vote(vote) for vote in votes))),)
            case Certificates(certificates):
                self.seat.tell("garbled certificates")
                garbled = tuple(self._garble_certificate(certificate) for certificate in certificates)
                return (fx.Broadcast(Certificates(garbled)),)
            case _:
                return (effect,)

    def _garble_vote(self, vote: Vote) -> Vote:
        match self.seat.chance.randrange(6):
            case 0:
                slot = Slot(max(0, vote.slot + self.seat.chance.choice([-1, 1, FAR_SLOTS])))
                return msgspec.structs.replace(vote, slot=slot)
            case 1:
                return msgspec.structs.replace(vote, signature=bytes(SIGNATURE_BYTES))
            case 2:
                others = [kind for kind in VoteKind if kind is not vote.kind]
                return msgspec.structs.replace(vote, kind=self.seat.chance.choice(others))
            case 3:
                return msgspec.structs.replace(vote, signature=vote.signature[:-1])
            case 4:
                return msgspec.structs.replace(vote, block_hash=Hash32(vote.block_hash[:-1]))
            case _:
                return msgspec.structs.replace(
                    vote, validator=vote.validator + self.seat.chance.choice([1, 9999])
                )

    def _garble_certificate(self, certificate: Certificate) -> Certificate:
        match self.seat.chance.randrange(5):
            case 0:
                return msgspec.structs.replace(certificate, slot=Slot(certificate.slot + 1))
            case 1:
                return msgspec.structs.replace(certificate, signature=bytes(SIGNATURE_BYTES))
            case 2:  # more signers than signed
                everybody = (1 << len(self.seat.committee)) - 1
                size = len(certificate.bitmap)
                return msgspec.structs.replace(certificate, bitmap=everybody.to_bytes(size, "little"))
            case 3:
                return msgspec.structs.replace(certificate, bitmap=bytes(len(certificate.bitmap)))
            case _:
                return msgspec.structs.replace(certificate, bitmap=certificate.bitmap + b"\x01")


class Tamperer(Role):
    """Sends most proposals with another access list than the block's (B5): changed, cut, another one, or none."""

    name: ClassVar[str] = "tamperer"

    def say(self, effect: fx.Effect) -> Iterable[fx.Effect]:
        """Change the list beside a proposal."""
        if not (isinstance(effect, fx.Broadcast) and isinstance(effect.message, Proposal)):
            return (effect,)
        good, chance = effect.message.access_list, self.seat.chance
        if not good or chance.random() > TAMPER_CHANCE:
            return (effect,)
        self.seat.tell("tampered")
        place = chance.randrange(len(good))
        flipped = bytes((good[place] ^ 1 << chance.randrange(8),))
        bad = chance.choice([good[:place] + flipped + good[place + 1 :], good[:place], b"\xc0", b""])
        return (fx.Broadcast(msgspec.structs.replace(effect.message, access_list=bad)),)


class Spool:
    """What the Replayers of a network have heard, on all chains: they know each other."""

    def __init__(self) -> None:
        self.messages: deque[Message] = deque(maxlen=MAX_SPOOL)


class Replayer(Role):
    """Says again what it heard: votes, proposals and certificates of old slots, of other chains, and as if of another epoch.

    All of it is signed well by somebody, for another place (D1, D2).
    """

    name: ClassVar[str] = "replayer"

    def __init__(self, seat: Seat, spool: Spool) -> None:
        super().__init__(seat)
        self._spool = spool

    def hear(self, event: Event) -> None:
        """Keep what is worth saying again."""
        if isinstance(event, MessageReceived) and isinstance(event.message, Votes | Proposal | Certificates):
            self._spool.messages.append(event.message)

    def say(self, effect: fx.Effect) -> Iterable[fx.Effect]:
        """Say something old beside what is new."""
        spool, chance = self._spool.messages, self.seat.chance
        if not isinstance(effect, fx.Broadcast) or not spool or chance.random() > REPLAY_CHANCE:
            return (effect,)
        # What was said just now elsewhere is of slots that are open here too.
        start = max(0, len(spool) - RECENT) if chance.random() < 0.5 else 0
        old = spool[chance.randrange(start, len(spool))]
        if chance.random() < 0.25:
            old = _move_epoch(old)
        self.seat.tell(f"replayed {type(old).__name__.lower()}")
        return (effect, fx.Broadcast(old))


def _move_epoch(message: Message) -> Message:
    """Return a message as it would look one epoch later: its signatures cover the epoch they were made in."""
    match message:
        case Votes(votes):
            return Votes(
                tuple(msgspec.structs.replace(vote, slot=Slot(vote.slot + EPOCH_SLOTS)) for vote in votes)
            )
        case Certificates(certificates):
            moved = (
                msgspec.structs.replace(item, slot=Slot(item.slot + EPOCH_SLOTS)) for item in certificates
            )
            return Certificates(tuple(moved))
        case _:
            return message
