"""What a step of a machine costs: signatures as the machine asks for them, the rest by what came in and what goes out.

Signatures in the run are keyed tags; what they would cost as BLS12-381 is noted where the machine asks. Other costs follow
from messages and effects: a message has a size, a crosslink has links and receipts, a final beacon block has crosslinks.
Reads of a beacon block's body are counted as ``crosslink`` does them: three to judge a block, three to finalise it.
"""

from collections.abc import Sequence
from typing import Final, Protocol

from node.scale.costs import Costs
from node.scale.server import Work
from shardyard import effects as fx
from shardyard.blocks import Block
from shardyard.codec import decode
from shardyard.consensus.votes import Crypto, VoteKind
from shardyard.crosslinks import BeaconBody, CrosslinkSubmission
from shardyard.events import Built, Event, Executed
from shardyard.genesis import Genesis
from shardyard.ids import Hash32
from shardyard.messages import Proposal, SubmitCrosslink
from shardyard.validators import ValidatorSet

READS_TO_JUDGE: Final = 3
READS_TO_FINALISE: Final = 3

HANDLE: Final = "messages"
ENVELOPES: Final = "envelopes"
CODEC: Final = "encoding"
VOTES: Final = "votes"
CERTIFICATES: Final = "certificates"
SIGNING: Final = "signing"
CROSSLINKS: Final = "crosslink checks"
ORDER: Final = "crosslink order"
FOLLOWING: Final = "beacon blocks"
RECEIPTS: Final = "receipts"
RECOVERY: Final = "recovery"
EXECUTION: Final = "execution"
OPERATIONS: Final = (
    VOTES,
    CERTIFICATES,
    SIGNING,
    ENVELOPES,
    CODEC,
    HANDLE,
    CROSSLINKS,
    ORDER,
    FOLLOWING,
    RECEIPTS,
    RECOVERY,
    EXECUTION,
)
"""Everything that takes time, in the order in which it is shown."""


class MeteredCrypto:
    """Implements ``Crypto`` by another one and notes what it would have cost."""

    def __init__(self, crypto: Crypto, costs: Costs) -> None:
        self._crypto = crypto
        self._costs = costs
        self._work: Work = {}
        self.votes = 0
        """Votes verified."""

    def take_work(self) -> Work:
        """Return what was noted since the last call."""
        work, self._work = self._work, {}
        return work

    def _note(self, operation: str, cost_us: float) -> None:
        self._work[operation] = self._work.get(operation, 0.0) + cost_us

    def verify_aggregate(
        self, committee: ValidatorSet, bitmap: bytes, message: bytes, signature: bytes
    ) -> bool:
        """As ``Crypto`` says."""
        signers = int.from_bytes(bitmap, "little").bit_count()
        self._note(CERTIFICATES, self._costs.certificate_verify + signers * self._costs.certificate_signer)
        return self._crypto.verify_aggregate(committee, bitmap, message, signature)

    def verify_votes(self, committee: ValidatorSet, items: Sequence[tuple[int, bytes, bytes]]) -> list[bool]:
        """As ``Crypto`` says."""
        self.votes += len(items)
        self._note(VOTES, self._costs.votes_verify + len(items) * self._costs.vote_verify)
        return self._crypto.verify_votes(committee, items)

    def aggregate(self, signatures: Sequence[bytes]) -> bytes:
        """As ``Crypto`` says."""
        self._note(VOTES, len(signatures) * self._costs.vote_aggregate)
        return self._crypto.aggregate(signatures)


class Shape(Protocol):
    """What is known of final beacon blocks."""

    def get_shape(self, height: int) -> tuple[int, int]:
        """Return the crosslinks and the links of a final beacon block."""
        ...


