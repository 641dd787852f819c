"""``validator``: keys, what they have signed, and how that moves with them (EIP-3076)."""

import asyncio
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import rich_click as click

from node.cli.output import network_option, print_json, print_table, say
from node.cli.root import EXIT_CONFLICT, EXIT_USAGE, CliError, NamingGroup, confirm
from node.cli.session import Session
from node.interchange import (
    MAX_FILE_BYTES,
    Interchange,
    InterchangeError,
    Merge,
    build_interchange,
    describe_floor,
    list_blocked,
    merge_interchange,
    read_interchange,
    summarise,
    verify_is_newest,
)
from node.network import Network, get_local_validators, parse_node
from node.remedies import describe_way_without_export, describe_ways_back
from node.resumption import (
    MARGIN_SLOTS,
    choose_slot,
    find_silent,
    hear_slots,
    read_slots,
    resume_keys,
    verify_above_floors,
    verify_reachable,
)
from node.runtime import open_node_data
from node.signer import build_witness
from node.storage.data_dir import SIGNER_FILE, DataDir, DataDirBusyError
from node.storage.key_locks import KeyLocks, get_lock_dir, read_holder
from node.storage.signer_record import (
    SignerRecord,
    SignerRecordError,
    Witness,
    create_record,
    peek_record,
    salvage_record,
)
from shardyard.consensus.signer import BLOCKED, SignerState
from shardyard.ids import BEACON, Hash32, describe_shard

_SOUND: Final = "sound"
_NONE_YET: Final = "none yet"


@click.group(cls=NamingGroup)
def validator() -> None:
    """List validator keys; export and import what they have signed; let silent ones sign again."""


def _verify_node(session: Session, node: str) -> None:
    known = [str(found) for found in session.network.nodes]
    if node not in known:
        raise CliError(
            f"node: got {node!r}, expected one of {', '.join(known)}; try: shardyard validator list{session.name_flag}",
            EXIT_USAGE,
        )


def _get_keys(network: Network, node: str) -> dict[int, bytes]:
    """Return the public keys of ``node`` by validator."""
    chain, _ = parse_node(node)
    committee = network.genesis.committees[chain]
    return {
        position: committee.validators[position].public_key
        for position in get_local_validators(network, node)
    }


def _open_witness(network: Network, node: str) -> Witness:
    chain, _ = parse_node(node)
    secrets = network.read_validator_secrets(chain, get_local_validators(network, node))
    return build_witness(network.witness_dir, network.genesis.get_domain(chain), secrets.values())


def _get_genesis_hash(network: Network, node: str) -> Hash32:
    chain, _ = parse_node(node)
    genesis = network.genesis
    return genesis.beacon_block.hash if chain == BEACON else genesis.build_shard_block(chain).hash


@contextmanager
def _open_stopped(session: Session, node: str) -> Iterator[DataDir]:
    """Open the data directory of ``node``, which must not run; its keys are locked meanwhile."""
    _verify_node(session, node)
    network = session.network
    chain, _ = parse_node(node)
    secrets = network.read_validator_secrets(chain, get_local_validators(network, node))
    try:
        with (
            open_node_data(network, node, chain) as data,
            KeyLocks(get_lock_dir(), network.genesis.get_domain(chain), secrets.values(), data.path),
        ):
            yield data
    except DataDirBusyError as error:
        raise CliError(
            f"{node} is running, and signs while we look; try: shardyard node stop {node}{session.name_flag}",
            EXIT_CONFLICT,
        ) from error


@validator.command("list")
@network_option
def list_validators(*, name: str, as_json: bool) -> int:
    """List the keys of every node: how far each has signed, and who holds its lock."""
    session = Session(name)
    rows = [row for node in session.network.nodes for row in _describe_node(session.network, node)]
    if as_json:
        print_json(rows)
        return 0
    lost = dict.fromkeys(row["record"] for row in rows if row["record"] not in {_SOUND, _NONE_YET})
    print_table(
        ("Node", "Chain", "Validator", "Key", "Newest slot", "Signs above", "Record", "Lock"),
        [
            (
                row["node"],
                row["chain"],
                row["validator"],
                row["key"][:18] + "…",
                row["newest_slot"],
                row["floor"],
                "lost" if row["record"] in lost else row["record"],
                row["lock"] or "free",
            )
            for row in rows
        ],
    )
    for words in lost:
        reason, _, remedy = words.partition("; try: ")
        say(f"{reason}\ntry: {remedy}")
    return 0


