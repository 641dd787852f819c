"""The ledger of kills: one JSON line per leg, written when its audit is done, added up over all runs of the bench.

A leg is a network of its own that was killed in parts, drained and audited. It counts only with its verdict: whatever stops
the bench loses the leg under way and nothing else. Legs count together when the same sources and options made them.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import msgspec

from node.bench.revival import Round
from node.json_lines import append_line
from node.load.result import Latency, compute_latency
from node.sim.sources import compute_sources_hash
from shardyard.errors import ConfigError

PROGRAMS: Final = (
    "node.process",
    "node.bus.broker",
    "node.launcher.__main__",
    "node.launcher.fork_server",
    "node.bench.kill",
)
"""What runs in a leg; whatever these import decides what comes of it."""
DEFAULT_PATH: Final = Path("reports/kill-ledger.jsonl")
MAX_LINE_BYTES: Final = 16 << 20


class KillLedgerError(ConfigError):
    """A ledger of kills cannot be read or written."""


class KillOptions(msgspec.Struct, frozen=True):
    """What decides a leg. ``leg`` is how many kills one should have at least: it ends with a full bag of victims."""

    seed: int = 1
    tps: float = 60.0
    shards: int = 2
    nodes_per_shard: int = 1
    validators: int = 4
    leg: int = 50


class Leg(msgspec.Struct, frozen=True):
    """One network from its start to its audit."""

    sources: str
    options: KillOptions
    number: int
    network: str
    """Hash of its genesis."""
    rounds: tuple[Round, ...]
    sent: int
    lost: int
    """Answered and missing in the chains, or sent and never answered, or refused."""
    doubled: int
    """Transactions or messages that were executed twice, or out of their order."""
    equivocations: int
    """Pairs of signatures that no honest validator gives, as nodes reported them; what the audit finds is under ``broken``."""
    broken: dict[str, int]
    """What the audit found, by promise; empty when all of them held."""
    error: str
    """What ended the leg before its time; empty when nothing did."""
    seconds: float
    commit: str
    at: str

    @property
    def kills(self) -> int:
        """Processes that were killed."""
        return sum(len(one.revivals) for one in self.rounds)

    @property
    def held(self) -> bool:
        """Whether every promise held, but for those of time."""
        return not (self.lost or self.doubled or self.equivocations or self.broken or self.error)


class _Key(msgspec.Struct, frozen=True):
    sources: str
    options: KillOptions


class KillLedger:
    """The legs of the present sources and ``options``, and how many there are of others."""

    def __init__(self, path: Path, options: KillOptions) -> None:
        """Read ``path``, which need not exist; raises ``KillLedgerError``."""
        self.path = path
        self.options = options
        self.sources = compute_sources_hash(PROGRAMS)
        self.legs: list[Leg] = []
        self.others = 0
        """Legs of other sources or options."""
        self.torn = 0
        """Lines that are not whole."""
        try:
            with path.open("rb") as file:
                for line in iter(lambda: file.readline(MAX_LINE_BYTES), b""):
                    self._take(line)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise KillLedgerError(
                f"ledger: {error}; try: --ledger PATH of a file that can be read"
            ) from error

    def _take(self, line: bytes) -> None:
        try:
            key = msgspec.json.decode(line, type=_Key)
            if (key.sources, key.options) == (self.sources, self.options):
                self.legs.append(msgspec.json.decode(line, type=Leg))
            else:
                self.others += 1
        except msgspec.DecodeError:
            self.torn += bool(line.strip())

    @property
    def kills(self) -> int:
        """Processes that were killed in all legs."""
        return sum(leg.kills for leg in self.legs)

    @property
    def next_number(self) -> int:
        """The number of the leg to run next."""
        return max((leg.number for leg in self.legs), default=0) + 1

    def append(self, leg: Leg) -> None:
        """Add a leg; it is on disk when this returns. Raises ``KillLedgerError`` when it cannot be written."""
        try:
            append_line(self.path, msgspec.json.encode(leg))
        except OSError as error:
            raise KillLedgerError(
                f"ledger: {error}; try: --ledger PATH of a file that can be written"
            ) from error
        self.legs.append(leg)


class Totals(msgspec.Struct, frozen=True):
    """Legs added up. Times in seconds; what never came back counts as ``give_up_s``."""

    kills: int
    victims: dict[str, int]
    sent: int
    lost: int
    doubled: int
    equivocations: int
    broken: dict[str, int]
    failed_legs: tuple[int, ...]
    away: int
    """Processes that did not vote again, and rounds without finality."""
    voting: Latency
    """From the signal to the first vote that counts, over killed nodes; of a launcher that died, of the last of all nodes."""
    voting_after_respawn: Latency
    finality: Latency
    """From the signal until every chain has a new final block, over rounds."""
    launcher_voting: Latency
    """Of ``voting`` and ``finality`` what followed a launcher's death, which takes everything down."""
    launcher_finality: Latency


def add_up(legs: Sequence[Leg], *, give_up_s: float, launcher: str) -> Totals:
    """Return the totals of ``legs``."""
    rounds = [one for leg in legs for one in leg.rounds]
    revivals = [revival for one in rounds for revival in one.revivals]
    broken: Counter[str] = Counter()
    for leg in legs:
        broken.update(leg.broken)

    def spread(values: Iterable[float]) -> Latency:
        return compute_latency(give_up_s if value < 0 else value for value in values)

    nodes = [one for one in revivals if one.nodes]
    return Totals(
        kills=len(revivals),
        victims=dict(sorted(Counter(one.victim for one in revivals).items())),
        sent=sum(leg.sent for leg in legs),
        lost=sum(leg.lost for leg in legs),
        doubled=sum(leg.doubled for leg in legs),
        equivocations=sum(leg.equivocations for leg in legs),
        broken=dict(broken),
        failed_legs=tuple(leg.number for leg in legs if not leg.held),
        away=sum(one.missing for one in rounds),
        voting=spread(one.voting_s for one in nodes),
        voting_after_respawn=spread(one.voting_after_respawn_s for one in nodes),
        finality=spread(one.resumed_s for one in rounds),
        launcher_voting=spread(one.voting_s for one in revivals if one.victim == launcher),
        launcher_finality=spread(one.resumed_s for one in rounds if launcher in one.victims),
    )
