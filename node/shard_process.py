"""A shard replica's process: machine, native executor, mempool, index and JSON-RPC around one log.

Recovery order: the log gives the machine its records; the machine says at which height the executor must stand; the
executor takes the recorded diffs up to there; the index follows; then the journal refills the mempool. Only then does
anybody hear of this node.
"""

import logging
import time
from typing import Any
from urllib.parse import urlsplit

from node.admission import restore_journal
from node.backend import ShardBackend
from node.bus.mqtt import MqttBus
from node.bus.watch import WatchMirror
from node.driver import Driver
from node.executor import ShardExecutor, StateRecord
from node.index.rebuild import IndexRebuilder
from node.index.store import ChainIndex
from node.network import Network, get_local_validators, parse_node
from node.rpc.access import RpcAccess
from node.rpc.api import ShardApi
from node.rpc.app import RpcApp
from node.rpc.server import RpcServer
from node.runtime import (
    HaltedError,
    LagMeter,
    build_bus,
    choose_executors,
    open_node_data,
    pump_messages,
    run_until_ended,
    serve_control,
    watch_for_end,
)
from node.signer import Signer
from node.storage.journal import MempoolJournal
from node.storage.log import MAX_RECORD_BYTES, BlockLog, EntryKind
from shards.mempool import Mempool, MempoolLimits
from shards.replica import ShardReplica
from shardyard import _native
from shardyard import effects as fx
from shardyard.blocks import Block
from shardyard.codec import decode
from shardyard.consensus.simplex import SimplexEngine
from shardyard.ids import Hash32, Height, compute_chain_id
from shardyard.keys import BlsCrypto
from shardyard.messages import Transactions

logger = logging.getLogger("shardyard.shard")


class ShardHost:
    """What the driver of a shard asks of its process: execution, finality, and somebody to watch."""

    def __init__(
        self, executor: ShardExecutor, backend: ShardBackend, mirror: WatchMirror, signer: Signer
    ) -> None:
        self._executor = executor
        self._backend = backend
        self._mirror = mirror
        self._signer = signer

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
        self._mirror.publish(notice)


def restore_index(
    log: BlockLog, index: ChainIndex, genesis_block: Block
) -> tuple[list[fx.Record], dict[Hash32, bytes]]:
    """Bring the index up to the log; return the machine's records in order, and the state diff of each block."""
    rebuilder = IndexRebuilder(index, genesis_block)
    records: list[fx.Record] = []
    diffs: dict[Hash32, bytes] = {}
    for entry in log.iterate():
        if entry.kind is EntryKind.KERNEL:
            record = entry.decode_record()
            records.append(record)
            rebuilder.take(record)
        else:
            state = decode(entry.payload, StateRecord, max_bytes=MAX_RECORD_BYTES)
            diffs[state.block_hash] = state.diff
            rebuilder.take_outcomes(state.block_hash, state.outcomes)
    rebuilder.finish()
    return records, diffs


def restore_state(core: _native.Core, log: BlockLog, diffs: dict[Hash32, bytes], height: int) -> None:
    """Bring the executor from genesis to ``height`` by the recorded diffs; raises ``HaltedError`` if a root differs."""
    for number in range(1, height + 1):
        found = log.get_final(number)
        assert found is not None, f"the machine recovered to {height}, but the log lacks block {number}"
        header = found[0].header
        root = core.apply_diff(header.hash, number, diffs[header.hash])
        if root != header.shard_content.state_root:
            raise HaltedError(
                f"block {number}: the recorded diff leads to {root.hex()}, its header says "
                f"{header.shard_content.state_root.hex()}; try: shardyard audit, then shardyard up --fresh"
            )


def describe_shard_node(
    replica: ShardReplica, driver: Driver, bus: MqttBus, executors: int, lag: LagMeter, started: float
) -> dict[str, Any]:
    """Return what ``shardyard node show`` shows of a replica."""
    heads = replica.heads
    return {
        "slot": replica.engine.slot,
        "latest": heads.latest_height,
        "finalized": heads.finalized_height,
        "notarized": heads.tip_height,
        "beacon_followed": replica.follower.head.ref.height,
        "executors": executors,
        "uptime_s": round(time.monotonic() - started, 1),
        "loop_lag_ms": lag.read_ms(),
        "bus": {"connected": bus.is_connected, "refused": dict(bus.counters.refused)},
        "driver": dict(driver.counters),
    }


