"""Recovery of a shard's process from its block log: records for the machine, states for the executor, blocks for the index.

Order: the log gives the machine its records; the machine says at which height the executor must stand; the executor takes
the recorded diffs up to there, and the root of each is compared with its header.
"""

from collections.abc import Sequence

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
    log: BlockLog, replica: ShardReplica, core: _native.Core, index: ChainIndex, genesis_block: Block
) -> list[Record]:
    """Bring machine, executor and index to where the log ends; return the log's records.

    Raises ``HaltedError`` if a recorded state is wrong.
    """
    records, diffs = restore_index(log, index, genesis_block)
    replica.recover(records)
    base = restore_snapshot(core, log, records)
    restore_state(core, log, diffs, replica.recovered_height, first=base + 1)
    if index.height > replica.recovered_height:
        # Final blocks beyond it are executed and indexed again.
        index.rollback_to(replica.recovered_height)
    return records


def restore_index(
    log: BlockLog, index: ChainIndex, genesis_block: Block
) -> tuple[list[Record], dict[Hash32, bytes]]:
    """Bring the index up to the log; return the machine's records in order, and the state diff of each block."""
    rebuilder = IndexRebuilder(index, genesis_block, base=log.first_height - 1)
    records: list[Record] = []
    diffs: dict[Hash32, bytes] = {}
    for entry in log.iterate():
        if entry.kind is EntryKind.KERNEL:
            record = entry.decode_record()
            records.append(record)
            rebuilder.take(record)
        elif entry.kind is EntryKind.NODE:
            state = decode(entry.payload, StateRecord, max_bytes=MAX_RECORD_BYTES)
            diffs[state.block_hash] = state.diff
            rebuilder.take_outcomes(state.block_hash, state.outcomes)
    rebuilder.finish()
    return records, diffs


def restore_snapshot(core: _native.Core, log: BlockLog, records: Sequence[Record]) -> int:
    """Give the executor the state of the last snapshot in ``records``, if there is one; return the height it stands at.

    Raises ``HaltedError`` when the chunks in the log do not make the state that the block's header commits to.
    """
    found = next((record for record in reversed(records) if isinstance(record, SnapshotRecord)), None)
    if found is None:
        return 0
    header = found.block.header
    chunks = [log.get_chunk(chunk) for chunk in found.chunks]
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
    return header.height


def _refuse_snapshot(header: Header, what: str) -> HaltedError:
    return HaltedError(
        f"snapshot of block {header.height}: {what}; "
        "try: shardyard validator export NODE -o FILE, delete the data directory of this node, shardyard validator import "
        "NODE FILE; it comes back by a snapshot, and signs on what it has signed"
    )


def restore_state(
    core: _native.Core, log: BlockLog, diffs: dict[Hash32, bytes], height: int, *, first: int = 1
) -> None:
    """Bring the executor from below ``first`` to ``height`` by the recorded diffs; ``HaltedError`` if a root differs."""
    for number in range(first, height + 1):
        found = log.get_final(number)
        assert found is not None, f"the machine recovered to {height}, but the log lacks block {number}"
        header = found[0].header
        root = core.apply_diff(header.hash, number, diffs[header.hash])
        if root != header.shard_content.state_root:
            raise HaltedError(
                f"block {number}: the recorded diff leads to {root.hex()}, its header says "
                f"{header.shard_content.state_root.hex()}; try: shardyard audit, then shardyard up --fresh"
            )
