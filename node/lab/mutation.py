"""``scripts/mutants``: plants the listed bugs one by one, and looks for a seed or a test that catches each.

A mutant runs seeds in the simulator until an invariant breaks or the seeds are used up; then the tests of the room it is in
until one fails. The simulator comes first, because it has to find what nobody thought of; tests come after, for what it cannot
see: the real driver, the real signer, the bus, and lies that no actor of the simulator tells. What fails without any bug would
catch everything: each set of tests has to pass unchanged first, and a seed that caught a bug has to hold without it. Every
passage is looked up and compiled before the first run: a mutant that cannot be planted is not one that is caught.

What was caught is kept in a file below the state directory and not run again while neither sources, tests nor plant change;
survivors are run again each time. What caught a mutant before is tried first when it has to be run again. A mutant whose
module cannot even be imported is *not judged*: whatever notices it would notice any slip of a pen. Exit code 6 when one is
not judged, when a bug that may lead to two truths survives, or more than one in twenty.
"""

import argparse
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Final

import msgspec

from node.config import get_home
from node.json_lines import append_line
from node.sim.mutants import PLANTS, describe_plants, get_plant
from node.sim.plants import Plant, PlantError, apply_plant, read_module
from node.sim.recipe import Recipe
from node.sim.sources import ROOT, compute_sources_hash, is_simulated
from node.sim.worker import Worker
from shardyard.codec import encode
from shardyard.errors import ConfigError
from shardyard.hashing import hash_tagged

EXIT_USAGE: Final = 2
EXIT_MISSED: Final = 6
EXIT_STOPPED: Final = 130
DEFAULT_SEEDS: Final = 12
DEFAULT_MINUTES: Final = 1.0
LEAST_CAUGHT: Final = 95
"""Percent of all mutants."""
TEST_CPU_S: Final = 90
"""Processor time that the tests of one mutant may take; a mutant that needs more hangs, and so is caught."""
FILE_NAME: Final = "mutants.jsonl"
MAX_JOBS: Final = 64

ENGINE_TESTS: Final = (
    "tests/unit/consensus",
    "tests/conformance/test_finality_engines.py",
    "tests/simulation/test_consensus_faults.py",
    "tests/simulation/test_model_check.py",
    "tests/simulation/test_forks.py",
)
BEACON_TESTS: Final = ("tests/unit/crosslink", "tests/property/crosslink")
SHARD_TESTS: Final = (
    "tests/unit/shards",
    "tests/property/shards",
    "tests/simulation/test_cross_shard_in_process.py",
)
TESTS: Final[tuple[tuple[str, tuple[str, ...]], ...]] = (
    ("shardyard.consensus", ENGINE_TESTS),
    ("crosslink", BEACON_TESTS),
    ("shards", SHARD_TESTS),
    (
        "shardyard",
        ("tests/unit/kernel", "tests/unit/consensus", *BEACON_TESTS, *SHARD_TESTS, *ENGINE_TESTS[1:]),
    ),
    ("node.driver", ("tests/unit/node/test_driver_order.py",)),
    ("node.signer", ("tests/unit/node/test_signer.py",)),
    (
        "node.storage.signer_record",
        ("tests/unit/node/test_signer.py", "tests/simulation/test_lost_records.py"),
    ),
    ("node.bus", ("tests/unit/node/test_bus_envelope.py",)),
    ("node.index", ("tests/unit/node/test_index_records.py", "tests/unit/node/test_index_store.py")),
    (
        "node.sim",
        ("tests/simulation/test_crash_everywhere.py", "tests/simulation/test_cross_shard_native.py"),
    ),
)
"""Which tests look at a module: those of the first line whose name it begins with."""
NEAREST: Final = {
    "shardyard.consensus.evidence": "tests/unit/consensus/test_evidence.py",
    "shardyard.consensus.proofs": "tests/unit/consensus/test_proofs.py",
    "shardyard.consensus.signer": "tests/unit/consensus/test_signer.py",
    "shardyard.consensus.votes": "tests/unit/consensus/test_votes.py",
    "shardyard.consensus.catchup": "tests/unit/consensus/test_fetching.py",
    "shardyard.consensus.slot_timer": "tests/unit/consensus/test_slot_timer.py",
    "shardyard.consensus.sync": "tests/unit/consensus/test_fetching.py",
    "shardyard.consensus": "tests/unit/consensus/test_simplex_rules.py",
    "shardyard.quorum": "tests/unit/consensus/test_votes.py",
    "shardyard.emission": "tests/unit/crosslink/test_validity.py",
    "crosslink.availability": "tests/unit/crosslink/test_availability.py",
    "crosslink.ledger": "tests/unit/crosslink/test_ledger.py",
    "crosslink.validity": "tests/unit/crosslink/test_validity.py",
    "shards.access_lists": "tests/unit/shards/test_access_lists.py",
    "shards.bundles": "tests/unit/shards/test_inbox.py",
    "shards.inbox": "tests/unit/shards/test_inbox.py",
    "shards.outbox": "tests/unit/shards/test_outbox.py",
    "shards.policy": "tests/unit/shards/test_policy.py",
    "shards.replica": "tests/unit/shards/test_replica.py",
}
"""Tests that are tried before the others of a line, because they most often know: it only saves time."""
IMPORT_PROGRAM: Final = """
import importlib, sys
from node.sim.mutants import get_plant
from node.sim.plants import install_plant
plant = get_plant(sys.argv[1])
install_plant(plant)
for passage in plant.passages:
    importlib.import_module(passage.module)
"""
TEST_PROGRAM: Final = f"""
import resource, sys
resource.setrlimit(resource.RLIMIT_CPU, ({TEST_CPU_S}, {TEST_CPU_S}))
from node.sim.mutants import get_plant
from node.sim.plants import install_plant
name, *arguments = sys.argv[1:]
if name:
    install_plant(get_plant(name))
import pytest
sys.exit(pytest.main(arguments))
"""


