"""Presets: the protocol's numbers in named bundles, each with its unit (docs/protocol.md, Constants).

A preset is part of genesis: two processes with different numbers would disagree about validity, so its hash is part of
the network's identity. What only one process decides (ports, threads, paths) is configuration and lives in ``node/``.
"""

from typing import Final

import msgspec

from shardyard.errors import ConfigError

GAS_PER_MS: Final = 600_000
"""Block gas per millisecond of block time: 600 M per second."""
BENCH_GAS_PER_MS: Final = 1_000_000
"""1,000 M per second: what is measured shall be the machine, not the limit."""


class Preset(msgspec.Struct, frozen=True, array_like=True):
    """One bundle of protocol numbers."""

    name: str
    block_time_ms: int
    """Time between blocks, and length of a beacon slot."""
    delta_ms: int
    """Assumed bound on message delay: leaders get 2Δ, slots 3Δ."""
    epoch_slots: int
    validators_per_shard: int
    max_step_ms: int
    """P4: a block's timestamp is at most this after its parent's."""
    max_crosslink_blocks: int
    """X4: blocks one crosslink may cover."""
    max_payload_bytes: int
    max_transaction_bytes: int
    max_body_bytes: int
    max_access_list_bytes: int
    """B5: a longer access list does not travel with its block; above what 600 M gas can fill."""
    max_bundle_bytes: int
    """X10: bytes of receipts one crosslink may carry."""
    max_receipt_gas: int
    initial_base_fee: int
    """Wei per gas of the first block."""
    min_base_fee: int
    history_blocks: int
    """Heights at which balances and calls answer."""
    gas_per_ms: int
    """Block gas per millisecond of block time."""

    @property
    def block_gas(self) -> int:
        """Gas limit of a block."""
        return self.block_time_ms * self.gas_per_ms

    @property
    def inbox_gas(self) -> int:
        """X5: gas a block spends on deliveries at most, half the block."""
        return self.block_gas // 2


def _preset(
    name: str, block_time_ms: int, delta_ms: int, epoch_slots: int, gas_per_ms: int = GAS_PER_MS
) -> Preset:
    return Preset(
        name=name,
        block_time_ms=block_time_ms,
        delta_ms=delta_ms,
        epoch_slots=epoch_slots,
        validators_per_shard=4,
        max_step_ms=24 * 3600 * 1000,
        max_crosslink_blocks=64,
        max_payload_bytes=16 * 1024,
        max_transaction_bytes=128 * 1024,
        max_body_bytes=8 * 1024 * 1024,
        max_access_list_bytes=12 * 1024 * 1024,
        max_bundle_bytes=8 * 1024 * 1024,
        max_receipt_gas=16_000_000,
        initial_base_fee=1_000_000_000,
        min_base_fee=7,
        history_blocks=256,
        gas_per_ms=gas_per_ms,
    )


PRESETS: Final = {
    preset.name: preset
    for preset in (
        _preset("devnet", 1000, 500, 256),
        _preset("test", 100, 50, 32),
        _preset("bench", 250, 250, 256, BENCH_GAS_PER_MS),
    )
}


def get_preset(name: str) -> Preset:
    """Return the preset ``name``; raises ``ConfigError`` naming the known ones."""
    try:
        return PRESETS[name]
    except KeyError:
        raise ConfigError(f"preset: got {name!r}, expected one of {', '.join(sorted(PRESETS))}") from None
