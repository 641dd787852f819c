"""The votes of one slot in the model check: what honest members may sign, one vote after the other, and what is certified then.

A state is what every honest member signed in the slot; ``SignerState`` says what it may sign next. States that differ only in
the names of members, or of blocks with one parent, are one state.
"""

import itertools
from collections import deque
from collections.abc import Iterator
from functools import cache
from typing import Final, NamedTuple

from node.sim.mock_crypto import build_mock_validator
from shardyard.consensus.evidence import find_evidence
from shardyard.consensus.signer import SignerEntry, SignerState
from shardyard.consensus.votes import Domain, Vote, VoteKind
from shardyard.effects import SignRequest
from shardyard.ids import BEACON, GENESIS_SLOT, ZERO_ADDRESS, ZERO_HASH, Hash32, Slot
from shardyard.quorum import is_quorum, sum_stake
from shardyard.validators import ValidatorSet

NETWORK: Final = Hash32(b"\x4d" * 32)


class ModelBlock(NamedTuple):
    """A block by its place: slot, parent (None for genesis) and which of the equivocations there it is."""

    slot: int
    parent: "ModelBlock | None"
    variant: int


class ModelVote(NamedTuple):
    """What one honest member signed: a kind and, unless it is SKIP, a block."""

    kind: VoteKind
    block: ModelBlock | None


class Entry(NamedTuple):
    """What a signer remembers of one slot."""

    notar: ModelBlock | None = None
    skip: bool = False
    final: ModelBlock | None = None


class Member(NamedTuple):
    """An honest member in one slot. ``votes`` says more than ``entry`` only when a rule is missing."""

    stake: int
    entry: Entry
    votes: tuple[ModelVote, ...]


CertificateName = tuple[ModelVote, tuple[int, ...]]
"""What is certified, and which honest members can be among the signers."""
SlotState = tuple[Member, ...]


class Census:
    """How many states were visited, and in how many of them an honest member signed a slashable pair."""

    def __init__(self) -> None:
        self.visited = 0
        self.offenders = 0


class Outcome(NamedTuple):
    """All vote sets of one slot with the same certificates: ``size`` of them, and one as an example."""

    certificates: frozenset[CertificateName]
    size: int
    example: SlotState


@cache
def _name(block: ModelBlock) -> Hash32:
    return Hash32(repr(block).encode().rjust(32, b"\0"))


@cache
def _sign(slot: int, entry: Entry, vote: ModelVote) -> Entry | None:
    """Return what the signer remembers after ``vote``, or None when its rules forbid it."""
    state = SignerState()
    state.replay(
        SignerEntry(
            validator=0,
            slot=slot,
            proposed=b"",
            notar=_name(entry.notar) if entry.notar else b"",
            skip=entry.skip,
            final=_name(entry.final) if entry.final else b"",
        )
    )
    wanted = _name(vote.block) if vote.block else ZERO_HASH
    request = SignRequest(kind=vote.kind, slot=Slot(slot), block_hash=wanted, validator=0, message=b"")
    if not state.check(request):
        return None
    signed = state.record(request)
    names = {_name(block): block for block in (entry.notar, entry.final, vote.block) if block}
    return Entry(names.get(Hash32(signed.notar)), signed.skip, names.get(Hash32(signed.final)))


@cache
def _is_offender(slot: int, votes: tuple[ModelVote, ...]) -> bool:
    """Tell whether the votes of one member hold a slashable pair."""
    signed = [
        Vote(vote.kind, Slot(slot), _name(vote.block) if vote.block else ZERO_HASH, 0, b"") for vote in votes
    ]
    return bool(find_evidence(signed))


class Committee:
    """The members of a check and which of them are Byzantine."""

    def __init__(self, stakes: tuple[int, ...], byzantine: tuple[int, ...]) -> None:
        self.stakes = stakes
        self.byzantine = byzantine
        self.honest = sorted(set(range(len(stakes))) - set(byzantine), key=lambda index: -stakes[index])
        """In the order of a state: the largest stake first."""
        self.validators = ValidatorSet(
            tuple(
                build_mock_validator(f"model-{index}", stake, ZERO_ADDRESS)
                for index, stake in enumerate(stakes)
            )
        )
        self.domain = Domain(network=NETWORK, shard=BEACON, valset_root=self.validators.root)
        self._byzantine_stake = sum_stake(byzantine, stakes)
        self._total = sum(stakes)

    def has_quorum(self, state: SlotState, vote: ModelVote) -> bool:
        """Tell whether a certificate of ``vote`` exists: the Byzantine members signed it anyway."""
        honest = sum(member.stake for member in state if vote in member.votes)
        return is_quorum(honest + self._byzantine_stake, self._total)

    def get_certificates(self, state: SlotState) -> frozenset[CertificateName]:
        """Return the certificates that exist in a slot, each with the honest members who can be in it."""
        votes = {vote for member in state for vote in member.votes}
        return frozenset(
            (
                vote,
                tuple(
                    index for index, member in zip(self.honest, state, strict=True) if vote in member.votes
                ),
            )
            for vote in votes
            if self.has_quorum(state, vote)
        )

    def get_quorums(self, voters: tuple[int, ...]) -> list[tuple[int, ...]]:
        """Return every set of members that can fill a certificate of what ``voters`` signed; all of them come last."""
        able = (*self.byzantine, *voters)
        return [
            chosen
            for size in range(1, len(able) + 1)
            for chosen in itertools.combinations(sorted(able), size)
            if is_quorum(sum_stake(chosen, self.stakes), self._total)
        ]


