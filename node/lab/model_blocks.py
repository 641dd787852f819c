"""The blocks of the model check: real headers, justifications, certificates and proofs for what the votes allow.

``check_header``, ``check_justification`` and ``verify_finality_proof`` say what stands: a block exists when some justification
made of the certificates at hand passes, complete or not.
"""

import itertools
from collections.abc import Iterator
from typing import Final

from node.lab.model_votes import NETWORK, Committee, ModelBlock, ModelVote, Outcome
from node.sim.mock_crypto import MockCrypto, sign_mock
from shardyard.blocks import (
    BeaconContent,
    BlockKind,
    CertifiedHeader,
    FinalityProof,
    Header,
    Justification,
    build_genesis_block,
    compute_body_hash,
)
from shardyard.consensus.justify import check_header, check_justification
from shardyard.consensus.proofs import build_finality_proof, verify_finality_proof
from shardyard.consensus.votes import Certificate, Vote, VoteKind, build_certificate, compute_vote_message
from shardyard.errors import InvalidBlockError
from shardyard.ids import BEACON, GENESIS_SLOT, ZERO_HASH, Epoch, Hash32, Height, Millis, Slot

CRYPTO: Final = MockCrypto()
CONTENT: Final = BeaconContent(
    crosslinks_root=ZERO_HASH, crosslink_count=0, state_root=ZERO_HASH, registry_root=ZERO_HASH
)
GENESIS: Final = build_genesis_block(NETWORK, BEACON, 0, CONTENT)


class Realisation:
    """The headers, justifications and certificates behind model blocks, for one outcome of every slot."""

    def __init__(self, committee: Committee, outcomes: tuple[Outcome, ...]) -> None:
        self._committee = committee
        self._voters = {
            (slot, vote): voters
            for slot, outcome in enumerate(outcomes, start=1)
            for vote, voters in outcome.certificates
        }
        self._steps: dict[ModelBlock, CertifiedHeader | None] = {}
        self._blocks: dict[Hash32, ModelBlock] = {}

    def has(self, kind: VoteKind, slot: int, block: ModelBlock | None) -> bool:
        """Tell whether a certificate exists."""
        return (slot, ModelVote(kind, block)) in self._voters

    def get_final(self) -> list[ModelBlock]:
        """Return the blocks with a FinalCert, by slot."""
        found = [vote.block for _, vote in self._voters if vote.kind is VoteKind.FINAL and vote.block]
        return sorted(found, key=repr)

    def get_quorums(self, certificate: Certificate) -> list[tuple[int, ...]]:
        """Return every set of members that can fill ``certificate``."""
        block = None if certificate.kind is VoteKind.SKIP else self._blocks[certificate.block_hash]
        voters = self._voters[certificate.slot, ModelVote(certificate.kind, block)]
        return self._committee.get_quorums(voters)

    def build_certificate(self, kind: VoteKind, slot: int, block: ModelBlock | None) -> Certificate:
        """Return an existing certificate, filled by all who signed."""
        committee = self._committee
        step = self.build(block) if block else None
        block_hash = step.header.hash if step else ZERO_HASH
        message = compute_vote_message(committee.domain, kind, slot, block_hash)
        votes = []
        for index in committee.get_quorums(self._voters[slot, ModelVote(kind, block)])[-1]:
            signature = sign_mock(committee.validators.validators[index].public_key, message)
            votes.append(Vote(kind, Slot(slot), block_hash, index, signature))
        return build_certificate(CRYPTO, committee.validators, votes)

    def build(self, block: ModelBlock) -> CertifiedHeader | None:
        """Return a block that the rules accept with the certificates there are, or None."""
        if block not in self._steps:
            self._steps[block] = self._build(block)
        return self._steps[block]

    def _build(self, block: ModelBlock) -> CertifiedHeader | None:
        parent = self.build(block.parent) if block.parent else None
        if block.parent and parent is None:
            return None
        above = parent.header if parent else GENESIS.header
        for justification in self._get_justifications(block):
            header = self._build_header(block, above, justification)
            try:
                check_header(header, self._committee.domain, self._committee.validators)
                check_justification(header, justification)
            except InvalidBlockError:
                continue
            self._blocks[header.hash] = block
            return CertifiedHeader(header, justification)
        return None

    def _get_justifications(self, block: ModelBlock) -> Iterator[Justification]:
        """Yield what a leader may try with the certificates there are, the most complete first."""
        above = block.parent.slot if block.parent else GENESIS_SLOT
        skips = tuple(
            self.build_certificate(VoteKind.SKIP, slot, None)
            for slot in range(above + 1, block.slot)
            if self.has(VoteKind.SKIP, slot, None)
        )
        notarization = None
        if block.parent and self.has(VoteKind.NOTAR, above, block.parent):
            notarization = self.build_certificate(VoteKind.NOTAR, above, block.parent)
        for count in range(len(skips), -1, -1):
            for chosen in itertools.combinations(skips, count):
                yield Justification(notarization, chosen)
                if notarization is not None:
                    yield Justification(None, chosen)

    def _build_header(self, block: ModelBlock, above: Header, justification: Justification) -> Header:
        return Header(
            version=1,
            network=NETWORK,
            shard=BEACON,
            epoch=Epoch(0),
            kind=BlockKind.NORMAL,
            slot=Slot(block.slot),
            height=Height(above.height + 1),
            parent=above.hash,
            parent_slot=above.slot,
            justification_hash=justification.hash,
            timestamp_ms=Millis(above.timestamp_ms + 1 + block.variant),
            proposer=self._committee.validators.get_leader(block.slot),
            body_hash=compute_body_hash(b""),
            content=CONTENT,
        )

    def prove(self, block: ModelBlock) -> FinalityProof | None:
        """Return the finality proof of a block, verified, or None when there is none."""
        tip = self.build(block)
        if tip is None or not (
            self.has(VoteKind.NOTAR, block.slot, block) and self.has(VoteKind.FINAL, block.slot, block)
        ):
            return None
        notarization = self.build_certificate(VoteKind.NOTAR, block.slot, block)
        finalization = self.build_certificate(VoteKind.FINAL, block.slot, block)
        proof = build_finality_proof((), tip, notarization, finalization)
        verify_finality_proof(CRYPTO, self._committee.domain, self._committee.validators, proof)
        return proof

    def build_ancestry(self, block: ModelBlock, floor: int) -> list[CertifiedHeader]:
        """Return the certified ancestors of ``block`` down to the first at or below slot ``floor`` (C3)."""
        found = []
        while block.parent and block.slot > floor:
            block = block.parent
            step = self.build(block)
            assert step is not None, "a block stands on blocks that the rules accept"
            found.append(step)
        return found


def is_conflict(first: ModelBlock, second: ModelBlock) -> bool:
    """Tell whether neither block is the other or above it."""
    return not (_descends(first, second) or _descends(second, first))


def _descends(block: ModelBlock | None, other: ModelBlock) -> bool:
    while block is not None:
        if block == other:
            return True
        block = block.parent
    return False
