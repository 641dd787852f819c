"""``block``: blocks of a shard."""

import re
import time

import rich_click as click

from node.cli.output import network_option, print_json, print_table, say
from node.cli.root import EXIT_FAILURE, EXIT_USAGE, CliError, NamingGroup
from node.cli.session import RpcClient, Session

POLL_S = 0.1
TAGS = ("latest", "finalized", "safe", "pending", "earliest")


@click.group(cls=NamingGroup)
def block() -> None:
    """Show blocks."""


def _fetch(client: RpcClient, what: str, *, full: bool) -> dict[str, object]:
    if what.startswith("0x") and len(what) == 66:
        found = client.request("eth_getBlockByHash", what, full)
    else:
        tag = hex(int(what)) if what.isdecimal() else what
        if tag not in TAGS and re.fullmatch(r"0x[0-9a-fA-F]{1,16}", tag) is None:
            raise CliError(
                f"block: got {what!r}, expected a height, a hash or one of {', '.join(TAGS)}; try: shardyard block latest",
                EXIT_USAGE,
            )
        found = client.request("eth_getBlockByNumber", tag, full)
    if found is None:
        raise CliError(f"block {what} is not here; try: shardyard block latest", EXIT_FAILURE)
    result: dict[str, object] = found
    return result


def _integer(value: object) -> int:
    return int(str(value), 16)


def _print_block(found: dict[str, object], *, as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    transactions = found["transactions"]
    assert isinstance(transactions, list)
    stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(_integer(found["timestamp"])))
    print_table(
        ("Field", "Value"),
        [
            ("number", _integer(found["number"])),
            ("hash", found["hash"]),
            ("parent", found["parentHash"]),
            ("time (UTC)", stamp),
            ("transactions", len(transactions)),
            ("gas used", f"{_integer(found['gasUsed']):,} of {_integer(found['gasLimit']):,}"),
            ("base fee", f"{_integer(found['baseFeePerGas']):,} wei"),
            ("state commitment", found["stateRoot"]),
        ],
    )
    for item in transactions:
        tx_hash = item["hash"] if isinstance(item, dict) else item
        click.echo(f"  {tx_hash}")


@block.command()
@click.option("--shard", default=0, show_default=True)
@network_option
def latest(*, shard: int, name: str, as_json: bool) -> int:
    """Show the newest final block."""
    _print_block(_fetch(Session(name).get_client(shard), "latest", full=False), as_json=as_json)
    return 0


@block.command()
@click.argument("which")
@click.option("--shard", default=0, show_default=True)
@click.option("--full", is_flag=True, help="With whole transactions (JSON).")
@network_option
def show(*, which: str, shard: int, full: bool, name: str, as_json: bool) -> int:
    """Show the block WHICH: a height, a hash, latest, finalized or pending."""
    _print_block(_fetch(Session(name).get_client(shard), which, full=full), as_json=as_json or full)
    return 0


@block.command()
@click.option("--shard", default="all", show_default=True, help="Shard, or all.")
@click.option("--count", default=0, help="Stop after this many blocks; 0 goes on.")
@network_option
def watch(*, shard: str, count: int, name: str, as_json: bool) -> int:
    """Print a line per block as it becomes final, until interrupted."""
    session = Session(name)
    shards = range(session.shard_count) if shard == "all" else [int(shard)]
    heads = {number: _integer(session.get_client(number).request("eth_blockNumber")) for number in shards}
    printed = 0
    if not as_json:
        say("waiting for blocks; Ctrl-C stops watching")
    while count == 0 or printed < count:
        for number in shards:
            client = session.get_client(number)
            head = _integer(client.request("eth_blockNumber"))
            for height in range(heads[number] + 1, head + 1):
                found = _fetch(client, str(height), full=False)
                transactions = found["transactions"]
                assert isinstance(transactions, list)
                line = f"shard {number}  #{height}  {len(transactions)} tx  {_integer(found['gasUsed']):,} gas  {found['hash']}"
                if as_json:
                    print_json({"shard": number, **found})
                else:
                    click.echo(line)
                printed += 1
            heads[number] = head
        time.sleep(POLL_S)
    return 0
