"""What a host may read of an engine: final blocks, the tree above them, proofs. Shared by all engines."""

from collections import Counter

from shardyard.blocks import Block, FinalityProof
from shardyard.consensus.engine import BlockSource, EngineConfig
from shardyard.consensus.finals import FinalChain
from shardyard.consensus.tree import BlockTree
from shardyard.effects import SnapshotRecord
from shardyard.ids import Hash32, Slot


class ChainView:
    """Base of the engines: the tree of unfinalised blocks and the final chain below it."""

    def __init__(self, config: EngineConfig, blocks: BlockSource) -> None:
        self._config = config
        self._tree = BlockTree(config.genesis, config.max_step_ms)
        self._finals = FinalChain(config.shard, config.genesis, blocks)
        self.refused: Counter[str] = Counter()
        """What was refused of peers, by the type of the error; for metrics."""

    @property
    def final_block(self) -> Block:
        """The latest final block."""
        return self._finals.tip

    @property
    def final_slot(self) -> Slot:
        """The slot of the latest final block."""
        return self._finals.tip.header.slot

    @property
    def notarized_tip(self) -> Block:
        """The valid notarized block of the highest slot, or the final block."""
        best = self._finals.tip
        for entry in self._tree.get_entries():
            if entry.is_announced and entry.block.header.slot > best.header.slot:
                best = entry.block
        return best

    @property
    def unfinalised_count(self) -> int:
        """Blocks held above the final one (I14)."""
        return len(self._tree)

    def get_block(self, block_hash: Hash32) -> Block | None:
        """Return a block of the unfinalised tree or one of the recent final ones."""
        entry = self._tree.get(block_hash)
        if entry is not None:
            return entry.block
        return self._finals.get_by_hash(block_hash)

    def get_final_block(self, height: int) -> Block | None:
        """Return the final block at ``height``."""
        return self._finals.get_block(height)

    def final_proof(self, height: int) -> FinalityProof | None:
        """Return the finality proof of the block at ``height``."""
        held = self._finals.get(height)
        return None if held is None else held[1]

    def _recover_snapshot(self, record: SnapshotRecord) -> None:
        """Go on from a block that is proven final, with the state after it at hand."""
        self._tree.reset(record.block)
        self._finals.reset(record.block, record.proof)

    def _recover_block(self, block: Block, *, is_justified: bool) -> None:
        """Take a block from the own log; what is final already is known."""
        if block.header.height > self.final_block.header.height and self._tree.get(block.hash) is None:
            self._tree.add(block, None, is_justified=is_justified).is_persisted = True
