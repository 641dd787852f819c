"""The index of one shard's final chain, in LMDB below the node's data directory.

A cache: it carries a stamp (format, network, shard) and starts empty when the stamp is another's, or when the file cannot be
read; whatever is missing is read again from the block log. One writer, a block per transaction, so a crash leaves whole
blocks only; when the log lost its tail, ``rollback_to`` takes the index back to it.

Tables: ``blocks`` height -> block · ``brief`` height -> hash, counts, bloom (what scans need) · ``hashes`` block hash ->
height · ``runs`` where transactions stand (``places``) · ``messages`` id -> record · ``origins`` transaction hash -> ids.
"""

import shutil
import struct
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, Self

import lmdb
import msgspec

from node.index.bloom import BLOOM_BYTES
from node.index.messages import (
    EMPTY_RECORD,
    MessageRecord,
    MessageUpdates,
    decode_message_record,
)
from node.index.places import PlaceRuns
from node.index.records import IndexedBlock
from shardyard.codec import encode
from shardyard.ids import Hash32, Height, ShardId

FORMAT_VERSION: Final = 2
MAP_BYTES: Final = 1 << 38
"""Address space, not memory or disk: the file grows as it is filled."""
MAX_CACHED_BLOCKS: Final = 64
MAX_CACHED_BYTES: Final = 32 * 1024 * 1024
MAX_READ_BLOCKS: Final = 4
MAX_READ_BYTES: Final = 8 * 1024 * 1024
"""Of an older block that is held for who asks for its transactions one by one; each would decode it anew."""

_HEIGHT = struct.Struct(">Q")
_COUNTS = struct.Struct(">II")
_decode_block = msgspec.msgpack.Decoder(IndexedBlock).decode


class Brief(msgspec.Struct, frozen=True):
    """What a scan over many blocks needs of each."""

    height: Height
    hash: Hash32
    deliveries: int
    emitted: int
    bloom: bytes


class FoundTransaction(msgspec.Struct, frozen=True):
    """A transaction or delivery: its block, and its place among the block's."""

    block: IndexedBlock
    position: int