class MutationError(ConfigError):
    """Mutants cannot be run, or their tests fail without them."""


class Outcome(msgspec.Struct, frozen=True):
    """What became of one mutant. ``by`` names the seed or the test that caught it; empty when it survived."""

    name: str
    key: str
    by: str
    reason: str
    seconds: float
    """Of real time."""
    error: str = ""
    """Why it was not judged: what its import raises."""

    @property
    def is_caught(self) -> bool:
        """Whether anything noticed."""
        return bool(self.by)


class Records:
    """Outcomes of earlier runs, one JSON line each; the last line of a name counts."""

    def __init__(self, path: Path, *, forget: bool = False) -> None:
        """Read ``path``, which need not exist; lines that a kill cut short are passed over, all when ``forget``."""
        self._path = path
        self._outcomes: dict[str, Outcome] = {}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lines = path.read_bytes().splitlines() if path.exists() and not forget else []
        except OSError as error:
            raise MutationError(f"{path}: {error.strerror}; try: another --state") from error
        for line in lines:
            try:
                outcome = msgspec.json.decode(line, type=Outcome)
            except msgspec.DecodeError:
                continue
            self._outcomes[outcome.name] = outcome

    def get(self, name: str, key: str) -> Outcome | None:
        """Return what caught a mutant in sources that are the same today."""
        found = self._outcomes.get(name)
        return found if found is not None and found.key == key and found.is_caught else None

    def get_hint(self, name: str) -> str:
        """Return what caught a mutant when it was last run, in whatever sources; empty when nothing did."""
        found = self._outcomes.get(name)
        return found.by if found is not None else ""

    def add(self, outcome: Outcome) -> None:
        """Keep an outcome."""
        self._outcomes[outcome.name] = outcome
        append_line(self._path, msgspec.json.encode(outcome))


def compute_key(plant: Plant) -> str:
    """Return under what an outcome is kept: the plant, its modules, its tests, and the sources that decide a run."""
    modules = tuple(read_module(passage.module).encode() for passage in plant.passages)
    content = encode(
        (compute_sources_hash(), msgspec.json.encode(plant), modules, _read_tests(find_tests(plant.module)))
    )
    return hash_tagged(b"shardyard/mutant", content).hex()[:16]


