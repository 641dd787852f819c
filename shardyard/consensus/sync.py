"""Catch-up inside an engine: asks for what is missing, answers what others miss, checks every answer.

A replica that lags by a few blocks fetches them by hash from those who sent the certificates (L9), and a proposal that it
missed from those who voted for it (L10); one that was away asks for ranges of final blocks from whoever says it is ahead.
One that starts asks the first peer that it hears. An answer counts only if this node asked its sender for it; blocks of a
range are checked by hash chain and the finality proof of the last one before any is kept.
"""

from shardyard.blocks import Block, FinalityProof
from shardyard.consensus.catchup import Fetcher, Peers, RangeSync
from shardyard.consensus.certificates import CertificateStore, CertificateVerifier
from shardyard.consensus.engine import EngineConfig
from shardyard.consensus.finals import MAX_RANGE_BLOCKS, FinalChain
from shardyard.consensus.justify import check_block
from shardyard.consensus.pacing import TIMER_FETCH, TIMER_RANGE
from shardyard.consensus.proofs import verify_proof_with
from shardyard.consensus.tree import BlockTree
from shardyard.consensus.votes import Vote, VoteKind
from shardyard.effects import Effect, Send, SetTimer
from shardyard.errors import InvalidBlockError, InvalidProofError, RemoteProtocolError, UnsolicitedError
from shardyard.ids import Hash32, Height, NodeId
from shardyard.messages import BlockRequest, BlockResponse, RangeRequest, RangeResponse, Status

MAX_REQUEST_HASHES = 16
"""Blocks one request may name."""
MAX_RESPONSE_BYTES = 8 * 1024 * 1024
RANGE_BLOCKS = 8
"""Blocks asked for at a time: every one of them gets a final record with the path to the last, so more would swell the log."""
LARGE_LAG = 4
"""Blocks behind from which a range is asked for at once; a smaller gap usually closes by itself."""


