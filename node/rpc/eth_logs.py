"""Logs, filters and subscriptions."""

from collections.abc import Callable
from typing import Any, Final

import msgspec

from node.index.logs import (
    MAX_BLOCK_RANGE,
    MAX_LOGS,
    LogLimitError,
    LogPattern,
    find_logs,
    find_logs_in_block,
)
from node.refusal import (
    INVALID_PARAMS,
    LIMIT_EXCEEDED,
    NO_NOTIFICATIONS,
    ParamError,
    RpcError,
    build_invalid_argument,
    build_server_error,
)
from node.rpc.api import CallContext, Session, build_missing_history
from node.rpc.filters import BlockFilter, LogFilter, build_not_found
from node.rpc.formats import data, format_log
from node.rpc.methods import MethodTable, Param
from node.rpc.params import LATEST, BlockId, LogQuery, read_followed_query, read_log_query
from node.rpc.protocol import AnswerRoom, encode_json
from shardyard.ids import Hash32

TABLE = MethodTable()

SUBSCRIPTIONS: Final = ("newHeads", "logs", "newPendingTransactions", "syncing")
MAX_LOG_BYTES: Final = 32 * 1024 * 1024
"""Logs in one answer, as JSON: well below what an answer may have."""


def read_filter_id(value: Any) -> str:
    """Return the id of a filter or subscription."""
    if not isinstance(value, str) or not value.startswith("0x") or len(value) > 66:
        raise ParamError("expected the id of a filter or subscription")
    return value


def resolve_range(call: CallContext, query: LogQuery) -> tuple[int, int]:
    """Return the first and last height of a log query.

    Raises ``RpcError`` for reversed ranges and for blocks that do not exist yet: an empty answer to those hides mistakes.
    """
    backend = call.api.backend
    heights = []
    for block in (query.from_block, query.to_block):
        if block.number is not None:
            height = block.number
        else:
            found = call.api.resolve_height(LATEST if block.tag == "pending" else block)
            assert found is not None, "tags of final blocks always mean one"
            height = found
        heights.append(height)
    first, last = heights
    if first > last:
        raise RpcError(INVALID_PARAMS, "invalid block range params")
    if last > backend.latest.height:
        raise RpcError(INVALID_PARAMS, "block range extends beyond current head block")
    oldest = backend.index.first_height
    if 1 < oldest > first:
        raise build_missing_history(oldest)
    return first, last


class _Page(msgspec.Struct, frozen=True):
    """Logs as JSON, and where the next page begins: block, and log within it."""

    logs: list[msgspec.Raw]
    next_height: int
    next_index: int = 0


async def _find(
    call: CallContext, query: LogQuery, first: int, last: int, first_index: int | None = None
) -> _Page:
    """Return the logs from ``first`` to ``last``, which are refused when they are too many for one answer.

    With ``first_index`` as many as fit are returned, from that log of the first block on.
    """
    pattern = LogPattern(query.addresses, query.topics)
    index = call.api.backend.index

    def work(should_stop: Callable[[], bool]) -> _Page:
        logs: list[msgspec.Raw] = []
        size = 0
        for log in find_logs(index, pattern, first, last, should_stop=should_stop):
            height = log.block.height
            if height == first and log.index < (first_index or 0):
                continue
            text = encode_json(format_log(log))
            size += len(text)
            if logs and (len(logs) == MAX_LOGS or size > MAX_LOG_BYTES):
                if first_index is None:
                    limit = f"{MAX_LOGS} results" if len(logs) == MAX_LOGS else f"{MAX_LOG_BYTES} bytes"
                    raise LogLimitError(f"query returned more than {limit}")
                return _Page(logs, height, log.index)
            logs.append(msgspec.Raw(text))
        return _Page(logs, last + 1)

    try:
        return await call.api.scan(work)
    except LogLimitError as error:
        raise RpcError(LIMIT_EXCEEDED, str(error)) from error


async def _find_in_block(
    call: CallContext, block_hash: Hash32, query: LogQuery
) -> list[msgspec.Raw] | msgspec.Raw:
    block = call.api.find_final(BlockId(hash=block_hash))
    if block is None:
        raise build_server_error("unknown block")
    pattern, room = LogPattern(query.addresses, query.topics), AnswerRoom()
    return await call.api.run(
        block, lambda: [room.encode(format_log(found)) for found in find_logs_in_block(block, pattern)]
    )


