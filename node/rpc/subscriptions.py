"""Subscriptions: who hears of new heads, logs and pending transactions.

A head is put into JSON once, whatever the number of listeners. Delivery never waits: a connection that does not keep up
is closed by its own queue, and the chain goes on.
"""

import secrets
from collections.abc import Callable

import msgspec

from node.admission import Accepted
from node.index.logs import LogPattern, find_logs_in_block
from node.index.records import IndexedBlock
from node.rpc.api import ShardApi
from node.rpc.formats import data, format_header, format_log, format_waiting
from node.rpc.params import LogQuery
from node.rpc.protocol import encode_json


class Subscription(msgspec.Struct, frozen=True):
    """One subscription of one connection; ``send`` takes the text of a notification."""

    id: str
    kind: str
    pattern: LogPattern | None
    full: bool
    send: Callable[[bytes], None]


def build_subscription(kind: str, options: object, send: Callable[[bytes], None]) -> Subscription:
    """Return a new subscription: ``options`` is a ``LogQuery`` for logs, a boolean or None otherwise."""
    pattern = LogPattern(options.addresses, options.topics) if isinstance(options, LogQuery) else None
    return Subscription(hex(secrets.randbits(128)), kind, pattern, options is True, send)


def encode_notification(subscription: str, result: bytes) -> bytes:
    """Return the text that tells a subscriber of ``result``, which is JSON already."""
    params = {"subscription": subscription, "result": msgspec.Raw(result)}
    return encode_json({"jsonrpc": "2.0", "method": "eth_subscription", "params": params})


class SubscriptionHub:
    """All live subscriptions of a server."""

    def __init__(self, api: ShardApi) -> None:
        self._api = api
        self._by_id: dict[str, Subscription] = {}
        api.backend.on_head.append(self._on_head)
        api.backend.on_pending.append(self._on_pending)

    def __len__(self) -> int:
        return len(self._by_id)

    def close(self) -> None:
        """Hear of nothing any more."""
        if self._on_head in self._api.backend.on_head:
            self._api.backend.on_head.remove(self._on_head)
            self._api.backend.on_pending.remove(self._on_pending)
        self._by_id.clear()

    def add(self, subscription: Subscription) -> None:
        """Notify from now on."""
        self._by_id[subscription.id] = subscription

    def remove(self, subscription: str) -> None:
        """Notify no more."""
        self._by_id.pop(subscription, None)

    def _list(self, kind: str) -> list[Subscription]:
        return [item for item in self._by_id.values() if item.kind == kind]

    def _on_head(self, block: IndexedBlock) -> None:
        if listeners := self._list("newHeads"):
            header = encode_json(format_header(block.header))
            for item in listeners:
                item.send(encode_notification(item.id, header))
        for item in self._list("logs"):
            assert item.pattern is not None, "a logs subscription has a pattern"
            for found in find_logs_in_block(block, item.pattern):
                item.send(encode_notification(item.id, encode_json(format_log(found))))

    def _on_pending(self, accepted: Accepted) -> None:
        if self._api.filters.wants_pending:
            self._api.filters.note_pending(accepted.hashes)
        listeners = self._list("newPendingTransactions")
        if not listeners:
            return
        wants_full = any(item.full for item in listeners)
        for tx_hash in accepted.hashes:
            short = encode_json(data(tx_hash))
            raw = self._api.backend.find_pending(tx_hash) if wants_full else None
            full = encode_json(format_waiting(raw, self._api.core)) if raw is not None else b""
            for item in listeners:
                if not item.full or full:
                    item.send(encode_notification(item.id, full if item.full else short))
