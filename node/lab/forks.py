"""``scripts/forks``: chains forked by force, each by another coalition from a seed, and what the two proofs convict.

A coalition of 34 to 60 % of the stake runs its keys in two processes, all of them or as few as it takes, and cuts the
honest members in two halves, each of which is a quorum together with the coalition. Real engines go on on both sides until two
conflicting blocks are final. Then the two finality proofs, and nothing else, must hold a pair of certificates whose common
signers own more than a third of the stake, and no honest member may be among the accused: not in the proofs, and not in what
honest nodes find once the cut is healed.
"""

import argparse
import random
import sys
import time
from collections import Counter
from collections.abc import Sequence
from typing import Final

import msgspec

from node.lab.engines import CRYPTO, EngineNetwork, EngineNode
from node.sim.mock_crypto import build_mock_validator
from shardyard.blocks import FinalityProof
from shardyard.consensus.evidence import CertificateEvidence, find_conflict
from shardyard.consensus.proofs import verify_finality_proof
from shardyard.ids import ZERO_ADDRESS
from shardyard.quorum import compute_quorum, is_quorum, sum_stake
from shardyard.validators import ValidatorSet

EXIT_MISSED: Final = 6
DEFAULT_COUNT: Final = 100
MIN_SHARE: Final = 34
MAX_SHARE: Final = 60
"""Percent of the stake a coalition has."""
MAX_MEMBERS: Final = 9
SPLIT_MS: Final = 60_000
"""Virtual time that both sides have to finalise."""
STEP_MS: Final = 2_000
HEALED_MS: Final = 6_000


class Plan(msgspec.Struct, frozen=True):
    """One fork, but for its seed: who is where, and how the coalition behaves."""

    stakes: tuple[int, ...]
    coalition: tuple[int, ...]
    sides: tuple[tuple[int, ...], tuple[int, ...]]
    """Honest members on either side of the cut."""
    casts: tuple[tuple[int, ...], tuple[int, ...]]
    """Members of the coalition that are active on either side: all of them, or no more than a quorum takes."""
    cut_after_ms: int
    latency_ms: tuple[int, int]
    silence: float
    """How often a leader of the coalition keeps its proposal back, so that slots are skipped."""

    @property
    def share(self) -> float:
        """Percent of the stake that the coalition has."""
        return 100 * sum_stake(self.coalition, self.stakes) / sum(self.stakes)


class Trial(msgspec.Struct, frozen=True):
    """What came of one seed."""

    seed: int
    plan: Plan
    is_forked: bool
    share: float
    """Percent of the stake that one pair of certificates in the two proofs convicts."""
    kinds: tuple[str, ...]
    """Which pairs were found, for example ``FINAL+SKIP``."""
    problem: str
    """Empty when it is as promised."""


def draw_plan(seed: int) -> Plan:
    """Return the plan of ``seed``: committee, coalition and halves are drawn until they can fork."""
    chance = random.Random(f"fork {seed}")
    while True:
        stakes = _draw_stakes(chance)
        order = list(range(len(stakes)))
        chance.shuffle(order)
        coalition = tuple(sorted(order[: chance.randint(1, len(order) - 2)]))
        if not MIN_SHARE * sum(stakes) <= 100 * sum_stake(coalition, stakes) <= MAX_SHARE * sum(stakes):
            continue
        sides = _draw_sides(chance, stakes, coalition)
        if sides is not None:
            return Plan(
                stakes=stakes,
                coalition=coalition,
                sides=sides,
                casts=_draw_casts(chance, stakes, coalition, sides),
                cut_after_ms=chance.choice([0, 0, 3_500, 9_000]),
                latency_ms=chance.choice([(1, 20), (1, 100), (20, 150)]),
                silence=chance.choice([0.0, 0.3, 0.6]),
            )


def _draw_stakes(chance: random.Random) -> tuple[int, ...]:
    count = chance.randint(4, MAX_MEMBERS)
    match chance.randrange(3):
        case 0:
            return (32,) * count
        case 1:
            return tuple(chance.randint(1, 40) for _ in range(count))
        case _:
            return tuple(1 << chance.randint(0, 4) for _ in range(count))


