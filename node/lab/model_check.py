"""``scripts/model-check``: a bounded, exhaustive check of accountable safety, and of the need for each rule.

For every set of Byzantine members without a quorum of its own: below a third of the stake no two conflicting blocks are
final; from a third on every fork leaves more than a third of the stake in evidence, found in its two proofs, and nobody
honest is accused. Then each rule in turn is left out, by the same planted bugs that mutants use, in a process of its own:
with one member of four Byzantine a fork must come of it. Exit code 6 when anything is otherwise.

What is planted must not be imported before: so this module imports the model only inside functions.
"""

import argparse
import itertools
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import msgspec

from node.sim.mutants import get_plant
from node.sim.plants import Plant, PlantError, install_plant
from shardyard.errors import ConfigError

if TYPE_CHECKING:
    from node.lab.model_walk import Verdict

EXIT_USAGE: Final = 2
EXIT_MISSED: Final = 6
DEFAULT_SLOTS: Final = 3
MAX_SLOTS: Final = 4
MIN_MEMBERS: Final = 4
MAX_MEMBERS: Final = 7
DEFAULT_STAKES: Final = (1, 1, 1, 1)
NECESSARY: Final = (
    ("S1", "s1-two-notars"),
    ("S2", "s2-skip-after-final"),
    ("S3, never after SKIP", "s3-final-after-skip"),
    ("A1, SkipCerts between", "a1-skip-left-out"),
    ("A1, the parent's NotarCert", "a1-parent-not-certified"),
)
"""Rules without which C1 fails, and the bug that leaves each out."""


def find_byzantine_sets(stakes: Sequence[int]) -> list[tuple[int, ...]]:
    """Return the sets of members without a quorum, one for each multiset of stakes: equal members have no names."""
    from shardyard.quorum import is_quorum, sum_stake

    found: dict[tuple[int, ...], tuple[int, ...]] = {}
    for size in range(1, len(stakes)):
        for chosen in itertools.combinations(range(len(stakes)), size):
            if not is_quorum(sum_stake(chosen, stakes), sum(stakes)):
                found.setdefault(tuple(sorted(stakes[index] for index in chosen)), chosen)
    return list(found.values())


def check(stakes: tuple[int, ...], byzantine: tuple[int, ...], slots: int) -> "Verdict":
    """Return the verdict on one set of Byzantine members."""
    from node.lab.model_votes import Committee
    from node.lab.model_walk import Walk

    return Walk(Committee(stakes, byzantine), slots).run()


def check_without(plant: str, slots: int) -> "Verdict":
    """Return what one Byzantine member of four can do when a rule is left out, found in a process of its own."""
    from node.lab.model_walk import Verdict

    command = [sys.executable, "-P", "-m", "node.lab.model_check", "--without", plant, "--slots", str(slots)]
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode != 0:
        raise ConfigError(f"model check without {plant}: {done.stderr.decode(errors='replace').strip()}")
    return msgspec.json.decode(done.stdout, type=Verdict)


def describe_verdict(verdict: "Verdict", seconds: float) -> str:
    """Return what came of one set of Byzantine members, in one line and its problem in more."""
    names = " ".join(f"V{index}" for index in verdict.byzantine)
    stake = sum(verdict.stakes[index] for index in verdict.byzantine)
    size = (
        f"{verdict.states:,} states for {verdict.vote_sets:,} sets of votes "
        f"({verdict.vote_states:,} visited within slots) in {seconds:.1f} s"
    )
    if verdict.forks:
        came = f"{verdict.forks:,} forks, at least {verdict.least_evidence} of {verdict.total_stake} stake in evidence"
        came += "" if verdict.problem else ", nobody honest accused"
    else:
        came = "no fork"
    bound = "below a third" if verdict.is_tolerated else "a third or more"
    line = f"Byzantine {names}, {stake} of {verdict.total_stake} stake, {bound}: {size}: {came}"
    return f"{line}\n  PROBLEM: {verdict.problem}\n{verdict.counterexample}" if verdict.problem else line


def run(stakes: tuple[int, ...], slots: int) -> bool:
    """Print every verdict as it is found; tell whether all is as proven."""
    from shardyard.quorum import compute_quorum

    _say(
        f"model check: {len(stakes)} members with stake {' '.join(map(str, stakes))}, quorum "
        f"{compute_quorum(sum(stakes))} of {sum(stakes)}, {slots} slots"
    )
    started = time.monotonic()
    problems = 0
    for byzantine in find_byzantine_sets(stakes):
        begun = time.monotonic()
        verdict = check(stakes, byzantine, slots)
        problems += bool(verdict.problem)
        _say(describe_verdict(verdict, time.monotonic() - begun))
    for rule, plant in NECESSARY:
        verdict = check_without(plant, slots)
        if verdict.forks:
            _say(
                f"without {rule} ({plant}) a fork by one Byzantine member of four:\n{verdict.counterexample}"
            )
        else:
            problems += 1
            _say(f"without {rule} ({plant}): PROBLEM: no fork in {verdict.states:,} states")
    took = f"{time.monotonic() - started:.0f} s"
    if problems:
        _say(f"result: {problems} PROBLEMS, {took}")
    else:
        _say(f"result: complete, as proven; each of {len(NECESSARY)} rules is needed; {took}")
    return not problems


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def parse_stakes(text: str) -> tuple[int, ...]:
    """Return the stakes of a committee, written ``3,2,2,1,1``."""
    try:
        stakes = tuple(int(part) for part in text.split(","))
    except ValueError:
        stakes = ()
    if not MIN_MEMBERS <= len(stakes) <= MAX_MEMBERS or min(stakes, default=0) < 1:
        raise argparse.ArgumentTypeError(
            f"got {text!r}, expected {MIN_MEMBERS} to {MAX_MEMBERS} positive numbers; try: --stakes 3,2,2,1,1"
        )
    return stakes


def parse_slots(text: str) -> int:
    """Return a number of slots that can be gone through."""
    slots = int(text) if text.isascii() and text.isdigit() else 0
    if not 1 <= slots <= MAX_SLOTS:
        raise argparse.ArgumentTypeError(
            f"got {text!r}, expected 1 to {MAX_SLOTS}; try: --slots {DEFAULT_SLOTS}"
        )
    return slots


def find_plant(name: str) -> Plant:
    """Return the planted bug that leaves a rule out."""
    try:
        return get_plant(name)
    except PlantError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="scripts/model-check",
        description="Checks accountable safety in every state of a small committee, and that each rule is needed.",
    )
    parser.add_argument(
        "--slots", type=parse_slots, default=DEFAULT_SLOTS, help="how many slots (default %(default)s)"
    )
    parser.add_argument(
        "--stakes",
        type=parse_stakes,
        default=DEFAULT_STAKES,
        metavar="A,B,…",
        help="the committee (default four members of stake 1)",
    )
    parser.add_argument(
        "--without",
        type=find_plant,
        metavar="PLANT",
        help="leave one rule out, stop at the first fork by one Byzantine member of four, write the verdict as JSON",
    )
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Check as the command line says; return the exit code."""
    options = build_parser().parse_args(arguments)
    try:
        if options.without is None:
            return 0 if run(options.stakes, options.slots) else EXIT_MISSED
        install_plant(options.without)
    except ConfigError as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_USAGE
    from node.lab.model_votes import Committee
    from node.lab.model_walk import find_fork

    verdict = find_fork(Committee(DEFAULT_STAKES, (3,)), options.slots)
    sys.stdout.buffer.write(msgspec.json.encode(verdict))
    return 0


if __name__ == "__main__":
    sys.exit(main())
