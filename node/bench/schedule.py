"""How stages share cores: a small deterministic simulation of queues. Nothing here measures, waits or draws lots.

Work belongs to a *lane*: an interpreter (one piece at a time), a pool (as many as it has threads), the beacon, the bus.
A piece that its lane lets through waits for one of the cores, first come first served, and keeps it to its end. All shards
are alike; their requests and their blocks are spread evenly over time.
"""

import heapq
from collections import deque
from collections.abc import Callable

import msgspec

Then = Callable[[float], None]


class StageCosts(msgspec.Struct, frozen=True):
    """Processor time of the stages, in microseconds."""

    admission: float
    """Per transaction, in the shard's interpreter: HTTP, mempool, journal, selection, encoding."""
    recovery: float
    """Per transaction, on the shard's pool; batches divide over its threads."""
    execution: float
    """Per transaction, on the shard's pool; ``serial_share`` of it on one thread only."""
    serial_share: float
    block: float
    """Per block, in the shard's interpreter."""
    broker_block: float
    """Per shard block, at the bus."""
    broker_tx: float
    beacon_block: float
    """Per shard block, at the beacon."""
    beacon_slot: float
    """Per beacon slot, whatever the number of shards."""
    beacon_tx: float


class Layout(msgspec.Struct, frozen=True):
    """What runs where, and what is offered."""

    shards: int
    cores: int
    tps: float
    block_time_s: float
    block_txs: int
    """Transactions a block takes at most."""
    batch: int
    settle_s: float
    """From the beacon's work to the moment a client sees a final block, when nobody waits for a core."""
    seconds: float = 8.0
    threads_per_shard: int = 0
    """0 divides the cores among the shards, as a network does."""

    @property
    def threads(self) -> int:
        """Executor threads of one shard."""
        return self.threads_per_shard or max(1, self.cores // self.shards)


class Outcome(msgspec.Struct, frozen=True):
    """What a simulated run came to."""

    p50_s: float
    p95_s: float
    early_p95_s: float
    """Of what was offered in the first half; the late half may not be slower, or a queue grows."""
    late_p95_s: float
    cores_busy: float
    """Share of all cores."""
    beacon_busy: float
    """Of one core."""
    broker_busy: float
    interpreter_busy: float
    """Of one core, of each shard."""


class Machine:
    """Cores, the lanes that work belongs to, and what happens next."""

    def __init__(self, cores: int) -> None:
        self.free = cores
        self.used: dict[str, float] = {}
        """Seconds by lane."""
        self._capacity: dict[str, int] = {}
        self._held: dict[str, int] = {}
        self._queues: dict[str, deque[tuple[float, Then]]] = {}
        self._runnable: deque[tuple[str, float, Then]] = deque()
        self._events: list[tuple[float, int, Then]] = []
        self._number = 0

    def add_lane(self, lane: str, capacity: int) -> None:
        """Add a lane that lets ``capacity`` pieces of work run at once."""
        self._capacity[lane], self._held[lane], self.used[lane] = capacity, 0, 0.0
        self._queues[lane] = deque()

    def at(self, moment: float, then: Then) -> None:
        """Call ``then`` at ``moment``; what falls together happens in the order in which it was asked for."""
        self._number += 1
        heapq.heappush(self._events, (moment, self._number, then))

    def work(self, now: float, lane: str, seconds: float, then: Then) -> None:
        """Take ``seconds`` of a core in ``lane``, then call ``then``."""
        if self._held[lane] < self._capacity[lane]:
            self._held[lane] += 1
            self._runnable.append((lane, seconds, then))
            self._dispatch(now)
        else:
            self._queues[lane].append((seconds, then))

    def fork(self, now: float, lane: str, seconds: float, parts: int, then: Then) -> None:
        """Divide ``seconds`` into equal parts and call ``then`` when the last has ended."""
        left = parts

        def join(moment: float) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                then(moment)

        for _ in range(parts):
            self.work(now, lane, seconds / parts, join)

    def run(self) -> None:
        """Let everything happen."""
        while self._events:
            now, _, then = heapq.heappop(self._events)
            then(now)

    def _dispatch(self, now: float) -> None:
        while self.free and self._runnable:
            self.free -= 1
            lane, seconds, then = self._runnable.popleft()
            self.used[lane] += seconds
            self.at(now + seconds, lambda moment, lane=lane, then=then: self._end(moment, lane, then))  # type: ignore[misc]

    def _end(self, now: float, lane: str, then: Then) -> None:
        self.free += 1
        if self._queues[lane]:
            self._runnable.append((lane, *self._queues[lane].popleft()))
        else:
            self._held[lane] -= 1
        then(now)
        self._dispatch(now)


class _Shard:
    """One shard: admits requests, makes a block each period when the last one is done, and hands it to the beacon."""

    def __init__(self, machine: Machine, number: int, layout: Layout, costs: StageCosts) -> None:
        self._machine, self._layout, self._costs = machine, layout, costs
        self._interpreter, self._pool = f"interpreter-{number}", f"pool-{number}"
        machine.add_lane(self._interpreter, 1)
        machine.add_lane(self._pool, layout.threads)
        self._waiting: deque[tuple[float, int]] = deque()
        self._is_building = self._is_late = False
        self.final: list[tuple[float, float, int]] = []
        """When offered, how long until final, how many."""

    def offer(self, now: float) -> None:
        """Take a request."""
        count = self._layout.batch
        recover_s = count * self._costs.recovery / 1e6

        def recover(moment: float) -> None:
            self._machine.fork(moment, self._pool, recover_s, self._layout.threads, admit)

        def admit(_: float) -> None:
            self._waiting.append((now, count))

        self._machine.work(now, self._interpreter, count * self._costs.admission / 1e6, recover)

    def propose(self, now: float) -> None:
        """Make a block of what waits, or as soon as the one before is done."""
        if self._is_building:
            self._is_late = True
            return
        self._is_building = True
        chosen: list[tuple[float, int]] = []
        room = self._layout.block_txs
        while self._waiting and room > 0:
            offered, count = self._waiting.popleft()
            taken = min(count, room)
            chosen.append((offered, taken))
            if taken < count:
                self._waiting.appendleft((offered, count - taken))
            room -= taken
        work_s = (self._layout.block_txs - room) * self._costs.execution / 1e6
        serial_s = work_s * self._costs.serial_share

        def execute(moment: float) -> None:
            self._machine.work(moment, self._pool, serial_s, execute_parallel)

        def execute_parallel(moment: float) -> None:
            self._machine.fork(moment, self._pool, work_s - serial_s, self._layout.threads, publish)

        def publish(moment: float) -> None:
            self._publish(moment, chosen)

        self._machine.work(now, self._interpreter, self._costs.block / 1e6, execute)

    def _publish(self, now: float, chosen: list[tuple[float, int]]) -> None:
        self._is_building = False
        if self._is_late:
            self._is_late = False
            self.propose(now)
        count, costs = sum(taken for _, taken in chosen), self._costs

        def settle(moment: float) -> None:
            seen = moment + self._layout.settle_s
            self.final.extend((offered, seen - offered, taken) for offered, taken in chosen)

        def crosslink(moment: float) -> None:
            beacon_s = (costs.beacon_block + count * costs.beacon_tx) / 1e6
            self._machine.work(moment, "beacon", beacon_s, settle)

        self._machine.work(now, "broker", (costs.broker_block + count * costs.broker_tx) / 1e6, crosslink)


def simulate(layout: Layout, costs: StageCosts) -> Outcome:
    """Offer ``layout.tps`` for ``layout.seconds`` and follow everything until it is final."""
    # Of a thin load, a request a block time: in full ones none, or all of it at once, would come in the time there is.
    batch = max(1, min(layout.batch, round(layout.tps * layout.block_time_s / layout.shards)))
    layout = msgspec.structs.replace(layout, batch=batch)
    machine = Machine(layout.cores)
    machine.add_lane("beacon", 1)
    machine.add_lane("broker", 1)
    shards = [_Shard(machine, number, layout, costs) for number in range(layout.shards)]
    # At least two requests in each half, or there would be no latency to compare.
    interval = min(layout.batch * layout.shards / layout.tps, layout.seconds / 4)
    last = 1.5 * layout.seconds + 4 * layout.block_time_s
    # Processor time counts from the second period on: in the first there are no blocks.
    begun: dict[str, float] = {}
    ended: dict[str, float] = {}
    machine.at(layout.block_time_s, lambda _: begun.update(machine.used))
    machine.at(layout.seconds, lambda _: ended.update(machine.used))
    for number, shard in enumerate(shards):
        offset = number / layout.shards
        for index in range(round(layout.seconds / interval)):
            machine.at((index + offset) * interval, shard.offer)
        for slot in range(1, int(last / layout.block_time_s) + 1):
            machine.at((slot + offset) * layout.block_time_s, shard.propose)
    for slot in range(1, int(last / layout.block_time_s) + 1):
        machine.at(
            slot * layout.block_time_s,
            lambda now: machine.work(now, "beacon", costs.beacon_slot / 1e6, lambda _: None),
        )
    machine.run()
    found = [item for shard in shards for item in shard.final]
    offered = round(layout.seconds / interval) * layout.batch * layout.shards
    missing = offered - sum(count for _, _, count in found)
    if missing:  # it was not even in a block long after the last was offered
        found.append((layout.seconds, float("inf"), missing))
    half = layout.seconds / 2
    counted_s = layout.seconds - layout.block_time_s
    busy = {lane: (ended[lane] - begun[lane]) / counted_s for lane in ended}
    return Outcome(
        p50_s=_percentile(found, 0.50),
        p95_s=_percentile(found, 0.95),
        early_p95_s=_percentile([item for item in found if item[0] < half], 0.95),
        late_p95_s=_percentile([item for item in found if item[0] >= half], 0.95),
        cores_busy=sum(busy.values()) / layout.cores,
        beacon_busy=busy["beacon"],
        broker_busy=busy["broker"],
        interpreter_busy=max(busy[f"interpreter-{number}"] for number in range(layout.shards)),
    )


def _percentile(found: list[tuple[float, float, int]], share: float) -> float:
    left = share * sum(count for _, _, count in found)
    for latency, count in sorted((latency, count) for _, latency, count in found):
        left -= count
        if left <= 0:
            return latency
    return 0.0