def _read_tests(tests: Iterable[str]) -> tuple[tuple[str, bytes], ...]:
    """Return the files of ``tests``, by their names."""
    places = [ROOT / test for test in tests]
    files = {file for place in places for file in (place.rglob("*.py") if place.is_dir() else (place,))}
    return tuple(
        (Path(os.path.relpath(file, ROOT)).as_posix(), file.read_bytes())
        for file in sorted(files)
        if file.is_file()
    )


def verify_plants(plants: Iterable[Plant]) -> None:
    """Raise ``PlantError`` unless every one can be planted: its passages stand there, and what they become is Python."""
    for plant in plants:
        for module in sorted({passage.module for passage in plant.passages}):
            text = apply_plant(plant, module, read_module(module))
            try:
                compile(text, module, "exec", dont_inherit=True)
            except SyntaxError as error:
                raise PlantError(
                    f"plant {plant.name}: got {error.msg} in line {error.lineno} of {module}, expected Python; "
                    "try: bring the table of plants in line with the module"
                ) from error


def find_tests(module: str) -> tuple[str, ...]:
    """Return the tests that look at ``module``."""
    for prefix, tests in TESTS:
        if module == prefix or module.startswith(f"{prefix}."):
            nearest = [
                test for name, test in NEAREST.items() if module == name or module.startswith(f"{name}.")
            ]
            return (*dict.fromkeys((*nearest[:1], *tests)),)
    raise MutationError(f"{module}: no tests are named for it; try: a line in {__name__}.TESTS")


class Hunter:
    """Runs mutants, several at once if its threads do; knows which sets of tests pass without any."""

    def __init__(self, seeds: Sequence[int], minutes: float) -> None:
        self._seeds = seeds
        self._minutes = minutes
        self._sound: set[tuple[str, ...]] = set()
        self._checking = threading.Lock()
        self.is_over = False
        """Nothing more is begun: somebody has stopped it."""

    def hunt(self, plant: Plant, hint: str = "") -> Outcome:
        """Return what caught ``plant``, or that it survived, or why it is not judged.

        ``hint`` is what caught it before, which is tried first. Raises ``MutationError`` when what caught it fails without it.
        """
        started = time.monotonic()
        by, reason, error = "", "", find_import_error(plant)
        if not error:
            by, reason = self._follow(plant, hint)
            if not by and any(is_simulated(passage.module) for passage in plant.passages):
                by, reason = self._run_seeds(plant, self._seeds)
            if not by:
                by, reason = self._run_tests(plant, find_tests(plant.module))
        seconds = round(time.monotonic() - started, 1)
        return Outcome(plant.name, compute_key(plant), by, reason, seconds, error)

    def _follow(self, plant: Plant, hint: str) -> tuple[str, str]:
        kind, _, rest = hint.partition(" ")
        if kind == "seed" and rest.isdecimal() and int(rest) in self._seeds:
            return self._run_seeds(plant, [int(rest)])
        test = rest.partition("::")[0]
        if kind == "test" and (ROOT / test).is_file():
            return self._run_tests(plant, (test,))
        return "", ""

    def _run_seeds(self, plant: Plant, seeds: Iterable[int]) -> tuple[str, str]:
        with Worker(plant.name) as worker:
            for seed in seeds:
                self._check_stopped()
                recipe = Recipe(seed=seed, minutes=self._minutes, profile=plant.profile, plant=plant.name)
                result = worker.run(recipe)
                if not result.is_ok:
                    _check_seed(msgspec.structs.replace(recipe, plant=""))
                    return f"seed {seed}", result.violation
        return "", ""

    def _run_tests(self, plant: Plant, tests: tuple[str, ...]) -> tuple[str, str]:
        self._check_stopped()
        self._check_sound(tests)
        self._check_stopped()
        return run_tests(plant.name, tests)

    def _check_sound(self, tests: tuple[str, ...]) -> None:
        with self._checking:
            if tests not in self._sound:
                failed, _ = run_tests("", tests)
                if failed:
                    raise MutationError(f"{failed} fails without any planted bug; try: scripts/test unit")
                self._sound.add(tests)

    def _check_stopped(self) -> None:
        if self.is_over:
            raise MutationError("stopped")


