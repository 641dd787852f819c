"""One point: a network built from a plan, run for its virtual seconds, and what was measured of it after the warm-up."""

import gc
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from hashlib import blake2b
from itertools import pairwise
from typing import Final

import msgspec

from node.bus.topics import CLASS_OF, Subscription
from node.runtime import list_subscriptions
from node.scale.costs import Costs
from node.scale.execution import CountedShard
from node.scale.meter import OPERATIONS, Meter
from node.scale.network import LINK_BYTES, Plan, build_genesis
from node.scale.process import ScaleProcess
from node.scale.server import MicroClock
from node.sim.links import ENVELOPE_BYTES, Links
from shardyard import effects as fx
from shardyard.blocks import Block
from shardyard.events import MessageReceived
from shardyard.ids import BEACON, NodeId, ShardId
from shardyard.messages import (
    BlockResponse,
    BundleAnnouncement,
    FinalBlock,
    Message,
    Proposal,
    RangeResponse,
    encode_message,
)

STEP_US: Final = 250_000
"""Between two looks at how far a run is."""
POINTS: Final = 8
"""Latencies taken of one block: its transactions came one after the other."""


class Point(msgspec.Struct, frozen=True):
    """What became of one network. Rates are per virtual second of the measured time; shares are of one processor's time."""

    plan: Plan
    offered_tps: float
    """What clients offered; where every block was to be full, what went into blocks."""
    final_tps: float
    """Transactions that became beacon-final."""
    leaving_share: float
    """Of them: those that left their shard."""
    p50_s: float
    """From offered to beacon-final at the first process of their shard; 0 where blocks were to be full, or none became final."""
    p95_s: float
    block_interval_s: float
    """Mean over all shards, shard-final, with a wait at either end that was longer than any between; 0 with fewer than two
    blocks."""
    beacon_interval_s: float
    """The same of the beacon."""
    beacon_block_bytes: int
    """Mean size of a beacon block's body."""
    crosslinks: float
    """Mean number in a beacon block."""
    links: float
    """Mean number of pairs of shards that it carries receipts between."""
    beacon_busy: float
    """The busiest beacon process's loop."""
    beacon_operations: dict[str, float]
    """Of that process, by operation."""
    shard_busy: float
    """The busiest shard process's loop."""
    shard_operations: dict[str, float]
    pool_busy: float
    """The busiest shard process's other processors."""
    votes: float
    """Verified per process and second, on the beacon's busiest and over all shards' processes."""
    shard_votes: float
    beacon_messages: float
    """That a beacon process hears per second."""
    beacon_bytes: float
    shard_messages: float
    shard_bytes: float
    dropped: int
    """Messages lost in full queues of processes and links."""
    beacon_dropped: int
    """Of them: those lost in full queues of beacon processes."""
    longest_queue: int
    """Messages that waited at once for the busiest beacon process."""
    digest: str
    """Of the final heads of all chains: the same seed and costs give the same."""
    wall_s: float


