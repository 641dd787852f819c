"""The machine of one shard replica: hosts the engine, executes, follows the beacon, offers crosslinks.

The engine decides which blocks are final; this module decides what is in them and whether they are valid. A
block is validated when its parent is executed and its ``beacon_ref`` is followed completely; until then it
is pending, never invalid (L2). Execution is asked for and never awaited (M1): ``Execute`` and ``Build`` go
out, ``Executed`` and ``Built`` come back and may be stale. A final block is folded in strictly by height,
after its execution confirmed its header; blocks that became final before they were executed wait here in
order.

Recovery replays the chain's log: final blocks whose execution is on record are taken over up to
``recovered_height``, where the executor's state must be; what is final beyond it is executed again after
``Started``.

``step`` raises nothing for what a peer sent: it becomes a ``refused`` notice. A *final* block that does not
execute to its own header means that a quorum, more than two thirds of the stake, lied, or that this process is
broken: the machine halts. So it does when the beacon accepted a crosslink of another chain than this one.

A block's access list travels beside its proposal (B5). The engine knows nothing of it: this module puts it beside what
the engine broadcasts, and takes it from what peers send before the engine's wishes are followed.
"""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Final

import msgspec

from shards.access_lists import AccessListShelf
from shards.candidates import Candidate, Candidates, Progress, prepare_execution
from shards.inbox import (
    BeaconFollowed,
    BeaconFollower,
    BeaconView,
    FollowerOutput,
    build_refusal,
)
from shards.outbox import CrosslinkAssembler, find_heaviest_sender
from shards.policy import (
    BlockContext,
    compute_content,
    compute_env,
    compute_selection_bytes,
    verify_emission,
    verify_results,
)
from shards.recovery import Recovery
from shards.references import attach_proofs, strip_proofs
from shards.reports import describe_block
from shardyard.blocks import Block, BlockKind, FinalityProof, Header
from shardyard.consensus.engine import (
    TIMER_PREFIX,
    BlockAbandoned,
    BlockFinal,
    BlockNotarized,
    BlockSource,
    EngineConfig,
    EngineMessage,
    EngineOutput,
    FinalityEngine,
    RequestBuild,
    RequestValidation,
)
from shardyard.consensus.votes import Crypto
from shardyard.effects import (
    Adopt,
    Broadcast,
    Build,
    Discard,
    Effect,
    EnvSpec,
    Execute,
    ExecutionRecord,
    Finalise,
    Notice,
    Persist,
    Record,
    SetTimer,
)
from shardyard.errors import InvalidBlockError, RemoteProtocolError
from shardyard.events import (
    Built,
    Event,
    Executed,
    MessageReceived,
    Signed,
    Started,
    TimerFired,
)
from shardyard.genesis import Genesis
from shardyard.ids import BEACON, Hash32, Height, NodeId, ShardId
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
    Status,
    Votes,
)

OFFER_TIMER: Final = "outbox.offer"
OFFER_PERIOD: Final = 4
"""Block times between two looks at a crosslink in flight: is it to be offered once more?"""
MAX_WAITING_FINALS: Final = 128
"""Final blocks waiting for execution before catch-up stops to ask for more."""

EngineFactory = Callable[[EngineConfig, Crypto, BlockSource], FinalityEngine]


class Heads(msgspec.Struct, frozen=True):
    """The heads that JSON-RPC names: ``latest`` is shard-final, ``finalized`` beacon-final, ``tip``
    notarized.
    """

    latest_height: Height
    latest_hash: Hash32
    finalized_height: Height
    finalized_hash: Hash32
    tip_height: Height
    tip_hash: Hash32


class _Building(msgspec.Struct, frozen=True):
    """A block being built."""

    number: int
    request: RequestBuild
    env: EnvSpec
    view: BeaconView
    deliveries: tuple[bytes, ...]
    max_body_bytes: int


