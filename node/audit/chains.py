"""One chain by itself: headers, bodies, proposals, justifications, finality proofs, and certificates that must not meet.

Everything is checked with the rules that validators use, from genesis on, and every signature is verified again. What
needs execution or the beacon is checked elsewhere.
"""

from collections.abc import Sequence

from node.audit.findings import Findings, Promise
from node.audit.logs import ChainLog, iterate_chain
from shards.policy import verify_body, verify_header
from shardyard.blocks import BeaconContent, Block, FinalityProof, ShardContent
from shardyard.codec import decode
from shardyard.consensus.justify import check_block, check_link, verify_justification
from shardyard.consensus.proofs import verify_proof_with
from shardyard.consensus.votes import Certificate, VoteKind, compute_vote_message, verify_certificate
from shardyard.errors import InvalidProofError, RemoteProtocolError
from shardyard.genesis import Genesis
from shardyard.hashing import TAG_VOTE, hash_struct
from shardyard.ids import BEACON, Hash32
from shardyard.keys import BlsCrypto
from shardyard.messages import MAX_MESSAGE_BYTES


class CertificateBook:
    """Verifies certificates once each and notices those that cannot both be honest (slashable pairs)."""

    def __init__(self, genesis: Genesis, log: ChainLog, crypto: BlsCrypto, findings: Findings) -> None:
        self.domain = genesis.get_domain(log.chain)
        self.committee = genesis.committees[log.chain]
        self.verified = 0
        self._where = log.node
        self._crypto = crypto
        self._findings = findings
        self._known: set[Hash32] = set()
        self._by_slot: dict[tuple[int, VoteKind], Hash32] = {}

    def verify(self, certificate: Certificate) -> None:
        """Raise ``InvalidCertificateError`` unless ``certificate`` is one of the committee."""
        key = hash_struct(TAG_VOTE, certificate)
        if key in self._known:
            return
        verify_certificate(self._crypto, self.domain, self.committee, certificate)
        self.verified += 1
        self._known.add(key)
        self._notice(certificate)

    def _notice(self, certificate: Certificate) -> None:
        slot, kind, block_hash = certificate.slot, certificate.kind, certificate.block_hash
        held = self._by_slot.setdefault((slot, kind), Hash32(block_hash))
        others = {
            VoteKind.NOTAR: (VoteKind.FINAL,),
            VoteKind.FINAL: (VoteKind.NOTAR, VoteKind.SKIP),
            VoteKind.SKIP: (VoteKind.FINAL,),
            VoteKind.PROPOSE: (),
        }[kind]
        conflicts = held != block_hash or any(
            self._by_slot.get((slot, other), block_hash) != block_hash for other in others
        )
        if conflicts:
            self._findings.add(Promise.FINALITY, f"{self._where} slot {slot}", "two certificates conflict")


def verify_chain(
    genesis: Genesis,
    replicas: Sequence[ChainLog],
    book: CertificateBook,
    beacon: CertificateBook,
    crypto: BlsCrypto,
    findings: Findings,
) -> list[Hash32]:
    """Check the chain in the first of ``replicas``, and the certificates in all of them.

    ``book`` is the chain's own, ``beacon`` the beacon's. Returns the hashes of the blocks up to the last that fits its
    parent, genesis first.
    """
    log = replicas[0]
    parent = genesis.get_genesis_block(log.chain)
    hashes = [parent.hash]
    expected = BeaconContent if log.chain == BEACON else ShardContent
    for block, proof in iterate_chain(log, findings):
        where = f"{log.node} block {block.header.height}"
        findings.count(Promise.CHAINS)
        try:
            check_block(block, book.domain, book.committee)
            check_link(block.header, parent.header, genesis.preset.max_step_ms)
            if log.chain != BEACON:
                verify_header(genesis, parent.header, block.header)
                verify_body(genesis.preset, block)
            _verify_proposal(book, crypto, block)
            if log.chain != BEACON:
                _verify_reference(beacon, parent, block)
        except RemoteProtocolError as error:
            findings.add(Promise.CHAINS, where, str(error))
            if block.header.parent != parent.hash or not isinstance(block.header.content, expected):
                break  # what follows belongs to another chain
        _verify_finality(book, block, proof, where, findings)
        hashes.append(block.hash)
        parent = block
    for replica in replicas:
        for certificate in replica.certificates:
            try:
                book.verify(certificate)
            except RemoteProtocolError as error:
                findings.add(Promise.FINALITY, replica.node, f"a certificate in the log: {error}")
    findings.count(Promise.FINALITY, book.verified)
    return hashes


def _verify_proposal(book: CertificateBook, crypto: BlsCrypto, block: Block) -> None:
    """S4: the leader of the slot signed this block. A leader's own log has it from before it was signed (S5)."""
    header = block.header
    if not block.signature:
        return
    message = compute_vote_message(book.domain, VoteKind.PROPOSE, header.slot, block.hash)
    if crypto.verify_votes(book.committee, [(header.proposer, message, block.signature)]) != [True]:
        raise RemoteProtocolError("the leader's signature does not verify")


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
    """Return the logs of one chain, the longest from genesis first; the others must agree with it (I5).

    A log of a node that came by a snapshot begins later, and is compared from there on.
    """
    ordered = sorted(logs, key=lambda log: (log.base, -log.height))
    longest = ordered[0]
    if longest.base:
        findings.add(
            Promise.CHAINS,
            longest.node,
            f"no log of this chain begins at genesis, the first one at {longest.base}: it cannot be executed again",
        )
    for log in ordered[1:]:
        for height in range(max(log.base, 1), min(log.height, longest.height) + 1):
            if log.find_final_hash(height) != longest.find_final_hash(height):
                findings.add(
                    Promise.FINALITY,
                    f"{log.node} block {height}",
                    f"{longest.node} has another final block there",
                )
                break
    return ordered


def verify_followed(
    log: ChainLog, hashes: Sequence[Hash32], beacon: CertificateBook, findings: Findings
) -> None:
    """Check that the beacon blocks a shard followed are the beacon's (I5, I8); ``hashes`` are the beacon's by height."""
    height = 1
    while height < len(hashes) and (record := log.get_followed(height)) is not None:
        where = f"{log.node} beacon block {height}"
        findings.count(Promise.CHAINS)
        if record.block.hash != hashes[height]:
            findings.add(Promise.CHAINS, where, "the shard followed another beacon chain")
            return
        try:
            check_block(record.block, beacon.domain, beacon.committee)
        except RemoteProtocolError as error:
            findings.add(Promise.CHAINS, where, str(error))
        _verify_finality(beacon, record.block, record.proof, where, findings)
        height += 1


__all__ = ["CertificateBook", "compare_replicas", "verify_chain", "verify_followed"]
