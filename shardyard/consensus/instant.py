"""A single sequencer that finalises every block at once: the engine of unit tests.

The process that holds a quorum of the keys proposes one block per block time and signs NOTAR and FINAL together; followers
take final blocks with their proofs. Proofs have the form that Simplex gives, so beacon, shards and tools cannot tell them
apart. There is no skip and no second chance: without the sequencer the chain stands still.
"""

from collections.abc import Sequence
from typing import Final

from shardyard.blocks import (
    BeaconContent,
    Block,
    BlockKind,
    FinalityProof,
    Header,
    Justification,
    ShardContent,
)
from shardyard.consensus.certificates import CertificateStore, CertificateVerifier
from shardyard.consensus.engine import (
    TIMER_PREFIX,
    BlockAbandoned,
    BlockFinal,
    BlockNotarized,
    BlockSource,
    EngineConfig,
    EngineMessage,
    EngineOutput,
    RequestBuild,
    RequestValidation,
)
from shardyard.consensus.justify import check_block
from shardyard.consensus.pacing import TIMER_RANGE, compute_timestamp, compute_wait
from shardyard.consensus.pool import VotePool
from shardyard.consensus.proofs import (
    build_certified_header,
    build_finality_proof,
    get_notarization,
    verify_proof_with,
)
from shardyard.consensus.proposals import ProposalBook
from shardyard.consensus.proposer import build_header
from shardyard.consensus.sync import Sync
from shardyard.consensus.targets import FinalityTargets
from shardyard.consensus.tree import BlockState, TreeEntry
from shardyard.consensus.view import ChainView
from shardyard.consensus.voter import Voter
from shardyard.consensus.votes import Certificate, Crypto, Vote, VoteKind
from shardyard.effects import (
    BlockRecord,
    Broadcast,
    FinalRecord,
    Notice,
    Persist,
    Record,
    SetTimer,
    SnapshotRecord,
)
from shardyard.errors import InvalidBlockError, InvalidProofError, LocalProtocolError, RemoteProtocolError
from shardyard.ids import Hash32, NodeId, Slot
from shardyard.messages import FinalBlock, RangeRequest, RangeResponse, Status
from shardyard.quorum import is_quorum, sum_stake

TIMER_PROPOSE: Final = TIMER_PREFIX + "propose"
TIMER_STATUS: Final = TIMER_PREFIX + "status"


