"""A shard's chain of headers with real certificates, made with the keys of a network that never ran."""

import msgspec

from node.network import Network
from shardyard import _native
from shardyard.blocks import Block, Justification, compute_body_hash
from shardyard.consensus.proofs import build_certified_header, build_finality_proof
from shardyard.consensus.votes import Certificate, VoteKind, compute_vote_message
from shardyard.genesis import Genesis
from shardyard.ids import ZERO_HASH, Height, Millis, ShardId, Slot
from shardyard.quorum import encode_bitmap

SHARD = ShardId(0)
EVERYBODY = (0, 1, 2, 3)


class CertifiedChain:
    """Blocks on the first shard of ``genesis``, by default the network's; its validators sign what they are told to."""

    def __init__(self, network: Network, genesis: Genesis | None = None) -> None:
        self.network = network
        self.genesis = genesis or network.genesis
        self.domain = self.genesis.get_domain(SHARD)
        self.committee = self.genesis.committees[SHARD]
        self.secrets = network.read_validator_secrets(SHARD, EVERYBODY)
        self.blocks: list[Block] = [self.genesis.build_shard_block(SHARD)]

    def sign(self, kind, slot, block_hash, signers=EVERYBODY):
        message = compute_vote_message(self.domain, kind, slot, block_hash)
        signatures = _native.bls_sign_many([self.secrets[one] for one in signers], message)
        return Certificate(
            kind=kind,
            slot=Slot(slot),
            block_hash=block_hash,
            bitmap=encode_bitmap(signers, len(self.committee)),
            signature=_native.bls_aggregate(signatures),
        )

    def extend(self, skipped=0, body=b""):
        """Append a block ``skipped`` slots later than it could be and return it."""
        parent = self.blocks[-1]
        slot = Slot(parent.header.slot + 1 + skipped)
        justification = Justification(
            notarization=self.sign(VoteKind.NOTAR, parent.header.slot, parent.hash)
            if parent.header.slot
            else None,
            skips=tuple(
                self.sign(VoteKind.SKIP, missed, ZERO_HASH) for missed in range(parent.header.slot + 1, slot)
            ),
        )
        header = msgspec.structs.replace(
            parent.header,
            slot=slot,
            height=Height(parent.header.height + 1),
            parent=parent.hash,
            parent_slot=parent.header.slot,
            justification_hash=justification.hash,
            timestamp_ms=Millis(parent.header.timestamp_ms + 1000),
            proposer=self.committee.get_leader(slot),
            body_hash=compute_body_hash(body),
        )
        block = Block(header, justification, body, bytes(96), b"")
        self.blocks.append(block)
        return block

    def prove(self, height, tip=None, signers=EVERYBODY):
        """Return the finality proof of the block at ``height`` by the certificates of ``tip``."""
        path = [build_certified_header(block) for block in self.blocks[height : (tip or height) + 1]]
        last = self.blocks[tip or height]
        return build_finality_proof(
            path[:-1],
            path[-1],
            self.sign(VoteKind.NOTAR, last.header.slot, last.hash, signers),
            self.sign(VoteKind.FINAL, last.header.slot, last.hash, signers),
        )
