"""How blocks, transactions, receipts, logs and messages look in JSON.

Shapes are execution-apis'; what a shard does not have (uncles, withdrawals, blobs) is there with its empty value, because
strict decoders (alloy, web3.py) want every post-merge field. A delivery poses as a legacy transaction with a zero
signature (X13). ``receiptsRoot`` and ``stateRoot`` are this protocol's commitments, not Merkle Patricia roots.
"""

from collections.abc import Mapping
from typing import Any, Final, Literal

import msgspec

from node.backend import ShardBackend
from node.index.bloom import compute_bloom
from node.index.logs import FoundLog
from node.index.records import DELIVERY_TYPE, IndexedBlock, Outcome
from node.rpc.protocol import AnswerRoom
from shardyard import _native
from shardyard.blocks import Header
from shardyard.ids import GATEWAY
from shardyard.receipts import Receipt, ReceiptKind

EMPTY_UNCLES_HASH: Final = "0x1dcc4de8dec75d7aab85b567b6ccd41ad312451b948a7413f0a142fd40d49347"
"""keccak(rlp([]))."""
EMPTY_TRIE_ROOT: Final = "0x56e81f171bcc55a6ff8345e692c0f86e5b48e01b996cadc001622fb5e363b421"
EMPTY_REQUESTS_HASH: Final = "0xe3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
"""sha256 of nothing (EIP-7685)."""
ZERO_NONCE: Final = "0x0000000000000000"
TRANSFER_GAS: Final = 21_000

Json = dict[str, Any]

_decode_map = msgspec.msgpack.Decoder(dict[str, Any]).decode


def quantity(value: int) -> str:
    """Return the shortest hex form of a number."""
    return hex(value)


def data(value: bytes) -> str:
    """Return hex of whole bytes."""
    return "0x" + value.hex()


