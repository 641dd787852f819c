"""``fault``: what can go wrong with a running network, on purpose; every fault has a number and can be healed.

Sides and nodes are written as on the bus: ``shard-0-1``, ``shard-0`` for all of a shard, ``beacon``, patterns such as
``shard-*-3``, ``all``, joined by commas.
"""

import time
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
import rich_click as click

from node.bus.faults import Mode
from node.cli.network import parse_duration_ms, print_faults
from node.cli.output import network_option, print_json, say
from node.cli.root import EXIT_USAGE, CliError, NamingGroup
from node.cli.session import MAX_NUMBER_DIGITS, Session
from node.launcher.faults import (
    BROKER,
    MAX_FOR_MS,
    WITH_BROKER,
    FaultError,
    FaultRequest,
    Kind,
    complete_request,
    parse_side,
)

F = TypeVar("F", bound=Callable[..., Any])


class Duration(click.ParamType[int]):
    """Milliseconds as people write them: ``10s``, ``250ms``."""

    name = "duration"

    def __init__(self, *, is_positive: bool = False) -> None:
        self._is_positive = is_positive

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the milliseconds; a default is an integer, and may be 0 where a person may not say so."""
        del param, ctx
        if isinstance(value, int):
            return value
        found = parse_duration_ms(value)
        if found < self._is_positive:
            expected = "1ms or more" if self._is_positive else "0s or more"
            raise click.BadParameter(f"duration: got {value!r}, expected {expected}, for example 10s")
        if found > MAX_FOR_MS:
            raise click.BadParameter(f"duration: got {value!r}, expected at most {MAX_FOR_MS // 1000}s")
        return found


def for_option(function: F) -> F:
    """Add ``--for``, which every fault has."""
    text = "Heal it after this long, for example 10s; without, it holds until it is healed."
    return click.option("--for", "for_ms", type=Duration(is_positive=True), default=0, help=text)(function)


@click.group(cls=NamingGroup)
def fault() -> None:
    """Cut, slow, kill, pause and corrupt processes of a running network; heal them."""


def begin(session: Session, kind: Kind, nodes: str, others: str, **more: Any) -> dict[str, Any]:
    """Ask the launcher for a fault; raises ``CliError`` for one that makes no sense here."""
    network = session.network
    known = [*network.nodes, *([BROKER] if kind in WITH_BROKER else [])]
    try:
        request = FaultRequest(
            kind=kind,
            nodes=parse_side(nodes, known),
            others=parse_side(others, known) if others else (),
            **more,
        )
        complete_request(network, request, ())
    except FaultError as error:
        text = str(error)
        remedy = "" if "try: " in text else f"; try: shardyard fault {kind} --help"
        raise CliError(text + remedy, EXIT_USAGE) from error
    found: dict[str, Any] = session.ask_launcher("fault", **msgspec.to_builtins(request))
    return found


def tell(session: Session, found: dict[str, Any], *, as_json: bool) -> int:
    """Print what began and what it costs."""
    if as_json:
        print_json(found)
        return 0
    begun = found["fault"]
    ends = "" if begun["ends_at"] is None else f", until {describe_instant(begun['ends_at'])}"
    say(f"fault {begun['id']}: {begun['kind']} {begun['text']}{ends}")
    for warning in found["warnings"]:
        say(f"warning: {warning}")
    for node in found["untold"]:
        say(f"warning: {node} runs and did not answer; it has the fault from its next start on")
    say(f"undo it with: shardyard fault heal {begun['id']}{session.name_flag}")
    return 0


def describe_instant(at: float) -> str:
    """Return a Unix time as a clock shows it."""
    return time.strftime("%H:%M:%S", time.localtime(at))


@fault.command()
@click.argument("side")
@click.argument("other", default="")
@click.option("--one-way", is_flag=True, help="Only what SIDE says to OTHER is lost.")
@for_option
@network_option
def partition(*, side: str, other: str, one_way: bool, for_ms: int, name: str, as_json: bool) -> int:
    """Cut SIDE off from OTHER, or from everybody else: no message passes; each side is whole in itself."""
    session = Session(name)
    found = begin(session, Kind.PARTITION, side, other, is_one_way=one_way, for_ms=for_ms)
    return tell(session, found, as_json=as_json)


@fault.command()
@click.argument("side")
@click.argument("other", default="")
@click.option("--by", "delay_ms", type=Duration(), required=True, help="How late, for example 200ms.")
@click.option(
    "--jitter", "jitter_ms", type=Duration(), default=0, help="Up to this much more, drawn for each."
)
@click.option("--one-way", is_flag=True, help="Only what SIDE says to OTHER is late.")
@for_option
@network_option
def delay(*, side: str, other: str, one_way: bool, name: str, as_json: bool, **times: int) -> int:
    """Let messages between SIDE and OTHER, or on all links of SIDE, come late; jitter lets them overtake each other."""
    session = Session(name)
    found = begin(session, Kind.DELAY, side, other, is_one_way=one_way, **times)
    return tell(session, found, as_json=as_json)


@fault.command()
@click.argument("side")
@click.argument("other", default="")
@click.option("--percent", type=float, required=True, help="How many of a hundred messages are lost.")
@click.option("--one-way", is_flag=True, help="Only what SIDE says to OTHER is lost.")
@for_option
@network_option
def loss(
    *, side: str, other: str, percent: float, one_way: bool, for_ms: int, name: str, as_json: bool
) -> int:
    """Lose messages between SIDE and OTHER, or on all links of SIDE, by chance."""
    session = Session(name)
    if not 0.1 <= percent <= 100:  # not a number is neither
        raise CliError(
            f"percent: got {percent:g}, expected 0.1 to 100; try: shardyard fault loss --help", EXIT_USAGE
        )
    lost = round(percent * 10)
    found = begin(session, Kind.LOSS, side, other, lost=lost, is_one_way=one_way, for_ms=for_ms)
    return tell(session, found, as_json=as_json)


@fault.command()
@click.argument("nodes")
@for_option
@network_option
def kill(*, nodes: str, for_ms: int, name: str, as_json: bool) -> int:
    """SIGKILL NODES and keep them down (`shardyard node kill` lets the launcher start them again at once)."""
    session = Session(name)
    return tell(session, begin(session, Kind.KILL, nodes, "", for_ms=for_ms), as_json=as_json)


@fault.command()
@click.argument("nodes")
@for_option
@network_option
def pause(*, nodes: str, for_ms: int, name: str, as_json: bool) -> int:
    """SIGSTOP NODES: they keep sockets and files and do nothing."""
    session = Session(name)
    return tell(session, begin(session, Kind.PAUSE, nodes, "", for_ms=for_ms), as_json=as_json)


@fault.command()
@click.argument("nodes")
@network_option
def resume(*, nodes: str, name: str, as_json: bool) -> int:
    """Let paused NODES go on: heals the pauses that name any of them."""
    session = Session(name)
    try:
        wanted = set(parse_side(nodes, [*session.network.nodes, BROKER]))
    except FaultError as error:
        raise CliError(f"{error}; try: shardyard fault list{session.name_flag}", EXIT_USAGE) from error
    held = session.ask_launcher("faults")["faults"]
    chosen = [one["id"] for one in held if one["kind"] == Kind.PAUSE and wanted & set(one["nodes"])]
    if not chosen:
        raise CliError(f"none of {nodes} is paused; try: shardyard fault list{session.name_flag}")
    return tell_healed(session.ask_launcher("heal", faults=chosen), as_json=as_json)


@fault.command()
@click.argument("node")
@click.argument("mode", type=click.Choice([str(mode) for mode in Mode]))
@click.option(
    "--validator", "validators", type=int, multiple=True, help="Only this one of NODE's; may be repeated."
)
@click.option(
    "--by", "delay_ms", type=Duration(is_positive=True), default=0, help="How late `late` is.  [default: 3s]"
)
@for_option
@network_option
def byzantine(
    *, node: str, mode: str, validators: tuple[int, ...], name: str, as_json: bool, **times: int
) -> int:
    """Let the validators of NODE lie. MODE is

    silent (no proposals, votes, certificates), equivocate (two blocks, two votes in one slot), withhold (blocks that it
    gives to nobody), garble (votes that are wrong), late (everything too late), or bad-proposer (blocks whose state is not
    what executing them gives). What others check is never weakened.
    """
    session = Session(name)
    found = begin(session, Kind.BYZANTINE, node, "", mode=Mode(mode), validators=validators, **times)
    code = tell(session, found, as_json=as_json)
    if not as_json and mode == Mode.EQUIVOCATE:
        say("what it signs twice stays evidence against it, healed or not")
    return code


@fault.command("full-disk")
@click.argument("nodes")
@for_option
@network_option
def full_disk(*, nodes: str, for_ms: int, name: str, as_json: bool) -> int:
    """Let every write of NODES to a file fail. A node that cannot remember stops, and tries again until it is healed."""
    session = Session(name)
    return tell(session, begin(session, Kind.FULL_DISK, nodes, "", for_ms=for_ms), as_json=as_json)


@fault.command("slow-disk")
@click.argument("nodes")
@click.option(
    "--by", "delay_ms", type=Duration(), required=True, help="Longer for each write, such as 200ms."
)
@for_option
@network_option
def slow_disk(*, nodes: str, name: str, as_json: bool, **times: int) -> int:
    """Let every write of NODES to block log, signer's record and journal take longer."""
    session = Session(name)
    return tell(session, begin(session, Kind.SLOW_DISK, nodes, "", **times), as_json=as_json)


