"""Beacon blocks as a shard reads them: what a body must be, and what a range of blocks must be to be believed (A2)."""

from collections.abc import Sequence

from shardyard.blocks import BeaconContent, Block, FinalityProof, compute_body_hash
from shardyard.codec import decode
from shardyard.consensus.proofs import extend_proof, verify_finality_proof
from shardyard.consensus.votes import Crypto, Domain
from shardyard.crosslinks import BeaconBody, compute_crosslinks_root
from shardyard.errors import InvalidBlockError, InvalidProofError
from shardyard.genesis import Genesis
from shardyard.validators import ValidatorSet


def verify_range(
    crypto: Crypto,
    domain: Domain,
    committee: ValidatorSet,
    blocks: Sequence[Block],
    proof: FinalityProof,
    max_blocks: int,
) -> list[tuple[Block, FinalityProof]]:
    """Return the blocks of a range, each with a proof made from the proof of the last one; raises ``RemoteProtocolError``."""
    if len(blocks) > max_blocks:
        raise InvalidProofError(f"range: got {len(blocks)} blocks, expected at most {max_blocks}")
    if not proof.path or proof.path[0].header != blocks[-1].header:
        raise InvalidProofError("range: the proof is not the last block's")
    for block in blocks:
        _verify_body(block)
    proofs = [proof]
    for block in reversed(blocks[:-1]):
        proofs.append(extend_proof(proofs[-1], block))
    proofs.reverse()
    # The first proof's path runs over every block of the range, so one verification covers all.
    verify_finality_proof(crypto, domain, committee, proofs[0])
    return list(zip(blocks, proofs, strict=True))


def decode_beacon_body(genesis: Genesis, block: Block) -> BeaconBody:
    """Return the crosslinks of a beacon block; raises ``RemoteProtocolError`` unless the header commits to
    them.
    """
    content = block.header.content
    if not isinstance(content, BeaconContent) or block.header.network != genesis.network:
        raise InvalidBlockError(f"beacon block: got one of shard {block.header.shard} or of another network")
    _verify_body(block)
    body = decode(block.body, BeaconBody, max_bytes=genesis.preset.max_body_bytes)
    if content.crosslinks_root != compute_crosslinks_root(body.crosslinks):
        raise InvalidBlockError(f"beacon block {block.header.height}: the crosslinks are not the header's")
    return body


def _verify_body(block: Block) -> None:
    if compute_body_hash(block.body) != block.header.body_hash:
        raise InvalidBlockError(f"beacon block {block.header.height}: the body is not the header's")
