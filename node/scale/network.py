"""Which network is run: shards, their validators in processes, and a beacon committee that is a seeded sample of them."""

import random
from functools import cached_property
from typing import Final

import msgspec

from node.sim.links import TABLES
from node.sim.mock_crypto import build_mock_validator
from node.sim.scenario import GENESIS_MS
from shardyard.errors import ConfigError
from shardyard.genesis import Genesis, ShardGenesis
from shardyard.hashing import TAG_GENESIS, hash_tagged
from shardyard.ids import BEACON, Address, ShardId
from shardyard.preset import get_preset
from shardyard.validators import ValidatorSet

MAX_SHARDS: Final = 256
MAX_VALIDATORS: Final = 16
MAX_COMMITTEE: Final = 1024
MAX_SECONDS: Final = 600
LINK_BYTES: Final = 125_000_000
"""Per second and direction of every node's link: 1 Gbit/s."""
SUPPLY: Final = (10**12 * 10**18).to_bytes(32, "big")
STAKE: Final = 32


class ScaleError(ConfigError):
    """A network that cannot be run; the text says what can."""


class Plan(msgspec.Struct, frozen=True):
    """One point of a plot: a network, its load and for how long it runs."""

    shards: int = 4
    validators: int = 16
    """Keys per shard."""
    shard_nodes: int = 4
    """Processes per shard, which share its keys evenly and send the votes of all of theirs together."""
    beacon_committee: int = 128
    """Validators of the beacon, drawn from all; fewer when there are not so many."""
    beacon_nodes: int = 4
    """Processes among which the beacon's keys are shared."""
    cores: int = 2
    """Processors per process: one for its loop, the others for execution and signing; with one, both share it."""
    cross: float = 0.2
    """Share of the transactions that leave their shard, for another one drawn evenly."""
    tps_per_shard: float = 100.0
    """Offered to every shard; 0 offers what fills every block."""
    block_time_ms: int = 1000
    seconds: float = 20.0
    """Of virtual time."""
    regions: str = "lan"
    """Of ``node.sim.links``; empty for no distance at all."""
    seed: int = 0

    @property
    def committee(self) -> int:
        """Validators that the beacon has."""
        return min(self.beacon_committee, self.shards * self.validators)

    @property
    def warmup_s(self) -> float:
        """Virtual seconds that are not measured: six block times, or as many as fit into a third of the run.

        The first blocks have nothing behind them yet.
        """
        blocks = min(round(self.seconds * 1000) // (3 * self.block_time_ms), 6)
        return blocks * self.block_time_ms / 1000

    def verify(self) -> None:
        """Raise ``ScaleError`` for a network that cannot be run."""
        limits: tuple[tuple[str, float, float, float], ...] = (
            ("--shards", self.shards, 1, MAX_SHARDS),
            ("--validators", self.validators, 1, MAX_VALIDATORS),
            ("--shard-nodes", self.shard_nodes, 1, self.validators),
            ("--beacon-committee", self.beacon_committee, 1, MAX_COMMITTEE),
            ("--beacon-nodes", self.beacon_nodes, 1, self.committee),
            ("--cores-per-node", self.cores, 1, 64),
            ("--cross", self.cross, 0, 1),
            ("--tps-per-shard", self.tps_per_shard, 0, 100_000),
            ("--block-time", self.block_time_ms, 100, 60_000),
        )
        for name, value, low, high in limits:
            if not low <= value <= high:
                raise ScaleError(f"{name}: got {value:g}, expected {low:g} to {high:g}")
        least = 8 * self.block_time_ms / 1000
        if not least <= self.seconds <= MAX_SECONDS:
            raise ScaleError(
                f"--seconds: got {self.seconds:g}, expected {least:g} (8 blocks) to {MAX_SECONDS}"
            )
        if self.regions and self.regions not in TABLES:
            raise ScaleError(f"--regions: got {self.regions!r}, expected none, {', '.join(TABLES)}")


class SampledGenesis(Genesis, frozen=True, array_like=True, dict=True):
    """A genesis whose beacon is served by some of the validators: ``seats`` are theirs, in order."""

    seats: tuple[int, ...] = ()

    @cached_property
    def committees(self) -> dict[ShardId, ValidatorSet]:
        """Committee of every chain."""
        size = self.preset.validators_per_shard
        committees = {
            ShardId(shard): ValidatorSet(self.validators[shard * size : (shard + 1) * size])
            for shard in range(self.shard_count)
        }
        committees[BEACON] = ValidatorSet(tuple(self.validators[seat] for seat in self.seats))
        return committees


def build_genesis(plan: Plan) -> SampledGenesis:
    """Return the genesis of ``plan``; its shards hold no accounts, for their transactions are counted."""
    preset = msgspec.structs.replace(
        get_preset("devnet"),
        name="scale",
        block_time_ms=plan.block_time_ms,
        delta_ms=max(50, plan.block_time_ms // 2),
        validators_per_shard=plan.validators,
    )
    total = plan.shards * plan.validators
    chance = random.Random(f"beacon committee {plan.seed}")
    return SampledGenesis(
        version=1,
        name="scale",
        timestamp_ms=GENESIS_MS,
        preset=preset,
        validators=tuple(
            build_mock_validator(f"validator-{index}", STAKE, Address(index.to_bytes(20, "big")))
            for index in range(total)
        ),
        shards=tuple(
            ShardGenesis(hash_tagged(TAG_GENESIS, shard.to_bytes(2, "big")), SUPPLY)
            for shard in range(plan.shards)
        ),
        seats=tuple(sorted(chance.sample(range(total), plan.committee))),
    )
