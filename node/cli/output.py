"""What commands print: data on standard output (tables, or JSON with a versioned schema), words on standard error."""

import json
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import rich_click as click

SCHEMA_VERSION = 1

F = TypeVar("F", bound=Callable[..., Any])


def _get_default_name() -> str:
    from node.config import get_default_name  # for the help of the root it is not needed

    return get_default_name()


def network_option(function: F) -> F:
    """Add ``--name`` and ``--json``, which every command of a network has."""
    function = click.option("--name", default=_get_default_name, show_default="dev", help="Network.")(
        function
    )
    return json_option(function)


def json_option(function: F) -> F:
    """Add ``--json``."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(function)


def print_json(value: object) -> None:
    """Print ``value`` as one JSON document with its schema version."""
    document = (
        {"schema": SCHEMA_VERSION, **value}
        if isinstance(value, dict)
        else {"schema": SCHEMA_VERSION, "items": value}
    )
    sys.stdout.write(json.dumps(document, default=_encode) + "\n")
    sys.stdout.flush()  # whoever reads through a pipe waits for it


def _encode(value: object) -> str:
    if isinstance(value, bytes):
        return "0x" + value.hex()
    return str(value)


def flatten(value: dict[str, Any], prefix: str = "") -> list[tuple[str, object]]:
    """Return the leaves of nested dictionaries as rows of a table, their keys joined by dots."""
    rows: list[tuple[str, object]] = []
    for key, found in value.items():
        if isinstance(found, dict):
            rows += flatten(found, f"{prefix}{key}.")
        else:
            rows.append((prefix + key, found))
    return rows


def format_ether(wei: int) -> str:
    """Return ``wei`` as ether, without trailing zeros."""
    sign = "-" if wei < 0 else ""
    whole, rest = divmod(abs(wei), 10**18)
    return sign + f"{whole}.{rest:018d}".rstrip("0").rstrip(".")


def say(text: str) -> None:
    """Print words for people, on standard error."""
    click.echo(text, err=True)


def format_cell(value: object) -> str:
    """Return a cell of a table: yes and no as files of options have them, and a dash for what there is not."""
    if value is None:
        return "-"
    return str(value).lower() if isinstance(value, bool) else str(value)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print aligned columns on standard output; plain text when it is not a terminal."""
    texts = [[format_cell(cell) for cell in row] for row in rows]
    if sys.stdout.isatty():
        from rich import box
        from rich.console import Console
        from rich.table import Table

        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for column in columns:
            table.add_column(column, overflow="fold")
        for row in texts:
            table.add_row(*row)
        Console().print(table)
        return
    widths = [
        max(len(column), *(len(row[index]) for row in texts), 0) for index, column in enumerate(columns)
    ]
    for row in [list(columns), *texts]:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def print_error(text: str, *, as_json: bool, code: int) -> None:
    """Print an error with its ``try:`` on a line of its own."""
    message, _, remedy = text.partition("; try: ")
    if not remedy and "\ntry: " in message:
        message, _, remedy = message.partition("\ntry: ")
    if as_json:
        document = {
            "schema": SCHEMA_VERSION,
            "error": {"code": code, "message": message, "try": remedy or None},
        }
        sys.stderr.write(json.dumps(document) + "\n")
        return
    click.echo(f"error: {message}", err=True)
    if remedy:
        click.echo(f"try: {remedy}", err=True)