def format_header(header: Header) -> Json:
    """Return the fields of a header; ``hash`` included."""
    content = header.shard_content
    return {
        "number": quantity(header.height),
        "hash": data(header.hash),
        "parentHash": data(header.parent),
        "nonce": ZERO_NONCE,
        "mixHash": data(content.prevrandao),
        "sha3Uncles": EMPTY_UNCLES_HASH,
        "logsBloom": data(content.logs_bloom),
        "transactionsRoot": data(content.transactions_root),
        "stateRoot": data(content.state_root),
        "receiptsRoot": data(content.outcomes_root),
        "miner": data(content.beneficiary),
        "difficulty": "0x0",
        "extraData": "0x",
        "gasLimit": quantity(content.gas_limit),
        "gasUsed": quantity(content.gas_used),
        "timestamp": quantity(header.timestamp_ms // 1000),
        "baseFeePerGas": quantity(content.base_fee),
        "withdrawalsRoot": EMPTY_TRIE_ROOT,
        "blobGasUsed": "0x0",
        "excessBlobGas": "0x0",
        "parentBeaconBlockRoot": data(content.beacon_ref.hash),
        "requestsHash": EMPTY_REQUESTS_HASH,
    }


def format_block(block: IndexedBlock, core: _native.Core, *, full: bool, is_pending: bool = False) -> Json:
    """Return a block, with whole transactions when ``full``; a preview has no hash yet."""
    found = format_header(block.header)
    if full:
        found["transactions"] = format_transactions(block, core, is_pending=is_pending)
    else:
        found["transactions"] = [data(tx_hash) for tx_hash in block.transaction_hashes]
    found |= {"size": quantity(block.size), "uncles": [], "withdrawals": []}
    if is_pending:
        found |= {"hash": None, "nonce": None}
    return found


def format_transactions(block: IndexedBlock, core: _native.Core, *, is_pending: bool = False) -> list[Json]:
    """Return every transaction of a block by position, deliveries first."""
    body = block.transactions
    described = core.prepare(body.raw, (0, *body.ends)) if body.ends else None
    found: list[Json] = []
    for position in range(block.transaction_count):
        if position < len(block.deliveries):
            transaction = format_delivery(block, position)
        else:
            assert described is not None, "positions after the deliveries are user transactions"
            fields = described.describe(position - len(block.deliveries))
            transaction = format_signed(_decode_map(fields), block.content.base_fee)
        found.append(transaction | _format_place(block, position, is_pending=is_pending))
    return found


def format_transaction_at(
    block: IndexedBlock, position: int, core: _native.Core, *, is_pending: bool = False
) -> Json:
    """Return the transaction or delivery at ``position`` of a block."""
    place = _format_place(block, position, is_pending=is_pending)
    raw = block.get_raw_transaction(position)
    if raw is None:
        return format_delivery(block, position) | place
    return format_signed(_describe(core, raw), block.content.base_fee) | place


def format_waiting(raw: bytes, core: _native.Core) -> Json:
    """Return a transaction that is in no readable block yet."""
    return format_signed(_describe(core, raw), None) | {
        "blockHash": None,
        "blockNumber": None,
        "transactionIndex": None,
    }


def _describe(core: _native.Core, raw: bytes) -> Mapping[str, Any]:
    return _decode_map(core.prepare(raw, (0, len(raw))).describe(0))


def _format_place(block: IndexedBlock, position: int, *, is_pending: bool) -> Json:
    return {
        "blockHash": None if is_pending else data(block.hash),
        "blockNumber": quantity(block.height),
        "blockTimestamp": quantity(block.timestamp),
        "transactionIndex": quantity(position),
    }


def format_signed(fields: Mapping[str, Any], base_fee: int | None) -> Json:
    """Return a signed transaction out of what the native core says of it; ``base_fee`` of its block, if any."""
    kind = fields["type"]
    found: Json = {
        "type": quantity(kind),
        "nonce": quantity(fields["nonce"]),
        "gas": quantity(fields["gas"]),
        "to": data(fields["to"]) if fields.get("to") else None,
        "value": quantity(_to_int(fields["value"])),
        "input": data(fields["input"]),
        "r": quantity(_to_int(fields["r"])),
        "s": quantity(_to_int(fields["s"])),
        "v": quantity(_to_int(fields["v"] if "v" in fields else fields["yParity"])),
        "hash": data(fields["hash"]),
        "from": data(fields["from"]),
    }
    if fields.get("chainId") is not None:
        found["chainId"] = quantity(_to_int(fields["chainId"]))
    if "maxFeePerGas" in fields:
        max_fee, tip = _to_int(fields["maxFeePerGas"]), _to_int(fields["maxPriorityFeePerGas"])
        price = max_fee if base_fee is None else min(max_fee, base_fee + tip)
        found |= {"maxFeePerGas": quantity(max_fee), "maxPriorityFeePerGas": quantity(tip)}
    else:
        price = _to_int(fields["gasPrice"])
    found["gasPrice"] = quantity(price)
    if kind != 0:
        found["accessList"] = [_format_access(entry) for entry in fields["accessList"]]
        found["yParity"] = found["v"]
    if "authorizationList" in fields:
        found["authorizationList"] = [_format_authorization(*entry) for entry in fields["authorizationList"]]
    return found


def _format_authorization(
    chain_id: int | bytes, address: bytes, nonce: int, y_parity: int, r: int | bytes, s: int | bytes
) -> Json:
    """Return an EIP-7702 authorization as it was signed."""
    return {
        "chainId": quantity(_to_int(chain_id)),
        "address": data(address),
        "nonce": quantity(nonce),
        "yParity": quantity(y_parity),
        "r": quantity(_to_int(r)),
        "s": quantity(_to_int(s)),
    }


def _format_access(entry: Any) -> Json:
    if isinstance(entry, Mapping):
        address, keys = entry["address"], entry["storageKeys"]
    else:
        address, keys = entry
    return {"address": data(address), "storageKeys": [data(key) for key in keys]}


def _to_int(value: int | bytes) -> int:
    return value if isinstance(value, int) else int.from_bytes(value, "big")


def format_delivery(block: IndexedBlock, position: int) -> Json:
    """Return a delivery as a legacy transaction from the gateway (X13).

    ``nonce`` is its place in the shard's inbox, from 0: the gateway sends nothing else, so it is unique.
    """
    receipt = block.deliveries[position]
    first = block.content.inbox_position - len(block.deliveries_data)
    gas = receipt.gas_limit if receipt.kind != ReceiptKind.TRANSFER else TRANSFER_GAS
    return {
        "type": "0x0",
        "nonce": quantity(first + position),
        "gas": quantity(gas),
        "gasPrice": quantity(receipt.gas_price),
        "to": data(receipt.target),
        "value": quantity(int.from_bytes(receipt.value, "big")),
        "input": data(receipt.payload),
        "r": "0x0",
        "s": "0x0",
        "v": "0x0",
        "hash": data(receipt.id),
        "from": data(GATEWAY),
    }


def format_receipt(block: IndexedBlock, position: int, room: AnswerRoom) -> Json:
    """Return the outcome at ``position`` in the shape of a transaction receipt, its logs as text that fits into ``room``."""
    outcome = block.outcomes[position]
    logs = [
        room.encode(format_log(FoundLog(block, position, block.first_log_index[position] + offset, log)))
        for offset, log in enumerate(outcome.logs)
    ]
    return {
        "transactionHash": data(outcome.tx_hash),
        "transactionIndex": quantity(position),
        "blockHash": data(block.hash),
        "blockNumber": quantity(block.height),
        "from": data(outcome.sender),
        "to": _format_recipient(outcome),
        "cumulativeGasUsed": quantity(outcome.cumulative_gas_used),
        "gasUsed": quantity(outcome.gas_used),
        "contractAddress": data(outcome.contract_address) if outcome.contract_address else None,
        "logs": logs,
        "logsBloom": data(compute_bloom(outcome.logs)),
        "type": quantity(0 if outcome.type == DELIVERY_TYPE else outcome.type),
        "status": quantity(outcome.status),
        "effectiveGasPrice": quantity(outcome.effective_gas_price),
    }


def _format_recipient(outcome: Outcome) -> str | None:
    return data(outcome.to) if outcome.to and not outcome.contract_address else None


def format_log(found: FoundLog) -> Json:
    """Return a log with its place."""
    block = found.block
    return {
        "address": data(found.log.address),
        "topics": [data(topic) for topic in found.log.topics],
        "data": data(found.log.data),
        "blockNumber": quantity(block.height),
        "blockHash": data(block.hash),
        "blockTimestamp": quantity(block.timestamp),
        "transactionHash": data(block.outcomes[found.position].tx_hash),
        "transactionIndex": quantity(found.position),
        "logIndex": quantity(found.index),
        "removed": False,
    }


def format_message(receipt: Receipt) -> Json:
    """Return a cross-shard message."""
    return {
        "id": data(receipt.id),
        "kind": receipt.kind.name,
        "src": receipt.src,
        "dst": receipt.dst,
        "seq": receipt.seq,
        "originTransaction": data(receipt.origin.tx_hash),
        "initiator": data(receipt.origin.initiator),
        "depth": receipt.origin.depth,
        "parentId": data(receipt.parent_id) if any(receipt.parent_id) else None,
        "sender": data(receipt.sender),
        "target": data(receipt.target),
        "value": quantity(int.from_bytes(receipt.value, "big")),
        "gasLimit": quantity(receipt.gas_limit),
        "gasPrice": quantity(receipt.gas_price),
        "replyGas": quantity(receipt.reply_gas),
        "refundTo": data(receipt.refund_to),
        "deadline": receipt.deadline,
        "payload": data(receipt.payload),
    }


def describe_progress(backend: ShardBackend) -> Json | Literal[False]:
    """Return how far a replica that catches up is, as ``eth_syncing`` does; False when it does not."""
    if (progress := backend.sync) is None:
        return False
    return {
        "startingBlock": quantity(progress.starting),
        "currentBlock": quantity(backend.latest.height),
        "highestBlock": quantity(progress.highest),
    }
