"""``up``, ``down``, ``status``, ``reset``, ``env``, ``version``: a network as a whole."""

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Container
from importlib.metadata import version as get_version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
import rich_click as click

from node.cli.deletion import delete_network, verify_deletable, wake_orphans
from node.cli.output import json_option, network_option, print_json, print_table, say
from node.cli.root import EXIT_CONFLICT, EXIT_FAILURE, EXIT_NOT_RUNNING, EXIT_USAGE, CliError, confirm
from node.cli.session import Session
from node.config import Options, check_name, get_home, get_name_flag, name_network, resolve_options
from node.control import ControlError, ask
from node.launcher.lock import is_held
from node.launcher.ports import lay_out_ports
from node.network import Network, build_balances, build_preset, create_network, is_taken, open_or_create

DETACH_TIMEOUT_S = 40.0
STOP_TIMEOUT_S = 15.0
BROKER_TIMEOUT_S = 2.0
STATUS_TIMEOUT_S = 3.0
"""Status is asked for when something hangs, and must not hang with it."""


@click.command()
@click.option("--name", default=None, help="Network; several may run beside each other.  [default: dev]")
@click.option("-s", "--shards", type=int, default=None, help="Number of shards.  [default: 4]")
@click.option(
    "-n", "--nodes-per-shard", type=int, default=None, help="Replicas (processes) per shard.  [default: 1]"
)
@click.option(
    "--followers",
    type=int,
    default=None,
    help="Processes per shard without keys, that follow, verify and serve.  [default: 0]",
)
@click.option("--validators", type=int, default=None, help="Validators per shard.  [default: 4]")
@click.option("--preset", default=None, help="Protocol numbers: devnet, test or bench.  [default: devnet]")
@click.option("--block-time", "block_time_ms", default=None, help="Block time, for example 1s or 250ms.")
@click.option("--broker", default=None, help="auto, embedded, mosquitto or an mqtt:// URL.  [default: auto]")
@click.option(
    "--port-base",
    type=int,
    default=None,
    help="JSON-RPC port of shard 0; 0 picks free ports.  [default: 8545]",
)
@click.option("--broker-port", type=int, default=None, help="Port of the embedded broker.  [default: 18545]")
@click.option(
    "--executors",
    type=int,
    default=None,
    help="Executor threads per shard; 0 shares the cores.  [default: 0]",
)
@click.option(
    "--sync-mempool/--no-sync-mempool", default=None, help="Answer only after an fsync (survives power loss)."
)
@click.option(
    "--snapshot-distance",
    type=int,
    default=None,
    help="Blocks behind from which a replica comes by a snapshot of the state.  [default: 1024]",
)
@click.option("--seed", type=int, default=None, help="Derive all keys from this number, so that runs repeat.")
@click.option(
    "--balance", default=None, help="Ether of each development account per shard.  [default: 10000ether]"
)
@click.option(
    "-c",
    "--config",
    "config_file",
    type=click.Path(path_type=Path),
    default=None,
    help="TOML file of options.",
)
@click.option("--fresh", is_flag=True, help="Delete the network first and start anew.")
@click.option("-d", "--detach", is_flag=True, help="Return when the network is ready and leave it running.")
@json_option
def up(*, config_file: Path | None, fresh: bool, detach: bool, as_json: bool, **flags: Any) -> int:
    """Start a network: broker, beacon and shards, each a process of its own.

    State survives: the same command later goes on where the network stopped.
    """
    if flags["block_time_ms"] is not None:
        flags["block_time_ms"] = parse_duration_ms(flags["block_time_ms"])
    options, origin = resolve_options(flags, os.environ, config_file)
    root = get_home() / options.name
    started = time.monotonic()
    is_new = fresh or not is_taken(root)
    if fresh:
        verify_options(options)
        network = create_network(root, options, make_room=lambda: delete_network(root))
    else:
        given = {key for key, source in origin.items() if source != "default"}
        network = open_or_create(root, options, given=given)
    if not as_json:
        made = "created" if is_new else "opened"
        say(f"network {options.name!r} {made} in {time.monotonic() - started:.2f} s at {root}")
    broker = network.options.broker
    if "://" in broker and (silence := probe_broker(broker)):
        raise CliError(
            f"broker: nobody answers at {broker} ({silence}), and without one no shard hears of another; "
            "try: start it there, or --broker embedded",
            EXIT_NOT_RUNNING,
        )
    if detach:
        return _start_detached(network, started, as_json=as_json)
    return _run_here(network, as_json=as_json)


