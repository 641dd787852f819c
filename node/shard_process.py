"""A shard replica's process: machine, native executor, mempool, index and JSON-RPC around one log.

Recovery order: the log gives the machine its records; the machine says at which height the executor must stand; the
executor takes the recorded diffs up to there; the index follows; then the journal refills the mempool. Only then does
anybody hear of this node.
"""

import asyncio
import logging
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from node.admission import restore_journal
from node.backend import ShardBackend
from node.ballots import BallotBook
from node.bus.mqtt import MqttBus
from node.bus.watch import WatchMirror
from node.doppelganger import DoppelgangerWatch
from node.driver import Driver
from node.executor import ShardExecutor
from node.held_back import HeldBack
from node.index.records import IndexedBlock
from node.index.store import ChainIndex
from node.injection import Injection
from node.network import Network, get_local_validators, parse_node
from node.recovery import recover_shard
from node.rpc.access import RpcAccess
from node.rpc.api import ShardApi
from node.rpc.app import RpcApp
from node.rpc.server import RpcServer
from node.runtime import (
    HaltedError,
    LagMeter,
    begin_watch,
    build_bus,
    choose_executors,
    describe_bus,
    describe_evidence,
    list_peers,
    open_signer,
    pump_messages,
    run_unless_ended,
    run_until_ended,
    serve_control,
    take_node_data,
    was_away,
    watch_for_end,
)
from node.signer import Signer
from node.snapshot_server import SnapshotServer
from node.snapshot_sync import catch_up_by_snapshot
from node.storage.journal import MAX_BODY_BYTES, MempoolJournal
from node.storage.log import BlockLog
from node.testimony import list_chain_methods, list_shard_methods
from shards.mempool import Mempool, MempoolLimits
from shards.replica import ShardReplica
from shardyard import _native
from shardyard import effects as fx
from shardyard.consensus.simplex import SimplexEngine
from shardyard.ids import Hash32, Height, NodeId, ShardId, compute_chain_id
from shardyard.keys import BlsCrypto
from shardyard.messages import ChunkRequest, Message, SnapshotRequest, Transactions

logger = logging.getLogger("shardyard.shard")


class ShardHost:
    """What the driver of a shard asks of its process: execution, finality, and somebody to watch."""

    def __init__(
        self,
        executor: ShardExecutor,
        backend: ShardBackend,
        mirror: WatchMirror,
        signer: Signer,
        snapshots: SnapshotServer,
    ) -> None:
        self._snapshots = snapshots
        self._executor = executor
        self._backend = backend
        self._mirror = mirror
        self._signer = signer
        self.evidence: Counter[str] = Counter()
        """Conflicting signatures that were seen, by validator and kinds."""

    def start_build(self, effect: fx.Build) -> None:
        """Fill a block."""
        self._executor.start_build(effect)

    def adopt(self, effect: fx.Adopt) -> None:
        """Name the state of a built block."""
        self._executor.adopt(effect)

    def start_execute(self, effect: fx.Execute) -> None:
        """Execute a proposal."""
        self._executor.start_execute(effect)

    async def finalise(self, effect: fx.Finalise) -> None:
        """Fold a final block into state, index and mempool."""
        await self._executor.finalise(effect.block.hash)
        self._snapshots.on_final(effect.block, effect.proof)
        await self._backend.on_final(effect.block)
        await self._signer.prune(effect.block.header.slot)

    def discard(self, effect: fx.Discard) -> None:
        """Drop a block; its transactions are offered again."""
        self._executor.discard(effect.block_hash)
        self._backend.on_discarded(effect.block_hash)

    def observe(self, notice: fx.Notice) -> None:
        """Follow what the machine says of its heads, and mirror it for people."""
        if notice.kind == "halted":
            raise HaltedError(f"shard {notice.shard} halted: {notice.data}")
        if notice.kind == "beacon.followed":
            self._backend.on_beacon_final(Height(int(notice.data["finalized_height"])))
        if notice.kind == "build.refused" and isinstance(heaviest := notice.data["heaviest"], bytes):
            # X10: it emits more than a crosslink carries; while it waits here, nothing could be proposed.
            self._backend.mempool.remove([Hash32(heaviest)])
        if notice.kind == "evidence":
            self.evidence[describe_evidence(notice)] += 1
        self._mirror.publish(notice)


