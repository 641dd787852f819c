"""Which proposals a slot may bring: one of its leader; a second one is evidence, a third one noise (S4).

Checks go from cheap to dear: shape of the header, the leader's signature, then body and justification; so a stranger
cannot make this node hash megabytes or verify certificates. A block that certificates speak for counts without its leader's
signature, which is outside the hash; what came in its place is kept only when it verifies (L12).
"""

from collections.abc import Sequence

import msgspec

from shardyard.blocks import Block
from shardyard.consensus.evidence import VoteEvidence
from shardyard.consensus.justify import check_header
from shardyard.consensus.votes import Crypto, Domain, Vote, VoteKind, compute_vote_message
from shardyard.errors import InvalidBlockError
from shardyard.validators import SIGNATURE_BYTES, ValidatorSet

MAX_PROPOSALS = 2
"""Signed proposals remembered per slot."""


class ProposalBook:
    """The leaders' signatures seen above the last final slot."""

    def __init__(self, crypto: Crypto, domain: Domain, committee: ValidatorSet) -> None:
        self._crypto = crypto
        self._domain = domain
        self._committee = committee
        self._signed: dict[int, list[Vote]] = {}

    def is_full(self, block: Block) -> bool:
        """Tell whether enough other proposals of this slot were seen.

        One that was seen before is looked at again: a stranger may have sent the leader's header with another body first.
        """
        signed = self._signed.get(block.header.slot, [])
        return len(signed) >= MAX_PROPOSALS and all(vote.block_hash != block.hash for vote in signed)

    def is_first(self, block: Block) -> bool:
        """Tell whether this is the first block that its leader signed for its slot, as seen from here (L2)."""
        signed = self._signed.get(block.header.slot, [])
        return bool(signed) and signed[0].block_hash == block.hash

    def admit(self, block: Block) -> VoteEvidence | None:
        """Check that the leader signed ``block``; return evidence when it signed another one of this slot before.

        Raises ``InvalidBlockError``. Body and justification are left to the caller.
        """
        header = block.header
        check_header(header, self._domain, self._committee)
        if len(block.signature) != SIGNATURE_BYTES:
            raise InvalidBlockError(
                f"proposal of slot {header.slot}: got {len(block.signature)} bytes of signature"
            )
        if not self._verify([block])[0]:
            raise InvalidBlockError(f"proposal of slot {header.slot}: the leader's signature does not verify")
        return self.record(
            Vote(
                kind=VoteKind.PROPOSE,
                slot=header.slot,
                block_hash=block.hash,
                validator=header.proposer,
                signature=block.signature,
            )
        )

    def record(self, vote: Vote) -> VoteEvidence | None:
        """Remember a leader's verified signature; return evidence when it is the second of its slot."""
        signed = self._signed.setdefault(vote.slot, [])
        if any(other.block_hash == vote.block_hash for other in signed) or len(signed) >= MAX_PROPOSALS:
            return None
        signed.append(vote)
        return VoteEvidence(signed[0], vote) if len(signed) > 1 else None

    def authenticate(self, blocks: Sequence[Block]) -> list[Block]:
        """L12: return ``blocks``, whose headers are checked, each with its leader's signature or with none.

        One that was seen before is not verified again, and comes back where the sender left it out.
        """
        known = {
            vote.block_hash: vote.signature
            for block in blocks
            for vote in self._signed.get(block.header.slot, [])
        }
        unknown = [block for block in blocks if block.signature and block.hash not in known]
        verdicts = self._verify(unknown) if unknown else []
        known |= {
            block.hash: block.signature
            for block, is_signed in zip(unknown, verdicts, strict=True)
            if is_signed
        }
        return [_replace_signature(block, known.get(block.hash, b"")) for block in blocks]

    def _verify(self, blocks: Sequence[Block]) -> list[bool]:
        """Tell for each of ``blocks`` whether its leader signed it; one batch."""
        items: list[tuple[int, bytes, bytes]] = []
        for block in blocks:
            message = compute_vote_message(self._domain, VoteKind.PROPOSE, block.header.slot, block.hash)
            items.append((block.header.proposer, message, block.signature))
        return self._crypto.verify_votes(self._committee, items)

    def prune(self, floor: int) -> None:
        """Forget slots up to ``floor``."""
        self._signed = {slot: signed for slot, signed in self._signed.items() if slot > floor}


def _replace_signature(block: Block, signature: bytes) -> Block:
    return block if block.signature == signature else msgspec.structs.replace(block, signature=signature)
