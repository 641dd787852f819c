"""Stake-weighted Simplex as a pure machine: two hops to a notarized block, three to finality, no locks, no view change.

Every input adds facts (votes, certificates, blocks, verdicts); ``_settle`` then draws all conclusions until none is left:
new certificates are recorded, told and answered by FINAL (L3, L4, A3), final blocks are finalised in order of height (L5),
blocks whose parent is valid go to the host (L2), what is missing is fetched (L9, L10), the slot advances (L1), its leader
proposes. Order of effects within a step: records, then what was learnt, then what the signer is asked (S5, A3).

Votes go to the signer as intents that count at once (S2, S3); signatures return by ``on_signed`` and enter the own pool
like everybody's, so a committee whose keys are all local finalises without any peer.

Bounds: ``FUTURE_SLOTS`` above the current slot; per slot two signed proposals, the votes named in ``pool`` and four forks
of certificates; what is at or below the last final slot is forgotten.
"""

from collections.abc import Sequence
from typing import assert_never

from shardyard.blocks import (
    BeaconContent,
    Block,
    BlockKind,
    FinalityProof,
    Header,
    Justification,
    ShardContent,
)
from shardyard.codec import encode
from shardyard.consensus.certificates import CertificateStore, CertificateVerifier
from shardyard.consensus.engine import (
    BlockAbandoned,
    BlockFinal,
    BlockNotarized,
    BlockSource,
    EngineConfig,
    EngineMessage,
    EngineOutput,
)
from shardyard.consensus.evidence import VoteEvidence
from shardyard.consensus.justify import check_block, verify_justification
from shardyard.consensus.pacing import (
    FUTURE_SLOTS,
    TIMER_FETCH,
    TIMER_PROPOSE,
    TIMER_RANGE,
    TIMER_SLOT,
    TIMER_STANDSTILL,
    compute_standstill_period,
)
from shardyard.consensus.pool import MAX_ITEMS, VotePool
from shardyard.consensus.proofs import get_notarization, verify_proof_with
from shardyard.consensus.proposals import ProposalBook
from shardyard.consensus.proposer import Proposer, build_header
from shardyard.consensus.slot_timer import SlotTimer
from shardyard.consensus.standstill import Greeter, Standstill
from shardyard.consensus.strikes import Strikes
from shardyard.consensus.sync import Sync
from shardyard.consensus.targets import FinalityTargets
from shardyard.consensus.tree import BlockState, TreeEntry
from shardyard.consensus.view import ChainView
from shardyard.consensus.voter import Voter
from shardyard.consensus.votes import Certificate, Crypto, Vote, VoteKind
from shardyard.effects import (
    BlockRecord,
    Broadcast,
    CertificateRecord,
    FinalRecord,
    Notice,
    Persist,
    Record,
    SetTimer,
    SnapshotRecord,
)
from shardyard.errors import (
    InvalidBlockError,
    InvalidCertificateError,
    InvalidProofError,
    LocalProtocolError,
    RemoteProtocolError,
    UnsolicitedError,
)
from shardyard.ids import GENESIS_SLOT, Hash32, NodeId, Slot, compute_epoch
from shardyard.messages import (
    BlockRequest,
    BlockResponse,
    Certificates,
    FinalBlock,
    Proposal,
    RangeRequest,
    RangeResponse,
    Status,
    Votes,
)


