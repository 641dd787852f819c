"""The journey of a transaction: every cross-shard message it caused, put together from what each shard knows.

A message is known by both of its shards; each tells its own half (``shard_getCrossTx``). Here the halves meet, in order of
depth, so that a story can be told and waited for.
"""

from collections.abc import Callable
from typing import Any, Protocol

import msgspec

MAX_REASON_BYTES = 300
_ERROR_SELECTOR = bytes.fromhex("08c379a0")
REPLY_KINDS = frozenset({"RESULT", "BOUNCE"})


class Client(Protocol):
    """A JSON-RPC client of one shard."""

    def request(self, method: str, *params: object) -> Any:
        """Return the result of ``method``."""
        ...


class ShardClients(Protocol):
    """Where a client of each shard is to be had."""

    @property
    def shard_count(self) -> int:
        """Number of shards."""
        ...

    def get_client(self, shard: int) -> Client:
        """Return the client of ``shard``."""
        ...


class Hop(msgspec.Struct, frozen=True):
    """One message: both halves of its life."""

    id: str
    kind: str
    src: int
    dst: int
    depth: int
    sender: str
    target: str
    value: int
    payload: str
    emitted: dict[str, Any] | None
    delivered: dict[str, Any] | None
    reply: dict[str, Any] | None

    @property
    def is_done(self) -> bool:
        """Whether it has had its effect and that effect is beacon-final; a CALL also needs its reply emitted."""
        if self.delivered is None or not self.delivered["beaconFinal"]:
            return False
        return self.kind != "CALL" or self.reply is not None

    @property
    def stage(self) -> str:
        """Return the last thing that happened to it."""
        if self.delivered is None:
            is_relayed = self.emitted is not None and self.emitted["beaconFinal"]
            return "on the beacon, waiting at its destination" if is_relayed else "emitted"
        word = "executed" if self.delivered["status"] else "failed and bounced"
        return f"{word}, beacon-final" if self.delivered["beaconFinal"] else word

    @property
    def reason(self) -> str:
        """Why the call failed that this message brings back, when the contract said so with ``Error(string)``."""
        if self.kind != "BOUNCE":
            return ""
        payload = bytes.fromhex(self.payload[2:])
        start = payload.find(_ERROR_SELECTOR)
        arguments = payload[start + 4 :]
        if start < 0 or len(arguments) < 64:
            return ""
        length = int.from_bytes(arguments[32:64], "big")
        return arguments[64 : 64 + min(length, MAX_REASON_BYTES)].decode(errors="replace")

    @property
    def transit_ms(self) -> int | None:
        """Milliseconds between the block that emitted it and the one that executed it."""
        if self.emitted is None or self.delivered is None:
            return None
        difference: int = self.delivered["timestampMs"] - self.emitted["timestampMs"]
        return difference

    def describe(self) -> str:
        """Return a line about it."""
        transit = f" after {self.transit_ms / 1000:.1f} s" if self.transit_ms is not None else ""
        return f"{self.kind} {self.id[:14]}… shard {self.src} → {self.dst}: {self.stage}{transit}"

    def to_row(self) -> tuple[str, str, int, int, str]:
        """Return the cells of a table of messages."""
        return self.id, self.kind, self.src, self.dst, self.stage


class Journey(msgspec.Struct, frozen=True):
    """All messages of one transaction, in order of depth."""

    tx_hash: str
    shard: int
    transaction: dict[str, Any] | None
    """Finality of the transaction itself, as its shard tells it; None while nobody knows it."""
    hops: tuple[Hop, ...]

    @property
    def is_done(self) -> bool:
        """Whether the transaction is beacon-final and so is the last effect of each of its messages."""
        if self.transaction is None or self.transaction["stage"] != "beacon-final":
            return False
        answered = {hop.id for hop in self.hops if hop.kind == "CALL" and hop.reply is not None}
        replies = sum(hop.kind in REPLY_KINDS for hop in self.hops)
        return all(hop.is_done for hop in self.hops) and replies >= len(answered)

    @property
    def is_successful(self) -> bool:
        """Whether the transaction succeeded and nothing bounced."""
        return bool(self.transaction and self.transaction.get("status")) and all(
            hop.kind != "BOUNCE" for hop in self.hops
        )

    def to_json(self) -> list[dict[str, Any]]:
        """Return the hops as plain values."""
        return [msgspec.to_builtins(hop) | {"value": hex(hop.value), "stage": hop.stage} for hop in self.hops]


def trace_journey(clients: ShardClients, shard: int, tx_hash: str) -> Journey:
    """Return what all shards together know of ``tx_hash``, which was sent on ``shard``.

    Only shards that messages lead to are asked, so that a local transaction costs one request.
    """
    first = clients.get_client(shard).request("shard_getCrossTx", tx_hash)
    transaction = first["transaction"] if first else None
    halves: dict[str, list[dict[str, Any]]] = {}
    asked = {shard}
    waiting = _collect(first, halves)
    while ahead := sorted(waiting - asked):
        for number in ahead:
            asked.add(number)
            waiting |= _collect(clients.get_client(number).request("shard_getCrossTx", tx_hash), halves)
    hops = [_merge(parts) for parts in halves.values()]
    order: Callable[[Hop], tuple[int, int, str]] = lambda hop: (hop.depth, hop.src, hop.id)  # noqa: E731 - a sort key
    return Journey(tx_hash, shard, transaction, tuple(sorted(hops, key=order)))


def _collect(answer: dict[str, Any] | None, halves: dict[str, list[dict[str, Any]]]) -> set[int]:
    found: set[int] = set()
    for message in answer["messages"] if answer else ():
        halves.setdefault(message["id"], []).append(message)
        found |= {message["src"], message["dst"]}
    return found


def _merge(parts: list[dict[str, Any]]) -> Hop:
    first = parts[0]

    def pick(field: str) -> Any:
        return next((part[field] for part in parts if part[field] is not None), None)

    return Hop(
        id=first["id"],
        kind=first["kind"],
        src=first["src"],
        dst=first["dst"],
        depth=first["depth"],
        sender=first["sender"],
        target=first["target"],
        value=int(first["value"], 16),
        payload=first["payload"],
        emitted=pick("emitted"),
        delivered=pick("delivered"),
        reply=pick("reply"),
    )
