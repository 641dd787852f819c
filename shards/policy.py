"""Execution policy: the environment of a shard block, what its header says, what execution must confirm.

Everything here is a function of the parent, the slot and ``beacon_ref``, so all voters agree (X0). A header
is checked in two steps. Before execution: what follows from the parent (P4 timestamp, base fee, leader,
monotone ``beacon_ref``), the shape of the body, and the deliveries that X5 prescribes. After execution: the
whole content is computed again from the results and must be equal, field by field; so a rule for a new
field is written once, in ``compute_content``.

Base fee: EIP-1559 with elasticity 2 and denominator 8, never below the preset's floor, never above 64 bits.
Deliveries count as gas used: a flooded inbox raises the price of everything.
"""

from typing import Final, NamedTuple

import msgspec

from shardyard.blocks import BeaconRef, Block, BlockKind, Header, ShardBody, ShardContent, compute_body_hash
from shardyard.codec import decode
from shardyard.effects import EnvSpec
from shardyard.emission import verify_outbox
from shardyard.errors import InvalidBlockError, RemoteProtocolError
from shardyard.events import ExecutionSummary
from shardyard.genesis import Genesis
from shardyard.hashing import TAG_RANDAO, hash_tagged
from shardyard.ids import ZERO_HASH, Address, Hash32, ShardId, compute_epoch
from shardyard.preset import Preset
from shardyard.receipts import compute_outbox_root

HEADER_VERSION: Final = 1
ELASTICITY: Final = 2
BASE_FEE_DENOMINATOR: Final = 8
MAX_BASE_FEE: Final = (1 << 64) - 1

LinkBaseFees = tuple[tuple[int, int], ...]
"""Base fee by destination, in order of destination: the floor for messages sent there (X2)."""


class BlockContext(NamedTuple):
    """What a shard block is built on, beside its parent."""

    slot: int
    timestamp_ms: int
    proposer: int
    beacon_ref: BeaconRef
    link_base_fees: LinkBaseFees


def compute_base_fee(parent: ShardContent, min_base_fee: int) -> int:
    """Return the base fee of a child of ``parent``, in wei per gas (EIP-1559)."""
    target = parent.gas_limit // ELASTICITY
    change = parent.base_fee * abs(parent.gas_used - target) // target // BASE_FEE_DENOMINATOR
    fee = parent.base_fee + max(change, 1) if parent.gas_used > target else parent.base_fee - change
    return min(max(fee, min_base_fee), MAX_BASE_FEE)


def compute_prevrandao(parent: Hash32, slot: int) -> Hash32:
    """Return the randomness of a block: its leader chooses nothing but whether to propose."""
    return hash_tagged(TAG_RANDAO, parent + slot.to_bytes(8, "big"))


def compute_env(genesis: Genesis, parent: Header, context: BlockContext) -> EnvSpec:
    """Return the executor's environment of a child of ``parent``."""
    preset = genesis.preset
    committee = genesis.committees[parent.shard]
    return EnvSpec(
        number=parent.height + 1,
        timestamp=context.timestamp_ms // 1000,
        gas_limit=preset.block_gas,
        base_fee=compute_base_fee(parent.shard_content, preset.min_base_fee),
        beneficiary=Address(committee.validators[context.proposer].reward),
        prevrandao=compute_prevrandao(parent.hash, context.slot),
        parent_hash=parent.hash,
        beacon_root=context.beacon_ref.hash,
        beacon_height=context.beacon_ref.height,
        inbox_gas=preset.inbox_gas,
        link_base_fees=context.link_base_fees,
    )


def compute_content(
    parent: ShardContent, env: EnvSpec, beacon_ref: BeaconRef, summary: ExecutionSummary
) -> ShardContent:
    """Return what a block commits to that ``summary`` is the result of."""
    burnt = int.from_bytes(parent.burnt, "big") + summary.burnt
    return ShardContent(
        beacon_ref=beacon_ref,
        state_root=summary.state_root,
        transactions_root=summary.transactions_root,
        transaction_count=summary.transaction_count,
        delivery_count=summary.delivery_count,
        outcomes_root=summary.outcomes_root,
        outbox_root=summary.outbox_root,
        logs_bloom=summary.logs_bloom,
        gas_limit=env.gas_limit,
        gas_used=summary.gas_used,
        base_fee=env.base_fee,
        beneficiary=env.beneficiary,
        prevrandao=env.prevrandao,
        inbox_position=parent.inbox_position + summary.delivery_count,
        burnt=burnt.to_bytes(32, "big"),
        access_list_hash=summary.access_list_hash,
        snapshot_root=ZERO_HASH,
    )


def compute_selection_bytes(preset: Preset) -> int:
    """Return how many bytes of transactions a builder may take: the body also holds the end of each, 5
    bytes.
    """
    return preset.max_body_bytes * 15 // 16


