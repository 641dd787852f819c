"""What a shard may emit: the rules a receipt and an outbox obey before any other chain relies on them (X2, X4, X5, X10).

Shard validators check the outbox of every block before they vote, the beacon checks the same bytes again in a crosslink.
Both call this module: were the beacon stricter than the shard, a block could become final that no crosslink can carry,
and the shard would be cut off for ever.
"""

from collections.abc import Sequence

from shardyard.errors import InvalidCrosslinkError, SupplyError
from shardyard.ids import ZERO_HASH, ShardId
from shardyard.preset import Preset
from shardyard.receipts import (
    RECEIPT_VERSION,
    LinkSummary,
    Receipt,
    ReceiptKind,
    compute_escrow,
    decode_receipt,
    summarise_links,
)

_U64_MAX = (1 << 64) - 1
_FIRST_KINDS = (ReceiptKind.CALL, ReceiptKind.TRANSFER)
_REPLY_KINDS = (ReceiptKind.RESULT, ReceiptKind.BOUNCE)


def verify_receipt(receipt: Receipt, *, shard: ShardId, shard_count: int, preset: Preset) -> None:
    """Raise ``InvalidCrosslinkError`` unless ``shard`` may emit ``receipt``."""
    name = f"receipt {receipt.seq} to {receipt.dst}"
    if receipt.version != RECEIPT_VERSION:
        raise InvalidCrosslinkError(f"{name}: got version {receipt.version}, expected {RECEIPT_VERSION}")
    if receipt.src != shard:
        raise InvalidCrosslinkError(f"{name}: got source {receipt.src}, expected {shard}")
    if not 0 <= receipt.dst < shard_count or receipt.dst == shard:
        raise InvalidCrosslinkError(f"{name}: expected another shard below {shard_count}")
    _verify_shape(receipt, name, preset)
    # X5: no receipt may ask for more gas than the head of every inbox can grant.
    if receipt.gas_limit > preset.max_receipt_gas or receipt.reply_gas > preset.max_receipt_gas:
        raise InvalidCrosslinkError(
            f"{name}: got gas {receipt.gas_limit} and reply gas {receipt.reply_gas}, "
            f"expected at most {preset.max_receipt_gas}"
        )
    _verify_kind(receipt, name)
    try:
        compute_escrow(receipt)
    except SupplyError as error:
        raise InvalidCrosslinkError(str(error)) from error


def _verify_shape(receipt: Receipt, name: str, preset: Preset) -> None:
    numbers = (
        receipt.seq,
        receipt.origin.depth,
        receipt.gas_limit,
        receipt.gas_price,
        receipt.reply_gas,
        receipt.deadline,
    )
    # The codec carries negative integers; a negative gas limit would make an escrow that creates value.
    if any(not 0 <= number <= _U64_MAX for number in numbers) or receipt.seq == 0:
        raise InvalidCrosslinkError(f"{name}: got a number outside 64 bits or seq 0")
    hashes = (receipt.id, receipt.origin.tx_hash, receipt.parent_id, receipt.value)
    accounts = (receipt.origin.initiator, receipt.sender, receipt.target, receipt.refund_to)
    if any(len(field) != 32 for field in hashes) or any(len(field) != 20 for field in accounts):
        raise InvalidCrosslinkError(f"{name}: expected hashes and values of 32 bytes and addresses of 20")
    if len(receipt.payload) > preset.max_payload_bytes:
        raise InvalidCrosslinkError(
            f"{name}: got a payload of {len(receipt.payload)} bytes, expected at most {preset.max_payload_bytes}"
        )


def _verify_kind(receipt: Receipt, name: str) -> None:
    gas = (receipt.gas_limit, receipt.gas_price, receipt.reply_gas)
    if receipt.kind is ReceiptKind.TRANSFER and (any(gas) or receipt.payload):
        raise InvalidCrosslinkError(f"{name}: got a TRANSFER with gas or a payload")
    if receipt.kind in _REPLY_KINDS:
        # X8: a reply has no reply, no deadline, and answers something.
        if receipt.reply_gas or receipt.deadline or receipt.parent_id == ZERO_HASH:
            raise InvalidCrosslinkError(f"{name}: got a reply with reply gas, a deadline or no parent")
    elif receipt.kind not in _FIRST_KINDS:
        raise InvalidCrosslinkError(f"{name}: got kind {receipt.kind.name}, which no shard emits")


def verify_outbox(
    outbox: Sequence[bytes], *, shard: ShardId, shard_count: int, preset: Preset
) -> tuple[list[tuple[bytes, Receipt]], tuple[LinkSummary, ...]]:
    """Return the decoded receipts of one block beside their encodings, and its link summaries.

    Raises ``RemoteProtocolError`` when one may not be emitted or all together are more than a crosslink carries.
    """
    size = sum(len(data) for data in outbox)
    if size > preset.max_bundle_bytes:  # X10: a larger block could never be crosslinked.
        raise InvalidCrosslinkError(f"outbox: got {size} bytes, expected at most {preset.max_bundle_bytes}")
    entries = [(data, decode_receipt(data)) for data in outbox]
    for _, receipt in entries:
        verify_receipt(receipt, shard=shard, shard_count=shard_count, preset=preset)
    try:
        return entries, summarise_links(entries)
    except SupplyError as error:
        raise InvalidCrosslinkError(str(error)) from error
