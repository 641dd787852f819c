"""``config``: the options in force, and where each came from."""

import os
from pathlib import Path

import rich_click as click

from node.cli.network import describe_options, verify_options
from node.cli.output import json_option, print_json, print_table, say
from node.cli.root import NamingGroup
from node.config import resolve_options


@click.group(cls=NamingGroup)
def config() -> None:
    """Show the options in force and where they came from."""


@config.command()
@click.option(
    "-c",
    "--config",
    "config_file",
    type=click.Path(path_type=Path),
    default=None,
    help="TOML file of options.",
)
@json_option
def show(*, config_file: Path | None, as_json: bool) -> int:
    """Print every option, its value and its origin: default, file or environment."""
    options, origin = resolve_options({}, os.environ, config_file)
    values = describe_options(options)
    if as_json:
        print_json({"options": values, "origin": origin})
    else:
        print_table(
            ("Option", "Value", "Origin"), [(key, value, origin[key]) for key, value in values.items()]
        )
    return 0


@config.command()
@click.argument("file", type=click.Path(path_type=Path, exists=True))
def validate(*, file: Path) -> int:
    """Check a TOML file of options."""
    options, _ = resolve_options({}, {}, file)
    verify_options(options)
    say(f"{file}: valid")
    return 0
