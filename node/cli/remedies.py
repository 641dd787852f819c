"""What to try after a node refused something: geth's words stay as they are, the way out is ours.

Wallets parse geth's wording, so it is never changed; a person gets the next command to type behind it.
"""

import contextlib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from node.config import ENV_PREFIX, Options, get_default_name, get_name_flag, read_file
from shardyard.errors import ConfigError

_ADDRESS: Final = re.compile(r"0x[0-9a-fA-F]{40}")
_OVERSHOT: Final = re.compile(r"overshot (\d{1,78})")
FAUCET_ETHER: Final = 100
MAX_FAUCET_ETHER: Final = 1000
"""More than this is a slip of the pen sooner than a wish: a development account has 10000 to begin with."""


def find_name(arguments: Sequence[str]) -> str:
    """Return the network that a command line means, whatever else is wrong with it."""
    given = {}
    for word, after in zip(arguments, [*arguments[1:], ""], strict=True):
        flag, equals, value = word.partition("=")
        given[flag] = value if equals else after
    if name := given.get("--name"):
        return name
    file = given.get("-c") or given.get("--config")
    with contextlib.suppress(ConfigError):
        if file and f"{ENV_PREFIX}NAME" not in os.environ:
            return str(read_file(Path(file)).get("name", Options().name))
        return get_default_name()
    return Options().name


def get_remedy(message: str, *, name: str, shard: int, sender: str = "") -> str:
    """Return what to try when shard ``shard`` answered ``message``; the account in trouble is ``sender`` when known."""
    found = _ADDRESS.search(message)
    account = sender or (found[0] if found else "ADDRESS")
    network = get_name_flag(name)
    for words, remedy in (
        ("insufficient funds", _get_funds_remedy(message, account, f"--shard {shard}{network}")),
        ("nonce too low", "the same without --nonce, which takes the next free one"),
        ("nonce too high", "the same without --nonce, which takes the next free one"),
        (
            "already known",
            f"shardyard tx wait HASH{network}   (the very same transaction is waiting already)",
        ),
        ("replacement transaction underpriced", "another --nonce, or wait until the first one is in a block"),
        (
            "transaction underpriced",
            f"shardyard block latest --shard {shard}{network}   (shows the base fee)",
        ),
        ("account limit exceeded", "wait until some of the account's transactions are in blocks"),
        ("txpool is full", "again in a moment: blocks empty the pool"),
        ("intrinsic gas too low", "the same without --gas, which estimates it"),
        ("exceeds block gas limit", "a smaller --gas"),
        ("gas required exceeds", "a call that needs less gas, or none that reverts"),
        ("out of gas", "the same without --gas, which estimates it"),
        ("execution reverted", "other arguments; cast call --trace shows where it reverted"),
        ("no longer held", f"shardyard block latest --shard {shard}{network}"),
        ("never executed", f"shardyard block show 1 --shard {shard}{network}"),
        ("not found", f"shardyard block latest --shard {shard}{network}"),
        ("too many requests", "again in a moment"),
    ):
        if words in message.lower():
            return remedy
    return f"shardyard status{network}"


def _get_funds_remedy(message: str, account: str, flags: str) -> str:
    """Return the line of the faucet that gives ``account`` what it lacks, when that is an amount to be had from it."""
    found = _OVERSHOT.search(message)
    ether = max(FAUCET_ETHER, -(-int(found[1]) // 10**18)) if found else FAUCET_ETHER
    if ether > MAX_FAUCET_ETHER:
        return f"a smaller amount, or another sender; {account} lacks {ether} ether"
    return f"shardyard faucet {account} {ether}ether {flags}"