class Sync:
    """Requests under way and answers to give for one chain."""

    def __init__(
        self,
        config: EngineConfig,
        verifier: CertificateVerifier,
        certificates: CertificateStore,
        tree: BlockTree,
        finals: FinalChain,
    ) -> None:
        self._config = config
        self._verifier = verifier
        self._certificates = certificates
        self._tree = tree
        self._finals = finals
        self._tick_ms = 2 * config.delta_ms
        self._peers = Peers()
        self._fetcher = Fetcher(self._peers, self._tick_ms)
        self._range = RangeSync()
        self._range_until = 0
        self._has_asked_range = False
        self._has_followed = False
        """The last question about a range brought more new blocks than nodes usually miss."""
        self._is_fetch_ticking = False
        self._is_range_ticking = False

    def note_peer(self, node: NodeId) -> None:
        """Remember a node of this chain as a possible source."""
        self._peers.note(node)

    # By hash

    def want(self, block_hash: Hash32, slot: int, source: NodeId | None, *, is_urgent: bool) -> None:
        """L9: fetch a block; one that is not urgent gets Δ to arrive by itself."""
        self._fetcher.want(block_hash, slot, source, 0 if is_urgent else self._config.delta_ms)

    def note_vote(self, vote: Vote, source: NodeId) -> bool:
        """L10: fetch what ``source`` votes for in a slot whose proposal did not come within Δ; tell whether that is new."""
        if vote.kind is not VoteKind.NOTAR or self._tree.get_at_slot(vote.slot):
            return False
        return self._fetcher.want_voted(vote.block_hash, vote.slot, source, self._config.delta_ms)

    def is_voted(self, block_hash: Hash32) -> bool:
        """Tell whether votes alone speak for a block: it counts as its leader's proposal, and must be one."""
        return self._fetcher.is_voted(block_hash)

    def pass_over(self, block_hash: Hash32, sender: NodeId) -> None:
        """L10: note that ``sender`` holds a block without its leader's signature, which is no fault; others are asked."""
        self._fetcher.pass_over(block_hash, sender)

    def drop(self, block_hash: Hash32) -> None:
        """End the fetch of a block that is held now."""
        self._fetcher.drop(block_hash)

    def on_fetch_timer(self) -> list[Effect]:
        """Ask again, or somebody else."""
        self._is_fetch_ticking = False
        return self.poll_fetch(self._config.delta_ms)

    def poll_fetch(self, elapsed_ms: int = 0) -> list[Effect]:
        """Return the requests that are due, and the timer for the next ones."""
        effects: list[Effect] = []
        for peer, hashes in self._fetcher.poll(elapsed_ms).items():
            for at in range(0, len(hashes), MAX_REQUEST_HASHES):
                chosen = tuple(hashes[at : at + MAX_REQUEST_HASHES])
                effects.append(Send(peer, BlockRequest(shard=self._config.shard, hashes=chosen)))
        if len(self._fetcher) and not self._is_fetch_ticking:
            self._is_fetch_ticking = True
            effects.append(SetTimer(TIMER_FETCH, self._config.delta_ms))
        return effects

    def answer_blocks(self, sender: NodeId, request: BlockRequest) -> list[Effect]:
        """A3: serve block, justification and notarization of whatever is held, within the caps."""
        blocks: list[Block] = []
        notarizations = []
        size = 0
        for block_hash in request.hashes[:MAX_REQUEST_HASHES]:
            block = self._find(block_hash)
            if block is None or (blocks and size + len(block.body) > MAX_RESPONSE_BYTES):
                continue
            blocks.append(block)
            size += len(block.body)
            notarization = self._certificates.get_notarization(block.header.slot, block_hash)
            if notarization is not None:
                notarizations.append(notarization)
        if not blocks:
            return []
        return [Send(sender, BlockResponse(self._config.shard, tuple(blocks), tuple(notarizations)))]

    def accept_blocks(self, sender: NodeId, response: BlockResponse) -> list[Block]:
        """Return the blocks of an answer; raises ``UnsolicitedError`` for one that nobody asked for."""
        for block in response.blocks:
            if not self._fetcher.is_asked(block.hash, sender):
                raise UnsolicitedError(f"block {block.hash.hex()[:16]}: {sender} was not asked for it")
            check_block(block, self._config.domain, self._config.committee)
        return list(response.blocks)

    # By height

    def on_status(self, sender: NodeId, status: Status) -> list[Effect]:
        """Note how far ``sender`` is."""
        self._range.note(sender, status.final_height)
        if self._has_asked_range:
            return self.poll_range()
        # What was said while this process was away is not repeated, and a status may be a block time old: the first peer
        # is asked for whatever follows, or the next proposal would come before its parent and be voted on too late.
        height = self._finals.tip.header.height
        self._range.ask(sender, height)
        return [self._request_range(sender, height), *self._tick_range()]

    def note_height(self, sender: NodeId, height: int) -> None:
        """Note that ``sender`` speaks of a final block at ``height``."""
        self._range.note(sender, height)

    @property
    def is_following(self) -> bool:
        """Whether a range brought ``LARGE_LAG`` new blocks and the next one is waited for: the chain is ahead of this node.

        Claims alone never make it so, and one question that is not answered in time ends it.
        """
        return self._has_followed and self._range.is_waiting

    def poll_range(self) -> list[Effect]:
        """Ask for a range when this node lags and the last answer is used up."""
        height = self._finals.tip.header.height
        lag = self._range.get_lag(height)
        if height < self._range_until or self._range.is_waiting:
            return []
        if lag < LARGE_LAG:
            self._has_followed = False
            return self._tick_range() if lag else []
        return [*self._ask_range(height), *self._tick_range()]

    def on_range_timer(self) -> list[Effect]:
        """The answer did not come in time, or a small gap did not close: ask, and next time somebody else."""
        self._is_range_ticking = False
        height = self._finals.tip.header.height
        # Else the last answer is still being executed, and nobody was waited for.
        if self._range.is_waiting or height >= self._range_until:
            self._has_followed = False
        self._range.give_up()
        if self._range.get_lag(height) == 0:
            self._range.settle()
            return []
        asked = self._ask_range(height) if height >= self._range_until else []
        return [*asked, *self._tick_range()]

    def answer_range(self, sender: NodeId, request: RangeRequest) -> list[Effect]:
        """Serve final blocks."""
        return [Send(sender, self._finals.answer_range(request))]

    def accept_range(
        self, sender: NodeId, response: RangeResponse
    ) -> tuple[list[Block], FinalityProof] | None:
        """Return the new blocks of an answer and the proof of the last; None when there is nothing new.

        Raises ``UnsolicitedError`` when nothing was asked of ``sender``, ``RemoteProtocolError`` when the blocks are no
        chain on the final block or the proof does not prove the last one.
        """
        first = self._range.accept(sender)
        if first is None:
            raise UnsolicitedError(f"range of final blocks: {sender} was not asked for one")
        if not response.blocks or response.proof is None:
            self._give_up_on(sender)
            return None
        try:
            blocks = self._check_range(response.blocks, response.proof, first)
        except RemoteProtocolError:
            self._give_up_on(sender)
            raise
        if not blocks or blocks[-1].header.height <= self._range_until:
            return None  # another peer's answer was faster
        self._settle()
        self._has_followed = len(blocks) >= LARGE_LAG
        self._range_until = blocks[-1].header.height
        return blocks, response.proof

    def _give_up_on(self, sender: NodeId) -> None:
        self._range.forget(sender)
        self._settle()

    def _settle(self) -> None:
        self._range.settle()
        self._is_range_ticking = self._has_followed = False  # the next request sets the timer anew

    def abandon_range(self, sender: NodeId) -> None:
        """The blocks of an answer proved unusable: ask somebody else."""
        self._range_until = 0
        self._has_followed = False
        self._range.forget(sender)

    def prune(self, floor: int) -> None:
        """End what concerns slots up to ``floor``."""
        self._fetcher.prune(floor)

    def _check_range(self, blocks: tuple[Block, ...], proof: FinalityProof, first: int) -> list[Block]:
        if len(blocks) > MAX_RANGE_BLOCKS:
            raise InvalidBlockError(f"range: got {len(blocks)} blocks, expected at most {MAX_RANGE_BLOCKS}")
        if blocks[0].header.height > first:
            raise InvalidBlockError(
                f"range: got blocks from height {blocks[0].header.height} on, expected them from {first} on"
            )
        if not proof.path or proof.path[0].header.hash != blocks[-1].hash:
            raise InvalidProofError("range: the proof is not the last block's")
        for above, below in zip(blocks[1:], blocks, strict=False):
            if above.header.parent != below.hash:
                raise InvalidBlockError(f"range: block {above.header.height} is no child of the one before")
        verify_proof_with(self._verifier.verify, self._config.domain, self._config.committee, proof)
        tip = self._finals.tip
        fresh = [block for block in blocks if block.header.height > tip.header.height]
        if fresh and fresh[0].header.parent != tip.hash:
            raise InvalidBlockError(f"range: block {fresh[0].header.height} does not extend the final block")
        for block in fresh:
            check_block(block, self._config.domain, self._config.committee)
        return fresh

    def _ask_range(self, height: int) -> list[Effect]:
        peer = self._range.choose(height)
        return [] if peer is None else [self._request_range(peer, height)]

    def _request_range(self, peer: NodeId, height: int) -> Send:
        self._has_asked_range = True
        self._is_range_ticking = False  # a question has a timeout of its own
        return Send(peer, RangeRequest(self._config.shard, Height(height + 1), RANGE_BLOCKS))

    def _tick_range(self) -> list[Effect]:
        if self._is_range_ticking:
            return []
        self._is_range_ticking = True
        return [SetTimer(TIMER_RANGE, self._tick_ms << self._range.rounds)]

    def _find(self, block_hash: Hash32) -> Block | None:
        entry = self._tree.get(block_hash)
        if entry is not None:
            return entry.block
        return self._finals.get_by_hash(block_hash)
