"""The walk of the model check: every combination of what a few slots can come to, and a verdict on every fork.

``scripts/model-check`` walks through all votes that honest validators may sign and all blocks, certificates and finality
proofs that follow, for a small committee with a given set of Byzantine members. The rules are the project's own, called and
not restated: ``SignerState`` judges votes, ``check_header`` and ``check_justification`` blocks, ``is_quorum`` certificates,
``verify_finality_proof`` proofs, ``find_evidence`` and ``find_conflict`` accusations. Restated is only that FINAL needs the
NotarCert at hand, which the engine sees to.

The adversary is as strong as it gets: Byzantine members have signed everything, every leader may equivocate, the network
shows anybody what it likes and nothing else. So a certificate exists as soon as enough honest members voted for it, and a
state is no more than the set of honest votes. Three reductions, none of which loses a state:

- *Order.* Whether a vote is allowed depends on the own votes in its slot and on certificates of its slot and lower ones,
  and more certificates never forbid anything. So every reachable set of votes is reached slot by slot.
- *Names.* No rule relates two slots of one validator, so members of equal stake may be renamed in every slot by itself, and
  so may blocks of one slot with one parent. States equal up to that are visited once.
- *Certificates.* What higher slots and proofs see of a slot is which certificates exist in it. Sets of votes that agree in
  this are counted, checked for honest offenders one by one, and then go on as one.
"""

import itertools
from collections.abc import Iterator
from typing import Final

import msgspec

from node.lab.model_blocks import Realisation, is_conflict
from node.lab.model_votes import (
    Census,
    Committee,
    Entry,
    Member,
    ModelBlock,
    ModelVote,
    Outcome,
    describe_block,
    describe_vote,
    explore_slot,
    get_blocks,
)
from shardyard.consensus.evidence import CertificateEvidence, find_conflict
from shardyard.quorum import sum_stake

MAX_SEARCHED_VOTES: Final = 7
"""Honest votes in one slot up to which a fork is looked for when a rule is missing."""


class Verdict(msgspec.Struct):
    """What a walk through all states found."""

    stakes: tuple[int, ...]
    byzantine: tuple[int, ...]
    slots: int
    vote_states: int = 0
    """Sets of votes within one slot that were visited, up to names."""
    states: int = 0
    """Combinations over all slots, up to names and with the same certificates."""
    vote_sets: int = 0
    """Sets of honest votes that these stand for."""
    forks: int = 0
    least_evidence: int | None = None
    """Least stake in evidence over all forks and all ways to fill their certificates."""
    offenders: int = 0
    """Vote states in which an honest member signed a slashable pair."""
    problem: str = ""
    """The first thing that is not as promised."""
    counterexample: str = ""

    @property
    def total_stake(self) -> int:
        """Stake of the whole committee."""
        return sum(self.stakes)

    @property
    def is_tolerated(self) -> bool:
        """Whether the Byzantine stake is below a third."""
        return 3 * sum_stake(self.byzantine, self.stakes) < self.total_stake


class Walk:
    """Goes through every combination of outcomes, slot by slot, and judges every fork."""

    def __init__(self, committee: Committee, slots: int, max_votes: int | None = None) -> None:
        """With ``max_votes``, honest votes per slot, the walk looks for a fork and ends at the first."""
        self._committee = committee
        self._max_votes = max_votes
        self._explored: dict[tuple[int, int], list[Outcome]] = {}
        self._census = Census()
        self.verdict = Verdict(stakes=committee.stakes, byzantine=committee.byzantine, slots=slots)

    def run(self) -> Verdict:
        """Return what was found."""
        self._descend((), (), 1)
        self.verdict.vote_states = self._census.visited
        self.verdict.offenders = self._census.offenders
        if self.verdict.offenders and not self.verdict.problem:
            self.verdict.problem = (
                f"in {self.verdict.offenders} states an honest member signed a slashable pair"
            )
        return self.verdict

    def _descend(
        self, outcomes: tuple[Outcome, ...], levels: tuple[tuple[ModelBlock, ...], ...], count: int
    ) -> bool:
        """Go on from the outcomes of the slots so far, which stand for ``count`` sets of votes; tell whether to stop."""
        verdict = self.verdict
        real = Realisation(self._committee, outcomes)
        if self._judge(real, outcomes) and self._max_votes is not None:
            return True
        slot = len(outcomes) + 1
        if slot > verdict.slots:
            verdict.states += 1
            verdict.vote_sets += count
            return False
        parents = [None, *(block for level in levels for block in level)]
        accepted = tuple(parent for parent in parents if real.build(ModelBlock(slot, parent, 0)) is not None)
        for outcome in self._explore(slot, accepted):
            level = tuple(get_blocks(slot, accepted, outcome.example))
            if self._descend((*outcomes, outcome), (*levels, level), count * outcome.size):
                return True
        return False

    def _explore(self, slot: int, parents: tuple[ModelBlock | None, ...]) -> Iterator[Outcome]:
        key = (slot, len(parents))
        if key not in self._explored:
            self._explored[key] = explore_slot(
                self._committee, slot, len(parents), self._census, self._max_votes
            )
        for outcome in self._explored[key]:
            yield _stand_on(outcome, parents)

    def _judge(self, real: Realisation, outcomes: tuple[Outcome, ...]) -> bool:
        """Look at every pair of conflicting final blocks that the last slot completed; tell whether there is one."""
        final = real.get_final()
        last = len(outcomes)
        found = False
        for first, second in itertools.combinations(final, 2):
            if last not in {first.slot, second.slot} or not is_conflict(first, second):
                continue
            lower, upper = sorted((first, second), key=lambda block: block.slot)
            proofs = real.prove(lower), real.prove(upper)
            if proofs[0] is None or proofs[1] is None:
                continue
            found = True
            self.verdict.forks += 1
            evidence = find_conflict(
                proofs[0], proofs[1], len(self._committee.stakes), real.build_ancestry(upper, lower.slot)
            )
            self._judge_fork(real, outcomes, (lower, upper), evidence)
        return found

    def _judge_fork(
        self,
        real: Realisation,
        outcomes: tuple[Outcome, ...],
        fork: tuple[ModelBlock, ModelBlock],
        evidence: list[CertificateEvidence],
    ) -> None:
        verdict, committee = self.verdict, self._committee
        accused = {validator for item in evidence for validator in item.validators}
        convicted = max((_compute_least_stake(real, committee, item) for item in evidence), default=0)
        if verdict.least_evidence is None or convicted < verdict.least_evidence:
            verdict.least_evidence = convicted
        problem = ""
        if verdict.is_tolerated:
            problem = "two conflicting blocks are final with less than a third of the stake Byzantine"
        elif accused - set(committee.byzantine):
            problem = f"honest members {sorted(accused - set(committee.byzantine))} are accused"
        elif 3 * convicted <= verdict.total_stake:
            problem = f"a fork leaves {convicted} of {verdict.total_stake} stake in evidence"
        if problem and not verdict.problem:
            verdict.problem = problem
            verdict.counterexample = _describe_fork(committee, outcomes, fork, evidence)


