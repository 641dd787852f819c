"""``liveness``: every chain makes final blocks, and the beacon goes on accepting the shards' (I7)."""

import asyncio
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


async def read_heights(witnesses: Witnesses) -> dict[ShardId, dict[str, int]]:
    """Return, by chain, the final height of each of its nodes that answers."""
    found: dict[ShardId, dict[str, int]] = {}
    for node, answer in (await witnesses.ask_all("finals", first=1, count=1)).items():
        found.setdefault(parse_node(node)[0], {})[node] = int(answer["height"])
    return found


async def read_accepted(witnesses: Witnesses) -> dict[ShardId, int]:
    """Return up to which height the beacon has accepted each shard; nothing when it does not answer."""
    books = await witnesses.ask("beacon-0", "supply")
    return {} if books is None else {ShardId(row["shard"]): int(row["height"]) for row in books["shards"]}


async def check_liveness(network: Network, within_s: float) -> Verdict:
    """Watch all chains grow, for at most ``within_s`` seconds."""
    witnesses = Witnesses(network)
    started = time.monotonic()
    chains = {
        chain: Growth(chain=describe_shard(chain), nodes=len(witnesses.list_nodes(chain)))
        for chain in network.genesis.committees
    }
    known: set[str] = set()
    before: dict[ShardId, int] = {}
    accepted: dict[ShardId, int] = {}
    while True:
        heights, books = await read_heights(witnesses), await read_accepted(witnesses)
        passed = time.monotonic() - started
        for chain, growth in chains.items():
            growth.note(known, heights.get(chain, {}), passed)
        before = before or books
        accepted = books or accepted
        has_grown = all(growth.grown_s >= 0 for growth in chains.values())
        if (has_grown and _has_moved(before, accepted)) or passed >= within_s:
            return _judge(witnesses, chains, before, accepted, passed)
        await asyncio.sleep(POLL_S)


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
