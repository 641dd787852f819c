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
    """How one chain grew: final heights, and after how many seconds it had grown enough; -1 for not."""

    chain: str
    before: int
    after: int
    nodes: int
    answering: int
    grown_s: float = -1.0


async def read_heights(witnesses: Witnesses) -> dict[ShardId, tuple[int, int]]:
    """Return, by chain, the highest final height that any of its nodes has, and how many of them answer."""
    found: dict[ShardId, tuple[int, int]] = {}
    for node, answer in (await witnesses.ask_all("finals", first=1, count=1)).items():
        chain, _ = parse_node(node)
        height, count = found.get(chain, (0, 0))
        found[chain] = (max(height, int(answer["height"])), count + 1)
    return found


async def read_accepted(witnesses: Witnesses) -> dict[ShardId, int]:
    """Return up to which height the beacon has accepted each shard; nothing when it does not answer."""
    books = await witnesses.ask("beacon-0", "supply")
    return {} if books is None else {ShardId(row["shard"]): int(row["height"]) for row in books["shards"]}


async def check_liveness(network: Network, within_s: float) -> Verdict:
    """Watch all chains grow, for at most ``within_s`` seconds."""
    witnesses = Witnesses(network)
    started = time.monotonic()
    first, accepted_before = await read_heights(witnesses), await read_accepted(witnesses)
    chains = {
        chain: Growth(
            chain=describe_shard(chain),
            before=first.get(chain, (0, 0))[0],
            after=first.get(chain, (0, 0))[0],
            nodes=len(witnesses.list_nodes(chain)),
            answering=first.get(chain, (0, 0))[1],
        )
        for chain in network.genesis.committees
    }
    accepted: dict[ShardId, int] = {}
    passed = 0.0
    while passed < within_s:
        await asyncio.sleep(POLL_S)
        heights, accepted = await read_heights(witnesses), await read_accepted(witnesses)
        passed = time.monotonic() - started
        for chain, growth in chains.items():
            height, growth.answering = heights.get(chain, (growth.after, 0))
            growth.after = max(growth.after, height)
            if growth.grown_s < 0 and growth.after >= growth.before + WANTED_BLOCKS:
                growth.grown_s = round(passed, 2)
        if all(growth.grown_s >= 0 for growth in chains.values()) and _has_moved(accepted_before, accepted):
            break
    return _judge(witnesses, chains, accepted_before, accepted, passed)


def _has_moved(before: dict[ShardId, int], after: dict[ShardId, int]) -> bool:
    return bool(before) and all(after.get(shard, 0) > height for shard, height in before.items())


def _judge(
    witnesses: Witnesses,
    chains: dict[ShardId, Growth],
    before: dict[ShardId, int],
    accepted: dict[ShardId, int],
    passed: float,
) -> Verdict:
    findings = [
        f"{growth.chain}: {growth.after - growth.before} new final blocks in {passed:.1f} s, from height {growth.before}; "
        f"{growth.answering} of {growth.nodes} nodes answer"
        for growth in chains.values()
        if growth.grown_s < 0
    ]
    findings += [
        f"{describe_shard(shard)}: the beacon accepted nothing beyond height {height} in {passed:.1f} s"
        for shard, height in before.items()
        if accepted.get(shard, 0) <= height and chains[BEACON].grown_s >= 0 and chains[shard].grown_s >= 0
    ]
    grown = sum(growth.after - growth.before for growth in chains.values())
    words = (
        f"{len(chains)} chains made {grown} final blocks in {passed:.1f} s, "
        f"and the beacon accepted {sum(accepted.values()) - sum(before.values())} of the shards'"
    )
    if findings:
        words = f"{len(findings)} of {len(chains)} chains stand still"
    figures: dict[str, Any] = {
        "seconds": round(passed, 2),
        "chains": [msgspec.structs.asdict(growth) for growth in chains.values()],
        "accepted": {
            describe_shard(shard): [height, accepted.get(shard, height)] for shard, height in before.items()
        },
        "silent": sorted(witnesses.silent),
    }
    return build_verdict("liveness", words + witnesses.describe_silent(), figures, findings)
