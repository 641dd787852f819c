"""The whole audit of a network: read all logs, check each chain, go through the beacon's blocks, sum up."""

import time
from collections.abc import Callable, Sequence

import msgspec

from node.audit.answered import Answered, AnsweredBook, AnsweredSummary
from node.audit.beacon import BeaconReplay
from node.audit.chains import CertificateBook, compare_replicas, verify_chain, verify_followed
from node.audit.findings import Findings, Promise, Row
from node.audit.flow import MessageFlow
from node.audit.logs import ChainLog
from node.audit.replay import ShardReplay
from node.audit.stretches import Hashes
from node.network import Network, parse_node
from shardyard.ids import BEACON, NodeId, ShardId, describe_shard
from shardyard.keys import BlsCrypto

REPORT_VERSION = 1
Progress = Callable[[str], None]


class ChainReport(msgspec.Struct, frozen=True):
    """One chain as it was audited."""

    chain: str
    node: str
    height: int
    executed: int
    """Height up to which its blocks were executed, or judged for the beacon."""
    transactions: int
    records: int
    unfinished_bytes: int
    """End of the log that was never completed: nobody was told that it was durable."""


class AuditReport(msgspec.Struct, frozen=True):
    """The verdict on a network."""

    version: int
    network: str
    held: bool
    seconds: float
    chains: tuple[ChainReport, ...]
    rows: tuple[Row, ...]
    messages_emitted: int
    messages_delivered: int
    in_flight: int
    """Messages emitted and not delivered when the logs ended."""
    answered: AnsweredSummary | None


def audit_network(
    network: Network, answered: Sequence[Answered] | None = None, progress: Progress | None = None
) -> AuditReport:
    """Audit the logs of ``network``, which may be stopped or running; they are only read."""
    started = time.monotonic()
    say = progress or (lambda _: None)
    findings = Findings()
    crypto = BlsCrypto()
    opened: list[ChainLog] = []
    try:
        replicas = open_logs(network, findings, opened)
        say(f"read {sum(log.records for log in opened)} records of {len(opened)} nodes")
        hashes, _ = verify_chains(network, replicas, crypto, findings, say)
        flow = MessageFlow(network.genesis.shard_count, findings)
        book = AnsweredBook(answered or (), findings)
        alloc = network.read_alloc()
        shards = [
            ShardReplay(network.genesis, replicas[shard], hashes[shard], alloc, flow, book, findings)
            for shard in map(ShardId, range(network.genesis.shard_count))
        ]
        beacon = BeaconReplay(
            network.genesis, replicas[BEACON], hashes[BEACON], shards, flow, crypto, findings
        )
        beacon.run()
        beacon.finish()
        verify_ends(network, shards, findings)
        say(
            f"executed {sum(shard.height for shard in shards)} blocks with {sum(s.transactions for s in shards)} transactions"
        )
        summary = judge_answered(book, shards, flow) if answered is not None else None
        reports = [_report(replicas[BEACON], beacon.height, 0)]
        reports += [_report(replicas[shard.shard], shard.height, shard.transactions) for shard in shards]
    finally:
        for log in opened:
            log.close()
    return AuditReport(
        version=REPORT_VERSION,
        network=network.genesis.network.hex(),
        held=findings.all_held,
        seconds=round(time.monotonic() - started, 2),
        chains=tuple(reports),
        rows=tuple(findings.rows.values()),
        messages_emitted=flow.emitted,
        messages_delivered=flow.delivered,
        in_flight=flow.count_in_flight(),
        answered=summary,
    )


def verify_chains(
    network: Network,
    replicas: dict[ShardId, list[ChainLog]],
    crypto: BlsCrypto,
    findings: Findings,
    say: Progress,
) -> tuple[dict[ShardId, Hashes], int]:
    """Check each chain by itself in all its logs, and what shards followed of the beacon; nothing is executed.

    Returns the hashes of each chain, genesis first, and how many certificates were verified.
    """
    genesis = network.genesis
    books = {chain: CertificateBook(genesis, chain, crypto, findings) for chain in replicas}
    hashes: dict[ShardId, Hashes] = {}
    for chain, logs in replicas.items():
        hashes[chain] = verify_chain(genesis, logs, books[chain], books[BEACON], findings)
        say(f"{describe_shard(chain)}: {len(hashes[chain]) - 1} blocks, headers and certificates checked")
    followers = [log for chain, logs in replicas.items() if chain != BEACON for log in logs]
    verify_followed(followers, hashes[BEACON], books[BEACON], findings)
    return hashes, sum(book.verified for book in books.values())


