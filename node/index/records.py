"""What the index keeps of a final block, and the outcomes of its transactions.

Positions count deliveries first, then user transactions (X13), as the outcomes and the transactions root do. User
transactions stay one blob; an object per transaction is made only for those that somebody asks for.
"""

from collections.abc import Sequence
from functools import cached_property

import msgspec

from shardyard import _native
from shardyard.blocks import Block, Header, ShardBody, ShardContent
from shardyard.codec import encode
from shardyard.ids import Address, Hash32, Height
from shardyard.receipts import Receipt, decode_receipt

DELIVERY_TYPE = 0x7E
"""``Outcome.type`` of a delivery; clients see a legacy transaction."""


class Log(msgspec.Struct, frozen=True, array_like=True):
    """One EVM log."""

    address: Address
    topics: tuple[Hash32, ...]
    data: bytes


class Outcome(msgspec.Struct, frozen=True, array_like=True):
    """The result of executing one transaction or delivery; gas in units, prices in wei per gas."""

    type: int
    status: int
    gas_used: int
    cumulative_gas_used: int
    effective_gas_price: int
    contract_address: bytes
    """20 bytes when a contract was created, else empty."""
    logs: tuple[Log, ...]
    tx_hash: Hash32
    sender: Address
    to: bytes
    """20 bytes, or empty for a creation."""


_decode_outcomes = msgspec.msgpack.Decoder(tuple[Outcome, ...]).decode
_decode_body = msgspec.msgpack.Decoder(ShardBody).decode


def decode_outcomes(outcomes: bytes) -> tuple[Outcome, ...]:
    """Return the outcomes of a block, deliveries first."""
    return _decode_outcomes(outcomes)


def decode_shard_body(body: bytes) -> ShardBody:
    """Return the transactions of a block that this node has executed; the empty body holds none."""
    return _decode_body(body) if body else ShardBody(raw=b"", ends=())


class IndexedBlock(msgspec.Struct, frozen=True, array_like=True, dict=True):
    """A final block as readers need it: header, body and what executing it gave."""

    header: Header
    size: int
    """Bytes of the encoded block."""
    body: bytes
    outcomes_data: bytes
    deliveries_data: tuple[bytes, ...]
    """Encoded receipts that the block consumed, in order (X5)."""
    outbox_data: tuple[bytes, ...]
    """Encoded receipts that it emitted, in commit order."""

    @property
    def height(self) -> Height:
        """Number of the block."""
        return self.header.height

    @property
    def hash(self) -> Hash32:
        """Hash of the block."""
        return self.header.hash

    @property
    def content(self) -> ShardContent:
        """What the header says of a shard's block."""
        return self.header.shard_content

    @property
    def weight(self) -> int:
        """Bytes of the block, of what it consumed, and of its results."""
        return self.size + len(self.outcomes_data) + sum(map(len, self.deliveries_data))

    @property
    def timestamp(self) -> int:
        """Seconds, as the EVM sees it."""
        return self.header.timestamp_ms // 1000

    @cached_property
    def outcomes(self) -> tuple[Outcome, ...]:
        """Outcomes by position."""
        return decode_outcomes(self.outcomes_data) if self.outcomes_data else ()

    @cached_property
    def transactions(self) -> ShardBody:
        """User transactions."""
        return decode_shard_body(self.body)

    @cached_property
    def deliveries(self) -> tuple[Receipt, ...]:
        """Receipts consumed."""
        return tuple(decode_receipt(data) for data in self.deliveries_data)

    @cached_property
    def first_log_index(self) -> tuple[int, ...]:
        """For every position, how many logs the block has before it."""
        starts, count = [], 0
        for outcome in self.outcomes:
            starts.append(count)
            count += len(outcome.logs)
        return tuple(starts)

    @property
    def transaction_count(self) -> int:
        """Deliveries and user transactions together."""
        return len(self.deliveries_data) + len(self.transactions.ends)

    @cached_property
    def joined_hashes(self) -> bytes:
        """Hashes by position, 32 bytes each; nothing else of the outcomes is decoded for them."""
        return _native.read_outcome_hashes(self.outcomes_data) if self.outcomes_data else b""

    @cached_property
    def transaction_hashes(self) -> list[Hash32]:
        """Hashes by position."""
        joined = self.joined_hashes
        return [Hash32(joined[at : at + 32]) for at in range(0, len(joined), 32)]

    def get_raw_transaction(self, position: int) -> bytes | None:
        """Return the signed bytes of the user transaction at ``position``; None for a delivery."""
        index = position - len(self.deliveries_data)
        if index < 0:
            return None
        body = self.transactions
        return body.raw[body.ends[index - 1] if index else 0 : body.ends[index]]


def build_indexed_block(
    block: Block, outcomes: bytes, deliveries: Sequence[bytes], outbox: Sequence[bytes]
) -> IndexedBlock:
    """Return what the index keeps of ``block``."""
    return IndexedBlock(
        header=block.header,
        size=len(encode(block.header)) + len(block.body),
        body=block.body,
        outcomes_data=outcomes,
        deliveries_data=tuple(deliveries),
        outbox_data=tuple(outbox),
    )
