"""Evidence: pairs of signatures that no honest validator gives, and how to find them.

Slashable within one slot: two proposals; two NOTARs; two FINALs; FINAL and SKIP; NOTAR(h) and FINAL(h') with h != h'. Each
pair is self-contained: anyone with the committee can verify it. Two conflicting finality proofs always contain two
certificates whose common signers hold more than a third of the stake (C3; the argument is in docs/finality-proofs.md).
"""

from collections.abc import Iterable, Sequence
from itertools import combinations

import msgspec

from shardyard.blocks import CertifiedHeader, FinalityProof
from shardyard.consensus.votes import Certificate, Crypto, Domain, Vote, VoteKind, compute_vote_message
from shardyard.errors import InvalidProofError
from shardyard.quorum import decode_bitmap
from shardyard.validators import ValidatorSet


class VoteEvidence(msgspec.Struct, frozen=True, array_like=True):
    """Two votes of one validator that are slashable together."""

    first: Vote
    second: Vote


class CertificateEvidence(msgspec.Struct, frozen=True, array_like=True):
    """Two certificates of one slot that are slashable together, with the validators that signed both."""

    first: Certificate
    second: Certificate
    validators: tuple[int, ...]


def is_slashable(first: Vote | Certificate, second: Vote | Certificate) -> bool:
    """Tell whether one validator's signing both breaks S1 to S4."""
    if first.slot != second.slot:
        return False
    kinds = {first.kind, second.kind}
    if kinds == {VoteKind.FINAL, VoteKind.SKIP}:
        return True
    if first.block_hash == second.block_hash:
        return False
    return VoteKind.SKIP not in kinds and (len(kinds) == 1 or kinds == {VoteKind.NOTAR, VoteKind.FINAL})


def find_evidence(votes: Iterable[Vote]) -> list[VoteEvidence]:
    """Return every slashable pair among ``votes``, whose signatures the caller has verified."""
    by_key: dict[tuple[int, int], list[Vote]] = {}
    for vote in votes:
        by_key.setdefault((vote.validator, vote.slot), []).append(vote)
    return [
        VoteEvidence(first, second)
        for group in by_key.values()
        for first, second in combinations(group, 2)
        if is_slashable(first, second)
    ]


def verify_evidence(crypto: Crypto, domain: Domain, committee: ValidatorSet, evidence: VoteEvidence) -> None:
    """Raise ``InvalidProofError`` unless ``evidence`` proves that one validator of ``committee`` broke a rule."""
    first, second = evidence.first, evidence.second
    if first.validator != second.validator or not is_slashable(first, second):
        raise InvalidProofError("evidence: got two votes that are not slashable together")
    if not 0 <= first.validator < len(committee):
        raise InvalidProofError(
            f"evidence: got validator {first.validator}, expected 0..{len(committee) - 1}"
        )
    items = [
        (vote.validator, compute_vote_message(domain, vote.kind, vote.slot, vote.block_hash), vote.signature)
        for vote in (first, second)
    ]
    if not all(crypto.verify_votes(committee, items)):
        raise InvalidProofError(f"evidence against validator {first.validator}: a signature does not verify")


def find_conflict(
    first: FinalityProof, second: FinalityProof, size: int, ancestry: Sequence[CertifiedHeader] = ()
) -> list[CertificateEvidence]:
    """Return the slashable certificate pairs in two conflicting, verified proofs of a committee of ``size``.

    ``ancestry`` may add certified ancestors of either proof when their slots are far apart (C3: justifications are needed
    down to the first block at or below the other proof's slot).
    """
    certificates: dict[Certificate, None] = {}
    for proof in (first, second):
        certificates.update(dict.fromkeys((proof.notarization, proof.finalization)))
        for step in proof.path:
            certificates.update(dict.fromkeys(_certificates_of(step)))
    for step in ancestry:
        certificates.update(dict.fromkeys(_certificates_of(step)))
    found = []
    for one, other in combinations(certificates, 2):
        if is_slashable(one, other):
            common = sorted(set(decode_bitmap(one.bitmap, size)) & set(decode_bitmap(other.bitmap, size)))
            found.append(CertificateEvidence(one, other, tuple(common)))
    return found


def _certificates_of(step: CertifiedHeader) -> tuple[Certificate, ...]:
    notarization = step.justification.notarization
    return step.justification.skips if notarization is None else (notarization, *step.justification.skips)
