"""Links that are cut, lossy or late, and a bus whose validators lie: what leaves, with genuine signatures."""

import asyncio
from collections import Counter

import pytest

from node.bus.byzantine import ByzantineBus, Liar, Spoken
from node.bus.envelope import CHUNK_BYTES
from node.bus.faults import CERTAIN, MAX_HELD, MAX_HELD_BYTES, ByzantineRule, LinkFaults, LinkRule, Mode
from node.bus.memory import MemoryHub
from node.config import Options
from node.network import create_network
from shardyard.consensus.votes import Vote, VoteKind, compute_vote_message
from shardyard.ids import ZERO_HASH, NodeId, Slot
from shardyard.keys import BlsCrypto
from shardyard.messages import BlockRequest, Certificates, Proposal, RangeResponse, Votes
from tests.unit.node.certified_chain import SHARD, CertifiedChain
from tests.unit.node.test_bus_memory import NODES, build_bus, build_request, take

ALICE, BOB, BEACON_NODE = NODES
PEERS = [NodeId(f"shard-0-{number}") for number in (1, 2, 3)]


def cut(*senders, **more):
    return LinkRule(senders=senders, **({"lost": CERTAIN} | more))


# --- links ---


async def test_cut_link_is_silent_until_it_heals():
    hub = MemoryHub()
    async with build_bus(hub, ALICE) as alice, build_bus(hub, BOB) as bob:
        bob.links.set([cut(ALICE)])
        await alice.publish(SHARD, build_request(1))
        await bob.publish(SHARD, build_request(2))
        assert await take(alice, 1) == [(BOB, SHARD, build_request(2))]  # one way
        assert bob.links.lost == 1
        bob.links.set([])
        await alice.publish(SHARD, build_request(3))
        assert await take(bob, 1) == [(ALICE, SHARD, build_request(3))]


async def test_late_link_brings_everything_later_and_in_order_without_jitter():
    hub = MemoryHub()
    async with build_bus(hub, ALICE) as alice, build_bus(hub, BOB) as bob:
        bob.links.set([cut(ALICE, lost=0, delay_ms=60)])
        started = asyncio.get_running_loop().time()
        for number in range(5):
            await alice.publish(SHARD, build_request(number))
        found = await take(bob, 5)
        assert asyncio.get_running_loop().time() - started >= 0.06
        assert [message for _, _, message in found] == [build_request(number) for number in range(5)]
        assert (bob.links.delayed, bob.links.held.messages, bob.links.held.bytes) == (5, 0, 0)


def test_lossy_link_loses_its_share_and_others_nothing():
    links = LinkFaults(seed=1)
    links.set([cut("shard-0-0", lost=300)])
    judged = Counter(links.judge("sy/net/node/shard-0-0/shard-0/vote", 1) for _ in range(10_000))
    assert 2700 < judged[None] < 3300
    assert {links.judge("sy/net/node/shard-0-1/shard-0/vote", 1) for _ in range(1000)} == {0.0}
    assert links.judge("no/topic", 1) == 0.0


