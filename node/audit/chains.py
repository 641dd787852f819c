"""One chain by itself: headers, bodies, proposals, justifications, finality proofs, and certificates that must not meet.

Everything is checked with the rules that validators use, in every log, from genesis or a snapshot on, and every signature is
verified again; what several logs have alike is verified once. What needs execution or the beacon is checked elsewhere.
"""

from collections.abc import Sequence

from node.audit.findings import Findings, Promise
from node.audit.logs import ChainLog, Span
from node.audit.stretches import Hashes, compare_stretches
from shards.policy import verify_body, verify_header
from shardyard.blocks import BeaconContent, Block, FinalityProof, ShardContent
from shardyard.codec import decode
from shardyard.consensus.justify import check_block, check_link, verify_justification
from shardyard.consensus.proofs import verify_proof_with
from shardyard.consensus.votes import Certificate, VoteKind, compute_vote_message, verify_certificate
from shardyard.errors import InvalidProofError, RemoteProtocolError
from shardyard.genesis import Genesis
from shardyard.hashing import TAG_PROPOSAL, TAG_VOTE, hash_struct, hash_tagged
from shardyard.ids import BEACON, Hash32, ShardId, describe_shard
from shardyard.keys import BlsCrypto
from shardyard.messages import MAX_MESSAGE_BYTES


class CertificateBook:
    """Verifies certificates once each and notices those that cannot both be honest (slashable pairs)."""

    def __init__(self, genesis: Genesis, chain: ShardId, crypto: BlsCrypto, findings: Findings) -> None:
        self.domain = genesis.get_domain(chain)
        self.committee = genesis.committees[chain]
        self.verified = 0
        self._where = describe_shard(chain)
        self._crypto = crypto
        self._findings = findings
        self._known: set[Hash32] = set()
        self._by_slot: dict[int, Hash32] = {}
        """What certificates are about, by slot and kind in one number."""

    def verify(self, certificate: Certificate) -> None:
        """Raise ``InvalidCertificateError`` unless ``certificate`` is one of the committee."""
        key = hash_struct(TAG_VOTE, certificate)
        if key in self._known:
            return
        verify_certificate(self._crypto, self.domain, self.committee, certificate)
        self.verified += 1
        self._known.add(key)
        self._notice(certificate)

    def verify_proposal(self, block: Block) -> None:
        """S4: the leader of the slot signed ``block``. A leader's own log has it from before it was signed (S5).

        Raises ``RemoteProtocolError`` when the signature is not the leader's.
        """
        header = block.header
        if not block.signature:
            return
        key = hash_tagged(TAG_PROPOSAL, block.hash + block.signature)
        if key in self._known:
            return
        message = compute_vote_message(self.domain, VoteKind.PROPOSE, header.slot, block.hash)
        if self._crypto.verify_votes(self.committee, [(header.proposer, message, block.signature)]) != [True]:
            raise RemoteProtocolError("the leader's signature does not verify")
        self._known.add(key)

    def _notice(self, certificate: Certificate) -> None:
        slot, kind, block_hash = certificate.slot, certificate.kind, Hash32(certificate.block_hash)
        others = {
            VoteKind.NOTAR: (VoteKind.NOTAR, VoteKind.FINAL),
            VoteKind.FINAL: (VoteKind.FINAL, VoteKind.NOTAR, VoteKind.SKIP),
            VoteKind.SKIP: (VoteKind.SKIP, VoteKind.FINAL),
            VoteKind.PROPOSE: (VoteKind.PROPOSE,),
        }[kind]
        held = [self._by_slot.get(slot * len(VoteKind) + other, block_hash) for other in others]
        self._by_slot.setdefault(slot * len(VoteKind) + kind, block_hash)
        if any(other != block_hash for other in held):
            self._findings.add(Promise.FINALITY, f"{self._where} slot {slot}", "two certificates conflict")


def verify_chain(
    genesis: Genesis,
    replicas: Sequence[ChainLog],
    book: CertificateBook,
    beacon: CertificateBook,
    findings: Findings,
) -> Hashes:
    """Check the chain in each of ``replicas``: every block, its proofs, and all certificates.

    ``book`` is the chain's own, ``beacon`` the beacon's. Returns the hashes of the blocks from genesis up to where some log
    has one that fits its parent, genesis first; a log goes on where another one ends.
    """
    spans = sorted(
        ((log, span) for log in replicas for span in log.spans),
        key=lambda item: (item[1].base, -item[1].last),
    )
    hashes = Hashes([genesis.get_genesis_block(replicas[0].chain).hash])
    for log, span in spans:
        last = _verify_span(genesis, log, span, book, beacon, findings)
        height = len(hashes) - 1
        if span.base > height:
            findings.add(
                Promise.CHAINS,
                f"{log.node} block {span.base}",
                f"no log has a sound chain from genesis to here, the others end at {height}: it cannot be executed again",
            )
        elif height == 0 or span.find_hash(height) == hashes[height]:
            for above in range(height + 1, last + 1):
                hashes.append(span.hashes[above - span.first])
    for log in replicas:
        for certificate in log.iterate_certificates():
            try:
                book.verify(certificate)
            except RemoteProtocolError as error:
                findings.add(Promise.FINALITY, log.node, f"a certificate in the log: {error}")
    findings.count(Promise.FINALITY, book.verified)
    return hashes


