"""``shard``: the shards of a network and the messages between them."""

from typing import Any

import rich_click as click

from node.cli.output import flatten, format_ether, network_option, print_json, print_table, say
from node.cli.root import NamingGroup
from node.cli.session import Session


@click.group(cls=NamingGroup)
def shard() -> None:
    """List shards and the messages between them."""


@shard.command("list")
@network_option
def list_shards(*, name: str, as_json: bool) -> int:
    """List shards with their heads, mempools and inboxes."""
    session = Session(name)
    found = [session.get_client(number).request("shard_status") for number in range(session.shard_count)]
    if as_json:
        print_json(found)
        return 0
    print_table(
        ("Shard", "Latest", "Finalized", "Notarized", "Pending tx", "Inbox read"),
        [
            (
                item["shard"],
                item["heads"]["latest"]["height"],
                item["heads"]["finalized"]["height"],
                item["heads"]["notarized"]["height"],
                item["mempool"]["pending"],
                item["inbox"]["consumed"],
            )
            for item in found
        ],
    )
    return 0


@shard.command()
@click.argument("number", type=int)
@network_option
def show(*, number: int, name: str, as_json: bool) -> int:
    """Show shard NUMBER: parameters, heads, committee."""
    client = Session(name).get_client(number)
    found = {
        "info": client.request("shard_info"),
        "status": client.request("shard_status"),
        "committee": client.request("shard_getCommittee"),
    }
    if as_json:
        print_json(found)
        return 0
    rows = [*flatten(found["info"]), *flatten({k: v for k, v in found["status"].items() if k != "shard"})]
    rows.append(("validators", len(found["committee"]["validators"])))
    print_table(("Field", "Value"), rows)
    return 0


@shard.command()
@click.option("--src", type=int, default=None, help="Only from this shard.")
@click.option("--dst", type=int, default=None, help="Only to this shard.")
@click.option("--stuck", is_flag=True, help="Only those that have not been executed at their destination.")
@click.option("--limit", default=20, show_default=True, help="How many, newest first.")
@network_option
def messages(*, src: int | None, dst: int | None, stuck: bool, limit: int, name: str, as_json: bool) -> int:
    """List messages between shards, newest first."""
    session = Session(name)
    for number in (src, dst):
        if number is not None:
            session.get_client(number)  # a shard that is not there is named as everywhere
    delivered: set[str] = set()
    emitted: list[dict[str, Any]] = []
    query: dict[str, object] = {"limit": 1000 if stuck else limit}
    if dst is not None:
        query["dst"] = dst
    for number in range(session.shard_count):
        client = session.get_client(number)
        found = client.request("shard_getMessages", query | {"direction": "in"})
        delivered |= {item["id"] for item in found if item["delivered"]}
        if src is None or src == number:
            emitted += client.request("shard_getMessages", query | {"direction": "out"})
    emitted.sort(key=lambda item: -(item["emitted"] or {}).get("timestampMs", 0))
    chosen: list[dict[str, Any]] = []
    for item in emitted:
        # Its destination may have executed so many since that it is not among the newest there.
        if item["id"] not in delivered and _is_executed(session, item):
            delivered.add(item["id"])
        if not (stuck and item["id"] in delivered):
            chosen.append(item)
        if len(chosen) == limit:
            break
    if as_json:
        print_json(chosen)
        return 0
    print_table(
        ("Message", "Kind", "From", "To", "Seq", "Ether", "Executed"),
        [
            (
                item["id"],
                item["kind"],
                item["src"],
                item["dst"],
                item["seq"],
                format_ether(int(str(item["value"]), 16)),
                "yes" if item["id"] in delivered else "not yet",
            )
            for item in chosen
        ],
    )
    if emitted and not chosen:
        say("no message is stuck")
    elif not chosen and session.shard_count == 1:
        say("no messages: the network has one shard")
    elif not chosen:
        say(f"no messages; try: shardyard tx xsend --src 0 --dst 1 --value 1ether{session.name_flag}")
    return 0


def _is_executed(session: Session, message: dict[str, Any]) -> bool:
    """Ask the destination of ``message``, the only shard that knows."""
    found = session.get_client(message["dst"]).request("shard_getMessage", message["id"])
    return found is not None and found["delivered"] is not None
