"""The life of a cross-shard message as this shard sees it: emitted here, delivered here, answered.

A message touches two shards and each keeps its own half; a reply (RESULT or BOUNCE) is a message too, and is noted at the
message that it answers. Stages are derived, never stored, so a record only ever grows.
"""

import msgspec

from node.index.records import IndexedBlock
from shardyard.ids import Hash32, Height
from shardyard.receipts import Receipt, ReceiptKind, decode_receipt

REPLIES = frozenset({ReceiptKind.RESULT, ReceiptKind.BOUNCE})


class Delivery(msgspec.Struct, frozen=True, array_like=True):
    """Where a message was executed: block, position in it, and how it went."""

    height: Height
    position: int
    status: int
    gas_used: int


class Reply(msgspec.Struct, frozen=True, array_like=True):
    """The RESULT or BOUNCE of a message: emitted here (at the destination) or delivered here (at the origin)."""

    id: Hash32
    kind: ReceiptKind
    height: Height


class MessageRecord(msgspec.Struct, frozen=True, array_like=True):
    """What this shard knows of one message. ``receipt`` is empty when only its reply was seen so far."""

    receipt: bytes
    emitted: Height | None
    delivery: Delivery | None
    reply: Reply | None


EMPTY_RECORD = MessageRecord(receipt=b"", emitted=None, delivery=None, reply=None)

_decode_record = msgspec.msgpack.Decoder(MessageRecord).decode


def decode_message_record(data: bytes) -> MessageRecord:
    """Return a stored record."""
    return _decode_record(data)


class MessageUpdates:
    """Changes that one block makes to message records; ``get_stored`` reads what the index has so far."""

    def __init__(self, block: IndexedBlock) -> None:
        self.emitted = [(data, decode_receipt(data)) for data in block.outbox_data]
        # Outcomes are decoded only where there are deliveries: most large blocks have none.
        outcomes = block.outcomes if block.deliveries_data else ()
        self.delivered = list(zip(block.deliveries_data, block.deliveries, outcomes, strict=False))
        self._height = block.height

    @property
    def touched(self) -> set[Hash32]:
        """Ids whose records change."""
        ids: set[Hash32] = set()
        for _, receipt in self.emitted:
            ids |= {receipt.id} | ({receipt.parent_id} if receipt.kind in REPLIES else set())
        for _, receipt, _ in self.delivered:
            ids |= {receipt.id} | ({receipt.parent_id} if receipt.kind in REPLIES else set())
        return ids

    def apply(self, records: dict[Hash32, MessageRecord]) -> None:
        """Bring ``records`` (one for every id in ``touched``) up to this block."""
        for position, (data, receipt, outcome) in enumerate(self.delivered):
            delivery = Delivery(self._height, position, outcome.status, outcome.gas_used)
            record = records[receipt.id]
            records[receipt.id] = msgspec.structs.replace(record, receipt=data, delivery=delivery)
            self._apply_reply(records, receipt)
        for data, receipt in self.emitted:
            record = records[receipt.id]
            records[receipt.id] = msgspec.structs.replace(record, receipt=data, emitted=self._height)
            self._apply_reply(records, receipt)

    def _apply_reply(self, records: dict[Hash32, MessageRecord], receipt: Receipt) -> None:
        if receipt.kind in REPLIES:
            reply = Reply(receipt.id, receipt.kind, self._height)
            parent = records[receipt.parent_id]
            records[receipt.parent_id] = msgspec.structs.replace(parent, reply=reply)

    def undo(self, record: MessageRecord) -> MessageRecord:
        """Return ``record`` without what this block said of it."""
        return MessageRecord(
            receipt=record.receipt,
            emitted=None if record.emitted == self._height else record.emitted,
            delivery=None if record.delivery and record.delivery.height == self._height else record.delivery,
            reply=None if record.reply and record.reply.height == self._height else record.reply,
        )