def _verify_span(
    genesis: Genesis,
    log: ChainLog,
    span: Span,
    book: CertificateBook,
    beacon: CertificateBook,
    findings: Findings,
) -> int:
    """Check the blocks of ``span``; return the height of the last that fits its parent."""
    parent, last = genesis.get_genesis_block(log.chain), span.base
    expected = BeaconContent if log.chain == BEACON else ShardContent
    snapshot = log.get_snapshot(span)
    if snapshot is not None:
        parent = snapshot.block
        _verify_proven(book, snapshot.block, snapshot.proof, f"{log.node} block {span.base}", findings)
    for block, proof in log.iterate_finals(span):
        where = f"{log.node} block {block.header.height}"
        findings.count(Promise.CHAINS)
        try:
            check_block(block, book.domain, book.committee)
            check_link(block.header, parent.header, genesis.preset.max_step_ms)
            if log.chain != BEACON:
                verify_header(genesis, parent.header, block.header)
                verify_body(genesis.preset, block)
            book.verify_proposal(block)
            if log.chain != BEACON:
                _verify_reference(beacon, parent, block)
        except RemoteProtocolError as error:
            findings.add(Promise.CHAINS, where, str(error))
            if block.header.parent != parent.hash or not isinstance(block.header.content, expected):
                break  # what follows belongs to another chain
        _verify_finality(book, block, proof, where, findings)
        parent, last = block, last + 1  # whatever height the header says
    return last


def _verify_proven(
    book: CertificateBook, block: Block, proof: FinalityProof, where: str, findings: Findings
) -> None:
    """Check a final block of which the log does not have the parent."""
    findings.count(Promise.CHAINS)
    try:
        check_block(block, book.domain, book.committee)
    except RemoteProtocolError as error:
        findings.add(Promise.CHAINS, where, str(error))
    _verify_finality(book, block, proof, where, findings)


def _verify_reference(beacon: CertificateBook, parent: Block, block: Block) -> None:
    """X0: the finality proof of the beacon block that a block refers to travels with it when the reference moves."""
    ref = block.header.shard_content.beacon_ref
    if ref == parent.header.shard_content.beacon_ref and not block.beacon_proof:
        return
    proof = decode(block.beacon_proof, FinalityProof, max_bytes=MAX_MESSAGE_BYTES)
    if verify_proof_with(beacon.verify, beacon.domain, beacon.committee, proof).hash != ref.hash:
        raise InvalidProofError("the proof of its beacon reference is another block's")


def _verify_finality(
    book: CertificateBook, block: Block, proof: FinalityProof, where: str, findings: Findings
) -> None:
    findings.count(Promise.FINALITY)
    try:
        verify_justification(block.justification, book.verify)  # A1
        proven = verify_proof_with(book.verify, book.domain, book.committee, proof)  # A2
    except RemoteProtocolError as error:
        findings.add(Promise.FINALITY, where, str(error))
        return
    if proven.hash != block.hash:
        findings.add(Promise.FINALITY, where, "the finality proof is another block's")


def compare_replicas(logs: Sequence[ChainLog], findings: Findings) -> list[ChainLog]:
    """Return the logs of one chain, the longest from genesis first. All must agree where two have the same height (I5).

    A log of a node that came by a snapshot is compared before the snapshot, at its block, and from there on.
    """
    compare_stretches([span for log in logs for span in log.spans], findings)
    return sorted(logs, key=lambda log: (log.spans[0].base, -log.spans[0].last) if log.spans else (0, 0))


def verify_followed(
    logs: Sequence[ChainLog], hashes: Hashes, beacon: CertificateBook, findings: Findings
) -> None:
    """Check that the beacon blocks that shards followed are the beacon's (I5, I8); ``hashes`` are the beacon's by height.

    A shard may be ahead of what was read of the beacon: there the proofs are checked, and shards must agree.
    """
    compare_stretches([log.followed for log in logs], findings)
    for log in logs:
        for height, block_hash in log.followed.iterate():
            where = f"{log.node} beacon block {height}"
            if height < len(hashes) and block_hash != hashes[height]:
                findings.add(Promise.CHAINS, where, "the shard followed another beacon chain")
                break
            record = log.get_followed(height)
            assert record is not None, "its place was taken from its record"
            _verify_proven(beacon, record.block, record.proof, where, findings)


__all__ = ["CertificateBook", "compare_replicas", "verify_chain", "verify_followed"]
