"""The beacon coordinator: hosts a finality engine, puts crosslinks into its blocks, and hands out what became final.

Its blocks order all cross-shard messages (X5), and only what a *final* beacon block carries is delivered (X6). Leaders
include crosslinks whose bodies they hold; voters fetch what they miss, and lack of it only withholds their votes (X10).
Whatever a peer sends is checked behind one border: a ``RemoteProtocolError`` becomes a ``refused`` notice, and the beacon
goes on (X4: nothing a shard sends can halt it).
"""

import contextlib
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from crosslink.availability import BodyStore, NoSubmissionSource, SubmissionSource
from crosslink.fetching import FETCH_TIMER, BodyFetcher
from crosslink.ledger import Ledger
from crosslink.rejoins import REJOIN_TIMER, RejoinPool
from crosslink.reports import (
    describe_block,
    describe_crosslink,
    describe_invalid,
    describe_messages,
    describe_refusal,
)
from crosslink.state import BeaconState, CrosslinkFacts, SupplyTable
from crosslink.validity import AheadError, CheckedSubmission, check_submission, read_bodies, verify_position
from shardyard.blocks import Block, BlockKind, FinalityProof
from shardyard.consensus.engine import (
    TIMER_PREFIX,
    BlockAbandoned,
    BlockFinal,
    BlockNotarized,
    BlockSource,
    EngineConfig,
    EngineOutput,
    FinalityEngine,
    RequestBuild,
    RequestValidation,
)
from shardyard.consensus.finals import MAX_RANGE_BLOCKS
from shardyard.consensus.simplex import SimplexEngine
from shardyard.consensus.votes import Crypto
from shardyard.crosslinks import Bundle, Crosslink, CrosslinkSubmission
from shardyard.effects import (
    Broadcast,
    Effect,
    Finalise,
    Persist,
    Record,
    Send,
    SubmissionRecord,
)
from shardyard.errors import InvalidBlockError, InvalidCrosslinkError, LocalProtocolError, RemoteProtocolError
from shardyard.events import Event, MessageReceived, Signed, Started, TimerFired
from shardyard.genesis import Genesis
from shardyard.ids import BEACON, Hash32, NodeId, ShardId
from shardyard.messages import (
    BlockRequest,
    BlockResponse,
    BundleAnnouncement,
    BundleRequest,
    Certificates,
    CrosslinkRequest,
    FinalBlock,
    Proposal,
    RangeRequest,
    RangeResponse,
    Rejoins,
    Status,
    SubmitCrosslink,
    Votes,
)
from shardyard.rejoins import Rejoin

MAX_WAITING_BLOCKS: Final = 64
"""Blocks whose validation waits for bodies; above it the oldest is never voted for."""

EngineFactory = Callable[[EngineConfig, Crypto, BlockSource], FinalityEngine]
_ENGINE_MESSAGES = (
    Proposal,
    Votes,
    Certificates,
    BlockRequest,
    BlockResponse,
    RangeRequest,
    FinalBlock,
    Status,
)