def _draw_sides(
    chance: random.Random, stakes: Sequence[int], coalition: Sequence[int]
) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Return two halves of the honest that both are a quorum with the coalition, if some dozen tries find any."""
    honest = [index for index in range(len(stakes)) if index not in coalition]
    needed = compute_quorum(sum(stakes)) - sum_stake(coalition, stakes)
    for _ in range(24):
        first = tuple(index for index in honest if chance.random() < 0.5)
        second = tuple(index for index in honest if index not in first)
        if first and second and min(sum_stake(first, stakes), sum_stake(second, stakes)) >= needed:
            return first, second
    return None


def _draw_casts(
    chance: random.Random,
    stakes: Sequence[int],
    coalition: tuple[int, ...],
    sides: tuple[tuple[int, ...], tuple[int, ...]],
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Half of all coalitions expose themselves no more than they must: on each side just enough of them for a quorum."""
    if chance.random() < 0.5:
        return coalition, coalition
    return (
        _draw_cast(chance, stakes, coalition, sides[0]),
        _draw_cast(chance, stakes, coalition, sides[1]),
    )


def _draw_cast(
    chance: random.Random, stakes: Sequence[int], coalition: Sequence[int], side: Sequence[int]
) -> tuple[int, ...]:
    cast = set(coalition)
    for index in chance.sample(list(coalition), len(coalition)):
        if is_quorum(sum_stake(side, stakes) + sum_stake(cast - {index}, stakes), sum(stakes)):
            cast.remove(index)
    return tuple(sorted(cast))


def fork(seed: int) -> Trial:
    """Force the fork of ``seed`` and judge it."""
    plan = draw_plan(seed)
    network = _build_network(seed, plan)
    heads = [next(node for node in network.nodes if node.side == side) for side in (0, 1)]
    height = None
    for _ in range(0, SPLIT_MS, STEP_MS):
        network.run(STEP_MS)
        height = _find_fork(heads[0], heads[1])
        if height is not None:
            break
    if height is None:
        return _judge(seed, plan, None, [], network)
    proofs = heads[0].finals[height][1], heads[1].finals[height][1]
    for proof in proofs:
        verify_finality_proof(CRYPTO, network.domain, network.committee, proof)
    evidence = find_conflict(proofs[0], proofs[1], len(plan.stakes))
    network.is_cut = False
    network.run(HEALED_MS)  # honest nodes see the other side now: whom they accuse is judged as well
    return _judge(seed, plan, proofs, evidence, network)


def _build_network(seed: int, plan: Plan) -> EngineNetwork:
    """Start everybody but the coalition's second processes, which come up when the cut begins."""
    committee = ValidatorSet(
        tuple(
            build_mock_validator(f"member-{index}", stake, ZERO_ADDRESS)
            for index, stake in enumerate(plan.stakes)
        )
    )
    network = EngineNetwork(committee, random.Random(f"fork network {seed}"), plan.latency_ms)
    for side, members in enumerate(plan.sides):
        network.nodes += [EngineNode(network, f"honest-{index}", side, [index]) for index in members]
    twins = [EngineNode(network, f"coalition-{side}", side, cast) for side, cast in enumerate(plan.casts)]
    for twin, partner in zip(twins, reversed(twins), strict=True):
        twin.silence, twin.partner = plan.silence, partner
    network.nodes += twins
    for node in network.nodes:
        if node is not twins[1]:
            node.start()
    if plan.cut_after_ms:
        network.run(plan.cut_after_ms)
    network.is_cut = True
    twins[1].start()
    return network


def _find_fork(one: EngineNode, other: EngineNode) -> int | None:
    """Return the index of the first final block in which two nodes differ."""
    for index, (mine, theirs) in enumerate(zip(one.finals, other.finals, strict=False)):
        if mine[0].hash != theirs[0].hash:
            return index
    return None