def verify_header(genesis: Genesis, parent: Header, header: Header) -> None:
    """Raise ``InvalidBlockError`` unless ``header`` may follow ``parent``, as far as needs no execution."""
    _verify_chain(genesis, parent, header)
    if not isinstance(header.content, ShardContent):
        raise InvalidBlockError("content: got a beacon's, expected a shard's")
    before, content = parent.shard_content, header.content
    preset = genesis.preset
    reward = genesis.committees[header.shard].validators[header.proposer].reward
    _require("gas limit", content.gas_limit, preset.block_gas)
    _require("base fee", content.base_fee, compute_base_fee(before, preset.min_base_fee))
    _require("beneficiary", content.beneficiary, reward)
    _require("prevrandao", content.prevrandao, compute_prevrandao(parent.hash, header.slot))
    _require("snapshot root", content.snapshot_root, ZERO_HASH)
    _require("inbox position", content.inbox_position, before.inbox_position + content.delivery_count)
    verify_beacon_ref(before.beacon_ref, content.beacon_ref)


def _verify_chain(genesis: Genesis, parent: Header, header: Header) -> None:
    committee = genesis.committees[parent.shard]
    _require("version", header.version, HEADER_VERSION)
    _require("network", header.network, genesis.network)
    _require("shard", header.shard, parent.shard)
    _require("epoch", header.epoch, compute_epoch(header.slot))
    _require("kind", header.kind, BlockKind.NORMAL)
    _require("height", header.height, parent.height + 1)
    _require("parent", header.parent, parent.hash)
    _require("parent slot", header.parent_slot, parent.slot)
    if header.slot <= parent.slot:
        raise InvalidBlockError(f"slot: got {header.slot}, expected more than the parent's {parent.slot}")
    _require("proposer", header.proposer, committee.get_leader(header.slot))
    step = header.timestamp_ms - parent.timestamp_ms
    if not 0 < step <= genesis.preset.max_step_ms:  # P4
        raise InvalidBlockError(
            f"timestamp: got {step} ms after the parent's, expected 1 to {genesis.preset.max_step_ms}"
        )


def verify_beacon_ref(before: BeaconRef, after: BeaconRef) -> None:
    """X0: the beacon block that a shard block builds on never moves back, and never sideways."""
    if after.height < before.height:
        raise InvalidBlockError(f"beacon_ref: got height {after.height}, expected at least {before.height}")
    if after.height == before.height and after != before:
        raise InvalidBlockError(f"beacon_ref: got another block than the parent's at height {after.height}")


def verify_body(preset: Preset, block: Block) -> ShardBody:
    """Return the body of ``block``; raises ``InvalidBlockError`` unless it is what the header and the caps
    say.
    """
    _require("body hash", compute_body_hash(block.body), block.header.body_hash)
    try:
        body = decode(block.body, ShardBody, max_bytes=preset.max_body_bytes)
    except RemoteProtocolError as error:
        raise InvalidBlockError(f"body: {error}") from error
    _require("transaction count", block.header.shard_content.transaction_count, len(body.ends))
    start = 0
    for end in body.ends:
        if not start < end <= start + preset.max_transaction_bytes:
            raise InvalidBlockError(
                f"body: got a transaction of {end - start} bytes, expected 1 to {preset.max_transaction_bytes}"
            )
        start = end
    _require("body length", len(body.raw), start)
    return body


def verify_results(
    genesis: Genesis, parent: Header, header: Header, env: EnvSpec, summary: ExecutionSummary
) -> None:
    """Raise ``InvalidBlockError`` unless ``header`` commits to exactly what execution gave, and may emit
    it.
    """
    content = header.shard_content
    expected = compute_content(parent.shard_content, env, content.beacon_ref, summary)
    if content != expected:
        for field in msgspec.structs.fields(ShardContent):
            name = field.name
            _require(name.replace("_", " "), getattr(content, name), getattr(expected, name))
    verify_emission(genesis, header.shard, summary)


def verify_emission(genesis: Genesis, shard: ShardId, summary: ExecutionSummary) -> None:
    """Raise ``InvalidBlockError`` unless the beacon will take what a block emits (X4).

    A final block whose receipts no crosslink may carry would cut the shard off for ever: nobody votes for it.
    """
    try:
        _, links = verify_outbox(
            summary.outbox, shard=shard, shard_count=genesis.shard_count, preset=genesis.preset
        )
    except RemoteProtocolError as error:
        raise InvalidBlockError(f"outbox: {error}") from error
    _require("outbox root", summary.outbox_root, compute_outbox_root(links))


def compute_initial_base_fees(genesis: Genesis) -> LinkBaseFees:
    """Return what messages cost everywhere before any crosslink told a price."""
    return tuple((ShardId(shard), genesis.preset.initial_base_fee) for shard in range(genesis.shard_count))


def _require(name: str, got: object, expected: object) -> None:
    if got != expected:
        raise InvalidBlockError(f"{name}: got {_describe(got)}, expected {_describe(expected)}")


def _describe(value: object) -> str:
    if isinstance(value, bytes):
        return value.hex() if len(value) <= 32 else f"{value[:16].hex()}… ({len(value)} bytes)"
    return str(value)
