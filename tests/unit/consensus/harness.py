"""A small world for engines alone: N nodes, a lossy network with a seed, signers and logs that survive crashes."""

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from node.sim.mock_crypto import MockCrypto, build_mock_validator, sign_mock
from shardyard.blocks import (
    BeaconContent,
    Block,
    BlockKind,
    FinalityProof,
    build_genesis_block,
)
from shardyard.consensus.engine import (
    BlockAbandoned,
    BlockFinal,
    BlockNotarized,
    EngineConfig,
    FinalityEngine,
    RequestBuild,
    RequestValidation,
)
from shardyard.consensus.proofs import verify_finality_proof
from shardyard.consensus.registry import ENGINES
from shardyard.consensus.signer import SignerState
from shardyard.consensus.votes import Domain, Vote, VoteKind, compute_vote_message
from shardyard.effects import Broadcast, CancelTimer, Notice, Persist, Send, SetTimer, Sign
from shardyard.ids import BEACON, ZERO_ADDRESS, ZERO_HASH, Hash32, NodeId
from shardyard.validators import ValidatorSet

CRYPTO = MockCrypto()
NETWORK = Hash32(b"\x11" * 32)
CONTENT = BeaconContent(
    crosslinks_root=ZERO_HASH, crosslink_count=0, state_root=ZERO_HASH, registry_root=ZERO_HASH
)
GENESIS = build_genesis_block(NETWORK, BEACON, 0, CONTENT)
BLOCK_TIME_MS = 1000
DELTA_MS = 200


def build_committee(stakes) -> ValidatorSet:
    return ValidatorSet(
        tuple(build_mock_validator(f"v{index}", stake, ZERO_ADDRESS) for index, stake in enumerate(stakes))
    )


def build_config(committee, local, **changes) -> EngineConfig:
    fields = {
        "shard": BEACON,
        "domain": Domain(network=NETWORK, shard=BEACON, valset_root=committee.root),
        "committee": committee,
        "local_validators": tuple(local),
        "genesis": GENESIS,
        "block_time_ms": BLOCK_TIME_MS,
        "delta_ms": DELTA_MS,
    }
    return EngineConfig(**(fields | changes))


def sign_vote(committee, kind, slot, block_hash, validator) -> Vote:
    domain = Domain(network=NETWORK, shard=BEACON, valset_root=committee.root)
    message = compute_vote_message(domain, kind, slot, block_hash)
    signature = sign_mock(committee.validators[validator].public_key, message)
    return Vote(kind=kind, slot=slot, block_hash=block_hash, validator=validator, signature=signature)


@dataclass
class Node:
    name: NodeId
    config: EngineConfig
    engine: FinalityEngine
    signer: SignerState = field(default_factory=SignerState)
    log: list = field(default_factory=list)
    finals: list = field(default_factory=list)
    proofs: dict = field(default_factory=dict)
    notices: list = field(default_factory=list)
    abandoned: list = field(default_factory=list)
    timers: dict = field(default_factory=dict)
    signed: list = field(default_factory=list)
    life: int = 0
    is_up: bool = True

    def get_final(self, height: int) -> tuple[Block, FinalityProof] | None:
        return self.proofs.get(height)


