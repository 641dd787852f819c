"""Beacon replicas in virtual time: a heap of events, a signer per replica that signs once, records kept as a log."""

import heapq

from crosslink_test_model import TagCrypto

from crosslink.beacon import BeaconMachine
from shardyard.codec import encode
from shardyard.consensus.engine import NoBlockSource
from shardyard.consensus.votes import Vote, VoteKind
from shardyard.effects import Broadcast, CancelTimer, Notice, Persist, Send, SetTimer, Sign
from shardyard.events import MessageReceived, Signed, Started, TimerFired
from shardyard.ids import BEACON
from shardyard.messages import CrosslinkRequest, decode_message, encode_message


def drop_nothing(nodes, message):
    return False


def drop_body_requests(nodes, message):
    return isinstance(message, CrosslinkRequest)


class Replica:
    def __init__(self, network, name, validators, records=()):
        self.network, self.name, self.validators = network, name, validators
        self.records = list(records)
        self.machine = BeaconMachine(network.genesis, network.crypto, validators, NoBlockSource())
        self.machine.recover(tuple(self.records))
        self.timers = {}
        self.notices = []
        self.effects = []
        self.is_up = True

    def step(self, event):
        for effect in self.machine.step(event, self.network.now_ms):
            self.effects.append(effect)
            self.perform(effect)

    def perform(self, effect):
        network = self.network
        match effect:
            case Persist(records=records):
                self.records += records
            case Sign(requests=requests):
                votes = tuple(network.sign(request) for request in requests)
                network.schedule(0, self, Signed(votes))
            case Broadcast(message=message):
                network.broadcast(self, message)
            case Send(to=to, message=message):
                network.send(self, to, message)
            case SetTimer(name=name, delay_ms=delay_ms):
                self.timers[name] = network.schedule(delay_ms, self, TimerFired(name))
            case CancelTimer(name=name):
                self.timers.pop(name, None)
            case Notice():
                self.notices.append(effect)


class Network:
    """``drop`` decides by (names of sender and receiver, message) what is lost."""

    def __init__(self, genesis, groups=None, delay_ms=5, crypto=None):
        self.genesis, self.crypto, self.delay_ms = genesis, crypto or TagCrypto(), delay_ms
        self.now_ms = genesis.timestamp_ms
        self.heap, self.count = [], 0
        self.sent = []
        self.drop = drop_nothing
        committee = range(len(genesis.committees[BEACON]))
        groups = [tuple(committee)] if groups is None else groups
        self.replicas = {
            f"beacon-{index}": Replica(self, f"beacon-{index}", group) for index, group in enumerate(groups)
        }
        for replica in self.replicas.values():
            self.schedule(0, replica, Started())

    def sign(self, request):
        key = self.genesis.committees[BEACON].validators[request.validator].public_key
        signature = self.crypto.sign(key, request.message)
        return Vote(VoteKind(request.kind), request.slot, request.block_hash, request.validator, signature)

    def schedule(self, delay_ms, replica, event):
        self.count += 1
        heapq.heappush(self.heap, (self.now_ms + delay_ms, self.count, replica, event))
        return self.count

    def broadcast(self, sender, message):
        for replica in self.replicas.values():
            if replica is not sender:
                self.deliver(sender.name, replica, message)
        self.sent.append((sender.name, None, message))

    def send(self, sender, to, message):
        self.sent.append((sender.name, to, message))
        if to in self.replicas:
            self.deliver(sender.name, self.replicas[to], message)

    def deliver(self, sender, replica, message):
        if not self.drop({sender, replica.name}, message):
            data = encode_message(message)  # everything crosses the wire as bytes
            assert encode(decode_message(data)) == data
            self.schedule(self.delay_ms, replica, MessageReceived(sender, BEACON, decode_message(data)))

    def inject(self, message, sender="shard-0-0", chain=BEACON, to=None):
        for replica in self.replicas.values():
            if to is None or replica.name == to:
                self.schedule(0, replica, MessageReceived(sender, chain, message))

    def restart(self, name):
        old = self.replicas[name]
        old.is_up = False
        replica = self.replicas[name] = Replica(self, name, old.validators, old.records)
        self.schedule(0, replica, Started())
        return replica

    def run(self, until, limit_ms=60_000):
        """Run until ``until()`` holds; fail when ``limit_ms`` of virtual time pass without it."""
        deadline = self.now_ms + limit_ms
        while not until():
            assert self.heap, "nothing left to happen"
            self.now_ms, number, replica, event = heapq.heappop(self.heap)
            assert self.now_ms <= deadline, f"not reached within {limit_ms} ms"
            if not replica.is_up:
                continue
            if isinstance(event, TimerFired):
                if replica.timers.get(event.name) != number:
                    continue
                del replica.timers[event.name]
            replica.step(event)

    def run_ms(self, duration_ms):
        end = self.now_ms + duration_ms
        self.run(lambda: not self.heap or self.heap[0][0] > end, limit_ms=duration_ms + 1)
        self.now_ms = end

    def run_blocks(self, count):
        """Run until every replica has ``count`` more final blocks."""
        goal = max(self.heights()) + count
        self.run(lambda: min(self.heights()) >= goal)

    def heights(self):
        return [replica.machine.final_block.header.height for replica in self.replicas.values()]