async def run_shard(network: Network, node: str, *, executors: int, sync_mempool: bool) -> None:
    """Run one replica of one shard until it is told to end."""
    started = time.monotonic()
    ended = watch_for_end()
    chain, _ = parse_node(node)
    threads = choose_executors(executors, network.options.shards)
    genesis = network.genesis
    core = _native.Core(
        chain_id=compute_chain_id(chain), shard=chain, threads=threads, history=genesis.preset.history_blocks
    )
    core.init_genesis(network.read_alloc())
    core.set_base(genesis.build_shard_block(chain).hash, 0)
    validators = get_local_validators(network, node)
    mempool = Mempool(MempoolLimits(max_gas=genesis.preset.block_gas, min_fee=genesis.preset.min_base_fee))
    with (
        open_node_data(network, node, chain) as data,
        BlockLog(data.log_path, data.owner) as log,
        Signer(
            data,
            genesis.get_domain(chain),
            network.read_validator_secrets(chain, validators),
            lock_dir=network.root / "keys" / "locks",
        ) as signer,
        MempoolJournal(data.journal_path, data.owner, is_synced=sync_mempool) as journal,
        ChainIndex(data.index_path, network=genesis.network, shard=chain) as index,
    ):
        replica = ShardReplica(genesis, chain, BlsCrypto(), validators, log, build_engine=SimplexEngine)
        journal.attach(lambda: [entry.raw for entry in mempool])
        async with build_bus(network, node, chain, data) as bus:

            def broadcast(raw: bytes, ends: tuple[int, ...]) -> None:
                if network.options.nodes_per_shard > 1:
                    driver.enqueue(lambda: bus.publish(chain, Transactions(chain, raw, ends)))

            records, diffs = restore_index(log, index, genesis.build_shard_block(chain))
            replica.recover(records)
            restore_state(core, log, diffs, replica.recovered_height)
            if index.height > replica.recovered_height:
                index.rollback_to(replica.recovered_height)
            del records, diffs
            backend = ShardBackend(
                core=core,
                index=index,
                mempool=mempool,
                journal=journal,
                genesis=genesis,
                shard=chain,
                broadcast=broadcast,
                get_peer_count=lambda: network.options.nodes_per_shard - 1,
            )
            backend.on_beacon_final(replica.heads.finalized_height)
            await restore_journal(core, mempool, backend.latest.hash, journal.pending)
            driver = Driver(chain=chain, machine=replica, bus=bus, log=log, signer=signer)
            executor = ShardExecutor(
                shard=chain,
                core=core,
                source=backend,
                max_body_bytes=genesis.preset.max_body_bytes,
                complete=driver.complete,
                enqueue=driver.enqueue,
                write_state=log.append_node,
                on_adopted=backend.on_adopted,
            )
            driver.attach(ShardHost(executor, backend, WatchMirror(bus), signer))
            lag = LagMeter()

            def describe() -> dict[str, Any]:
                return describe_shard_node(replica, driver, bus, threads, lag, started)

            backend.status_sources["node"] = describe
            try:
                async with (
                    RpcServer(
                        RpcApp(ShardApi(backend, list_urls(network)), get_access(network, node)),
                        get_access(network, node),
                    ) as server,
                    serve_control(network, node, describe),
                ):
                    logger.info(
                        "%s at height %d, JSON-RPC on port %d, %d executors, ready after %.2f s",
                        node,
                        replica.heads.latest_height,
                        server.port,
                        threads,
                        time.monotonic() - started,
                    )
                    await run_until_ended(
                        ended,
                        driver.run(),
                        backend.run(),
                        lag.run(),
                        pump_messages(
                            bus, driver, lambda message: backend.receive(message.raw, message.ends)
                        ),
                    )
            finally:
                executor.close()


def list_urls(network: Network) -> dict[int, list[str]]:
    """Return the JSON-RPC URLs of every shard."""
    return {entry["shard"]: list(entry["nodes"].values()) for entry in network.read_endpoints()["shards"]}


def get_access(network: Network, node: str) -> RpcAccess:
    """Return where the JSON-RPC of ``node`` listens."""
    chain, _ = parse_node(node)
    url = network.read_endpoints()["shards"][chain]["nodes"][node]
    return RpcAccess(port=urlsplit(url).port or 0)