class InstantEngine(ChainView):
    """One chain's finality by one process; see ``FinalityEngine``."""

    def __init__(self, config: EngineConfig, crypto: Crypto, blocks: BlockSource) -> None:
        super().__init__(config, blocks)
        self._verifier = CertificateVerifier(crypto, config.domain, config.committee)
        self._voter = Voter(config.domain, config.local_validators)
        self._pool = VotePool(crypto, config.domain, config.committee)
        self._proposals = ProposalBook(crypto, config.domain, config.committee)
        self._sync = Sync(config, self._verifier, CertificateStore(), self._tree, self._finals)
        self._is_sequencer = is_quorum(
            sum_stake(config.local_validators, config.committee.stakes), config.committee.total_stake
        )
        self._final_notarization: Certificate | None = None
        self._certificates: dict[VoteKind, Certificate] = {}
        self._targets = FinalityTargets(self._tree)
        self._is_asked = False
        self._out: list[EngineOutput] = []

    @property
    def slot(self) -> Slot:
        """The slot after the final block's: none is ever skipped."""
        return Slot(self._finals.tip.header.slot + 1)

    def recover(self, record: Record) -> BlockFinal | None:
        """Take over a record of the chain's log before ``start``; return what became final by it."""
        match record:
            case BlockRecord(block):
                self._recover_block(block, is_justified=self._is_sequencer)
            case FinalRecord():
                entry = self._tree.get(record.block_hash)
                if entry is None or entry.block.header.parent != self.final_block.hash:
                    raise LocalProtocolError(f"log: final record of height {record.height} does not follow")
                self._make_final(entry, record.proof)
                return BlockFinal(entry.block, record.proof)
            case SnapshotRecord(proof=proof):
                self._recover_snapshot(record)
                self._final_notarization = get_notarization(proof)
            case _:
                pass
        return None

    def start(self, now_ms: int) -> list[EngineOutput]:
        """Begin: the sequencer proposes, everybody says where it stands."""
        self._on_status_timer()
        self._settle(now_ms)
        return self._take()

    def on_message(self, sender: NodeId, message: EngineMessage, now_ms: int) -> list[EngineOutput]:
        """Take a peer's message; what is wrong with it is counted and dropped."""
        try:
            match message:
                case FinalBlock(block, proof):
                    self._on_final_block(sender, block, proof)
                case RangeRequest():
                    self._out.extend(self._sync.answer_range(sender, message))
                case RangeResponse():
                    accepted = self._sync.accept_range(sender, message)
                    if accepted is not None:
                        self._take_final(sender, *accepted)
                case Status():
                    self._out.extend(self._sync.on_status(sender, message))
                case _:
                    pass  # votes and proposals mean nothing here
        except RemoteProtocolError as error:
            self.refused[type(error).__name__] += 1
        self._settle(now_ms)
        return self._take()

    def on_timer(self, name: str, now_ms: int) -> list[EngineOutput]:
        """Take a timer."""
        if name == TIMER_PROPOSE:
            self._request_build(now_ms)
        elif name == TIMER_STATUS:
            self._on_status_timer()
        elif name == TIMER_RANGE:
            self._out.extend(self._sync.on_range_timer())
        self._settle(now_ms)
        return self._take()

    def on_signed(self, votes: Sequence[Vote], now_ms: int) -> list[EngineOutput]:
        """Take own votes: with a quorum of both kinds the block is final."""
        for vote in votes:
            if vote.kind is VoteKind.PROPOSE or vote.slot != self.slot:
                continue
            certificate = self._pool.add(vote, None)
            if certificate is not None:
                self._verifier.remember(certificate)
                self._certificates[certificate.kind] = certificate
        notarization, finalization = (
            self._certificates.get(kind) for kind in (VoteKind.NOTAR, VoteKind.FINAL)
        )
        if notarization is not None and finalization is not None:
            entry = self._tree.get(notarization.block_hash)
            if entry is not None:
                self._out.append(BlockNotarized(entry.block, notarization))
                proof = build_finality_proof(
                    (), build_certified_header(entry.block), notarization, finalization
                )
                self._targets.add(proof)
        self._settle(now_ms)
        return self._take()

    def on_proposed(self, slot: int, block: Block, now_ms: int) -> list[EngineOutput]:
        """Take the block that was asked for."""
        if not self._is_asked or slot != self.slot or block.header.parent != self.final_block.hash:
            return [BlockAbandoned(block.hash)]
        try:
            check_block(block, self._config.domain, self._config.committee)
            entry = self._tree.add(block, None, is_justified=True)
        except InvalidBlockError as error:
            raise LocalProtocolError(f"own proposal: {error}") from error
        entry.state = BlockState.VALID
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
            data: dict[str, int | str | bytes] = {
                "slot": entry.block.header.slot,
                "hash": block_hash,
                "reason": reason,
            }
            self._out.append(Notice("block.invalid", self._config.shard, data))
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
        """Return the header of a block that this engine asked for, and its justification."""
        justification = Justification(notarization=self._final_notarization, skips=())
        header = build_header(self._config, slot, parent, kind, timestamp_ms, content, body, justification)
        return header, justification

    def _on_final_block(self, sender: NodeId, block: Block, proof: FinalityProof) -> None:
        self._sync.note_height(sender, block.header.height)
        if block.header.parent == self.final_block.hash and self._tree.get(block.hash) is None:
            if not proof.path or proof.path[0].header.hash != block.hash:
                raise InvalidProofError("final block: the proof is of another block")
            verify_proof_with(self._verifier.verify, self._config.domain, self._config.committee, proof)
            check_block(block, self._config.domain, self._config.committee)
            self._take_final(sender, [block], proof)
        self._out.extend(self._sync.poll_range())

    def _take_final(self, sender: NodeId, blocks: Sequence[Block], proof: FinalityProof) -> None:
        fresh = [block for block in blocks if self._tree.get(block.hash) is None]
        for block in self._proposals.authenticate(fresh):
            self._tree.add(block, sender, is_justified=False)
        self._targets.add(proof)

    def _on_valid(self, entry: TreeEntry) -> None:
        if not entry.is_persisted:
            entry.is_persisted = True
            self._out.append(Persist((BlockRecord(entry.block),)))
        if self._is_sequencer and entry.is_justified:
            header = entry.block.header
            self._is_asked = True
            self._voter.propose(header.proposer, header.slot, entry.block_hash)
            self._voter.notarize(header.slot, entry.block_hash)
            self._voter.finalize(header.slot, entry.block_hash)
            self._out.extend(self._voter.take_requests())

    def _settle(self, now_ms: int) -> None:
        for entry, proof in self._targets.get_next():
            self._finalise(entry, proof)
        for entry in self._tree.get_validatable():
            parent = self._tree.get_parent(entry)
            assert parent is not None, "a validatable block has its parent in the tree"
            entry.state = BlockState.VALIDATING
            self._out.append(RequestValidation(entry.block, parent))
        if self._is_sequencer and not self._is_asked and not len(self._tree):
            self._is_asked = True
            wait_ms = compute_wait(self._config, self.final_block.header.timestamp_ms, now_ms)
            self._out.append(SetTimer(TIMER_PROPOSE, wait_ms))

    def _request_build(self, now_ms: int) -> None:
        if self._is_sequencer and not len(self._tree):
            timestamp_ms = compute_timestamp(self._config, self.final_block.header.timestamp_ms, now_ms)
            self._out.append(RequestBuild(self.slot, self.final_block, timestamp_ms))

    def _finalise(self, entry: TreeEntry, proof: FinalityProof) -> None:
        self._out.append(Persist((FinalRecord(entry.block.header.height, entry.block_hash, proof),)))
        self._out.append(BlockFinal(entry.block, proof))
        dead = self._make_final(entry, proof)
        self._out.extend(BlockAbandoned(other.block_hash) for other in dead)
        if self._is_sequencer:
            self._out.append(Broadcast(FinalBlock(entry.block, proof)))
        self._out.extend(self._sync.poll_range())

    def _make_final(self, entry: TreeEntry, proof: FinalityProof) -> list[TreeEntry]:
        floor = entry.block.header.slot
        self._final_notarization = get_notarization(proof)
        self._certificates = {}
        self._is_asked = False
        self._pool.prune(floor)
        self._voter.prune(floor)
        dead = self._tree.advance_root(entry)
        self._finals.append(entry.block, proof)
        self._targets.prune(floor)
        return dead

    def _on_status_timer(self) -> None:
        tip = self.final_block
        self._out.append(Broadcast(Status(self._config.shard, self.slot, tip.header.height, tip.hash)))
        self._out.append(SetTimer(TIMER_STATUS, self._config.block_time_ms + 2 * self._config.delta_ms))

    def _take(self) -> list[EngineOutput]:
        taken, self._out = self._out, []
        return taken
