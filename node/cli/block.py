"""``block``: blocks of a shard."""

import contextlib
import re
import time
from pathlib import Path
from typing import Any

import rich_click as click

from node.cli.output import network_option, print_json, print_table, say
from node.cli.root import EXIT_FAILURE, EXIT_USAGE, CliError, NamingGroup
from node.cli.session import MAX_NUMBER_DIGITS, RpcClient, RpcError, Session, SilentError
from node.config import get_name_flag
from node.network import parse_node
from shardyard.blocks import FinalityProof
from shardyard.ids import BEACON, ShardId, describe_shard

POLL_S = 0.1
HASH_DIGITS = 66
"""Characters of a block hash, its 0x among them; a height has far fewer."""
TAGS = ("latest", "finalized", "safe", "pending", "earliest")


@click.group(cls=NamingGroup)
def block() -> None:
    """Show blocks."""


def _fetch(client: RpcClient, what: str, *, full: bool) -> dict[str, object]:
    tag = parse_block_tag(what)
    by = "Hash" if len(tag) == HASH_DIGITS else "Number"
    found = client.request(f"eth_getBlockBy{by}", tag, full)
    if found is None:
        remedy = f"shardyard block latest --shard {client.shard}{get_name_flag(client.name)}"
        raise CliError(f"block {what} is not here; try: {remedy}", EXIT_FAILURE)
    result: dict[str, object] = found
    return result


def parse_block_tag(text: str) -> str:
    """Return the block that ``text`` names as nodes are asked for it, by height, hash or tag; raises ``CliError``."""
    is_height = text.isdecimal() and len(text) <= MAX_NUMBER_DIGITS
    tag = hex(int(text)) if is_height else text
    if tag not in TAGS and re.fullmatch(r"0x([0-9a-fA-F]{1,16}|[0-9a-fA-F]{64})", tag) is None:
        raise CliError(
            f"block: got {text[:80]!r}, expected a height, a hash or one of {', '.join(TAGS)}; try: shardyard block latest",
            EXIT_USAGE,
        )
    return tag


def _integer(value: object) -> int:
    return int(str(value), 16)


def _fetch_access_list(client: RpcClient, block_hash: object, *, whole: bool) -> dict[str, Any] | None:
    """Return a block's access list or its summary; None for the preview, and for a summary that is not to be had."""
    if not block_hash:
        return None
    try:
        found: dict[str, Any] | None = client.request("shard_getBlockAccessList", block_hash, whole)
    except RpcError:
        if whole:
            raise  # it was asked for
        return None
    return found


def _print_block(
    client: RpcClient, found: dict[str, object], *, as_json: bool, whole_list: bool = False
) -> None:
    stats = client.request("shard_getBlockStats", found["hash"]) if found["hash"] else None
    access_list = _fetch_access_list(client, found["hash"], whole=whole_list)
    if as_json:
        print_json(found | {"execution": stats, "accessList": access_list})
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
            *list_execution_rows(stats),
            *list_access_rows(access_list),
        ],
    )
    _print_hottest(stats)
    if access_list is not None and access_list["accessList"] is not None:
        print_table(("Account", "Place", "Index", "Value"), list_accesses(access_list["accessList"]))
    for item in transactions:
        tx_hash = item["hash"] if isinstance(item, dict) else item
        click.echo(f"  {tx_hash}")


def list_execution_rows(stats: dict[str, Any] | None) -> list[tuple[str, str]]:
    """Return how a block was executed, as rows of its table; nothing when the node does not remember."""
    if stats is None:
        return []
    items = stats["transactions"] + stats["deliveries"]
    executors = "1 executor" if stats["executors"] == 1 else f"{stats['executors']} executors"
    how = f"on {stats['workers']} threads" if stats["workers"] else f"in order ({executors})"
    if stats["mode"] == "replay":
        how = f"by its access list ({executors})"
    rows = [
        (
            "executed",
            f"{how}, {stats['executeUs'] / 1000:.2f} ms; commitment {stats['commitUs'] / 1000:.2f} ms",
        )
    ]
    if stats["workers"]:
        rows += [
            ("speed-up", f"{stats['speedUp'] or 0:.2f}x of executing in order (estimate)"),
            ("executions", f"{stats['incarnations']} of {items} items, {stats['aborts']} thrown away"),
            ("at their turn", f"{stats['atTurn']} items; one worker went on alone {stats['solos']} times"),
        ]
    return rows


