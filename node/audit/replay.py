"""Executes a shard's final blocks again, from genesis on, in a fresh executor, and compares everything.

What a block must consume comes from ``flow``, its environment from the same policy that validators use, and its results must
be what its header commits to and what the node wrote down: outcomes, the state diff it would recover from, and the access
list that it would serve.
"""

from collections.abc import Sequence
from contextlib import suppress

import msgspec

from node.audit.answered import AnsweredBook
from node.audit.findings import Findings, Promise
from node.audit.flow import MessageFlow, Sent
from node.audit.logs import ChainLog, Span
from node.audit.stretches import Hashes
from node.executor import build_native_env, decode_body, summarise
from shards.policy import BlockContext, LinkBaseFees, compute_env, compute_initial_base_fees, verify_results
from shardyard import _native
from shardyard.blocks import BeaconRef, Block, Header
from shardyard.errors import RemoteProtocolError
from shardyard.genesis import Genesis
from shardyard.ids import Hash32, ShardId, compute_chain_id


class BeaconView(msgspec.Struct, frozen=True):
    """What a shard block knows that refers to a beacon block."""

    ref: BeaconRef
    link_base_fees: LinkBaseFees


class ShardReplay:
    """One shard while it is executed again."""

    def __init__(
        self,
        genesis: Genesis,
        replicas: Sequence[ChainLog],
        hashes: Hashes,
        alloc: bytes,
        flow: MessageFlow,
        answered: AnsweredBook,
        findings: Findings,
    ) -> None:
        self.shard = ShardId(replicas[0].chain)
        self.height = 0
        self.transactions = 0
        self.broken = False
        """Execution stopped: what follows cannot be judged."""
        self.awaited: BeaconRef | None = None
        """Beacon block beyond the audited ones to which the next block refers: execution waits for it."""
        self._genesis = genesis
        self._replicas = replicas
        self._hashes = hashes
        self._flow = flow
        self._answered = answered
        self._findings = findings
        self.head: Header = genesis.build_shard_block(self.shard).header
        self._core = _native.Core(chain_id=compute_chain_id(self.shard), shard=self.shard, history=1)
        root = self._core.init_genesis(alloc)
        self._core.set_base(self.head.hash, 0)
        findings.count(Promise.EXECUTION)
        if root != self.head.shard_content.state_root:
            self._fail(
                0,
                f"the genesis state has root {root.hex()}, expected {self.head.shard_content.state_root.hex()}",
            )

    @property
    def last_height(self) -> int:
        """Height up to which the chain was found to be one."""
        return len(self._hashes) - 1

    @property
    def burnt(self) -> int:
        """Wei burnt since genesis, by the last executed header."""
        return int.from_bytes(self.head.shard_content.burnt, "big")

    def get_supply(self) -> int:
        """Return the sum of all balances after the last executed block."""
        return int.from_bytes(self._core.total_supply(self.head.hash), "big")

    def verify_arrivals(self, beacon_height: int, arrivals: Sequence[bytes]) -> None:
        """Compare what a beacon block put into the inbox with what the node wrote down, from which it would deliver."""
        first = self._flow.inboxes[self.shard].length - len(arrivals)
        for log in self._replicas:
            record = log.get_followed(beacon_height)
            if record is None:
                continue
            self._findings.count(Promise.ORDER, len(arrivals))
            found = [data for bundle in record.bundles for data in bundle]
            # Of what was consumed before its snapshot a node keeps nothing.
            expected = arrivals[max(0, log.get_position_at(beacon_height) - first) :]
            if found != list(expected):
                self._findings.add(
                    Promise.ORDER,
                    f"{log.node} beacon block {beacon_height}",
                    "the inbox in the log is another one",
                )

    def note_unexecuted(self) -> None:
        """Tell which answered transactions are in final blocks above the last executed one."""
        for height in range(self.height + 1, self.last_height + 1):
            block = find_block(self._replicas, self._hashes[height])
            if block is None:
                continue
            with suppress(_native.CoreError, RemoteProtocolError):  # a finding by now
                body = decode_body(block.body, self._genesis.preset.max_body_bytes)
                hashes = self._core.prepare(body.raw, (0, *body.ends)).hashes
                self._answered.on_unexecuted(self.shard, hashes)

    def get_nonce(self, address: bytes) -> int:
        """Return an account's nonce after the last executed block."""
        found = self._core.account(self.head.hash, address)
        return found[0] if found is not None else 0

    def _fail(self, height: int, what: str) -> None:
        self._findings.add(Promise.EXECUTION, f"shard-{self.shard} block {height}", what)
        self.broken = True

    def execute_to(self, height: int, views: dict[int, BeaconView]) -> bool:
        """Execute up to ``height``; false when the chain ends before it, or a block cannot be executed."""
        while self.height < min(height, self.last_height) and not self.broken:
            if not self._execute_next(views):
                return False
        return self.height >= height and not self.broken

    def _execute_next(self, views: dict[int, BeaconView]) -> bool:
        height = self.height + 1
        block = find_block(self._replicas, self._hashes[height])
        if block is None:
            self._fail(height, "the block is not in the log")
            return False
        ref = block.header.shard_content.beacon_ref
        if ref.height < self.head.shard_content.beacon_ref.height:
            self._fail(height, f"refers to beacon block {ref.height}, its parent to a later one")
            return False
        view = views.get(ref.height)
        self.awaited = ref if view is None else None
        if view is None:
            return False
        if view.ref != ref:
            self._fail(height, f"refers to a beacon block at height {ref.height} that is not the final one")
            return False
        inbox = self._flow.inboxes[self.shard]
        deliveries = inbox.offer(
            self.head.shard_content.inbox_position, ref.height, self._genesis.preset.inbox_gas
        )
        if block.header.shard_content.delivery_count != len(deliveries):
            self._findings.add(
                Promise.ORDER,
                f"shard-{self.shard} block {height}",
                f"took {block.header.shard_content.delivery_count} messages, {len(deliveries)} were due",
            )
        return self._execute(block, view, deliveries)

    def _execute(self, block: Block, view: BeaconView, deliveries: list[Sent]) -> bool:
        header = block.header
        context = BlockContext(
            header.slot, header.timestamp_ms, header.proposer, view.ref, view.link_base_fees
        )
        env = compute_env(self._genesis, self.head, context)
        self._findings.count(Promise.EXECUTION)
        try:
            body = decode_body(block.body, self._genesis.preset.max_body_bytes)
            batch = self._core.prepare(body.raw, (0, *body.ends))
            inbox = [item.data for item in deliveries]
            result = self._core.execute(header.parent, batch, build_native_env(env), "validate", inbox)
        except (_native.CoreError, RemoteProtocolError) as error:
            self._fail(header.height, f"does not execute: {error}")
            return False
        try:
            verify_results(self._genesis, self.head, header, env, summarise(result, len(batch)))
        except RemoteProtocolError as error:
            self._fail(header.height, f"its header is not what execution gives: {error}")
        for log in self._replicas:
            for span in log.spans:
                if span.has_executed(header.height):
                    self._compare_record(log, block, result)
                elif header.height == span.base:
                    self._compare_snapshot(log, span, header)
        self._core.adopt(result, header.hash, header.height)
        self._core.finalise(header.hash)
        self.head, self.height = header, header.height
        self.transactions += len(batch)
        taken = deliveries[: result.inbox_taken]
        self._flow.on_executed(self.shard, header.height, taken, result.outbox)
        self._answered.on_block(self.shard, batch.hashes, taken)
        return not self.broken

    def _compare_snapshot(self, log: ChainLog, span: Span, header: Header) -> None:
        """A node that came by a snapshot recovers from its chunks: they must make the state of the block."""
        snapshot = log.get_snapshot(span)
        assert snapshot is not None, "a span with a base has the record of it"
        self._findings.count(Promise.EXECUTION)
        chunks = [chunk for found in snapshot.chunks if (chunk := log.get_chunk(found)) is not None]
        core = _native.Core(chain_id=compute_chain_id(self.shard), shard=self.shard, history=1)
        try:
            root = core.restore(chunks)
        except _native.CoreError as error:
            root = str(error).encode()
        if root != header.shard_content.state_root or snapshot.block.hash != header.hash:
            self._findings.add(
                Promise.EXECUTION,
                f"{log.node} block {header.height}",
                "its snapshot is not the state of the block",
            )

    def _compare_record(self, log: ChainLog, block: Block, result: _native.BlockResult) -> None:
        """A node recovers from what it wrote down, without executing: that must be the truth as well."""
        record = log.get_state(block.hash)
        where = f"{log.node} block {block.header.height}"
        if record is None:
            self._findings.add(Promise.EXECUTION, where, "the log lacks its state")
        elif record.diff != result.diff or record.height != block.header.height:
            self._findings.add(
                Promise.EXECUTION, where, "the state diff in the log is not what execution gives"
            )
        elif record.outcomes != result.outcomes:
            self._findings.add(
                Promise.EXECUTION, where, "the outcomes in the log are not what execution gives"
            )
        elif log.get_outbox(block.hash) != tuple(result.outbox):
            self._findings.add(Promise.EXECUTION, where, "the outbox in the log is not what execution gives")
        self._compare_access_list(log, block, where)

    def _compare_access_list(self, log: ChainLog, block: Block, where: str) -> None:
        """B7: what a node serves as a block's access list is what the header commits to."""
        access_list = log.get_access_list(block.hash)
        expected = block.header.shard_content.access_list_hash
        if access_list is None:
            self._findings.add(Promise.EXECUTION, where, "the log lacks its access list")
        elif (found := _native.keccak256(access_list)) != expected:
            self._findings.add(
                Promise.EXECUTION,
                where,
                f"the access list in the log has hash {found.hex()[:16]}, its header says {expected.hex()[:16]}",
            )


def find_block(logs: Sequence[ChainLog], block_hash: Hash32) -> Block | None:
    """Return the block from the first of ``logs`` that has it."""
    return next((block for log in logs if (block := log.get_block(block_hash)) is not None), None)


def build_genesis_view(genesis: Genesis) -> BeaconView:
    """Return what shard blocks know that refer to the beacon's block 0."""
    header = genesis.beacon_block.header
    ref = BeaconRef(height=header.height, hash=header.hash, epoch=header.epoch)
    return BeaconView(ref, compute_initial_base_fees(genesis))