def find_import_error(plant: Plant) -> str:
    """Return what importing the modules of ``plant`` raises with the bug in them; empty when they can be imported."""
    command = [sys.executable, "-P", "-c", IMPORT_PROGRAM, plant.name]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=_environ())
    return "" if done.returncode == 0 else (done.stderr.strip().splitlines() or ["no reason"])[-1]


def _environ() -> dict[str, str]:
    """Return the environment of a process that imports this clone."""
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
    }


def _check_seed(recipe: Recipe) -> None:
    with Worker() as worker:
        result = worker.run(recipe)
    if not result.is_ok:
        raise MutationError(
            f"seed {recipe.seed} fails without any planted bug: {result.violation}; try: {result.command}"
        )


def run_tests(plant: str, tests: Iterable[str]) -> tuple[str, str]:
    """Run tests in a process with ``plant`` in it (none when empty); return the first that fails, and how."""
    if not (ROOT / "tests").is_dir():
        raise MutationError(f"{ROOT}: there are no tests; try: scripts/mutants in a clone")
    options = ["-x", "-q", "--no-header", "--tb=line", "-rfE", "--timeout=0", "-p", "no:cacheprovider"]
    command = [sys.executable, "-c", TEST_PROGRAM, plant, *options, "--hypothesis-seed=0", *tests]
    done = subprocess.run(
        command,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env=_environ(),
    )
    if done.returncode == 0:
        return "", ""
    found = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - (.*))?$", done.stdout, re.MULTILINE)
    if found:
        return f"test {found[1]}", (found[2] or "").strip()
    if done.returncode < 0:
        return f"tests of {' '.join(tests)}", f"ended by signal {-done.returncode}"
    raise MutationError(f"tests: exit code {done.returncode}: {(done.stderr or done.stdout)[-400:].strip()}")


def describe_outcome(outcome: Outcome, width: int) -> str:
    """Return a line of the list."""
    plant = get_plant(outcome.name)
    kind = "safety  " if plant.is_safety else "liveness"
    verdict = "NOT JUDGED" if outcome.error else "caught" if outcome.is_caught else "SURVIVED"
    head = f"{verdict:10} {plant.name:{width}} {plant.rule:7} {kind}"
    if outcome.error:
        return f"{head} {outcome.seconds:6.1f} s  its import raises {outcome.error[:120]}; try: another passage for it"
    if not outcome.is_caught:
        return f"{head} {outcome.seconds:6.1f} s  {plant.what}"
    return f"{head} {outcome.seconds:6.1f} s  {outcome.by}: {outcome.reason[:120]}".rstrip(": ")


def summarise(outcomes: Sequence[Outcome], seconds: float) -> tuple[str, bool]:
    """Return the last line and whether enough was caught."""
    caught = [outcome for outcome in outcomes if outcome.is_caught]
    by_seed = sum(outcome.by.startswith("seed") for outcome in caught)
    safety = [outcome for outcome in outcomes if get_plant(outcome.name).is_safety]
    safe = sum(outcome.is_caught for outcome in safety)
    unjudged = sum(bool(outcome.error) for outcome in outcomes)
    is_enough = 100 * len(caught) >= LEAST_CAUGHT * len(outcomes) and safe == len(safety) and not unjudged
    share = 100 * len(caught) / max(1, len(outcomes))
    line = (
        f"mutants: {len(outcomes)} planted, {len(caught)} caught = {share:.1f} % "
        f"({by_seed} by seeds, {len(caught) - by_seed} by tests), {unjudged} not judged, "
        f"{safe} of {len(safety)} that may lead to two truths; {sum(outcome.seconds for outcome in outcomes):.0f} s of work, "
        f"{seconds:.0f} s now: {'enough' if is_enough else 'NOT ENOUGH'}"
    )
    return line, is_enough


