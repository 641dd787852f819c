"""The same checks from the block logs of a network, which may be stopped: the auditor's rules, a promise at a time."""

from collections.abc import Callable
from typing import Any

from node.audit.audit import audit_network, open_logs
from node.audit.chains import CertificateBook, verify_chain, verify_followed
from node.audit.findings import Findings, Promise
from node.audit.logs import ChainLog
from node.checks.verdict import Verdict, build_verdict
from node.network import Network
from shardyard.ids import BEACON, describe_shard
from shardyard.keys import BlsCrypto

Progress = Callable[[str], None]


def _collect(findings: Findings, *promises: Promise) -> list[str]:
    return [text for promise in promises for text in findings.rows[promise].findings]


def check_finality_logs(network: Network) -> Verdict:
    """Verify every justification and finality proof in the logs, from genesis on; nothing is executed."""
    findings, crypto = Findings(), BlsCrypto()
    opened: list[ChainLog] = []
    rows: list[dict[str, Any]] = []
    try:
        replicas = open_logs(network, findings, opened)
        books = {
            chain: CertificateBook(network.genesis, logs[0], crypto, findings)
            for chain, logs in replicas.items()
        }
        hashes = {}
        for chain, logs in replicas.items():
            hashes[chain] = verify_chain(network.genesis, logs, books[chain], books[BEACON], crypto, findings)
            rows.append({"chain": describe_shard(chain), "blocks": len(hashes[chain]) - 1})
        for chain, logs in replicas.items():
            for log in logs if chain != BEACON else ():
                verify_followed(log, hashes[BEACON], books[BEACON], findings)
    finally:
        for log in opened:
            log.close()
    broken = _collect(findings, Promise.LOGS, Promise.CHAINS, Promise.FINALITY)
    verified = sum(book.verified for book in books.values())
    blocks = sum(row["blocks"] for row in rows)
    words = (
        f"{blocks} final blocks of {len(rows)} chains verify from genesis on, {verified} certificates, by the logs"
        if not broken
        else "the logs do not prove what they say"
    )
    return build_verdict("finality", words, {"chains": rows, "certificates": verified}, broken)


def check_no_forks_logs(network: Network) -> Verdict:
    """Compare the final blocks in the logs of all nodes of each chain, from genesis on."""
    findings = Findings()
    opened: list[ChainLog] = []
    try:
        replicas = open_logs(network, findings, opened)
        rows = [
            {"chain": describe_shard(chain), "heights": {log.node: log.height for log in logs}}
            for chain, logs in replicas.items()
        ]
        compared = sum(log.height for logs in replicas.values() for log in logs[1:])
    finally:
        for log in opened:
            log.close()
    broken = _collect(findings, Promise.LOGS, Promise.FINALITY)
    words = f"no two logs differ in {compared} heights of {len(rows)} chains" if not broken else "FORKED"
    return build_verdict("no-forks", words, {"chains": rows, "compared": compared}, broken)


def check_conservation_logs(network: Network, progress: Progress | None = None) -> Verdict:
    """Execute every block again and count all wei at every beacon height."""
    report = audit_network(network, None, progress)
    rows = {row.promise: row for row in report.rows}
    promises = (Promise.LOGS, Promise.EXECUTION, Promise.CROSSLINKS, Promise.SUPPLY)
    broken = [text for promise in promises for text in rows[promise].findings]
    beacon = next(chain for chain in report.chains if chain.chain == describe_shard(BEACON))
    words = (
        f"all wei are those of genesis at {beacon.executed} beacon heights, {rows[Promise.SUPPLY].examined} sums, by the logs"
        if not broken
        else "the sum does not hold"
    )
    figures = {
        "beacon_height": beacon.executed,
        "sums": rows[Promise.SUPPLY].examined,
        "in_flight": report.in_flight,
    }
    return build_verdict("conservation", words, figures, broken)
