"""The checker: looks at every record that reaches a disk and at every final block; the first violation ends the run.

I1 supply at every beacon height, and every shard's balance as its executor counts it. I2 every receipt executed exactly
once, and at the end all of them. I3 FIFO per link. I4 a receipt after its parent. I5 one final chain per chain on all nodes,
and crosslinks lie on it. I6 only Byzantine validators in evidence. I7 finality goes on once faults stop. I8 only beacon-final
receipts are executed. I9 no block that one node has executed is invalid to another, whatever came beside it. I12 no machine
halts or raises. I13 what is final stays, over crashes too. I14 declared caps hold.
"""

from collections import Counter
from typing import Final

from crosslink.beacon import BeaconMachine
from node.sim.executor import Execution
from node.sim.node import CRYPTO, SimNode
from shardyard import effects as fx
from shardyard.blocks import Block
from shardyard.codec import decode
from shardyard.consensus.evidence import VoteEvidence
from shardyard.consensus.proofs import verify_finality_proof
from shardyard.consensus.view import ChainView
from shardyard.crosslinks import BeaconBody, Crosslink
from shardyard.errors import InvalidProofError
from shardyard.genesis import Genesis
from shardyard.ids import BEACON, ZERO_HASH, Hash32, NodeId, ShardId, describe_shard
from shardyard.receipts import Receipt, decode_receipt

MAX_TREE: Final = 256
"""I14: unfinalised blocks an engine may hold, far above what its window and two proposals per slot allow in practice."""
Link = tuple[int, int]


class InvariantError(AssertionError):
    """A promise is broken; the text begins with its number."""


