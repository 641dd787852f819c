"""The outbox: when a shard offers a crosslink, what is in it, and what stays available (X4, X6, X10).

A crosslink covers the final blocks after the last one that the beacon accepted: at most
``max_crosslink_blocks``, at most ``max_bundle_bytes`` of receipts. One is in flight at a time; a longer one
replaces it only when the beacon moved on without it, so that all replicas of a shard offer the same few
crosslinks. Its content is a function of final blocks alone, and replicas take turns to offer it (``shards.turns``).

Receipts stay here until the beacon says that their destination consumed them, whoever asks for them again.
The assembler counts what every inbox ever got, as the beacon does, and so knows the position at which a
bundle is consumed. When what is kept nears its cap, ``is_full`` asks the host to build blocks without user
transactions (I14).
"""

from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from shards.turns import OfferTurns
from shardyard.blocks import FinalityProof, Header
from shardyard.crosslinks import Bundle, Crosslink, CrosslinkSubmission
from shardyard.effects import Broadcast, Effect, Send
from shardyard.genesis import Genesis
from shardyard.ids import ZERO_HASH, Hash32, Height, NodeId, ShardId
from shardyard.messages import BundleAnnouncement, BundleRequest, SubmitCrosslink
from shardyard.receipts import compute_link_summaries, decode_receipt

MAX_OUTBOX_BYTES: Final = 256 * 1024 * 1024
MAX_OUTBOX_BLOCKS: Final = 65_536
"""Final blocks the shard may be ahead of its last crosslink before it stops to take user transactions."""
MAX_OFFERED: Final = 8
"""Submissions kept for beacon replicas that missed them."""
PATIENCE: Final = 2
"""Beacon blocks that may pass a crosslink over before it is offered anew."""

FindFinal = Callable[[int], tuple[Header, FinalityProof] | None]
"""Returns a final block's header and proof by height."""


class _Accepted(msgspec.Struct, frozen=True):
    """A crosslink of this shard in a final beacon block; ``ends`` are the last positions in its
    destinations' inboxes.
    """

    crosslink: Crosslink
    ends: tuple[tuple[ShardId, int], ...]


