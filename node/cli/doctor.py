"""``doctor``: what keeps a network from running well, each finding with the next thing to try.

A running network is asked for its processes, heads, finality, bus and supply; a stopped one is checked for what would
keep it from starting. Exit code 1 when something is wrong; warnings alone leave it 0.
"""

import contextlib
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
import rich_click as click

from node.cli.network import describe_absence, probe_broker
from node.cli.output import network_option, print_json, say
from node.cli.root import EXIT_FAILURE, CliError
from node.cli.session import Session
from node.config import name_network
from node.control import ControlError

LOW_DISK_BYTES: Final = 512 * 1024**2
SCARCE_DISK_BYTES: Final = 2 * 1024**3
LOW_MEMORY_BYTES: Final = 256 * 1024**2
LARGE_PROCESS_BYTES: Final = 600 * 1024**2
MAX_FINALITY_LAG_BLOCKS: Final = 16
MAX_LOOP_LAG_MS: Final = 250
MAX_CLOCK_LEAD_S: Final = 2.0
RECENT_EXIT_S: Final = 300
ADVANCE_BLOCKS: Final = 5
"""Block times that a chain gets to show a new block."""

State = Literal["ok", "warning", "wrong"]


class Finding(msgspec.Struct, frozen=True):
    """One thing that was looked at; ``remedy`` is empty when it is well."""

    name: str
    state: State
    detail: str
    remedy: str = ""


@click.command()
@network_option
def doctor(*, name: str, as_json: bool) -> int:
    """Look for what keeps a network from running well."""
    session = Session(name)
    is_running = session.is_running()
    findings = list(examine_running(session) if is_running else examine_stopped(session))
    findings += examine_machine(session.root)
    is_wrong = any(finding.state == "wrong" for finding in findings)
    if as_json:
        checks = [msgspec.to_builtins(finding) for finding in findings]
        print_json({"name": name, "running": is_running, "healthy": not is_wrong, "checks": checks})
    else:
        for finding in findings:
            click.echo(f"{finding.state:<8} {finding.name}: {finding.detail}")
            if finding.remedy:
                click.echo(f"         try: {finding.remedy}")
        unwell = sum(finding.state != "ok" for finding in findings)
        if not is_running and not is_wrong:
            say(f"network {name!r} is stopped, nothing stands in the way of: shardyard up{session.name_flag}")
        else:
            say(f"{unwell} of {len(findings)} checks need a look" if unwell else "all is well")
    return EXIT_FAILURE if is_wrong else 0


def examine_stopped(session: Session) -> Iterator[Finding]:
    """Check what a start would need."""
    from node.launcher.ports import choose_ports, find_obstacle

    options = session.network.options
    if options.port_base == 0:
        yield Finding("ports", "ok", "free ones are picked at each start")
        return
    ports = choose_ports(
        port_base=0,
        broker_port=0,
        shards=options.shards,
        replicas=options.replicas,
        embedded=False,
    )
    wanted = {name: options.port_base + offset for offset, name in enumerate(ports.rpc)}
    if options.broker_port and "://" not in options.broker:
        wanted["broker"] = options.broker_port
    remedy = f"shardyard up{session.name_flag} --port-base 0   (picks free ports for everything)"
    for name, port in wanted.items():
        twin = next((other for other in wanted if other != name and wanted[other] == port), "")
        if twin:
            yield Finding(f"port {port}", "wrong", f"wanted by {name} and by {twin}", remedy)
        elif obstacle := find_obstacle(port):
            yield Finding(f"port {port}", "wrong", f"wanted by {name}, {obstacle}", remedy)
        else:
            yield Finding(f"port {port}", "ok", f"free for {name}")


def examine_running(session: Session) -> Iterator[Finding]:
    """Check processes, then what they say of themselves."""
    nodes = session.ask_launcher("nodes")
    exits = session.ask_launcher("exits")
    faults = session.ask_launcher("faults")["faults"]
    yield from _check_processes(session, [node for node in nodes if not _is_held(node, faults)], exits)
    for one in faults:
        remedy = f"shardyard fault heal {one['id']}{session.name_flag}"
        yield Finding(f"fault {one['id']}", "warning", f"{one['kind']} {one['text']}", remedy)
    nodes = [node for node in nodes if not node["paused"]]
    before = _read_heads(session)
    statuses = dict(_read_statuses(session, [node["node"] for node in nodes if node["pid"]]))
    yield from _check_broker(session, statuses)
    for node, status in statuses.items():
        yield from _check_status(session, node, status)
    yield from _check_heads(session, before)


