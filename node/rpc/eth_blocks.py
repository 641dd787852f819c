"""Methods about blocks and the transactions and receipts in them."""

import msgspec

from node.admission import AdmissionFullError
from node.refusal import RpcError
from node.rpc.api import CallContext, FoundBlock
from node.rpc.formats import (
    Json,
    data,
    format_block,
    format_receipt,
    format_transaction_at,
    format_waiting,
    quantity,
)
from node.rpc.methods import MethodTable, Param
from node.rpc.params import (
    BlockId,
    read_block,
    read_block_number,
    read_bool,
    read_data,
    read_hash,
    read_u64,
)
from node.rpc.protocol import AnswerRoom
from shardyard import _native
from shardyard.ids import Hash32

TABLE = MethodTable()

NUMBER = Param(read_block_number)
HASH = Param(read_hash)
INDEX = Param(read_u64)
FULL = Param(read_bool, default=False)


async def _format_found(
    call: CallContext, found: FoundBlock | None, *, full: bool
) -> Json | msgspec.Raw | None:
    if found is None:
        return None
    block = found.block
    return await call.api.run(
        block, lambda: format_block(block, call.api.core, full=full, is_pending=found.is_pending)
    )


@TABLE.method("eth_getBlockByNumber", NUMBER, FULL)
async def get_block_by_number(call: CallContext, number: BlockId, full: bool) -> Json | msgspec.Raw | None:
    return await _format_found(call, await call.api.find_block(number), full=full)


@TABLE.method("eth_getBlockByHash", HASH, FULL)
async def get_block_by_hash(call: CallContext, block_hash: Hash32, full: bool) -> Json | msgspec.Raw | None:
    return await _format_found(call, await call.api.find_block(BlockId(hash=block_hash)), full=full)


@TABLE.method("eth_getBlockTransactionCountByNumber", NUMBER)
async def count_by_number(call: CallContext, number: BlockId) -> str | None:
    found = await call.api.find_block(number)
    return quantity(found.block.transaction_count) if found else None


@TABLE.method("eth_getBlockTransactionCountByHash", HASH)
async def count_by_hash(call: CallContext, block_hash: Hash32) -> str | None:
    return await count_by_number(call, BlockId(hash=block_hash))


@TABLE.method("eth_getUncleCountByBlockNumber", NUMBER)
async def uncles_by_number(call: CallContext, number: BlockId) -> str | None:
    return "0x0" if await call.api.find_block(number) else None


@TABLE.method("eth_getUncleCountByBlockHash", HASH)
async def uncles_by_hash(call: CallContext, block_hash: Hash32) -> str | None:
    return await uncles_by_number(call, BlockId(hash=block_hash))


def _format_at(call: CallContext, found: FoundBlock | None, position: int) -> Json | None:
    if found is None or position >= found.block.transaction_count:
        return None
    return format_transaction_at(found.block, position, call.api.core, is_pending=found.is_pending)


@TABLE.method("eth_getTransactionByBlockNumberAndIndex", NUMBER, INDEX)
async def transaction_by_number(call: CallContext, number: BlockId, position: int) -> Json | None:
    return _format_at(call, await call.api.find_block(number), position)


@TABLE.method("eth_getTransactionByBlockHashAndIndex", HASH, INDEX)
async def transaction_by_block_hash(call: CallContext, block_hash: Hash32, position: int) -> Json | None:
    return _format_at(call, await call.api.find_block(BlockId(hash=block_hash)), position)


@TABLE.method("eth_getTransactionByHash", HASH)
def transaction_by_hash(call: CallContext, tx_hash: Hash32) -> Json | None:
    backend = call.api.backend
    found = backend.index.find_transaction(tx_hash)
    if found is not None and found.block.height <= backend.latest.height:
        return format_transaction_at(found.block, found.position, call.api.core)
    raw = backend.find_pending(tx_hash)
    return format_waiting(raw, call.api.core) if raw is not None else None


@TABLE.method("eth_getTransactionReceipt", HASH)
async def get_receipt(call: CallContext, tx_hash: Hash32) -> Json | msgspec.Raw | None:
    backend = call.api.backend
    found = backend.index.find_transaction(tx_hash)
    if found is None or found.block.height > backend.latest.height:
        return None
    return await call.api.run(found.block, lambda: format_receipt(found.block, found.position, AnswerRoom()))


@TABLE.method("eth_getBlockReceipts", Param(read_block))
async def get_block_receipts(call: CallContext, block: BlockId) -> list[Json] | msgspec.Raw | None:
    found = await call.api.find_block(block)
    if found is None or found.is_pending:
        return None
    indexed, room = found.block, AnswerRoom()
    return await call.api.run(
        indexed, lambda: [format_receipt(indexed, i, room) for i in range(indexed.transaction_count)]
    )


@TABLE.method("eth_sendRawTransaction", Param(read_data), is_grouped=True)
async def send_raw_transaction(call: CallContext, raw: bytes) -> str:
    (answer,) = await call.api.backend.submit([raw])
    if isinstance(answer, RpcError):
        raise answer
    return data(answer)


async def submit_request(call: CallContext, submission: _native.Submission) -> bytes:
    """Return the answer to a request of nothing but ``eth_sendRawTransaction``."""
    try:
        return await call.api.backend.submit_request(submission)
    except AdmissionFullError as error:
        call.is_overloaded = True
        return submission.encode_refusal(error.code, error.message)
