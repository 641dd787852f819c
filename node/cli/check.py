"""``check``: verdicts on a running network, from its logs, or on a proof in a file. Exit code 6 when a check fails."""

import asyncio
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec
import rich_click as click

from node.cli.fault import Duration
from node.cli.output import network_option, print_json, say
from node.cli.root import EXIT_CHECK_FAILED, EXIT_USAGE, CliError, NamingGroup
from node.cli.session import Session
from node.config import check_name, get_home
from node.network import Network, open_network

NETWORK_HASH: Final = re.compile("0[xX][0-9a-fA-F]{64}")
F = TypeVar("F", bound=Callable[..., Any])


def logs_option(function: F) -> F:
    """Add ``--logs``."""
    return click.option("--logs", is_flag=True, help="Judge from the logs; the network may be stopped.")(
        function
    )


@click.group(cls=NamingGroup)
def check() -> None:
    """Judge a running network or a proof: liveness, finality, conservation, no forks."""


def get_running(name: str) -> Network:
    """Return the network ``name``; raises ``CliError`` or ``ControlError`` unless it runs."""
    session = Session(name)
    session.ask_launcher("ping")
    return session.network


def get_stored(name: str) -> Network:
    """Return the network ``name``, which may be stopped."""
    check_name(name)
    return open_network(get_home() / name)


def tell(verdict: Any, *, as_json: bool) -> int:
    """Print a verdict and return the exit code."""
    if as_json:
        print_json(msgspec.to_builtins(verdict))
    else:
        click.echo(f"{verdict.check}: {'holds' if verdict.held else 'FAILS'}: {verdict.words}")
        for finding in verdict.findings:
            say(f"  {finding}")
    return 0 if verdict.held else EXIT_CHECK_FAILED


@check.command()
@click.option(
    "--within", "within_ms", type=Duration(), default="10s", show_default=True, help="How long to watch."
)
@network_option
def liveness(*, within_ms: int, name: str, as_json: bool) -> int:
    """Watch every chain make final blocks, and the beacon accept the shards'."""
    from node.checks.liveness import check_liveness

    if within_ms <= 0:
        raise CliError("within: got 0 s, expected some time to watch; try: --within 10s", EXIT_USAGE)
    return tell(asyncio.run(check_liveness(get_running(name), within_ms / 1000)), as_json=as_json)


@check.command()
@click.argument("proof", type=click.Path(path_type=Path, dir_okay=False), required=False)
@click.option(
    "--genesis",
    type=click.Path(path_type=Path, dir_okay=False),
    default=None,
    help="Trust this genesis.bin and no other, when PROOF is verified.",
)
@click.option("--network", "trusted", default="", help="Trust the genesis of this hash alone (0x…).")
@click.option("--blocks", type=click.IntRange(1, 64), default=16, show_default=True, help="Of each node.")
@logs_option
@network_option
def finality(
    *,
    proof: Path | None,
    genesis: Path | None,
    trusted: str,
    blocks: int,
    logs: bool,
    name: str,
    as_json: bool,
) -> int:
    """Verify finality as a light client does: from the genesis' committees alone.

    With PROOF, a file that `shardyard block prove` wrote is verified, without any network.
    """
    if proof is not None:
        if trusted and not NETWORK_HASH.fullmatch(trusted):
            raise CliError(
                f"network: got {trusted!r}, expected 0x and 64 hexadecimal digits; "
                "try: shardyard block prove latest FILE   (tells the network's hash)",
                EXIT_USAGE,
            )
        return tell(judge_file(proof, genesis, trusted), as_json=as_json)
    if genesis is not None or trusted:
        raise CliError(
            "--genesis and --network are for a PROOF; try: shardyard check finality PROOF", EXIT_USAGE
        )
    if logs:
        from node.checks.offline import check_finality_logs

        return tell(check_finality_logs(get_stored(name)), as_json=as_json)
    from node.checks.finality import check_finality

    return tell(asyncio.run(check_finality(get_running(name), blocks)), as_json=as_json)


def judge_file(path: Path, genesis_path: Path | None, trusted: str) -> Any:
    """Return the verdict on a proof file; raises ``CliError`` when there is none to judge."""
    from node.checks.verdict import build_verdict
    from node.light_client import UnreadableProofError, read_document, read_genesis_file, verify_document
    from shardyard.errors import RemoteProtocolError
    from shardyard.ids import describe_shard

    try:
        genesis = read_genesis_file(genesis_path) if genesis_path is not None else None
        document = read_document(path)
        if trusted and trusted.lower() != document.network:
            finding = f"network: got a proof of {document.network}, expected {trusted.lower()}"
            return build_verdict("finality", f"{path} proves nothing here", {"file": str(path)}, [finding])
        found = verify_document(document, genesis)
    except OSError as error:
        raise CliError(f"{error.filename}: {error.strerror}; try: another path", EXIT_USAGE) from error
    except UnreadableProofError as error:
        remedy = "shardyard block prove latest FILE   (writes one)"
        raise CliError(f"{error}; try: {remedy}", EXIT_USAGE) from error
    except RemoteProtocolError as error:
        return build_verdict("finality", f"{path} proves nothing", {"file": str(path)}, [str(error)])
    header, tip = found.header, found.tip
    by = "" if tip.height == header.height else f" by its descendant at height {tip.height}"
    words = (
        f"{describe_shard(found.chain)} block {header.height} (0x{header.hash.hex()}) is final{by}: "
        f"{found.signers} of {found.committee} validators signed, stake {found.stake} of {found.total_stake} gwei; "
        f"network {document.network}"
    )
    if genesis is None and not trusted:
        words += " by the genesis in the file: compare the network's hash with one that you trust"
    figures = {
        "chain": describe_shard(found.chain),
        "height": header.height,
        "hash": "0x" + header.hash.hex(),
        "tip_height": tip.height,
        "signers": found.signers,
        "committee": found.committee,
        "stake": found.stake,
        "total_stake": found.total_stake,
        "network": document.network,
        "trusted_by": "genesis" if genesis is not None else "network" if trusted else "file",
    }
    return build_verdict("finality", words, figures, [])


@check.command()
@logs_option
@network_option
def conservation(*, logs: bool, name: str, as_json: bool) -> int:
    """Count all wei at one beacon height, account by account: on shards, in flight and burnt, against genesis."""
    if logs:
        from node.checks.offline import check_conservation_logs

        return tell(check_conservation_logs(get_stored(name), None if as_json else say), as_json=as_json)
    from node.checks.conservation import check_conservation

    return tell(asyncio.run(check_conservation(get_running(name))), as_json=as_json)


@check.command("no-forks")
@click.option(
    "--blocks",
    type=click.IntRange(0),
    default=256,
    show_default=True,
    help="To compare below the node furthest behind; 0 compares from genesis on.",
)
@logs_option
@network_option
def no_forks(*, blocks: int, logs: bool, name: str, as_json: bool) -> int:
    """Compare what the nodes of each chain call final at equal heights, and what the beacon accepted."""
    if logs:
        from node.checks.offline import check_no_forks_logs

        return tell(check_no_forks_logs(get_stored(name)), as_json=as_json)
    from node.checks.forks import check_no_forks

    return tell(asyncio.run(check_no_forks(get_running(name), blocks)), as_json=as_json)
