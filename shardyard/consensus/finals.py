"""The recent final blocks of a chain, and the answers to those who ask for final blocks.

A window of the latest blocks stays in memory, bounded in number and bytes; older ones are read from the block source. A
range answer carries one proof, of its last block; the hash chain proves the rest.
"""

from collections import deque

from shardyard.blocks import Block, FinalityProof
from shardyard.consensus.engine import BlockSource
from shardyard.ids import Hash32, ShardId
from shardyard.messages import RangeRequest, RangeResponse

MAX_RECENT_BLOCKS = 128
MAX_RECENT_BYTES = 32 * 1024 * 1024
"""Bytes of bodies in the window of recent final blocks."""
MAX_RANGE_BLOCKS = 32
"""Blocks in one range answer, whatever was asked for."""
MAX_RANGE_BYTES = 8 * 1024 * 1024


class FinalChain:
    """The final chain of one engine: its tip, a window of recent blocks, and what lies behind it."""

    def __init__(self, shard: ShardId, genesis: Block, source: BlockSource) -> None:
        self.tip = genesis
        self._shard = shard
        self._genesis = genesis
        self._source = source
        self._recent: deque[tuple[Block, FinalityProof]] = deque()
        self._bytes = 0

    def append(self, block: Block, proof: FinalityProof) -> None:
        """Take the child of the tip as the new tip."""
        assert block.header.parent == self.tip.hash, "blocks become final in order of height"
        self.tip = block
        self._recent.append((block, proof))
        self._bytes += len(block.body)
        while len(self._recent) > MAX_RECENT_BLOCKS or (
            self._bytes > MAX_RECENT_BYTES and len(self._recent) > 1
        ):
            dropped, _ = self._recent.popleft()
            self._bytes -= len(dropped.body)

    def reset(self, block: Block, proof: FinalityProof) -> None:
        """Go on from ``block``, which is proven final; what lies before it is not held."""
        self.tip = block
        self._recent = deque([(block, proof)])
        self._bytes = len(block.body)

    def get(self, height: int) -> tuple[Block, FinalityProof] | None:
        """Return the final block at ``height`` with its proof; None for genesis and for what is not held."""
        first = self.tip.header.height - len(self._recent) + 1
        if first <= height <= self.tip.header.height:
            return self._recent[height - first]
        if 0 < height < first:
            return self._source.get_final(height)
        return None

    def get_block(self, height: int) -> Block | None:
        """Return the final block at ``height``, genesis included."""
        if height == 0:
            return self._genesis
        found = self.get(height)
        return None if found is None else found[0]

    def get_by_hash(self, block_hash: Hash32) -> Block | None:
        """Return genesis or a block of the recent window."""
        if block_hash == self._genesis.hash:
            return self._genesis
        return next((block for block, _ in reversed(self._recent) if block.hash == block_hash), None)

    def answer_range(self, request: RangeRequest) -> RangeResponse:
        """Return consecutive final blocks from the first one asked for, within the caps."""
        blocks: list[Block] = []
        proof: FinalityProof | None = None
        size = 0
        for height in range(
            request.first_height, request.first_height + min(request.count, MAX_RANGE_BLOCKS)
        ):
            held = self.get(height)
            if held is None or (blocks and size + len(held[0].body) > MAX_RANGE_BYTES):
                break
            blocks.append(held[0])
            proof = held[1]
            size += len(held[0].body)
        return RangeResponse(shard=self._shard, blocks=tuple(blocks), proof=proof)