def _is_held(node: dict[str, Any], faults: list[dict[str, Any]]) -> bool:
    """Tell whether a process is down or asleep by a fault, which its own finding names."""
    return any(one["kind"] in {"kill", "pause"} and node["node"] in one["nodes"] for one in faults)


def _check_processes(
    session: Session, nodes: list[dict[str, Any]], exits: list[dict[str, Any]]
) -> Iterator[Finding]:
    import psutil

    for node in nodes:
        name, flag = node["node"], session.name_flag
        if not node["pid"]:
            is_down = not (node["enabled"] or node.get("refused"))
            start, look = f"shardyard node start {name}{flag}", f"shardyard logs {name}{flag}"
            yield Finding(f"process {name}", "wrong", describe_absence(node), start if is_down else look)
            continue
        memory = 0
        with contextlib.suppress(psutil.Error):
            memory = psutil.Process(node["pid"]).memory_info().rss
        detail = f"pid {node['pid']}, {memory / 1e6:.0f} MB"
        if memory > LARGE_PROCESS_BYTES:
            yield Finding(f"process {name}", "warning", detail, f"shardyard node restart {name}{flag}")
        elif last := next((found for found in reversed(exits) if found["node"] == name), None):
            age_s = time.time() - last["time"]
            detail += f", ended {node['restarts']} times, last {age_s:.0f} s ago with status {last['code']}"
            if age_s < RECENT_EXIT_S:
                yield Finding(f"process {name}", "warning", detail, f"shardyard logs {name}{flag}")
            else:
                yield Finding(f"process {name}", "ok", detail)
        else:
            yield Finding(f"process {name}", "ok", detail)


