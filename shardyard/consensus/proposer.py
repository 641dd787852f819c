"""The local leader of the current slot: on which parent, when, and with which justification it proposes (L1, S4).

It builds on the highest notarized block that is executed here and that it can justify: every slot between is skipped. It
asks its host once per slot; a block that comes back when the slot is over, or after this leader skipped, is given back.
"""

from shardyard.blocks import (
    EMPTY_JUSTIFICATION,
    BeaconContent,
    Block,
    BlockKind,
    Header,
    Justification,
    ShardContent,
    compute_body_hash,
)
from shardyard.consensus.certificates import CertificateStore
from shardyard.consensus.engine import EngineConfig, EngineOutput, RequestBuild
from shardyard.consensus.finals import FinalChain
from shardyard.consensus.pacing import TIMER_PROPOSE, ProposalPhase, compute_timestamp, compute_wait
from shardyard.consensus.tree import BlockState, BlockTree
from shardyard.consensus.voter import Voter
from shardyard.consensus.votes import Certificate
from shardyard.effects import CancelTimer, SetTimer
from shardyard.ids import GENESIS_SLOT, Hash32, Height, Millis, Slot, compute_epoch


def build_header(
    config: EngineConfig,
    slot: int,
    parent: Block,
    kind: BlockKind,
    timestamp_ms: int,
    content: ShardContent | BeaconContent,
    body: bytes,
    justification: Justification,
) -> Header:
    """Return a header with the common part filled in (A1, D2)."""
    return Header(
        version=1,
        network=config.domain.network,
        shard=config.shard,
        epoch=compute_epoch(slot),
        kind=kind,
        slot=Slot(slot),
        height=Height(parent.header.height + 1),
        parent=parent.hash,
        parent_slot=parent.header.slot,
        justification_hash=justification.hash,
        timestamp_ms=Millis(timestamp_ms),
        proposer=config.committee.get_leader(slot),
        body_hash=compute_body_hash(body),
        content=content,
    )


class Proposer:
    """Proposes in the slots whose leader is local."""

    def __init__(
        self,
        config: EngineConfig,
        certificates: CertificateStore,
        voter: Voter,
        tree: BlockTree,
        finals: FinalChain,
    ) -> None:
        self._config = config
        self._certificates = certificates
        self._voter = voter
        self._tree = tree
        self._finals = finals
        self._slot = GENESIS_SLOT
        self._phase = ProposalPhase.WAITING
        self._asked: tuple[Hash32, Justification] | None = None

    def enter_slot(self, slot: Slot) -> list[EngineOutput]:
        """Begin ``slot``; the timer of the one before is cancelled."""
        stale = f"{TIMER_PROPOSE}{self._slot}" if self._phase is ProposalPhase.TIMED else None
        self._slot = slot
        self._phase = ProposalPhase.WAITING
        self._asked = None
        return [] if stale is None else [CancelTimer(stale)]

    def on_timer(self) -> None:
        """The block time since the parent is over."""
        if self._phase is ProposalPhase.TIMED:
            self._phase = ProposalPhase.DUE

    def poll(
        self, now_ms: int, notarization_of_final: Certificate | None, *, is_behind: bool
    ) -> list[EngineOutput]:
        """Ask the host for a block, or set the timer to do so, when it is this leader's turn.

        While others are known to be ahead (``is_behind``) the turn is most likely over: whoever executes what they decided has
        better to do than to build a block that nobody will vote for (L1).
        """
        leader = self._config.committee.get_leader(self._slot)
        if self._slot == GENESIS_SLOT or is_behind or not self._voter.is_local(leader):
            return []
        if self._phase not in {ProposalPhase.WAITING, ProposalPhase.DUE}:
            return []
        if self._tree.get_at_slot(self._slot):
            self._phase = ProposalPhase.DONE  # S4: proposed before a restart, or by another holder of the key
            return []
        parent = self._choose_parent()
        if parent is None or self._voter.has_skipped(leader, self._slot):
            return []
        wait_ms = compute_wait(self._config, parent.header.timestamp_ms, now_ms)
        if self._phase is ProposalPhase.WAITING and wait_ms > 0:
            self._phase = ProposalPhase.TIMED
            return [SetTimer(f"{TIMER_PROPOSE}{self._slot}", wait_ms)]
        self._phase = ProposalPhase.ASKED
        self._asked = (parent.hash, self._build_justification(parent, notarization_of_final))
        timestamp_ms = compute_timestamp(self._config, parent.header.timestamp_ms, now_ms)
        return [RequestBuild(self._slot, parent, timestamp_ms)]

    def accept(self, slot: int, block: Block) -> bool:
        """Tell whether ``block`` is the one asked for and still of use; at most one is (S4)."""
        leader = self._config.committee.get_leader(slot)
        if (
            self._phase is not ProposalPhase.ASKED
            or slot != self._slot
            or self._asked is None
            or block.header.parent != self._asked[0]
            or self._voter.has_skipped(leader, slot)
        ):
            return False
        self._phase = ProposalPhase.DONE
        return True

    def get_justification(self, slot: int, parent_hash: Hash32) -> Justification:
        """Return the justification of the block asked for; an empty one when the request is stale by now."""
        if slot == self._slot and self._asked is not None and self._asked[0] == parent_hash:
            return self._asked[1]
        return EMPTY_JUSTIFICATION

    def _choose_parent(self) -> Block | None:
        """Return the highest notarized block that is executed and can be justified; None while there is none."""
        tip = self._finals.tip
        for slot in range(self._slot - 1, tip.header.slot, -1):
            for block_hash in self._certificates.get_notarized(slot):
                entry = self._tree.get(block_hash)
                if entry is not None and entry.state is BlockState.VALID:
                    return entry.block
            if self._certificates.get_skip(slot) is None:
                return None
        return tip

    def _build_justification(self, parent: Block, notarization_of_final: Certificate | None) -> Justification:
        notarization = self._certificates.get_notarization(parent.header.slot, parent.hash)
        if parent.hash == self._finals.tip.hash:
            notarization = notarization_of_final
        skips = [self._certificates.get_skip(slot) for slot in range(parent.header.slot + 1, self._slot)]
        return Justification(
            notarization=notarization, skips=tuple(skip for skip in skips if skip is not None)
        )
