"""``shard_getBlockAccessList``: what a block looked at and changed (EIP-7928), as JSON with the EIP's names.

Lists come from the block log, so a restart changes nothing in the answers; each is compared with its header before it is
shown.
"""

import msgspec

from node.index.records import IndexedBlock
from node.refusal import build_server_error
from node.rpc.api import CallContext
from node.rpc.formats import Json, data, quantity
from node.rpc.methods import MethodTable, Param
from node.rpc.params import LATEST, BlockId, read_bool
from node.rpc.protocol import encode_json
from node.rpc.shard_methods import read_subject
from shardyard import _native
from shardyard.ids import ZERO_HASH

TABLE = MethodTable()

Account = tuple[
    bytes,
    list[tuple[bytes, list[tuple[int, bytes]]]],
    list[bytes],
    list[tuple[int, bytes]],
    list[tuple[int, int]],
    list[tuple[int, bytes]],
]
"""Address, slots with their changes, slots only read, changes of balance, nonce and code; numbers that are bytes have 32."""


class ListSummary(msgspec.Struct, frozen=True):
    """What people want to know of a list first."""

    accounts: int
    slots_changed: int
    slots_read: int


def summarise_accounts(accounts: list[Account]) -> ListSummary:
    """Return how much a list names."""
    return ListSummary(
        accounts=len(accounts),
        slots_changed=sum(len(account[1]) for account in accounts),
        slots_read=sum(len(account[2]) for account in accounts),
    )


def _number(value: bytes) -> str:
    return quantity(int.from_bytes(value, "big"))


def format_account(account: Account) -> Json:
    """Return one account of a list, in the words of EIP-7928."""
    address, storage, reads, balances, nonces, codes = account
    return {
        "address": data(address),
        "storageChanges": [
            {
                "slot": data(slot),
                "changes": [
                    {"blockAccessIndex": quantity(index), "postValue": data(value)}
                    for index, value in changes
                ],
            }
            for slot, changes in storage
        ],
        "storageReads": [data(slot) for slot in reads],
        "balanceChanges": [
            {"blockAccessIndex": quantity(index), "postBalance": _number(value)} for index, value in balances
        ],
        "nonceChanges": [
            {"blockAccessIndex": quantity(index), "postNonce": quantity(value)} for index, value in nonces
        ],
        "codeChanges": [
            {"blockAccessIndex": quantity(index), "newCode": data(code)} for index, code in codes
        ],
    }


def format_access_list(block: IndexedBlock, encoded: bytes, *, full: bool) -> Json:
    """Return a block's list; raises ``RpcError`` when it is not the one the header commits to."""
    found = _native.keccak256(encoded)
    if found != block.content.access_list_hash:
        raise build_server_error(
            f"the access list of block {block.height} in the log has hash {data(found)}, its header says "
            f"{data(block.content.access_list_hash)}; try: shardyard audit"
        )
    accounts = _native.decode_access_list(encoded)
    summary = summarise_accounts(accounts)
    return {
        "blockNumber": block.height,
        "blockHash": data(block.hash),
        "accessListHash": data(found),
        "bytes": len(encoded),
        "accounts": summary.accounts,
        "slotsChanged": summary.slots_changed,
        "slotsRead": summary.slots_read,
        "accessList": [format_account(account) for account in accounts] if full else None,
    }


@TABLE.method("shard_getBlockAccessList", Param(read_subject, LATEST), Param(read_bool, default=True))
async def get_block_access_list(call: CallContext, subject: BlockId, full: bool) -> msgspec.Raw | None:
    backend = call.api.backend
    block = call.api.find_final(subject)
    if block is None:
        return None
    if block.content.access_list_hash == ZERO_HASH:
        raise build_server_error(f"block {block.height} has no access list: it was never executed")
    history = backend.genesis.preset.history_blocks
    is_recent = block.height > backend.latest.height - history
    encoded = backend.find_access_list(block.height, block.hash) if is_recent else None
    if encoded is None:
        raise build_server_error(
            f"the access list of block {block.height} is no longer held: lists are kept for the last {history} blocks"
        )
    return await backend.read(lambda: msgspec.Raw(encode_json(format_access_list(block, encoded, full=full))))
