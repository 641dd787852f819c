"""The ``shard_`` methods: what Ethereum has no words for. Heads, cross-shard messages and finality of this shard.

Heights and shard numbers are plain JSON numbers here, amounts and hashes hex as everywhere. A message is known by both of
its shards; each tells its own half, and whoever asks puts them together.
"""

from collections.abc import Callable, Iterator
from typing import Any, Final

import msgspec

from node.index.messages import MessageRecord
from node.index.records import IndexedBlock
from node.index.store import Brief
from node.refusal import LIMIT_EXCEEDED, ParamError, RpcError, build_server_error
from node.rpc.api import CallContext, build_missing_history
from node.rpc.formats import Json, data, format_message, quantity
from node.rpc.methods import MethodTable, Param
from node.rpc.params import TAGS, BlockId, read_block, read_hash
from shardyard.ids import BEACON, GATEWAY, Hash32, compute_chain_id
from shardyard.receipts import ReceiptKind, decode_receipt

TABLE = MethodTable()

MAX_MESSAGES: Final = 1000
DEFAULT_MESSAGES: Final = 100
MAX_SCANNED_BLOCKS: Final = 10_000
SCAN_STRETCH: Final = 256


class MessageQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which messages are wanted; the newest come first."""

    direction: str = "any"
    """``in``, ``out`` or ``any``."""
    src: int | None = None
    dst: int | None = None
    kind: str | None = None
    fromBlock: int | None = None  # noqa: N815 - JSON's name
    toBlock: int | None = None  # noqa: N815
    limit: int = DEFAULT_MESSAGES


def read_message_query(value: Any) -> MessageQuery:
    """Return the query an object describes."""
    try:
        query = msgspec.convert(value, MessageQuery)
    except msgspec.ValidationError as error:
        raise ParamError(str(error)) from error
    if query.direction not in {"in", "out", "any"}:
        raise ParamError(f"direction: got {query.direction!r}, expected in, out or any")
    if query.kind is not None and query.kind not in ReceiptKind.__members__:
        raise ParamError(f"kind: got {query.kind!r}, expected one of {', '.join(ReceiptKind.__members__)}")
    for name, height in (("fromBlock", query.fromBlock), ("toBlock", query.toBlock)):
        if height is not None and not 0 <= height < 2**64:
            raise ParamError(f"{name}: got {height}, expected a height below 2^64")
    if not 1 <= query.limit <= MAX_MESSAGES:
        raise ParamError(f"limit: got {query.limit}, expected 1 to {MAX_MESSAGES}")
    return query


def read_subject(value: Any) -> BlockId:
    """Return what finality is asked of: a tag or number of a block, or a hash of a transaction or block."""
    is_height = isinstance(value, int) and not isinstance(value, bool) and value in range(2**64)
    return BlockId(number=value) if is_height else read_block(value)


@TABLE.method("shard_info")
def info(call: CallContext) -> Json:
    backend = call.api.backend
    genesis, preset = backend.genesis, backend.genesis.preset
    return {
        "shard": backend.shard,
        "chainId": backend.chain_id,
        "network": data(genesis.network),
        "name": genesis.name,
        "shardCount": genesis.shard_count,
        "gateway": data(GATEWAY),
        "preset": preset.name,
        "blockTimeMs": preset.block_time_ms,
        "blockGas": preset.block_gas,
        "inboxGas": preset.inbox_gas,
        "maxReceiptGas": preset.max_receipt_gas,
        "genesisTimestampMs": genesis.timestamp_ms,
    }


@TABLE.method("shard_list")
def list_shards(call: CallContext) -> list[Json]:
    backend = call.api.backend
    return [
        {
            "shard": shard,
            "chainId": compute_chain_id(shard),
            "urls": list(call.api.urls.get(shard, ())),
            "validators": len(committee),
        }
        for shard, committee in backend.genesis.committees.items()
        if shard != BEACON
    ]


@TABLE.method("shard_getCommittee")
def get_committee(call: CallContext) -> Json:
    committee = call.api.backend.genesis.committees[call.api.backend.shard]
    return {
        "root": data(committee.root),
        "totalStake": quantity(committee.total_stake),
        "quorum": quantity(committee.quorum),
        "validators": [
            {
                "publicKey": data(validator.public_key),
                "stake": quantity(validator.stake),
                "reward": data(validator.reward),
            }
            for validator in committee.validators
        ],
    }


@TABLE.method("shard_status")
def status(call: CallContext) -> Json:
    backend = call.api.backend
    pending, queued = backend.mempool.get_status()
    found: Json = {
        "shard": backend.shard,
        "heads": {
            "latest": _format_head(backend.latest),
            "finalized": _format_head(backend.index.get_block(backend.finalized_height)),
            "notarized": {"height": backend.tip.height, "hash": data(backend.tip.hash)},
        },
        "first_block": backend.index.first_height,
        "mempool": {"pending": pending, "queued": queued, "bytes": backend.mempool.size_bytes},
        "inbox": {"consumed": backend.latest.content.inbox_position},
        "admission": dict(backend.admission.counters),
        "execution": backend.execution.describe(),
        "peers": backend.get_peer_count(),
        "syncing": backend.sync is not None,
    }
    for name, describe in backend.status_sources.items():
        described = describe()
        found[name] = found.get(name, {}) | described
    return found


def _format_head(block: IndexedBlock | None) -> Json | None:
    if block is None:
        return None
    header = block.header
    return {
        "height": header.height,
        "hash": data(header.hash),
        "slot": header.slot,
        "timestampMs": header.timestamp_ms,
        "beaconHeight": header.shard_content.beacon_ref.height,
        "transactions": block.transaction_count,
        "gasUsed": header.shard_content.gas_used,
    }


# --- messages ---


def describe_message(call: CallContext, record: MessageRecord) -> Json:
    """Return a message with what happened to it on this shard."""
    receipt = decode_receipt(record.receipt)
    found = format_message(receipt)
    emitted = _format_event(call, record.emitted)
    delivered = None
    if record.delivery is not None:
        delivered = _format_event(call, record.delivery.height)
        if delivered is not None:
            delivered |= {
                "transactionIndex": record.delivery.position,
                "status": record.delivery.status,
                "gasUsed": quantity(record.delivery.gas_used),
            }
    reply = None
    if record.reply is not None:
        reply = {"id": data(record.reply.id), "kind": record.reply.kind.name}
        reply |= _format_event(call, record.reply.height) or {}
    return found | {
        "stage": _compute_stage(call, record, receipt.kind),
        "emitted": emitted,
        "delivered": delivered,
        "reply": reply,
    }


def _format_event(call: CallContext, height: int | None) -> Json | None:
    """Return when something happened: block, time, and whether the beacon has it (X6)."""
    block = call.api.backend.index.get_block(height) if height is not None else None
    if block is None:
        return None
    return {
        "blockNumber": block.height,
        "blockHash": data(block.hash),
        "timestampMs": block.header.timestamp_ms,
        "beaconFinal": block.height <= call.api.backend.finalized_height,
    }


def _compute_stage(call: CallContext, record: MessageRecord, kind: ReceiptKind) -> str:
    """Return the last stage this shard knows of, in the words of the field: emitted, relayed, delivered, then the reply."""
    if record.reply is not None:
        return "bounced" if record.reply.kind is ReceiptKind.BOUNCE else "answered"
    if record.delivery is not None:
        if kind is ReceiptKind.CALL and not record.delivery.status:
            return "bounced"
        return "delivered"
    if record.emitted is not None and record.emitted <= call.api.backend.finalized_height:
        return "relayed"
    return "emitted"


@TABLE.method("shard_getMessage", Param(read_hash))
def get_message(call: CallContext, message: Hash32) -> Json | None:
    record = call.api.backend.index.get_message(message)
    return describe_message(call, record) if record is not None and record.receipt else None


@TABLE.method("shard_getMessages", Param(read_message_query, MessageQuery()))
async def get_messages(call: CallContext, query: MessageQuery) -> list[Json]:
    return await call.api.scan(lambda should_stop: _collect_messages(call, query, should_stop))


def _collect_messages(call: CallContext, query: MessageQuery, should_stop: Callable[[], bool]) -> list[Json]:
    backend = call.api.backend
    latest: int = backend.latest.height
    last = latest if query.toBlock is None else min(query.toBlock, latest)
    oldest = backend.index.first_height
    # The snapshot's own block may be a head, which people ask up to.
    if query.toBlock is not None and 0 < last < oldest - 1:
        raise build_missing_history(oldest)
    first = max(0, last - MAX_SCANNED_BLOCKS + 1) if query.fromBlock is None else query.fromBlock
    if last - first >= MAX_SCANNED_BLOCKS:
        raise RpcError(LIMIT_EXCEEDED, f"exceed maximum block range: {MAX_SCANNED_BLOCKS}")
    found: list[Json] = []
    for brief in _iterate_newest_first(call, first, last):
        wanted = (brief.deliveries and query.direction != "out") or (
            brief.emitted and query.direction != "in"
        )
        if should_stop():
            break
        block = backend.index.get_block(brief.height) if wanted else None
        if block is None:
            continue
        for message in _list_messages(block, query):
            record = backend.index.get_message(message)
            if record is not None and record.receipt:
                found.append(describe_message(call, record))
            if len(found) == query.limit:
                return found
    return found


def _iterate_newest_first(call: CallContext, first: int, last: int) -> Iterator[Brief]:
    """Yield briefs from ``last`` down, in stretches: most queries have enough after the first."""
    while last >= first:
        start = max(first, last - SCAN_STRETCH + 1)
        yield from reversed(list(call.api.backend.index.iterate_briefs(start, last)))
        last = start - 1


def _list_messages(block: IndexedBlock, query: MessageQuery) -> list[Hash32]:
    receipts = []
    if query.direction != "in":
        receipts += [decode_receipt(encoded) for encoded in reversed(block.outbox_data)]
    if query.direction != "out":
        receipts += reversed(block.deliveries)
    return [
        receipt.id
        for receipt in receipts
        if query.src in {None, receipt.src}
        and query.dst in {None, receipt.dst}
        and query.kind in {None, receipt.kind.name}
    ]


@TABLE.method("shard_getCrossTx", Param(read_hash))
async def get_cross_transaction(call: CallContext, tx_hash: Hash32) -> Json | None:
    """Return every message that began with a user transaction, as far as this shard saw them."""
    finality = await _describe_transaction(call, tx_hash)
    found = await call.api.backend.read(lambda: _collect_cross_messages(call, tx_hash))
    if finality is None and not found:
        return None
    return {"transactionHash": data(tx_hash), "transaction": finality, "messages": found}


def _collect_cross_messages(call: CallContext, tx_hash: Hash32) -> list[Json]:
    index = call.api.backend.index
    found = []
    for message in index.find_messages(tx_hash, MAX_MESSAGES):
        record = index.get_message(message)
        if record is not None and record.receipt:
            found.append(describe_message(call, record))
    return sorted(found, key=lambda item: (item["depth"], item["src"], item["seq"]))


# --- finality ---


@TABLE.method("shard_getFinality", Param(read_subject))
async def get_finality(call: CallContext, subject: BlockId) -> Json | None:
    if subject.hash is not None:
        found = await _describe_transaction(call, subject.hash)
        if found is not None:
            return found
    tip = call.api.backend.tip
    if subject.tag == "pending" or (subject.hash is not None and subject.hash == tip.hash):
        subject = BlockId(hash=tip.hash)  # final already when nothing is notarized above the head
    block = call.api.find_final(subject, only_header=True)
    if block is not None:
        return _describe_block(call, block)
    if subject.hash == tip.hash:
        return {"stage": "notarized", "blockNumber": tip.height, "blockHash": data(tip.hash)}
    if subject.hash is None:
        raise build_server_error(
            f"header not found: expected a height up to the head or one of {', '.join(TAGS)}"
        )
    return None


def _describe_block(call: CallContext, block: IndexedBlock) -> Json:
    is_beacon_final = block.height <= call.api.backend.finalized_height
    return {
        "stage": "beacon-final" if is_beacon_final else "final",
        "blockNumber": block.height,
        "blockHash": data(block.hash),
        "timestampMs": block.header.timestamp_ms,
        "slot": block.header.slot,
    }


async def _describe_transaction(call: CallContext, tx_hash: Hash32) -> Json | None:
    backend = call.api.backend
    found = await backend.read(lambda: _describe_indexed(call, tx_hash))
    if found is None and backend.find_pending(tx_hash) is not None:
        return {"stage": "pending"}
    # One that left the mempool since the first look is in the index now.
    return found or await backend.read(lambda: _describe_indexed(call, tx_hash))


def _describe_indexed(call: CallContext, tx_hash: Hash32) -> Json | None:
    found = call.api.backend.index.find_transaction(tx_hash)
    if found is None:
        return None
    outcome = found.block.outcomes[found.position]
    return _describe_block(call, found.block) | {
        "transactionIndex": found.position,
        "status": outcome.status,
        "gasUsed": quantity(outcome.gas_used),
    }