def list_access_rows(access_list: dict[str, Any] | None) -> list[tuple[str, str]]:
    """Return what a block looked at, as rows of its table; nothing when its list is not to be had."""
    if access_list is None:
        return []
    found = access_list
    slots = f"{found['slotsChanged']:,} slots changed, {found['slotsRead']:,} read"
    return [
        ("access list", f"{found['accounts']:,} accounts, {slots}; {found['bytes']:,} bytes"),
        ("access list hash", found["accessListHash"]),
    ]


def list_accesses(accounts: list[dict[str, Any]]) -> list[tuple[str, str, str, str]]:
    """Return a whole access list, a row per change and per slot that was only read; numbers as people write them."""
    rows = []
    for account in accounts:
        changes = [
            (f"slot {slot['slot']}", change["blockAccessIndex"], change["postValue"])
            for slot in account["storageChanges"]
            for change in slot["changes"]
        ]
        changes += [(f"slot {slot}", "", "read") for slot in account["storageReads"]]
        for name, value in (("balance", "postBalance"), ("nonce", "postNonce")):
            changes += [
                (name, change["blockAccessIndex"], str(_integer(change[value])))
                for change in account[f"{name}Changes"]
            ]
        changes += [
            ("code", change["blockAccessIndex"], f"{len(change['newCode']) // 2 - 1} bytes")
            for change in account["codeChanges"]
        ]
        for place, index, value in changes or [("account", "", "read")]:
            rows.append((account["address"], place, str(_integer(index)) if index else "", value))
    return rows


def describe_location(found: dict[str, Any]) -> tuple[str, str]:
    """Return a hot location as contract and place in it, in the words of its source where they are known."""
    contract = f"{found['address']} ({found['contract']})" if found["contract"] else found["address"]
    if found["slot"] is None:
        return contract, "account"
    if found["variableSlot"] is None:
        return contract, f"slot {found['slot']}"
    variable = found["variable"] or f"slot {found['variableSlot']}"
    return contract, f"{variable}[{found['key']}]" if found["key"] else variable


def _print_hottest(stats: dict[str, Any] | None) -> None:
    if stats is not None and stats["hottest"]:
        rows = [(*describe_location(found), found["aborts"]) for found in stats["hottest"]]
        print_table(("Hottest", "Place", "Aborts"), rows)


@block.command()
@click.option("--shard", default=0, show_default=True, help="Shard of the block.")
@network_option
def latest(*, shard: int, name: str, as_json: bool) -> int:
    """Show the newest final block."""
    client = Session(name).get_client(shard)
    _print_block(client, _fetch(client, "latest", full=False), as_json=as_json)
    return 0


@block.command()
@click.argument("which")
@click.option("--shard", default=0, show_default=True, help="Shard of the block.")
@click.option("--full", is_flag=True, help="With whole transactions (JSON).")
@click.option("--access-list", "whole_list", is_flag=True, help="With all that it looked at and changed.")
@network_option
def show(*, which: str, shard: int, full: bool, whole_list: bool, name: str, as_json: bool) -> int:
    """Show the block WHICH: a height, a hash, latest, finalized or pending."""
    client = Session(name).get_client(shard)
    found = _fetch(client, which, full=full)
    _print_block(client, found, as_json=as_json or full, whole_list=whole_list)
    return 0