class BeaconMachine:
    """The machine of one beacon replica, with any number of local validator keys."""

    def __init__(
        self,
        genesis: Genesis,
        crypto: Crypto,
        local_validators: Sequence[int],
        blocks: BlockSource,
        *,
        build_engine: EngineFactory = SimplexEngine,
        submissions: SubmissionSource | None = None,
        rejoins: Sequence[Rejoin] = (),
    ) -> None:
        """``rejoins`` are those of local keys whose signer record was lost."""
        self._genesis = genesis
        self._crypto = crypto
        self._submissions = submissions or NoSubmissionSource()
        config = EngineConfig(
            shard=BEACON,
            domain=genesis.get_domain(BEACON),
            committee=genesis.committees[BEACON],
            local_validators=tuple(local_validators),
            genesis=genesis.beacon_block,
            block_time_ms=genesis.preset.block_time_ms,
            delta_ms=genesis.preset.delta_ms,
            max_step_ms=genesis.preset.max_step_ms,
        )
        self.engine = build_engine(config, crypto, blocks)
        self._bodies = BodyStore()
        self._ledger = Ledger(
            genesis, crypto, self._bodies, self.engine.get_block, self.engine.get_final_block
        )
        self._rejoins = RejoinPool(genesis, crypto, rejoins)
        self._waiting_builds: list[RequestBuild] = []
        self._waiting_blocks: OrderedDict[Hash32, RequestValidation] = OrderedDict()
        self._fetcher = BodyFetcher(genesis.preset)
        self._old: set[Hash32] = set()
        """Blocks that came by a range and are not final here yet: others were told of them long ago."""

    @property
    def state(self) -> BeaconState:
        """State after the last final beacon block whose bodies are here: shard entries, inboxes, supply."""
        return self._ledger.final_state

    @property
    def final_block(self) -> Block:
        """The block of ``state``."""
        return self._ledger.final_block

    def get_supply(self) -> SupplyTable:
        """Return where all wei are at ``final_block`` (I1)."""
        return self.state.get_supply()

    def get_submission(self, crosslink: Hash32) -> CrosslinkSubmission | None:
        """Return the submission behind a crosslink hash, from memory or from the log."""
        checked = self._bodies.get(crosslink)
        return checked.submission if checked is not None else self._submissions.get_submission(crosslink)

    def get_bundle(self, crosslink: Hash32, dst: ShardId) -> Bundle | None:
        """Return the receipts of a crosslink to ``dst``, from memory or from the log."""
        bundle = self._bodies.get_bundle(crosslink, dst)
        if bundle is not None or crosslink in self._bodies:
            return bundle
        submission = self._submissions.get_submission(crosslink)
        if submission is None:
            return None
        return next((found for found in read_bodies(submission).bundles if found.dst == dst), None)

    def recover(self, records: Iterable[Record]) -> None:
        """Take over the chain's log before ``Started``: the same records give the same state.

        They are taken one by one, and bodies are kept for as long as the beacon may still accept them.
        """
        logged: dict[Hash32, CrosslinkSubmission] = {}
        for record in records:
            if isinstance(record, SubmissionRecord):
                logged[record.submission.crosslink.hash] = record.submission
            final = self.engine.recover(record)
            if final is None:
                continue
            for crosslink in self._ledger.read_crosslinks(final.block):
                self._restore(logged.pop(crosslink.hash, None))
            self._apply_final(final.block)
            logged = {key: held for key, held in logged.items() if self._is_ahead(held.crosslink)}
        for submission in logged.values():
            if self._is_ahead(submission.crosslink):
                self._restore(submission)

    def _is_ahead(self, crosslink: Crosslink) -> bool:
        return crosslink.first_height > self.state.shards[crosslink.shard].last_height

    def _restore(self, submission: CrosslinkSubmission | None) -> None:
        if submission is not None:
            checked = read_bodies(submission)
            self._bodies.mark_logged(checked.facts.hash)
            self._bodies.add(checked)

    def step(self, event: Event, now_ms: int) -> list[Effect]:
        """Take one event; returns the effects it asks for, in order. Raises nothing for what a peer sent."""
        try:
            return self._dispatch(event, now_ms)
        except RemoteProtocolError as error:
            return [describe_refusal(event, error)]

    def _dispatch(self, event: Event, now_ms: int) -> list[Effect]:
        match event:
            case Started():
                return self._run(self.engine.start(now_ms), now_ms) + self._rejoins.start()
            case MessageReceived():
                return self._on_message(event, now_ms)
            case TimerFired(name=name) if name.startswith(TIMER_PREFIX):
                return self._run(self.engine.on_timer(name, now_ms), now_ms)
            case TimerFired(name=name) if name == FETCH_TIMER:
                return self._fetch_again(now_ms)
            case TimerFired(name=name) if name == REJOIN_TIMER:
                return self._rejoins.start()
            case Signed(votes=votes):
                return self._run(self.engine.on_signed(votes, now_ms), now_ms)
            case _:
                return []  # the beacon executes no blocks; stale timers do nothing

    def _on_message(self, event: MessageReceived, now_ms: int) -> list[Effect]:
        match event.message:
            case SubmitCrosslink(submission=submission):
                return self._on_submission(submission, now_ms)
            case CrosslinkRequest(crosslink=crosslink):
                held = self.get_submission(crosslink)
                return [] if held is None else [Send(event.sender, SubmitCrosslink(held))]
            case BundleRequest(crosslink=crosslink, src=src, dst=dst):
                bundle = self.get_bundle(crosslink, dst)
                if bundle is None or bundle.src != src:
                    return []
                return [Send(event.sender, BundleAnnouncement(bundle))]
            case Rejoins(rejoins=rejoins) if event.chain == BEACON:
                self._rejoins.add(event.sender, rejoins)
                return []
            case RangeRequest(shard=shard) as request if shard == BEACON and event.chain != BEACON:
                # Shards follow the beacon, and ask for its blocks by their own chain's topics.
                return self._run(self.engine.on_message(event.sender, request, now_ms), now_ms)
            case RangeResponse() as response if event.chain == BEACON:
                return self._on_range_response(event.sender, response, now_ms)
            case message if isinstance(message, _ENGINE_MESSAGES) and event.chain == BEACON:
                return self._run(self.engine.on_message(event.sender, message, now_ms), now_ms)
            case _:
                return []  # a shard's own traffic

    def _on_range_response(self, sender: NodeId, response: RangeResponse, now_ms: int) -> list[Effect]:
        """Let the engine judge a range, and note what it took: a liar must not keep what is new from being announced."""
        hashes = [block.hash for block in response.blocks[:MAX_RANGE_BLOCKS]]
        unknown = [block_hash for block_hash in hashes if self.engine.get_block(block_hash) is None]
        outputs = self.engine.on_message(sender, response, now_ms)
        self._old.update(taken for taken in unknown if self.engine.get_block(taken) is not None)
        return self._run(outputs, now_ms)

    def _run(self, outputs: Iterable[EngineOutput], now_ms: int) -> list[Effect]:
        """Answer what the engine asks, first come first served: its outputs stay in the order in which it made them."""
        effects: list[Effect] = []
        queue = deque(outputs)
        while queue:
            answer: list[EngineOutput] = []
            match queue.popleft():
                case RequestBuild() as request:
                    answer = self._build(request, effects, now_ms)
                case RequestValidation() as request:
                    answer = self._validate(request, effects, now_ms)
                case BlockFinal(block=block, proof=proof):
                    effects += self._announce(block, proof, self._apply_final(block))
                case BlockAbandoned(block_hash=block_hash):
                    self._old.discard(block_hash)
                    self._ledger.forget(block_hash)
                    self._waiting_blocks.pop(block_hash, None)
                case BlockNotarized():
                    pass
                case effect:
                    effects.append(effect)
            queue.extend(answer)
        return effects

    def _build(self, request: RequestBuild, effects: list[Effect], now_ms: int) -> list[EngineOutput]:
        try:
            state = self._ledger.get_state(request.parent)
            missing = [] if state is not None else self._ledger.find_missing_above_final(request.parent)
        except InvalidBlockError as error:  # a quorum notarized what is invalid: no place to build on
            effects.append(describe_invalid(request.parent, error))
            return []
        if state is None:  # X10: a leader that cannot account for its parent proposes nothing yet
            self._waiting_builds = [request]
            effects += self._fetcher.want(missing)
            return []
        content, body, accepted = self._ledger.build(request.parent, state, self._rejoins.choose())
        effects += self._log_bodies(facts.hash for facts in accepted)
        header, justification = self.engine.build_header(
            request.slot, request.parent, BlockKind.NORMAL, request.timestamp_ms, content, body
        )
        block = Block(header=header, justification=justification, body=body, signature=b"", beacon_proof=b"")
        return self.engine.on_proposed(request.slot, block, now_ms)

    def _validate(self, request: RequestValidation, effects: list[Effect], now_ms: int) -> list[EngineOutput]:
        block = request.block
        try:
            missing = self._find_missing(request)
            if missing is not None:  # L2: pending, not invalid
                self._waiting_blocks[block.hash] = request
                if len(self._waiting_blocks) > MAX_WAITING_BLOCKS:
                    self._waiting_blocks.popitem(last=False)
                effects += self._fetcher.want(missing)
                effects += self._fetch_ahead(request)
                return []
            crosslinks = self._ledger.read_crosslinks(block)
        except InvalidBlockError as error:
            effects.append(describe_invalid(block, error))
            return self.engine.on_validated(block.hash, valid=False, reason=str(error), now_ms=now_ms)
        effects += self._log_bodies(crosslink.hash for crosslink in crosslinks)  # S5: bodies before the vote
        return self.engine.on_validated(block.hash, valid=True, reason="", now_ms=now_ms)

    def _fetch_ahead(self, request: RequestValidation) -> list[Effect]:
        """G1: ask for the bodies of the final blocks behind one that waits for its own."""
        missing: list[Crosslink] = []
        with contextlib.suppress(InvalidBlockError):  # it is refused when it is the next
            for block in request.ahead:
                missing += self._ledger.find_missing(block)
        return [] if request.source is None else self._fetcher.want_ahead(missing, request.source)

    def _find_missing(self, request: RequestValidation) -> list[Crosslink] | None:
        """Return the bodies that validation lacks, or None when the block is executed and valid.

        Raises ``InvalidBlockError``.
        """
        block, parent = request.block, request.parent
        if block.header.height <= self.final_block.header.height:
            final = self.engine.get_final_block(block.header.height)
            if final is None or final.hash != block.hash:
                raise InvalidBlockError(f"beacon block {block.header.height}: it conflicts with a final one")
            return None
        missing = self._ledger.find_missing(block)
        state = self._ledger.get_state(parent)
        if state is None:
            return missing + self._ledger.find_missing_above_final(parent)
        if missing:
            return missing
        self._ledger.execute(parent, state, block)
        return None

    def _log_bodies(self, crosslinks: Iterable[Hash32]) -> list[Effect]:
        fresh = self._bodies.take_unlogged(crosslinks)
        return [Persist(tuple(SubmissionRecord(submission) for submission in fresh))] if fresh else []

    def _apply_final(self, block: Block) -> list[CrosslinkFacts]:
        try:
            missing = self._ledger.find_missing(block)
            if not missing:
                return self._ledger.apply_final(block)
        except InvalidBlockError as error:
            raise LocalProtocolError(f"the engine finalised an invalid beacon block: {error}") from error
        # An engine finalises only what its host found valid, and that rests in the log (S5).
        raise LocalProtocolError(
            f"final beacon block {block.header.height}: {len(missing)} bodies are missing"
        )

    def _announce(self, block: Block, proof: FinalityProof, accepted: list[CrosslinkFacts]) -> list[Effect]:
        effects: list[Effect] = [Finalise(block, proof)]
        self._rejoins.on_final(self._ledger.read_body(block).rejoins)
        is_new = block.hash not in self._old  # old blocks are fetched by whoever needs them
        self._old.discard(block.hash)
        if is_new:
            effects.append(Broadcast(FinalBlock(block=block, proof=proof)))
        effects.append(describe_block(block, self.state))
        for facts in accepted:
            checked = self._bodies.get(facts.hash)
            assert checked is not None, "bodies of a final crosslink are held"
            if is_new:
                effects += [Broadcast(BundleAnnouncement(bundle)) for bundle in checked.bundles]
            effects.append(describe_crosslink(block, checked))
            effects += describe_messages(block, checked)
        return effects

    def _on_submission(self, submission: CrosslinkSubmission, now_ms: int) -> list[Effect]:
        crosslink = submission.crosslink
        key = crosslink.hash
        if key in self._bodies:
            return []  # a resubmission
        is_wanted = key in self._fetcher
        if not is_wanted and (self._is_stale(crosslink) or self._bodies.has_twin(crosslink)):
            return []
        if not is_wanted:
            self._verify_parent(crosslink)
        checked = check_submission(self._genesis, self._crypto, submission)
        if not is_wanted:
            self._verify_at_tip(checked)
        self._bodies.add(checked, is_wanted=is_wanted)
        self._fetcher.on_received(key)
        return self._resume(now_ms)

    def _is_stale(self, crosslink: Crosslink) -> bool:
        shards = self.state.shards
        return (
            0 <= crosslink.shard < len(shards)
            and crosslink.first_height <= shards[crosslink.shard].last_height
        )

    def _verify_parent(self, crosslink: Crosslink) -> None:
        """Refuse a wrong parent before anything is verified: nobody signs it, so there are as many as somebody cares to send."""
        if not 0 <= crosslink.shard < len(self.state.shards):
            return  # refused with the rest of its shape
        entry = self.state.shards[crosslink.shard]
        if crosslink.first_height == entry.last_height + 1 and crosslink.parent != entry.crosslink:
            raise InvalidCrosslinkError(
                f"crosslink of shard {crosslink.shard}: its parent is not the final crosslink"
            )

    def _verify_at_tip(self, checked: CheckedSubmission) -> None:
        """Refuse now what no block on the tip could carry, unless it may only be early."""
        facts = checked.facts
        crosslink = facts.crosslink
        tip = self.engine.notarized_tip
        state = self._ledger.get_state(tip)
        if state is None or state.shards[crosslink.shard].crosslink != crosslink.parent:
            return
        try:
            verify_position(self._genesis, state, facts, self._ledger.build_find_ref(tip))
        except AheadError:
            return

    def _resume(self, now_ms: int) -> list[Effect]:
        """Try again what waited for bodies: votes first, then the own proposal."""
        waiting, self._waiting_blocks = self._waiting_blocks, OrderedDict()
        effects = self._run(waiting.values(), now_ms)
        builds, self._waiting_builds = self._waiting_builds, []
        effects += self._run([build for build in builds if build.slot >= self.engine.slot], now_ms)
        if not self._waiting_blocks and not self._waiting_builds:
            self._fetcher.forget()
        return effects + self._fetcher.settle()

    def _fetch_again(self, now_ms: int) -> list[Effect]:
        self._fetcher.turn()
        return self._resume(now_ms) + self._fetcher.schedule()
