"""What a process says of its own chain to whoever checks it: final hashes, finality proofs, and the wei in its state.

Nothing here is believed by anybody: hashes are compared with those of others, proofs are verified from genesis, wei are
added up. Answers go over the control socket and are capped; who wants more asks again from where the answer ended.
A node that came by a snapshot has no blocks before it (G6): an answer says by ``first`` where it really begins.
"""

import asyncio
from typing import Any, Final

from crosslink.beacon import BeaconMachine
from node.control import ControlError
from node.runtime import Method
from shardyard import _native
from shardyard.codec import encode
from shardyard.consensus.engine import FinalityEngine

MAX_HASHES: Final = 512
MAX_PROOFS: Final = 64
MAX_PROOF_BYTES: Final = 1024 * 1024


def list_chain_methods(engine: FinalityEngine) -> dict[str, Method]:
    """Return ``finals`` and ``proofs``: hashes and finality proofs of ``count`` final blocks from height ``first`` on.

    What an answer holds is consecutive from its own ``first`` on: the lowest height held that is not below the one asked
    for. Above all that was asked for, the answer is empty and says where to ask instead.
    """
    history = _History(engine)

    async def answer_finals(params: dict[str, Any]) -> dict[str, Any]:
        wanted, count = _read_range(params, MAX_HASHES)
        first = history.find_first(wanted)
        hashes: list[str] = []
        for height in range(first, wanted + count):
            block = engine.get_final_block(height)
            if block is None:
                break
            hashes.append(block.hash.hex())
            await asyncio.sleep(0)  # it may have come from the disk, and consensus goes on meanwhile
        return {
            "height": engine.final_block.header.height,
            "slot": engine.slot,
            "first": first,
            "hashes": hashes,
        }

    async def answer_proofs(params: dict[str, Any]) -> dict[str, Any]:
        wanted, count = _read_range(params, MAX_PROOFS)
        first = history.find_first(wanted)
        proofs: list[str] = []
        size = 0
        for height in range(first, wanted + count):
            proof = engine.final_proof(height)
            if proof is None or (proofs and size > MAX_PROOF_BYTES):
                break
            encoded = encode(proof)
            size += len(encoded)
            proofs.append(encoded.hex())
            await asyncio.sleep(0)
        return {"height": engine.final_block.header.height, "first": first, "proofs": proofs}

    return {"finals": answer_finals, "proofs": answer_proofs}


def list_shard_methods(core: _native.Core) -> dict[str, Method]:
    """Return ``supply``: the wei of all accounts in the state after the block ``hash``."""

    async def answer_supply(params: dict[str, Any]) -> dict[str, Any]:
        try:
            total = await asyncio.to_thread(core.total_supply, bytes.fromhex(str(params["hash"])))
        except _native.CoreError as error:
            raise ControlError(f"state of block {params['hash']}: {error}") from error
        return {"wei": str(int.from_bytes(total, "big"))}

    return {"supply": answer_supply}


def list_beacon_methods(machine: BeaconMachine) -> dict[str, Method]:
    """Return ``supply``: the beacon's books at its last final block, a row for each shard."""

    async def answer_supply(_: dict[str, Any]) -> dict[str, Any]:
        state, header = machine.state, machine.final_block.header
        return {
            "height": header.height,
            "hash": header.hash.hex(),
            "genesis": str(state.supply),
            "shards": [
                {
                    "shard": shard,
                    "height": entry.last_height,
                    "head": entry.head_hash.hex(),
                    "balance": str(entry.balance),
                    "burnt": str(entry.burnt),
                    "in_flight": str(entry.inbox.in_flight),
                }
                for shard, entry in enumerate(state.shards)
            ],
        }

    return {"supply": answer_supply}


class _History:
    """Where the final blocks that ``engine`` holds begin: they reach up to its tip, without a hole."""

    def __init__(self, engine: FinalityEngine) -> None:
        self._engine = engine
        self._begin = 1

    def find_first(self, wanted: int) -> int:
        """Return the lowest height held from ``wanted`` on; ``wanted`` itself when it is beyond the tip."""
        tip = self._engine.final_block.header.height
        if wanted > tip or self._is_held(wanted):
            return wanted
        if wanted < self._begin <= tip and self._is_held(self._begin) and not self._is_held(self._begin - 1):
            return self._begin  # as the last time: a block may be read from disk to find out
        missing, held = wanted, int(tip)
        while held - missing > 1:
            middle = (missing + held) // 2
            if self._is_held(middle):
                held = middle
            else:
                missing = middle
        self._begin = held
        return held

    def _is_held(self, height: int) -> bool:
        return self._engine.get_final_block(height) is not None


def _read_range(params: dict[str, Any], limit: int) -> tuple[int, int]:
    first, count = params.get("first"), params.get("count", 1)
    if not isinstance(first, int) or not isinstance(count, int) or first < 1 or count < 1:
        raise ControlError(f"range: got first {first!r} and count {count!r}, expected numbers from 1 on")
    return first, min(count, limit)