def judge_answered(book: AnsweredBook, shards: Sequence[ShardReplay], flow: MessageFlow) -> AnsweredSummary:
    """Return what became of all answered transactions, when everything that can be was executed."""
    for shard in shards:
        shard.note_unexecuted()
    in_flight = {(item.receipt.dst, bytes(item.receipt.id)) for item in flow.iterate_in_flight()}
    return book.finish(lambda shard, address: shards[shard].get_nonce(address), in_flight)


def read_logs(network: Network, findings: Findings, opened: list[ChainLog]) -> dict[ShardId, list[ChainLog]]:
    """Return the logs of every chain, in order of nodes. The beacon's is read first: a running network grows."""
    by_chain: dict[ShardId, list[ChainLog]] = {}
    for node in network.nodes:
        chain, _ = parse_node(node)
        by_chain.setdefault(chain, []).append(read_log(network, node, findings, opened))
    return by_chain


def open_logs(network: Network, findings: Findings, opened: list[ChainLog]) -> dict[ShardId, list[ChainLog]]:
    """Return the logs of every chain as ``read_logs`` does, the one to audit first."""
    by_chain = read_logs(network, findings, opened)
    return {chain: compare_replicas(logs, findings) for chain, logs in by_chain.items()}


def read_log(network: Network, node: NodeId, findings: Findings, opened: list[ChainLog]) -> ChainLog:
    """Return the log of ``node``, noted in ``opened`` for whoever closes it."""
    path = network.get_data_dir(node) / "blocks"
    log = ChainLog(path, node, parse_node(node)[0], network.genesis.network, findings)
    opened.append(log)
    return log


def verify_ends(network: Network, shards: Sequence[ShardReplay], findings: Findings) -> None:
    """Find blocks that were not checked because no log of the beacon has the block that they refer to."""
    waiting = [
        (shard, shard.awaited)
        for shard in shards
        if shard.awaited is not None and shard.height < shard.last_height and not shard.broken
    ]
    if not waiting:
        return
    # The beacon's logs were read before the shards': in a running network shards may be ahead of what was read.
    # A reference comes with the proof that its block is final (X0), and the beacon writes down what is final before it
    # tells anybody: in a second reading it must be there.
    # What is wrong in these logs was found in the first.
    opened: list[ChainLog] = []
    try:
        for node in network.nodes:
            if parse_node(node)[0] == BEACON:
                read_log(network, node, Findings(), opened)
        for shard, ref in waiting:
            if all(log.find_final_hash(ref.height) != ref.hash for log in opened):
                findings.add(
                    Promise.CHAINS,
                    f"{describe_shard(shard.shard)} block {shard.height + 1}",
                    f"refers to beacon block {ref.height}, which no log of the beacon has: "
                    f"the blocks from here up to {shard.last_height} were not checked",
                )
    finally:
        for log in opened:
            log.close()


def _report(logs: Sequence[ChainLog], executed: int, transactions: int) -> ChainReport:
    first = logs[0]
    return ChainReport(
        chain=describe_shard(first.chain),
        node=first.node,
        height=max(log.height for log in logs),
        executed=executed,
        transactions=transactions,
        records=first.records,
        unfinished_bytes=first.unfinished_bytes,
    )


VERDICT_COLUMNS = ("Promise", "Examined", "Verdict", "First finding")


def build_rows(report: AuditReport) -> list[tuple[str, ...]]:
    """Return the verdict table; a promise about which nothing was looked at is said to be so."""
    return [
        (str(row.promise), str(row.examined), _describe(row), row.findings[0] if row.findings else "")
        for row in report.rows
    ]


def _describe(row: Row) -> str:
    if row.broken:
        return f"BROKEN ({row.broken})"
    return "held" if row.examined else "not looked at"
