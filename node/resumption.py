"""How keys come to sign again whose record is lost, or with which another process was seen to sign (K6).

They sign above a slot in which none of them can have signed. Who signs in a slot has entered it, and nobody enters one before a
certificate ends the slot before it. So where nodes answer that have more stake than a certificate can lack, one of them has
signed the certificate behind which the newest slot anywhere begins, and tells a slot next to it. A process that was started
again may tell less than it knew; the margin is for that.

The chain must get there without these keys: where the others that sign have no quorum, it would stand below that slot for ever.

This holds for what was signed until now. That no other process signs with the keys from now on is for a person to say; on this
machine their locks show it, and after its start the node listens before it signs (``node.doppelganger``).
"""

from collections.abc import Collection, Iterable
from contextlib import suppress
from typing import Any, Final

import msgspec

from node.checks.verdict import Witnesses
from node.network import Network, get_local_validators, parse_node
from node.storage.data_dir import DataDir
from node.storage.frames import CorruptFileError
from node.storage.log import BlockLog, EntryKind, LogEntry
from node.storage.signer_record import (
    SignerRecord,
    SignerRecordError,
    Witness,
    create_record,
    peek_record,
)
from shardyard.consensus.signer import BLOCKED, SignerState
from shardyard.effects import CertificateRecord, FinalRecord, SnapshotRecord
from shardyard.errors import ShardyardError
from shardyard.ids import ShardId, describe_shard

MARGIN_SLOTS: Final = 32


class ResumptionError(ShardyardError):
    """It is not known above which slot keys may sign."""


class SlotsHeard(msgspec.Struct, frozen=True):
    """The newest slot that is known of, the stake of those who know of none beyond, and of the other nodes that sign."""

    slot: int
    stake: int
    signing: int


async def hear_slots(network: Network, node: str, data: DataDir, *, is_record_lost: bool) -> SlotsHeard:
    """Return what the other nodes of the chain of ``node`` tell, and its own log.

    The log counts like a node that answers, unless the record is lost: then it may be as old as that.
    """
    chain, _ = parse_node(node)
    stakes = network.genesis.committees[chain].stakes
    witnesses = Witnesses(network)

    async def ask_others(method: str, **params: Any) -> dict[str, Any]:
        answers = await witnesses.ask_all(method, **params)
        return {
            other: answer
            for other, answer in answers.items()
            if other != node and parse_node(other)[0] == chain
        }

    def sum_stake(nodes: Iterable[str]) -> int:
        return sum(stakes[key] for other in nodes for key in get_local_validators(network, other))

    slots = {
        other: int(answer["slot"]) for other, answer in (await ask_others("finals", first=1, count=1)).items()
    }
    signing = [
        other for other, answer in (await ask_others("status")).items() if not answer["signer"]["silent"]
    ]
    logged = read_newest_slot(data)
    knowing = [*slots, node] if logged and not is_record_lost else [*slots]
    return SlotsHeard(max([logged, *slots.values()]), sum_stake(knowing), sum_stake(signing))


def read_newest_slot(data: DataDir) -> int:
    """Return the newest slot of which the log in ``data`` has a certificate; 0 when there is none, or the log is damaged."""
    newest = 0

    def take(entry: LogEntry) -> None:
        nonlocal newest
        if entry.kind is not EntryKind.KERNEL:
            return
        match entry.decode_record():
            case CertificateRecord(certificate):
                newest = max(newest, certificate.slot)
            case FinalRecord(proof=proof) | SnapshotRecord(proof=proof):
                newest = max(newest, proof.notarization.slot, proof.finalization.slot)
            case _:
                pass

    if data.log_path.exists():
        try:
            BlockLog(data.log_path, data.owner, on_entry=take).close()
        except CorruptFileError:
            return 0
    return newest


def choose_slot(network: Network, chain: ShardId, heard: SlotsHeard, above: int | None) -> int:
    """Return the slot above which keys of ``chain`` may sign: ``above``, or ``MARGIN_SLOTS`` beyond the newest one heard of.

    Raises ``ResumptionError`` when too little stake tells of its slots, ``above`` is not beyond them, or the chain will not
    get there. What others will do later is not known while nobody answers, and ``above`` is taken as it is.
    """
    committee = network.genesis.committees[chain]
    name = describe_shard(chain)
    if above is not None and above <= heard.slot:
        raise ResumptionError(
            f"above: got {above}, expected more than {heard.slot}, a slot that {name} has entered; "
            f"try: the same with --above {heard.slot + MARGIN_SLOTS}"
        )
    needed = committee.total_stake - committee.quorum + 1
    if above is None and heard.stake < needed:
        raise ResumptionError(
            f"{name}: nodes with {heard.stake} of {committee.total_stake} stake tell how far it is, expected at least {needed}, "
            f"so a newer slot than {heard.slot} may be unknown; try: shardyard up, or --above SLOT with a slot that nobody has "
            "entered"
        )
    if heard.signing < committee.quorum and (above is None or heard.stake):
        raise ResumptionError(
            f"{name}: other nodes that sign have {heard.signing} of {committee.total_stake} stake, expected at least "
            f"{committee.quorum}: without these keys it never gets to a slot in which they may sign; try: bring other nodes "
            "back first, shardyard status shows them"
        )
    return heard.slot + MARGIN_SLOTS if above is None else above


def find_silent(data: DataDir, witness: Witness, keys: Collection[int]) -> tuple[list[int], str]:
    """Return those of ``keys`` that sign nothing, and why all of them when the record is lost."""
    try:
        with SignerRecord(data, witness) as record:
            return [key for key in keys if record.state.get_floor(key) == BLOCKED], ""
    except SignerRecordError as error:
        return list(keys), str(error)


def resume_keys(
    data: DataDir, witness: Witness, keys: Collection[int], chosen: Collection[int], slot: int
) -> None:
    """Let ``chosen`` of ``keys`` sign above ``slot``; the others stay as they are, and silent where the record is lost."""
    try:
        with SignerRecord(data, witness) as record:
            for key in chosen:
                record.state.key_floors[key] = slot
            record.rewrite()
            return
    except SignerRecordError:
        state = SignerState()
        with suppress(SignerRecordError):
            state = peek_record(data.signer_path, data.owner)
    for key in keys:
        if key in chosen:
            state.key_floors[key] = slot
        else:
            state.raise_floor(key, BLOCKED)
    create_record(data, state, witness)
