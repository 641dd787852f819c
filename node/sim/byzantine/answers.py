"""Role Corrupter: what it hands out is damaged or missing: bundles, bodies of crosslinks, blocks, ranges, final blocks.

Everything it hands out can be checked against a hash, a root or a proof that others hold; and everything can be had from
others as well (L9, X10). So what it sends is refused and asked for elsewhere.
"""

import random
from collections.abc import Iterable
from typing import ClassVar, Final, assert_never

import msgspec

from node.sim.byzantine.role import Role
from shardyard import effects as fx
from shardyard.blocks import Block
from shardyard.crosslinks import Bundle, CrosslinkSubmission
from shardyard.messages import (
    BlockResponse,
    BundleAnnouncement,
    FinalBlock,
    RangeResponse,
    SubmitCrosslink,
)

CHANCE: Final = 0.7
WITHHOLD_CHANCE: Final = 0.25
Answer = BundleAnnouncement | SubmitCrosslink | BlockResponse | RangeResponse | FinalBlock


class Corrupter(Role):
    """Damages or withholds what others fetch from it."""

    name: ClassVar[str] = "corrupter"

    def say(self, effect: fx.Effect) -> Iterable[fx.Effect]:
        """Damage what is handed out, or keep it."""
        if not isinstance(effect, fx.Broadcast | fx.Send) or not isinstance(effect.message, Answer):
            return (effect,)
        chance = self.seat.chance
        kind = type(effect.message).__name__
        if chance.random() > CHANCE:
            return (effect,)
        if chance.random() < WITHHOLD_CHANCE:
            self.seat.tell(f"withheld a {kind}")
            return ()
        damaged = corrupt_answer(effect.message, chance)
        if damaged == effect.message:
            return (effect,)  # there was nothing in it
        self.seat.tell(f"damaged a {kind}")
        return (msgspec.structs.replace(effect, message=damaged),)


def corrupt_answer(answer: Answer, chance: random.Random) -> Answer:
    """Return ``answer`` with something in it that its reader must not believe."""
    match answer:
        case BundleAnnouncement(bundle):
            return BundleAnnouncement(_corrupt_bundle(bundle, chance))
        case SubmitCrosslink(submission):
            return SubmitCrosslink(_corrupt_submission(submission, chance))
        case BlockResponse(_, blocks, _):
            return msgspec.structs.replace(answer, blocks=_corrupt_blocks(blocks, chance))
        case RangeResponse(_, blocks, _):
            if chance.random() < 0.3:
                return msgspec.structs.replace(answer, proof=None)
            return msgspec.structs.replace(answer, blocks=_corrupt_blocks(blocks, chance))
        case FinalBlock(block, proof):
            if chance.random() < 0.5:
                return FinalBlock(_corrupt_block(block), proof)
            signature = _flip(proof.finalization.signature, chance)
            finalization = msgspec.structs.replace(proof.finalization, signature=signature)
            return FinalBlock(block, msgspec.structs.replace(proof, finalization=finalization))
        case _:
            assert_never(answer)


def _flip(data: bytes, chance: random.Random) -> bytes:
    place = chance.randrange(len(data))
    return data[:place] + bytes((data[place] ^ 1 << chance.randrange(8),)) + data[place + 1 :]


def _corrupt_receipts(receipts: tuple[bytes, ...], chance: random.Random) -> tuple[bytes, ...]:
    """Return receipts one of which is changed or missing; where there are none, one that is no receipt."""
    if not receipts:
        return (b"\xc0",)
    place = chance.randrange(len(receipts))
    changed = (_flip(receipts[place], chance),) if chance.random() < 0.7 else ()
    return (*receipts[:place], *changed, *receipts[place + 1 :])


def _corrupt_bundle(bundle: Bundle, chance: random.Random) -> Bundle:
    return msgspec.structs.replace(bundle, receipts=_corrupt_receipts(bundle.receipts, chance))


def _corrupt_submission(submission: CrosslinkSubmission, chance: random.Random) -> CrosslinkSubmission:
    draw = chance.randrange(4)
    if draw == 0:
        place = chance.randrange(len(submission.outboxes))
        outbox = _corrupt_receipts(submission.outboxes[place], chance)
        outboxes = (*submission.outboxes[:place], outbox, *submission.outboxes[place + 1 :])
        return msgspec.structs.replace(submission, outboxes=outboxes)
    if draw == 1:
        return msgspec.structs.replace(submission, headers=submission.headers[:-1])
    crosslink = submission.crosslink
    if draw == 2:
        crosslink = msgspec.structs.replace(crosslink, inbox_position=crosslink.inbox_position + 1)
    else:
        burnt = int.from_bytes(crosslink.burnt, "big") + 1
        crosslink = msgspec.structs.replace(crosslink, burnt=burnt.to_bytes(len(crosslink.burnt), "big"))
    return msgspec.structs.replace(submission, crosslink=crosslink)


def _corrupt_blocks(blocks: tuple[Block, ...], chance: random.Random) -> tuple[Block, ...]:
    """Return blocks one of which has another body or is missing."""
    if not blocks:
        return blocks
    place = chance.randrange(len(blocks))
    changed = (_corrupt_block(blocks[place]),) if chance.random() < 0.6 else ()
    return (*blocks[:place], *changed, *blocks[place + 1 :])


def _corrupt_block(block: Block) -> Block:
    return msgspec.structs.replace(block, body=block.body + b"\x00")