class World:
    """Runs nodes until a virtual time; every random choice comes from the seed."""

    def __init__(self, committee, split, seed=0, engine="simplex", **changes):
        self.random = random.Random(seed)
        self.committee = committee
        self.engine = engine
        self.now_ms = 1_000_000
        self.heap = []
        self.count = 0
        self.sent = []
        self.drop = 0.0
        self.duplicate = 0.0
        self.latency = (1, 20)
        self.validation_ms = 5
        self.links: Callable[[str, str], bool] = lambda _a, _b: True
        self.is_valid: Callable[[Node, Block], bool] = lambda _node, _block: True
        self.tamper: Callable[[Node, object], object] = lambda _node, effect: effect
        self.nodes = []
        for index, local in enumerate(split):
            config = build_config(committee, local, **changes)
            node = Node(NodeId(f"n{index}"), config, None)
            node.engine = ENGINES[engine](config, CRYPTO, node)
            self.nodes.append(node)

    def start(self):
        for node in self.nodes:
            self.perform(node, node.engine.start(self.now_ms))
        return self

    def at(self, delay_ms, action):
        self.count += 1
        heapq.heappush(self.heap, (self.now_ms + delay_ms, self.random.random(), self.count, action))

    def run(self, duration_ms, until=lambda: False):
        end = self.now_ms + duration_ms
        while self.heap and self.heap[0][0] <= end and not until():
            self.now_ms, _, _, action = heapq.heappop(self.heap)
            action()
        if not until():
            self.now_ms = end
        return self

    def run_until(self, condition, within_ms=60_000):
        self.run(within_ms, condition)
        assert condition(), f"not within {within_ms} ms; finals {[len(node.finals) for node in self.nodes]}"
        return self

    def heights(self):
        return [node.engine.final_block.header.height for node in self.nodes]

    def crash(self, node):
        node.is_up = False
        node.life += 1
        node.timers.clear()

    def restart(self, node, *, keep=None):
        node.life += 1
        node.timers.clear()
        node.is_up = True
        if keep is not None:
            node.log = node.log[:keep]
        node.engine = ENGINES[self.engine](node.config, CRYPTO, node)
        finals = [final for record in node.log if (final := node.engine.recover(record)) is not None]
        assert [final.block.hash for final in finals] == [block.hash for block in node.finals][: len(finals)]
        node.finals = [final.block for final in finals]
        self.perform(node, node.engine.start(self.now_ms))

    def guard(self, node, action):
        life = node.life

        def act():
            if node.is_up and node.life == life:
                action()

        return act

    def perform(self, node, outputs):
        for output in outputs:
            effect = self.tamper(node, output)
            if effect is not None:
                self.perform_one(node, effect)

    def perform_one(self, node, effect):
        match effect:
            case Persist(records):
                node.log.extend(records)
            case Sign(requests):
                self.at(1, self.guard(node, lambda: self.sign(node, requests)))
            case Broadcast(message):
                self.sent.append((node.name, message))
                for other in self.nodes:
                    if other is not node:
                        self.post(node, other, message)
            case Send(to, message):
                self.sent.append((node.name, message))
                for other in self.nodes:
                    if other.name == to:
                        self.post(node, other, message)
            case SetTimer(name, delay_ms):
                token = object()
                node.timers[name] = token
                self.at(delay_ms, self.guard(node, lambda: self.fire(node, name, token)))
            case CancelTimer(name):
                node.timers.pop(name, None)
            case RequestBuild():
                self.at(2, self.guard(node, lambda: self.build(node, effect)))
            case RequestValidation(block):
                self.at(
                    self.random.randint(0, self.validation_ms),
                    self.guard(node, lambda: self.validate(node, block)),
                )
            case BlockFinal(block, proof):
                self.check_final(node, block, proof)
            case Notice():
                node.notices.append(effect)
            case BlockAbandoned(block_hash):
                node.abandoned.append(block_hash)
            case BlockNotarized():
                pass
            case _:
                raise AssertionError(effect)

    def check_final(self, node, block, proof):
        assert block.header.height == len(node.finals) + 1
        assert verify_finality_proof(CRYPTO, node.config.domain, self.committee, proof).hash == block.hash
        node.finals.append(block)
        node.proofs[block.header.height] = (block, proof)
        for other in self.nodes:
            if len(other.finals) >= block.header.height:
                assert other.finals[block.header.height - 1].hash == block.hash, (
                    "two final blocks at one height"
                )

    def sign(self, node, requests):
        votes = []
        for request in requests:
            if node.signer.check(request):
                node.signer.record(request)
                key = self.committee.validators[request.validator].public_key
                vote = Vote(
                    kind=request.kind,
                    slot=request.slot,
                    block_hash=request.block_hash,
                    validator=request.validator,
                    signature=sign_mock(key, request.message),
                )
                votes.append(vote)
                node.signed.append(vote)
        self.perform(node, node.engine.on_signed(tuple(votes), self.now_ms))

    def post(self, sender, receiver, message):
        if not self.links(sender.name, receiver.name) or self.random.random() < self.drop:
            return
        copies = 2 if self.random.random() < self.duplicate else 1
        for _ in range(copies):
            delay = self.random.randint(*self.latency)
            self.at(delay, lambda: self.deliver(sender, receiver, message))

    def deliver(self, sender, receiver, message):
        if receiver.is_up and self.links(sender.name, receiver.name):
            self.perform(receiver, receiver.engine.on_message(sender.name, message, self.now_ms))

    def fire(self, node, name, token):
        if node.timers.get(name) is token:
            del node.timers[name]
            self.perform(node, node.engine.on_timer(name, self.now_ms))

    def build(self, node, request):
        block = build_block(node.engine, request, f"{node.name}-{self.now_ms}".encode())
        self.perform(node, node.engine.on_proposed(request.slot, block, self.now_ms))

    def validate(self, node, block):
        valid = self.is_valid(node, block)
        self.perform(
            node, node.engine.on_validated(block.hash, valid, "" if valid else "planted", self.now_ms)
        )


def build_block(engine, request, body) -> Block:
    header, justification = engine.build_header(
        request.slot, request.parent, BlockKind.NORMAL, request.timestamp_ms, CONTENT, body
    )
    return Block(header=header, justification=justification, body=body, signature=b"", beacon_proof=b"")


def count_votes(node, kind: VoteKind) -> int:
    return sum(vote.kind is kind for vote in node.signed)