@block.command()
@click.argument("which")
@click.argument("path", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--shard", default=0, show_default=True, help="Shard of the block.")
@click.option("--beacon", is_flag=True, help="A block of the beacon.")
@network_option
def prove(*, which: str, path: Path, shard: int, beacon: bool, name: str, as_json: bool) -> int:
    """Write the finality proof of the block WHICH (a height, or latest) to PATH; `check finality PATH` verifies it anywhere."""
    from node.light_client import build_document, verify_document, write_document
    from shardyard.codec import decode
    from shardyard.messages import MAX_MESSAGE_BYTES

    session = Session(name)
    if not beacon:
        session.get_client(shard)  # a shard that is not there is named as everywhere
    encoded = _fetch_proof(session, BEACON if beacon else ShardId(shard), which)
    proof = decode(bytes.fromhex(encoded), FinalityProof, max_bytes=MAX_MESSAGE_BYTES)
    document = build_document(session.network.genesis, proof.path[0].header, proof)
    verify_document(document, session.network.genesis)
    write_document(path, document)
    if as_json:
        print_json(
            {"path": str(path), "chain": document.chain, "height": document.height, "hash": document.hash}
        )
        return 0
    say(
        f"{document.chain} block {document.height} {document.hash}: proof of {path.stat().st_size:,} bytes in {path}"
    )
    say(f"verify it with: shardyard check finality {path} --network {document.network}")
    return 0


def _fetch_proof(session: Session, chain: ShardId, which: str) -> str:
    """Return a proof in hex from the first node of ``chain`` that has it; raises ``CliError``."""
    is_height = which.isdecimal() and len(which) <= MAX_NUMBER_DIGITS and int(which) > 0
    if which != "latest" and not is_height:
        raise CliError(
            f"block: got {which[:80]!r}, expected a height from 1 on, or latest; try: shardyard block prove latest PATH",
            EXIT_USAGE,
        )
    session.ask_launcher("ping")
    name = describe_shard(chain)
    height = 0
    for node in [node for node in session.network.nodes if parse_node(node)[0] == chain]:
        with contextlib.suppress(CliError):  # the next one may answer
            height = max(height, int(session.ask_node(node, "finals", first=1)["height"]))
            wanted = height if which == "latest" else int(which)
            for encoded in session.ask_node(node, "proofs", first=wanted)["proofs"]:
                return str(encoded)
    raise CliError(
        f"block {which} of {name} has no proof here, its last final block is {height}; "
        f"try: shardyard block prove latest PATH{session.name_flag}"
    )


@block.command()
@click.option("--shard", default="all", show_default=True, help="Shard, or all.")
@click.option("--count", default=0, help="Stop after this many blocks; 0 goes on.")
@network_option
def watch(*, shard: str, count: int, name: str, as_json: bool) -> int:
    """Print a line per block as it becomes final, until interrupted."""
    session = Session(name)
    shards = session.parse_shards(shard)
    heads = {number: _integer(session.get_client(number).request("eth_blockNumber")) for number in shards}
    printed = 0
    if not as_json:
        say("waiting for blocks; Ctrl-C stops watching")
    while count == 0 or printed < count:
        for number in shards:
            try:
                client = session.get_client(number)
                head = _integer(client.request("eth_blockNumber"))
                # A process that starts again may be behind what it told before.
                for height in range(heads[number] + 1, head + 1):
                    _print_line(number, _fetch(client, str(height), full=False), as_json=as_json)
                    heads[number] = height
                    printed += 1
                    if printed == count:
                        return 0
            except SilentError:  # another replica answers, or it is back in a moment
                session.forget_client(number)
        time.sleep(POLL_S)
    return 0


def _print_line(shard: int, found: dict[str, object], *, as_json: bool) -> None:
    if as_json:
        print_json({"shard": shard, **found})
        return
    transactions = found["transactions"]
    assert isinstance(transactions, list)
    height, gas = _integer(found["number"]), _integer(found["gasUsed"])
    click.echo(f"shard {shard}  #{height}  {len(transactions)} tx  {gas:,} gas  {found['hash']}")
