"""``logs``: what the processes of a network wrote, in the order of time, and as they go on writing.

Commands that a process advises get the network that they are for: it does not know how a person calls it. With ``--json`` a
line is what the file has.
"""

import contextlib
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import rich_click as click

from node.cli.output import network_option
from node.cli.root import EXIT_USAGE, CliError
from node.cli.session import Session
from node.config import name_network
from node.launcher.log_files import get_older

POLL_S = 0.2

Write = Callable[[str, str], None]
"""Prints a line that a node wrote: node, line."""


@click.command()
@click.argument("node", required=False)
@click.option("-f", "--follow", is_flag=True, help="Go on as lines are written.")
@click.option("-n", "--lines", default=40, show_default=True, help="How many of the last lines of each node.")
@network_option
def logs(*, node: str | None, follow: bool, lines: int, name: str, as_json: bool) -> int:
    """Show the logs of NODE (for example shard-0-0, beacon-0, broker, launcher), or of all."""
    session = Session(name)
    known = {path.stem: path for path in sorted((session.root / "logs").glob("*.log"))}
    if node is not None and node not in known:
        raise CliError(
            f"node: got {node!r}, expected one with a log: {', '.join(known) or 'none yet'}; "
            f"try: shardyard node list{session.name_flag}",
            EXIT_USAGE,
        )
    paths = list(known.values()) if node is None else [known[node]]
    write = partial(_print_line, name=name, as_json=as_json)
    sizes = _print_tails(paths, lines, write)
    while follow:
        time.sleep(POLL_S)
        for path in paths:
            _print_new_lines(path, sizes, write)
    return 0


def _print_tails(paths: list[Path], lines: int, write: Write) -> dict[Path, int]:
    """Print the last ``lines`` of each file, all in the order of time; return how far each was read."""
    sizes: dict[Path, int] = {}
    entries: list[tuple[str, str, str]] = []
    for path in paths:
        content = path.read_bytes()
        content = content[: content.rfind(b"\n") + 1]
        sizes[path] = len(content)
        if content.count(b"\n") < lines:
            content = _read_older(path) + content
        stamp = ""
        for line in content.decode(errors="replace").splitlines()[-lines:] if lines > 0 else ():
            stamp = _read_stamp(line) or stamp  # a line without a time belongs to the one before it
            entries.append((stamp, path.stem, line))
    for _, stem, line in sorted(entries, key=lambda entry: entry[0]):
        write(stem, line)
    return sizes


def _read_older(path: Path) -> bytes:
    """Return what was in ``path`` before it was last emptied."""
    with contextlib.suppress(FileNotFoundError):
        return get_older(path).read_bytes()
    return b""


def _print_new_lines(path: Path, sizes: dict[Path, int], write: Write) -> None:
    rest = b""
    if path.stat().st_size < sizes[path]:  # the launcher kept what was in it elsewhere and emptied it
        rest = _read_older(path)[sizes[path] :]
        sizes[path] = 0
    with path.open("rb") as file:
        file.seek(sizes[path])
        fresh = file.read()
    complete = fresh[: fresh.rfind(b"\n") + 1]
    sizes[path] += len(complete)
    complete = rest + complete
    for line in complete.decode(errors="replace").splitlines():
        write(path.stem, line)


def _read_stamp(line: str) -> str:
    with contextlib.suppress(ValueError, KeyError, TypeError):
        return str(json.loads(line)["time"])
    return ""


def _print_line(node: str, line: str, *, name: str, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"node": node, "line": line}))
        return
    text = line
    with contextlib.suppress(ValueError, KeyError, TypeError):
        record = json.loads(line)
        text = f"{record['time'][11:23]} {record['level']:<7} {record['message']}"
        if "traceback" in record:
            text += "\n" + record["traceback"]
    click.echo(f"{node:<10} {name_network(text, name)}")
