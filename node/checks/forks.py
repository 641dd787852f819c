"""``no-forks``: whatever two nodes call final at one height is one block, and the beacon means the same one (I5)."""

from collections import defaultdict
from typing import Any, Final

from node.checks.verdict import Verdict, Witnesses, build_verdict
from node.network import Network, parse_node
from shardyard.ids import ShardId, describe_shard

DEFAULT_BLOCKS: Final = 256
CHUNK: Final = 512


async def check_no_forks(network: Network, blocks: int = DEFAULT_BLOCKS) -> Verdict:
    """Compare the final blocks of all nodes at equal heights, the last ``blocks`` of the node furthest behind and all above.

    ``blocks`` 0 compares from genesis on. What the beacon accepted is compared as well.
    """
    witnesses = Witnesses(network)
    findings: list[str] = []
    rows: list[dict[str, Any]] = []
    books = await witnesses.ask("beacon-0", "supply")
    heads = await witnesses.ask_all("finals", first=1, count=1)
    unseen: list[str] = []
    for chain in network.genesis.committees:
        nodes = witnesses.list_nodes(chain)
        heights = {node: int(heads[node]["height"]) for node in nodes if node in heads}
        if not heights:
            unseen.append(f"{describe_shard(chain)}: no node answers")
            continue
        first = max(1, min(heights.values()) - blocks + 1) if blocks else 1
        by_height: dict[int, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
        for node, height in heights.items():
            found, end = await _read_hashes(witnesses, node, first, height)
            for at, block_hash in found.items():
                by_height[at][block_hash].append(node)
            if end <= height:
                why = witnesses.silent.get(node, "its answer ends there")
                unseen.append(f"{node}: it is at height {height} and gave no hash of {end} and above: {why}")
        if books is not None:
            _add_accepted(by_height, books, chain)
        forked = [height for height in sorted(by_height) if len(by_height[height]) > 1]
        if forked:
            sides = "; ".join(
                f"{', '.join(names)}: 0x{found[:16]}…" for found, names in by_height[forked[0]].items()
            )
            findings.append(
                f"{describe_shard(chain)}: {len(forked)} heights with several final blocks, first at {forked[0]}: {sides}"
            )
        compared = [height for height, found in by_height.items() if sum(map(len, found.values())) > 1]
        rows.append(
            {"chain": describe_shard(chain), "first": first, "heights": heights, "compared": len(compared)}
        )
    evidence = {
        node: found["evidence"]
        for node, found in (await witnesses.ask_all("status")).items()
        if found.get("evidence")
    }
    compared = sum(row["compared"] for row in rows)
    words = "FORKED" if findings else f"no two nodes differ in {compared} heights of {len(rows)} chains"
    if unseen and not findings:
        words = f"{len(unseen)} chains or nodes cannot be compared; {words}"
    if evidence:
        words += f"; evidence against {describe_accused(evidence)}"
    figures = {"chains": rows, "evidence": evidence, "silent": sorted(witnesses.silent)}
    return build_verdict("no-forks", words + witnesses.describe_silent(), figures, [*findings, *unseen])


def describe_accused(evidence: dict[str, dict[str, int]]) -> str:
    """Return whom the ``evidence`` of each node accuses, and which nodes have it, in words."""
    holders: dict[str, list[str]] = defaultdict(list)
    for node, accusations in evidence.items():
        chain, _ = parse_node(node)
        for accused in sorted({words.partition(":")[0] for words in accusations}):
            holders[f"{accused} of {describe_shard(chain)}"].append(node)
    return "; ".join(f"{accused}, held by {', '.join(nodes)}" for accused, nodes in holders.items())


async def _read_hashes(witnesses: Witnesses, node: str, first: int, last: int) -> tuple[dict[int, str], int]:
    """Return the hashes that ``node`` calls final, by height, and the height after them.

    They begin where its history does, after a snapshot.
    """
    found: dict[int, str] = {}
    start = first
    while start <= last:
        answer = await witnesses.ask(node, "finals", first=start, count=min(CHUNK, last + 1 - start))
        if answer is None:
            break
        begin, hashes = int(answer["first"]), list(map(str, answer["hashes"]))
        end = begin + len(hashes)
        if begin < start or end <= start:
            break  # it has no more, or says what was not asked
        found.update(enumerate(hashes, start=begin))
        start = end
    return found, start


def _add_accepted(by_height: dict[int, dict[str, list[str]]], books: dict[str, Any], chain: ShardId) -> None:
    for row in books["shards"]:
        if row["shard"] == chain and row["height"] in by_height:
            by_height[row["height"]][row["head"]].append("the beacon")
