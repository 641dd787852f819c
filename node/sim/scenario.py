"""What a run is: its network, its load, its faults. A seed draws one; the same seed draws the same for ever."""

import random
from functools import lru_cache
from typing import Final

import msgspec

from node.artifacts import load_artifact
from node.genesis_alloc import build_alloc, compute_alloc_supply, encode_alloc
from node.load.keys import derive_account
from node.sim.faults import (
    DEFAULT_PROFILE,
    PEACE,
    WHOLE_COMMITTEES,
    FaultProfile,
    draw_profile,
    verify_profile,
)
from node.sim.mock_crypto import build_mock_validator
from shardyard import _native
from shardyard.consensus.registry import DEFAULT_ENGINE
from shardyard.genesis import Genesis, ShardGenesis
from shardyard.ids import Address, Hash32, compute_chain_id
from shardyard.preset import Preset, get_preset

__all__ = [
    "ACCOUNTS",
    "ACCOUNT_BALANCE",
    "ACCOUNT_SEED",
    "COUNTER",
    "GENESIS_MS",
    "PEACE",
    "RETURN_MS",
    "STAKES",
    "TOPOLOGIES",
    "FaultProfile",
    "Scenario",
    "build_sim_alloc",
    "build_sim_genesis",
    "compute_quiet_ms",
    "draw_scenario",
]

GENESIS_MS: Final = 1_700_000_000_000
ACCOUNTS: Final = 6
"""Senders per shard."""
ACCOUNT_SEED: Final = 7
ACCOUNT_BALANCE: Final = 10_000 * 10**18
COUNTER: Final = Address(bytes.fromhex("00000000000000000000000000000000000c0de1"))
"""A contract on every shard that takes messages."""
TOPOLOGIES: Final = ((1, 1), (2, 2), (1, 4), (4, 1), (2, 4), (4, 2), *((4, 4),) * 6)
"""Processes per shard and on the beacon; only where both are four may anybody be Byzantine."""
STAKES: Final = (32, 32, 32, 32)
PRESET: Final = "devnet"
SETTLE_MS: Final = 45_000
"""The quiet at the end of a run; a short one has it for half of its time, unless nodes go on misbehaving in it."""
RETURN_MS: Final = 5_000
"""After the faults: the time within which finality must be back (I7)."""
HOPS: Final = 5
"""Blocks that must become final one after the other for a message and its answer: of the source, of the beacon, of the
destination, of the beacon, of the source."""


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


def compute_quiet_ms(preset: Preset) -> int:
    """Return the milliseconds of quiet in which everything comes right although a third of every committee goes on misbehaving.

    Leaders take turns, so before every block on the way one slot may be given up: by both of its timers, which have grown
    by the slots since the last final one (L6). The block itself takes two slots of honest leaders.
    """
    growth_ms = 2 * preset.delta_ms
    given_up_ms = preset.block_time_ms + 3 * preset.delta_ms + 2 * growth_ms
    final_ms = 2 * (preset.block_time_ms + preset.delta_ms)
    return RETURN_MS + HOPS * (given_up_ms + final_ms)


def draw_scenario(
    seed: int, duration_ms: int, *, faults: bool = True, profile: str = DEFAULT_PROFILE
) -> Scenario:
    """Return the scenario of ``seed`` with the faults of the profile of that name.

    Half of a short run is quiet; it lasts longer than ``duration_ms`` when that is too little for those who are still
    Byzantine, or silent for what they lost (``compute_quiet_ms``). Raises ``ConfigError`` for another name.
    """
    verify_profile(profile)
    chance = random.Random(f"scenario {seed}")
    shards = chance.choice([2, 2, 2, 3])
    if profile in WHOLE_COMMITTEES:
        replicas = beacon_replicas = 4
    else:
        replicas, beacon_replicas = chance.choice(TOPOLOGIES)
    settle_ms = min(SETTLE_MS, duration_ms // 2)
    drawn = PEACE
    if faults:
        draw = random.Random(f"faults {profile} {seed}")
        drawn = draw_profile(profile, draw, duration_ms - settle_ms, replicas == beacon_replicas == 4)
    if drawn.is_lasting and (missing_ms := compute_quiet_ms(get_preset(PRESET)) - settle_ms) > 0:
        duration_ms += missing_ms
        settle_ms += missing_ms
    return Scenario(
        shards=shards,
        replicas=replicas,
        beacon_replicas=beacon_replicas,
        duration_ms=duration_ms,
        settle_ms=settle_ms,
        tps=chance.choice([0.5, 2.0, 6.0]),
        profile=drawn,
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
    preset = msgspec.structs.replace(get_preset(PRESET), validators_per_shard=validators)
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
