"""How the world misbehaves in a run: a fault profile says which classes of faults there are and how hard they strike.

The nemesis draws the instants. Profiles have names; each is drawn anew for every seed. Byzantine weight, and the weight of
those who lose what their promises rest on, stays below a third of every committee: more of it breaks promises by design.
"""

import random
from collections.abc import Callable
from typing import Final

import msgspec

from shardyard.errors import ConfigError


class FaultProfile(msgspec.Struct, frozen=True):
    """How the world misbehaves. Times in milliseconds, chances from 0 to 1, counts per run."""

    latency_ms: tuple[int, int] = (1, 20)
    """Evenly drawn, on top of what regions and jitter give."""
    regions: str = ""
    """A table of round trips between regions (``links``): lan, continent or world; nodes are spread over them."""
    jitter_ms: int = 0
    """Scale of a jitter with a tail: the median; now and then dozens of times as much."""
    bandwidth: int = 0
    """Bytes per second of every node's link, in each direction; 0 for no limit."""
    drop: float = 0.0
    duplicate: float = 0.0
    disk_ms: tuple[int, int] = (0, 4)
    crashes: int = 0
    down_ms: tuple[int, int] = (50, 20_000)
    partitions: int = 0
    cut_ms: tuple[int, int] = (500, 20_000)
    freezes: int = 0
    freeze_ms: tuple[int, int] = (200, 30_000)
    clock_jumps: int = 0
    jump_ms: int = 3_600_000
    outages: int = 0
    """Times at which the bus loses everything for a while."""
    flaps: int = 0
    """Nodes cut off from some others, on and off."""
    lost_sessions: int = 0
    """Nodes whose session at the broker is gone for a while."""
    overflows: int = 0
    """Nodes whose queue at the broker overflows for a while."""
    slow_disks: int = 0
    full_disks: int = 0
    """Times at which a disk has no room for a while (ENOSPC)."""
    io_errors: int = 0
    """Syncs that fail (EIO)."""
    bit_flips: int = 0
    """Nodes in whose log or signer's record a durable bit flips."""
    lost_records: int = 0
    """Nodes whose signer's record vanishes."""
    old_records: int = 0
    """Nodes whose signer's record is replaced by an older copy."""
    twins: int = 0
    """Nodes whose keys a second process uses as well."""
    withholders: int = 0
    """Nodes that keep their proposals to themselves."""
    garblers: int = 0
    """Nodes whose votes are sometimes nonsense."""
    tamperers: int = 0
    """Nodes whose proposals sometimes carry another access list than their block's."""
    equivocators: int = 0
    """Nodes that propose and vote twice."""
    silents: int = 0
    """Nodes that hear everything and say nothing."""
    replayers: int = 0
    """Nodes that say again what was said in other slots, epochs and chains."""
    late_voters: int = 0
    """Nodes that vote when others give a slot up."""
    bad_proposers: int = 0
    """Nodes that propose invalid blocks."""
    corrupters: int = 0
    """Nodes that damage or withhold what others fetch from them."""

    @property
    def strikes(self) -> dict[str, int]:
        """How many faults of each kind strike at an instant; the order decides the index of every strike."""
        return {
            "crash": self.crashes,
            "partition": self.partitions,
            "freeze": self.freezes,
            "clock jump": self.clock_jumps,
            "outage": self.outages,
            "flap": self.flaps,
            "lost session": self.lost_sessions,
            "overflow": self.overflows,
            "slow disk": self.slow_disks,
            "full disk": self.full_disks,
            "io error": self.io_errors,
            "bit flip": self.bit_flips,
            "lost record": self.lost_records,
            "old record": self.old_records,
        }

    @property
    def roles(self) -> dict[str, int]:
        """How many nodes of every chain play each Byzantine role, in the order in which they are chosen."""
        return {
            "twin": self.twins,
            "withholder": self.withholders,
            "garbler": self.garblers,
            "tamperer": self.tamperers,
            "equivocator": self.equivocators,
            "silent": self.silents,
            "replayer": self.replayers,
            "late voter": self.late_voters,
            "bad proposer": self.bad_proposers,
            "corrupter": self.corrupters,
        }

    @property
    def is_lasting(self) -> bool:
        """Whether some nodes go on misbehaving, or are silent, when the faults are over: Byzantine ones, those with a loss."""
        return any(self.roles.values()) or any(getattr(self, name) for name in _LOSSES)

    @property
    def count(self) -> int:
        """Number of faults that strike at an instant."""
        return sum(self.strikes.values())


