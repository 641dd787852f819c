"""Subscriptions: who hears of new heads, logs, pending transactions, and of catching up.

What is told is put into JSON once, whatever the number of listeners, and logs that several ask for are looked for once.
Delivery never waits: a connection that does not keep up is closed by its own queue, and the chain goes on. The logs of a
large block are made ready in a thread, some at a time, so that other tasks have their turns.
"""

import secrets
from collections.abc import Awaitable, Callable, Hashable, Iterable, Iterator
from functools import partial
from itertools import islice
from typing import Final

import msgspec

from node.admission import Accepted
from node.index.logs import FoundLog, LogPattern, find_logs_in_block
from node.index.records import IndexedBlock
from node.rpc.api import INLINE_BYTES, ShardApi
from node.rpc.formats import data, describe_progress, format_header, format_log, format_waiting
from node.rpc.params import LogQuery
from node.rpc.protocol import encode_json

LOGS_AT_ONCE: Final = 256
"""Of a large block, logs that are told in one turn of the loop."""


class Subscription(msgspec.Struct, frozen=True):
    """One subscription of one connection; ``send`` takes the text of a notification, and says whether more may follow."""

    id: str
    kind: str
    pattern: LogPattern | None
    full: bool
    send: Callable[[bytes], bool]
    first: int = 0
    last: int | None = None
    """Heights of the blocks whose logs are told, None: without end."""

    def covers(self, height: int) -> bool:
        """Tell whether it is told of the logs of the block at ``height``."""
        return self.first <= height and (self.last is None or height <= self.last)


def build_subscription(kind: str, options: object, send: Callable[[bytes], bool]) -> Subscription:
    """Return a new subscription: ``options`` is a ``LogQuery`` for logs, a boolean or None otherwise."""
    subscription = hex(secrets.randbits(128))
    if not isinstance(options, LogQuery):
        return Subscription(subscription, kind, None, options is True, send)
    pattern = LogPattern(options.addresses, options.topics)
    first, last = options.from_block.number or 0, options.to_block.number
    return Subscription(subscription, kind, pattern, full=False, send=send, first=first, last=last)


def encode_notification(subscription: str, result: bytes) -> bytes:
    """Return the text that tells a subscriber of ``result``, which is JSON already."""
    params = {"subscription": subscription, "result": msgspec.Raw(result)}
    return encode_json({"jsonrpc": "2.0", "method": "eth_subscription", "params": params})


def _encode_some(logs: Iterator[FoundLog]) -> list[bytes]:
    return [encode_json(format_log(found)) for found in islice(logs, LOGS_AT_ONCE)]


def _tell(listeners: list[Subscription], text: bytes) -> list[Subscription]:
    """Tell ``listeners`` of one log; returns those who want to hear more."""
    return [item for item in listeners if item.send(encode_notification(item.id, text))]


class SubscriptionHub:
    """All live subscriptions of a server."""

    def __init__(self, api: ShardApi) -> None:
        self._api = api
        self._by_id: dict[str, Subscription] = {}
        self._is_syncing = api.backend.sync is not None
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

    def _on_head(self, block: IndexedBlock) -> Awaitable[None] | None:
        if listeners := self._list("newHeads"):
            header = encode_json(format_header(block.header))
            for item in listeners:
                item.send(encode_notification(item.id, header))
        self._tell_progress()
        by_pattern: dict[Hashable, tuple[LogPattern, list[Subscription]]] = {}
        for item in self._list("logs"):
            assert item.pattern is not None, "a logs subscription has a pattern"
            if not item.covers(block.height):
                continue
            by_pattern.setdefault(item.pattern.key, (item.pattern, []))[1].append(item)
        if by_pattern and block.weight > INLINE_BYTES:
            return self._tell_many_logs(block, by_pattern.values())
        texts: dict[int, bytes] = {}
        for pattern, alike in by_pattern.values():
            listeners = alike
            for found in find_logs_in_block(block, pattern):
                text = texts.get(found.index)
                if text is None:
                    text = texts[found.index] = encode_json(format_log(found))
                if not (listeners := _tell(listeners, text)):
                    break
        return None

    async def _tell_many_logs(
        self, block: IndexedBlock, groups: Iterable[tuple[LogPattern, list[Subscription]]]
    ) -> None:
        for pattern, alike in groups:
            listeners, logs = alike, find_logs_in_block(block, pattern)
            encode_some = partial(_encode_some, logs)
            while listeners and (texts := await self._api.backend.follow(encode_some)):
                listeners = [item for item in listeners if item.id in self._by_id]
                for text in texts:
                    listeners = _tell(listeners, text)

    def _tell_progress(self) -> None:
        """Tell of catching up, with the first head that shows that it began, or that it is over."""
        progress = describe_progress(self._api.backend)
        was_syncing, self._is_syncing = self._is_syncing, progress is not False
        if was_syncing != self._is_syncing:
            told = {"syncing": True, "status": progress} if progress else False
            for item in self._list("syncing"):
                item.send(encode_notification(item.id, encode_json(told)))

    def _on_pending(self, accepted: Accepted) -> None:
        if self._api.filters.wants_pending:
            self._api.filters.note_pending(accepted.hashes)
        listeners = self._list("newPendingTransactions")
        if not listeners:
            return  # hashes cost something per transaction
        wants_full = any(item.full for item in listeners)
        for tx_hash in accepted.hashes:
            short = encode_json(data(tx_hash))
            raw = self._api.backend.find_pending(tx_hash) if wants_full else None
            full = encode_json(format_waiting(raw, self._api.core)) if raw is not None else b""
            listeners = [
                item
                for item in listeners
                if (item.full and not full)
                or item.send(encode_notification(item.id, full if item.full else short))
            ]
            if not listeners:
                return
