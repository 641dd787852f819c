"""``conservation``: all wei at one beacon height are counted, account by account, and are those of genesis (X11, I1).

The beacon says where each shard stood and what its books leave there; the shard's own process adds up every account in
the state after that very block. What is on shards, in flight and burnt must be what genesis made.
"""

from typing import Any, Final

from node.checks.verdict import Verdict, Witnesses, build_verdict
from node.network import Network
from shardyard.ids import ShardId, describe_shard

ATTEMPTS: Final = 3
"""A shard's node may be a moment behind the beacon, or have let go of the state: a newer cut is tried."""


async def check_conservation(network: Network) -> Verdict:
    """Count all wei at the beacon's last final block."""
    witnesses = Witnesses(network)
    books: dict[str, Any] | None = None
    counted: dict[int, int] = {}
    for _ in range(ATTEMPTS):
        books = await witnesses.ask("beacon-0", "supply")
        if books is None:
            continue
        counted = {
            row["shard"]: wei for row in books["shards"] if (wei := await _count(witnesses, row)) is not None
        }
        if len(counted) == len(books["shards"]):
            break
    if books is None:
        return build_verdict("conservation", "the beacon does not answer", {}, ["no answer from beacon-0"])
    made = [int.from_bytes(shard.supply, "big") for shard in network.genesis.shards]
    return judge_supply(books, counted, made, witnesses.describe_silent())


async def _count(witnesses: Witnesses, row: dict[str, Any]) -> int | None:
    """Return the wei of all accounts of a shard at the block of its last crosslink, from the first node that has them."""
    shards = witnesses.network.genesis.shards
    if not row["height"] and row["shard"] in range(len(shards)):
        return int.from_bytes(shards[row["shard"]].supply, "big")  # no crosslink yet: its state is genesis
    for node in witnesses.list_nodes(ShardId(row["shard"])):
        found = await witnesses.ask(node, "supply", hash=row["head"])
        if found is not None:
            return int(found["wei"])
    return None


def judge_supply(
    books: dict[str, Any], counted: dict[int, int], made: list[int], silent: str = ""
) -> Verdict:
    """Return the verdict on the beacon's ``books``, with the wei ``counted`` by shard and those that genesis ``made`` of each."""
    findings: list[str] = []
    is_wrong = False
    listed = sorted(row["shard"] for row in books["shards"])
    if listed != list(range(len(made))):
        findings.append(f"the beacon's books are about shards {listed}, expected each of {len(made)} once")
    for row in books["shards"]:
        name, wei = describe_shard(row["shard"]), counted.get(row["shard"])
        if wei is None:
            findings.append(f"{name}: no node could count its wei at height {row['height']}")
        elif wei != int(row["balance"]):
            is_wrong = True
            findings.append(
                f"{name}: its accounts hold {wei} wei at height {row['height']}, the beacon's books say {row['balance']}"
            )
    in_flight = sum(int(row["in_flight"]) for row in books["shards"])
    burnt = sum(int(row["burnt"]) for row in books["shards"])
    genesis, held = sum(made), sum(counted.values())
    total = held + in_flight + burnt
    if int(books["genesis"]) != genesis:
        is_wrong = True
        findings.append(f"genesis made {genesis} wei, the beacon's books say {books['genesis']}")
    if len(counted) == len(made) and total != genesis:
        is_wrong = True
        findings.append(f"got {total} wei in all, genesis made {genesis}: {total - genesis:+} wei")
    words = (
        f"at beacon height {books['height']}: {_format_ether(held)} on shards + {_format_ether(in_flight)} in flight + "
        f"{_format_ether(burnt)} burnt = {_format_ether(total)} ether, as genesis made"
        if not findings
        else f"the sum {'does not hold' if is_wrong else 'cannot be counted'} at beacon height {books['height']}"
    )
    figures = {
        "beacon_height": books["height"],
        "genesis": str(genesis),
        "on_shards": {describe_shard(shard): str(wei) for shard, wei in counted.items()},
        "in_flight": str(in_flight),
        "burnt": str(burnt),
        "total": str(total),
    }
    return build_verdict("conservation", words + silent, figures, findings)


def _format_ether(wei: int) -> str:
    return f"{wei // 10**18:,}.{wei % 10**18:018d}".rstrip("0").rstrip(".")
