"""The ``txpool_`` methods: what waits in the mempool, in geth's shapes; and which namespaces there are.

*Pending* can run now, *queued* waits behind a gap of nonces.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from node.addresses import to_checksum
from node.rpc.api import CallContext
from node.rpc.formats import Json, format_waiting, quantity
from node.rpc.methods import MethodTable, Param
from node.rpc.params import read_address
from shards.mempool import MempoolEntry
from shardyard.ids import Address

TABLE = MethodTable()

_Waiting = Mapping[Address, Sequence[MempoolEntry]]


@TABLE.method("txpool_status")
def status(call: CallContext) -> Json:
    pending, queued = call.api.backend.mempool.get_status()
    return {"pending": quantity(pending), "queued": quantity(queued)}


@TABLE.method("txpool_content")
async def content(call: CallContext) -> Json:
    def describe(entry: MempoolEntry) -> Json:
        return format_waiting(entry.raw, call.api.core)

    return await call.api.scan(lambda _: _build_content(call, describe))


@TABLE.method("txpool_inspect")
async def inspect(call: CallContext) -> Json:
    def describe(entry: MempoolEntry) -> str:
        found = format_waiting(entry.raw, call.api.core)
        value, gas, price = (int(found[key], 16) for key in ("value", "gas", "gasPrice"))
        return f"{found['to'] or 'contract creation'}: {value} wei + {gas} gas × {price} wei"

    return await call.api.scan(lambda _: _build_content(call, describe))


@TABLE.method("txpool_contentFrom", Param(read_address))
async def content_from(call: CallContext, address: Address) -> Json:
    def collect() -> Json:
        pending, queued = call.api.backend.mempool.get_content()
        return {
            name: {
                str(entry.nonce): format_waiting(entry.raw, call.api.core) for entry in part.get(address, ())
            }
            for name, part in (("pending", pending), ("queued", queued))
        }

    return await call.api.backend.read(collect)


def _build_content(call: CallContext, describe: Callable[[MempoolEntry], Any]) -> Json:
    pending, queued = call.api.backend.mempool.get_content()
    return {"pending": _describe_all(pending, describe), "queued": _describe_all(queued, describe)}


def _describe_all(waiting: _Waiting, describe: Callable[[MempoolEntry], Any]) -> Json:
    return {
        to_checksum(sender): {str(entry.nonce): describe(entry) for entry in entries}
        for sender, entries in waiting.items()
    }


@TABLE.method("rpc_modules")
def modules(_: CallContext) -> Json:
    return dict.fromkeys(("eth", "net", "rpc", "shard", "txpool", "web3"), "1.0")