class Meter:
    """Prices the steps of machines."""

    def __init__(self, genesis: Genesis, costs: Costs, shape: Shape) -> None:
        self._costs = costs
        self._shape = shape
        self._shards = genesis.shard_count
        self._max_body_bytes = genesis.preset.max_body_bytes
        self._shapes: dict[Hash32, tuple[int, int]] = {}

    def price_arrival(self, size: int, hidden: int) -> Work:
        """Return what opening a message costs: ``size`` bytes of structure and ``hidden`` ones of transactions."""
        costs = self._costs
        return {
            ENVELOPES: costs.envelope_verify,
            CODEC: (size * costs.decode_kib + hidden * costs.blob_kib) / 1024,
            HANDLE: costs.handle,
        }

    def price_departure(self, size: int, hidden: int) -> Work:
        """Return what sending a message costs."""
        costs = self._costs
        return {
            ENVELOPES: costs.envelope_sign,
            CODEC: (size * costs.encode_kib + hidden * costs.blob_kib) / 1024,
        }

    def price_submission(self, submission: CrosslinkSubmission) -> Work:
        """Return what checking an offered crosslink costs the beacon, its certificates not counted."""
        costs = self._costs
        receipts = sum(len(outbox) for outbox in submission.outboxes)
        links = len(submission.crosslink.links)
        cost_us = costs.crosslink_check + links * costs.link_check + receipts * costs.receipt_check
        return {CROSSLINKS: cost_us + costs.place}

    def read_shape(self, block: Block) -> tuple[int, int]:
        """Return the crosslinks and the links of a beacon block."""
        shape = self._shapes.get(block.hash)
        if shape is None:
            crosslinks = decode(block.body, BeaconBody, max_bytes=self._max_body_bytes).crosslinks
            shape = self._shapes[block.hash] = (len(crosslinks), sum(len(item.links) for item in crosslinks))
        return shape

    def _price_read(self, shape: tuple[int, int]) -> float:
        return shape[0] * self._costs.body_read + shape[1] * self._costs.body_link

    def _price_state(self, shape: tuple[int, int]) -> float:
        """Return what placing the crosslinks of a block, moving the state on and hashing it costs."""
        costs = self._costs
        state = self._shards * costs.state_entry + self._shards**2 * costs.state_cell
        return shape[0] * costs.place + shape[1] * costs.state_link + state

    def price_beacon(self, effects: Sequence[fx.Effect], find: "FindBlock") -> Work:
        """Return what the beacon's own part of a step cost, by what came of it."""
        cost_us = 0.0
        for effect in effects:
            match effect:
                case fx.Broadcast(Proposal(block=block)):
                    cost_us += self._price_state(self.read_shape(block))
                case fx.Sign(requests):
                    hashes = [item.block_hash for item in requests if item.kind is VoteKind.NOTAR]
                    for block_hash in dict.fromkeys(hashes):
                        judged = find(block_hash)
                        if judged is not None:
                            shape = self.read_shape(judged)
                            cost_us += READS_TO_JUDGE * self._price_read(shape) + self._price_state(shape)
                case fx.Finalise(block):
                    cost_us += READS_TO_FINALISE * self._price_read(self.read_shape(block))
                case _:
                    pass
        return {ORDER: cost_us} if cost_us else {}

    def price_shard(self, event: Event, effects: Sequence[fx.Effect]) -> Work:
        """Return what a shard's own part of a step cost: following the beacon, receipts in and out."""
        costs = self._costs
        following = receipts = 0.0
        if isinstance(event, Built | Executed) and event.summary is not None:
            receipts += len(event.summary.outbox) * costs.receipt_check
        for effect in effects:
            match effect:
                case fx.Notice("beacon.followed", data=data):
                    following += self._price_read(self._shape.get_shape(int(data["height"])))
                    receipts += int(data["receipts"]) * costs.receipt_verify
                case fx.Broadcast(SubmitCrosslink(submission=submission)):
                    count = sum(len(outbox) for outbox in submission.outboxes)
                    links = len(submission.crosslink.links)
                    receipts += count * costs.receipt_check + links * costs.link_check
                case _:
                    pass
        return {FOLLOWING: following, RECEIPTS: receipts}


class FindBlock(Protocol):
    """Finds a block that an engine holds."""

    def __call__(self, block_hash: Hash32) -> Block | None:
        """Return it, or None."""
        ...
