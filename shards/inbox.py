"""The inbox: how a shard follows the beacon, and in which order receipts reach it (X0, X5, X6).

``BeaconFollower`` takes final beacon blocks strictly by height, each with a proof by the beacon's committee
(A2), and completes a block only when it holds every bundle the block has for this shard. Then, and not
before, the block may be a ``beacon_ref``: so whoever proposes can also deliver, and whoever lacks a bundle
merely waits. Announced bundles are kept unverified until the block that names their root is at hand; what
does not match is dropped and asked for.

The inbox is one sequence with absolute positions, counted from 1, in the order (beacon height, visited
position, seq). A view per beacon height says how much of it a block with that ``beacon_ref`` may read.
Receipts below the position of the last final block, and views below its ``beacon_ref``, are gone. When the
shard falls too far behind the beacon the follower pauses: the caps hold whatever the beacon does (I14).
"""

from collections.abc import Sequence
from typing import Final

import msgspec

from shards.beacon_blocks import decode_beacon_body, verify_range
from shards.bundles import MAX_EARLY_BYTES, BundleKey, EarlyBundles, is_bundle_valid, verify_bundle
from shards.policy import LinkBaseFees, compute_initial_base_fees
from shardyard.blocks import BeaconRef, Block, FinalityProof
from shardyard.codec import encode
from shardyard.consensus.proofs import verify_finality_proof
from shardyard.consensus.votes import Crypto
from shardyard.crosslinks import BeaconBody, Bundle, Crosslink
from shardyard.effects import BeaconRecord, Effect, Notice, Persist, Send, SetTimer
from shardyard.errors import (
    InvalidBlockError,
    InvalidProofError,
    LocalProtocolError,
    RemoteProtocolError,
    UnsolicitedError,
)
from shardyard.genesis import Genesis
from shardyard.ids import BEACON, ZERO_HASH, Hash32, Height, NodeId, ShardId
from shardyard.messages import BundleRequest, RangeRequest, RangeResponse
from shardyard.receipts import LinkSummary, compute_delivery_gas, count_deliveries, decode_receipt

FOLLOW_TIMER: Final = "inbox.follow"
BUNDLE_TIMER: Final = "inbox.bundles"

MAX_BLOCKS_AHEAD: Final = 64
"""Beacon blocks kept that cannot be completed yet."""
MAX_ANNOUNCED_BYTES: Final = 32 * 1024 * 1024
"""Of those among them that were announced and are not verified yet: what finds no room comes by a range."""
MAX_VIEWS: Final = 1024
"""Beacon blocks the follower may be ahead of the shard's last final ``beacon_ref``."""
MAX_INBOX_BYTES: Final = 64 * 1024 * 1024
MAX_BEACON_NODES: Final = 16
RANGE_COUNT: Final = 16
MAX_FETCHED_AHEAD: Final = 16
MAX_FETCHED_BYTES: Final = MAX_EARLY_BYTES // 2
"""Of bundles that were asked for on behalf of blocks behind the one that waits for its own."""
MAX_BACKOFF: Final = 16
"""Longest pause between requests, in block times."""
CONGESTION_BLOCKS: Final = 20
"""X9: blocks of INBOX_GAS that make a full inbox."""


class BeaconView(msgspec.Struct, frozen=True):
    """What a shard block knows that refers to one beacon block."""

    ref: BeaconRef
    inbox_length: int
    """Receipts sent to this shard up to and including this beacon block."""
    link_base_fees: LinkBaseFees
    proof: bytes
    """Encoded ``FinalityProof`` of the beacon block; empty for genesis."""
    crosslink: Hash32
    """Last crosslink of this shard that the beacon accepted; zero when there is none."""
    crosslink_height: Height
    """Shard height that crosslink reaches: what JSON-RPC calls "finalized"."""
    crosslink_head: Hash32


class BeaconFollowed(msgspec.Struct, frozen=True):
    """The follower completed a beacon block."""

    view: BeaconView
    crosslinks: tuple[Crosslink, ...]
    receipts: tuple[bytes, ...]
    """What the block put into this shard's inbox."""


FollowerOutput = Effect | BeaconFollowed


class _Ahead(msgspec.Struct):
    """A beacon block above the head, perhaps not verified yet."""

    sender: NodeId
    block: Block
    proof: FinalityProof
    is_proven: bool
    size: int = 0
    """Bytes of one that was announced."""
    body: BeaconBody | None = None
    """Once it was looked at."""


