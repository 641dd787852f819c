"""What users were promised: a transaction whose hash a node answered is in exactly one final block of its shard, its message
is delivered exactly once; or it can provably not be executed: another transaction with its nonce is final, or an earlier nonce
of its sender was never handed in. A message that waits for a crosslink or in an inbox when the logs end is on its way.
"""

import json
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Annotated

import msgspec

from node.audit.findings import Findings, Promise
from node.audit.flow import Sent
from shardyard.errors import ConfigError

FORMAT_VERSION = 1


Hash = Annotated[str, msgspec.Meta(pattern="^0x[0-9a-f]{64}$")]
Sender = Annotated[str, msgspec.Meta(pattern="^(0x[0-9a-f]{40})?$")]
Message = Annotated[str, msgspec.Meta(pattern="^(0x[0-9a-f]{64})?$")]


class Answered(msgspec.Struct, frozen=True):
    """One answered transaction; ``sender`` and ``nonce`` allow to prove that it was replaced. Hashes as 0x hex."""

    shard: int
    hash: Hash
    sender: Sender = ""
    nonce: int = -1
    message: Message = ""
    """Id of the message it emits."""
    dst: int = -1


class AnsweredFile(msgspec.Struct, frozen=True):
    """What ``load run`` leaves as ``answered.json``."""

    version: int
    transactions: tuple[Answered, ...]


class AnsweredSummary(msgspec.Struct, frozen=True):
    """What became of all answered transactions."""

    transactions: int
    included: int
    replaced: int
    """Another transaction used up their nonce."""
    blocked: int
    """They wait behind a nonce of their sender that no node ever answered."""
    missing: int
    messages: int
    delivered: int
    in_flight: int
    """Their messages wait for a crosslink or in an inbox where the logs end, or their blocks were not executed."""


def read_answered(path: Path, shard_count: int) -> tuple[Answered, ...]:
    """Return the transactions in ``path``; raises ``ConfigError`` for a file of another shape or network."""
    try:
        found = msgspec.convert(json.loads(path.read_text()), AnsweredFile)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: {error}; try: the answered.json of a load run") from error
    if found.version != FORMAT_VERSION:
        raise ConfigError(
            f"{path}: got version {found.version}, expected {FORMAT_VERSION}; try: a newer load run"
        )
    if any(not 0 <= item.shard < shard_count or item.dst >= shard_count for item in found.transactions):
        raise ConfigError(
            f"{path}: got shards of another network, expected shards below {shard_count}; try: another --name"
        )
    return found.transactions


class AnsweredBook:
    """Looks for answered transactions and their messages while blocks go by."""

    def __init__(self, transactions: Sequence[Answered], findings: Findings) -> None:
        self._transactions = transactions
        self._findings = findings
        self._included: Counter[tuple[int, bytes]] = Counter()
        self._unexecuted: set[tuple[int, bytes]] = set()
        self._delivered: Counter[tuple[int, bytes]] = Counter()
        self._wanted = {(item.shard, bytes.fromhex(item.hash[2:])) for item in transactions}
        self._nonces = {(item.shard, item.sender, item.nonce) for item in transactions}
        self._messages = {
            (item.dst, bytes.fromhex(item.message[2:])) for item in transactions if item.message
        }

    def on_block(self, shard: int, hashes: bytes, deliveries: Sequence[Sent]) -> None:
        """Look through one executed block: ``hashes`` of its transactions, 32 bytes each, and the messages that it took."""
        self._included.update(self._find_wanted(shard, hashes))
        for item in deliveries:
            message = (shard, bytes(item.receipt.id))
            if message in self._messages:
                self._delivered[message] += 1

    def on_unexecuted(self, shard: int, hashes: bytes) -> None:
        """Look through one final block that was not executed: what its transactions emit is not known."""
        found = self._find_wanted(shard, hashes)
        self._included.update(found)
        self._unexecuted.update(found)

    def _find_wanted(self, shard: int, hashes: bytes) -> list[tuple[int, bytes]]:
        keys = ((shard, hashes[start : start + 32]) for start in range(0, len(hashes), 32))
        return [key for key in keys if key in self._wanted]

    def finish(
        self, get_nonce: Callable[[int, bytes], int], in_flight: Collection[tuple[int, bytes]]
    ) -> AnsweredSummary:
        """Judge every transaction; ``get_nonce`` reads an account of a shard after its last executed block.

        ``in_flight`` are the messages on their way, by destination and id.
        """
        included = replaced = blocked = missing = delivered = flying = 0
        for item in self._transactions:
            self._findings.count(Promise.ANSWERED)
            where = f"shard-{item.shard} transaction {item.hash}"
            key = (item.shard, bytes.fromhex(item.hash[2:]))
            times = self._included[key]
            if times == 0:
                is_told = item.sender and item.nonce >= 0
                next_nonce = get_nonce(item.shard, bytes.fromhex(item.sender[2:])) if is_told else item.nonce
                if next_nonce > item.nonce:
                    replaced += 1
                elif any(
                    (item.shard, item.sender, nonce) not in self._nonces
                    for nonce in range(next_nonce, item.nonce)
                ):
                    blocked += 1
                else:
                    missing += 1
                    self._findings.add(Promise.ANSWERED, where, "was answered and is in no final block")
                continue
            included += 1
            if times > 1:
                self._findings.add(Promise.ANSWERED, where, f"is in {times} final blocks")
            if item.message:
                message = (item.dst, bytes.fromhex(item.message[2:]))
                arrivals = self._delivered[message]
                delivered += arrivals == 1
                if arrivals == 0 and (key in self._unexecuted or message in in_flight):
                    flying += 1
                elif arrivals != 1:
                    self._findings.add(
                        Promise.ANSWERED,
                        where,
                        f"its message was delivered {arrivals} times on shard {item.dst}"
                        + ("" if arrivals else ", and is not on its way"),
                    )
        messages = sum(bool(item.message) for item in self._transactions)
        return AnsweredSummary(
            len(self._transactions), included, replaced, blocked, missing, messages, delivered, flying
        )
