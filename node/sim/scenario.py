"""What a run is: its network, its load, its faults. A seed draws one; the same seed draws the same for ever.

A fault profile says which classes of faults a run has and how hard they strike; the nemesis draws the instants. Byzantine
weight stays below a third of every committee: more of it breaks promises by design.
"""

import random
from functools import lru_cache
from typing import Final

import msgspec

from node.artifacts import load_artifact
from node.genesis_alloc import build_alloc, compute_alloc_supply, encode_alloc
from node.load.keys import derive_account
from node.sim.mock_crypto import build_mock_validator
from shardyard import _native
from shardyard.consensus.registry import DEFAULT_ENGINE
from shardyard.genesis import Genesis, ShardGenesis
from shardyard.ids import Address, Hash32, compute_chain_id
from shardyard.preset import get_preset

GENESIS_MS: Final = 1_700_000_000_000
ACCOUNTS: Final = 6
"""Senders per shard."""
ACCOUNT_SEED: Final = 7
ACCOUNT_BALANCE: Final = 10_000 * 10**18
COUNTER: Final = Address(bytes.fromhex("00000000000000000000000000000000000c0de1"))
"""A contract on every shard that takes messages."""
TAMPER_CHANCE: Final = 0.5
STAKES: Final = (32, 32, 32, 32)


class FaultProfile(msgspec.Struct, frozen=True):
    """How the world misbehaves. Times in milliseconds, chances from 0 to 1, counts per run."""

    latency_ms: tuple[int, int] = (1, 20)
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
    slow_disks: int = 0
    twins: int = 0
    """Nodes whose keys a second process uses as well."""
    withholders: int = 0
    """Nodes that keep their proposals to themselves."""
    garblers: int = 0
    """Nodes whose votes are sometimes nonsense."""
    tamperers: int = 0
    """Nodes whose proposals sometimes carry another access list than their block's."""

    @property
    def strikes(self) -> dict[str, int]:
        """How many faults of each kind strike at an instant; the order decides the index of every strike."""
        return {
            "crash": self.crashes,
            "partition": self.partitions,
            "freeze": self.freezes,
            "clock jump": self.clock_jumps,
            "outage": self.outages,
            "slow disk": self.slow_disks,
        }

    @property
    def count(self) -> int:
        """Number of faults that strike at an instant."""
        return sum(self.strikes.values())


class Scenario(msgspec.Struct, frozen=True):
    """One run, but for its seed."""

    shards: int = 2
    validators: int = 4
    """Per shard; all of them serve the beacon."""
    replicas: int = 4
    """Processes per shard, each with an equal share of the keys."""
    beacon_replicas: int = 4
    duration_ms: int = 120_000
    settle_ms: int = 45_000
    """Of the duration, at its end, without faults: the time in which everything must come right."""
    tps: float = 2.0
    """Transactions per second over the whole network."""
    engine: str = DEFAULT_ENGINE
    profile: FaultProfile = FaultProfile()
    only_strikes: tuple[int, ...] | None = None
    """Indices of the strikes that hit; all of them when None."""
    calm_from_ms: int | None = None
    """When faults and load end, if earlier than ``fault_ms``; what is drawn before stays as it is."""

    @property
    def fault_ms(self) -> int:
        """From the start of the run: the time in which instants of faults and load are drawn."""
        return max(1, self.duration_ms - self.settle_ms)

    @property
    def calm_ms(self) -> int:
        """From the start of the run: when faults and load are over; ``settle_ms`` of quiet follow."""
        return self.fault_ms if self.calm_from_ms is None else min(self.calm_from_ms, self.fault_ms)

    @property
    def end_ms(self) -> int:
        """From the start of the run: its end."""
        return self.calm_ms + self.settle_ms

    def has_strike(self, index: int) -> bool:
        """Tell whether the strike of that index hits."""
        return self.only_strikes is None or index in self.only_strikes


PEACE: Final = FaultProfile()