def mirror_messages(mirror: WatchMirror, shard: ShardId, block: IndexedBlock) -> None:
    """Show people which messages a final block emitted and which it executed."""
    mirror.publish_receipts(shard, "emitted", block.outbox_data, block.height)
    mirror.publish_receipts(shard, "delivered", block.deliveries_data, block.height)


@dataclass(frozen=True)
class Stores:
    """What a replica keeps on disk."""

    log: BlockLog
    signer: Signer
    journal: MempoolJournal
    index: ChainIndex


class ShardNode:
    """The parts of one replica's process, wired together."""

    def __init__(self, network: Network, node: str, stores: Stores, bus: MqttBus, *, threads: int) -> None:
        self._network = network
        self._node = node
        self._stores = stores
        self._bus = bus
        self._threads = threads
        self._started = time.monotonic()
        self.chain, _ = parse_node(node)
        genesis = network.genesis
        self.core = _native.Core(
            chain_id=compute_chain_id(self.chain),
            shard=self.chain,
            threads=threads,
            history=genesis.preset.history_blocks,
        )
        genesis_block = genesis.build_shard_block(self.chain)
        self.core.init_genesis(network.read_alloc())
        self.core.set_base(genesis_block.hash, 0)
        validators = get_local_validators(network, node)
        self.replica = ShardReplica(
            genesis, self.chain, BlsCrypto(), validators, stores.log, build_engine=SimplexEngine
        )
        recover_shard(
            stores.log,
            self.replica,
            self.core,
            stores.index,
            genesis_block,
            on_record=stores.signer.begin_cover_check(),
        )
        self.mempool = Mempool(
            MempoolLimits(max_gas=genesis.preset.block_gas, min_fee=genesis.preset.min_base_fee)
        )
        self._held_back = HeldBack(self.core, self.mempool)
        stores.journal.attach(
            lambda: [*self._held_back.encode_bodies(), *self.mempool.encode_bodies(MAX_BODY_BYTES)]
        )
        self.backend = self._build_backend()
        self._injection = Injection(network, node, bus)
        engine = self.replica.engine
        self._ballots = BallotBook(
            self.chain, len(genesis.committees[self.chain]), lambda: engine.final_block.header.slot
        )
        self.driver = Driver(
            chain=self.chain,
            machine=self.replica,
            bus=self._injection.bus,
            log=stores.log,
            signer=stores.signer,
            on_records=stores.signer.take_records,
            on_signed=self._ballots.on_signed,
        )
        self.executor = self._build_executor()
        mirror = WatchMirror(bus)
        self.snapshots = SnapshotServer(
            self.chain,
            self.core.snapshot,
            self.executor.run,
            lambda to, message: self._injection.bus.send(to, self.chain, message),
            lambda: self.replica.recovered_height,
            lambda: self.replica.assembler.crosslinked_height,
        )
        self._host = ShardHost(self.executor, self.backend, mirror, stores.signer, self.snapshots)
        self.driver.attach(self._host)
        self.backend.on_head.append(self._held_back.on_head)
        self.backend.on_head.append(lambda block: mirror_messages(mirror, self.chain, block))
        self._lag = LagMeter()
        self.backend.status_sources["node"] = self.describe

    def _build_backend(self) -> ShardBackend:
        backend = ShardBackend(
            core=self.core,
            index=self._stores.index,
            mempool=self.mempool,
            journal=self._stores.journal,
            genesis=self._network.genesis,
            shard=self.chain,
            get_tip=lambda: self.replica.engine.notarized_tip.header,
            broadcast=self._broadcast if self._network.options.replicas > 1 else None,
            get_peer_count=lambda: len(list_peers(self._bus, self._network)),
            find_access_list=self._stores.log.get_access_list,
            executors=self._threads,
        )
        backend.on_beacon_final(self.replica.heads.finalized_height)
        return backend

    def _build_executor(self) -> ShardExecutor:
        return ShardExecutor(
            shard=self.chain,
            core=self.core,
            source=self.backend,
            max_body_bytes=self._network.genesis.preset.max_body_bytes,
            complete=self.driver.complete,
            enqueue=self.driver.enqueue,
            write_state=self._stores.log.append_node,
            write_access_list=self._stores.log.append_access_list,
            on_adopted=self.backend.on_adopted,
            executors=self._threads,
        )

    def _broadcast(self, raw: bytes, ends: tuple[int, ...]) -> None:
        message = Transactions(self.chain, raw, ends)
        self.driver.enqueue(lambda: self._bus.publish(self.chain, message))

    def describe(self) -> dict[str, Any]:
        """Return what ``shardyard node show`` shows of this replica."""
        heads = self.replica.heads
        return {
            "slot": self.replica.engine.slot,
            "latest": heads.latest_height,
            "finalized": heads.finalized_height,
            "notarized": heads.tip_height,
            "beacon_followed": self.replica.follower.head.ref.height,
            "executors": self._threads,
            "uptime_s": round(time.monotonic() - self._started, 1),
            "loop_lag_ms": self._lag.read_ms(),
            "bus": describe_bus(self._bus, self._network),
            "first_block": self._stores.index.first_height,
            "snapshot_held": self.snapshots.held_height,
            "signer": self._stores.signer.describe(),
            "driver": dict(self.driver.counters),
            "faults": self._injection.describe(),
            "evidence": dict(self._host.evidence),
            "stages": dict(self.executor.counters),
        }

    async def run(self, ended: asyncio.Event, watch: DoppelgangerWatch) -> None:
        """Refill the mempool, open JSON-RPC, and run until ``ended``."""
        restored, waiting = await restore_journal(
            self.core, self.mempool, self._stores.journal.take_pending(), self._stores.index.find_recent
        )
        await asyncio.to_thread(self._held_back.hold, waiting)
        access = get_access(self._network, self._node)
        methods = {
            "faults": self._injection.answer,
            "ballots": self._ballots.answer,
            **list_chain_methods(self.replica.engine),
            **list_shard_methods(self.core),
        }
        app = RpcApp(ShardApi(self.backend, list_urls(self._network)), access)
        try:
            async with (
                RpcServer(app, access) as server,
                serve_control(self._network, self._node, self.describe, methods),
            ):
                logger.info(
                    "%s at height %d, JSON-RPC on port %d, %d executor threads, %d pending transactions, "
                    "ready after %.2f s",
                    self._node,
                    self.replica.heads.latest_height,
                    server.port,
                    self._threads,
                    restored,
                    time.monotonic() - self._started,
                )
                await run_until_ended(
                    ended,
                    self.driver.run(),
                    self.backend.run(),
                    self._lag.run(),
                    pump_messages(self._bus, self.driver, watch, self._ballots, self._receive, self._serve),
                    close=server.close,
                )
        finally:
            self.executor.close()

    async def _serve(self, sender: NodeId, message: Message) -> None:
        match message:
            case SnapshotRequest():
                await self.snapshots.on_request(sender, message)
            case ChunkRequest():
                await self.snapshots.on_chunk_request(sender, message)
            case _:
                pass

    def _receive(self, message: Transactions) -> None:
        self.backend.receive(message.raw, message.ends)


