"""What the mirror would tell, asked of the shards over JSON-RPC: for a network whose broker does not answer."""

import contextlib
from typing import Any, Final

from node.cli.root import CliError
from node.cli.session import Session
from node.control import ControlError

MAX_BLOCKS_AT_ONCE: Final = 20
MAX_MESSAGES_AT_ONCE: Final = 200


class Poller:
    """Remembers how far each shard was read."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._heights: dict[int, int] = {}
        self._finalized: dict[int, int] = {}
        self._beacon = 0

    def poll(self) -> list[dict[str, Any]]:
        """Return what is new; a shard that does not answer has nothing new."""
        found = []
        with contextlib.suppress(CliError, ControlError):
            found += self._poll_beacon()
        for shard in range(self._session.shard_count):
            with contextlib.suppress(CliError):
                found += self._poll_shard(shard)
        return found

    def _poll_beacon(self) -> list[dict[str, Any]]:
        status = self._session.ask_node("beacon-0", "status")
        if status["height"] <= self._beacon:
            return []
        self._beacon = status["height"]
        return [{"kind": "beacon.final", "chain": "beacon", "height": self._beacon, "slot": status["slot"]}]

    def _poll_shard(self, shard: int) -> list[dict[str, Any]]:
        client = self._session.get_client(shard)
        heads = client.request("shard_status")["heads"]
        latest, finalized = heads["latest"]["height"], (heads["finalized"] or {"height": 0})["height"]
        first = max(self._heights.get(shard, latest - 1) + 1, latest - MAX_BLOCKS_AT_ONCE + 1)
        chain = f"shard-{shard}"
        found: list[dict[str, Any]] = []
        if first <= latest:
            query = {"fromBlock": first, "toBlock": latest, "limit": MAX_MESSAGES_AT_ONCE}
            messages = client.request("shard_getMessages", query)
            found += [self._describe_block(shard, height, messages) for height in range(first, latest + 1)]
            for message in reversed(messages):
                found += _describe_message(chain, message, shard)
            self._heights[shard] = latest
        if finalized > self._finalized.get(shard, 0):
            self._finalized[shard] = finalized
            found.append({"kind": "crosslink.final", "chain": chain, "last_height": finalized})
            query = {"direction": "out", "toBlock": finalized, "limit": MAX_MESSAGES_AT_ONCE}
            for message in client.request("shard_getMessages", query | {"fromBlock": max(0, finalized - 8)}):
                found += _describe_message(chain, message, shard)
        return found

    def _describe_block(self, shard: int, height: int, messages: list[dict[str, Any]]) -> dict[str, Any]:
        block = self._session.get_client(shard).request("eth_getBlockByNumber", hex(height), False)
        executed = [
            message["delivered"] for message in messages if message["delivered"] and message["dst"] == shard
        ]
        deliveries = sum(event["blockNumber"] == height for event in executed)
        return {
            "kind": "block.final",
            "chain": f"shard-{shard}",
            "height": height,
            "hash": block["hash"],
            "transactions": len(block["transactions"]) - deliveries,
            "deliveries": deliveries,
            "gas_used": int(block["gasUsed"], 16),
        }


def _describe_message(chain: str, message: dict[str, Any], shard: int) -> list[dict[str, Any]]:
    """Return an entry per stage that ``shard`` knows of."""
    base = {
        "kind": "message",
        "chain": chain,
        "id": message["id"].removeprefix("0x"),
        "receipt": message["kind"],
        "src": message["src"],
        "dst": message["dst"],
        "value": str(int(message["value"], 16)),
    }
    found = []
    if message["src"] == shard and message["emitted"]:
        found.append({**base, "stage": "emitted", "height": message["emitted"]["blockNumber"]})
        if message["emitted"]["beaconFinal"]:
            found.append({**base, "stage": "beacon-final"})
    if message["dst"] == shard and message["delivered"]:
        found.append({**base, "stage": "delivered", "height": message["delivered"]["blockNumber"]})
    return found
