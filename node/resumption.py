"""How keys come to sign again whose record is lost, or with which another process was seen to sign (K6).

They sign above a slot in which none of them can have signed. Who signs in a slot has entered it, and nobody enters one before a
certificate ends the slot before it. So where nodes tell their slots that have more stake than a certificate can lack, one of
them has signed the certificate behind which the newest slot anywhere begins, and tells a slot next to it. A process that was
started again may tell less than it knew; the margin is for that.

A floor that a key had before it was blocked, or that a lost record still tells, stands: it came from an import, or from a
person who knew more.

The chain must get there without these keys: where the others that sign have no quorum, it would stand below that slot for ever.

All this is about what was signed until now. That no other process signs with the keys from now on is for a person to say: on
this machine their locks show it, elsewhere nothing does. Votes below the slot cannot be told from own ones of before, so a
process that goes on with a key is noticed when both have signed, and not earlier.
"""

from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import Any, Final

import msgspec

from node.checks.verdict import Witnesses
from node.config import get_name_flag
from node.network import Network, get_local_validators, parse_node
from node.remedies import get_stake_of_others
from node.signer import list_certificates
from node.storage.data_dir import DataDir
from node.storage.frames import CorruptFileError
from node.storage.log import BlockLog, EntryKind, LogEntry
from node.storage.signer_record import (
    SignerRecord,
    SignerRecordError,
    Witness,
    create_record,
    salvage_record,
)
from shardyard.consensus.signer import BLOCKED, SignerState
from shardyard.errors import ShardyardError
from shardyard.ids import GENESIS_SLOT, ShardId, describe_shard

MARGIN_SLOTS: Final = 32
MAX_AHEAD_SLOTS: Final = 10_000
"""Slots that keys may be kept off, beyond the newest one known of: more is a slip of the pen, and nothing takes it back."""


class ResumptionError(ShardyardError):
    """It is not known above which slot keys may sign, or their chain would never get there."""


class Logged(msgspec.Struct, frozen=True):
    """What the log of a node tells of slots: the newest certificate, and the newest one with a vote of each local key."""

    slot: int
    own: dict[int, int]


class Silent(msgspec.Struct, frozen=True):
    """Keys that sign nothing until a person says so, and why all of them when their record is lost."""

    keys: list[int]
    reason: str = ""
    floors: dict[int, int] = {}
    """Slots above which they may sign at the earliest, of those of which the record tells one."""


class Heard(msgspec.Struct, frozen=True):
    """The newest slot that is known of, the stake that knows of none beyond, the stake that signs without the silent keys."""

    slot: int
    knowing: int
    signing: int
    has_answers: bool
    """Whether other nodes of the chain answer at all."""


def read_slots(data: DataDir, keys: Collection[int]) -> Logged:
    """Return what the log in ``data`` tells; of a damaged one, what is in front of the damage."""
    newest, own = 0, dict.fromkeys(keys, 0)

    def take(entry: LogEntry) -> None:
        nonlocal newest
        if entry.kind is not EntryKind.KERNEL:
            return
        for certificate in list_certificates([entry.decode_record()]):
            newest = max(newest, certificate.slot)
            signers = int.from_bytes(certificate.bitmap, "little")
            for key in own:
                if signers >> key & 1:
                    own[key] = max(own[key], certificate.slot)

    if data.log_path.exists():
        with suppress(CorruptFileError):
            BlockLog(data.log_path, data.owner, on_entry=take).close()
    return Logged(newest, own)


def find_silent(data: DataDir, witness: Witness, keys: Collection[int], logged: Logged) -> Silent:
    """Return those of ``keys`` that sign nothing; all of them when the record is lost, or older than the log."""
    try:
        with SignerRecord(data, witness) as record:
            state = record.state
    except SignerRecordError as error:
        state = salvage_record(data.signer_path, data.owner)
        return Silent([*keys], str(error), _list_floors(state, keys))
    for key in keys:
        known = max(state.get_newest_slot(key), state.get_floor(key))
        if logged.own.get(key, 0) > known:
            return Silent(
                [*keys],
                f"{data.signer_path}: it ends at slot {known} for validator {key}, but the chain's log has a vote of slot "
                f"{logged.own[key]}: it is an old copy",
                _list_floors(state, keys),
            )
    blocked = [key for key in keys if state.get_floor(key) == BLOCKED]
    return Silent(blocked, floors=_list_floors(state, blocked))


def _list_floors(state: SignerState, keys: Collection[int]) -> dict[int, int]:
    return {key: floor for key in keys if (floor := state.get_known_floor(key)) > GENESIS_SLOT}


async def hear_slots(network: Network, node: str, silent: Silent, logged: Logged) -> Heard:
    """Return what the other nodes of the chain of ``node`` tell, and its own log of slots that its sound keys have signed."""
    chain, _ = parse_node(node)
    stakes = network.genesis.committees[chain].stakes
    witnesses = Witnesses(network)
    slots: dict[str, int] = {}
    for other, answer in (await witnesses.ask_all("finals", first=1, count=1)).items():
        if other != node and parse_node(other)[0] == chain:
            slots[other] = int(answer["slot"])
    newest = max([logged.slot, *slots.values()])
    sound = set(get_local_validators(network, node)) - set(silent.keys)
    knowing, signing = set(sound), set(sound)
    for other, status in (await witnesses.ask_all("status")).items():
        if other not in slots or "signer" not in status:  # it may just come by a snapshot
            continue
        floors: Mapping[str, Any] = status["signer"]["floors"]
        for key in get_local_validators(network, other):
            floor = floors.get(str(key))
            if floor is not None:  # none: it is silent itself, and its log may be lost as well
                knowing.add(key)
                if floor <= newest:
                    signing.add(key)
    return Heard(
        newest, sum(stakes[key] for key in knowing), sum(stakes[key] for key in signing), bool(slots)
    )


