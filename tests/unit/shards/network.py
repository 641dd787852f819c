"""Machines in virtual time: one heap of events, an obedient signer, a log per node, a bus that may lose messages."""

import heapq
from itertools import count

from shardyard import effects as fx
from shardyard.codec import decode, encode
from shardyard.events import MessageReceived, Signed, Started, TimerFired
from shardyard.messages import decode_message, encode_message
from tests.unit.shards.world import GENESIS_MS, sign_requests

LATENCY_MS = 5
WORK_MS = 2


class Node:
    """One process: a machine with its log, timers and, on shards, its executor."""

    def __init__(self, network, name, chain, build_machine, executor=None):
        self.network, self.name, self.chain = network, name, chain
        self.build_machine = build_machine
        self.executor = executor
        self.log = []
        self.notices = []
        self.timers = {}
        self.is_down = True
        self.life = 0
        self.machine = None

    def start(self):
        self.machine = self.build_machine()
        snapshots = [item.block.header for item in self.log if isinstance(item, fx.SnapshotRecord)]
        if snapshots:
            self.machine.recover(tuple(self.log), base=snapshots[-1])
        else:
            self.machine.recover(tuple(self.log))  # the beacon's machine knows no snapshots
        if self.executor is not None:
            self.executor.restore(self.machine.heads.latest_hash)
        self.is_down = False
        self.life += 1
        self.timers = {}
        self.step(Started())

    def stop(self):
        self.is_down = True

    def step(self, event):
        for effect in self.machine.step(event, self.network.now_ms):
            self.perform(effect)

    def later(self, delay_ms, event):
        life = self.life

        def run():
            if not self.is_down and self.life == life:
                self.step(event() if callable(event) else event)

        self.network.schedule(delay_ms, run)

    def perform(self, effect):
        match effect:
            case fx.Persist(records):
                self.log += [decode(encode(record), fx.Record, max_bytes=1 << 26) for record in records]
            case fx.Sign(requests):
                votes = sign_requests(self.network.genesis, self.chain, requests)
                self.later(WORK_MS, Signed(votes))
            case fx.Broadcast(message):
                self.network.broadcast(self, message)
            case fx.Send(to, message):
                self.network.send(self, to, message)
            case fx.SetTimer(name, delay_ms):
                mark = self.timers[name] = object()
                life = self.life
                self.network.schedule(delay_ms, lambda: self._fire(name, mark, life))
            case fx.CancelTimer(name):
                self.timers.pop(name, None)
            case fx.Build():
                self.later(WORK_MS, lambda: self.executor.build(effect))
            case fx.Execute():
                self.later(WORK_MS, lambda: self.executor.execute(effect))
            case fx.Adopt():
                self.executor.adopt(effect)
            case fx.Finalise() if self.executor is None:
                pass  # the beacon executes nothing
            case fx.Finalise():
                self.executor.finalise(effect)
            case fx.Discard():
                self.executor.discard(effect)
            case fx.Notice():
                self.notices.append(effect)

    def _fire(self, name, mark, life):
        if not self.is_down and self.life == life and self.timers.get(name) is mark:
            del self.timers[name]
            self.step(TimerFired(name))

    def get_notices(self, kind):
        return [notice.data for notice in self.notices if notice.kind == kind]


class Network:
    """All nodes and their virtual time."""

    def __init__(self, genesis):
        self.genesis = genesis
        self.now_ms = GENESIS_MS
        self.nodes = {}
        self.is_lost = lambda _sender, _receiver, _message: False
        self._heap = []
        self._order = count()

    def add(self, name, chain, build_machine, executor=None):
        node = self.nodes[name] = Node(self, name, chain, build_machine, executor)
        return node

    def schedule(self, delay_ms, action):
        heapq.heappush(self._heap, (self.now_ms + delay_ms, next(self._order), action))

    def broadcast(self, sender, message):
        for name in self.nodes:
            if name != sender.name:
                self.send(sender, name, message)

    def send(self, sender, to, message):
        node = self.nodes.get(to)
        if node is None or self.is_lost(sender.name, to, message):
            return
        data = encode_message(message)
        chain, name = sender.chain, sender.name
        node.later(LATENCY_MS, lambda: MessageReceived(name, chain, decode_message(data)))

    def run_until(self, condition, within_ms=60_000):
        deadline = self.now_ms + within_ms
        while not condition():
            assert self._heap, "nothing is scheduled any more"
            at_ms, _, action = heapq.heappop(self._heap)
            assert at_ms <= deadline, f"not within {within_ms} ms of virtual time"
            self.now_ms = at_ms
            action()

    def run_for(self, duration_ms):
        end = self.now_ms + duration_ms
        while self._heap and self._heap[0][0] <= end:
            self.now_ms, _, action = heapq.heappop(self._heap)
            action()
        self.now_ms = end