class SimplexEngine(ChainView):
    """One chain's finality in one process, with any number of local keys; see ``FinalityEngine``."""

    def __init__(self, config: EngineConfig, crypto: Crypto, blocks: BlockSource) -> None:
        super().__init__(config, blocks)
        self._verifier = CertificateVerifier(crypto, config.domain, config.committee)
        self._certificates = CertificateStore()
        self._pool = VotePool(crypto, config.domain, config.committee)
        self._proposals = ProposalBook(crypto, config.domain, config.committee)
        self._voter = Voter(config.domain, config.local_validators)
        self._sync = Sync(config, self._verifier, self._certificates, self._tree, self._finals)
        self._proposer = Proposer(config, self._certificates, self._voter, self._tree, self._finals)
        self._standstill = Standstill()
        self._greeter = Greeter(self._tree, self._voter)
        self._slot_timer = SlotTimer(config)
        self._final_notarization: Certificate | None = None
        self._targets = FinalityTargets(self._tree)
        self._fresh: list[tuple[Certificate, NodeId | None, bool]] = []
        self._epoch = compute_epoch(config.genesis.header.slot)
        self._slot = GENESIS_SLOT
        self._last_status_ms: int | None = None
        self._strikes = Strikes()
        self._out: list[EngineOutput] = []
        self._is_settled = True
        """No fact has come since the last ``_settle``: most messages of a busy network repeat what is known."""

    @property
    def slot(self) -> Slot:
        """The slot the engine is in; 0 before ``start``."""
        return self._slot

    def recover(self, record: Record) -> BlockFinal | None:
        """Take over a record of the own log, which holds only what was verified; return what became final by it."""
        match record:
            case BlockRecord(block):
                self._recover_block(block, is_justified=False)
            case CertificateRecord(certificate):
                self._recover_certificate(certificate)
            case FinalRecord():
                return self._recover_final(record)
            case SnapshotRecord(proof=proof):
                self._recover_snapshot(record)
                self._final_notarization = get_notarization(proof)
            case _:  # records of the host
                pass
        return None

    def start(self, now_ms: int) -> list[EngineOutput]:
        """Begin: recovered blocks are validated again, so that own votes for them return (they are on record)."""
        for entry in self._tree.get_entries():
            try:
                verify_justification(entry.block.justification, self._verifier.verify)
            except InvalidCertificateError:
                continue  # a block of a range answer: it becomes final by its proof and takes no vote
            entry.is_justified = True
            self._learn_justification(entry.block.justification, None)
        self._slot = Slot(self.final_slot)
        self._out.append(SetTimer(TIMER_STANDSTILL, compute_standstill_period(self._config)))
        self._settle(now_ms)
        self._tell_status(now_ms, is_due=True)
        return self._take()

    def on_message(self, sender: NodeId, message: EngineMessage, now_ms: int) -> list[EngineOutput]:
        """Take a peer's message; what is wrong with it is counted and dropped."""
        if self._strikes.is_muted(sender):
            self.refused["muted"] += 1
            return []
        # Who only asks, as shards ask for the beacon's blocks, has nothing to give.
        if not isinstance(message, BlockRequest | RangeRequest):
            self._sync.note_peer(sender)
        was_following = self._sync.is_following
        try:
            self._dispatch(sender, message)
        except RemoteProtocolError as error:
            self._refuse(sender, error)
        if not self._is_settled or (was_following and not self._sync.is_following):
            self._settle(now_ms)
        return self._take()

    def on_timer(self, name: str, now_ms: int) -> list[EngineOutput]:
        """Take a timer; one of another slot is stale and does nothing."""
        if name == f"{TIMER_SLOT}{self._slot}":
            self._on_slot_timer()
        elif name == f"{TIMER_PROPOSE}{self._slot}":
            self._proposer.on_timer()
        elif name == TIMER_STANDSTILL:
            self._on_standstill(now_ms)
        elif name == TIMER_FETCH:
            self._out.extend(self._sync.on_fetch_timer())
        elif name == TIMER_RANGE:
            self._out.extend(self._sync.on_range_timer())
        self._settle(now_ms)
        return self._take()

    def on_signed(self, votes: Sequence[Vote], now_ms: int) -> list[EngineOutput]:
        """Take own votes: they leave together, and count here like anybody's."""
        current = [vote for vote in votes if vote.slot > self.final_slot]
        for vote in current:
            if vote.kind is VoteKind.PROPOSE:
                self._send_proposal(vote)
        ballots = [vote for vote in current if vote.kind is not VoteKind.PROPOSE]
        if ballots:
            self._voter.keep(ballots)
            self._out.append(Broadcast(Votes(tuple(ballots))))
            for vote in ballots:
                self._count_vote(vote, None)
        self._settle(now_ms)
        return self._take()

    def on_proposed(self, slot: int, block: Block, now_ms: int) -> list[EngineOutput]:
        """Take the block that was asked for; one that comes too late is given back as abandoned."""
        if not self._proposer.accept(slot, block):
            return [BlockAbandoned(block.hash)]
        try:
            check_block(block, self._config.domain, self._config.committee)
            entry = self._tree.add(block, None, is_justified=True)
        except InvalidBlockError as error:
            raise LocalProtocolError(f"own proposal: {error}") from error
        entry.state = BlockState.VALID
        self._voter.propose(block.header.proposer, block.header.slot, entry.block_hash)
        self._on_valid(entry)
        self._settle(now_ms)
        return self._take()

    def on_validated(self, block_hash: Hash32, valid: bool, reason: str, now_ms: int) -> list[EngineOutput]:
        """Take the host's verdict on a block."""
        entry = self._tree.get(block_hash)
        if entry is None or entry.state is not BlockState.VALIDATING:
            return []
        if valid:
            entry.state = BlockState.VALID
            self._on_valid(entry)
        else:
            self._tree.mark_invalid(entry)
            self._notify("block.invalid", slot=entry.block.header.slot, hash=block_hash, reason=reason)
            if block_hash in self._targets:
                # A quorum finalised what is invalid here: rather stand still than follow or fork.
                self._notify("engine.halted", slot=entry.block.header.slot, hash=block_hash, reason=reason)
        self._settle(now_ms)
        return self._take()

    def build_header(
        self,
        slot: int,
        parent: Block,
        kind: BlockKind,
        timestamp_ms: int,
        content: ShardContent | BeaconContent,
        body: bytes,
    ) -> tuple[Header, Justification]:
        """Return the header of a block that this engine asked for, and its justification (A1).

        For a request that is stale by now the result is well formed and useless; ``on_proposed`` gives it back.
        """
        justification = self._proposer.get_justification(slot, parent.hash)
        header = build_header(self._config, slot, parent, kind, timestamp_ms, content, body, justification)
        return header, justification

    def _dispatch(self, sender: NodeId, message: EngineMessage) -> None:
        match message:
            case Proposal(block):
                self._on_proposal(sender, block)
            case Votes(votes):
                for vote in votes[:MAX_ITEMS]:
                    self._count_vote(vote, sender)
            case Certificates(certificates):
                self._on_certificates(sender, certificates)
            case BlockRequest():
                self._out.extend(self._sync.answer_blocks(sender, message))
            case BlockResponse():
                self._on_block_response(sender, message)
            case RangeRequest():
                self._out.extend(self._sync.answer_range(sender, message))
            case RangeResponse():
                self._on_range_response(sender, message)
            case FinalBlock(block, proof):
                self._on_final_block(sender, block, proof)
            case Status():
                self._out.extend(self._sync.on_status(sender, message))
                self._out.extend(self._greeter.greet(sender, message.slot, self._slot))
            case _:
                assert_never(message)

    def _on_proposal(self, sender: NodeId, block: Block) -> None:
        """L2: the first proposal of a slot is pending until it is executed; a second one is evidence."""
        slot = block.header.slot
        if (
            not self._is_in_window(slot)
            or self._tree.get(block.hash) is not None
            or self._proposals.is_full(block)
        ):
            return
        self._report(self._proposals.admit(block))
        if self._proposals.is_first(block) or self._certificates.has(VoteKind.NOTAR, slot, block.hash):
            check_block(block, self._config.domain, self._config.committee)
            verify_justification(block.justification, self._verifier.verify)
            self._admit(block, sender)

    def _on_certificates(self, sender: NodeId, certificates: Sequence[Certificate]) -> None:
        for certificate in certificates[:MAX_ITEMS]:
            if self._is_news(certificate):
                try:
                    self._verifier.verify(certificate)
                except InvalidCertificateError as error:
                    self._refuse(sender, error)
                else:
                    self._add_certificate(certificate, sender, is_own=False)

    def _on_block_response(self, sender: NodeId, response: BlockResponse) -> None:
        for block in self._sync.accept_blocks(sender, response):
            if self._sync.is_voted(block.hash):
                if not block.signature:
                    self._sync.pass_over(block.hash, sender)
                    continue
                self._on_proposal(sender, block)
            elif block.header.slot > self.final_slot and self._tree.get(block.hash) is None:
                verify_justification(block.justification, self._verifier.verify)
                self._admit(block, sender)
            self._sync.drop(block.hash)
        self._on_certificates(sender, response.notarizations)

    def _on_range_response(self, sender: NodeId, response: RangeResponse) -> None:
        accepted = self._sync.accept_range(sender, response)
        if accepted is None:
            self._out.extend(self._sync.poll_range())
            return
        blocks, proof = accepted
        self._take_final(sender, blocks, proof)

    def _on_final_block(self, sender: NodeId, block: Block, proof: FinalityProof) -> None:
        """Follow a final block that was told to all: one whose parent is held is taken, any other is only a hint."""
        if block.header.height <= self.final_block.header.height or block.hash in self._targets:
            return
        if not proof.path or proof.path[0].header.hash != block.hash:
            raise InvalidProofError("final block: the proof is of another block")
        verify_proof_with(self._verifier.verify, self._config.domain, self._config.committee, proof)
        self._sync.note_height(sender, block.header.height)
        if block.header.parent == self.final_block.hash or self._tree.get(block.header.parent) is not None:
            check_block(block, self._config.domain, self._config.committee)
            self._take_final(sender, [block], proof)
        self._out.extend(self._sync.poll_range())

    def _take_final(self, sender: NodeId, blocks: Sequence[Block], proof: FinalityProof) -> None:
        """Keep blocks that are proven final; each is still executed before it counts."""
        self._is_settled = False
        fresh = [block for block in blocks if self._tree.get(block.hash) is None]
        for block in self._proposals.authenticate(fresh):
            try:
                self._tree.add(block, sender, is_justified=False)
            except InvalidBlockError:
                self._sync.abandon_range(sender)
                raise
        self._targets.add(proof)

    # Facts

    def _is_in_window(self, slot: int) -> bool:
        """Tell whether ``slot`` is open: above the last final one, not far ahead, of this epoch (D2)."""
        return self.final_slot < slot <= self._slot + FUTURE_SLOTS and compute_epoch(slot) == self._epoch

    def _is_news(self, certificate: Certificate) -> bool:
        return (
            self._is_in_window(certificate.slot)
            and certificate.kind is not VoteKind.PROPOSE
            and not self._certificates.has(certificate.kind, certificate.slot, certificate.block_hash)
        )

    def _count_vote(self, vote: Vote, sender: NodeId | None) -> None:
        self._slot_timer.note_vote(vote.validator, vote.slot)
        if not self._is_in_window(vote.slot):
            return
        certificate = self._pool.add(vote, sender)
        if self._pool.has_evidence:
            self._is_settled = False
        if sender is not None and vote.slot >= self._slot and self._sync.note_vote(vote, sender):
            self._is_settled = False
        if certificate is not None:
            self._verifier.remember(certificate)
            self._add_certificate(certificate, sender, is_own=True)

    def _add_certificate(self, certificate: Certificate, source: NodeId | None, *, is_own: bool) -> None:
        """Keep a verified certificate; its consequences are drawn in ``_settle``."""
        if certificate.slot > self.final_slot and self._certificates.add(certificate):
            self._is_settled = False
            self._pool.mark_certified(certificate)
            self._fresh.append((certificate, source, is_own))

    def _admit(self, block: Block, sender: NodeId | None) -> None:
        """Take a block whose shape and justification are verified: its certificates count like any (L1)."""
        self._is_settled = False
        (block,) = self._proposals.authenticate([block])
        self._tree.add(block, sender, is_justified=True)
        self._sync.drop(block.hash)
        self._learn_justification(block.justification, sender)

    def _learn_justification(self, justification: Justification, source: NodeId | None) -> None:
        if justification.notarization is not None:
            self._add_certificate(justification.notarization, source, is_own=False)
        for skip in justification.skips:
            self._add_certificate(skip, source, is_own=False)

    def _on_valid(self, entry: TreeEntry) -> None:
        """S1, S5: a valid, justified block is on disk before NOTAR for it leaves."""
        header = entry.block.header
        if not entry.is_persisted:
            entry.is_persisted = True
            self._out.append(Persist((BlockRecord(entry.block),)))
        if not entry.is_justified:
            return
        if not entry.block.signature and self._voter.is_local(header.proposer) and header.slot == self._slot:
            self._voter.propose(
                header.proposer, header.slot, entry.block_hash
            )  # again after a restart, the same block
        self._voter.notarize(header.slot, entry.block_hash)
        self._announce_notarized(entry)

    def _announce_notarized(self, entry: TreeEntry) -> None:
        """Tell the host of a valid notarized block, and finalize it as far as S3 lets us."""
        header = entry.block.header
        certificate = self._certificates.get_notarization(header.slot, entry.block_hash)
        if certificate is None or entry.state is not BlockState.VALID:
            return
        self._voter.finalize(header.slot, entry.block_hash)
        if not entry.is_announced:
            entry.is_announced = True
            self._out.append(BlockNotarized(entry.block, certificate))

    # Conclusions

    def _settle(self, now_ms: int) -> None:
        """Draw every conclusion from what is known; see the head of this file."""
        self._is_settled = True
        while self._use_fresh_certificates() or self._advance_final(now_ms):
            pass
        for entry in self._tree.get_validatable():
            entry.state = BlockState.VALIDATING
            self._out.append(self._targets.build_request(entry))
        for parent_hash, entry in self._tree.get_missing_parents():
            self._sync.want(parent_hash, entry.block.header.parent_slot, entry.source, is_urgent=True)
        self._out.extend(self._sync.poll_fetch())
        self._enter_slot()
        is_behind = self._targets.decides(self._slot) or self._sync.is_following
        self._out.extend(self._proposer.poll(now_ms, self._final_notarization, is_behind=is_behind))
        for evidence in self._pool.take_evidence():
            self._report(evidence)
        self._out.extend(self._voter.take_requests())

    def _use_fresh_certificates(self) -> bool:
        """L3, L4, A3: record and tell new certificates, then ask for FINAL."""
        fresh, self._fresh = self._fresh, []
        fresh = [item for item in fresh if item[0].slot > self.final_slot]
        if not fresh:
            return False
        lasting = [item[0] for item in fresh if item[0].kind is not VoteKind.FINAL]
        if lasting:
            self._out.append(Persist(tuple(CertificateRecord(certificate) for certificate in lasting)))
        told = [item[0] for item in fresh if item[0].kind is not VoteKind.FINAL or item[2]]
        if told and self._voter.has_keys:
            self._out.append(Broadcast(Certificates(tuple(told))))
        for certificate, source, _ in fresh:
            self._slot_timer.note_certificate(certificate)
            if certificate.kind is VoteKind.SKIP:
                self._notify("slot.skipped", slot=certificate.slot)
                continue
            entry = self._tree.get(certificate.block_hash)
            if entry is None:
                self._sync.want(certificate.block_hash, certificate.slot, source, is_urgent=False)
            elif certificate.kind is VoteKind.NOTAR:
                self._announce_notarized(entry)
        return True

    def _advance_final(self, now_ms: int) -> bool:
        """L5: finalise every valid block on the way to a block that is proven final; tell whether any was."""
        self._targets.find(self._certificates)
        ready = self._targets.get_next()
        for entry, proof in ready:
            self._finalise(entry, proof, now_ms)
        return bool(ready)

    def _finalise(self, entry: TreeEntry, proof: FinalityProof, now_ms: int) -> None:
        block = entry.block
        floor = block.header.slot
        self._out.append(Persist((FinalRecord(block.header.height, entry.block_hash, proof),)))
        self._out.append(BlockFinal(block, proof))
        dead = self._make_final(entry, proof)
        self._out.extend(
            BlockAbandoned(other.block_hash) for other in dead if other.state is not BlockState.ORPHAN
        )
        self._pool.prune(floor)
        self._proposals.prune(floor)
        self._voter.prune(floor)
        self._sync.prune(floor)
        self._standstill.reset()
        self._strikes.clear()
        self._out.append(SetTimer(TIMER_STANDSTILL, compute_standstill_period(self._config)))
        self._tell_status(now_ms, is_due=False)
        self._out.extend(self._sync.poll_range())

    def _make_final(self, entry: TreeEntry, proof: FinalityProof) -> list[TreeEntry]:
        """Move the root of the tree to ``entry``; return the blocks that die thereby."""
        floor = entry.block.header.slot
        self._final_notarization = get_notarization(proof)
        dead = self._tree.advance_root(entry)
        self._finals.append(entry.block, proof)
        self._certificates.prune(floor)
        self._targets.prune(floor)
        return dead

    def _enter_slot(self) -> None:
        """L1: enter the lowest slot that is not cleared; timers of the one before are cancelled."""
        slot = max(self._slot, self.final_slot + 1)
        while self._certificates.is_cleared(slot):
            slot += 1
        if slot == self._slot:
            return
        self._slot = Slot(slot)
        if self._voter.has_keys:
            self._out.extend(self._slot_timer.enter(self._slot, self.final_slot))
        self._out.extend(self._proposer.enter_slot(self._slot))

    def _on_slot_timer(self) -> None:
        """L6: SKIP, unless there is something left to wait for."""
        entries = self._tree.get_at_slot(self._slot)
        has_proposal = any(entry.state is not BlockState.INVALID for entry in entries)
        timer = self._slot_timer.fire(self.final_slot, has_proposal=has_proposal)
        if timer is None:
            self._voter.skip(self._slot)
        else:
            self._out.append(timer)

    def _on_standstill(self, now_ms: int) -> None:
        """L7: say everything again, and hear the own votes again."""
        own_votes = self._voter.get_own_votes()
        if self._voter.has_keys:
            self._out.extend(self._standstill.build(self._certificates.collect(), own_votes))
        for vote in own_votes:
            self._count_vote(vote, None)
        self._out.append(SetTimer(TIMER_STANDSTILL, compute_standstill_period(self._config)))
        self._tell_status(now_ms, is_due=True)

    def _send_proposal(self, vote: Vote) -> None:
        entry = self._tree.get(vote.block_hash)
        if entry is None:
            return
        block = entry.block
        entry.block = Block(
            header=block.header,
            justification=block.justification,
            body=block.body,
            signature=vote.signature,
            beacon_proof=block.beacon_proof,
        )
        self._report(self._proposals.record(vote))  # of another process that signed with this key
        self._out.append(Broadcast(Proposal(entry.block)))

    # Recovery

    def _recover_certificate(self, certificate: Certificate) -> None:
        self._verifier.remember(certificate)
        if certificate.slot > self.final_slot:
            self._certificates.add(certificate)

    def _recover_final(self, record: FinalRecord) -> BlockFinal:
        entry = self._tree.get(record.block_hash)
        if entry is None or entry.block.header.parent != self.final_block.hash:
            raise LocalProtocolError(
                f"log: final record of height {record.height} does not follow height {self.final_block.header.height}"
            )
        self._make_final(entry, record.proof)
        return BlockFinal(entry.block, record.proof)

    # Telling

    def _tell_status(self, now_ms: int, *, is_due: bool) -> None:
        """Say where this node stands: at a standstill, else at most once per block time."""
        last = self._last_status_ms
        if not is_due and last is not None and 0 <= now_ms - last < self._config.block_time_ms:
            return
        self._last_status_ms = now_ms
        tip = self.final_block
        self._out.append(Broadcast(Status(self._config.shard, self._slot, tip.header.height, tip.hash)))

    def _report(self, evidence: VoteEvidence | None) -> None:
        if evidence is None:
            return
        self._notify(
            "evidence",
            validator=evidence.first.validator,
            slot=evidence.first.slot,
            first=evidence.first.kind.name,
            second=evidence.second.kind.name,
            evidence=encode(evidence),
        )

    def _refuse(self, sender: NodeId, error: RemoteProtocolError) -> None:
        """Count a peer's fault; late answers are no sign of malice, forged bytes are."""
        self.refused[type(error).__name__] += 1
        if not isinstance(error, UnsolicitedError):
            self._strikes.count(sender)

    def _notify(self, kind: str, **data: int | str | bytes) -> None:
        self._out.append(Notice(kind, self._config.shard, data))

    def _take(self) -> list[EngineOutput]:
        taken, self._out = self._out, []
        return taken
