"""L12: the leader's signature lies outside the block hash; of what peers put there, nothing is kept that does not verify."""

import msgspec
import pytest

from shardyard.consensus.engine import NoBlockSource
from shardyard.consensus.instant import InstantEngine
from shardyard.consensus.proofs import build_certified_header, build_finality_proof
from shardyard.consensus.votes import VoteKind
from shardyard.effects import BlockRecord, Send
from shardyard.ids import ZERO_HASH
from shardyard.messages import (
    BlockRequest,
    BlockResponse,
    FinalBlock,
    Proposal,
    RangeRequest,
    RangeResponse,
    Status,
    Votes,
)
from tests.unit.consensus.harness import CRYPTO
from tests.unit.consensus.solo import Solo

NOTAR, FINAL = VoteKind.NOTAR, VoteKind.FINAL
replace = msgspec.structs.replace


class InstantSolo(Solo):
    """A follower of the single sequencer."""

    def boot(self):
        self.outputs = []
        self.engine = InstantEngine(self.config, CRYPTO, NoBlockSource())
        self.feed(self.engine.start(self.now_ms))


def build_chain(solo, length):
    blocks = [solo.build_block(1)]
    for slot in range(2, length + 1):
        blocks.append(solo.build_block(slot, blocks[-1]))
    return blocks


def prove(solo, block):
    certificates = (solo.certify(kind, block.header.slot, block.hash) for kind in (NOTAR, FINAL))
    return build_finality_proof((), build_certified_header(block), *certificates)


def tell_range(solo, blocks, told):
    solo.hear(Status(solo.config.shard, 99, len(blocks), ZERO_HASH))
    solo.hear(RangeResponse(solo.config.shard, tuple(told), prove(solo, blocks[-1])))


def tell_finals(solo, blocks, told):
    for block, said in zip(blocks, told, strict=True):
        solo.hear(FinalBlock(said, prove(solo, block)))


def answer_by_hash(solo, blocks, told):
    """Let the missing ancestors of one more proposal come from its sender, the highest first."""
    solo.hear(Proposal(solo.build_block(len(blocks) + 1, blocks[-1])))
    for said in reversed(told):
        solo.hear(BlockResponse(solo.config.shard, (said,), ()))


def get_logged(solo):
    return {record.block.hash: record.block for record in solo.log if isinstance(record, BlockRecord)}


WAYS = [(Solo, tell_range), (Solo, tell_finals), (Solo, answer_by_hash)]
WAYS += [(InstantSolo, tell_range), (InstantSolo, tell_finals)]
FORGERIES = {
    "zeros": lambda _: bytes(96),
    "reversed": lambda block: block.signature[::-1],
    "stranger": lambda block: block.signature[:95] + bytes((block.signature[95] ^ 1,)),
    "none": lambda _: b"",
}


@pytest.mark.parametrize("forge", FORGERIES.values(), ids=FORGERIES)
@pytest.mark.parametrize(("kind", "tell"), WAYS)
def test_a_signature_that_is_not_the_leaders_is_neither_logged_nor_passed_on(kind, tell, forge):
    """Nobody is accused: a node may hold a block without it, and one with an old log has never looked at it."""
    solo = kind(local=())
    blocks = build_chain(solo, 3)
    told = [blocks[0], replace(blocks[1], signature=forge(blocks[1])), blocks[2]]
    tell(solo, blocks, told)
    logged = get_logged(solo)
    assert [logged[block.hash].signature for block in blocks] == [
        blocks[0].signature,
        b"",
        blocks[2].signature,
    ]
    assert not solo.engine.refused
    if tell is not answer_by_hash:
        assert [final.hash for final in solo.finals] == [block.hash for block in blocks]
        solo.hear(RangeRequest(solo.config.shard, 1, 3), "other")
        (answer,) = (send.message for send in solo.of(Send) if isinstance(send.message, RangeResponse))
        assert [block.signature for block in answer.blocks] == [
            block.signature for block in (blocks[0], logged[blocks[1].hash], blocks[2])
        ]


@pytest.fixture
def batches(monkeypatch):
    """Sizes of the batches of signatures that were verified."""
    sizes, verify = [], CRYPTO.verify_votes

    def count(committee, items):
        sizes.append(len(items))
        return verify(committee, items)

    monkeypatch.setattr(CRYPTO, "verify_votes", count)
    return sizes


def test_the_signatures_of_a_range_are_one_batch_of_those_that_are_not_known(batches):
    solo = Solo(local=())
    blocks = build_chain(solo, 5)
    solo.hear(Proposal(blocks[0]))
    assert batches == [1]
    told = [*blocks[:3], replace(blocks[3], signature=b""), blocks[4]]
    tell_range(solo, blocks, told)
    assert batches == [1, 3]
    assert len(solo.finals) == 5
    solo.hear(FinalBlock(blocks[4], prove(solo, blocks[4])), "other")
    assert batches == [1, 3]


def test_a_signature_that_was_seen_is_kept_whatever_a_peer_puts_in_its_place(batches):
    """A second proposal of a slot is held back, until a certificate names it and it is fetched by its hash."""
    solo = Solo()
    first, second = solo.build_block(1), solo.build_block(1, body=b"other")
    solo.hear(Proposal(first))
    solo.hear(Proposal(second))
    assert batches == [1, 1]
    solo.certify_and_hear(NOTAR, 1, second.hash)
    solo.fire("engine.fetch")
    solo.hear(BlockResponse(solo.config.shard, (replace(second, signature=bytes(96)),), ()))
    assert get_logged(solo)[second.hash].signature == second.signature
    assert batches == [1, 1]


def test_l10_an_answer_without_signature_is_no_fault_and_counts_once():
    """Who voted may hold the block by its certificate, and its leader may have started again: others are asked."""
    solo = Solo()
    block = solo.build_block(1)
    solo.hear(Votes((solo.vote(NOTAR, 1, block.hash, 2),)), "voter")
    solo.hear(Votes(()), "other")
    solo.fire("engine.fetch")
    unsigned = BlockResponse(solo.config.shard, (replace(block, signature=b""),), ())
    solo.hear(unsigned, "voter")
    assert not solo.engine.refused
    solo.hear(unsigned, "voter")
    assert solo.engine.refused == {"UnsolicitedError": 1}
    assert solo.votes_sent(NOTAR) == []
    for _ in range(2):
        solo.fire("engine.fetch")
    assert [send.to for send in solo.of(Send) if isinstance(send.message, BlockRequest)] == ["voter", "other"]
    solo.hear(BlockResponse(solo.config.shard, (block,), ()), "other")
    assert [vote.block_hash for vote in solo.votes_sent(NOTAR)] == [block.hash]
