"""``audit``: re-execute every chain from its log and check every promise. Reads only; the network may run."""

from pathlib import Path

import rich_click as click

from node.cli.output import network_option, print_json, print_table, say
from node.cli.root import EXIT_CHECK_FAILED
from node.config import get_home
from node.network import open_network


@click.command()
@click.option(
    "--answered",
    type=click.Path(path_type=Path, dir_okay=False),
    default=None,
    help="Transactions that nodes answered (answered.json of a load run); each must be in one final block.",
)
@network_option
def audit(*, answered: Path | None, name: str, as_json: bool) -> int:
    """Re-execute every chain from its block log and check every promise: finality, order, exactly-once, supply."""
    import msgspec

    from node.audit.answered import read_answered
    from node.audit.audit import VERDICT_COLUMNS, audit_network, build_rows

    network = open_network(get_home() / name)
    transactions = read_answered(answered, network.genesis.shard_count) if answered is not None else None
    report = audit_network(network, transactions, None if as_json else say)
    if as_json:
        print_json(msgspec.to_builtins(report))
        return 0 if report.held else EXIT_CHECK_FAILED
    print_table(VERDICT_COLUMNS, build_rows(report))
    for row in report.rows:
        for finding in row.findings[1:]:
            say(f"{row.promise}: {finding}")
    flying = f", {report.in_flight} in flight" if report.in_flight else ""
    say(
        f"{report.messages_emitted} messages emitted, {report.messages_delivered} delivered{flying}; {report.seconds} s"
    )
    say("all held" if report.held else "NOT all held")
    return 0 if report.held else EXIT_CHECK_FAILED
