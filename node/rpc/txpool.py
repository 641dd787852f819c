"""The ``txpool_`` methods: what waits in the mempool, in geth's shapes; and which namespaces there are.

*Pending* can run now, *queued* waits behind a gap of nonces.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import msgspec

from node.addresses import to_checksum
from node.refusal import LIMIT_EXCEEDED, RpcError
from node.rpc.api import CallContext
from node.rpc.formats import Json, format_waiting, quantity
from node.rpc.methods import MethodTable, Param
from node.rpc.params import read_address
from node.rpc.protocol import AnswerRoom, encode_json
from shards.mempool import MempoolEntry, MempoolLimits
from shardyard.ids import Address

TABLE = MethodTable()

MAX_CONTENT: Final = 10_000
"""Transactions in one answer; a full mempool has many times as many."""

REACH: Final = MempoolLimits().max_per_sender + MempoolLimits().max_gap
"""Nonces above an account's at which a transaction of it may wait: one that left since may have torn a whole run."""

Describe = Callable[[MempoolEntry], Any]


@TABLE.method("txpool_status")
def status(call: CallContext) -> Json:
    pending, queued = call.api.backend.mempool.get_status()
    return {"pending": quantity(pending), "queued": quantity(queued)}


@TABLE.method("txpool_content")
async def content(call: CallContext) -> msgspec.Raw:
    return await _collect(call, lambda entry: format_waiting(entry.raw, call.api.core))


@TABLE.method("txpool_inspect")
async def inspect(call: CallContext) -> msgspec.Raw:
    def describe(entry: MempoolEntry) -> str:
        found = format_waiting(entry.raw, call.api.core)
        to = to_checksum(bytes.fromhex(found["to"][2:])) if found["to"] else "contract creation"
        value, gas, price = (int(found[key], 16) for key in ("value", "gas", "gasPrice"))
        return f"{to}: {value} wei + {gas} gas × {price} wei"

    return await _collect(call, describe)


@TABLE.method("txpool_contentFrom", Param(read_address))
async def content_from(call: CallContext, address: Address) -> msgspec.Raw:
    backend, room = call.api.backend, AnswerRoom()

    def describe(first: int, end: int) -> Json:
        entries = (backend.mempool.get_by_nonce(address, nonce) for nonce in range(first, end))
        return {
            str(entry.nonce): room.encode(format_waiting(entry.raw, call.api.core))
            for entry in entries
            if entry
        }

    def collect() -> msgspec.Raw:
        first = backend.get_account_nonce(address)
        end = backend.mempool.get_next_nonce(address, first)
        found = {"pending": describe(first, end), "queued": describe(end, first + REACH + 1)}
        return msgspec.Raw(encode_json(found))

    return await backend.read(collect)


async def _collect(call: CallContext, describe: Describe) -> msgspec.Raw:
    mempool, room = call.api.backend.mempool, AnswerRoom()
    if len(mempool) > MAX_CONTENT:
        raise RpcError(
            LIMIT_EXCEEDED,
            f"{len(mempool)} transactions wait, expected at most {MAX_CONTENT}: ask for one sender by txpool_contentFrom",
        )

    def encode(entry: MempoolEntry) -> msgspec.Raw:
        return room.encode(describe(entry))

    def collect(should_stop: Callable[[], bool]) -> msgspec.Raw:
        pending, queued = mempool.get_content()
        found = {
            "pending": _describe_all(pending, encode, should_stop),
            "queued": _describe_all(queued, encode, should_stop),
        }
        return msgspec.Raw(encode_json(found))

    return await call.api.scan(collect)


def _describe_all(
    waiting: Mapping[Address, Sequence[MempoolEntry]], describe: Describe, should_stop: Callable[[], bool]
) -> Json:
    found: Json = {}
    for sender, entries in waiting.items():
        if should_stop():
            break
        found[to_checksum(sender)] = {str(entry.nonce): describe(entry) for entry in entries}
    return found


@TABLE.method("rpc_modules")
def modules(_: CallContext) -> Json:
    return dict.fromkeys(("eth", "net", "rpc", "shard", "txpool", "web3"), "1.0")