def _judge(
    seed: int,
    plan: Plan,
    proofs: tuple[FinalityProof, FinalityProof] | None,
    evidence: Sequence[CertificateEvidence],
    network: EngineNetwork,
) -> Trial:
    total = sum(plan.stakes)
    convicted = max((sum_stake(item.validators, plan.stakes) for item in evidence), default=0)
    accused = {validator for item in evidence for validator in item.validators}
    for node in network.nodes:
        accused |= node.accused if node.name.startswith("honest") else set()
    problem = ""
    if proofs is None:
        problem = f"no fork within {SPLIT_MS // 1000} s"
    elif accused - set(plan.coalition):
        problem = f"honest members {sorted(accused - set(plan.coalition))} are accused"
    elif 3 * convicted <= total:
        problem = f"{convicted} of {total} stake in evidence"
    kinds = {"+".join(sorted((item.first.kind.name, item.second.kind.name))) for item in evidence}
    return Trial(
        seed=seed,
        plan=plan,
        is_forked=proofs is not None,
        share=100 * convicted / total,
        kinds=tuple(sorted(kinds)),
        problem=problem,
    )


def describe_trial(trial: Trial) -> str:
    """Return what came of a seed, for people."""
    plan = trial.plan
    return (
        f"seed {trial.seed}: stakes {' '.join(map(str, plan.stakes))}, coalition {list(plan.coalition)} with "
        f"{plan.share:.0f} %, honest {list(plan.sides[0])} and {list(plan.sides[1])}: "
        + (trial.problem or f"forked, {trial.share:.1f} % in evidence by {', '.join(trial.kinds)}")
    )


def run(seeds: Sequence[int], *, is_verbose: bool = False) -> bool:
    """Force the forks of ``seeds`` and print what came of them; tell whether all are as promised."""
    started, cpu = time.monotonic(), time.process_time()
    forked = problems = 0
    least: Trial | None = None
    kinds: Counter[str] = Counter()
    shares: list[float] = []
    for seed in seeds:
        trial = fork(seed)
        forked += trial.is_forked
        problems += bool(trial.problem)
        kinds.update(trial.kinds)
        shares.append(trial.plan.share)
        if trial.is_forked and (least is None or trial.share < least.share):
            least = trial
        if trial.problem or is_verbose:
            sys.stdout.write(describe_trial(trial) + "\n")
            sys.stdout.flush()
    pairs = ", ".join(f"{kind} in {count}" for kind, count in sorted(kinds.items()))
    sys.stdout.write(
        f"forks: {forked} of {len(seeds)} forked by coalitions of {min(shares):.1f} to {max(shares):.1f} % of the stake; "
        f"least in evidence {0.0 if least is None else least.share:.1f} %"
        f"{'' if least is None else f' (seed {least.seed})'}; pairs: {pairs or 'none'}; "
        f"{time.process_time() - cpu:.0f} s of processor time, {time.monotonic() - started:.0f} s: "
        f"{f'{problems} PROBLEMS' if problems else 'more than a third convicted each time, nobody honest accused'}\n"
    )
    return not problems


def parse_count(text: str) -> int:
    """Return a number of seeds."""
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise argparse.ArgumentTypeError(
            f"got {text!r}, expected a positive number; try: --count {DEFAULT_COUNT}"
        )
    return int(text)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="scripts/forks",
        description="Forks chains by force and looks at what the two finality proofs convict.",
    )
    parser.add_argument(
        "--count", type=parse_count, default=DEFAULT_COUNT, help="how many forks (default %(default)s)"
    )
    parser.add_argument("--start", type=int, default=0, help="the first seed (default %(default)s)")
    parser.add_argument("--verbose", action="store_true", help="a line for every fork")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Force forks as the command line says; return the exit code."""
    options = build_parser().parse_args(arguments)
    seeds = range(options.start, options.start + options.count)
    return 0 if run(seeds, is_verbose=options.verbose) else EXIT_MISSED


if __name__ == "__main__":
    sys.exit(main())