class Checker:
    """Sees what every honest node writes and tells."""

    def __init__(self, genesis: Genesis, executions: dict[Hash32, Execution]) -> None:
        self._genesis = genesis
        self._executions = executions
        self._blocks: dict[Hash32, Block] = {}
        self._finals: dict[tuple[int, int], Hash32] = {}
        self._claimed: dict[tuple[int, int], Hash32] = {}
        """Proven final, and no honest node of the chain has told of it yet: heads of crosslinks, beacon blocks of liars."""
        self._tips: dict[ShardId, int] = {}
        self._unexplained: dict[tuple[Link, int], bytes] = {}
        """What was delivered of blocks below those heads, by link and seq."""
        self._emitted: dict[Link, dict[int, bytes]] = {}
        self._crosslinked: dict[Link, int] = {}
        """Last seq of each link that a final beacon block carries, whoever told of that block."""
        self._delivered: dict[Link, int] = {}
        self._executed: set[Hash32] = set()
        self._nodes: list[SimNode] = []
        self._byzantine: dict[ShardId, set[int]] = {}
        self._valid: set[Hash32] = set()
        """Blocks that some node has executed and found valid."""
        self._invalid: dict[Hash32, NodeId] = {}
        """Blocks that some node has called invalid, and which one was the first."""
        self.convicted: Counter[tuple[ShardId, int, str]] = Counter()
        """Evidence found, by chain, validator and the kinds of the two votes."""
        self.counters: Counter[str] = Counter()

    def join(self, node: SimNode) -> None:
        """Watch a node; Byzantine ones are not believed."""
        self._nodes.append(node)

    def accuse(self, chain: ShardId, validators: tuple[int, ...]) -> None:
        """Say which validators of a chain are Byzantine in this run."""
        self._byzantine.setdefault(chain, set()).update(validators)

    # Observer

    def on_record(self, node: SimNode, record: fx.Record) -> None:
        """Look at what is on disk now."""
        if isinstance(record, fx.BlockRecord):
            self._blocks.setdefault(record.block.hash, record.block)
        elif isinstance(record, fx.FinalRecord):
            if not node.is_byzantine:
                self._on_final(node, record)
            elif node.chain == BEACON:
                self._on_proof(record)
        elif isinstance(record, fx.ExecutionRecord):
            if (other := self._invalid.get(record.block_hash)) is not None:
                raise InvariantError(
                    f"I9: {node.name} has executed {record.block_hash.hex()[:16]}, which {other} calls invalid"
                )
            self._valid.add(record.block_hash)

    def on_notice(self, node: SimNode, notice: fx.Notice) -> None:
        """Look at what a machine tells."""
        self.counters[notice.kind] += 1
        match notice.kind:
            case "evidence":
                self._check_evidence(node, notice)
            case "halted" | "engine.halted":
                raise InvariantError(f"I12: {node.name} halted: {notice.data}")
            case "refused" if isinstance(error := notice.data["error"], str):
                self.counters[f"refused {error}"] += 1
            case "block.invalid" if isinstance(block_hash := notice.data["hash"], bytes):
                if block_hash in self._valid:
                    raise InvariantError(
                        f"I9: {node.name} calls a block invalid that was executed: {notice.data}"
                    )
                self._invalid.setdefault(Hash32(block_hash), node.name)
            case "beacon.final":
                self._check_supply(node)
            case _:
                pass

    def _check_evidence(self, node: SimNode, notice: fx.Notice) -> None:
        evidence = decode(notice.data["evidence"], VoteEvidence, max_bytes=4096)  # type: ignore[arg-type]  # bytes
        first, second = evidence.first, evidence.second
        self.convicted[notice.shard, first.validator, f"{first.kind.name} {second.kind.name}"] += 1
        if first.validator not in self._byzantine.get(notice.shard, set()):
            raise InvariantError(
                f"I6: {node.name} holds evidence against honest validator {first.validator} of "
                f"{describe_shard(notice.shard)}: {first.kind.name} and {second.kind.name} in slot {first.slot}"
            )

    # Final blocks

    def _on_final(self, node: SimNode, record: fx.FinalRecord) -> None:
        key = (node.chain, record.height)
        known = self._finals.get(key)
        if known is not None:
            if known != record.block_hash:
                raise InvariantError(
                    f"I5: {node.name} finalised {record.block_hash.hex()[:16]} at height {record.height} of "
                    f"{describe_shard(node.chain)}, others {known.hex()[:16]}"
                )
            return
        block = self._blocks[record.block_hash]
        if record.height != self._tips.get(node.chain, 0) + 1:
            raise InvariantError(f"I5: {node.name} finalised height {record.height} before the one below")
        claimed = self._claimed.pop(key, record.block_hash)
        if claimed != record.block_hash:
            raise InvariantError(
                f"I5: {node.name} finalised {record.block_hash.hex()[:16]} at height {record.height} of "
                f"{describe_shard(node.chain)}, proven final is {claimed.hex()[:16]}"
            )
        self._finals[key] = record.block_hash
        self._tips[node.chain] = record.height
        self.counters["final_blocks"] += 1
        if node.chain == BEACON:
            self._on_beacon_block(block)
        else:
            self._on_shard_block(node.chain, block)
        engine = node.machine.engine
        if isinstance(engine, ChainView) and engine.unfinalised_count > MAX_TREE:
            raise InvariantError(f"I14: {node.name} holds {engine.unfinalised_count} unfinalised blocks")

    def _on_proof(self, record: fx.FinalRecord) -> None:
        """Take what a Byzantine node proves: shards follow a beacon block by its proof, whoever serves it, and as early (A2)."""
        key = (BEACON, record.height)
        if key in self._finals or key in self._claimed:
            return
        committee = self._genesis.committees[BEACON]
        try:
            proven = verify_finality_proof(CRYPTO, self._genesis.get_domain(BEACON), committee, record.proof)
        except InvalidProofError:
            return  # nobody believes it
        if proven.hash == record.block_hash:
            self._claimed[key] = record.block_hash
            for crosslink in self._read_beacon_body(self._blocks[record.block_hash]).crosslinks:
                self._note_links(crosslink)

    def _read_beacon_body(self, block: Block) -> BeaconBody:
        return decode(block.body, BeaconBody, max_bytes=self._genesis.preset.max_body_bytes)

    def _note_links(self, crosslink: Crosslink) -> None:
        for link in crosslink.links:
            key = (crosslink.shard, link.dst)
            self._crosslinked[key] = max(self._crosslinked.get(key, 0), link.last_seq)

    def _on_beacon_block(self, block: Block) -> None:
        for crosslink in self._read_beacon_body(block).crosslinks:
            self._on_crosslink(crosslink)

    def _on_crosslink(self, crosslink: Crosslink) -> None:
        key = (crosslink.shard, crosslink.last_height)
        known = self._finals.get(key)
        if known is None and self._byzantine.get(crosslink.shard):
            # Proven final, and so far only a Byzantine node has told; honest ones must come to the same block.
            self._claimed[key] = crosslink.head_hash
        elif known is None:
            raise InvariantError(
                f"I5: the beacon finalised head {crosslink.head_hash.hex()[:16]} of shard {crosslink.shard} at height "
                f"{crosslink.last_height}, where no node of the shard, all honest, has finalised anything yet"
            )
        elif known != crosslink.head_hash:
            raise InvariantError(
                f"I5: the beacon finalised head {crosslink.head_hash.hex()[:16]} of shard {crosslink.shard} at height "
                f"{crosslink.last_height}, which the shard did not"
            )
        self.counters["crosslinks"] += 1
        self._note_links(crosslink)

    def _on_shard_block(self, shard: ShardId, block: Block) -> None:
        execution = self._executions[block.hash]
        for data in execution.deliveries:
            self._on_delivery(shard, block, data, decode_receipt(data))
        for data in execution.outbox:
            receipt = decode_receipt(data)
            key = (receipt.src, receipt.dst), receipt.seq
            if key in self._unexplained:
                self._explain(receipt, data)
            self._emitted.setdefault((receipt.src, receipt.dst), {})[receipt.seq] = data
            self.counters["emitted"] += 1
        self.counters["transactions"] += block.header.shard_content.transaction_count

    def _explain(self, receipt: Receipt, data: bytes) -> None:
        """Look at a receipt that was delivered before an honest node told of the block that emitted it (I2, I4)."""
        link = (receipt.src, receipt.dst)
        place = f"{receipt.kind.name} {receipt.src}->{receipt.dst} #{receipt.seq}"
        if self._unexplained.pop((link, receipt.seq)) != data:
            raise InvariantError(f"I2: {place}: it was delivered before, and otherwise")
        if receipt.parent_id != ZERO_HASH and receipt.parent_id not in self._executed:
            raise InvariantError(f"I4: {place}: its parent {receipt.parent_id.hex()[:16]} was not executed")

    def _on_delivery(self, shard: ShardId, block: Block, data: bytes, receipt: Receipt) -> None:
        link = (receipt.src, receipt.dst)
        place = (
            f"{receipt.kind.name} {receipt.src}->{receipt.dst} #{receipt.seq} in block {block.header.height}"
        )
        expected = self._delivered.get(link, 0) + 1
        if receipt.seq < expected or receipt.dst != shard:
            raise InvariantError(f"I2: {place}: executed twice, or on shard {shard}")
        if receipt.seq > expected:
            raise InvariantError(f"I3: {place}: executed before #{expected}")
        emitted = self._emitted.get(link, {}).get(receipt.seq)
        if emitted is None and any(src == receipt.src for src, _ in self._claimed):
            self._unexplained[link, receipt.seq] = (
                data  # emitted by a block of which no honest node has told yet
            )
        elif emitted != data:
            raise InvariantError(f"I2: {place}: it was never emitted like that")
        if receipt.seq > self._crosslinked.get(link, 0):
            raise InvariantError(f"I8: {place}: no final beacon block carries it")
        is_explained = (link, receipt.seq) not in self._unexplained
        if receipt.parent_id != ZERO_HASH and receipt.parent_id not in self._executed and is_explained:
            raise InvariantError(f"I4: {place}: its parent {receipt.parent_id.hex()[:16]} was not executed")
        self._delivered[link] = receipt.seq
        self._executed.add(receipt.id)
        self.counters["delivered"] += 1
        self.counters[f"delivered {receipt.kind.name}"] += 1

    # Supply

    def _check_supply(self, node: SimNode) -> None:
        machine = node.machine
        assert isinstance(machine, BeaconMachine), "only the beacon tells of beacon blocks"
        table = machine.get_supply()
        if table.total != table.genesis or min((*table.balances, *table.in_flight, *table.burnt)) < 0:
            raise InvariantError(f"I1: at beacon height {machine.state.height} the supply is {table}")
        for shard, entry in enumerate(machine.state.shards):
            counted = self._count_supply(shard, entry.head_hash)
            if counted is not None and counted != entry.balance:
                raise InvariantError(
                    f"I1: shard {shard} has {counted} wei at its crosslinked head {entry.last_height}, "
                    f"the beacon says {entry.balance}"
                )

    def _count_supply(self, shard: int, head: Hash32) -> int | None:
        """Return the wei that a replica of the shard counts in the state of ``head``, if one still holds it."""
        for node in self._nodes:
            if (
                node.chain == shard
                and node.is_up
                and node.executor is not None
                and node.executor.core.has(head)
            ):
                self.counters["supply_counts"] += 1
                return int.from_bytes(node.executor.core.total_supply(head), "big")
        return None

    # The end

    def get_heights(self) -> dict[ShardId, int]:
        """Return the final height of every chain."""
        chains = [BEACON, *(ShardId(shard) for shard in range(self._genesis.shard_count))]
        return {chain: self._tips.get(chain, 0) for chain in chains}

    def check_progress(self, before: dict[ShardId, int], blocks: int) -> None:
        """I7: every chain has grown by ``blocks`` since ``before``, and every honest node has followed."""
        for chain, height in self.get_heights().items():
            if height < before[chain] + blocks:
                raise InvariantError(
                    f"I7: {describe_shard(chain)} grew from {before[chain]} to {height} without faults, "
                    f"expected {blocks} blocks more"
                )
        for node in self._nodes:
            if node.is_byzantine:
                continue
            height = node.final_block.header.height
            if height < before[node.chain] + blocks // 2:
                raise InvariantError(
                    f"I7: {node.name} stands at {height}, its chain at {self._tips[node.chain]}"
                )

    def check_delivered(self) -> None:
        """I2: everything that was emitted is executed; I5: every crosslink's head is final on its shard."""
        for (shard, height), head in self._claimed.items():
            if shard != BEACON:  # a liar may be the first to have the beacon's last block
                raise InvariantError(
                    f"I5: the beacon finalised head {head.hex()[:16]} of shard {shard} at height {height}, the shard never"
                )
        for link, seq in self._unexplained:
            raise InvariantError(f"I2: #{seq} of link {link} was delivered and never emitted")
        for link, receipts in self._emitted.items():
            if receipts and self._delivered.get(link, 0) != max(receipts):
                raise InvariantError(
                    f"I2: link {link[0]}->{link[1]}: emitted up to #{max(receipts)}, executed up to "
                    f"#{self._delivered.get(link, 0)}"
                )
