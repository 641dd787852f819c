"""The log of an honest follower passes the audit, whatever a peer put in the place of the leaders' signatures."""

import msgspec
import pytest

from node.audit.chains import CertificateBook, verify_chain
from node.audit.findings import Findings
from node.audit.logs import ChainLog
from node.config import Options
from node.network import create_network
from node.storage.log import BlockLog
from shardyard import _native
from shardyard.blocks import EMPTY_JUSTIFICATION, Block, CertifiedHeader, FinalityProof, compute_body_hash
from shardyard.consensus.engine import EngineConfig, NoBlockSource, RequestValidation
from shardyard.consensus.simplex import SimplexEngine
from shardyard.consensus.votes import Vote, VoteKind, build_certificate, compute_vote_message
from shardyard.effects import Persist
from shardyard.ids import BEACON, Slot
from shardyard.keys import BlsCrypto
from shardyard.messages import FinalBlock

SLOT = Slot(1)


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    return create_network(
        tmp_path_factory.mktemp("home") / "signed", Options(name="signed", shards=1, validators=4)
    )


def sign(network, kind, block_hash):
    """Return the votes of the whole committee."""
    positions = range(len(network.genesis.committees[BEACON]))
    secrets = network.read_validator_secrets(BEACON, positions)
    message = compute_vote_message(network.genesis.get_domain(BEACON), kind, SLOT, block_hash)
    return [Vote(kind, SLOT, block_hash, at, _native.bls_sign(secrets[at], message)) for at in positions]


def build_final(network) -> tuple[Block, FinalityProof]:
    genesis = network.genesis
    parent, committee = genesis.beacon_block, genesis.committees[BEACON]
    header = msgspec.structs.replace(
        parent.header,
        slot=SLOT,
        height=1,
        parent=parent.hash,
        parent_slot=parent.header.slot,
        justification_hash=EMPTY_JUSTIFICATION.hash,
        timestamp_ms=parent.header.timestamp_ms + 1,
        proposer=committee.get_leader(SLOT),
        body_hash=compute_body_hash(b"body"),
    )
    signature = sign(network, VoteKind.PROPOSE, header.hash)[header.proposer].signature
    certificates = (
        build_certificate(BlsCrypto(), committee, sign(network, kind, header.hash))
        for kind in (VoteKind.NOTAR, VoteKind.FINAL)
    )
    proof = FinalityProof((CertifiedHeader(header, EMPTY_JUSTIFICATION),), *certificates)
    return Block(header, EMPTY_JUSTIFICATION, b"body", signature, b""), proof


def follow(network, block, proof):
    """Return what an honest follower logs of a block that it is told."""
    genesis = network.genesis
    config = EngineConfig(
        shard=BEACON,
        domain=genesis.get_domain(BEACON),
        committee=genesis.committees[BEACON],
        local_validators=(),
        genesis=genesis.beacon_block,
        block_time_ms=1000,
        delta_ms=200,
    )
    engine = SimplexEngine(config, BlsCrypto(), NoBlockSource())
    outputs = [*engine.start(0), *engine.on_message("peer", FinalBlock(block, proof), 0)]
    assert any(isinstance(output, RequestValidation) for output in outputs)
    outputs += engine.on_validated(block.hash, True, "", 0)
    return [record for output in outputs if isinstance(output, Persist) for record in output.records]


async def audit(network, path, records):
    genesis, findings = network.genesis, Findings()
    with BlockLog(path, genesis.network) as log:
        log.append_records(records)
        await log.sync()
    log = ChainLog(path, "beacon-0", BEACON, genesis.network, findings)
    book = CertificateBook(genesis, BEACON, BlsCrypto(), findings)
    hashes = verify_chain(genesis, [log], book, book, findings)
    log.close()
    return list(hashes), [finding for row in findings.rows.values() for finding in row.findings]


@pytest.mark.parametrize("put", ["leader's", "none", "zeros", "infinity", "another vote's"])
async def test_the_audit_blames_no_follower_for_a_signature_that_a_peer_put_there(network, tmp_path, put):
    block, proof = build_final(network)
    signature = {
        "leader's": block.signature,
        "none": b"",
        "zeros": bytes(96),
        "infinity": b"\xc0" + bytes(95),
        "another vote's": sign(network, VoteKind.NOTAR, block.hash)[block.header.proposer].signature,
    }[put]
    records = follow(network, msgspec.structs.replace(block, signature=signature), proof)
    hashes, findings = await audit(network, tmp_path / "log", records)
    assert (hashes[1:], findings) == ([block.hash], [])
    assert records[0].block.signature == (block.signature if put == "leader's" else b"")