def verify_reachable(network: Network, chain: ShardId, silent: Silent) -> None:
    """Raise ``ResumptionError`` when the chain cannot go on without the silent keys, whoever else is there."""
    committee = network.genesis.committees[chain]
    flag = get_name_flag(network.root.name)
    others = get_stake_of_others(network, chain, silent.keys)
    if others < committee.quorum:
        # Of a record that is sound an import takes back no block: it only adds.
        way = (
            f"shardyard validator import{flag} with the newest export of what they signed"
            if silent.reason
            else "leave them to the process that signs with them"
        )
        raise ResumptionError(
            f"{describe_shard(chain)}: all validators but these have {others} of {committee.total_stake} stake, expected at "
            f"least {committee.quorum}: without these keys it never gets to a slot in which they may sign; try: {way}, or "
            f"shardyard up --fresh{flag}"
        )


def choose_slot(network: Network, chain: ShardId, heard: Heard, above: int | None) -> int:
    """Return the slot above which keys of ``chain`` may sign: ``above``, or ``MARGIN_SLOTS`` beyond the newest one heard of.

    Raises ``ResumptionError`` when too little stake tells of its slots, ``above`` is not beyond them or far beyond, or those
    that answer will not get there. What others will do later is not known while nobody answers.
    """
    committee = network.genesis.committees[chain]
    name = describe_shard(chain)
    needed = committee.total_stake - committee.quorum + 1
    flag = get_name_flag(network.root.name)
    way = (
        f"bring other nodes back first, shardyard status{flag} shows them"
        if heard.has_answers
        else f"shardyard up{flag}"
    )
    unknown = ""
    if heard.knowing < needed:
        unknown = (
            f"nodes with {heard.knowing} of {committee.total_stake} stake tell how far it is, expected at least "
            f"{needed}, so a newer slot than {heard.slot} may be unknown"
        )
    if above is not None:
        _verify_above(name, heard, above, unknown, way, flag)
    elif unknown:
        raise ResumptionError(
            f"{name}: {unknown}; try: {way}, or --above SLOT with a slot that nobody has entered"
        )
    if heard.signing < committee.quorum and (above is None or heard.has_answers):
        raise ResumptionError(
            f"{name}: keys that sign have {heard.signing} of {committee.total_stake} stake now, expected at least "
            f"{committee.quorum}: without these keys it does not get to a slot in which they may sign; try: {way}; a key that "
            "was resumed signs when its slot is passed"
        )
    return heard.slot + MARGIN_SLOTS if above is None else above


def _verify_above(name: str, heard: Heard, above: int, unknown: str, way: str, flag: str) -> None:
    """Raise ``ResumptionError`` when ``above`` was entered, or is far beyond the newest slot heard of.

    ``unknown`` says why that slot may not be the newest one. Then no other slot is advised: it could have been entered.
    The others have to tell first. They can be started: without them the chain would never get to ``above``.
    """
    tell = (
        f"try: {way}; with this node alone stopped, resume again: the others tell how far it is; where their keys are "
        f"silent as well, let this node follow them first, and resume after shardyard down{flag}"
    )
    if above <= heard.slot:
        known = f"try: the same with --above {heard.slot + MARGIN_SLOTS}"
        raise ResumptionError(
            f"above: got {above}, expected more than {heard.slot}, a slot that {name} has entered"
            + (f"; {unknown}; {tell}" if unknown else f"; {known}")
        )
    if above > heard.slot + MAX_AHEAD_SLOTS:
        raise ResumptionError(
            f"above: got {above}, expected at most {heard.slot + MAX_AHEAD_SLOTS}, {MAX_AHEAD_SLOTS} slots beyond the "
            "newest that is known of: the keys would be silent until then, and nothing takes it back; "
            + (f"{name}: {unknown}; {tell}" if unknown else "try: a smaller --above")
        )


def verify_above_floors(silent: Silent, chosen: Collection[int], above: int, newest: int) -> None:
    """Raise ``ResumptionError`` when ``above`` is below a floor that one of the ``chosen`` keys had.

    Up to that floor the key may have signed what is not on this record, whatever a person thinks now. ``newest`` is the newest
    slot of the chain that is known of.
    """
    floors = {key: floor for key in chosen if (floor := silent.floors.get(key, 0)) > above}
    if not floors:
        return
    key = max(floors, key=lambda found: floors[found])
    way = f"the same with --above {floors[key]}, or " if floors[key] <= newest + MAX_AHEAD_SLOTS else ""
    raise ResumptionError(
        f"above: got {above}, expected at least {floors[key]}, the floor of validator {key} on record: up to it the key may "
        f"have signed elsewhere; try: {way}without --above while the chain's other nodes run, which leaves that floor as it is"
    )


def resume_keys(
    data: DataDir, witness: Witness, silent: Silent, chosen: Collection[int], slot: int
) -> dict[int, int]:
    """Let ``chosen`` of the silent keys sign above ``slot``, and above the floors that they had; the others stay silent.

    Returns the floors of the chosen keys.
    """
    try:
        with SignerRecord(data, witness) as record:
            state = record.state
            _set_floors(state, silent, chosen, slot)
            record.rewrite()
    except SignerRecordError:
        state = salvage_record(data.signer_path, data.owner)
        _set_floors(state, silent, chosen, slot)
        create_record(data, state, witness)
    return {key: state.get_floor(key) for key in silent.keys if key in chosen}


def _set_floors(state: SignerState, silent: Silent, chosen: Collection[int], slot: int) -> None:
    for key in silent.keys:
        if key in chosen:
            state.resume(key, slot)
        else:
            state.raise_floor(key, BLOCKED)
