"""What happens in a run, in words: who did what when, one line per step, steps that changed nothing left out.

Slots are numbered within their epoch, blocks named by height and the first digits of their hash, validators by position.
"""

import re
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Final

import msgspec

from shardyard import effects as fx
from shardyard.blocks import Block
from shardyard.consensus.votes import Certificate, Vote, VoteKind
from shardyard.effects import Effect, Notice, Record
from shardyard.events import Built, Event, Executed, MessageReceived, Signed, Started, TimerFired
from shardyard.ids import describe_shard
from shardyard.messages import (
    BlockRequest,
    BlockResponse,
    BundleAnnouncement,
    BundleRequest,
    Certificates,
    CrosslinkRequest,
    FinalBlock,
    Message,
    Proposal,
    RangeRequest,
    RangeResponse,
    Status,
    SubmitCrosslink,
    Votes,
)

MAX_ITEMS: Final = 4
"""Votes, certificates or records named in one line; of more only the number is told."""
LAST_STEPS: Final = 12
MAX_FAULTS: Final = 40
NEMESIS: Final = "nemesis"
_CHAIN: Final = re.compile(r"beacon|shard-\d+")
_DONE: Final = {
    VoteKind.PROPOSE: "proposed",
    VoteKind.NOTAR: "notarized",
    VoteKind.SKIP: "skipped",
    VoteKind.FINAL: "finalized",
}
_TIMERS: Final = {
    "engine.slot.": "the time of slot {} is over",
    "engine.propose.": "it is time to propose in slot {}",
    "engine.standstill": "nothing has become final for too long",
    "engine.fetch": "asks again for missing blocks",
    "engine.range": "asks again for final blocks",
    "outbox.offer": "looks whether its crosslink was accepted",
}


class Line(msgspec.Struct, frozen=True):
    """One line of a story."""

    now_ms: int
    who: str
    text: str

    def belongs_to(self, name: str) -> bool:
        """Tell whether it is about the node of that name, or about one of the chain of that name."""
        return self.who == name or self.who.startswith(f"{name}-")

    def __str__(self) -> str:
        return f"{self.now_ms / 1000:9.3f}  {self.who:<10}  {self.text}"


class Filter(msgspec.Struct, frozen=True):
    """Which lines somebody wants to see."""

    grep: str = ""
    nodes: tuple[str, ...] = ()
    """Names of nodes or of chains: ``shard-0`` means all its replicas."""
    from_ms: int = 0
    to_ms: int | None = None

    def admits(self, line: Line) -> bool:
        """Tell whether ``line`` is wanted; faults are shown whatever node they hit, unless ``grep`` hides them."""
        return (
            self.from_ms <= line.now_ms
            and (self.to_ms is None or line.now_ms <= self.to_ms)
            and (not self.nodes or line.who == NEMESIS or any(map(line.belongs_to, self.nodes)))
            and self.grep in str(line)
        )


class Narrator:
    """Listens to a run and tells of it line by line."""

    def __init__(self, tell: Callable[[Line], None], *, is_thorough: bool = False) -> None:
        """``is_thorough`` tells of steps that change nothing and of timers too."""
        self._tell = tell
        self._is_thorough = is_thorough

    def on_step(self, now_ms: int, node: str, event: Event, effects: Sequence[Effect]) -> None:
        """Tell of a step, unless nothing came of it."""
        is_short = isinstance(event, Signed) and not self._is_thorough
        done = [
            text
            for effect in effects
            if (text := describe_effect(effect, self._is_thorough)) and not (is_short and _is_ballot(effect))
        ]
        if done or self._is_thorough or isinstance(event, Started | Signed):
            self._tell(Line(now_ms, node, "; ".join([describe_event(event), *done])))

    def on_word(self, now_ms: int, who: str, text: str) -> None:
        """Tell what the nemesis did."""
        self._tell(Line(now_ms, who, text))


def describe_event(event: Event) -> str:
    """Return what came in."""
    match event:
        case MessageReceived(sender, _, message):
            return f"hears from {sender}: {describe_message(message)}"
        case TimerFired(name):
            for prefix, text in _TIMERS.items():
                if name.startswith(prefix):
                    return text.format(name.removeprefix(prefix).lstrip("."))
            return f"timer {name}"
        case Signed(votes):
            return f"signs and sends {_describe_votes(votes)}" if votes else "is refused all signatures"
        case Built(_, _, summary):
            return "has built a block" if summary is not None else "could not build on that parent"
        case Executed(block_hash, summary, error):
            verdict = "" if summary is not None else f", which is invalid: {error}"
            return f"has executed {_short(block_hash)}{verdict}"
        case Started():
            return "starts"


def describe_message(message: Message) -> str:
    """Return what a message says."""
    match message:
        case Proposal(block):
            return f"proposal of {_describe_block(block)}"
        case Votes(votes):
            return _describe_votes(votes)
        case Certificates(certificates):
            return _list(map(_describe_certificate, certificates))
        case FinalBlock(block):
            return f"final is {_describe_block(block)}"
        case BlockRequest(_, hashes):
            return f"request for block {_list(map(_short, hashes))}"
        case BlockResponse(_, blocks):
            return f"answer with {_list(map(_describe_block, blocks)) or 'no block'}"
        case RangeRequest(shard, first, count):
            return f"request for {count} final blocks of {describe_shard(shard)} from height {first}"
        case RangeResponse(shard, blocks):
            return f"answer with {len(blocks)} final blocks of {describe_shard(shard)}"
        case SubmitCrosslink(submission):
            crosslink = submission.crosslink
            return f"crosslink of shard {crosslink.shard} up to height {crosslink.last_height}"
        case CrosslinkRequest(crosslink):
            return f"request for crosslink {_short(crosslink)}"
        case BundleAnnouncement(bundle):
            return f"{len(bundle.receipts)} receipts {bundle.src}->{bundle.dst}"
        case BundleRequest(_, src, dst):
            return f"request for receipts {src}->{dst}"
        case Status(shard, slot, height):
            return f"{describe_shard(shard)} stands at height {height} in slot {_slot(slot)}"
        case _:
            return type(message).__name__


