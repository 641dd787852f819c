"""Proofs of the beacon blocks that shard blocks refer to: nobody's but the own one is kept (X0).

The proof travels beside a block, and neither hash nor signature cover it: whoever passes the block on may put megabytes in its
place. A replica executes a block only when it has followed the beacon up to its reference, so it holds a proof that it verified
itself. What came with a block is dropped before anything keeps it, and the own proof goes into the log.
"""

from collections.abc import Sequence

import msgspec

from shards.candidates import Candidates
from shards.inbox import BeaconFollower
from shardyard.blocks import Block
from shardyard.effects import BlockRecord, Record
from shardyard.messages import BlockResponse, FinalBlock, Message, Proposal, RangeResponse

_replace = msgspec.structs.replace


def strip_proofs(message: Message) -> Message:
    """Return ``message`` without the proofs beside its blocks."""
    match message:
        case Proposal(block=block) | FinalBlock(block=block) if block.beacon_proof:
            return _replace(message, block=_strip(block))
        case BlockResponse(blocks=blocks) | RangeResponse(blocks=blocks) if any(
            block.beacon_proof for block in blocks
        ):
            return _replace(message, blocks=tuple(map(_strip, blocks)))
        case _:
            return message


def _strip(block: Block) -> Block:
    return _replace(block, beacon_proof=b"")


def attach_proofs(
    follower: BeaconFollower, candidates: Candidates, records: Sequence[Record]
) -> tuple[Record, ...]:
    """Return ``records``, the blocks in them with the proof of their reference where that is another than the parent's."""
    return tuple(
        BlockRecord(_attach_proof(follower, candidates, record.block))
        if isinstance(record, BlockRecord)
        else record
        for record in records
    )


def _attach_proof(follower: BeaconFollower, candidates: Candidates, block: Block) -> Block:
    ref = block.header.shard_content.beacon_ref
    parent, view = candidates.get_executed(block.header.parent), follower.get_view(ref.height)
    is_moved = parent is not None and ref != parent.shard_content.beacon_ref
    return _replace(block, beacon_proof=view.proof) if is_moved and view is not None else block
