"""What a vote says and to whom, and what a quorum is: D1, D2 and the arithmetic under every certificate."""

import itertools

import msgspec
import pytest

from shardyard.consensus.votes import (
    Domain,
    VoteKind,
    build_certificate,
    compute_vote_message,
    verify_certificate,
)
from shardyard.errors import InvalidCertificateError
from shardyard.ids import BEACON, ZERO_HASH, ShardId, compute_slot
from shardyard.messages import Votes
from shardyard.quorum import compute_blocking, compute_quorum, is_quorum
from tests.unit.consensus.harness import CRYPTO, NETWORK, build_committee, sign_vote
from tests.unit.consensus.solo import Solo

NOTAR, SKIP, FINAL = VoteKind.NOTAR, VoteKind.SKIP, VoteKind.FINAL
HASH = b"\x21" * 32


def test_d1_a_vote_says_something_else_in_every_network_chain_committee_epoch_slot_kind_and_hash():
    domains = [
        Domain(network=network, shard=shard, valset_root=root)
        for network in (NETWORK, b"\x12" * 32)
        for shard in (ShardId(0), ShardId(1), BEACON)
        for root in (b"\x31" * 32, b"\x32" * 32)
    ]
    slots = [compute_slot(epoch, slot) for epoch in (0, 1, 2) for slot in (1, 2, 1 << 31)]
    messages = [
        compute_vote_message(domain, kind, slot, block_hash)
        for domain, kind, slot, block_hash in itertools.product(
            domains, VoteKind, slots, (ZERO_HASH, HASH, b"\x22" * 32)
        )
    ]
    assert len(set(messages)) == len(messages)


@pytest.mark.parametrize(
    "change",
    [{"kind": FINAL}, {"slot": 6}, {"slot": compute_slot(1, 5)}, {"block_hash": b"\x22" * 32}],
    ids=["kind", "slot", "epoch", "hash"],
)
def test_d1_d2_a_certificate_that_says_something_else_than_its_votes_is_refused(change):
    committee = build_committee([1, 1, 1, 1])
    domain = Domain(network=NETWORK, shard=BEACON, valset_root=committee.root)
    votes = [sign_vote(committee, NOTAR, 5, HASH, validator) for validator in (0, 1, 2)]
    certificate = build_certificate(CRYPTO, committee, votes)
    verify_certificate(CRYPTO, domain, committee, certificate)
    with pytest.raises(InvalidCertificateError, match="does not verify"):
        verify_certificate(CRYPTO, domain, committee, msgspec.structs.replace(certificate, **change))


@pytest.mark.parametrize(
    "change", [{"shard": ShardId(0)}, {"network": b"\x12" * 32}, {"valset_root": b"\x31" * 32}], ids=str
)
def test_d1_a_certificate_of_elsewhere_is_refused(change):
    committee = build_committee([1, 1, 1, 1])
    domain = Domain(network=NETWORK, shard=BEACON, valset_root=committee.root)
    certificate = build_certificate(
        CRYPTO, committee, [sign_vote(committee, SKIP, 5, ZERO_HASH, validator) for validator in (0, 1, 2)]
    )
    with pytest.raises(InvalidCertificateError, match="does not verify"):
        verify_certificate(CRYPTO, msgspec.structs.replace(domain, **change), committee, certificate)


@pytest.mark.parametrize("total", [*range(1, 100), 3**20, 3**20 + 1, 3**20 + 2])
def test_a_quorum_is_more_than_two_thirds_and_two_of_them_share_more_than_a_third(total):
    quorum = compute_quorum(total)
    assert is_quorum(quorum, total)
    assert not is_quorum(quorum - 1, total)
    assert 3 * (quorum - 1) <= 2 * total < 3 * quorum
    assert 3 * (2 * quorum - total) > total
    assert compute_blocking(total) == total - quorum + 1


def test_exactly_two_thirds_of_the_stake_certify_nothing():
    solo = Solo(stakes=(1, 1, 1), local=())
    block = solo.propose(1)
    solo.hear(Votes(tuple(solo.vote(NOTAR, 1, block.hash, validator) for validator in (0, 1))))
    assert solo.engine.slot == 1
    committee = solo.committee
    certificate = build_certificate(
        CRYPTO, committee, [solo.vote(NOTAR, 1, block.hash, validator) for validator in (0, 1)]
    )
    with pytest.raises(InvalidCertificateError, match="got stake 2, expected at least 3"):
        verify_certificate(CRYPTO, solo.config.domain, committee, certificate)


@pytest.mark.parametrize("stranger", [-1, -4, 4, 1 << 40, -(1 << 40)])
def test_a_vote_of_nobody_counts_for_nobody(stranger):
    """A negative position would find the key of a member from the end, and count its stake twice."""
    solo = Solo(local=())
    block = solo.propose(1)
    genuine = solo.vote(NOTAR, 1, block.hash, 3)
    solo.hear(Votes((solo.vote(NOTAR, 1, block.hash, 2), genuine)))
    solo.hear(Votes((msgspec.structs.replace(genuine, validator=stranger),)))
    assert solo.engine.slot == 1
    solo.hear(Votes((solo.vote(NOTAR, 1, block.hash, 1),)))
    assert solo.engine.slot == 2