def verify_options(options: Options) -> None:
    """Raise ``ConfigError`` for options of which each is in its range, and with which no network can be made."""
    lay_out_ports(
        port_base=options.port_base,
        broker_port=options.broker_port,
        shards=options.shards,
        replicas=options.replicas,
        embedded="://" not in options.broker,
    )
    build_preset(options)
    build_balances(options)
    if "://" in options.broker:
        from node.bus.mqtt import parse_broker_url

        parse_broker_url(options.broker)


def probe_broker(url: str) -> str:
    """Return why nobody answers at the broker's ``url``, and nothing when somebody does; raises ``ConfigError``."""
    from node.bus.mqtt import parse_broker_url

    endpoint = parse_broker_url(url)
    try:
        with socket.create_connection((endpoint.host, endpoint.port), timeout=BROKER_TIMEOUT_S):
            return ""
    except OSError as error:
        return error.strerror or str(error)


def parse_duration_ms(text: str) -> int:
    """Return the milliseconds in ``1s``, ``250ms`` or ``2``(seconds)."""
    stripped = text.strip().lower()
    try:
        if stripped.endswith("ms"):
            return int(stripped[:-2])
        return round(float(stripped.removesuffix("s")) * 1000)
    except (ValueError, OverflowError):
        raise click.BadParameter(f"duration: got {text!r}, expected for example 1s or 250ms") from None


def _run_here(network: Network, *, as_json: bool) -> int:
    import uvloop

    from node.launcher.launcher import run_foreground

    def report(what: str, seconds: float) -> None:
        if not as_json:
            say(f"  ready {what:<12} {seconds:6.2f} s")

    def on_ready() -> None:
        _print_ready(network, as_json=as_json, is_foreground=True)

    uvloop.run(run_foreground(network, report, on_ready))
    if not as_json:
        say(
            f"stopped; everything is kept, `shardyard up{get_name_flag(network.options.name)}` goes on from here"
        )
    return 0


