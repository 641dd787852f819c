"""``node``: the processes of a network, one by one."""

from typing import Any

import rich_click as click

from node.cli.network import describe_absence, describe_memory, describe_role
from node.cli.output import flatten, network_option, print_json, print_table, say
from node.cli.root import EXIT_USAGE, CliError, NamingGroup
from node.cli.session import Session


@click.group(cls=NamingGroup)
def node() -> None:
    """List nodes; stop, start, kill and restart them."""


@node.command("list")
@network_option
def list_nodes(*, name: str, as_json: bool) -> int:
    """List the processes of a network."""
    nodes = Session(name).ask_launcher("nodes")
    if as_json:
        print_json(nodes)
        return 0
    print_table(
        ("Node", "Validators", "Pid", "State", "Restarts", "Memory"),
        [
            (
                n["node"],
                describe_role(n),
                n["pid"] or "-",
                _describe_state(n),
                n["restarts"],
                describe_memory(n["pid"]),
            )
            for n in nodes
        ],
    )
    return 0


def verify_known(session: Session, node_id: str) -> None:
    """Raise ``CliError`` unless the running network has a process called ``node_id``."""
    known = [str(found["node"]) for found in session.ask_launcher("nodes")]
    if node_id not in known:
        raise CliError(
            f"node: got {node_id!r}, expected one of {', '.join(known)}; try: shardyard node list{session.name_flag}",
            EXIT_USAGE,
        )


def _describe_state(found: dict[str, Any]) -> str:
    if found["pid"]:
        return "paused" if found["paused"] else "running"
    return describe_absence(found)


@node.command()
@click.argument("node_id")
@network_option
def show(*, node_id: str, name: str, as_json: bool) -> int:
    """Show what NODE_ID says of itself: heads, slot, queues, bus counters."""
    session = Session(name)
    verify_known(session, node_id)
    if node_id == "broker":
        raise CliError(f"the broker keeps no status; try: shardyard doctor{session.name_flag}", EXIT_USAGE)
    found = session.ask_node(node_id, "status")
    if as_json:
        print_json(found)
        return 0
    print_table(("Field", "Value"), sorted(flatten(found)))
    return 0


def _register(command: str, method: str, done: str, text: str) -> None:
    @node.command(command, help=text)
    @click.argument("node_id")
    @network_option
    def act(*, node_id: str, name: str, as_json: bool) -> int:
        session = Session(name)
        verify_known(session, node_id)
        found = session.ask_launcher(method, node=node_id)
        if as_json:
            print_json(found)
        else:
            said = done.format(node=node_id, flag=session.name_flag)
            say(f"{node_id} {said}")
        return 0


_register(
    "stop",
    "stop-node",
    "stopped; it stays down until `shardyard node start {node}{flag}`",
    "Stop NODE_ID and keep it stopped.",
)
_register("start", "start-node", "started", "Start a stopped NODE_ID.")
_register(
    "kill",
    "kill",
    "killed with SIGKILL; the launcher starts it again",
    "SIGKILL NODE_ID; it is started again.",
)
_register("restart", "restart-node", "restarted", "Stop NODE_ID in order and start it again.")