PEACE: Final = FaultProfile()
DEFAULT_PROFILE: Final = "default"
WHOLE_COMMITTEES: Final = frozenset({"byzantine", "chaos"})
"""Profiles that need a process for every fourth of each committee."""
FULL_MS: Final = 75_000
"""Time of faults in a run of two minutes: what the counts below are for."""
_ROLES: Final = (
    "twins",
    "withholders",
    "garblers",
    "tamperers",
    "equivocators",
    "silents",
    "replayers",
    "late_voters",
    "bad_proposers",
    "corrupters",
)
_LOSSES: Final = ("bit_flips", "lost_records", "old_records")


class _Draw:
    """Draws the parts of a profile; counts grow with the time there is for faults."""

    def __init__(self, chance: random.Random, fault_ms: int) -> None:
        self.chance = chance
        self._fault_ms = fault_ms

    def count(self, low: int, high: int) -> int:
        """Return how many faults there are in this run where one of two minutes has ``low`` to ``high``."""
        drawn = self.chance.randint(low, high)
        return -(-drawn * self._fault_ms // FULL_MS)

    def network(self) -> dict[str, object]:
        """Return distances: evenly drawn ones, or regions with their jitter."""
        if self.chance.random() < 0.6:
            return {"latency_ms": self.chance.choice([(1, 20), (1, 100), (20, 250), (1, 600)])}
        return {
            "latency_ms": (0, 1),
            "regions": self.chance.choice(["lan", "continent", "world"]),
            "jitter_ms": self.chance.choice([0, 1, 3, 10]),
            "bandwidth": self.chance.choice([0, 250_000, 1_000_000]),
        }

    def roles(self, count: int) -> dict[str, object]:
        """Return so many Byzantine roles, one of each."""
        return dict.fromkeys(self.chance.sample(_ROLES, count), 1)

    def losses(self) -> dict[str, object]:
        """Return how many times a node loses a log or a signer's record; of every chain it is always the same node."""
        return {name: self.count(0, 4) for name in _LOSSES}


def _draw_calm(draw: _Draw, is_whole: bool) -> dict[str, object]:
    """Nothing goes wrong."""
    del draw, is_whole
    return {}


def _draw_default(draw: _Draw, is_whole: bool) -> dict[str, object]:
    """Some of everything: at least ten faults of at least five classes in two minutes."""
    chance = draw.chance
    failing: dict[str, object] = {}
    if is_whole:
        # Of four nodes one may fail for ever: whoever is Byzantine leaves none that could lose what its promises rest on.
        roles = chance.choice([0, 0, 1, 2])
        failing = draw.roles(roles) if roles else draw.losses()
    return (
        failing
        | draw.network()
        | {
            "drop": chance.choice([0.0, 0.02, 0.1, 0.3]),
            "duplicate": chance.choice([0.0, 0.1, 0.3]),
            "disk_ms": chance.choice([(0, 4), (1, 30), (5, 120)]),
            "crashes": draw.count(3, 12),
            "partitions": draw.count(1, 5),
            "flaps": draw.count(0, 3),
            "freezes": draw.count(1, 4),
            "clock_jumps": draw.count(0, 3),
            "outages": draw.count(1, 2),
            "lost_sessions": draw.count(0, 3),
            "overflows": draw.count(0, 3),
            "slow_disks": draw.count(1, 3),
            "full_disks": draw.count(0, 2),
            "io_errors": draw.count(1, 3),
        }
    )


def _draw_crashy(draw: _Draw, is_whole: bool) -> dict[str, object]:
    """Processes die all the time, and come back at once or late."""
    del is_whole
    return draw.network() | {
        "disk_ms": draw.chance.choice([(1, 30), (5, 120), (5, 300)]),
        "crashes": draw.count(20, 40),
        "down_ms": draw.chance.choice([(10, 800), (50, 5_000), (50, 20_000)]),
        "freezes": draw.count(2, 8),
        "slow_disks": draw.count(2, 8),
        "full_disks": draw.count(0, 2),
        "io_errors": draw.count(4, 10),
        "outages": draw.count(1, 2),
    }


def _draw_byzantine(draw: _Draw, is_whole: bool) -> dict[str, object]:
    """Byzantine weight just under a third of every committee, in several roles at once; little else."""
    del is_whole
    chance = draw.chance
    return (
        draw.roles(chance.randint(1, len(_ROLES)))
        | draw.network()
        | {
            "drop": chance.choice([0.0, 0.02, 0.1]),
            "duplicate": chance.choice([0.0, 0.1]),
            "crashes": draw.count(1, 4),
            "partitions": draw.count(1, 4),
            "flaps": draw.count(1, 4),
            "freezes": draw.count(1, 3),
            "clock_jumps": draw.count(1, 3),
            "lost_sessions": draw.count(1, 3),
            "slow_disks": draw.count(1, 3),
        }
    )


def _draw_wan(draw: _Draw, is_whole: bool) -> dict[str, object]:
    """Nodes all over the world, on links that are narrow, lossy and cut."""
    del is_whole
    chance = draw.chance
    return {
        "latency_ms": (0, 2),
        "regions": "world",
        "jitter_ms": chance.choice([1, 5, 20]),
        "bandwidth": chance.choice([0, 150_000, 1_000_000]),
        "drop": chance.choice([0.0, 0.02, 0.1]),
        "duplicate": chance.choice([0.0, 0.1]),
        "partitions": draw.count(3, 8),
        "flaps": draw.count(3, 8),
        "outages": draw.count(1, 4),
        "lost_sessions": draw.count(2, 6),
        "overflows": draw.count(2, 6),
        "crashes": draw.count(1, 4),
    }


def _draw_disk(draw: _Draw, is_whole: bool) -> dict[str, object]:
    """Disks are slow, full, failing and rotting; records of what was signed vanish and age."""
    failing = draw.losses() | {draw.chance.choice(_LOSSES): 2} if is_whole else {}
    return (
        failing
        | draw.network()
        | {
            "disk_ms": draw.chance.choice([(1, 30), (5, 120), (5, 300)]),
            "crashes": draw.count(4, 12),
            "slow_disks": draw.count(3, 8),
            "full_disks": draw.count(2, 6),
            "io_errors": draw.count(4, 12),
            "freezes": draw.count(1, 2),
            "outages": draw.count(1, 2),
        }
    )


def _draw_chaos(draw: _Draw, is_whole: bool) -> dict[str, object]:
    """Everything at once."""
    default = _draw_default(draw, is_whole)
    counts = {
        name: 2 * value for name, value in default.items() if isinstance(value, int) and name not in _ONCE
    }
    return default | counts | draw.roles(draw.chance.randint(1, 4)) | draw.losses()


_ONCE: Final = frozenset({*_ROLES, *_LOSSES, "jitter_ms", "bandwidth"})
PROFILES: Final[dict[str, Callable[[_Draw, bool], dict[str, object]]]] = {
    "calm": _draw_calm,
    DEFAULT_PROFILE: _draw_default,
    "crashy": _draw_crashy,
    "byzantine": _draw_byzantine,
    "wan": _draw_wan,
    "disk": _draw_disk,
    "chaos": _draw_chaos,
}


def verify_profile(name: str) -> None:
    """Raise ``ConfigError`` unless there is a profile of that name."""
    if name not in PROFILES:
        raise ConfigError(
            f"fault profile: got {name!r}, expected one of {', '.join(PROFILES)}; try: {DEFAULT_PROFILE}"
        )


def draw_profile(name: str, chance: random.Random, fault_ms: int, is_whole: bool) -> FaultProfile:
    """Return a profile of that name for ``fault_ms`` of faults.

    ``is_whole`` says that every process holds no more than a fourth of its committee: only then may some fail for ever.
    Raises ``ConfigError`` for another name.
    """
    verify_profile(name)
    return msgspec.structs.replace(PEACE, **PROFILES[name](_Draw(chance, fault_ms), is_whole))
