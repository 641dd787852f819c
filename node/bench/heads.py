"""Final heights of every node of a network as they move: how fast chains go, how long they stand still, who is behind."""

import asyncio
import time
from itertools import pairwise
from typing import Final, Self

import msgspec

from node.bench.devnet import Devnet
from node.bench.report import say
from node.control import ControlError
from node.network import parse_node
from shardyard.ids import describe_shard

POLL_S: Final = 0.05
STANDSTILL_S: Final = 1.0
"""By how much the reader may be late before the machine, and not the network, stood still."""


class Progress(msgspec.Struct, frozen=True):
    """What one chain did during a while."""

    chain: str
    seconds: float
    blocks: int
    blocks_per_s: float
    longest_gap_s: float
    """Without a new final block, the wait at either end included."""


class HeadBook:
    """Reads all nodes again and again while entered."""

    def __init__(self, devnet: Devnet) -> None:
        self._devnet = devnet
        self._moves: dict[str, list[tuple[float, int]]] = {}
        """When a chain's highest final block was seen first."""
        self._heights: dict[str, int] = {}
        self._reader: asyncio.Task[None] | None = None
        self.stood_still_s = 0.0
        """How long this process itself did not run when it should have: what it saw meanwhile is nobody's pace."""

    async def __aenter__(self) -> Self:
        self._reader = asyncio.create_task(self._read(), name="heads")
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        assert self._reader is not None, "entered before"
        if self._reader.done():
            self._reader.result()  # it reads for ever: it failed
        self._reader.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)

    async def _read(self) -> None:
        async with asyncio.TaskGroup() as readers:
            for node in self._devnet.network.nodes:
                readers.create_task(self._read_node(node), name=f"head of {node}")
            readers.create_task(self._watch_machine(), name="standstill")

    async def _watch_machine(self) -> None:
        while True:
            slept = time.monotonic()
            await asyncio.sleep(POLL_S)
            late_s = time.monotonic() - slept - POLL_S
            if late_s > STANDSTILL_S:
                self.stood_still_s += late_s
                say(
                    f"    this machine held everything for {late_s:.1f} s: what is measured now is worth nothing"
                )

    async def _read_node(self, node: str) -> None:
        """Read one node, which may be asleep and answer nothing for long: nobody else's reading waits for it."""
        moves = self._moves.setdefault(describe_shard(parse_node(node)[0]), [])
        while True:
            try:
                found = await self._devnet.ask(node, "finals", first=1, count=1)
            except ControlError:
                pass  # down, or asleep
            else:
                height = self._heights[node] = int(found["height"])
                if not moves or height > moves[-1][1]:
                    moves.append((time.monotonic(), height))
            await asyncio.sleep(POLL_S)

    def get_height(self, chain: str) -> int:
        """Return the highest final height of ``chain``."""
        moves = self._moves.get(chain)
        return moves[-1][1] if moves else 0

    def get_node_height(self, node: str) -> int:
        """Return the final height that ``node`` told last."""
        return self._heights.get(node, 0)

    def compute_progress(self, chain: str, begin: float, end: float) -> Progress:
        """Return what ``chain`` did from ``begin`` to ``end`` (monotonic seconds)."""
        moves = self._moves.get(chain, [])
        before = [height for at, height in moves if at < begin]
        inside = [(at, height) for at, height in moves if begin <= at <= end]
        instants = [begin, *(at for at, _ in inside), end]
        start = before[-1] if before else inside[0][1] if inside else 0
        blocks = inside[-1][1] - start if inside else 0
        return Progress(
            chain=chain,
            seconds=round(end - begin, 2),
            blocks=blocks,
            blocks_per_s=round(blocks / (end - begin), 3),
            longest_gap_s=round(max(later - earlier for earlier, later in pairwise(instants)), 2),
        )

    async def watch(self, chains: list[str], seconds: float) -> list[Progress]:
        """Watch for ``seconds`` and return what ``chains`` did meanwhile."""
        begin = time.monotonic()
        await asyncio.sleep(seconds)
        end = time.monotonic()
        found = [self.compute_progress(chain, begin, end) for chain in chains]
        for one in found:
            say(
                f"    {one.chain:<8} {one.blocks:3d} final blocks in {one.seconds:.0f} s, "
                f"{one.blocks_per_s:.2f}/s, longest gap {one.longest_gap_s:.2f} s"
            )
        return found

    async def wait_beyond(self, wanted: dict[str, int], give_up_s: float) -> float:
        """Return after how many seconds every node of ``wanted`` is beyond its height; ``give_up_s`` for never."""
        started = time.monotonic()
        while any(self.get_node_height(node) <= height for node, height in wanted.items()):
            if time.monotonic() - started > give_up_s:
                behind = [node for node, height in wanted.items() if self.get_node_height(node) <= height]
                say(f"    not within {give_up_s:.0f} s: {', '.join(behind)}")
                return give_up_s
            await asyncio.sleep(POLL_S / 2)
        return round(time.monotonic() - started, 2)
