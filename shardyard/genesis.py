"""Genesis: who validates, how many shards there are, which numbers hold, and the first block of every chain.

The hash of the genesis is the network's identity; it is signed by every vote (D1), so nothing of one network counts in
another. Validator ``v`` serves shard ``v // validators_per_shard``; all validators serve the beacon.
"""

from functools import cached_property

import msgspec

from shardyard.blocks import BeaconContent, BeaconRef, Block, ShardContent, build_genesis_block
from shardyard.consensus.votes import Domain
from shardyard.hashing import TAG_BEACON_STATE, TAG_GENESIS, TAG_RANDAO, hash_struct, hash_tagged
from shardyard.ids import BEACON, ZERO_ADDRESS, ZERO_HASH, Epoch, Hash32, Height, ShardId
from shardyard.preset import Preset
from shardyard.validators import Validator, ValidatorSet


class ShardGenesis(msgspec.Struct, frozen=True, array_like=True):
    """What a shard starts from: commitment of its first state and the wei in it (32 bytes big endian)."""

    state_root: Hash32
    supply: bytes


class Genesis(msgspec.Struct, frozen=True, array_like=True, dict=True):
    """The beginning of a network."""

    version: int
    name: str
    timestamp_ms: int
    preset: Preset
    validators: tuple[Validator, ...]
    shards: tuple[ShardGenesis, ...]

    @cached_property
    def network(self) -> Hash32:
        """Hash of the genesis: the identity of the network."""
        return hash_struct(TAG_GENESIS, self)

    @property
    def shard_count(self) -> int:
        """Number of shards, the beacon not counted."""
        return len(self.shards)

    @cached_property
    def committees(self) -> dict[ShardId, ValidatorSet]:
        """Committee of every chain, the beacon's included."""
        size = self.preset.validators_per_shard
        committees = {
            ShardId(shard): ValidatorSet(self.validators[shard * size : (shard + 1) * size])
            for shard in range(self.shard_count)
        }
        committees[BEACON] = ValidatorSet(self.validators)
        return committees

    def get_domain(self, shard: ShardId) -> Domain:
        """Return where votes of ``shard`` count."""
        return Domain(network=self.network, shard=shard, valset_root=self.committees[shard].root)

    @cached_property
    def beacon_block(self) -> Block:
        """The beacon's block 0."""
        content = BeaconContent(
            crosslinks_root=ZERO_HASH,
            crosslink_count=0,
            state_root=hash_struct(TAG_BEACON_STATE, self.shards),
            registry_root=self.committees[BEACON].root,
        )
        return build_genesis_block(self.network, BEACON, self.timestamp_ms, content)

    def build_shard_block(self, shard: ShardId) -> Block:
        """Return block 0 of ``shard``; it refers to the beacon's block 0."""
        content = ShardContent(
            beacon_ref=BeaconRef(height=Height(0), hash=self.beacon_block.hash, epoch=Epoch(0)),
            state_root=self.shards[shard].state_root,
            transactions_root=ZERO_HASH,
            transaction_count=0,
            delivery_count=0,
            outcomes_root=ZERO_HASH,
            outbox_root=ZERO_HASH,
            logs_bloom=bytes(256),
            gas_limit=self.preset.block_gas,
            gas_used=0,
            base_fee=self.preset.initial_base_fee,
            beneficiary=ZERO_ADDRESS,
            prevrandao=hash_tagged(TAG_RANDAO, self.network),
            inbox_position=0,
            burnt=bytes(32),
            access_list_hash=ZERO_HASH,
            snapshot_root=ZERO_HASH,
        )
        return build_genesis_block(self.network, shard, self.timestamp_ms, content)

    def get_genesis_block(self, shard: ShardId) -> Block:
        """Return block 0 of ``shard`` or of the beacon."""
        return self.beacon_block if shard == BEACON else self.build_shard_block(shard)
