"""Logs, filters and subscriptions."""

from typing import Any

from node.index.logs import LogLimitError, LogPattern, find_logs, find_logs_in_block
from node.refusal import (
    INVALID_PARAMS,
    LIMIT_EXCEEDED,
    NOT_SUPPORTED,
    ParamError,
    RpcError,
    build_invalid_argument,
    build_server_error,
)
from node.rpc.api import CallContext, Session, build_missing_history
from node.rpc.filters import BlockFilter, LogFilter, build_not_found
from node.rpc.formats import Json, data, format_log
from node.rpc.methods import MethodTable, Param
from node.rpc.params import LATEST, LogQuery, read_log_query

TABLE = MethodTable()

QUERY = Param(read_log_query)
SUBSCRIPTIONS = ("newHeads", "logs", "newPendingTransactions")


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


async def _find(call: CallContext, query: LogQuery, first: int, last: int) -> list[Json]:
    pattern = LogPattern(query.addresses, query.topics)
    index = call.api.backend.index

    def work() -> list[Json]:
        return [format_log(found) for found in find_logs(index, pattern, first, last)]

    try:
        return await call.api.backend.read(work)
    except LogLimitError as error:
        raise RpcError(LIMIT_EXCEEDED, str(error)) from error


async def _find_in_block(call: CallContext, query: LogQuery) -> list[Json]:
    assert query.block_hash is not None, "the caller looked"
    height = call.api.backend.index.get_height(query.block_hash)
    block = call.api.backend.index.get_block(height) if height is not None else None
    if block is None:
        raise build_server_error("unknown block")
    pattern = LogPattern(query.addresses, query.topics)
    return await call.api.run(
        block, lambda: [format_log(found) for found in find_logs_in_block(block, pattern)]
    )


@TABLE.method("eth_getLogs", QUERY)
async def get_logs(call: CallContext, query: LogQuery) -> list[Json]:
    if query.block_hash is not None:
        return await _find_in_block(call, query)
    first, last = resolve_range(call, query)
    return await _find(call, query, first, last)


@TABLE.method("eth_newFilter", QUERY)
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
    latest = backend.latest.height
    if isinstance(found, LogFilter):
        first = max(found.next_height, found.query.from_block.number or 0)
        last = latest if found.query.to_block.number is None else min(latest, found.query.to_block.number)
        found.next_height = latest + 1
        return await _find(call, found.query, first, last) if first <= last else []
    if isinstance(found, BlockFilter):
        first, found.next_height = found.next_height, latest + 1
        return [data(brief.hash) for brief in backend.index.iterate_briefs(first, latest)]
    return [data(tx_hash) for tx_hash in call.api.filters.take_pending(found)]


@TABLE.method("eth_getFilterLogs", Param(read_filter_id))
async def get_filter_logs(call: CallContext, filter_id: str) -> list[Json]:
    found = call.api.filters.poll(filter_id)
    if not isinstance(found, LogFilter):
        raise build_not_found()
    first, last = resolve_range(call, found.query)
    return await _find(call, found.query, first, last)


@TABLE.method("eth_uninstallFilter", Param(read_filter_id))
def uninstall_filter(call: CallContext, filter_id: str) -> bool:
    return call.api.filters.remove(filter_id)


def _require_session(call: CallContext) -> Session:
    if call.session is None:
        raise RpcError(
            NOT_SUPPORTED, "notifications not supported: subscriptions need a WebSocket connection"
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
            return session.subscribe(kind, read_log_query({} if options is None else options))
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