class CrosslinkAssembler:
    """Offers crosslinks of one shard and serves what they carry."""

    def __init__(self, genesis: Genesis, shard: ShardId, find_final: FindFinal, keys: Sequence[int]) -> None:
        """``keys`` are the validators in this process; without any it keeps receipts available and offers nothing."""
        self._genesis = genesis
        self._shard = shard
        self._find_final = find_final
        self._is_offering = bool(keys)
        self._turns = OfferTurns(keys, len(genesis.committees[shard]))
        self._outboxes: dict[int, tuple[bytes, ...]] = {}
        self._congestion: dict[int, int] = {}
        self._bytes = 0
        self._final_height = 0
        self._first_height = 1
        """What blocks below it emitted is not here: the state after them came as a snapshot."""
        self._base: Header | None = None
        """The block whose state came as a snapshot: it is not among the final blocks."""
        self._last_hash = ZERO_HASH
        self._last_height = 0
        self._beacon_height = 0
        self._in_flight: CrosslinkSubmission | None = None
        self._offered_at = 0
        self._offered: dict[Hash32, CrosslinkSubmission] = {}
        self._accepted: dict[Hash32, _Accepted] = {}
        self._inbox_lengths: dict[ShardId, int] = {}
        self._positions: dict[ShardId, int] = {}

    @property
    def is_full(self) -> bool:
        """Tell whether too much waits for the beacon or for destinations to add anything (I14)."""
        return self._bytes > MAX_OUTBOX_BYTES or self._final_height - self._last_height > MAX_OUTBOX_BLOCKS

    @property
    def crosslinked_height(self) -> Height:
        """Height of this shard that the beacon has accepted."""
        return Height(self._last_height)

    def on_final(self, header: Header, outbox: Sequence[bytes], congestion: int) -> None:
        """Keep what a final block emitted; blocks come in order of height."""
        height = self._final_height = header.height
        if outbox:
            self._outboxes[height] = tuple(outbox)
            self._bytes += sum(len(receipt) for receipt in outbox)
        if height > self._last_height:
            self._congestion[height] = congestion
        self._release()

    def begin_after(self, header: Header) -> None:
        """Go on after a block whose state came as a snapshot; crosslinks that reach below it are offered by others."""
        self._base = header
        self._final_height = header.height
        self._first_height = header.height + 1
        self._outboxes.clear()
        self._bytes = 0

    def on_beacon_block(self, height: int, crosslinks: Sequence[Crosslink]) -> None:
        """Follow a final beacon block: what it accepted of us, and what others consumed."""
        self._beacon_height = height
        for crosslink in crosslinks:
            self._positions[crosslink.shard] = crosslink.inbox_position
            ends: list[tuple[ShardId, int]] = []
            for link in crosslink.links:
                self._inbox_lengths[link.dst] = self._inbox_lengths.get(link.dst, 0) + link.count
                ends.append((link.dst, self._inbox_lengths[link.dst]))
            if crosslink.shard == self._shard:
                self._on_accepted(_Accepted(crosslink, tuple(ends)))
        self._release()

    def _on_accepted(self, accepted: _Accepted) -> None:
        crosslink = accepted.crosslink
        self._last_hash, self._last_height = crosslink.hash, crosslink.last_height
        self._in_flight = None
        self._turns.begin()
        for height in [height for height in self._congestion if height <= crosslink.last_height]:
            del self._congestion[height]
        if accepted.ends:
            self._accepted[crosslink.hash] = accepted

    def _release(self) -> None:
        """X10: forget receipts whose consumption is beacon-final."""
        for key, accepted in list(self._accepted.items()):
            if accepted.crosslink.last_height > self._final_height:
                continue  # this replica lags behind its own shard; the receipts are still to come
            if all(self._positions.get(dst, 0) >= end for dst, end in accepted.ends):
                del self._accepted[key]
                for height in range(accepted.crosslink.first_height, accepted.crosslink.last_height + 1):
                    outbox = self._outboxes.pop(height, ())
                    self._bytes -= sum(len(receipt) for receipt in outbox)

    # --- offering ---

    def offer(self) -> list[Effect]:
        """Return the submission of a crosslink when one is due, and it is this replica's turn."""
        is_known = self._last_height + 1 >= self._first_height
        if not self._is_offering or not is_known or self._final_height <= self._last_height:
            return []
        if self._in_flight is not None and self._beacon_height < self._offered_at + PATIENCE:
            return []
        submission = self._build()
        if submission is None:
            return []
        self._in_flight = submission
        self._offered[submission.crosslink.hash] = submission
        while len(self._offered) > MAX_OFFERED:
            del self._offered[next(iter(self._offered))]
        self._offered_at = self._beacon_height
        return [Broadcast(SubmitCrosslink(submission))] if self._turns.offer(self._last_hash) else []

    def on_tick(self) -> list[Effect]:
        """Return what is in flight once more, now and then: the bus loses messages, and a silent beacon may have
        restarted.
        """
        if self._in_flight is None:
            return self.offer()
        return [Broadcast(SubmitCrosslink(self._in_flight))] if self._turns.tick(self._last_hash) else []

    def _build(self) -> CrosslinkSubmission | None:
        headers: list[Header] = []
        outboxes: list[tuple[bytes, ...]] = []
        size, proof = 0, None
        first = self._last_height + 1
        for height in range(
            first, min(self._final_height + 1, first + self._genesis.preset.max_crosslink_blocks)
        ):
            found = self._find_final(height)
            outbox = self._outboxes.get(height, ())
            size += sum(len(receipt) for receipt in outbox)
            # No block alone is larger than a crosslink (shardyard.emission), so there is always a first one.
            if found is None or size > self._genesis.preset.max_bundle_bytes:
                break
            if headers and found[0].epoch != headers[0].epoch:
                break  # X4: never across a seal
            headers.append(found[0])
            outboxes.append(outbox)
            proof = found[1]
        if proof is None:
            return None
        crosslink = self._build_crosslink(headers, outboxes)
        return CrosslinkSubmission(
            crosslink=crosslink, headers=tuple(headers), outboxes=tuple(outboxes), proof=proof
        )

    def _build_crosslink(self, headers: Sequence[Header], outboxes: Sequence[tuple[bytes, ...]]) -> Crosslink:
        head = headers[-1]
        content = head.shard_content
        burnt_before = 0
        if self._last_height > 0:
            burnt_before = int.from_bytes(self._get_header(self._last_height).shard_content.burnt, "big")
        burnt = int.from_bytes(content.burnt, "big") - burnt_before
        return Crosslink(
            shard=self._shard,
            epoch=head.epoch,
            parent=self._last_hash,
            first_height=headers[0].height,
            last_height=head.height,
            head_hash=head.hash,
            state_root=content.state_root,
            links=compute_link_summaries(receipt for outbox in outboxes for receipt in outbox),
            inbox_position=content.inbox_position,
            burnt=burnt.to_bytes(32, "big"),
            congestion=self._congestion.get(head.height, 0),
            base_fee=content.base_fee,
        )

    def _get_header(self, height: int) -> Header:
        if self._base is not None and self._base.height == height:
            return self._base
        found = self._find_final(height)
        assert found is not None, "the head of an accepted crosslink is a final block"
        return found[0]

    # --- serving ---

    def on_crosslink_request(self, sender: NodeId, crosslink: Hash32) -> list[Effect]:
        """Serve one of the submissions offered lately; a replica that never offered it stays silent."""
        submission = self._offered.get(crosslink)
        return [Send(sender, SubmitCrosslink(submission))] if submission is not None else []

    def on_bundle_request(self, sender: NodeId, request: BundleRequest) -> list[Effect]:
        """Serve the receipts of an accepted crosslink until they are consumed, if they are here."""
        accepted = self._accepted.get(request.crosslink)
        if accepted is None or accepted.crosslink.last_height > self._final_height:
            return []
        crosslink = accepted.crosslink
        # Without a link every receipt would be read for nothing.
        is_link = any(link.dst == request.dst for link in crosslink.links)
        if crosslink.first_height < self._first_height or not is_link:
            return []
        receipts = tuple(
            receipt
            for height in range(crosslink.first_height, crosslink.last_height + 1)
            for receipt in self._outboxes.get(height, ())
            if decode_receipt(receipt).dst == request.dst
        )
        bundle = Bundle(crosslink=crosslink.hash, src=self._shard, dst=request.dst, receipts=receipts)
        return [Send(sender, BundleAnnouncement(bundle))]


def find_heaviest_sender(outbox: Sequence[bytes]) -> Hash32:
    """Return the hash of the user transaction that emitted most bytes of ``outbox``; zero when only
    deliveries did.

    While it waits in the mempool, no block with it can be proposed: whoever keeps the mempool should drop it.
    """
    sizes: dict[Hash32, int] = {}
    for data in outbox:
        origin = decode_receipt(data).origin
        if origin.depth == 0:
            sizes[origin.tx_hash] = sizes.get(origin.tx_hash, 0) + len(data)
    return max(sizes, key=lambda tx_hash: (sizes[tx_hash], tx_hash), default=ZERO_HASH)
