"""The command ``shardyard``: one module per group of commands, imported when it is asked for."""

from node.cli.root import main

__all__ = ["main"]
