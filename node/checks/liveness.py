"""``liveness``: every chain makes final blocks, and the beacon goes on accepting the shards' (I7)."""

import asyncio
import contextlib
import time
from typing import Any, Final

import msgspec

from node.checks.verdict import Verdict, Witnesses, build_verdict
from node.network import Network, parse_node
from shardyard.ids import BEACON, ShardId, describe_shard

POLL_S: Final = 0.1
WANTED_BLOCKS: Final = 2
"""New final blocks that a chain must show: one could have been on its way when it stood still."""


class Growth(msgspec.Struct):
    """How one chain grew, from the first answer of its nodes on: what nobody has seen before is no growth."""

    chain: str
    nodes: int
    before: int | None = None
    """Highest of the heights that its nodes answered with when they first did; None while none has."""
    after: int = 0
    answering: int = 0
    grown_s: float = -1.0
    """After how many seconds it had grown enough; -1 for not."""

    @property
    def blocks(self) -> int:
        """New final blocks."""
        return 0 if self.before is None else max(0, self.after - self.before)

    def note(self, known: set[str], heights: dict[str, int], passed_s: float) -> None:
        """Take the ``heights`` of its nodes that answer now; those not yet ``known`` only tell where it stood."""
        self.answering = len(heights)
        if not heights:
            return
        self.after = max(self.after, *heights.values())
        fresh = [height for node, height in heights.items() if node not in known]
        if self.grown_s < 0 and fresh:
            self.before = max(self.before or 0, *fresh)
        known |= set(heights)
        if self.grown_s < 0 and self.blocks >= WANTED_BLOCKS:
            self.grown_s = round(passed_s, 2)


class Watch:
    """What the nodes of a network answer; each is asked again and again by itself, so that none waits for a silent one."""

    def __init__(self, witnesses: Witnesses) -> None:
        self.witnesses = witnesses
        self.before: dict[ShardId, int] = {}
        """Up to which height the beacon had accepted each shard when it first said; empty until then."""
        self.accepted: dict[ShardId, int] = {}
        """Up to which height it has, as it last said."""
        self.chains = {
            chain: Growth(chain=describe_shard(chain), nodes=len(witnesses.list_nodes(chain)))
            for chain in witnesses.network.genesis.committees
        }
        self.has_seen_all = asyncio.Event()
        """Every chain has grown, and the beacon accepted more of every shard."""
        self._started = time.monotonic()
        self._known: set[str] = set()
        self._heights: dict[ShardId, dict[str, int]] = {chain: {} for chain in self.chains}

    @property
    def passed_s(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self._started

    async def follow_heights(self, node: str) -> None:
        """Ask ``node`` for its final height until cancelled."""
        chain, _ = parse_node(node)
        heights = self._heights[chain]
        while True:
            found = await self.witnesses.ask(node, "finals", first=1, count=1)
            if found is None:
                heights.pop(node, None)
            else:
                heights[node] = int(found["height"])
            self.chains[chain].note(self._known, heights, self.passed_s)
            self._judge_end()
            await asyncio.sleep(POLL_S)

    async def follow_books(self) -> None:
        """Ask the beacon what it has accepted until cancelled."""
        while True:
            books = await self.witnesses.ask("beacon-0", "supply")
            if books is not None:
                self.accepted = {ShardId(row["shard"]): int(row["height"]) for row in books["shards"]}
                self.before = self.before or self.accepted
                self._judge_end()
            await asyncio.sleep(POLL_S)

    def _judge_end(self) -> None:
        has_grown = all(growth.grown_s >= 0 for growth in self.chains.values())
        if has_grown and _has_moved(self.before, self.accepted):
            self.has_seen_all.set()

    def note_unheard(self) -> None:
        """Count those as silent that never answered, although nobody has given up on them yet."""
        for node in self.witnesses.network.nodes:
            if node not in self._known:
                self.witnesses.silent.setdefault(node, "no answer yet")


async def check_liveness(network: Network, within_s: float) -> Verdict:
    """Watch all chains grow, for at most ``within_s`` seconds."""
    watch = Watch(Witnesses(network))
    async with asyncio.TaskGroup() as group:
        asking = [group.create_task(watch.follow_heights(node), name=f"ask {node}") for node in network.nodes]
        asking.append(group.create_task(watch.follow_books(), name="ask beacon-0 for its books"))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await watch.has_seen_all.wait()
        passed_s = watch.passed_s
        for task in asking:
            task.cancel()
    watch.note_unheard()
    return _judge(watch.witnesses, watch.chains, watch.before, watch.accepted, passed_s)


def _has_moved(before: dict[ShardId, int], after: dict[ShardId, int]) -> bool:
    return bool(before) and all(after.get(shard, 0) > height for shard, height in before.items())


def _judge(
    witnesses: Witnesses,
    chains: dict[ShardId, Growth],
    before: dict[ShardId, int],
    accepted: dict[ShardId, int],
    passed: float,
) -> Verdict:
    standing = [
        f"{growth.chain}: {growth.blocks} new final blocks in {passed:.1f} s, "
        f"{'from an unknown height' if growth.before is None else f'from height {growth.before}'}; "
        f"{growth.answering} of {growth.nodes} nodes answer"
        for growth in chains.values()
        if growth.grown_s < 0
    ]
    findings = [
        *standing,
        *(
            f"{describe_shard(shard)}: the beacon accepted nothing beyond height {height} in {passed:.1f} s"
            for shard, height in before.items()
            if accepted.get(shard, 0) <= height and chains[BEACON].grown_s >= 0 and chains[shard].grown_s >= 0
        ),
    ]
    if not before:
        findings.append(f"the beacon showed no books in {passed:.1f} s: no answer from beacon-0")
    words = (
        f"{len(chains)} chains made {sum(growth.blocks for growth in chains.values())} final blocks in {passed:.1f} s, "
        f"and the beacon accepted {sum(accepted.values()) - sum(before.values())} of the shards'"
    )
    if standing:
        words = f"{len(standing)} of {len(chains)} chains stand still"
    elif findings:
        words = "the chains grow, and the beacon does not accept all of them"
    figures: dict[str, Any] = {
        "seconds": round(passed, 2),
        "chains": [msgspec.structs.asdict(growth) for growth in chains.values()],
        "accepted": {describe_shard(shard): [height, accepted[shard]] for shard, height in before.items()},
        "silent": sorted(witnesses.silent),
    }
    return build_verdict("liveness", words + witnesses.describe_silent(), figures, findings)
