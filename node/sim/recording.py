"""Records a run for people to scrub through: what every node did, what became final, what went wrong, what was on its way.

What is written is one HTML file that needs nothing else: ``page.html`` with the recording in it.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from node.sim.narration import NEMESIS, Line, Narrator
from node.sim.run import Result
from shardyard import effects as fx
from shardyard.consensus.votes import VoteKind
from shardyard.effects import Effect
from shardyard.events import Event, Started
from shardyard.messages import Proposal, Votes
from shardyard.receipts import decode_receipt

TEMPLATE: Final = Path(__file__).with_name("page.html")
MARK: Final = "/*RECORDING*/null"
KINDS: Final = ("step", "propose", "notar", "skip", "final", "finality", "start", "evidence", "fault")
_CRASH: Final = re.compile(r"(\S+) (?:crashes|stops|goes down), ")
_VOTES: Final = {VoteKind.NOTAR: "notar", VoteKind.SKIP: "skip", VoteKind.FINAL: "final"}


class Flight(msgspec.Struct, frozen=True, array_like=True):
    """A message between shards, from the block that emitted it to the block that took it; -1 when none had yet."""

    emitted_ms: int
    delivered_ms: int
    src: int
    dst: int
    seq: int
    kind: str


class Finality(msgspec.Struct, frozen=True, array_like=True):
    """The first time a block became final on any node."""

    at_ms: int
    chain: str
    height: int
    transactions: int
    deliveries: int


class Recorder:
    """Listens to a run and keeps it."""

    def __init__(self) -> None:
        self._narrator = Narrator(self._keep)
        self._kind = "step"
        self._nodes: dict[str, int] = {}
        self._steps: list[tuple[int, int, int, str]] = []
        self._down: dict[str, int] = {}
        self._outages: list[tuple[int, int, int]] = []
        self._finals: dict[tuple[str, object], Finality] = {}
        self._outboxes: dict[object, tuple[bytes, ...]] = {}
        self._inboxes: dict[object, tuple[bytes, ...]] = {}
        self._builds: dict[tuple[str, int], tuple[bytes, ...]] = {}
        self._emitted: dict[tuple[int, int, int], tuple[int, str]] = {}
        self._delivered: dict[tuple[int, int, int], int] = {}

    def on_step(self, now_ms: int, node: str, event: Event, effects: Sequence[Effect]) -> None:
        """Keep a step, and what it says of blocks and messages."""
        self._kind = "step"
        if isinstance(event, Started):
            self._kind = "start"
            if node in self._down:
                self._outages.append((self._get_node(node), self._down.pop(node), now_ms))
        for effect in effects:
            self._look_at(now_ms, node, effect)
        self._narrator.on_step(now_ms, node, event, effects)

    def on_word(self, now_ms: int, who: str, text: str) -> None:
        """Keep what the nemesis did."""
        self._kind = "fault"
        found = _CRASH.match(text)
        if found:
            self._down[found[1]] = now_ms
        self._narrator.on_word(now_ms, who, text)

    def _keep(self, line: Line) -> None:
        index = -1 if line.who == NEMESIS else self._get_node(line.who)
        self._steps.append((line.now_ms, index, KINDS.index(self._kind), line.text))

    def _get_node(self, name: str) -> int:
        return self._nodes.setdefault(name, len(self._nodes))

    def _look_at(self, now_ms: int, node: str, effect: Effect) -> None:
        match effect:
            case fx.Broadcast(Proposal()):
                self._kind = "propose"
            case fx.Broadcast(Votes(votes)) if votes and self._kind == "step":
                self._kind = _VOTES.get(votes[0].kind, "step")
            case fx.Persist(records):
                for record in records:
                    if isinstance(record, fx.ExecutionRecord):
                        self._outboxes[record.block_hash] = record.outbox
            case fx.Build(request, _, inbox):
                self._builds[node, request] = inbox
            case fx.Adopt(request, block_hash):
                self._inboxes[block_hash] = self._builds.get((node, request), ())
            case fx.Execute(block, _, inbox):
                self._inboxes[block.hash] = inbox
            case fx.Notice("evidence"):
                self._kind = "evidence"
            case fx.Notice("block.final" | "beacon.final") as notice:
                self._kind = "finality"
                self._on_final(now_ms, node.rpartition("-")[0], notice)
            case _:
                pass

    def _on_final(self, now_ms: int, chain: str, notice: fx.Notice) -> None:
        """The first node to hold a block final: its messages leave, and those that it took have arrived."""
        data = notice.data
        block_hash, taken = data["hash"], int(data.get("deliveries", 0))
        if (chain, block_hash) in self._finals:
            return
        transactions = int(data.get("transactions", data.get("crosslinks", 0)))
        self._finals[chain, block_hash] = Finality(now_ms, chain, int(data["height"]), transactions, taken)
        for encoded in self._outboxes.pop(block_hash, ()):
            receipt = decode_receipt(encoded)
            self._emitted[receipt.src, receipt.dst, receipt.seq] = (now_ms, receipt.kind.name)
        for encoded in self._inboxes.pop(block_hash, ())[:taken]:
            receipt = decode_receipt(encoded)
            self._delivered[receipt.src, receipt.dst, receipt.seq] = now_ms

    def build(self, result: Result) -> dict[str, object]:
        """Return the recording of a finished run, ready for JSON."""
        end_ms = round(result.simulated_s * 1000)
        names = sorted(self._nodes, key=lambda name: (not name.startswith("beacon"), name))
        place = {self._nodes[name]: index for index, name in enumerate(names)}
        down = [*self._outages, *((self._get_node(name), at, end_ms) for name, at in self._down.items())]
        return {
            "title": f"seed {result.seed}",
            "command": result.command,
            "verdict": result.violation or "all invariants held",
            "is_ok": result.is_ok,
            "end_ms": end_ms,
            "calm_ms": result.scenario.calm_ms,
            "nodes": names,
            "kinds": KINDS,
            "steps": [(at, place.get(node, -1), kind, text) for at, node, kind, text in self._steps],
            "down": [(place[node], start, end) for node, start, end in down if node in place],
            "finals": sorted(self._finals.values(), key=lambda item: item.at_ms),
            "flights": [
                Flight(at, self._delivered.get(link, -1), *link, kind)
                for link, (at, kind) in sorted(self._emitted.items(), key=lambda item: item[1][0])
            ],
        }


def write_page(recorder: Recorder, result: Result, path: Path) -> int:
    """Write the recording of ``result`` as one HTML file; return its size in bytes.

    Raises ``OSError`` when it cannot be written.
    """
    encoded = msgspec.json.encode(recorder.build(result)).decode()
    # Nothing that a run says may end the script it stands in.
    page = TEMPLATE.read_text(encoding="utf-8").replace(MARK, encoded.replace("</", "<\\/"))
    return path.write_bytes(page.encode())
