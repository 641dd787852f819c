"""``python -m node.process NODE ROOT``: one node of a network, a shard replica or the beacon, as a process of its own."""

import argparse
import logging
import sys
from pathlib import Path

import uvloop

from node.config import SNAPSHOT_DISTANCE
from node.logs import configure_logging
from node.network import open_network, parse_node
from node.storage.key_locks import KeyInUseError
from shardyard.errors import ConfigError, ShardyardError
from shardyard.ids import BEACON

EXIT_FAILURE = 1
EXIT_REFUSED = 2
"""The launcher does not start a node again that refused its configuration."""

logger = logging.getLogger("shardyard.node")


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Return the node's command line."""
    parser = argparse.ArgumentParser(prog="python -m node.process", description="One node of a network.")
    parser.add_argument("node", help="for example shard-0-0 or beacon-0")
    parser.add_argument("root", type=Path, help="folder of the network")
    parser.add_argument(
        "--executors", type=int, default=0, help="executor threads; 0 takes this shard's share of the cores"
    )
    parser.add_argument(
        "--sync-mempool", action="store_true", help="sync the journal before a transaction is answered"
    )
    parser.add_argument(
        "--snapshot-distance",
        type=int,
        default=SNAPSHOT_DISTANCE,
        help="blocks behind from which a replica comes by a snapshot",
    )
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run one node until it is told to end."""
    options = parse_arguments(arguments)
    configure_logging()
    try:
        network = open_network(options.root)
        if options.node not in network.nodes:
            raise ConfigError(f"node: got {options.node!r}, expected one of {', '.join(network.nodes)}")
        chain, _ = parse_node(options.node)
        if chain == BEACON:
            from node.beacon_process import run_beacon

            uvloop.run(run_beacon(network, options.node))
        else:
            from node.shard_process import run_shard

            uvloop.run(
                run_shard(
                    network,
                    options.node,
                    executors=options.executors,
                    sync_mempool=options.sync_mempool,
                    snapshot_distance=options.snapshot_distance,
                )
            )
    except (ConfigError, KeyInUseError) as error:
        logger.error("%s", error)  # noqa: TRY400 - what a person reads is the message; there is nothing to debug
        return EXIT_REFUSED
    except (ShardyardError, OSError):
        logger.exception("%s stopped", options.node)
        return EXIT_FAILURE
    return 0


if __name__ == "__main__":
    sys.exit(main())