async def run_shard(
    network: Network, node: str, *, executors: int, sync_mempool: bool, snapshot_distance: int
) -> None:
    """Run one replica of one shard until it is told to end."""
    ended = watch_for_end()
    chain, _ = parse_node(node)
    genesis = network.genesis
    with (
        await take_node_data(network, node, chain, ended) as data,
        BlockLog(data.log_path, data.owner) as log,
        open_signer(network, node, data) as signer,
        MempoolJournal(data.journal_path, data.owner, is_synced=sync_mempool) as journal,
        ChainIndex(data.index_path, network=genesis.network, shard=chain) as index,
    ):
        async with build_bus(network, node, chain, data) as bus:
            if network.options.nodes_per_shard > 1 and was_away(network, signer, data):
                look = catch_up_by_snapshot(
                    network, node, log, bus, distance=snapshot_distance, wait_connected=bus.wait_connected
                )
                await run_unless_ended(ended, look)
                if ended.is_set():
                    return
            stores = Stores(log, signer, journal, index)
            threads = choose_executors(executors, network.options.shards)
            shard_node = ShardNode(network, node, stores, bus, threads=threads)
            heads = shard_node.replica
            watch = begin_watch(network, chain, signer, data, lambda: heads.recovered_height)
            await shard_node.run(ended, watch)


def list_urls(network: Network) -> dict[int, list[str]]:
    """Return the JSON-RPC URLs of every shard."""
    return {entry["shard"]: list(entry["nodes"].values()) for entry in network.read_endpoints()["shards"]}


def get_access(network: Network, node: str) -> RpcAccess:
    """Return where the JSON-RPC of ``node`` listens."""
    chain, _ = parse_node(node)
    url = network.read_endpoints()["shards"][chain]["nodes"][node]
    return RpcAccess(port=urlsplit(url).port or 0)
