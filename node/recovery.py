"""Recovery of a shard's process from its block log: records for the machine, states for the executor, blocks for the index.

The log is read once, record by record, and what is kept meanwhile does not grow with it. Each record goes to the index and to
the machine; of each block that the machine folds in, the executor takes the recorded diff, and the root it leads to is
compared with the block's header.
"""

from collections.abc import Callable, Iterator

from node.executor import StateRecord
from node.index.rebuild import IndexRebuilder
from node.index.store import ChainIndex
from node.runtime import HaltedError
from node.storage.log import MAX_RECORD_BYTES, BlockLog, EntryKind
from shards.replica import ShardReplica
from shardyard import _native
from shardyard.blocks import Block, Header
from shardyard.codec import decode
from shardyard.effects import Record, SnapshotRecord
from shardyard.ids import Hash32


def recover_shard(
    log: BlockLog,
    replica: ShardReplica,
    core: _native.Core,
    index: ChainIndex,
    genesis_block: Block,
    *,
    on_record: Callable[[Record], None] = lambda _: None,
) -> None:
    """Bring machine, executor and index to where the log ends; ``on_record`` sees each of the machine's records.

    Raises ``HaltedError`` if a recorded state is wrong.
    """
    snapshot = log.get_snapshot()
    base = None if snapshot is None else snapshot.block.header
    if snapshot is not None:
        restore_snapshot(core, log, snapshot)
    states = _States(core, base)
    rebuilder = IndexRebuilder(index, genesis_block, base=0 if base is None else base.height)

    def read() -> Iterator[Record]:
        for entry in log.iterate():
            if entry.kind is EntryKind.KERNEL:
                record = entry.decode_record()
                on_record(record)
                rebuilder.take(record)
                yield record
            elif entry.kind is EntryKind.NODE:
                state = decode(entry.payload, StateRecord, max_bytes=MAX_RECORD_BYTES)
                rebuilder.take_outcomes(state.block_hash, state.height, state.outcomes)
                states.keep(state)

    replica.recover(read(), base=base, on_folded=states.apply)
    rebuilder.finish()
    if index.height > replica.recovered_height:
        # Final blocks beyond it are executed and indexed again.
        index.rollback_to(replica.recovered_height)


class _States:
    """The executor, and the recorded states of blocks that are not folded in yet."""

    def __init__(self, core: _native.Core, base: Header | None) -> None:
        self._core = core
        self._height = 0 if base is None else base.height
        self._kept: dict[Hash32, StateRecord] = {}

    def keep(self, state: StateRecord) -> None:
        if state.height > self._height:
            self._kept[state.block_hash] = state

    def apply(self, header: Header) -> None:
        state = self._kept.get(header.hash)
        if state is None:
            raise HaltedError(
                f"block {header.height}: the log says that it was executed, and lacks its state; "
                "try: shardyard audit, then shardyard up --fresh"
            )
        root = self._core.apply_diff(header.hash, header.height, state.diff)
        if root != header.shard_content.state_root:
            raise HaltedError(
                f"block {header.height}: the recorded diff leads to {root.hex()}, its header says "
                f"{header.shard_content.state_root.hex()}; try: shardyard audit, then shardyard up --fresh"
            )
        self._height = header.height
        self._kept = {key: kept for key, kept in self._kept.items() if kept.height > header.height}


def restore_snapshot(core: _native.Core, log: BlockLog, record: SnapshotRecord) -> None:
    """Give the executor the state of a snapshot, whose chunks are in the log.

    Raises ``HaltedError`` when the chunks in the log do not make the state that the block's header commits to.
    """
    header = record.block.header
    chunks = [log.get_chunk(chunk) for chunk in record.chunks]
    if missing := chunks.count(None):
        raise _refuse_snapshot(header, f"{missing} of {len(chunks)} chunks are missing in the log")
    try:
        root = core.restore([chunk for chunk in chunks if chunk is not None])
    except _native.CoreError as error:
        raise _refuse_snapshot(header, f"its chunks make no state: {error}") from error
    expected = header.shard_content.state_root
    if root != expected:
        raise _refuse_snapshot(
            header, f"its chunks lead to root {root.hex()}, its header says {expected.hex()}"
        )
    core.set_base(header.hash, header.height)


def _refuse_snapshot(header: Header, what: str) -> HaltedError:
    return HaltedError(
        f"snapshot of block {header.height}: {what}; "
        "try: shardyard validator export NODE -o FILE, delete the data directory of this node, shardyard validator import "
        "NODE FILE; it comes back by a snapshot, and signs on what it has signed"
    )
