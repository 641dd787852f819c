"""``python -m node.launcher ROOT``: the launcher as a process of its own, for ``shardyard up --detach``."""

import argparse
import asyncio
import json
import logging
import sys
from pathlib import Path

import msgspec

from node.config import name_network
from node.launcher.launcher import run_foreground
from node.launcher.lock import NetworkBusyError
from node.launcher.ports import PortInUseError
from node.logs import configure_logging
from node.network import NetworkUnreadableError, open_network
from shardyard.errors import ConfigError, ShardyardError

logger = logging.getLogger("shardyard.launcher")

EXIT_FAILURE = 1
EXIT_USAGE = 2
EXIT_CONFLICT = 7
"""What the command line ends with: for what was asked of it, and when a port or the network itself is taken."""


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Return the launcher's command line."""
    parser = argparse.ArgumentParser(prog="python -m node.launcher", description="Runs a network.")
    parser.add_argument("root", type=Path, help="folder of the network")
    parser.add_argument("options", nargs="?", default="{}", help="changeable options, as JSON")
    parser.add_argument("--exit-with-stdin", action="store_true", help="stop when standard input closes")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run a network until it is told to stop."""
    asked = parse_arguments(arguments)
    configure_logging()
    try:
        network = open_network(asked.root)
        changed = json.loads(asked.options)
        network = msgspec.structs.replace(
            network, options=msgspec.structs.replace(network.options, **changed)
        )
        asyncio.run(run_foreground(network, None, lambda: None, exit_with_stdin=asked.exit_with_stdin))
    except (ShardyardError, OSError) as error:
        words = name_network(str(error), asked.root.name)
        logger.error("%s", words)  # noqa: TRY400 - a person reads this; there is nothing to debug
        match error:
            case PortInUseError() | NetworkBusyError():
                return EXIT_CONFLICT
            case NetworkUnreadableError():
                return EXIT_FAILURE
            case ConfigError():
                return EXIT_USAGE
            case _:
                return EXIT_FAILURE
    return 0


if __name__ == "__main__":
    sys.exit(main())
