"""Engines alone in virtual time: real finality engines with signers and logs, a network that may be cut, no content in blocks.

What a fork needs and nothing else: no shards, no executor, no disk that fails. A process may share its keys with another one,
each with a signer's record of its own: that is how members of a coalition sign what contradicts.
"""

import random
from collections.abc import Callable, Sequence
from typing import Final

from node.sim.clock import Clock
from node.sim.mock_crypto import MockCrypto, sign_mock
from shardyard.blocks import BeaconContent, Block, BlockKind, FinalityProof, build_genesis_block
from shardyard.codec import decode
from shardyard.consensus.engine import (
    BlockAbandoned,
    BlockFinal,
    BlockNotarized,
    EngineConfig,
    EngineMessage,
    EngineOutput,
    RequestBuild,
    RequestValidation,
)
from shardyard.consensus.evidence import VoteEvidence
from shardyard.consensus.registry import get_engine
from shardyard.consensus.signer import SignerState
from shardyard.consensus.votes import Domain, Vote
from shardyard.effects import Broadcast, CancelTimer, Notice, Persist, Send, SetTimer, Sign, SignRequest
from shardyard.ids import BEACON, ZERO_HASH, Hash32, NodeId
from shardyard.messages import BlockRequest, Proposal
from shardyard.validators import ValidatorSet

CRYPTO: Final = MockCrypto()
NETWORK: Final = Hash32(b"\x46" * 32)
CONTENT: Final = BeaconContent(
    crosslinks_root=ZERO_HASH, crosslink_count=0, state_root=ZERO_HASH, registry_root=ZERO_HASH
)
GENESIS: Final = build_genesis_block(NETWORK, BEACON, 0, CONTENT)
BLOCK_TIME_MS: Final = 1000
DELTA_MS: Final = 200
VALIDATION_MS: Final = 5
START_MS: Final = 1_000_000
MAX_EVIDENCE_BYTES: Final = 4096


