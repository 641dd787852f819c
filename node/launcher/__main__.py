"""``python -m node.launcher ROOT``: the launcher as a process of its own, for ``shardyard up --detach``."""

import asyncio
import json
import logging
import sys
from pathlib import Path

import msgspec

from node.launcher.launcher import run_foreground
from node.launcher.lock import NetworkBusyError
from node.launcher.ports import PortInUseError
from node.logs import configure_logging
from node.network import open_network
from shardyard.errors import ShardyardError

logger = logging.getLogger("shardyard.launcher")

EXIT_FAILURE = 1
EXIT_CONFLICT = 7
"""What the command line ends with when a port or the network itself is taken."""


def main() -> int:
    """Run the network at ``argv[1]`` with the changeable options in ``argv[2]`` (JSON) until it is told to stop."""
    configure_logging()
    try:
        network = open_network(Path(sys.argv[1]))
        changed = json.loads(sys.argv[2]) if len(sys.argv) > 2 else {}
        network = msgspec.structs.replace(
            network, options=msgspec.structs.replace(network.options, **changed)
        )
        asyncio.run(run_foreground(network, None, lambda: None))
    except ShardyardError as error:
        logger.error("%s", error)  # noqa: TRY400 - a person reads this; there is nothing to debug
        return EXIT_CONFLICT if isinstance(error, PortInUseError | NetworkBusyError) else EXIT_FAILURE
    return 0


if __name__ == "__main__":
    sys.exit(main())