def _canonicalise(state: SlotState) -> SlotState:
    """Return the least of the states that differ only in names of members and of blocks with the same parent."""
    groups: dict[ModelBlock | None, set[int]] = {}
    for member in state:
        for vote in member.votes:
            if vote.block:
                groups.setdefault(vote.block.parent, set()).add(vote.block.variant)
    used = [(parent, sorted(variants)) for parent, variants in groups.items()]
    renamings = itertools.product(*(itertools.permutations(range(len(variants))) for _, variants in used))
    candidates = []
    for renaming in renamings:
        table = {
            (parent, old): new
            for (parent, variants), order in zip(used, renaming, strict=True)
            for old, new in zip(variants, order, strict=True)
        }
        candidates.append(tuple(sorted((_rename(member, table) for member in state), key=_sort_key)))
    return min(candidates, key=lambda candidate: [_sort_key(member) for member in candidate])


def _rename(member: Member, table: dict[tuple[ModelBlock | None, int], int]) -> Member:
    def move(block: ModelBlock | None) -> ModelBlock | None:
        return block and ModelBlock(block.slot, block.parent, table[block.parent, block.variant])

    entry = Entry(move(member.entry.notar), member.entry.skip, move(member.entry.final))
    votes = tuple(sorted((ModelVote(vote.kind, move(vote.block)) for vote in member.votes), key=repr))
    return Member(member.stake, entry, votes)


@cache
def _sort_key(member: Member) -> tuple[int, str]:
    return -member.stake, repr(member)


def explore_slot(
    committee: Committee, slot: int, parents: int, census: Census, max_votes: int | None = None
) -> list[Outcome]:
    """Return what can come of ``slot`` when blocks may stand on so many ``parents``, named 0, 1 and so on.

    Visits are counted in ``census``, and so are states in which an honest member offends. With ``max_votes`` only states
    with so many honest votes are visited: enough to find a fork, not to exclude one.
    """
    names = tuple(ModelBlock(GENESIS_SLOT, None, number) for number in range(parents))
    start: SlotState = tuple(Member(committee.stakes[index], Entry(), ()) for index in committee.honest)
    visited = {start}
    queue = deque([start])  # breadth first: the example of an outcome is one of its smallest states
    groups: dict[frozenset[CertificateName], tuple[int, SlotState]] = {}
    while queue:
        state = queue.popleft()
        census.visited += 1
        census.offenders += any(_is_offender(slot, member.votes) for member in state)
        certificates = committee.get_certificates(state)
        count, example = groups.get(certificates, (0, state))
        groups[certificates] = (count + 1, example)
        if max_votes is not None and sum(len(member.votes) for member in state) >= max_votes:
            continue
        for after in map(_canonicalise, _step(committee, slot, names, state)):
            if after not in visited:
                visited.add(after)
                queue.append(after)
    return [Outcome(certificates, *rest) for certificates, rest in groups.items()]


def _step(
    committee: Committee, slot: int, parents: tuple[ModelBlock | None, ...], state: SlotState
) -> Iterator[SlotState]:
    """Yield every state one honest vote later."""
    blocks = get_blocks(slot, parents, state)
    wanted = [ModelVote(VoteKind.SKIP, None), *(ModelVote(VoteKind.NOTAR, block) for block in blocks)]
    wanted.extend(
        ModelVote(VoteKind.FINAL, block)
        for block in blocks
        if committee.has_quorum(state, ModelVote(VoteKind.NOTAR, block))  # S3: the NotarCert is at hand
    )
    for index, member in enumerate(state):
        for vote in wanted:
            if vote in member.votes:
                continue
            entry = _sign(slot, member.entry, vote)
            if entry is not None:
                votes = tuple(sorted((*member.votes, vote), key=repr))
                yield (*state[:index], Member(member.stake, entry, votes), *state[index + 1 :])


def get_blocks(slot: int, parents: tuple[ModelBlock | None, ...], state: SlotState) -> list[ModelBlock]:
    """Return the blocks that were voted for, and on each parent one more: further ones are the same by another name."""
    blocks = []
    for parent in parents:
        used = {
            vote.block.variant
            for member in state
            for vote in member.votes
            if vote.block and vote.block.parent == parent
        }
        blocks += [ModelBlock(slot, parent, variant) for variant in range(min(len(used) + 1, len(state)))]
    return blocks


def describe_block(block: ModelBlock | None) -> str:
    """Return ``2a on 1b on genesis``."""
    return f"{_describe_name(block)} on {describe_block(block.parent)}" if block else "genesis"


def describe_vote(vote: ModelVote) -> str:
    """Return ``NOTAR(2a on 1b)``."""
    if vote.block is None:
        return vote.kind.name
    return f"{vote.kind.name}({_describe_name(vote.block)} on {_describe_name(vote.block.parent)})"


def _describe_name(block: ModelBlock | None) -> str:
    return f"{block.slot}{'abcdefghijklmnop'[block.variant]}" if block else "genesis"
