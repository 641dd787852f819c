"""What every node process has in common: its data directory, its bus, its signer, its control socket, and when it ends.

A node ends in order on SIGTERM, SIGINT, or when standard input closes, which happens whenever its launcher dies. It ends
at once, with a non-zero status, when its disk fails or its machine halts: a node that cannot remember must not vote.
"""

import asyncio
import logging
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from typing import Any

from node.ballots import BallotBook
from node.bus.endpoint import BusConfig, BusIdentity
from node.bus.mqtt import BrokerAddress, MqttBus
from node.bus.topics import MessageClass, Subscription
from node.causes import find_cause
from node.control import ControlError, ControlServer
from node.doppelganger import WATCH_SLOTS, DoppelgangerWatch, is_recent
from node.driver import Driver
from node.network import Network, get_local_validators, parse_node
from node.remedies import describe_ways_back
from node.signer import Signer
from node.storage.data_dir import DataDir, DataDirBusyError, build_stamp, open_data_dir
from node.storage.key_locks import get_lock_dir
from shardyard.effects import Notice
from shardyard.errors import ShardyardError
from shardyard.ids import BEACON, NodeId, ShardId
from shardyard.keys import BlsCrypto
from shardyard.messages import Message, Transactions

logger = logging.getLogger("shardyard.node")

LAG_PERIOD_S = 0.25
LEAVE_S = 5.0
"""How long a node waits for the process that still has its data: one whose launcher died has requests to answer first."""
LEAVE_POLL_S = 0.02

PEER_WINDOW_S = 5.0
PEER_WINDOW_BLOCKS = 5

Method = Callable[[dict[str, Any]], Awaitable[Any]]
"""What a control socket answers with, by the parameters it was sent."""


class HaltedError(ShardyardError):
    """The machine met something that must not be; the process stops rather than go on wrongly."""


