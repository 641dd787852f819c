"""The same checks from the block logs of a network, which may be stopped: the auditor's rules, a promise at a time."""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from crosslink.ledger import read_body
from node.audit.audit import audit_network, open_logs, read_logs, verify_chains
from node.audit.findings import Findings, Promise
from node.audit.logs import ChainLog
from node.audit.stretches import Stretch
from node.checks.verdict import Verdict, build_verdict
from node.network import Network
from shardyard.errors import InvalidBlockError
from shardyard.ids import BEACON, Hash32, ShardId, describe_shard
from shardyard.keys import BlsCrypto

Progress = Callable[[str], None]


def _collect(findings: Findings, *promises: Promise) -> list[str]:
    return [text for promise in promises for text in findings.rows[promise].findings]


def check_finality_logs(network: Network) -> Verdict:
    """Verify every justification and finality proof in the logs, from genesis on; nothing is executed."""
    findings, crypto = Findings(), BlsCrypto()
    opened: list[ChainLog] = []
    try:
        replicas = open_logs(network, findings, opened)
        hashes, verified = verify_chains(network, replicas, crypto, findings, lambda _: None)
    finally:
        for log in opened:
            log.close()
    rows: list[dict[str, Any]] = [
        {"chain": describe_shard(chain), "blocks": len(found) - 1} for chain, found in hashes.items()
    ]
    broken = _collect(findings, Promise.LOGS, Promise.CHAINS, Promise.FINALITY)
    blocks = sum(row["blocks"] for row in rows)
    words = (
        f"{blocks} final blocks of {len(rows)} chains verify from genesis on, {verified} certificates, by the logs"
        if not broken
        else "the logs do not prove what they say"
    )
    return build_verdict("finality", words, {"chains": rows, "certificates": verified}, broken)


def check_no_forks_logs(network: Network) -> Verdict:
    """Compare the final blocks in the logs of all nodes of each chain, the heads that the beacon accepted, and the blocks of
    the beacon that shards followed.
    """
    findings = Findings()
    opened: list[ChainLog] = []
    forks: list[str] = []
    rows: list[dict[str, Any]] = []
    try:
        replicas = read_logs(network, findings, opened)
        accepted = _read_accepted(network, replicas[BEACON], findings)
        followed = [log.followed for chain, logs in replicas.items() if chain != BEACON for log in logs]
        for chain, logs in replicas.items():
            name, last = describe_shard(chain), max(log.height for log in logs)
            own = [span for log in logs for span in log.spans]
            heads = accepted[chain]
            if (top := max(heads, default=0)) > last:
                findings.add(Promise.CHAINS, name, f"the beacon accepted block {top}, the logs end at {last}")
            compared, forked = _compare(name, [*own, *followed] if chain == BEACON else own, heads)
            forks += forked
            heights = {log.node: log.height for log in logs}
            rows.append({"chain": name, "heights": heights, "compared": compared})
    finally:
        for log in opened:
            log.close()
    forks += _collect(findings, Promise.FINALITY)  # one log with two final blocks at one height
    unread = _collect(findings, Promise.LOGS, Promise.CHAINS)
    compared = sum(row["compared"] for row in rows)
    words = "FORKED" if forks else f"no two logs differ in {compared} heights of {len(rows)} chains"
    if unread and not forks:
        words = f"not all heights can be compared; {words}"
    return build_verdict("no-forks", words, {"chains": rows, "compared": compared}, forks + unread)


def _compare(
    name: str, stretches: Sequence[Stretch], accepted: Mapping[int, Collection[Hash32]]
) -> tuple[int, list[str]]:
    """Return how many heights several of ``stretches``, or one and the beacon, have a final block of, and the forks found."""
    compared, forked, words = 0, 0, ""
    for height in _iterate_heights(stretches):
        sides: dict[Hash32, list[str]] = defaultdict(list)
        for stretch in stretches:
            if (found := stretch.find_hash(height)) is not None:
                sides[found].append(stretch.owner)
        for head in accepted.get(height, ()):
            sides[head].append("the beacon")
        compared += sum(map(len, sides.values())) > 1
        if len(sides) > 1:
            words = words or f"first at {height}: {_describe_sides(sides)}"
            forked += 1
    return compared, [f"{name}: {forked} heights with several final blocks, {words}"] if forked else []


def _iterate_heights(stretches: Sequence[Stretch]) -> Iterator[int]:
    """Yield the heights of which one of ``stretches`` has a block, lowest first."""
    end = 0
    for stretch in sorted(stretches, key=lambda stretch: stretch.first):
        yield from range(max(stretch.first, end), stretch.last + 1)
        end = max(end, stretch.last + 1)


def _describe_sides(sides: Mapping[Hash32, Collection[str]]) -> str:
    return "; ".join(f"{', '.join(names)}: 0x{found.hex()[:16]}…" for found, names in sides.items())


def _read_accepted(
    network: Network, logs: Sequence[ChainLog], findings: Findings
) -> dict[ShardId, dict[int, set[Hash32]]]:
    """Return the heads that the beacon's final blocks accepted, by shard and height."""
    accepted: dict[ShardId, dict[int, set[Hash32]]] = {chain: {} for chain in network.genesis.committees}
    for log in logs:
        for block, _ in (final for span in log.spans for final in log.iterate_finals(span)):
            try:
                crosslinks = read_body(network.genesis, block).crosslinks
            except InvalidBlockError as error:
                findings.add(Promise.CHAINS, log.node, str(error))
                continue
            for crosslink in crosslinks:
                heads = accepted[crosslink.shard].setdefault(crosslink.last_height, set())
                heads.add(crosslink.head_hash)
    return accepted


def check_conservation_logs(network: Network, progress: Progress | None = None) -> Verdict:
    """Execute every block again and count all wei at every beacon height."""
    report = audit_network(network, None, progress)
    rows = {row.promise: row for row in report.rows}
    # Any finding counts: the walk may have stopped there, and the sum rests on every block that it went through.
    promises = (Promise.SUPPLY, *(promise for promise in Promise if promise is not Promise.SUPPLY))
    broken = [text for promise in promises for text in rows[promise].findings]
    beacon = next(chain for chain in report.chains if chain.chain == describe_shard(BEACON))
    sums = rows[Promise.SUPPLY].examined
    if rows[Promise.SUPPLY].broken:
        words = "the sum does not hold"
    elif broken:
        words = f"the logs do not prove the sum; it was counted up to beacon height {beacon.executed} and held there"
    else:
        words = f"all wei are those of genesis at {beacon.executed} beacon heights, {sums} sums, by the logs"
    figures = {
        "beacon_height": beacon.executed,
        "sums": sums,
        "in_flight": report.in_flight,
    }
    return build_verdict("conservation", words, figures, broken)