def run(plants: Sequence[Plant], hunter: Hunter, records: Records, jobs: int = 1) -> bool:
    """Run every mutant that is not on record, ``jobs`` at once, and print each as it ends; tell whether enough is caught.

    Raises ``PlantError`` when one cannot be planted, ``MutationError`` when a seed or a test fails without any.
    """
    started = time.monotonic()
    verify_plants(plants)
    width = max(len(plant.name) for plant in plants)
    outcomes: list[Outcome] = []

    def take(outcome: Outcome) -> None:
        outcomes.append(outcome)
        sys.stdout.write(describe_outcome(outcome, width) + "\n")
        sys.stdout.flush()

    known = {plant.name: records.get(plant.name, compute_key(plant)) for plant in plants}
    for outcome in filter(None, known.values()):
        take(outcome)
    waiting = [plant for plant in plants if known[plant.name] is None]
    with ThreadPoolExecutor(jobs, thread_name_prefix="mutant") as pool:
        running = [pool.submit(hunter.hunt, plant, records.get_hint(plant.name)) for plant in waiting]
        try:
            for done in as_completed(running):
                outcome = done.result()
                records.add(outcome)
                take(outcome)
        except BaseException:
            hunter.is_over = True
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    safety = [outcome for outcome in outcomes if get_plant(outcome.name).is_safety]
    sys.stdout.write(f"{len(safety)} mutants that may lead to two truths:\n")
    for outcome in sorted(safety, key=lambda found: found.name):
        sys.stdout.write(
            f"  {outcome.name:{width}} {outcome.by or 'NOT JUDGED' * bool(outcome.error) or 'SURVIVED'}\n"
        )
    line, is_enough = summarise(outcomes, time.monotonic() - started)
    sys.stdout.write(line + "\n")
    return is_enough


def parse_count(text: str) -> int:
    """Return a number that is not negative."""
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(
            f"got {text!r}, expected a number from 0; try: --seeds {DEFAULT_SEEDS}"
        )
    return int(text)


def parse_jobs(text: str) -> int:
    """Return a number of processes, from 1 to ``MAX_JOBS``."""
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= MAX_JOBS):
        raise argparse.ArgumentTypeError(
            f"got {text!r}, expected 1 to {MAX_JOBS}; try: --jobs {os.cpu_count() or 1}"
        )
    return int(text)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="scripts/mutants", description="Plants bugs one by one and says which seed or test catches each."
    )
    parser.add_argument("--list", action="store_true", help="only say what there is to plant")
    parser.add_argument(
        "--only", action="append", metavar="NAME", help="one mutant, or one of a rule; may be repeated"
    )
    parser.add_argument(
        "--seeds", type=parse_count, default=DEFAULT_SEEDS, help="seeds for each mutant (default %(default)s)"
    )
    parser.add_argument(
        "--jobs", type=parse_jobs, default=1, help="mutants that run at once (default %(default)s)"
    )
    parser.add_argument("--start", type=int, default=0, help="the first seed (default %(default)s)")
    parser.add_argument(
        "--minutes",
        type=float,
        default=DEFAULT_MINUTES,
        help="simulated minutes per seed (default %(default)s)",
    )
    parser.add_argument(
        "--state", type=Path, metavar="DIR", help="where outcomes are kept (default the data directory)"
    )
    parser.add_argument("--force", action="store_true", help="run what is on record again")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run mutants as the command line says; return the exit code."""
    options = build_parser().parse_args(arguments)
    if options.list:
        sys.stdout.write(describe_plants() + "\n")
        return 0
    try:
        plants = [get_plant(name) for name in options.only] if options.only else list(PLANTS)
        path = (options.state or get_home() / "lab") / FILE_NAME
        seeds = range(options.start, options.start + options.seeds)
        return (
            0
            if run(plants, Hunter(seeds, options.minutes), Records(path, forget=options.force), options.jobs)
            else EXIT_MISSED
        )
    except ConfigError as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_USAGE
    except KeyboardInterrupt:
        sys.stderr.write("stopped; what was caught is on record, and the next run goes on from there\n")
        return EXIT_STOPPED


if __name__ == "__main__":
    sys.exit(main())