def draw_scenario(seed: int, duration_ms: int, *, faults: bool = True) -> Scenario:
    """Return the scenario of ``seed``."""
    chance = random.Random(f"scenario {seed}")
    shards = chance.choice([2, 2, 2, 3])
    replicas = chance.choice([1, 2, 4, 4])
    beacon_replicas = chance.choice([1, 2, 4, 4])
    settle_ms = min(45_000, duration_ms // 2)
    other = random.Random(f"tamperers {seed}")
    profile = _draw_profile(chance, other, replicas, beacon_replicas) if faults else PEACE
    return Scenario(
        shards=shards,
        replicas=replicas,
        beacon_replicas=beacon_replicas,
        duration_ms=duration_ms,
        settle_ms=settle_ms,
        tps=chance.choice([0.5, 2.0, 6.0]),
        profile=profile,
    )


def _draw_profile(
    chance: random.Random, other: random.Random, replicas: int, beacon_replicas: int
) -> FaultProfile:
    """Draw at least ten faults of several classes."""
    can_be_byzantine = replicas == 4 and beacon_replicas == 4
    byzantine = chance.choice(["", "", "twins", "withholders", "garblers"]) if can_be_byzantine else ""
    return FaultProfile(
        latency_ms=chance.choice([(1, 20), (1, 100), (20, 250), (1, 600)]),
        drop=chance.choice([0.0, 0.02, 0.1, 0.3]),
        duplicate=chance.choice([0.0, 0.1, 0.3]),
        disk_ms=chance.choice([(0, 4), (1, 30), (5, 120)]),
        crashes=chance.randint(4, 16),
        partitions=chance.randint(2, 8),
        freezes=chance.randint(1, 4),
        clock_jumps=chance.randint(0, 3),
        outages=chance.randint(1, 3),
        slow_disks=chance.randint(1, 4),
        twins=int(byzantine == "twins"),
        withholders=int(byzantine == "withholders"),
        garblers=int(byzantine == "garblers"),
        # From a generator of its own, so that all else stays what a seed always drew.
        tamperers=int(can_be_byzantine and not byzantine and other.random() < TAMPER_CHANCE),
    )


@lru_cache(maxsize=8)
def build_sim_alloc(shards: int) -> bytes:
    """Return the first state of every shard: the usual predeploys, a counter, and funded senders of all shards."""
    balances = {
        derive_account(ACCOUNT_SEED, shard, index).address: ACCOUNT_BALANCE
        for shard in range(shards)
        for index in range(ACCOUNTS)
    }
    alloc = build_alloc(shard_count=shards, balances=balances)
    code = "0x" + load_artifact("counter").runtime_code.hex()
    alloc["0x" + COUNTER.hex()] = {"balance": "0x0", "nonce": "0x1", "code": code}
    return encode_alloc(dict(sorted(alloc.items())))


@lru_cache(maxsize=8)
def build_sim_genesis(shards: int, validators: int) -> Genesis:
    """Return the genesis of a simulated network."""
    preset = msgspec.structs.replace(get_preset("devnet"), validators_per_shard=validators)
    alloc = msgspec.json.decode(build_sim_alloc(shards), type=dict[str, dict[str, object]])
    supply = compute_alloc_supply(alloc).to_bytes(32, "big")  # type: ignore[arg-type]  # as decoded, so encoded
    roots = [
        _native.Core(chain_id=compute_chain_id(shard), shard=shard).init_genesis(build_sim_alloc(shards))
        for shard in range(shards)
    ]
    return Genesis(
        version=1,
        name="sim",
        timestamp_ms=GENESIS_MS,
        preset=preset,
        validators=tuple(
            build_mock_validator(f"validator-{index}", STAKES[index % len(STAKES)], _build_reward(index))
            for index in range(shards * validators)
        ),
        shards=tuple(ShardGenesis(state_root=Hash32(root), supply=supply) for root in roots),
    )


def _build_reward(index: int) -> Address:
    return Address(_native.keccak256(f"reward {index}".encode())[12:])
