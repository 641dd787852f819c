"""The book of ballots: what was signed first, and which votes of peers were news when they came."""

from node.ballots import MAX_SIGNED, BallotBook
from shardyard.consensus.votes import Vote, VoteKind
from shardyard.ids import ZERO_HASH, Hash32
from shardyard.messages import Votes

CHAIN = 3


def build_vote(slot, validator=1, kind=VoteKind.NOTAR):
    block = ZERO_HASH if kind is VoteKind.SKIP else Hash32(bytes([1]) * 32)
    return Vote(kind=kind, slot=slot, block_hash=block, validator=validator, signature=bytes(96))


def build_book(final_slot):
    moments = iter(range(1000, 9999))
    return BallotBook(CHAIN, 4, lambda: final_slot, lambda: next(moments))


async def test_votes_that_are_late_known_or_of_nobody_are_not_taken():
    book = build_book(final_slot=7)
    book.observe(CHAIN, Votes((build_vote(7), build_vote(8), build_vote(9, validator=4))))
    book.observe(CHAIN, Votes((build_vote(8), build_vote(8, kind=VoteKind.SKIP))))
    book.observe(CHAIN + 1, Votes((build_vote(10),)))
    assert (await book.answer({}))["taken"] == {"1": [("NOTAR", 8, 1000), ("SKIP", 8, 1001)]}


async def test_the_first_votes_of_a_life_are_kept_and_proposals_are_none():
    book = build_book(final_slot=0)
    book.on_signed([build_vote(1, kind=VoteKind.PROPOSE)])
    for slot in range(1, 2 * MAX_SIGNED):
        book.on_signed([build_vote(slot)])
    signed = (await book.answer({}))["signed"]
    assert [slot for _, slot, _ in signed] == list(range(1, MAX_SIGNED + 1))