@TABLE.method("eth_getLogs", Param(read_log_query))
async def get_logs(call: CallContext, query: LogQuery) -> list[msgspec.Raw] | msgspec.Raw:
    if query.block_hash is not None:
        return await _find_in_block(call, query.block_hash, query)
    first, last = resolve_range(call, query)
    return (await _find(call, query, first, last)).logs


@TABLE.method("eth_newFilter", Param(read_followed_query))
def new_filter(call: CallContext, query: LogQuery) -> str:
    if query.block_hash is not None:
        raise build_invalid_argument(0, "a filter follows the chain: blockHash is not supported")
    return call.api.filters.add_log_filter(query, call.api.backend.latest.height + 1)


@TABLE.method("eth_newBlockFilter")
def new_block_filter(call: CallContext) -> str:
    return call.api.filters.add_block_filter(call.api.backend.latest.height + 1)


@TABLE.method("eth_newPendingTransactionFilter")
def new_pending_filter(call: CallContext) -> str:
    return call.api.filters.add_pending_filter()


@TABLE.method("eth_getFilterChanges", Param(read_filter_id))
async def get_filter_changes(call: CallContext, filter_id: str) -> list[Any]:
    found = call.api.filters.poll(filter_id)
    backend = call.api.backend
    if isinstance(found, LogFilter):
        async with found.turn:
            return await _poll_logs(call, found)
    latest = backend.latest.height
    if isinstance(found, BlockFilter):
        first, found.next_height = found.next_height, latest + 1
        return [data(brief.hash) for brief in backend.index.iterate_briefs(first, latest)]
    return [data(tx_hash) for tx_hash in call.api.filters.take_pending(found)]


async def _poll_logs(call: CallContext, found: LogFilter) -> list[msgspec.Raw]:
    """Return what is new; the position moves with the answer, so that what is not told is told the next time."""
    query, latest = found.query, call.api.backend.latest.height
    first = max(found.next_height, query.from_block.number or 0)
    last = latest if query.to_block.number is None else min(latest, query.to_block.number)
    page = _Page([], latest + 1)
    if first <= last:
        first_index = found.next_index if first == found.next_height else 0
        page = await _find(call, query, first, min(last, first + MAX_BLOCK_RANGE - 1), first_index)
    found.next_height, found.next_index = page.next_height, page.next_index
    return page.logs


@TABLE.method("eth_getFilterLogs", Param(read_filter_id))
async def get_filter_logs(call: CallContext, filter_id: str) -> list[msgspec.Raw]:
    found = call.api.filters.poll(filter_id)
    if not isinstance(found, LogFilter):
        raise build_not_found()
    first, last = resolve_range(call, found.query)
    return (await _find(call, found.query, first, last)).logs


@TABLE.method("eth_uninstallFilter", Param(read_filter_id))
def uninstall_filter(call: CallContext, filter_id: str) -> bool:
    return call.api.filters.remove(filter_id)


def _require_session(call: CallContext) -> Session:
    if call.session is None:
        raise RpcError(
            NO_NOTIFICATIONS, "notifications not supported: subscriptions need a WebSocket connection"
        )
    return call.session


def read_subscription(value: Any) -> str:
    """Return the kind of a subscription."""
    if value not in SUBSCRIPTIONS:
        raise ParamError(
            f"no {str(value)[:64]!r} subscription in eth namespace: expected one of {', '.join(SUBSCRIPTIONS)}"
        )
    return str(value)


def _read_anything(value: Any) -> Any:
    return value


@TABLE.method("eth_subscribe", Param(read_subscription), Param(_read_anything, None))
def subscribe(call: CallContext, kind: str, options: Any) -> str:
    session = _require_session(call)
    try:
        if kind == "logs":
            return session.subscribe(kind, read_followed_query({} if options is None else options))
        if options is not None and not (kind == "newPendingTransactions" and isinstance(options, bool)):
            raise ParamError(f"a {kind} subscription takes no such option")
    except ParamError as error:
        raise build_invalid_argument(1, str(error)) from error
    return session.subscribe(kind, options)


@TABLE.method("eth_unsubscribe", Param(read_filter_id))
def unsubscribe(call: CallContext, subscription: str) -> bool:
    if not _require_session(call).unsubscribe(subscription):
        raise build_server_error("subscription not found")
    return True