class World:
    """One run."""

    def __init__(self, plan: Plan, costs: Costs, build: type[ScaleProcess] = ScaleProcess) -> None:
        plan.verify()
        self._build = build
        self.plan = plan
        self.clock = MicroClock()
        self.genesis = build_genesis(plan)
        chance = random.Random(f"scale {plan.seed}")
        self._links = Links(chance, plan.regions, 0, LINK_BYTES)
        self._meter = Meter(self.genesis, costs, self)
        self.shards = [
            CountedShard(self.genesis, ShardId(shard), plan, costs) for shard in range(plan.shards)
        ]
        self.processes: dict[NodeId, ScaleProcess] = {}
        self._audience: dict[tuple[ShardId, str, int], list[ScaleProcess]] = {}
        self._costs = costs
        for index in range(plan.beacon_nodes):
            self._add(f"beacon-{index}", BEACON, range(index, plan.committee, plan.beacon_nodes))
        for shard in range(plan.shards):
            for index in range(plan.shard_nodes):
                keys = range(index, plan.validators, plan.shard_nodes)
                self._add(f"shard-{shard}-{index}", ShardId(shard), keys)
        for process in self.processes.values():
            self.clock.schedule(chance.randrange(100_000), process.start)
        self._shapes: dict[int, tuple[int, int]] = {}
        self._beacon_blocks: list[tuple[int, Block]] = []
        """Instant and block, as the first beacon process to know."""
        self._shard_finals: list[list[int]] = [[] for _ in range(plan.shards)]
        self._finalized = [0] * plan.shards
        self._latencies: list[tuple[float, float]] = []
        """Seconds and how many transactions had them."""
        self._final = self._leaving = self._included = 0
        self._heard: Counter[ShardId] = Counter()
        self._heard_bytes: Counter[ShardId] = Counter()
        self._lost = 0

    def _add(self, name: str, chain: ShardId, keys: range) -> None:
        process = self._build(
            NodeId(name),
            chain,
            tuple(keys),
            self.genesis,
            self.clock,
            self,
            self._meter,
            self._costs,
            None if chain == BEACON else self.shards[chain],
            self.plan.cores,
        )
        self.processes[process.name] = process
        self._links.place(process.name)

    # The network of the processes

    def measure(self, message: Message) -> tuple[int, int]:
        """Return the bytes of a message as it is, and those that its transactions stand for."""
        hidden = 0
        for block in _find_blocks(message):
            if block.header.shard != BEACON:
                hidden += self.shards[block.header.shard].compute_hidden_bytes(block)
        return len(encode_message(message)), hidden

    def publish(self, sender: ScaleProcess, message: Message, size: tuple[int, int]) -> None:
        """Send to everybody who subscribes."""
        destination = message.bundle.dst if isinstance(message, BundleAnnouncement) else 0
        key = (sender.chain, type(message).__name__, destination)
        found = self._audience.get(key)
        if found is None:
            found = self._audience[key] = [
                process
                for process in self.processes.values()
                if _is_heard(list_subscriptions(process.chain), sender.chain, message)
            ]
        self._spread(sender, found, message, size)

    def send(self, sender: ScaleProcess, to: NodeId, message: Message, size: tuple[int, int]) -> None:
        """Send to one process."""
        process = self.processes.get(to)
        if process is not None:
            self._spread(sender, [process], message, size)

    def _spread(
        self, sender: ScaleProcess, receivers: Iterable[ScaleProcess], message: Message, size: tuple[int, int]
    ) -> None:
        """Up the sender's link once, down each receiver's."""
        links, now_ms, total = self._links, self.clock.now_us // 1000, sum(size)
        left_ms = links.send_up(now_ms, sender.name, total)
        if left_ms is None:
            self._lost += 1
            return
        event = MessageReceived(sender.name, sender.chain, message)
        for receiver in receivers:
            if receiver is sender:
                continue
            delay_ms = left_ms + links.draw_latency(sender.name, receiver.name)
            waited_ms = links.send_down(now_ms + delay_ms, receiver.name, total)
            if waited_ms is None:
                self._lost += 1
                continue
            self._heard[receiver.chain] += 1
            self._heard_bytes[receiver.chain] += total + ENVELOPE_BYTES
            self.clock.schedule((delay_ms + waited_ms) * 1000, _Delivery(receiver, event, size))

    # What processes tell

    def get_shape(self, height: int) -> tuple[int, int]:
        """Return the crosslinks and the links of a final beacon block."""
        return self._shapes[height]

    def on_notice(self, process: ScaleProcess, notice: fx.Notice) -> None:
        """Take what a machine told; each thing counts once, at the first who tells."""
        data = notice.data
        match notice.kind:
            case "beacon.final" if int(data["height"]) not in self._shapes:
                block = process.machine.engine.final_block
                height = int(data["height"])
                block = process.machine.engine.get_final_block(height) or block
                self._shapes[height] = self._meter.read_shape(block)
                self._beacon_blocks.append((self.clock.now_us, block))
            case "block.final" if process.name == f"shard-{process.chain}-0":
                self._shard_finals[process.chain].append(self.clock.now_us)
                self._included += int(data["transactions"])
            case "beacon.followed" if process.name == f"shard-{process.chain}-0":
                self._settle(process, int(data["finalized_height"]))
            case "halted":
                raise AssertionError(f"{process.name} halted: {data['reason']!s}")
            case _:
                pass

    def _settle(self, process: ScaleProcess, finalized: int) -> None:
        """Count the transactions of the blocks that became beacon-final."""
        shard, known = self.shards[process.chain], self._finalized[process.chain]
        for height in range(known + 1, finalized + 1):
            block = process.machine.engine.get_final_block(height)
            if block is None:
                return  # it follows the beacon faster than its own chain; counted with the next one
            self._finalized[process.chain] = height
            standing = shard.standings[block.hash]
            count = standing.last - standing.first
            self._final += count
            self._leaving += shard.count_leaving(standing.first, standing.last)
            if count and self.plan.tps_per_shard:
                for point in range(POINTS):
                    at = standing.first + (point + 0.5) * count / POINTS
                    late_us = self.clock.now_us - shard.get_due_us(at)
                    self._latencies.append((late_us / 1e6, count / POINTS))

    # Running

    def run(self, progress: Callable[[float], None] = lambda _: None) -> Point:
        """Run to the end; ``progress`` is told the virtual seconds that are over."""
        started = time.monotonic()
        plan = self.plan
        gc.collect()
        gc.freeze()  # what is built stays to the end: no collection looks through it
        try:
            begin_us, end_us = int(plan.warmup_s * 1e6), int(plan.seconds * 1e6)
            self._advance(begin_us, progress)
            self._begin_measuring()
            self._advance(end_us, progress)
        finally:
            gc.unfreeze()
        return self._report(begin_us, end_us, time.monotonic() - started)

    def _advance(self, end_us: int, progress: Callable[[float], None]) -> None:
        while self.clock.now_us < end_us:
            self.clock.run_until(min(end_us, self.clock.now_us + STEP_US))
            progress(self.clock.now_us / 1e6)

    def _begin_measuring(self) -> None:
        for process in self.processes.values():
            for processor in (process.loop, process.pool):
                processor.busy.clear()
                processor.dropped = processor.longest_queue = 0
            process.crypto.votes = 0
        self._beacon_blocks.clear()
        for finals in self._shard_finals:
            finals.clear()
        self._latencies.clear()
        self._final = self._leaving = self._included = self._lost = 0
        self._heard.clear()
        self._heard_bytes.clear()

    def _report(self, begin_us: int, end_us: int, wall_s: float) -> Point:
        plan, span_us = self.plan, end_us - begin_us
        span_s = span_us / 1e6
        beacons = [process for process in self.processes.values() if process.chain == BEACON]
        others = [process for process in self.processes.values() if process.chain != BEACON]
        busiest = max(beacons, key=lambda process: process.loop.busy.total())
        hottest = max(others, key=lambda process: process.loop.busy.total())
        blocks = [block for _, block in self._beacon_blocks]
        shapes = [self._meter.read_shape(block) for block in blocks]
        offered = plan.tps_per_shard * plan.shards or self._included / span_s
        latencies = sorted(self._latencies)
        gaps = [gap for finals in self._shard_finals for gap in _find_gaps(finals, begin_us, end_us)]
        return Point(
            plan=plan,
            offered_tps=offered,
            final_tps=self._final / span_s,
            leaving_share=self._leaving / self._final if self._final else 0.0,
            p50_s=_find_percentile(latencies, 0.50),
            p95_s=_find_percentile(latencies, 0.95),
            block_interval_s=_mean(gaps) / 1e6,
            beacon_interval_s=_mean(_find_gaps([at for at, _ in self._beacon_blocks], begin_us, end_us))
            / 1e6,
            beacon_block_bytes=round(_mean([len(block.body) for block in blocks])),
            crosslinks=_mean([shape[0] for shape in shapes]),
            links=_mean([shape[1] for shape in shapes]),
            beacon_busy=busiest.loop.busy.total() / span_us,
            beacon_operations=_share(busiest, span_us),
            shard_busy=hottest.loop.busy.total() / span_us,
            shard_operations=_share(hottest, span_us),
            pool_busy=max(process.pool.busy.total() for process in others) / span_us,
            votes=max(process.crypto.votes for process in beacons) / span_s,
            shard_votes=_mean([process.crypto.votes for process in others]) / span_s,
            beacon_messages=self._heard[BEACON] / len(beacons) / span_s,
            beacon_bytes=self._heard_bytes[BEACON] / len(beacons) / span_s,
            shard_messages=(self._heard.total() - self._heard[BEACON]) / len(others) / span_s,
            shard_bytes=(self._heard_bytes.total() - self._heard_bytes[BEACON]) / len(others) / span_s,
            dropped=self._lost + sum(process.loop.dropped for process in self.processes.values()),
            beacon_dropped=sum(process.loop.dropped for process in beacons),
            longest_queue=busiest.loop.longest_queue,
            digest=self._compute_digest(),
            wall_s=wall_s,
        )

    def _compute_digest(self) -> str:
        heads = [process.machine.engine.final_block.hash for process in self.processes.values()]
        return blake2b(b"".join(heads), digest_size=8).hexdigest()