def _describe_node(network: Network, node: str) -> list[dict[str, Any]]:
    chain, _ = parse_node(node)
    path = network.get_data_dir(node) / SIGNER_FILE
    record, state = _SOUND, SignerState()
    if not path.parent.exists():
        record = _NONE_YET
    else:
        try:
            state = peek_record(path, network.genesis.network)
        except SignerRecordError as error:
            record = f"{error}; try: {describe_ways_back(network, node)}"
    domain = network.genesis.get_domain(chain)
    return [
        {
            "node": str(node),
            "chain": describe_shard(chain),
            "validator": position,
            "key": "0x" + key.hex(),
            **summarise(state, position),
            "record": record,
            "lock": read_holder(get_lock_dir(), domain, key),
        }
        for position, key in _get_keys(network, node).items()
    ]


@validator.command("export")
@click.argument("node_id")
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File to make.  [default: standard output]",
)
@click.option("--minimal", is_flag=True, help="Only the highest slot of each key, without its votes.")
@network_option
def export_(*, node_id: str, output: Path | None, minimal: bool, name: str, as_json: bool) -> int:
    """Write what the keys of NODE_ID have signed, in EIP-3076's interchange form.

    The node must be stopped, and stay so when its keys move: what it signs later is not in the file. Keys that are
    silent for good are not in it either.
    """
    session = Session(name)
    network = session.network
    chain, _ = parse_node(node_id) if node_id in network.nodes else (BEACON, 0)
    with (
        _open_stopped(session, node_id) as data,
        _open_witness(network, node_id) as witness,
        _open_record(network, node_id, data, witness) as record,
    ):
        keys = _get_keys(network, node_id)
        text = build_interchange(
            network.genesis.get_domain(chain),
            _get_genesis_hash(network, node_id),
            keys,
            record.state,
            record_number=record.number,
            is_minimal=minimal,
        )
        blocked = list_blocked(keys, record.state)
    written = len(keys) - len(blocked)
    if output is None:
        click.echo(text.decode(), nl=False)
    else:
        _write_new(output, text)
        if as_json:
            print_json({"node": node_id, "keys": written, "left_out": blocked, "file": str(output)})
        else:
            say(f"{written} keys of {node_id} written to {output}; keep {node_id} stopped if they move")
    if blocked:
        say(
            f"left out: validators {', '.join(map(str, blocked))}, which are silent for good, for what they signed "
            f"elsewhere is unknown; try: shardyard validator resume {node_id}{session.name_flag}, as long as other keys of the "
            "chain have a quorum, then export again"
        )
    return 0


def _open_record(network: Network, node: str, data: DataDir, witness: Witness) -> SignerRecord:
    try:
        return SignerRecord(data, witness)
    except SignerRecordError as error:
        raise CliError(f"{error}; try: {describe_ways_back(network, node)}") from error


def _write_new(path: Path, text: bytes) -> None:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError as error:
        raise CliError(f"{path} exists and is left alone; try: another --output", EXIT_CONFLICT) from error
    except OSError as error:
        raise CliError(f"{path}: {error.strerror}; try: another --output", EXIT_USAGE) from error
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(text)
            file.flush()
            os.fsync(descriptor)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise CliError(f"{path}: {error.strerror}; try: another --output") from error


@validator.command("import")
@click.argument("node_id")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@network_option
def import_(*, node_id: str, file: Path, name: str, as_json: bool) -> int:
    """Merge FILE, an export of what keys have signed, into the record of NODE_ID, which must be stopped.

    Nothing that is on record is ever lowered. When the record is lost, FILE must not be older than what was
    last signed, and keys that it does not name stay silent.
    """
    session = Session(name)
    network = session.network
    with _open_stopped(session, node_id) as data, _open_witness(network, node_id) as witness:
        found = read_interchange(_read_file(file), _get_genesis_hash(network, node_id), str(file))
        merged = _merge(network, node_id, data, witness, found, str(file))
    rows = [merge._asdict() | {"floor": describe_floor(merge.floor)} for merge in merged]
    if as_json:
        print_json(rows)
        return 0
    print_table(("Validator", "Entries added", "Signs above"), [tuple(row.values()) for row in rows])
    return 0