class _Wanted(msgspec.Struct, frozen=True):
    crosslink: Hash32
    src: ShardId
    link: LinkSummary
    consumed: int
    """Receipts at its beginning that the shard had executed before its snapshot: they are not kept."""


class _Pending(msgspec.Struct):
    """The next beacon block, verified, while its bundles for this shard arrive."""

    block: Block
    proof: FinalityProof
    crosslinks: tuple[Crosslink, ...]
    wanted: tuple[_Wanted, ...]
    bundles: dict[tuple[Hash32, ShardId], tuple[bytes, ...]]


class BeaconFollower:
    """Follows the beacon for one shard. Raises ``RemoteProtocolError`` for what peers send wrong."""

    def __init__(self, genesis: Genesis, shard: ShardId, crypto: Crypto) -> None:
        self._genesis = genesis
        self._shard = shard
        self._crypto = crypto
        self._domain = genesis.get_domain(BEACON)
        self._committee = genesis.committees[BEACON]
        header = genesis.beacon_block.header
        self._head = BeaconView(
            ref=BeaconRef(height=header.height, hash=header.hash, epoch=header.epoch),
            inbox_length=0,
            link_base_fees=compute_initial_base_fees(genesis),
            proof=b"",
            crosslink=ZERO_HASH,
            crosslink_height=Height(0),
            crosslink_head=genesis.build_shard_block(shard).hash,
        )
        self._views: dict[int, BeaconView] = {0: self._head}
        self._receipts: list[bytes] = []
        self._gas: list[int] = []
        self._inbox_bytes = 0
        self._pruned = 0
        """Position up to which receipts are gone, because blocks up to here consumed them."""
        self._skipped_to = 0
        """Beacon height up to which the shard's snapshot already is: nothing below it is referred to any more."""
        self._pending: _Pending | None = None
        self._ahead: dict[int, _Ahead] = {}
        self._early = EarlyBundles(genesis.preset.max_bundle_bytes)
        self._known_height = 0
        self._beacon_nodes: list[NodeId] = [NodeId("beacon-0")]
        self._attempts = 0
        self._bundle_rounds = 0
        """Times bundles were asked for; not counted by ``_attempts``, or some nodes' turns would all go to the source."""
        self._idle_rounds = 0
        self._has_progressed = False
        self._range_pending = False
        self._is_range_fresh = False
        """It was asked for since the last look: its answer may be on its way."""
        self._asked = NodeId("")
        """Of whom the last range was asked."""
        self._heard: set[NodeId] = set()
        """Whose answers to that question were verified: a liar's costs one proof, and the honest one still counts."""
        self._fetched_to = 0
        """Height up to which bundles of blocks ahead were asked for."""
        self._under_way: set[BundleKey] = set()
        """Those of them that nobody has answered."""

    # --- what others read ---

    @property
    def head(self) -> BeaconView:
        """The latest beacon block followed completely: the ``beacon_ref`` of a new block."""
        return self._head

    def get_view(self, height: int) -> BeaconView | None:
        """Return the view of a beacon height; None above the head and below the last final block's
        reference.
        """
        return self._views.get(height)

    def select_deliveries(self, position: int, view: BeaconView) -> tuple[bytes, ...]:
        """Return the receipts that a block on ``position`` with the reference of ``view`` takes, all of
        them (X5).
        """
        first = position - self._pruned
        if first < 0:
            raise LocalProtocolError(f"inbox: got position {position}, expected at least {self._pruned}")
        last = max(first, view.inbox_length - self._pruned)
        count = count_deliveries(self._gas[first:last], self._genesis.preset.inbox_gas)
        return tuple(self._receipts[first : first + count])

    def compute_congestion(self, position: int, view: BeaconView) -> int:
        """Return how full the inbox is after ``position``, in thousandths (X9)."""
        first = max(0, position - self._pruned)
        waiting = sum(self._gas[first : max(first, view.inbox_length - self._pruned)])
        return min(1000, waiting * 1000 // (CONGESTION_BLOCKS * self._genesis.preset.inbox_gas))

    @property
    def is_paused(self) -> bool:
        """Tell whether the shard is so far behind that following on would break a cap (I14)."""
        return len(self._views) > MAX_VIEWS or self._inbox_bytes > MAX_INBOX_BYTES

    # --- events ---

    def start(self) -> list[FollowerOutput]:
        """Ask the beacon where it stands."""
        return [*self._request_range(), self._schedule()]

    def on_final_block(self, sender: NodeId, block: Block, proof: FinalityProof) -> list[FollowerOutput]:
        """Take a final beacon block that was announced."""
        height = block.header.height
        self._note_node(sender)
        if height <= self._head.ref.height:
            return []
        outputs = self._note_height(height)
        self._keep_ahead(_Ahead(sender, block, proof, is_proven=False))
        outputs.extend(self._advance())
        if (
            self._pending is None
            and self._head.ref.height + 1 < self._known_height
            and not self._range_pending
        ):
            outputs.extend(self._request_range())
        return outputs

    def on_range_response(self, sender: NodeId, response: RangeResponse) -> list[FollowerOutput]:
        """Take consecutive beacon blocks that were asked for; one proof covers them all."""
        if not self._range_pending:
            raise UnsolicitedError(f"range of beacon blocks from {sender}: nobody asked for it")  # L9
        if not response.blocks or response.proof is None:
            if sender == self._asked:  # whoever told of more lied, or will be right again with the next block
                self._known_height = self._find_gap() - 1
            return []  # nothing newer there; hints may lie, so nobody is asked again before the timer
        gap, head = self._find_gap(), self._head.ref.height
        # Whoever was asked ends the question; anybody else does so with what is of use, and is looked at once.
        self._range_pending = sender != self._asked
        is_spent = sender in self._heard or len(self._heard) >= MAX_BEACON_NODES
        if response.blocks[-1].header.height < gap or (is_spent and self._range_pending):
            return []
        self._heard.add(sender)
        proofs = verify_range(
            self._crypto, self._domain, self._committee, response.blocks, response.proof, MAX_BLOCKS_AHEAD
        )
        for block, proof in proofs:
            if head < block.header.height <= head + MAX_BLOCKS_AHEAD:
                self._ahead[block.header.height] = _Ahead(sender, block, proof, is_proven=True)
        last = response.blocks[-1].header.height
        self._known_height = max(self._known_height, last)
        is_useful = self._find_gap() > gap
        self._range_pending &= not is_useful
        outputs = self._advance()
        if not is_useful:
            return outputs  # nothing that was missing: no reason to ask on
        # A full answer means that there is more, whatever was known.
        has_more = self._head.ref.height == last and len(response.blocks) >= RANGE_COUNT
        return [*outputs, *(self._request_range() if has_more else self._ask_on())]

    def on_bundle(self, sender: NodeId, bundle: Bundle) -> list[FollowerOutput]:
        """Take the receipts of a crosslink to this shard."""
        if bundle.dst != self._shard:
            raise UnsolicitedError(
                f"bundle from {sender}: got destination {bundle.dst}, expected {self._shard}"
            )
        key = (bundle.crosslink, bundle.src)
        self._under_way.discard(key)
        if self._pending is not None:
            for wanted in self._pending.wanted:
                if key == (wanted.crosslink, wanted.src) and key not in self._pending.bundles:
                    verify_bundle(wanted.link, bundle.receipts)
                    self._pending.bundles[key] = bundle.receipts
                    head = self._head
                    outputs = self._advance()
                    return outputs if self._head is head else [*outputs, *self._ask_on()]
        self._early.keep(key, bundle.receipts)
        return []

    def on_status(self, height: int) -> list[FollowerOutput]:
        """Take the beacon's height as a hint."""
        outputs = self._note_height(height)
        return [*outputs, *self._request_range()] if self._is_behind() else outputs

    def on_timer(self, name: str) -> list[FollowerOutput]:
        """Ask again for what is missing: bundles of the next block, or blocks after the head."""
        if name == BUNDLE_TIMER:
            return self._request_bundles()
        outputs: list[FollowerOutput] = []
        self._range_pending &= self._is_range_fresh  # else the answer is lost
        self._is_range_fresh = False
        if not self._has_progressed:
            self._idle_rounds += 1
            if self._pending is None:
                outputs.extend(self._request_range())
        self._has_progressed = False
        return [*outputs, self._schedule()]

    def on_final(self, beacon_ref: BeaconRef, inbox_position: int) -> list[FollowerOutput]:
        """Forget what a final shard block has left behind; who paused for want of room goes on."""
        was_paused = self.is_paused
        self.forget(beacon_ref, inbox_position)
        outputs = self._advance()
        return [*outputs, *self._ask_on()] if was_paused else outputs

    def forget(self, beacon_ref: BeaconRef, inbox_position: int) -> None:
        """Forget what no block needs that comes after one with this reference and position, as far as it is here already."""
        position = min(inbox_position, self._head.inbox_length)
        count = position - self._pruned
        if count > 0:
            self._inbox_bytes -= sum(len(receipt) for receipt in self._receipts[:count])
            del self._receipts[:count], self._gas[:count]
            self._pruned = position
        self._drop_views(min(beacon_ref.height, self._head.ref.height))

    def _drop_views(self, below: int) -> None:
        for height in sorted(height for height in self._views if height < below):
            del self._views[height]

    def skip_to(self, beacon_ref: BeaconRef, inbox_position: int) -> None:
        """G5: go on for a shard whose state came as a snapshot: what it has consumed is counted, not fetched."""
        self._skipped_to = beacon_ref.height
        count = max(0, inbox_position - self._pruned)
        self._inbox_bytes -= sum(len(receipt) for receipt in self._receipts[:count])
        del self._receipts[:count], self._gas[:count]
        self._pruned = max(self._pruned, inbox_position)
        self._drop_views(min(self._skipped_to, self._head.ref.height))
        self._pending = None
        self._ahead.clear()
        self._fetched_to = 0
        self._under_way.clear()

    def recover(self, record: BeaconRecord) -> BeaconFollowed:
        """Replay a beacon block from the chain's own log; raises ``LocalProtocolError`` for a log with a
        gap.
        """
        header = record.block.header
        if header.height != self._head.ref.height + 1 or header.parent != self._head.ref.hash:
            raise LocalProtocolError(
                f"log: got beacon block {header.height}, expected {self._head.ref.height + 1} on the one before"
            )
        crosslinks = decode_beacon_body(self._genesis, record.block).crosslinks
        return self._complete(record.block, record.proof, crosslinks, record.bundles)

    # --- following ---

    def _keep_ahead(self, item: _Ahead) -> None:
        height = item.block.header.height
        if height > self._head.ref.height + MAX_BLOCKS_AHEAD or height in self._ahead:
            return  # a range will bring it; the first one at a height stays until it is judged
        if height > self._head.ref.height + 1:  # the next one is judged as soon as may be
            item.size = len(encode(item.block)) + len(encode(item.proof))
            if item.size + sum(held.size for held in self._ahead.values()) > MAX_ANNOUNCED_BYTES:
                return
        self._ahead[height] = item

    def _advance(self) -> list[FollowerOutput]:
        """Complete as many beacon blocks as possible; leave the first that lacks bundles as pending."""
        outputs: list[FollowerOutput] = []
        while not self.is_paused:
            if self._pending is None:
                item = self._ahead.pop(self._head.ref.height + 1, None)
                if item is None:
                    break
                try:
                    self._pending = self._open(item)
                except RemoteProtocolError as error:
                    # What was completed before must still be told; the block itself is asked for again.
                    outputs.append(build_refusal(self._shard, item.sender, error))
                    break
                if not self._is_complete(self._pending):
                    outputs.extend(self._await_bundles(self._pending.block.header.height))
            pending = self._pending
            if not self._is_complete(pending):
                break
            bundles = tuple(
                pending.bundles[wanted.crosslink, wanted.src][wanted.consumed :] for wanted in pending.wanted
            )
            self._pending = None
            outputs.append(Persist((BeaconRecord(pending.block, pending.proof, bundles),)))
            outputs.append(self._complete(pending.block, pending.proof, pending.crosslinks, bundles))
            self._has_progressed = True
            if self._idle_rounds:
                self._idle_rounds = 0
                outputs.append(self._schedule())
        return outputs

    @staticmethod
    def _is_complete(pending: _Pending) -> bool:
        return len(pending.bundles) == len(pending.wanted)

    def _open(self, item: _Ahead) -> _Pending:
        """Verify the next beacon block and match it with the bundles that came early."""
        block = item.block
        if block.header.parent != self._head.ref.hash:
            raise InvalidBlockError(f"beacon block {block.header.height}: not a child of the one followed")
        if not item.is_proven:
            proven = verify_finality_proof(self._crypto, self._domain, self._committee, item.proof)
            if proven.hash != block.hash:
                raise InvalidProofError(f"beacon block {block.header.height}: the proof is another block's")
        body = self._read_body(item)
        wanted = self._list_wanted(body.crosslinks, self._head.inbox_length)
        # The rest came beside header and body: the log gets the proven justification, and no signature, which nobody needs.
        proven_block = Block(block.header, item.proof.path[0].justification, block.body, b"", b"")
        pending = _Pending(proven_block, item.proof, body.crosslinks, wanted, {})
        for want in wanted:
            receipts = self._early.take((want.crosslink, want.src))
            if receipts is not None and is_bundle_valid(want.link, receipts):
                pending.bundles[want.crosslink, want.src] = receipts
        return pending

    def _read_body(self, item: _Ahead) -> BeaconBody:
        item.body = item.body or decode_beacon_body(self._genesis, item.block)
        return item.body

    def _list_wanted(self, crosslinks: Sequence[Crosslink], length: int) -> tuple[_Wanted, ...]:
        """Return the links to this shard, in visit order, that the shard has not consumed wholly; ``length`` is the inbox's
        before them.
        """
        found: list[_Wanted] = []
        for crosslink in crosslinks:
            for link in crosslink.links:
                if link.dst == self._shard:
                    consumed = min(max(self._pruned - length, 0), link.count)
                    length += link.count
                    if consumed < link.count:
                        found.append(_Wanted(crosslink.hash, crosslink.shard, link, consumed))
        return tuple(found)

    def _count_receipts(self, crosslinks: Sequence[Crosslink]) -> int:
        return sum(
            link.count for crosslink in crosslinks for link in crosslink.links if link.dst == self._shard
        )

    def _complete(
        self,
        block: Block,
        proof: FinalityProof,
        crosslinks: tuple[Crosslink, ...],
        bundles: Sequence[tuple[bytes, ...]],
    ) -> BeaconFollowed:
        receipts = tuple(receipt for bundle in bundles for receipt in bundle)
        fees = dict(self._head.link_base_fees)
        own = (self._head.crosslink, self._head.crosslink_height, self._head.crosslink_head)
        for crosslink in crosslinks:
            fees[crosslink.shard] = crosslink.base_fee
            if crosslink.shard == self._shard:
                own = (crosslink.hash, crosslink.last_height, crosslink.head_hash)
        header = block.header
        self._head = BeaconView(
            ref=BeaconRef(height=header.height, hash=header.hash, epoch=header.epoch),
            inbox_length=self._head.inbox_length + self._count_receipts(crosslinks),
            link_base_fees=tuple(sorted(fees.items())),
            proof=encode(proof),
            crosslink=own[0],
            crosslink_height=own[1],
            crosslink_head=own[2],
        )
        self._views[header.height] = self._head
        if header.height <= self._skipped_to:
            self._drop_views(header.height)
        self._receipts.extend(receipts)
        self._gas.extend(compute_delivery_gas(decode_receipt(receipt)) for receipt in receipts)
        self._inbox_bytes += sum(len(receipt) for receipt in receipts)
        for height in [height for height in self._ahead if height <= header.height]:
            del self._ahead[height]
        self._under_way -= {(crosslink.hash, crosslink.shard) for crosslink in crosslinks}
        return BeaconFollowed(self._head, crosslinks, receipts)

    # --- asking ---

    def _schedule(self) -> SetTimer:
        """Return the next look at what is missing: two block times, doubling while the beacon is silent."""
        factor = min(2 << min(self._idle_rounds, 8), MAX_BACKOFF)
        return SetTimer(FOLLOW_TIMER, factor * self._genesis.preset.block_time_ms)

    def _note_node(self, node: NodeId) -> None:
        """Remember whom to ask: all who tell of final beacon blocks, the newest ones where there are many.

        Whoever told only of blocks far ahead counts as well: else a replica that missed one block knows nobody but the first
        beacon node, which may be silent. A node has one place here, whatever it sends.
        """
        if node not in self._beacon_nodes:
            self._beacon_nodes.append(node)
            if len(self._beacon_nodes) > MAX_BEACON_NODES:
                del self._beacon_nodes[0]

    def _choose_node(self) -> NodeId:
        self._attempts += 1
        return self._beacon_nodes[self._attempts % len(self._beacon_nodes)]

    def _note_height(self, height: int) -> list[FollowerOutput]:
        """Remember how far the beacon is. It speaks again: what was asked while it was silent may be lost, so look soon."""
        is_news = height > self._known_height
        self._known_height = max(self._known_height, height)
        if not is_news or not self._idle_rounds:
            return []
        self._idle_rounds = 0
        return [self._schedule()]

    def _is_behind(self) -> bool:
        return (
            self._head.ref.height < self._known_height and self._pending is None and not self._range_pending
        )

    def _find_gap(self) -> Height:
        """Return the first height above the head of which no proven block is held."""
        height = self._head.ref.height + (self._pending is not None) + 1
        while (item := self._ahead.get(height)) is not None and item.is_proven:
            height += 1
        return Height(height)

    def _ask_on(self) -> list[FollowerOutput]:
        """Ask for the blocks behind those that are held before these are used up: no more than a range of them is left."""
        first = self._find_gap()
        is_wanted = first <= self._known_height and first - 1 <= self._head.ref.height + RANGE_COUNT
        return self._request_range() if is_wanted and not self._range_pending else []

    def _request_range(self) -> list[FollowerOutput]:
        if self.is_paused:
            return []
        self._range_pending = self._is_range_fresh = True
        self._heard.clear()
        self._asked = self._choose_node()
        request = RangeRequest(shard=BEACON, first_height=self._find_gap(), count=RANGE_COUNT)
        return [Send(self._asked, request)]

    def _await_bundles(self, height: int) -> list[FollowerOutput]:
        """Give fresh announcements a moment; the bundles of an old block come only when asked for, so ask at once."""
        if height + 1 < self._known_height:
            return [*self._request_bundles(is_old=True), *self._request_bundles_ahead()]
        return [SetTimer(BUNDLE_TIMER, 2 * self._genesis.preset.delta_ms)]

    def _request_bundles(self, *, is_old: bool = False) -> list[FollowerOutput]:
        if self._pending is None:
            return []
        self._bundle_rounds += not is_old
        outputs: list[FollowerOutput] = []
        for wanted in self._pending.wanted:
            key = (wanted.crosslink, wanted.src)
            if key in self._pending.bundles or (is_old and key in self._under_way):
                continue  # what does not come is asked for when the timer fires
            # X10: beacon and source both serve it; every third time ask the source, which keeps no old ones.
            is_of_source = self._bundle_rounds % 3 == 0 and not is_old
            node = NodeId(f"shard-{wanted.src}-0") if is_of_source else self._choose_node()
            outputs.append(self._request_bundle(node, wanted))
        outputs.append(SetTimer(BUNDLE_TIMER, 4 * self._genesis.preset.delta_ms))
        return outputs

    def _request_bundles_ahead(self) -> list[FollowerOutput]:
        """Ask for what the blocks behind the pending one will want, once: one after the other they would cost a round trip each.

        What is lost on the way is asked for again a while after its block has become the next, what was dropped for want of room
        or was not its link's at once.
        """
        assert self._pending is not None, "somebody waits"
        height = int(self._pending.block.header.height)
        length = self._head.inbox_length + self._count_receipts(self._pending.crosslinks)
        outputs: list[FollowerOutput] = []
        count = size = 0
        while (item := self._ahead.get(height := height + 1)) is not None and item.is_proven:
            try:
                crosslinks = self._read_body(item).crosslinks
            except RemoteProtocolError:
                break  # it is refused when it is the next
            wanted = self._list_wanted(crosslinks, length)
            length += self._count_receipts(crosslinks)
            count += len(wanted)
            size += sum(want.link.bytes for want in wanted)
            if height <= self._fetched_to:
                continue
            if count > MAX_FETCHED_AHEAD or size > MAX_FETCHED_BYTES:
                break
            self._fetched_to = height
            for want in wanted:
                key = (want.crosslink, want.src)
                if key not in self._early:
                    self._under_way.add(key)
                    outputs.append(self._request_bundle(self._choose_node(), want))
        return outputs

    def _request_bundle(self, node: NodeId, wanted: _Wanted) -> Send:
        return Send(node, BundleRequest(crosslink=wanted.crosslink, src=wanted.src, dst=self._shard))


def build_refusal(shard: ShardId, sender: NodeId, error: RemoteProtocolError) -> Notice:
    """Return the notice that ``sender``'s message was refused, and why."""
    return Notice("refused", shard, {"sender": sender, "error": type(error).__name__, "reason": str(error)})