class _Delivery:
    """A message at its receiver's door."""

    __slots__ = ("_event", "_receiver", "_size")

    def __init__(self, receiver: ScaleProcess, event: MessageReceived, size: tuple[int, int]) -> None:
        self._receiver = receiver
        self._event = event
        self._size = size

    def __call__(self) -> None:
        self._receiver.receive(self._event, *self._size)


def _is_heard(subscriptions: Iterable[Subscription], chain: ShardId, message: Message) -> bool:
    """Tell whether who subscribes to this hears a message of ``chain``."""
    kind = CLASS_OF[type(message)]
    destination = message.bundle.dst if isinstance(message, BundleAnnouncement) else None
    return any(
        kind in item.classes and item.chain in {None, chain} and item.destination in {None, destination}
        for item in subscriptions
    )


def _find_blocks(message: Message) -> tuple[Block, ...]:
    match message:
        case Proposal(block=block) | FinalBlock(block=block):
            return (block,)
        case BlockResponse(blocks=blocks) | RangeResponse(blocks=blocks):
            return blocks
        case _:
            return ()


def _find_gaps(instants: Sequence[int], begin: int, end: int) -> list[int]:
    """Return the times between instants, and before and after all of them where that took longer: then a chain stood still."""
    gaps = [after - before for before, after in pairwise(instants)]
    if not gaps:
        return []
    longest = max(gaps)
    return gaps + [wait for wait in (instants[0] - begin, end - instants[-1]) if wait > longest]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _share(process: ScaleProcess, span_us: int) -> dict[str, float]:
    return {name: process.loop.busy[name] / span_us for name in OPERATIONS if process.loop.busy[name]}


def _find_percentile(weighed: Sequence[tuple[float, float]], share: float) -> float:
    """Return the value below which ``share`` of the weight lies; 0 without any."""
    wanted = share * sum(weight for _, weight in weighed)
    for value, weight in weighed:
        wanted -= weight
        if wanted <= 0:
            return value
    return 0.0