@pytest.mark.parametrize("size", [1, CHUNK_BYTES])
async def test_late_link_holds_back_no_more_than_it_may(size):
    async with build_bus(MemoryHub(), BOB) as bob:
        bob.links.set([cut(ALICE, lost=0, delay_ms=600_000)])
        for _ in range(MAX_HELD + 1):
            bob.receive("sy/devnet/node/shard-0-0/shard-0/vote", bytes(size))
        assert bob.links.held.messages == min(MAX_HELD, MAX_HELD_BYTES // size)
        assert bob.links.lost == MAX_HELD + 1 - bob.links.held.messages


# --- lies ---


@pytest.fixture
def chain(home):
    found = CertifiedChain(
        create_network(home / "mine", Options(name="mine", shards=1, nodes_per_shard=4, seed=5))
    )
    found.extend()
    return found


def lie(chain, mode, message, validators=None, **more):
    """What ``mode`` makes of ``message`` of the node that runs the proposer of the chain's last block."""
    proposer = chain.blocks[-1].header.proposer
    liar = Liar(chain.domain, {proposer: chain.secrets[proposer]}, PEERS, seed=3)
    liar.set([ByzantineRule(mode=mode, validators=validators or (proposer,), **more)])
    return liar.twist(Spoken(None, message))


def build_proposal(chain):
    return Proposal(chain.blocks[-1])


def build_votes(chain, kind=VoteKind.NOTAR):
    header = chain.blocks[-1].header
    return Votes((Vote(kind, header.slot, header.hash, header.proposer, bytes(96)),))


def is_genuine(chain, vote):
    message = compute_vote_message(chain.domain, vote.kind, vote.slot, vote.block_hash)
    return BlsCrypto().verify_votes(chain.committee, [(vote.validator, message, vote.signature)]) == [True]


def test_silent_validator_says_nothing_of_consensus_and_goes_on_asking(chain):
    for message in (build_proposal(chain), build_votes(chain), Certificates(())):
        assert lie(chain, Mode.SILENT, message) == []
    request = BlockRequest(SHARD, (ZERO_HASH,))
    assert lie(chain, Mode.SILENT, request) == [Spoken(None, request)]


def test_silence_of_one_key_leaves_the_others_of_its_process(chain):
    own = build_votes(chain)
    other = Vote(VoteKind.NOTAR, Slot(1), ZERO_HASH, own.votes[0].validator + 1, bytes(96))
    assert lie(chain, Mode.SILENT, Votes((*own.votes, other))) == [Spoken(None, Votes((other,)))]


def test_withholder_votes_and_gives_no_block(chain):
    assert lie(chain, Mode.WITHHOLD, build_proposal(chain)) == []
    assert lie(chain, Mode.WITHHOLD, RangeResponse(SHARD, (), None)) == []
    assert lie(chain, Mode.WITHHOLD, build_votes(chain)) == [Spoken(None, build_votes(chain))]


def test_late_validator_is_late_with_consensus_alone(chain):
    assert lie(chain, Mode.LATE, build_votes(chain), delay_ms=700) == [Spoken(None, build_votes(chain), 700)]
    request = BlockRequest(SHARD, (ZERO_HASH,))
    assert lie(chain, Mode.LATE, request, delay_ms=700) == [Spoken(None, request)]


def test_equivocating_leader_gives_each_half_another_signed_block(chain):
    said = lie(chain, Mode.EQUIVOCATE, build_proposal(chain))
    assert [spoken.to for spoken in said] == PEERS
    blocks = {spoken.message.block.hash: spoken.message.block for spoken in said}
    assert len(blocks) == 2
    twin = next(block for block in blocks.values() if block.hash != chain.blocks[-1].hash)
    header = twin.header
    assert header.slot == chain.blocks[-1].header.slot
    assert header.timestamp_ms // 1000 == chain.blocks[-1].header.timestamp_ms // 1000
    vote = Vote(VoteKind.PROPOSE, header.slot, header.hash, header.proposer, twin.signature)
    assert is_genuine(chain, vote)


def test_equivocating_voter_signs_two_blocks_in_one_slot(chain):
    first, second = lie(chain, Mode.EQUIVOCATE, build_votes(chain))
    (vote,) = second.message.votes
    assert first.message == build_votes(chain)
    assert vote.slot == chain.blocks[-1].header.slot
    assert vote.block_hash != chain.blocks[-1].hash
    assert is_genuine(chain, vote)
    assert len(lie(chain, Mode.EQUIVOCATE, build_votes(chain, VoteKind.FINAL))) == 1


def test_bad_proposal_is_properly_signed_and_commits_to_another_state(chain):
    (said,) = lie(chain, Mode.BAD_PROPOSER, build_proposal(chain))
    header, good = said.message.block.header, chain.blocks[-1].header
    assert header.content.state_root != good.content.state_root
    assert header.slot == good.slot
    vote = Vote(VoteKind.PROPOSE, header.slot, header.hash, header.proposer, said.message.block.signature)
    assert is_genuine(chain, vote)


def test_garbled_votes_are_never_what_they_were(chain):
    proposer = chain.blocks[-1].header.proposer
    liar = Liar(chain.domain, {proposer: chain.secrets[proposer]}, PEERS, seed=3)
    liar.set([ByzantineRule(mode=Mode.GARBLE, validators=(proposer,))])
    genuine = Vote(VoteKind.NOTAR, Slot(7), ZERO_HASH, proposer, b"\x01" * 96)
    votes = [liar.twist(Spoken(None, Votes((genuine,))))[0].message.votes[0] for _ in range(200)]
    assert genuine not in votes
    assert {vote.kind for vote in votes} == set(VoteKind)
    assert liar.told == {"garble": 200}


async def test_bus_lies_only_while_it_is_told_to(chain):
    hub = MemoryHub()
    liar = Liar(chain.domain, {0: chain.secrets[0]}, [BOB])
    async with build_bus(hub, ALICE) as alice, build_bus(hub, BOB) as bob:
        async with ByzantineBus(alice, liar) as lying:
            vote = Vote(VoteKind.NOTAR, Slot(7), ZERO_HASH, 0, bytes(96))
            liar.set([ByzantineRule(mode=Mode.SILENT, validators=(0,))])
            await lying.publish(SHARD, Votes((vote,)))
            liar.set([ByzantineRule(mode=Mode.LATE, validators=(0,), delay_ms=30)])
            await lying.publish(SHARD, Votes((vote, vote)))
            liar.set([])
            await lying.publish(SHARD, Votes(()))
            await lying.send(BOB, SHARD, build_request(1))
            heard = [message for _, _, message in await take(bob, 3)]
        assert heard == [Votes(()), build_request(1), Votes((vote, vote))]


@pytest.mark.parametrize("size", [1, 1 << 20])
async def test_late_validator_holds_back_no_more_than_it_may(chain, size):
    liar = Liar(chain.domain, {0: chain.secrets[0]}, [BOB])
    liar.set([ByzantineRule(mode=Mode.LATE, validators=(0,), delay_ms=600_000)])
    late = Proposal(chain.blocks[-1], bytes(size))
    async with build_bus(MemoryHub(), ALICE) as alice, ByzantineBus(alice, liar) as lying:
        for _ in range(MAX_HELD + 1):
            await lying.publish(SHARD, late)
        assert 0 < lying.held.messages <= MAX_HELD
        assert lying.held.bytes <= MAX_HELD_BYTES