@fault.command("list")
@network_option
def list_faults(*, name: str, as_json: bool) -> int:
    """List the faults that hold."""
    found = Session(name).ask_launcher("faults")
    if as_json:
        print_json(found)
        return 0
    print_faults(found)
    if not found["faults"]:
        say("no fault holds")
    return 0


@fault.command()
@click.argument("faults", nargs=-1)
@network_option
def heal(*, faults: tuple[str, ...], name: str, as_json: bool) -> int:
    """Undo FAULTS by number, or all of them."""
    session = Session(name)
    wanted = [] if faults in {(), ("all",)} else list(dict.fromkeys(faults))
    if strangers := [one for one in wanted if not one.isdecimal() or len(one) > MAX_NUMBER_DIGITS]:
        raise CliError(
            f"fault: got {strangers[0][:40]!r}, expected its number; try: shardyard fault list{session.name_flag}",
            EXIT_USAGE,
        )
    held = {one["id"] for one in session.ask_launcher("faults")["faults"]}
    if unknown := [one for one in wanted if int(one) not in held]:
        known = ", ".join(map(str, sorted(held))) or "none, no fault holds"
        raise CliError(
            f"fault: got {unknown[0]}, expected one of {known}; try: shardyard fault list{session.name_flag}",
            EXIT_USAGE,
        )
    return tell_healed(session.ask_launcher("heal", faults=[int(one) for one in wanted]), as_json=as_json)


def tell_healed(found: dict[str, Any], *, as_json: bool) -> int:
    """Print what was healed."""
    if as_json:
        print_json(found)
        return 0
    for one in found["healed"]:
        say(f"healed fault {one['id']}: {one['kind']} {one['text']}")
    for node in found["untold"]:
        say(f"warning: {node} runs and did not answer; it is healed from its next start on")
    if not found["healed"]:
        say("no fault holds")
    return 0
