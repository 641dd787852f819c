"""Asks every shard of a running network for its height until all have made a block: ``first_block.py ENDPOINTS_JSON``.

Standard library only, so that it can be run by an environment that holds nothing but the built wheel.
"""

from __future__ import annotations

import json
import sys
import time
import urllib.request
from pathlib import Path

WITHIN_S = 30.0
POLL_S = 0.2


def ask_height(url: str) -> int:
    question = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "eth_blockNumber", "params": []}).encode()
    request = urllib.request.Request(url, question, {"content-type": "application/json"})  # noqa: S310  (our own loopback URL)
    with urllib.request.urlopen(request, timeout=5) as answer:  # noqa: S310
        return int(json.load(answer)["result"], 16)


def main() -> int:
    shards = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))["shards"]
    waiting = {entry["shard"]: entry["rpc"] for entry in shards}
    deadline = time.monotonic() + WITHIN_S
    while waiting:
        for shard, url in list(waiting.items()):
            height = ask_height(url)
            if height > 0:
                print(f"shard {shard} at {url}: eth_blockNumber is {height}")
                del waiting[shard]
        if waiting and time.monotonic() > deadline:
            sys.stderr.write(f"no block within {WITHIN_S:.0f} s from shards {sorted(waiting)}\n")
            return 1
        time.sleep(POLL_S if waiting else 0)
    return 0


if __name__ == "__main__":
    sys.exit(main())
