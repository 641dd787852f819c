"""``shard_getBlockStats``: how this process executed a block, for people.

A hot location is told in words a contract's author knows: the contract's name where it is one of ours, the storage variable,
and of a mapping's entry the key. Slots of mappings are hashes, so keys are found by trying: the accounts that occur most in
the block, as keys of the first variables, in Solidity's layout and in Vyper's. What is not found stays address and slot.
"""

from collections import Counter
from functools import cache
from typing import Any, Final

import msgspec

from node.artifacts import list_artifact_names, load_artifact
from node.block_stats import BlockStats, ExecutionTotals, round_or_none
from node.index.records import IndexedBlock
from node.refusal import build_server_error
from node.rpc.api import CallContext
from node.rpc.formats import Json, data
from node.rpc.methods import MethodTable, Param
from node.rpc.params import LATEST, BlockId
from node.rpc.shard_methods import read_subject
from shardyard import _native
from shardyard.ids import GATEWAY

TABLE = MethodTable()

MAX_KEYS: Final = 64
"""Accounts tried as keys of mappings."""
MAX_VARIABLES: Final = 32
"""Storage variables tried as mappings."""


class SlotName(msgspec.Struct, frozen=True):
    """What a slot holds: the variable's number, and the key when it is an entry of a mapping."""

    variable: int
    key: bytes | None = None


@cache
def _list_known_code() -> dict[bytes, str]:
    return {_native.keccak256(load_artifact(name).runtime_code): name for name in list_artifact_names()}


def find_contract(core: _native.Core, block: IndexedBlock, address: bytes) -> str | None:
    """Return the name of one of our contracts, None for any other account."""
    if address == GATEWAY:
        return "gateway"
    try:
        account = core.account(block.hash, address)
    except _native.MissingState:
        return None
    return _list_known_code().get(account[2]) if account is not None else None


def list_likely_keys(block: IndexedBlock) -> list[bytes]:
    """Return the accounts that occur most in a block: senders, recipients, and the topics of logs."""
    seen: Counter[bytes] = Counter()
    for outcome in block.outcomes:
        seen[bytes(outcome.sender)] += 1
        if outcome.to:
            seen[bytes(outcome.to)] += 1
        for log in outcome.logs:
            seen.update(topic[12:] for topic in log.topics[1:] if not any(topic[:12]))
    return [address for address, _ in seen.most_common(MAX_KEYS)]


def name_slots(slots: set[bytes], keys: list[bytes]) -> dict[bytes, SlotName]:
    """Return what is known of ``slots``: small ones are variables, hashes may be entries of mappings."""
    found = {
        slot: SlotName(int.from_bytes(slot, "big"))
        for slot in slots
        if int.from_bytes(slot, "big") < MAX_VARIABLES
    }
    if len(found) == len(slots):
        return found
    names, blob = [], bytearray()
    for variable in range(MAX_VARIABLES):
        number = variable.to_bytes(32, "big")
        for key in keys:
            word = key.rjust(32, b"\0")
            blob += word + number + number + word
            names += [SlotName(variable, key)] * 2
    hashes = _native.keccak256_many(bytes(blob), range(0, len(blob) + 1, 64))
    for place, name in enumerate(names):
        slot = hashes[32 * place : 32 * place + 32]
        if slot in slots:
            found[slot] = name
    return found


def name_locations(core: _native.Core, block: IndexedBlock, stats: BlockStats) -> list[Json]:
    """Return the hottest locations with what is known of each."""
    slots = {location.slot for location in stats.hottest if location.slot is not None}
    names = name_slots(slots, list_likely_keys(block)) if slots else {}
    found = []
    for location in stats.hottest:
        contract = find_contract(core, block, location.address)
        name = names.get(location.slot) if location.slot is not None else None
        variable = None
        if contract is not None and name is not None:
            variables = {number: text for text, number in load_artifact(contract).storage.items()}
            variable = variables.get(name.variable)
        found.append(
            {
                "address": data(location.address),
                "slot": data(location.slot) if location.slot is not None else None,
                "aborts": location.aborts,
                "contract": contract,
                "variable": variable,
                "variableSlot": name.variable if name is not None else None,
                "key": data(name.key) if name is not None and name.key is not None else None,
            }
        )
    return found


@TABLE.method("shard_getBlockStats", Param(read_subject, LATEST))
async def get_block_stats(call: CallContext, subject: BlockId) -> Json | None:
    backend = call.api.backend
    block = call.api.find_final(subject)
    if block is None:
        if subject.hash is not None:
            return None
        raise build_server_error("header not found: expected the height, hash or tag of a final block")
    stats = backend.execution.get(block.hash)
    if stats is None:
        return None
    named: list[Any] = await backend.read(lambda: name_locations(call.api.core, block, stats))
    total = ExecutionTotals().add(stats)
    return {
        "blockNumber": block.height,
        "blockHash": data(block.hash),
        "transactions": stats.transactions,
        "deliveries": stats.deliveries,
        "mode": stats.mode,
        "executors": backend.execution.executors,
        "workers": stats.workers,
        "incarnations": stats.incarnations,
        "aborts": stats.aborts,
        "abortRate": round_or_none(total.abort_rate, 4),
        "atTurn": stats.at_turn,
        "solos": stats.solos,
        "executeUs": stats.execute_us,
        "commitUs": stats.commit_us,
        "workUs": total.work_us,
        "speedUp": None if stats.mode == "replay" else round_or_none(total.speed_up, 2),
        "hottest": named,
    }