def find_fork(committee: Committee, slots: int) -> Verdict:
    """Return the verdict of the smallest walk that finds a fork, or of the largest one tried.

    For committees whose rules are not all there: without S1 a member may sign so much that not all of it can be visited.
    """
    verdict = Verdict(stakes=committee.stakes, byzantine=committee.byzantine, slots=slots)
    for count in range(1, slots + 1):
        for max_votes in range(2, MAX_SEARCHED_VOTES + 1):
            verdict = Walk(committee, count, max_votes).run()
            if verdict.forks:
                return verdict
    return verdict


def _stand_on(outcome: Outcome, parents: tuple[ModelBlock | None, ...]) -> Outcome:
    """Return ``outcome`` with real parents in the place of their numbers."""

    def move(block: ModelBlock | None) -> ModelBlock | None:
        if block is None:
            return None
        assert block.parent is not None, "numbered parents stand in for all, genesis included"
        return ModelBlock(block.slot, parents[block.parent.variant], block.variant)

    def move_vote(vote: ModelVote) -> ModelVote:
        return ModelVote(vote.kind, move(vote.block))

    return Outcome(
        certificates=frozenset((move_vote(vote), voters) for vote, voters in outcome.certificates),
        size=outcome.size,
        example=tuple(
            Member(
                member.stake,
                Entry(move(member.entry.notar), member.entry.skip, move(member.entry.final)),
                tuple(map(move_vote, member.votes)),
            )
            for member in outcome.example
        ),
    )


def _compute_least_stake(real: Realisation, committee: Committee, evidence: CertificateEvidence) -> int:
    """Return the least stake that signed both certificates, over all ways to fill them."""
    pairs = itertools.product(real.get_quorums(evidence.first), real.get_quorums(evidence.second))
    return min(sum_stake(set(one) & set(other), committee.stakes) for one, other in pairs)


def _describe_fork(
    committee: Committee,
    outcomes: tuple[Outcome, ...],
    fork: tuple[ModelBlock, ModelBlock],
    evidence: list[CertificateEvidence],
) -> str:
    """Return a fork as lines for people; members bear the names they have in each slot."""
    lines = [f"  {describe_block(fork[0])} and {describe_block(fork[1])} are both final"]
    for slot, outcome in enumerate(outcomes, start=1):
        votes = [
            f"V{index} "
            + (" ".join(describe_vote(vote) for vote in sorted(member.votes, key=_by_kind)) or "nothing")
            for index, member in zip(committee.honest, outcome.example, strict=True)
        ]
        lines.append(f"  slot {slot}: " + "; ".join(votes))
    names = ", ".join(f"V{index}" for index in committee.byzantine)
    lines.append(f"  Byzantine, having signed everything: {names}")
    for item in evidence:
        signers = ", ".join(f"V{index}" for index in item.validators)
        lines.append(
            f"  evidence in slot {item.first.slot}: {item.first.kind.name} and {item.second.kind.name} by {signers}"
        )
    if not evidence:
        lines.append("  evidence: none")
    return "\n".join(lines)


def _by_kind(vote: ModelVote) -> tuple[int, str]:
    return vote.kind, repr(vote)