def choose_executors(wanted: int, shards: int) -> int:
    """Return the executor threads of one shard: what is configured, else its share of the cores."""
    return wanted or max(1, (os.cpu_count() or 1) // shards)


def open_node_data(network: Network, node: str, chain: ShardId) -> DataDir:
    """Open the data directory of ``node``."""
    return open_data_dir(
        network.get_data_dir(node), build_stamp(network.genesis.network, NodeId(node), chain)
    )


async def take_node_data(network: Network, node: str, chain: ShardId, ended: asyncio.Event) -> DataDir:
    """``open_node_data`` for the node itself: an earlier process of it that is about to leave is waited for."""
    deadline = time.monotonic() + LEAVE_S
    while True:
        try:
            return open_node_data(network, node, chain)
        except DataDirBusyError as error:
            if ended.is_set() or time.monotonic() > deadline:
                raise
            logger.debug("%s", error)
        await asyncio.sleep(LEAVE_POLL_S)


def open_signer(network: Network, node: str, data: DataDir) -> Signer:
    """Return the signer of ``node``; without a sound record it signs nothing, and the node follows its chain."""
    chain, _ = parse_node(node)
    return Signer(
        data,
        network.genesis.get_domain(chain),
        network.read_validator_secrets(chain, get_local_validators(network, node)),
        lock_dir=get_lock_dir(),
        witness_dir=network.witness_dir,
        follows_without_record=True,
        ways_back=describe_ways_back(network, node),
    )


def begin_watch(
    network: Network, chain: ShardId, signer: Signer, data: DataDir, get_final_height: Callable[[], int]
) -> DoppelgangerWatch:
    """Return the watch over the signer's keys, listening already when that is needed."""
    genesis = network.genesis
    committee = genesis.committees[chain]
    watch = DoppelgangerWatch(signer, BlsCrypto(), genesis.get_domain(chain), committee, get_final_height)
    has_peers = len(signer.validators) < len(committee)
    seconds = (WATCH_SLOTS * genesis.preset.block_time_ms + 2 * genesis.preset.delta_ms) / 1000
    watch.begin(seconds, is_needed=has_peers and was_away(network, signer, data))
    return watch


def was_away(network: Network, signer: Signer, data: DataDir) -> bool:
    """Tell whether others may have gone on without this process: it is neither restarted at once nor started with the network."""
    if signer.reason:
        return True
    if signer.is_unused:
        return not is_recent(network.root / "network.json")
    return not is_recent(data.signer_path)


def list_subscriptions(chain: ShardId) -> tuple[Subscription, ...]:
    """Return what a node of ``chain`` wants to hear; requests and answers to it come by its own topic anyway."""
    if chain == BEACON:
        return (
            # Bundles are for their destinations: other beacon replicas have the bodies, and there are as many as links.
            Subscription(BEACON, frozenset(MessageClass) - {MessageClass.BUNDLE}),
            Subscription(None, frozenset({MessageClass.CROSSLINK})),
        )
    return (
        Subscription(chain, frozenset(MessageClass) - {MessageClass.CROSSLINK, MessageClass.BUNDLE}),
        Subscription(BEACON, frozenset({MessageClass.BLOCK, MessageClass.STATUS})),
        Subscription(None, frozenset({MessageClass.BUNDLE}), destination=chain),
    )


def list_unheard(chain: ShardId, replicas: int) -> frozenset[tuple[ShardId, MessageClass]]:
    """Return what the replicas of a chain say to each other alone, when there is no other: bodies are worth not sending."""
    if replicas > 1:
        return frozenset()
    among_replicas = {
        MessageClass.PROPOSAL,
        MessageClass.VOTE,
        MessageClass.CERTIFICATE,
        MessageClass.TRANSACTIONS,
    }
    if chain != BEACON:
        among_replicas.add(MessageClass.BLOCK)  # the beacon's are followed by every shard
    return frozenset((chain, kind) for kind in among_replicas)


def list_peers(bus: MqttBus, network: Network) -> tuple[NodeId, ...]:
    """Return the other nodes that were heard within five block times, and at least five seconds."""
    block_time_s = network.genesis.preset.block_time_ms / 1000
    return bus.list_heard(max(PEER_WINDOW_S, PEER_WINDOW_BLOCKS * block_time_s))


def describe_bus(bus: MqttBus, network: Network) -> dict[str, Any]:
    """Return what a node's status tells of its bus: whether there is a broker, who is heard, and what was refused by error."""
    refused = dict(bus.counters.refused)
    return {"connected": bus.is_connected, "peers": list_peers(bus, network), "refused": refused}


def build_bus(network: Network, node: str, chain: ShardId, data: DataDir) -> MqttBus:
    """Return the bus of ``node``, not connected yet."""
    endpoints = network.read_endpoints()
    config = BusConfig(
        network_name=network.options.name,
        network=network.genesis.network,
        subscriptions=list_subscriptions(chain),
        unheard=list_unheard(chain, 1 if chain == BEACON else network.options.replicas),
    )
    identity = BusIdentity(NodeId(node), network.read_node_key(node), data.take_incarnation())
    password = network.read_broker_passwords()[node]
    address = BrokerAddress(url=endpoints["broker"]["url"], username=node, password=password)
    return MqttBus(config, identity, network.directory, address)


async def pump_messages(
    bus: MqttBus,
    driver: Driver,
    watch: DoppelgangerWatch,
    ballots: BallotBook,
    on_transactions: Callable[[Transactions], None] | None = None,
    serve: Callable[[NodeId, Message], Awaitable[None]] | None = None,
) -> None:
    """Hand what the bus brings to the driver; transactions go to the mempool, not to the machine.

    ``serve`` answers what the process answers by itself.
    """
    async for sender, chain, message in bus.messages():
        watch.observe(chain, message)
        ballots.observe(chain, message)
        if serve is not None:
            await serve(sender, message)
        route_message(sender, chain, message, driver, on_transactions)


def route_message(
    sender: NodeId,
    chain: ShardId,
    message: Message,
    driver: Driver,
    on_transactions: Callable[[Transactions], None] | None,
) -> None:
    """Give one message to whom it concerns."""
    if isinstance(message, Transactions):
        if on_transactions is not None and message.shard == driver.chain:
            on_transactions(message)
        return
    driver.receive(sender, chain, message)


def describe_evidence(notice: Notice) -> str:
    """Return whom an ``evidence`` notice accuses, and of what."""
    data = notice.data
    return f"validator {data['validator']!s}: {data['first']!s} and {data['second']!s} in one slot"


class LagMeter:
    """Measures how late the event loop is: the largest delay since the last reading, in milliseconds."""

    def __init__(self) -> None:
        self._worst_ms = 0.0

    async def run(self) -> None:
        """Measure until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + LAG_PERIOD_S
            await asyncio.sleep(LAG_PERIOD_S)
            self._worst_ms = max(self._worst_ms, (loop.time() - due) * 1000)

    def read_ms(self) -> int:
        """Return the worst lag since the last call."""
        worst, self._worst_ms = self._worst_ms, 0.0
        return round(worst)


def watch_for_end() -> asyncio.Event:
    """Return an event that is set by SIGTERM, SIGINT, or the end of standard input."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    if os.environ.get("SHARDYARD_NODE"):
        loop.add_reader(sys.stdin.fileno(), _on_stdin, loop, ended)
    return ended


async def run_unless_ended(ended: asyncio.Event, work: Coroutine[Any, Any, object]) -> None:
    """Return when ``work`` is done or, with it cancelled, when the process is told to end; raises what ``work`` raises."""
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(ended.wait())
    try:
        await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            working.result()
    finally:
        working.cancel()
        watching.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


def _on_stdin(loop: asyncio.AbstractEventLoop, ended: asyncio.Event) -> None:
    if not os.read(sys.stdin.fileno(), 4096):
        loop.remove_reader(sys.stdin.fileno())
        ended.set()


@asynccontextmanager
async def serve_control(
    network: Network, node: str, describe: Callable[[], dict[str, Any]], methods: Mapping[str, Method]
) -> AsyncIterator[None]:
    """Answer ``ping``, ``status`` and ``methods`` on the node's control socket while entered."""

    async def answer(method: str, params: dict[str, Any]) -> Any:
        match method:
            case "ping":
                return {"pid": os.getpid(), "node": node}
            case "status":
                return describe()
            case _ if method in methods:
                return await methods[method](params)
            case _:
                raise ControlError(
                    f"method: got {method!r}, expected one of {', '.join(('ping', 'status', *methods))}"
                )

    network.run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    async with ControlServer(network.get_control_path(node), answer):
        yield


async def run_until_ended(
    ended: asyncio.Event,
    *parts: Coroutine[Any, Any, None],
    close: Callable[[], Awaitable[None]] | None = None,
) -> None:
    """Run ``parts`` until ``ended`` is set; an error of any of them ends all and is raised.

    What others ask is answered first: ``close`` is awaited while all parts still run.
    """
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(part) for part in parts]
            await ended.wait()
            if close is not None:
                await close()
            for task in tasks:
                task.cancel()
    except BaseExceptionGroup as errors:
        raise find_cause(errors) from errors
