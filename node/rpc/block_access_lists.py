"""``shard_getBlockAccessList``: what a block looked at and changed (EIP-7928), as JSON with the EIP's names.

Lists come from the block log, so a restart changes nothing in the answers; each is compared with its header before it is
shown. The bytes were made by the core, or by whoever could make the core arrive at the same: their form is not judged
again here.
"""

from typing import Any

import msgspec

from node.index.records import IndexedBlock
from node.refusal import build_server_error
from node.rpc.api import CallContext
from node.rpc.formats import Json, data, quantity
from node.rpc.methods import MethodTable, Param
from node.rpc.params import LATEST, BlockId, read_bool
from node.rpc.shard_methods import read_subject
from shardyard import _native
from shardyard.ids import ZERO_HASH

TABLE = MethodTable()

Rlp = bytes | list["Rlp"]


class ListSummary(msgspec.Struct, frozen=True):
    """What people want to know of a list first."""

    accounts: int
    slots_changed: int
    slots_read: int


def read_rlp(encoded: bytes, start: int, end: int) -> list[Rlp]:
    """Return the RLP items between two places of ``encoded``."""
    found: list[Rlp] = []
    at = start
    while at < end:
        head = encoded[at]
        if head < 0x80:
            found.append(encoded[at : at + 1])
            at += 1
            continue
        is_list, length = head >= 0xC0, (head & 0x3F)
        first = at + 1
        if length > 55:
            first += length - 55
            length = int.from_bytes(encoded[at + 1 : first], "big")
        at = first + length
        found.append(read_rlp(encoded, first, at) if is_list else encoded[first:at])
    return found


def decode_access_list(encoded: bytes) -> list[Any]:
    """Return the accounts of a list: address, slots with their changes, slots read, changes of balance, nonce and code."""
    (accounts,) = read_rlp(encoded, 0, len(encoded))
    assert isinstance(accounts, list), "an access list is a list"
    return accounts


def summarise_accounts(accounts: list[Any]) -> ListSummary:
    """Return how much a list names."""
    return ListSummary(
        accounts=len(accounts),
        slots_changed=sum(len(account[1]) for account in accounts),
        slots_read=sum(len(account[2]) for account in accounts),
    )


def _number(value: bytes) -> str:
    return quantity(int.from_bytes(value, "big"))


def _word(value: bytes) -> str:
    return data(value.rjust(32, b"\0"))


def format_account(account: list[Any]) -> Json:
    """Return one account of a list, in the words of EIP-7928."""
    address, storage, reads, balances, nonces, codes = account
    return {
        "address": data(address),
        "storageChanges": [
            {
                "slot": _word(slot),
                "changes": [
                    {"blockAccessIndex": _number(index), "postValue": _word(value)}
                    for index, value in changes
                ],
            }
            for slot, changes in storage
        ],
        "storageReads": [_word(slot) for slot in reads],
        "balanceChanges": [
            {"blockAccessIndex": _number(index), "postBalance": _number(value)} for index, value in balances
        ],
        "nonceChanges": [
            {"blockAccessIndex": _number(index), "postNonce": _number(value)} for index, value in nonces
        ],
        "codeChanges": [{"blockAccessIndex": _number(index), "newCode": data(code)} for index, code in codes],
    }


def format_access_list(block: IndexedBlock, encoded: bytes, *, full: bool) -> Json:
    """Return a block's list; raises ``RpcError`` when it is not the one the header commits to."""
    found = _native.keccak256(encoded)
    if found != block.content.access_list_hash:
        raise build_server_error(
            f"the access list of block {block.height} in the log has hash {data(found)}, its header says "
            f"{data(block.content.access_list_hash)}; try: shardyard audit"
        )
    accounts = decode_access_list(encoded)
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
async def get_block_access_list(call: CallContext, subject: BlockId, full: bool) -> Json | None:
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
    found: Json = await backend.read(lambda: format_access_list(block, encoded, full=full))
    return found