def _read_statuses(session: Session, names: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    for name in names:
        if name == "broker":
            continue
        try:
            yield name, session.ask_node(name, "status")
        except (CliError, ControlError) as error:
            yield name, {"error": str(error).partition("; try:")[0]}


def _check_broker(session: Session, statuses: dict[str, dict[str, Any]]) -> Iterator[Finding]:
    url = session.endpoints["broker"]["url"]
    if silence := probe_broker(url):
        is_ours = session.endpoints["broker"]["kind"] != "external"
        remedy = f"shardyard node restart broker{session.name_flag}" if is_ours else "start it there"
        yield Finding("broker", "wrong", f"{url}: {silence}", remedy)
        return
    lonely = [node for node, status in statuses.items() if not status.get("bus", {}).get("connected")]
    if lonely:
        remedy = f"shardyard logs {lonely[0]}{session.name_flag}"
        yield Finding("broker", "wrong", f"{url} answers, but not to {', '.join(lonely)}", remedy)
    else:
        yield Finding("broker", "ok", f"{url}, every node is connected")


def _check_status(session: Session, node: str, status: dict[str, Any]) -> Iterator[Finding]:
    flag = session.name_flag
    if "error" in status:
        yield Finding(node, "wrong", status["error"], f"shardyard logs {node}{flag}")
        return
    refused = sum(status.get("bus", {}).get("refused", {}).values())
    lag = status.get("loop_lag_ms") or 0
    if status.get("supply_holds") is False:
        yield Finding(
            f"{node} supply", "wrong", f"does not add up: {status['supply']}", f"shardyard audit{flag}"
        )
    signer = status.get("signer", {})
    if silent := signer.get("silent", 0):
        reason, _, remedy = name_network(signer["reason"], session.name).partition("; try: ")
        detail = f"{silent} of its {signer['keys']} keys sign nothing: {reason}"
        yield Finding(f"{node} keys", "warning", detail, remedy or f"shardyard validator list{flag}")
    if lag > MAX_LOOP_LAG_MS:
        remedy = "fewer shards or replicas, or a longer --block-time: this machine is too busy"
        yield Finding(f"{node} lag", "warning", f"its event loop is {lag:.0f} ms late", remedy)
    if refused:
        remedy = f"shardyard node show {node}{flag}   (what was refused)"
        yield Finding(f"{node} bus", "warning", f"{refused} messages of others were refused", remedy)
    if lag <= MAX_LOOP_LAG_MS and not refused and not silent and status.get("supply_holds") is not False:
        supply = ", supply holds" if "supply_holds" in status else ""
        yield Finding(node, "ok", f"answers, event loop {lag:.0f} ms late{supply}")


def _read_heads(session: Session) -> dict[str, tuple[int, int, float]]:
    """Return latest height, beacon-final height and time of the latest block of each chain that answers."""
    found: dict[str, tuple[int, int, float]] = {}
    for shard in range(session.shard_count):
        with contextlib.suppress(CliError):
            heads = session.get_client(shard).request("shard_status")["heads"]
            final = heads["finalized"]["height"] if heads["finalized"] else 0
            latest = heads["latest"]
            found[f"shard {shard}"] = latest["height"], final, latest["timestampMs"] / 1000
    with contextlib.suppress(CliError, ControlError):
        beacon = session.ask_briefly("beacon-0", "status")
        found["beacon"] = beacon["height"], beacon["height"], beacon["timestamp_ms"] / 1000
    return found


def _check_heads(session: Session, before: dict[str, tuple[int, int, float]]) -> Iterator[Finding]:
    block_time_s = session.network.genesis.preset.block_time_ms / 1000
    deadline = time.monotonic() + ADVANCE_BLOCKS * block_time_s
    after = before
    while time.monotonic() < deadline:
        after = _read_heads(session)
        if all(chain in after and after[chain][0] > heads[0] for chain, heads in before.items()):
            break
        time.sleep(0.1)
    flag = session.name_flag
    for chain in ("beacon", *(f"shard {shard}" for shard in range(session.shard_count))):
        if chain not in after:
            yield Finding(chain, "wrong", "does not answer", f"shardyard node list{flag}")
            continue
        height, final, stamp = after[chain]
        lead = stamp - time.time()
        node = "beacon-0" if chain == "beacon" else chain.replace(" ", "-") + "-0"
        if chain in before and height <= before[chain][0]:
            detail = f"no new block for {ADVANCE_BLOCKS * block_time_s:.1f} s, the last is {height}, {-lead:.0f} s old"
            yield Finding(chain, "wrong", detail, f"shardyard logs {node}{flag}")
        elif height - final > MAX_FINALITY_LAG_BLOCKS:
            detail = f"block {height}, but the beacon has only {final}"
            yield Finding(chain, "warning", detail, f"shardyard logs beacon-0{flag}")
        elif lead > MAX_CLOCK_LEAD_S:
            remedy = "set this machine's clock (timedatectl), then look again"
            yield Finding(
                f"{chain} clock", "warning", f"its last block is {lead:.0f} s in the future", remedy
            )
        else:
            yield Finding(chain, "ok", f"block {height}, beacon-final {final}")


def examine_machine(root: Path) -> Iterator[Finding]:
    """Check what the machine has left: disk, memory, and a clock that can be true."""
    import psutil

    free = shutil.disk_usage(root).free
    state: State = "wrong" if free < LOW_DISK_BYTES else "warning" if free < SCARCE_DISK_BYTES else "ok"
    remedy = (
        "" if state == "ok" else f"delete what is not needed, or move SHARDYARD_HOME; {root} is on this disk"
    )
    yield Finding("disk", state, f"{free / 1e9:.1f} GB free at {root}", remedy)
    memory = psutil.virtual_memory()
    state = "warning" if memory.available < LOW_MEMORY_BYTES else "ok"
    remedy = "" if state == "ok" else "stop something, or start fewer shards"
    yield Finding(
        "memory", state, f"{memory.available / 1e9:.1f} GB of {memory.total / 1e9:.1f} GB available", remedy
    )
    made = (root / "network.json").stat().st_mtime
    state = "warning" if time.time() < made else "ok"
    remedy = "" if state == "ok" else "set this machine's clock (timedatectl)"
    words = "ok" if state == "ok" else "earlier than the network's own creation"
    yield Finding("clock", state, f"{time.strftime('%Y-%m-%d %H:%M:%S UTC', time.gmtime())}, {words}", remedy)