def describe_effect(effect: Effect, is_thorough: bool = False) -> str:
    """Return what a machine asked for; nothing for what only serves disk and clock, unless ``is_thorough``."""
    match effect:
        case fx.Persist(records) if is_thorough:
            return f"writes {_list(map(_describe_record, records))}"
        case fx.Broadcast(Status()) if not is_thorough:
            return ""
        case fx.Broadcast(message):
            return f"tells all: {describe_message(message)}"
        case fx.Send(to, message):
            return f"tells {to}: {describe_message(message)}"
        case fx.Sign(requests):
            return f"wants to sign {_describe_votes(requests)}"
        case fx.Build(_, env, inbox):
            return f"builds height {env.number}" + (f" with {len(inbox)} deliveries" if inbox else "")
        case fx.Execute(block):
            return f"executes {_describe_block(block)}"
        case Notice() as notice:
            return _describe_notice(notice)
        case fx.SetTimer(name, delay_ms) if is_thorough:
            return f"timer {name} in {delay_ms} ms"
        case _:
            return type(effect).__name__.lower() if is_thorough else ""


def _is_ballot(effect: Effect) -> bool:
    """Tell whether ``effect`` only sends what was just signed."""
    return isinstance(effect, fx.Broadcast) and isinstance(effect.message, Votes | Proposal)


def _describe_notice(notice: Notice) -> str:
    data = {name: _short(value) for name, value in notice.data.items()}
    place = f"height {data.get('height')} ({data.get('hash')})"
    match notice.kind:
        case "block.notarized":
            return f"holds {place} to be notarized"
        case "block.final" | "beacon.final":
            return f"HEIGHT {data.get('height')} IS FINAL ({data.get('hash')})"
        case "slot.skipped":
            return f"slot {_slot(int(data['slot']))} is skipped"
        case "beacon.followed":
            return f"follows the beacon to height {data['height']}"
        case "crosslink.final":
            return f"shard {int(notice.shard)} is final for all up to height {data['last_height']}"
        case "evidence":
            return (
                f"HOLDS EVIDENCE against validator {data['validator']}: {data['first']} and {data['second']} "
                f"in slot {_slot(int(data['slot']))}"
            )
        case "refused":
            return f"refuses it: {data.get('reason', data.get('error'))}"
        case "message":
            return ""
        case kind:
            return f"{kind} {', '.join(f'{name} {value}' for name, value in data.items())}"


def _describe_record(record: Record) -> str:
    match record:
        case fx.BlockRecord(block):
            return _describe_block(block)
        case fx.CertificateRecord(certificate):
            return f"that {_describe_certificate(certificate)}"
        case fx.FinalRecord(height):
            return f"that height {height} is final"
        case _:
            return type(record).__name__.removesuffix("Record").lower()


def _describe_block(block: Block) -> str:
    header = block.header
    return f"height {header.height} in slot {_slot(header.slot)} ({_short(block.hash)})"


def _describe_votes(votes: Sequence[Vote] | Sequence[fx.SignRequest]) -> str:
    """Return votes with those of one kind, slot and block together."""
    groups: dict[str, list[str]] = {}
    for vote in votes:
        name = f" ({_short(vote.block_hash)})" if vote.kind is not VoteKind.SKIP else ""
        groups.setdefault(f"{vote.kind.name} {_slot(vote.slot)}{name}", []).append(str(vote.validator))
    return _list(f"{what} by {' '.join(who)}" for what, who in groups.items())


def _describe_certificate(certificate: Certificate) -> str:
    return f"slot {_slot(certificate.slot)} is {_DONE[certificate.kind]}"


def _short(value: object) -> str:
    return value.hex()[:8] if isinstance(value, bytes) else str(value)


def _slot(slot: int) -> str:
    epoch, number = slot >> 32, slot & 0xFFFFFFFF
    return f"{epoch}/{number}" if epoch else str(number)


def _list(texts: Iterable[str]) -> str:
    found = list(texts)
    if len(found) > MAX_ITEMS:
        return f"{', '.join(found[:MAX_ITEMS])} and {len(found) - MAX_ITEMS} more"
    return ", ".join(found)


class Epilogue:
    """Listens to a run and keeps what is worth telling once it has failed: all faults, and the last steps of each chain."""

    def __init__(self, count: int = LAST_STEPS) -> None:
        self._narrator = Narrator(self._keep)
        self._faults: list[Line] = []
        self._last: dict[str, deque[Line]] = {}
        self._count = count
        self.on_step = self._narrator.on_step
        self.on_word = self._narrator.on_word

    def _keep(self, line: Line) -> None:
        if line.who == NEMESIS:
            self._faults.append(line)
        else:
            chain = line.who.rpartition("-")[0]
            self._last.setdefault(chain, deque(maxlen=self._count)).append(line)

    def tell(self, violation: str) -> list[Line]:
        """Return the story of a run that ended with ``violation``, by time: of the chains that it names, else of all."""
        named = _CHAIN.findall(violation.replace("shard ", "shard-"))
        chains = [chain for chain in self._last if chain in named] or self._last
        chosen = [line for chain in chains for line in self._last[chain]]
        chosen = sorted(chosen, key=lambda line: line.now_ms)[-self._count :]
        faults = self._faults[-MAX_FAULTS:]
        return sorted([*faults, *chosen], key=lambda line: line.now_ms)
