"""Notices of a shard: what people may watch of its blocks."""

from shardyard.blocks import Header
from shardyard.effects import Notice


def describe_block(kind: str, header: Header) -> Notice:
    """Return the notice that something of ``kind`` happened to the block of ``header``."""
    content = header.shard_content
    data: dict[str, int | str | bytes] = {
        "height": header.height,
        "hash": header.hash,
        "slot": header.slot,
        "timestamp_ms": header.timestamp_ms,
        "transactions": content.transaction_count,
        "deliveries": content.delivery_count,
        "gas_used": content.gas_used,
        "base_fee": content.base_fee,
    }
    return Notice(kind, header.shard, data)