class EngineNode:
    """One process: an engine with keys, its signer and its final blocks."""

    def __init__(self, network: "EngineNetwork", name: str, side: int, keys: Sequence[int]) -> None:
        self.name = NodeId(name)
        self.side = side
        self.finals: list[tuple[Block, FinalityProof]] = []
        self.accused: set[int] = set()
        """Members against whom this node found a slashable pair by itself."""
        self.silence = 0.0
        """How often it keeps a proposal to itself."""
        self.is_up = False
        self.partner: EngineNode | None = None
        """The process that shares its keys and its blocks: what both voted for, each can give to whoever asks."""
        self._network = network
        self._signer = SignerState()
        self._timers: dict[str, object] = {}
        config = EngineConfig(
            shard=BEACON,
            domain=network.domain,
            committee=network.committee,
            local_validators=tuple(keys),
            genesis=GENESIS,
            block_time_ms=BLOCK_TIME_MS,
            delta_ms=DELTA_MS,
        )
        self.engine = get_engine("simplex")(config, CRYPTO, self)

    def get_final(self, height: int) -> tuple[Block, FinalityProof] | None:
        """Return the final block at ``height`` with its proof."""
        return self.finals[height - 1] if 0 < height <= len(self.finals) else None

    def start(self) -> None:
        """Begin."""
        self.is_up = True
        self._perform(self.engine.start(self._network.now_ms))

    def receive(self, sender: NodeId, message: EngineMessage) -> None:
        """Take a message of a peer."""
        outputs = self.engine.on_message(sender, message, self._network.now_ms)
        if isinstance(message, BlockRequest) and not outputs and self.partner is not None:
            outputs = self.partner.engine.on_message(sender, message, self._network.now_ms)
        self._perform(outputs)

    def _perform(self, outputs: Sequence[EngineOutput]) -> None:
        for output in outputs:
            self._perform_one(output)

    def _perform_one(self, output: EngineOutput) -> None:
        network = self._network
        match output:
            case Sign(requests):
                network.schedule(1, lambda: self._sign(requests))
            case Broadcast(message):
                if not (isinstance(message, Proposal) and network.chance.random() < self.silence):
                    network.publish(self, message)  # type: ignore[arg-type]  # engines send what engines take
            case Send(to, message):
                network.publish(self, message, to)  # type: ignore[arg-type]  # likewise
            case SetTimer(name, delay_ms):
                self._set_timer(name, delay_ms)
            case CancelTimer(name):
                self._timers.pop(name, None)
            case RequestBuild():
                network.schedule(1, lambda: self._build(output))
            case RequestValidation(block):
                network.schedule(network.chance.randint(0, VALIDATION_MS), lambda: self._validate(block))
            case BlockFinal(block, proof):
                self.finals.append((block, proof))
            case Notice("evidence", _, data):
                found = decode(data["evidence"], VoteEvidence, max_bytes=MAX_EVIDENCE_BYTES)  # type: ignore[arg-type]  # bytes
                self.accused.add(found.first.validator)
            case Persist() | Notice() | BlockNotarized() | BlockAbandoned():
                pass
            case other:
                raise AssertionError(f"an engine has no effect {other!r}")

    def _sign(self, requests: Sequence[SignRequest]) -> None:
        votes = []
        for request in requests:
            if self._signer.check(request):
                self._signer.record(request)
                key = self._network.committee.validators[request.validator].public_key
                signature = sign_mock(key, request.message)
                votes.append(
                    Vote(request.kind, request.slot, request.block_hash, request.validator, signature)
                )
        self._perform(self.engine.on_signed(tuple(votes), self._network.now_ms))

    def _set_timer(self, name: str, delay_ms: int) -> None:
        mark = self._timers[name] = object()

        def fire() -> None:
            if self._timers.get(name) is mark:
                del self._timers[name]
                self._perform(self.engine.on_timer(name, self._network.now_ms))

        self._network.schedule(delay_ms, fire)

    def _build(self, request: RequestBuild) -> None:
        now_ms = self._network.now_ms
        body = f"{self.name} {request.slot} {now_ms}".encode()
        header, justification = self.engine.build_header(
            request.slot, request.parent, BlockKind.NORMAL, request.timestamp_ms, CONTENT, body
        )
        block = Block(header=header, justification=justification, body=body, signature=b"", beacon_proof=b"")
        self._perform(self.engine.on_proposed(request.slot, block, now_ms))

    def _validate(self, block: Block) -> None:
        self._perform(self.engine.on_validated(block.hash, True, "", self._network.now_ms))


class EngineNetwork:
    """Nodes of one committee and what lies between them; every choice comes from ``chance``."""

    def __init__(self, committee: ValidatorSet, chance: random.Random, latency_ms: tuple[int, int]) -> None:
        self.committee = committee
        self.domain = Domain(network=NETWORK, shard=BEACON, valset_root=committee.root)
        self.chance = chance
        self.nodes: list[EngineNode] = []
        self.is_cut = False
        """Whether nodes of different sides do not hear each other."""
        self._clock = Clock(chance)
        self._latency_ms = latency_ms

    @property
    def now_ms(self) -> int:
        """The virtual time, as Unix time."""
        return START_MS + self._clock.now_ms

    def schedule(self, delay_ms: int, action: Callable[[], None]) -> None:
        """Do ``action`` later."""
        self._clock.schedule(delay_ms, action)

    def run(self, duration_ms: int) -> None:
        """Let so much virtual time pass."""
        self._clock.run_until(self._clock.now_ms + duration_ms)

    def publish(self, sender: EngineNode, message: EngineMessage, to: NodeId | None = None) -> None:
        """Deliver to all nodes that hear the sender, or to one of them."""
        for node in self.nodes:
            if node is not sender and to in {None, node.name} and self._hears(node, sender):
                self.schedule(self.chance.randint(*self._latency_ms), self._delivery(node, sender, message))

    def _delivery(self, node: EngineNode, sender: EngineNode, message: EngineMessage) -> Callable[[], None]:
        def deliver() -> None:
            if node.is_up and self._hears(node, sender):
                node.receive(sender.name, message)

        return deliver

    def _hears(self, node: EngineNode, sender: EngineNode) -> bool:
        return not self.is_cut or node.side == sender.side
