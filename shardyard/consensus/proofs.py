"""Finality proofs: the only thing that beacon, shards and light clients accept as final (A2).

A proof of a block is NotarCert and FinalCert of it or of a descendant, with the certified path between. The path carries
headers *with* their justifications, all verified: with bare headers two conflicting proofs would not expose a slashable
pair (C3).
"""

from collections.abc import Callable, Sequence

from shardyard.blocks import Block, CertifiedHeader, FinalityProof, Header
from shardyard.consensus.justify import check_header, check_justification, verify_justification
from shardyard.consensus.votes import Certificate, Crypto, Domain, VoteKind, verify_certificate
from shardyard.errors import InvalidBlockError, InvalidCertificateError, InvalidProofError
from shardyard.validators import ValidatorSet

MAX_PROOF_PATH = 1024
"""Headers in one proof: how long a chain may grow between two finalisations and still be provable."""


def build_certified_header(block: Block) -> CertifiedHeader:
    """Return the step that ``block`` is in a certified path."""
    return CertifiedHeader(header=block.header, justification=block.justification)


def build_finality_proof(
    ancestors: Sequence[CertifiedHeader],
    tip: CertifiedHeader,
    notarization: Certificate,
    finalization: Certificate,
) -> FinalityProof:
    """Return the proof of ``ancestors[0]`` (or of ``tip``) by the certificates of ``tip``."""
    return FinalityProof(path=(*ancestors, tip), notarization=notarization, finalization=finalization)


def extend_proof(proof: FinalityProof, parent: Block) -> FinalityProof:
    """Return the proof of ``parent`` by the proof of its child."""
    return FinalityProof(
        path=(build_certified_header(parent), *proof.path),
        notarization=proof.notarization,
        finalization=proof.finalization,
    )


def get_notarization(proof: FinalityProof) -> Certificate:
    """Return the NotarCert of the proven block: the tip's, or the one that the next block of the path carries."""
    if len(proof.path) == 1:
        return proof.notarization
    notarization = proof.path[1].justification.notarization
    assert notarization is not None, "a verified path has the NotarCert of every parent"
    return notarization


def verify_finality_proof(
    crypto: Crypto, domain: Domain, committee: ValidatorSet, proof: FinalityProof
) -> Header:
    """Return the header that ``proof`` proves; raise ``InvalidProofError`` if it proves nothing."""
    return verify_proof_with(
        lambda certificate: verify_certificate(crypto, domain, committee, certificate),
        domain,
        committee,
        proof,
    )


def verify_proof_with(
    verify: Callable[[Certificate], None], domain: Domain, committee: ValidatorSet, proof: FinalityProof
) -> Header:
    """As ``verify_finality_proof``, with the verifier of certificates given: an engine has one that remembers."""
    if not 1 <= len(proof.path) <= MAX_PROOF_PATH:
        raise InvalidProofError(
            f"finality proof: got a path of {len(proof.path)}, expected 1 to {MAX_PROOF_PATH}"
        )
    tip = proof.path[-1].header
    for certificate, kind in ((proof.notarization, VoteKind.NOTAR), (proof.finalization, VoteKind.FINAL)):
        if certificate.kind is not kind or certificate.slot != tip.slot or certificate.block_hash != tip.hash:
            raise InvalidProofError(
                f"finality proof: expected a {kind.name} certificate of the tip in slot {tip.slot}"
            )
    try:
        _check_path(proof.path, domain, committee)
        verify(proof.notarization)
        verify(proof.finalization)
        for step in proof.path:
            verify_justification(step.justification, verify)
    except (InvalidBlockError, InvalidCertificateError) as error:
        raise InvalidProofError(f"finality proof: {error}") from error
    return proof.path[0].header


def _check_path(path: Sequence[CertifiedHeader], domain: Domain, committee: ValidatorSet) -> None:
    """Check shape and links of a path; slots and kinds are checked at every step (E3)."""
    for index, step in enumerate(path):
        check_header(step.header, domain, committee)
        check_justification(step.header, step.justification)
        if index and (step.header.parent != path[index - 1].header.hash):
            raise InvalidProofError(
                f"finality proof: header {index} of the path is no child of the one before"
            )
        if index and (
            step.header.parent_slot != path[index - 1].header.slot
            or step.header.height != path[index - 1].header.height + 1
        ):
            raise InvalidProofError(f"finality proof: header {index} of the path misstates its parent")