class ShardReplica:
    """The machine of one shard in one process, with any number of local validator keys."""

    def __init__(
        self,
        genesis: Genesis,
        shard: ShardId,
        crypto: Crypto,
        local_validators: Sequence[int],
        blocks: BlockSource,
        *,
        build_engine: EngineFactory,
    ) -> None:
        self._genesis = genesis
        self._shard = shard
        genesis_block = genesis.build_shard_block(shard)
        config = EngineConfig(
            shard=shard,
            domain=genesis.get_domain(shard),
            committee=genesis.committees[shard],
            local_validators=tuple(local_validators),
            genesis=genesis_block,
            block_time_ms=genesis.preset.block_time_ms,
            delta_ms=genesis.preset.delta_ms,
            max_step_ms=genesis.preset.max_step_ms,
        )
        self.engine = build_engine(config, crypto, blocks)
        self.follower = BeaconFollower(genesis, shard, crypto)
        self.assembler = CrosslinkAssembler(genesis, shard, self._find_final, config.local_validators)
        self._candidates = Candidates(genesis_block.header)
        self._access_lists = AccessListShelf(genesis.preset.max_access_list_bytes)
        self._has_distant_voters = len(config.local_validators) < len(config.committee)
        self._finals: deque[BlockFinal] = deque()
        self._wanted_build: RequestBuild | None = None
        self._building: _Building | None = None
        self._next_build = 0
        self._halt_notice: Notice | None = None
        self._effects: list[Effect] = []

    # --- what others read ---

    @property
    def heads(self) -> Heads:
        """Where this replica stands."""
        view, tip = self.follower.head, self.engine.notarized_tip
        is_known = view.crosslink_height <= self._base.height
        return Heads(
            latest_height=self._base.height,
            latest_hash=self._base.hash,
            finalized_height=view.crosslink_height if is_known else self._base.height,
            finalized_hash=view.crosslink_head if is_known else self._base.hash,
            tip_height=tip.header.height,
            tip_hash=tip.hash,
        )

    @property
    def recovered_height(self) -> Height:
        """Height of the last block folded in; after ``recover`` the executor's state must stand there."""
        return self._base.height

    def get_ancestors(self, block_hash: Hash32) -> list[Hash32]:
        """Return ``block_hash`` and its ancestors above the last block folded in, newest first."""
        return self._candidates.get_ancestors(block_hash)

    @property
    def _base(self) -> Header:
        return self._candidates.base

    # --- events ---

    def recover(
        self,
        records: Iterable[Record],
        *,
        base: Header | None = None,
        on_folded: Callable[[Header], None] = lambda _: None,
    ) -> None:
        """Replay the chain's log, in order, before ``Started``: the same records give the same heads.

        ``base`` heads the block of the last snapshot in it, if there is one; ``on_folded`` hears of each block folded in.
        """
        if base is not None:
            self.assembler.begin_after(base)

        def fold(header: Header, outbox: tuple[bytes, ...]) -> None:
            self._fold(header, outbox)
            on_folded(header)

        recovery = Recovery(
            self.engine,
            self.follower,
            base=base,
            begin_after=self._candidates.advance,
            follow=self._follow,
            fold=fold,
        )
        for record in records:
            recovery.take(record)
            self._effects = []  # what this says was said before the restart
        self._finals = recovery.finish()
        for final in self._finals:
            self._candidates.ensure(final.block)
        self._effects = []

    def step(self, event: Event, now_ms: int) -> list[Effect]:
        """Take one event; return what the driver shall do, in order."""
        if self._halt_notice is not None:
            return [self._halt_notice] if isinstance(event, Started) else []
        try:
            self._dispatch(event, now_ms)
            self._advance(now_ms)
        except RemoteProtocolError as error:
            sender = event.sender if isinstance(event, MessageReceived) else NodeId("")
            self._emit(build_refusal(self._shard, sender, error))
        effects, self._effects = self._effects, []
        return effects

    def _dispatch(self, event: Event, now_ms: int) -> None:
        match event:
            case Started():
                self._run(self.engine.start(now_ms), now_ms)
                self._absorb(self.follower.start())
                self._emit(SetTimer(OFFER_TIMER, OFFER_PERIOD * self._genesis.preset.block_time_ms))
            case MessageReceived():
                self._on_message(event, now_ms)
            case TimerFired(name=name) if name.startswith(TIMER_PREFIX):
                self._run(self.engine.on_timer(name, now_ms), now_ms)
            case TimerFired(name=name) if name == OFFER_TIMER:
                self._emit(*self.assembler.on_tick())
                self._emit(SetTimer(OFFER_TIMER, OFFER_PERIOD * self._genesis.preset.block_time_ms))
            case TimerFired(name=name):
                self._absorb(self.follower.on_timer(name))
            case Built():
                self._on_built(event, now_ms)
            case Executed():
                self._on_executed(event, now_ms)
            case Signed(votes=votes):
                self._run(self.engine.on_signed(votes, now_ms), now_ms)

    def _on_message(self, event: MessageReceived, now_ms: int) -> None:
        """Hand a message to the part it concerns, by the chain it speaks of rather than the topic it came by."""
        sender, follower = event.sender, self.follower
        match strip_proofs(event.message):
            case FinalBlock(block=block, proof=proof) if block.header.shard == BEACON:
                self._absorb(follower.on_final_block(sender, block, proof))
            case RangeResponse(shard=shard) as response if shard == BEACON:
                self._absorb(follower.on_range_response(sender, response))
            case Status(shard=shard, final_height=height) if shard == BEACON:
                self._absorb(follower.on_status(height))
            case BundleAnnouncement(bundle=bundle) if bundle.dst == self._shard:
                self._absorb(follower.on_bundle(sender, bundle))
            case BundleRequest() as request if request.src == self._shard:
                self._emit(*self.assembler.on_bundle_request(sender, request))
            case CrosslinkRequest(crosslink=crosslink):
                self._emit(*self.assembler.on_crosslink_request(sender, crosslink))
            case Proposal() as message if event.chain == self._shard:
                outputs = self.engine.on_message(sender, message, now_ms)
                self._keep_access_list(sender, message)
                self._run(outputs, now_ms)
            case (Votes() | Certificates()) as message if event.chain == self._shard:
                self._run(self.engine.on_message(sender, message, now_ms), now_ms)
            case FinalBlock() as message if message.block.header.shard == self._shard:
                self._catch_up(event, message, now_ms)
            case RangeResponse() as message if message.shard == self._shard:
                self._catch_up(event, message, now_ms)
            case (BlockRequest() | BlockResponse() | RangeRequest() | Status()) as message if (
                message.shard == self._shard
            ):
                self._run(self.engine.on_message(sender, message, now_ms), now_ms)
            case _:
                pass  # other chains' traffic, and transactions, which are the mempool's

    def _catch_up(self, event: MessageReceived, message: EngineMessage, now_ms: int) -> None:
        if len(self._finals) < MAX_WAITING_FINALS:  # else execution is behind; the engine will ask again
            self._run(self.engine.on_message(event.sender, message, now_ms), now_ms)

    # --- the engine's wishes ---

    def _emit(self, *effects: Effect) -> None:
        for effect in effects:
            last = self._effects[-1] if self._effects else None
            if isinstance(effect, Persist) and isinstance(last, Persist):
                self._effects[-1] = Persist((*last.records, *effect.records))  # one sync instead of two
            else:
                self._effects.append(effect)

    def _run(self, outputs: Iterable[EngineOutput], now_ms: int) -> None:
        """Answer what the engine asks, at once and depth first: effects keep the order of their causes."""
        for output in outputs:
            match output:
                case RequestBuild():
                    self._wanted_build, self._building = output, None
                    self._start_build()
                case RequestValidation(block=block):
                    self._on_validation_wanted(block, now_ms)
                case BlockNotarized(block=block):
                    self._emit(describe_block("block.notarized", block.header))
                case BlockFinal(block=block):
                    self._finals.append(output)
                    self._candidates.ensure(block)
                    self._drain_finals()
                case Broadcast(message=Proposal(block=block)):
                    self._emit(Broadcast(Proposal(block, self._take_built_list(block))))
                case Persist(records=records):
                    self._emit(Persist(attach_proofs(self.follower, self._candidates, records)))
                case BlockAbandoned(block_hash=block_hash):
                    self._access_lists.take(block_hash)
                    self._emit(*map(Discard, self._candidates.drop(block_hash)))
                case _:
                    self._emit(output)

    def _absorb(self, outputs: Iterable[FollowerOutput]) -> None:
        for output in outputs:
            if isinstance(output, BeaconFollowed):
                self._follow(output)
            else:
                self._emit(output)

    def _follow(self, followed: BeaconFollowed) -> None:
        view = followed.view
        self.assembler.on_beacon_block(view.ref.height, followed.crosslinks)
        data: dict[str, int | str | bytes] = {
            "height": view.ref.height,
            "hash": view.ref.hash,
            "receipts": len(followed.receipts),
            "finalized_height": view.crosslink_height,
            "finalized_hash": view.crosslink_head,
        }
        self._emit(Notice("beacon.followed", self._shard, data))
        self._check_crosslinked()

    def _check_crosslinked(self) -> None:
        """I5: halt when the beacon made another block final than this replica did, rather than serve a fork."""
        view = self.follower.head
        if 0 < view.crosslink_height <= self._base.height:
            block = self.engine.get_final_block(view.crosslink_height)
            if block is not None and block.hash != view.crosslink_head:
                self._halt(block.header, f"the beacon holds {view.crosslink_head.hex()} to be final instead")

    def _find_final(self, height: int) -> tuple[Header, FinalityProof] | None:
        block, proof = self.engine.get_final_block(height), self.engine.final_proof(height)
        return (block.header, proof) if block is not None and proof is not None else None

    def _find_view(self, header: Header) -> BeaconView | None:
        """Return the view that ``header`` refers to, when it is followed; its hash is not compared."""
        return self.follower.get_view(header.shard_content.beacon_ref.height)

    # --- building ---

    def _start_build(self) -> None:
        """M2: ask for a block on the wanted parent, once the parent is executed here."""
        request = self._wanted_build
        parent = self._candidates.get_executed(request.parent.hash) if request is not None else None
        if request is None or parent is None:
            return
        view = self.follower.head
        if view.ref.height < parent.shard_content.beacon_ref.height:
            return  # after a snapshot: the beacon is not followed that far yet, and a reference never moves back
        self._wanted_build = None
        context = BlockContext(
            slot=request.slot,
            timestamp_ms=request.timestamp_ms,
            proposer=self._genesis.committees[self._shard].get_leader(request.slot),
            beacon_ref=view.ref,
            link_base_fees=view.link_base_fees,
        )
        self._ask_build(
            request,
            compute_env(self._genesis, parent, context),
            view,
            # I14: with too much waiting for the beacon, blocks carry deliveries alone.
            0 if self.assembler.is_full else compute_selection_bytes(self._genesis.preset),
        )

    def _ask_build(self, request: RequestBuild, env: EnvSpec, view: BeaconView, max_body_bytes: int) -> None:
        position = request.parent.header.shard_content.inbox_position
        deliveries = self.follower.select_deliveries(position, view)
        self._next_build += 1
        self._building = _Building(self._next_build, request, env, view, deliveries, max_body_bytes)
        self._emit(Build(self._next_build, env, deliveries, max_body_bytes))

    def _on_built(self, event: Built, now_ms: int) -> None:
        building = self._building
        if building is None or building.number != event.request:
            return  # stale
        self._building = None
        request, summary = building.request, event.summary
        if summary is None:
            return
        try:
            verify_emission(self._genesis, self._shard, summary)
        except InvalidBlockError as error:
            # X10: users sent more than a crosslink carries; deliveries alone, or this slot stays empty.
            data: dict[str, int | str | bytes] = {
                "slot": request.slot,
                "reason": str(error),
                "heaviest": find_heaviest_sender(summary.outbox),
            }
            self._emit(Notice("build.refused", self._shard, data))
            if building.max_body_bytes:
                self._ask_build(request, building.env, building.view, 0)
            return
        parent = request.parent.header.shard_content
        content = compute_content(parent, building.env, building.view.ref, summary)
        header, justification = self.engine.build_header(
            request.slot, request.parent, BlockKind.NORMAL, request.timestamp_ms, content, event.body
        )
        proof = b"" if building.view.ref == parent.beacon_ref else building.view.proof
        block = Block(header, justification, event.body, signature=b"", beacon_proof=proof)
        candidate = self._candidates.ensure(block)
        candidate.progress, candidate.env, candidate.summary = Progress.EXECUTED, building.env, summary
        if self._has_distant_voters and self._access_lists.is_sendable(event.access_list):
            candidate.access_list = event.access_list
        self._emit(Adopt(event.request, block.hash, header.height))
        self._emit(Persist((ExecutionRecord(block.hash, summary.outbox),)))
        self._run(self.engine.on_proposed(request.slot, block, now_ms), now_ms)

    # --- access lists ---

    def _take_built_list(self, block: Block) -> bytes:
        """B5: return the list that goes with an own proposal, once; empty when nobody elsewhere votes."""
        candidate = self._candidates.get(block.hash)
        if candidate is None:
            return b""
        access_list, candidate.access_list = candidate.access_list, b""
        return access_list

    def _keep_access_list(self, sender: NodeId, proposal: Proposal) -> None:
        """B6: keep the list of a block that the engine took and that waits to be executed; refuse a wrong one."""
        block = proposal.block
        candidate = self._candidates.get(block.hash)
        is_waiting = candidate is None or candidate.progress is Progress.WAITING
        if not proposal.access_list or not is_waiting or block.header.height <= self._base.height:
            return
        if self.engine.get_block(block.hash) is None:
            return  # refused, or none of ours: its list is not looked at
        try:
            self._access_lists.offer(sender, block.header, proposal.access_list)
        except RemoteProtocolError as error:
            self._emit(build_refusal(self._shard, sender, error))

    # --- validation and execution ---

    def _on_validation_wanted(self, block: Block, now_ms: int) -> None:
        candidate = self._candidates.ensure(block)
        candidate.is_asked = True
        if candidate.progress in {Progress.EXECUTED, Progress.INVALID}:
            self._answer(candidate, now_ms)
        else:
            self._start_execution(candidate, now_ms)

    def _answer(self, candidate: Candidate, now_ms: int) -> None:
        if candidate.is_asked:
            candidate.is_asked = False
            is_valid = candidate.progress is Progress.EXECUTED
            block_hash = candidate.block.hash
            self._run(self.engine.on_validated(block_hash, is_valid, candidate.reason, now_ms), now_ms)

    def _start_execution(self, candidate: Candidate, now_ms: int) -> None:
        """M2: check the header and ask for execution, once parent and ``beacon_ref`` are known here (L2)."""
        block = candidate.block
        header = block.header
        parent = self._candidates.get_executed(header.parent)
        if candidate.progress is not Progress.WAITING or parent is None:
            return
        try:
            found = prepare_execution(self._genesis, self.follower, parent, block)
        except InvalidBlockError as error:
            self._reject(candidate, str(error), now_ms)
            return
        if found is None:
            # The proof that travels with the block is a hint; followed is only what comes with its bundles.
            self._absorb(self.follower.on_status(header.shard_content.beacon_ref.height))
            return
        candidate.env, deliveries = found
        candidate.progress = Progress.EXECUTING
        self._emit(Execute(block, candidate.env, deliveries, self._access_lists.take(block.hash)))

    def _on_executed(self, event: Executed, now_ms: int) -> None:
        candidate = self._candidates.get(event.block_hash)
        if candidate is None or candidate.progress is not Progress.EXECUTING or candidate.env is None:
            return  # abandoned meanwhile
        if event.summary is None:
            self._reject(candidate, event.error, now_ms)
            return
        header = candidate.block.header
        parent = self._candidates.get_executed(header.parent)
        if parent is None:
            return  # its parent was abandoned, and so will it be
        try:
            verify_results(self._genesis, parent, header, candidate.env, event.summary)
        except InvalidBlockError as error:
            self._reject(candidate, str(error), now_ms)
            return
        candidate.progress, candidate.summary = Progress.EXECUTED, event.summary
        self._emit(Persist((ExecutionRecord(event.block_hash, event.summary.outbox),)))  # S5
        self._answer(candidate, now_ms)

    def _reject(self, candidate: Candidate, reason: str, now_ms: int) -> None:
        header = candidate.block.header
        was_executed = candidate.progress is Progress.EXECUTING
        candidate.progress, candidate.reason = Progress.INVALID, reason
        self._access_lists.take(header.hash)
        data: dict[str, int | str | bytes] = {
            "height": header.height,
            "hash": header.hash,
            "slot": header.slot,
            "reason": reason,
        }
        self._emit(Notice("block.invalid", self._shard, data))
        if was_executed:
            self._emit(Discard(header.hash))
        self._answer(candidate, now_ms)

    # --- finality ---

    def _advance(self, now_ms: int) -> None:
        """Start what waited for a parent or for the beacon."""
        if self._halt_notice is not None:
            return
        for candidate in self._candidates.get_waiting():
            self._start_execution(candidate, now_ms)
        self._drain_finals()
        self._start_build()
        self._emit(*self.assembler.offer())

    def _drain_finals(self) -> None:
        """Fold final blocks in, by height, as far as they are executed."""
        while self._finals and self._halt_notice is None:
            final = self._finals[0]
            candidate = self._candidates.ensure(final.block)
            if candidate.progress is Progress.INVALID:
                self._halt(final.block.header, candidate.reason)
                return
            if candidate.progress is not Progress.EXECUTED or candidate.summary is None:
                return
            self._finals.popleft()
            header = final.block.header
            self._emit(Finalise(final.block, final.proof), describe_block("block.final", header))
            self._fold(header, candidate.summary.outbox)
            waiting = {later.block.hash for later in self._finals}
            self._emit(*map(Discard, self._candidates.drop_overtaken(waiting)))

    def _fold(self, header: Header, outbox: Sequence[bytes]) -> None:
        content = header.shard_content
        view = self._find_view(header)
        assert view is not None, "an executed block refers to a followed beacon block"
        congestion = self.follower.compute_congestion(content.inbox_position, view)
        self._candidates.advance(header)
        self._access_lists.prune(header.slot)
        self.assembler.on_final(header, outbox, congestion)
        if header.height == self.follower.head.crosslink_height:
            self._check_crosslinked()
        self._absorb(self.follower.on_final(content.beacon_ref, content.inbox_position))

    def _halt(self, header: Header, reason: str) -> None:
        data: dict[str, int | str | bytes] = {"height": header.height, "hash": header.hash, "reason": reason}
        self._halt_notice = Notice("halted", self._shard, data)
        self._emit(self._halt_notice)