class ChainIndex:
    """Reads from any thread; ``append`` and ``rollback_to`` from one at a time."""

    def __init__(self, path: Path, *, network: Hash32, shard: ShardId) -> None:
        self._stamp = encode((FORMAT_VERSION, network, shard))
        self._path = path
        self._cache: OrderedDict[int, IndexedBlock] = OrderedDict()
        self._cached_bytes = 0
        self._read_blocks: tuple[IndexedBlock, ...] = ()
        """Read last; replaced as a whole, for readers are many."""
        self._open()
        if self._read_stamp() != self._stamp:
            self.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; no reads may be under way."""
        self._env.close()

    def _open(self) -> None:
        self._path.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            self._env = self._open_environment()
        except lmdb.Error:
            # Not ours, torn or of another machine's page size: a cache is not worth a repair.
            shutil.rmtree(self._path)
            self._path.mkdir(mode=0o700, parents=True)
            self._env = self._open_environment()
        tables = [b"meta", b"blocks", b"brief", b"hashes", b"runs", b"messages"]
        self._meta, self._blocks, self._brief, self._hashes, self._runs_table, self._messages = (
            self._env.open_db(name) for name in tables
        )
        self._origins = self._env.open_db(b"origins", dupsort=True)
        self._places = PlaceRuns(self._env, self._runs_table)

    def _open_environment(self) -> lmdb.Environment:
        return lmdb.open(
            str(self._path), map_size=MAP_BYTES, max_dbs=8, max_readers=256, metasync=False, readahead=False
        )

    def _read_stamp(self) -> bytes | None:
        with self._env.begin(db=self._meta) as txn:
            return txn.get(b"stamp")

    def clear(self) -> None:
        """Forget everything; what the block log holds can be appended again."""
        with self._env.begin(write=True) as txn:
            for table in (
                self._blocks,
                self._brief,
                self._hashes,
                self._runs_table,
                self._messages,
                self._origins,
            ):
                txn.drop(table, delete=False)
            txn.put(b"stamp", self._stamp, db=self._meta)
            txn.delete(b"first", db=self._meta)
        self._places.reload()
        self._forget_cached()

    # --- writing ---

    def begin_at(self, block: IndexedBlock, genesis: IndexedBlock) -> None:
        """Begin anew with ``block``, whose state came as a snapshot; of what was before only ``genesis`` is known."""
        self.clear()
        self.append(genesis)
        key = _HEIGHT.pack(block.height)
        with self._env.begin(write=True) as txn:
            txn.put(key, encode(block), db=self._blocks)
            txn.put(key, _encode_brief(block), db=self._brief)
            txn.put(block.hash, key, db=self._hashes)
            txn.put(b"first", _HEIGHT.pack(block.height + 1), db=self._meta)

    @property
    def first_height(self) -> int:
        """The lowest height above 0 of which everything is known: 1, or the one above the last snapshot."""
        with self._env.begin(db=self._meta) as txn:
            data = txn.get(b"first")
        return int(_HEIGHT.unpack(data)[0]) if data is not None else 1

    @property
    def height(self) -> int:
        """Height of the newest block, -1 when there is none."""
        with self._env.begin(db=self._brief) as txn:
            cursor = txn.cursor()
            return int(_HEIGHT.unpack(cursor.key())[0]) if cursor.last() else -1

    def append(self, block: IndexedBlock) -> None:
        """Add the next block; raises ``ValueError`` when heights would not be dense (a programmer error)."""
        expected = self.height + 1
        if expected and block.height != expected:
            raise ValueError(f"index: got block {block.height}, expected {expected}")
        key = _HEIGHT.pack(block.height)
        updates = MessageUpdates(block)
        with self._env.begin(write=True) as txn:
            txn.put(key, encode(block), db=self._blocks)
            txn.put(key, _encode_brief(block), db=self._brief)
            txn.put(block.hash, key, db=self._hashes)
            self._put_messages(txn, updates)
            runs = self._places.append(txn, block.height, block.joined_hashes)
        self._places.use(runs)
        self._remember(block)

    def _put_messages(self, txn: lmdb.Transaction, updates: MessageUpdates) -> None:
        records: dict[Hash32, MessageRecord] = {}
        for message in updates.touched:
            stored = txn.get(message, db=self._messages)
            records[message] = decode_message_record(bytes(stored)) if stored else EMPTY_RECORD
        updates.apply(records)
        for message, record in records.items():
            txn.put(message, encode(record), db=self._messages)
        for receipt in [receipt for _, receipt in updates.emitted] + [r for _, r, _ in updates.delivered]:
            txn.put(receipt.origin.tx_hash, receipt.id, db=self._origins)

    def rollback_to(self, height: int) -> None:
        """Drop every block above ``height``, with what it said of messages."""
        if height < self.first_height - 1:
            self.clear()
            return
        for above in range(self.height, height, -1):
            block = self.get_block(above)
            assert block is not None, "heights are dense"
            self._remove(block)
        self._places.cut(height)
        self._forget_cached()

    def _remove(self, block: IndexedBlock) -> None:
        key = _HEIGHT.pack(block.height)
        updates = MessageUpdates(block)
        with self._env.begin(write=True) as txn:
            txn.delete(key, db=self._blocks)
            txn.delete(key, db=self._brief)
            txn.delete(block.hash, db=self._hashes)
            for message in updates.touched:
                stored = txn.get(message, db=self._messages)
                record = decode_message_record(bytes(stored)) if stored else EMPTY_RECORD
                txn.put(message, encode(updates.undo(record)), db=self._messages)

    # --- reading ---

    def get_block(self, height: int) -> IndexedBlock | None:
        """Return the final block at ``height``."""
        if (cached := self._cache.get(height)) is not None:
            return cached
        read_blocks = self._read_blocks
        for block in read_blocks:
            if block.height == height:
                return block
        with self._env.begin(db=self._blocks) as txn:
            data = txn.get(_HEIGHT.pack(height))
        if data is None:
            return None
        block = _decode_block(data)
        if _weigh(block) <= MAX_READ_BYTES:
            self._read_blocks = (block, *read_blocks[: MAX_READ_BLOCKS - 1])
        return block

    def get_height(self, block_hash: bytes) -> Height | None:
        """Return the height of the final block with this hash."""
        with self._env.begin(db=self._hashes) as txn:
            data = txn.get(block_hash)
        return Height(_HEIGHT.unpack(data)[0]) if data is not None else None

    def get_hash(self, height: int) -> Hash32 | None:
        """Return the hash of the final block at ``height``."""
        with self._env.begin(db=self._brief) as txn:
            data = txn.get(_HEIGHT.pack(height))
        return Hash32(data[:32]) if data is not None else None

    def find_transaction(self, tx_hash: bytes) -> FoundTransaction | None:
        """Return a transaction or delivery of the final chain with its block."""
        place = self._places.find(tx_hash)
        block = self.get_block(place.height) if place is not None else None
        if place is None or block is None:
            return None
        # Places are kept by half of the hash: the block knows the whole.
        is_same = block.joined_hashes[32 * place.position : 32 * place.position + 32] == tx_hash
        return FoundTransaction(block, place.position) if is_same else None

    def find_recent(self, tx_hashes: Iterable[bytes]) -> set[bytes]:
        """Return those of ``tx_hashes`` that are in the newest final blocks; of older ones not all are found."""
        return self._places.find_recent(tx_hashes)

    def iterate_briefs(self, first: int, last: int) -> Iterator[Brief]:
        """Yield what scans need of the blocks from ``first`` to ``last``, both included."""
        with self._env.begin(db=self._brief) as txn:
            cursor = txn.cursor()
            if not cursor.set_range(_HEIGHT.pack(first)):
                return
            for key, value in cursor:
                height = _HEIGHT.unpack(key)[0]
                if height > last:
                    return
                deliveries, emitted = _COUNTS.unpack(value[32:40])
                yield Brief(height, Hash32(value[:32]), deliveries, emitted, value[40 : 40 + BLOOM_BYTES])

    def get_message(self, message: bytes) -> MessageRecord | None:
        """Return what this shard knows of a message."""
        with self._env.begin(db=self._messages) as txn:
            data = txn.get(message)
        return decode_message_record(data) if data is not None else None

    def find_messages(self, tx_hash: bytes, limit: int) -> list[Hash32]:
        """Return ids of messages that began with the user transaction ``tx_hash``, at most ``limit``."""
        found: list[Hash32] = []
        with self._env.begin(db=self._origins) as txn:
            cursor = txn.cursor()
            if cursor.set_key(tx_hash):
                for message in cursor.iternext_dup():
                    if len(found) == limit:
                        break
                    found.append(Hash32(message))
        return found

    # --- the cache of recent blocks ---

    def _remember(self, block: IndexedBlock) -> None:
        self._cache[block.height] = block
        self._cached_bytes += _weigh(block)
        while len(self._cache) > MAX_CACHED_BLOCKS or self._cached_bytes > MAX_CACHED_BYTES:
            _, oldest = self._cache.popitem(last=False)
            self._cached_bytes -= _weigh(oldest)

    def _forget_cached(self) -> None:
        self._cache.clear()
        self._cached_bytes = 0
        self._read_blocks = ()


def _weigh(block: IndexedBlock) -> int:
    """Return about how much memory a block takes once somebody has asked for what is in it."""
    messages = 2 * sum(map(len, block.deliveries_data)) + sum(map(len, block.outbox_data))
    return block.size + 4 * len(block.outcomes_data) + messages


def _encode_brief(block: IndexedBlock) -> bytes:
    counts = _COUNTS.pack(len(block.deliveries_data), len(block.outbox_data))
    return block.hash + counts + block.content.logs_bloom
