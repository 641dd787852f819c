"""Receipts: the cross-shard messages, their escrow, their bundles and what a header commits to (X1-X5).

A receipt here is the field's older sense, a message from one shard to another; the result of executing a transaction is
an *outcome*. Shards emit receipts and consume them, the beacon checks and orders them: so the format lives in the kernel.
"""

from collections.abc import Iterable, Sequence
from enum import IntEnum

import msgspec

from shardyard.codec import decode, encode
from shardyard.errors import InvalidCrosslinkError, SupplyError
from shardyard.ids import Address, Hash32, ShardId
from shardyard.merkle import compute_root

RECEIPT_VERSION = 1
MAX_RECEIPT_BYTES = 32 * 1024
U256_MAX = (1 << 256) - 1
TRANSFER_GAS = 21_000
"""What a TRANSFER takes of a block's INBOX_GAS: crediting an account costs what an ordinary transfer does."""

MAX_DELIVERIES = 4096
"""Receipts a block takes from its inbox at most: half an outbox holds a reply to each, the other half what they send on
(X5, X10).
"""


class ReceiptKind(IntEnum):
    """X1: what a receipt asks of its destination. DEPOSIT to WITHDRAWAL concern endpoint K, the beacon."""

    CALL = 1
    TRANSFER = 2
    RESULT = 3
    BOUNCE = 4
    DEPOSIT = 5
    EXIT = 6
    GOVERN = 7
    WITHDRAWAL = 8


class Origin(msgspec.Struct, frozen=True, array_like=True):
    """Where a chain of receipts began: the user's transaction, its sender, and how many hops ago."""

    tx_hash: Hash32
    initiator: Address
    depth: int


class Receipt(msgspec.Struct, frozen=True, array_like=True):
    """X1: one cross-shard message. ``seq`` is dense per (src, dst) from 1; ``value`` is 32 bytes big endian, in wei."""

    version: int
    kind: ReceiptKind
    src: ShardId
    dst: ShardId
    seq: int
    id: Hash32
    origin: Origin
    parent_id: Hash32
    sender: Address
    target: Address
    value: bytes
    gas_limit: int
    gas_price: int
    reply_gas: int
    refund_to: Address
    deadline: int
    """Beacon height after which the destination bounces it; 0 means never."""
    payload: bytes


class LinkSummary(msgspec.Struct, frozen=True, array_like=True):
    """What a header (one block) or a crosslink (its whole range) says of the receipts to one destination."""

    dst: ShardId
    first_seq: int
    last_seq: int
    link_root: Hash32
    count: int
    escrow: bytes
    bytes: int


def decode_receipt(data: bytes) -> Receipt:
    """Return the receipt that ``data`` encodes; raises ``DecodeError``."""
    return decode(data, Receipt, max_bytes=MAX_RECEIPT_BYTES)


def compute_escrow(receipt: Receipt) -> int:
    """Return the wei that are in flight with ``receipt`` (X2).

    Raises ``SupplyError`` when the sum leaves 256 bits or is negative: such a receipt could create value.
    """
    escrow = (
        int.from_bytes(receipt.value, "big") + (receipt.gas_limit + receipt.reply_gas) * receipt.gas_price
    )
    if not 0 <= escrow <= U256_MAX:
        raise SupplyError(f"escrow of receipt {receipt.id.hex()}: got {escrow:#x}, expected at most 256 bits")
    return escrow


def compute_delivery_gas(receipt: Receipt) -> int:
    """Return what ``receipt`` takes of INBOX_GAS at its destination: its gas limit, not what it will use (X5)."""
    return TRANSFER_GAS if receipt.kind is ReceiptKind.TRANSFER else receipt.gas_limit


def count_deliveries(gas: Iterable[int], inbox_gas: int) -> int:
    """Return how many receipts a block takes from the head of its inbox, ``gas`` being their delivery gas in order (X5).

    It takes the next one iff it fits in what is left, and then must; it stops at the first that does not fit, and at
    ``MAX_DELIVERIES``: receipts may ask for no gas at all, and every one may need room for a reply.
    """
    used = taken = 0
    for amount in gas:
        used += amount
        if used > inbox_gas or taken == MAX_DELIVERIES:
            break
        taken += 1
    return taken


def compute_link_summaries(outbox: Iterable[bytes]) -> tuple[LinkSummary, ...]:
    """Return one summary per destination, in order of destination, of encoded receipts in commit order (X3).

    Raises ``InvalidCrosslinkError`` when the sequences of a link are not dense.
    """
    return summarise_links((data, decode_receipt(data)) for data in outbox)


def summarise_links(entries: Iterable[tuple[bytes, Receipt]]) -> tuple[LinkSummary, ...]:
    """Return what ``compute_link_summaries`` does, of receipts already decoded, each beside its encoding."""
    links: dict[int, list[tuple[bytes, Receipt]]] = {}
    for data, receipt in entries:
        links.setdefault(receipt.dst, []).append((data, receipt))
    return tuple(_summarise_link(ShardId(dst), links[dst]) for dst in sorted(links))


def _summarise_link(dst: ShardId, entries: Sequence[tuple[bytes, Receipt]]) -> LinkSummary:
    first = entries[0][1].seq
    for offset, (_, receipt) in enumerate(entries):
        if receipt.seq != first + offset:
            raise InvalidCrosslinkError(f"link to {dst}: got seq {receipt.seq}, expected {first + offset}")
    escrow = sum(compute_escrow(receipt) for _, receipt in entries)
    if escrow > U256_MAX:
        raise SupplyError(f"escrow of link to {dst}: more than 256 bits")
    return LinkSummary(
        dst=dst,
        first_seq=first,
        last_seq=entries[-1][1].seq,
        link_root=compute_root([data for data, _ in entries]),
        count=len(entries),
        escrow=escrow.to_bytes(32, "big"),
        bytes=sum(len(data) for data, _ in entries),
    )


def compute_outbox_root(links: Sequence[LinkSummary]) -> Hash32:
    """Return what a shard header commits to: the tree over its link summaries in order of destination (X3)."""
    return compute_root([encode(link) for link in links])