def _start_detached(network: Network, started: float, *, as_json: bool) -> int:
    from node.launcher.log_files import rotate
    from node.launcher.supervisor import build_python_argv

    changeable = json.dumps(msgspec.to_builtins(network.options))
    log_path = network.get_log_path("launcher")
    with contextlib.suppress(OSError):
        rotate(log_path)
    with log_path.open("ab") as log:
        position = log.tell()
        process = subprocess.Popen(
            build_python_argv("node.launcher", str(network.root), changeable),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    deadline = started + DETACH_TIMEOUT_S
    try:
        while not _is_ready(network, process.pid):
            if (code := process.poll()) is not None:
                raise _describe_end(log_path.read_bytes()[position:].decode(errors="replace"), code)
            if time.monotonic() > deadline:
                raise CliError(
                    f"the network was not ready within {DETACH_TIMEOUT_S:.0f} s and was stopped; "
                    f"try: shardyard logs launcher{get_name_flag(network.options.name)}"
                )
            time.sleep(0.03)
    except BaseException:
        _end_launcher(process, network.options.name)  # an interrupted start leaves nothing running either
        raise
    if not as_json:
        say(f"ready after {time.monotonic() - started:.2f} s (launcher pid {process.pid})")
    _print_ready(network, as_json=as_json, is_foreground=False)
    return 0


def _end_launcher(process: subprocess.Popen[bytes], name: str) -> None:
    """Have the launcher stop what it started, and wait: whoever types the same again must not find half a network."""
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        say(
            f"the launcher (pid {process.pid}) was told to stop and is still there after {STOP_TIMEOUT_S:.0f} s; "
            f"try: shardyard logs launcher{get_name_flag(name)}"
        )


def _is_ready(network: Network, pid: int) -> bool:
    try:
        answer = asyncio.run(ask(network.get_control_path("launcher"), "ping"))
    except ControlError:
        return False
    return bool(answer == {"pid": pid, "ready": True})


def _describe_end(words: str, code: int) -> CliError:
    """Return why the launcher ended: the last error in its log says it, and its status says of what kind it is."""
    text = f"the launcher ended with status {code}: {words.strip()[-500:]}"
    for line in words.splitlines():
        with contextlib.suppress(ValueError, KeyError, TypeError):
            record = json.loads(line)
            text = str(record["message"]) if record["level"] == "error" else text
    return CliError(text, code if code in {EXIT_USAGE, EXIT_CONFLICT} else EXIT_FAILURE)


def _print_ready(network: Network, *, as_json: bool, is_foreground: bool) -> None:
    endpoints = network.read_endpoints()
    if as_json:
        print_json({"endpoints": endpoints, "root": str(network.root)})
        return
    session = Session(network.options.name)
    with contextlib.closing(session):
        _print_shards(session)
    from node.dev_accounts import DEV_ACCOUNTS, MNEMONIC

    broker, observer = urlsplit(endpoints["broker"]["url"]), endpoints["broker"]["observer"]
    say(
        f"broker {endpoints['broker']['kind']} on port {broker.port}; watch it with: shardyard watch{session.name_flag}\n"
        f"  or: mosquitto_sub -h {broker.hostname} -p {broker.port} -u {observer['username']} -P {observer['password']} "
        f"-v -t '{endpoints['broker']['watch_topics']}'"
    )
    say(
        f"{len(DEV_ACCOUNTS)} funded accounts on every shard; their keys are public ({MNEMONIC!r}), never use them elsewhere\n"
        f"  {DEV_ACCOUNTS[0].checksum_address} …  all: shardyard accounts{session.name_flag}"
    )
    say(
        f"next: shardyard tx xsend --src 0 --dst 1 --value 1ether{session.name_flag}"
        if session.shard_count > 1
        else f"next: shardyard tx send --to 1 --value 1ether{session.name_flag}"
    )
    if is_foreground:
        say("Ctrl-C stops the network and keeps its state")


def collect_status(session: Session) -> dict[str, Any]:
    """Return shards, beacon and processes of a running network."""
    nodes = session.ask_launcher("nodes")
    shards = []
    for endpoint in session.endpoints["shards"]:
        try:
            found = session.get_client(endpoint["shard"]).request("shard_status")
        except CliError as error:
            found = {"error": str(error)}
        shards.append({**endpoint, "status": found})
    try:
        beacon = session.ask_briefly("beacon-0", "status")
    except ControlError as error:
        beacon = {"error": f"{error}; try: shardyard logs beacon-0{session.name_flag}"}
    return {
        "name": session.name,
        "root": str(session.root),
        "beacon": beacon,
        "shards": shards,
        "nodes": [{**node, **_describe_node(session, node)} for node in nodes],
        "faults": session.ask_launcher("faults"),
    }


def _describe_node(session: Session, found: dict[str, Any]) -> dict[str, Any]:
    """Return what a running node does at the moment: signing, following only, or coming by a snapshot."""
    if not found["pid"]:
        return {"state": describe_absence(found)}
    if found["paused"]:
        return {"state": "paused"}
    try:
        told = session.ask_briefly(found["node"], "status")
    except ControlError:
        return {"state": "running"}  # the broker, or a node that is not ready yet
    if "signer" in told:
        signer = told["signer"]
        return {"state": signer["state"], "reason": name_network(signer["reason"], session.name)}
    if not told["chunks"]:
        return {"state": f"waiting for a snapshot of block {told['height']}"}
    held = told["chunks"] - told["missing"]
    return {"state": f"{told['state']} of block {told['height']}: {held} of {told['chunks']} chunks"}


def describe_absence(found: dict[str, Any]) -> str:
    """Return why a process that the launcher answered for has no process id."""
    if found.get("refused"):  # a launcher that was started before an update does not say it
        return "refused"
    return "restarting" if found["enabled"] else "stopped"


def _print_shards(session: Session, silent: Container[int] = ()) -> None:
    """Print a row per shard; those in ``silent`` were asked in vain, and are not asked again."""
    rows = []
    for endpoint in session.endpoints["shards"]:
        heads = ("-", "-")
        execution: dict[str, Any] = {}
        if endpoint["shard"] not in silent:
            with contextlib.suppress(CliError):
                client = session.get_client(endpoint["shard"])
                heads = (str(int(client.request("eth_blockNumber"), 16)), str(client.get_final_height()))
                execution = client.request("shard_status")["execution"]
        rows.append(
            (
                *(endpoint["shard"], endpoint["chain_id"], endpoint["rpc"], len(endpoint["nodes"]), *heads),
                *describe_execution(execution),
            )
        )
    print_table(
        ("Shard", "Chain ID", "JSON-RPC", "Nodes", "Head", "Finalized", "Executors", "Speed-up", "Aborts"),
        rows,
    )


def describe_execution(found: dict[str, Any]) -> tuple[str, str, str]:
    """Return a shard's executors, and the speed-up and abort rate of its newest blocks with transactions."""
    speed_up, abort_rate = found.get("speedUp"), found.get("abortRate")
    return (
        str(found.get("executors", "-")),
        "-" if speed_up is None else f"{speed_up:.2f}x",
        "-" if abort_rate is None else f"{abort_rate:.1%}",
    )


@click.command()
@network_option
def status(*, name: str, as_json: bool) -> int:
    """Show shards, heads and processes of a network."""
    session = Session(name, rpc_timeout_s=STATUS_TIMEOUT_S, control_timeout_s=STATUS_TIMEOUT_S)
    found = collect_status(session)
    if as_json:
        print_json(found)
        return 0
    _print_shards(session, {shard["shard"] for shard in found["shards"] if "error" in shard["status"]})
    beacon = found["beacon"]
    if "error" in beacon:
        say(f"beacon: {beacon['error']}")
    else:
        supply = "holds" if beacon["supply_holds"] else "BROKEN"
        say(f"beacon height {beacon['height']} slot {beacon['slot']}, supply {supply}")
    print_table(
        ("Node", "Validators", "Pid", "State", "Restarts", "Memory"),
        [
            (
                n["node"],
                describe_role(n),
                n["pid"] or "-",
                n["state"],
                n["restarts"],
                describe_memory(n["pid"]),
            )
            for n in found["nodes"]
        ],
    )
    for n in found["nodes"]:
        if n.get("reason", "-") != "-":
            say(f"{n['node']}: {n['reason']}")
    print_faults(found["faults"])
    return 0


def print_faults(found: dict[str, Any]) -> None:
    """Print what the launcher says of the faults that hold; nothing when there are none."""
    if not found["faults"]:
        return
    now = time.time()
    rows = [
        (
            one["id"],
            one["kind"],
            one["text"],
            f"{now - one['started_at']:.0f} s ago",
            "until healed" if one["ends_at"] is None else f"{max(0.0, one['ends_at'] - now):.0f} s left",
        )
        for one in found["faults"]
    ]
    print_table(("Fault", "Kind", "What", "Began", "Ends"), rows)
    for warning in found["warnings"]:
        say(f"warning: {warning}")


def describe_role(found: dict[str, Any]) -> str:
    """Return which validators of its chain a process runs; one of a chain that runs none is a follower."""
    if found["node"] == "broker":
        return "-"
    validators = found["validators"]
    if len(validators) > 8:
        return f"{validators[0]} to {validators[-1]}"
    return ", ".join(map(str, validators)) or "follower"


def describe_memory(pid: int | None) -> str:
    import psutil

    try:
        return f"{psutil.Process(pid).memory_full_info().uss / 1e6:.0f} MB" if pid else "-"
    except psutil.Error:
        return "-"


@click.command()
@network_option
def down(*, name: str, as_json: bool) -> int:
    """Stop a running network; its state is kept."""
    session = Session(name)
    if not is_held(session.root) and (woken := wake_orphans(session.network)):
        say(f"the launcher is gone; {woken} of its processes slept, were woken and left")
    session.ask_launcher("stop")
    deadline = time.monotonic() + STOP_TIMEOUT_S
    while is_held(session.root):
        if time.monotonic() > deadline:
            raise CliError(
                f"the launcher is still there after {STOP_TIMEOUT_S:.0f} s; "
                f"try: shardyard logs launcher{session.name_flag}"
            )
        time.sleep(0.03)
    if as_json:
        print_json({"name": name, "stopped": True})
    else:
        say(f"network {name!r} stopped; its state is kept")
    return 0


@click.command()
@click.option("--yes", is_flag=True, help="Do not ask.")
@network_option
def reset(*, name: str, as_json: bool, yes: bool) -> int:
    """Delete a stopped network: keys, chains, logs."""
    check_name(name)
    root = get_home() / name
    verify_deletable(root)
    if not yes and is_taken(root):
        confirm(f"delete network {name!r} at {root}?")
    if not delete_network(root):
        raise CliError(f"no network at {root}; try: shardyard up --name {name}", EXIT_NOT_RUNNING)
    if as_json:
        print_json({"name": name, "deleted": str(root)})
    else:
        say(f"network {name!r} deleted")
    return 0


@click.command()
@click.option("--shard", default=0, show_default=True, help="Shard the variables point at.")
@network_option
def env(*, shard: int, name: str, as_json: bool) -> int:
    """Print shell variables for cast and other tools: eval "$(shardyard env)"."""
    from node.dev_accounts import DEV_ACCOUNTS

    session = Session(name)
    session.get_client(shard)
    endpoint = session.endpoints["shards"][shard]
    values = {
        "ETH_RPC_URL": endpoint["rpc"],
        "CHAIN_ID": str(endpoint["chain_id"]),
        "ETH_FROM": DEV_ACCOUNTS[0].checksum_address,
        "PRIVATE_KEY": "0x" + DEV_ACCOUNTS[0].private_key.hex(),
        "SHARDYARD_NAME": name,
    }
    if as_json:
        print_json(values)
    else:
        for key, value in values.items():
            click.echo(f"export {key}={value}")
    return 0


@click.command()
@json_option
def version(*, as_json: bool) -> int:
    """Print the version."""
    if as_json:
        print_json({"shardyard": get_version("shardyard"), "python": sys.version.split()[0]})
    else:
        click.echo(f"shardyard {get_version('shardyard')}")
    return 0


def describe_options(options: Options) -> dict[str, Any]:
    """Return the options as plain values."""
    found: dict[str, Any] = msgspec.to_builtins(options)
    return found
