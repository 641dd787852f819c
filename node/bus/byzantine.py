"""A bus that lies for its process: what a Byzantine validator sends, made from what an honest one would have sent.

Machine, signer and record stay honest; the lie begins where messages leave. A forged vote or block is signed with the
validator's own key *beside* the signer, as only an attacker would: everybody else sees genuine signatures that must not
exist, and nothing at all is weakened in those who check them.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Final, NamedTuple, Self

import msgspec

from node.bus.endpoint import BusCounters, EnvelopeBus
from node.bus.faults import ByzantineRule, Held, Mode
from shardyard import _native
from shardyard.blocks import Block, Header
from shardyard.consensus.votes import Domain, Vote, VoteKind, compute_vote_message
from shardyard.hashing import TAG_BODY, hash_tagged
from shardyard.ids import Hash32, Millis, NodeId, ShardId, Slot
from shardyard.messages import (
    BlockResponse,
    Certificates,
    Message,
    Proposal,
    RangeResponse,
    Votes,
    estimate_bytes,
)
from shardyard.validators import SIGNATURE_BYTES

MAX_TWINS: Final = 64
"""Slots whose second block is remembered, so that the second vote is for it."""
_CONSENSUS: Final = (Proposal, Votes, Certificates)


class Spoken(NamedTuple):
    """One message on its way out: to one node, or to everybody when ``to`` is None."""

    to: NodeId | None
    message: Message
    delay_ms: int = 0


class Liar:
    """Turns what an honest process says into what its Byzantine validators say."""

    def __init__(
        self, domain: Domain, secrets: Mapping[int, bytes], peers: Sequence[NodeId], seed: int = 0
    ) -> None:
        """``secrets`` are the BLS keys of the local validators, ``peers`` the other nodes of the chain."""
        self.told: dict[str, int] = {}
        """Lies so far, by mode."""
        self._domain = domain
        self._secrets = dict(secrets)
        self._peers = tuple(peers)
        self._chance = random.Random(seed)  # noqa: S311 - no secret
        self._rules: tuple[ByzantineRule, ...] = ()
        self._twins: dict[Hash32, Hash32] = {}

    @property
    def is_lying(self) -> bool:
        """Whether any validator here is Byzantine."""
        return bool(self._rules)

    def set(self, rules: Sequence[ByzantineRule]) -> None:
        """Let ``rules`` hold from now on, and no others."""
        self._rules = tuple(rules)

    def twist(self, spoken: Spoken) -> list[Spoken]:
        """Return what is said instead of ``spoken``."""
        found = [spoken]
        for rule in self._rules:
            before, found = found, [said for one in found for said in self._apply(rule, one)]
            if found != before:
                self.told[rule.mode] = self.told.get(rule.mode, 0) + 1
        return found

    def _apply(self, rule: ByzantineRule, spoken: Spoken) -> list[Spoken]:
        match rule.mode:
            case Mode.SILENT:
                return self._silence(rule, spoken)
            case Mode.WITHHOLD:
                is_block = _is_proposal_of(rule, spoken.message)
                return (
                    [] if is_block or isinstance(spoken.message, BlockResponse | RangeResponse) else [spoken]
                )
            case Mode.LATE:
                is_late = isinstance(spoken.message, _CONSENSUS)
                return [spoken._replace(delay_ms=spoken.delay_ms + rule.delay_ms)] if is_late else [spoken]
            case Mode.GARBLE:
                return [self._garble(rule, spoken)]
            case Mode.BAD_PROPOSER:
                return [self._spoil(rule, spoken)]
            case Mode.EQUIVOCATE:
                return list(self._equivocate(rule, spoken))

    def _silence(self, rule: ByzantineRule, spoken: Spoken) -> list[Spoken]:
        match spoken.message:
            case Votes(votes):
                kept = tuple(vote for vote in votes if vote.validator not in rule.validators)
                return [spoken._replace(message=Votes(kept))] if kept else []
            case Proposal() if _is_proposal_of(rule, spoken.message):
                return []
            case Certificates() if set(self._secrets) <= set(rule.validators):
                return []  # they may hold its own votes
            case _:
                return [spoken]

    def _garble(self, rule: ByzantineRule, spoken: Spoken) -> Spoken:
        if not isinstance(spoken.message, Votes):
            return spoken
        votes = [
            self._garble_vote(vote) if vote.validator in rule.validators else vote
            for vote in spoken.message.votes
        ]
        return spoken._replace(message=Votes(tuple(votes)))

    def _garble_vote(self, vote: Vote) -> Vote:
        match self._chance.randrange(4):
            case 0:
                slot = Slot(max(1, vote.slot + self._chance.choice((-1, 1, 1 << 20))))
                return msgspec.structs.replace(vote, slot=slot)
            case 1:
                return msgspec.structs.replace(vote, signature=bytes(SIGNATURE_BYTES))
            case 2:
                kinds = [kind for kind in VoteKind if kind is not vote.kind]
                return msgspec.structs.replace(vote, kind=self._chance.choice(kinds))
            case _:
                return msgspec.structs.replace(vote, validator=vote.validator + 1)

    def _spoil(self, rule: ByzantineRule, spoken: Spoken) -> Spoken:
        message = spoken.message
        if not isinstance(message, Proposal) or not _is_proposal_of(rule, message):
            return spoken
        header = message.block.header
        wrong = Hash32(bytes(byte ^ 0xFF for byte in header.content.state_root))
        content = msgspec.structs.replace(header.content, state_root=wrong)
        block = self._sign_block(message.block, msgspec.structs.replace(header, content=content))
        return spoken._replace(message=Proposal(block, message.access_list))

    def _equivocate(self, rule: ByzantineRule, spoken: Spoken) -> Iterator[Spoken]:
        message = spoken.message
        if isinstance(message, Proposal) and _is_proposal_of(rule, message):
            twin = self._build_twin(message.block)
            for number, peer in enumerate(self._peers):
                block = message.block if number < len(self._peers) // 2 else twin
                yield Spoken(peer, Proposal(block, message.access_list), spoken.delay_ms)
            return
        yield spoken
        if isinstance(message, Votes):
            second = [
                self._sign_vote(vote.kind, vote.slot, self._get_other(vote.block_hash), vote.validator)
                for vote in message.votes
                if vote.kind is VoteKind.NOTAR and vote.validator in rule.validators
            ]
            if second:
                yield spoken._replace(message=Votes(tuple(second)))

    def _build_twin(self, block: Block) -> Block:
        """Return another valid block for the same slot: made a millisecond apart, within the same second."""
        at = block.header.timestamp_ms
        header = msgspec.structs.replace(
            block.header, timestamp_ms=Millis(at - 1 if at % 1000 == 999 else at + 1)
        )
        twin = self._sign_block(block, header)
        self._twins[block.hash] = twin.hash
        if len(self._twins) > MAX_TWINS:
            del self._twins[next(iter(self._twins))]
        return twin

    def _get_other(self, block_hash: Hash32) -> Hash32:
        return self._twins.get(block_hash) or hash_tagged(TAG_BODY, block_hash)

    def _sign_block(self, block: Block, header: Header) -> Block:
        vote = self._sign_vote(VoteKind.PROPOSE, header.slot, header.hash, header.proposer)
        return msgspec.structs.replace(block, header=header, signature=vote.signature)

    def _sign_vote(self, kind: VoteKind, slot: Slot, block_hash: Hash32, validator: int) -> Vote:
        message = compute_vote_message(self._domain, kind, slot, block_hash)
        (signature,) = _native.bls_sign_many([self._secrets[validator]], message)
        return Vote(kind, slot, block_hash, validator, signature)


def _is_proposal_of(rule: ByzantineRule, message: Message) -> bool:
    return isinstance(message, Proposal) and message.block.header.proposer in rule.validators


class ByzantineBus:
    """A ``Bus`` that says what ``liar`` makes of what it is given; it hears as well as the bus inside."""

    def __init__(self, bus: EnvelopeBus, liar: Liar) -> None:
        self.counters: BusCounters = bus.counters
        self._bus = bus
        self._liar = liar
        self.held = Held()
        """What this process says too late, and has not said yet."""
        self._timers: set[asyncio.TimerHandle] = set()

    @property
    def node_id(self) -> NodeId:
        """Name under which this bus publishes."""
        return self._bus.node_id

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        for handle in self._timers:
            handle.cancel()

    async def publish(self, chain: ShardId, message: Message) -> None:
        """Say to everybody what the validators of this process say."""
        if self._liar.is_lying:
            self._say(chain, Spoken(None, message))
        else:
            await self._bus.publish(chain, message)

    async def send(self, to: NodeId, chain: ShardId, message: Message) -> None:
        """Say to one node what the validators of this process say."""
        if self._liar.is_lying:
            self._say(chain, Spoken(to, message))
        else:
            await self._bus.send(to, chain, message)

    async def publish_watch(self, suffix: str, data: Mapping[str, int | str]) -> None:
        """Mirror ``data`` for people, who are told the truth."""
        await self._bus.publish_watch(suffix, data)

    def messages(self) -> AsyncIterator[tuple[NodeId, ShardId, Message]]:
        """Yield what others say."""
        return self._bus.messages()

    def _say(self, chain: ShardId, spoken: Spoken) -> None:
        for said in self._liar.twist(spoken):
            if said.delay_ms:
                self._hold(chain, said)
            else:
                self._bus.speak(said.to, chain, said.message)

    def _hold(self, chain: ShardId, said: Spoken) -> None:
        size = estimate_bytes(said.message)
        if not self.held.take(size):
            return  # never is late enough

        def speak() -> None:
            self._timers.discard(handle)
            self.held.give_back(size)
            self._bus.speak(said.to, chain, said.message)

        handle = asyncio.get_running_loop().call_later(said.delay_ms / 1000, speak)
        self._timers.add(handle)