@validator.command("resume")
@click.argument("node_id")
@click.argument("validators", nargs=-1, type=click.IntRange(min=0))
@click.option(
    "--above",
    type=click.IntRange(min=1),
    help=f"Slot above which they sign.  [default: {MARGIN_SLOTS} beyond the newest one that the chain's nodes tell]",
)
@click.option("--yes", is_flag=True, help="Do not ask.")
@network_option
def resume(
    *, node_id: str, validators: tuple[int, ...], above: int | None, yes: bool, name: str, as_json: bool
) -> int:
    """Let keys of NODE_ID sign again: VALIDATORS, or all whose record is lost or with which another process signed.

    NODE_ID must be stopped, and every other process with these keys for good: two that sign in one slot are slashable.
    They sign above a slot in which none of them can have signed, which the chain has to pass by the votes of others.
    """
    session = Session(name)
    network = session.network
    chain, _ = parse_node(node_id) if node_id in network.nodes else (BEACON, 0)
    with _open_stopped(session, node_id) as data, _open_witness(network, node_id) as witness:
        keys = _get_keys(network, node_id)
        if strangers := sorted(set(validators) - set(keys)):
            raise CliError(
                f"validator: got {strangers[0]}, expected one of {node_id}: {', '.join(map(str, keys))}",
                EXIT_USAGE,
            )
        logged = read_slots(data, keys)
        silent = find_silent(data, witness, keys, logged)
        chosen = [key for key in silent.keys if not validators or key in validators]
        if not chosen:
            if as_json:
                print_json([])
            say(f"no key of {node_id} that was asked for is silent; nothing is changed")
            return 0
        verify_reachable(network, chain, silent)
        if not yes:
            _confirm_stopped(describe_shard(chain), chosen, silent.reason)
        # Only now, because whoever was asked may have taken long to answer.
        heard = asyncio.run(hear_slots(network, node_id, silent, logged))
        slot = choose_slot(network, chain, heard, above)
        if above is not None:
            verify_above_floors(silent, chosen, above, heard.slot)
        floors = resume_keys(data, witness, silent, chosen, slot)
    rows = [{"validator": key, "floor": floor} for key, floor in floors.items()]
    if as_json:
        print_json(rows)
        return 0
    print_table(("Validator", "Signs above"), [tuple(row.values()) for row in rows])
    say(
        f"{describe_shard(chain)} has to pass slot {max(floors.values())} by the votes of others first; "
        f"next: shardyard node start {node_id}{session.name_flag}"
    )
    return 0


def _confirm_stopped(chain: str, keys: list[int], reason: str) -> None:
    if reason:
        say(reason)
    names = ", ".join(map(str, keys))
    confirm(
        f"validators {names} of {chain}: two processes that sign in one slot with one key are slashable, and nothing notices "
        "before they have. Is every other process with these keys stopped for good?",
        "the same with --yes, which does not ask, once every other process with these keys is stopped for good",
    )


def _merge(
    network: Network, node: str, data: DataDir, witness: Witness, found: Interchange, name: str
) -> list[Merge]:
    chain, _ = parse_node(node)
    domain, keys = network.genesis.get_domain(chain), _get_keys(network, node)
    try:
        with SignerRecord(data, witness) as record:
            merged = merge_interchange(found, domain, keys, record.state, name)
            record.rewrite(above=found.metadata.record_number)
    except SignerRecordError as error:
        verify_is_newest(found, witness.read(), name, otherwise=describe_way_without_export(network, node))
        state = salvage_record(data.signer_path, data.owner)
        merged = merge_interchange(found, domain, keys, state, name)
        say(f"the record of {node} is begun anew: {error}")
        for position in set(keys) - {merge.validator for merge in merged}:
            state.raise_floor(position, BLOCKED)
        create_record(data, state, witness, above=found.metadata.record_number)
    return merged


def _read_file(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise InterchangeError(
            f"{path}: {error.strerror}; try: shardyard validator export, where the key was last used"
        ) from error
