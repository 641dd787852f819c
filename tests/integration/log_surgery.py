"""Plants damage in block logs: rewrites them with right checksums, and signs lies with the network's own keys.

What a torn disk does is seen by the checksums; what is planted here is what only an auditor can see.
"""

import contextlib
import shutil
from pathlib import Path

import msgspec

from node.executor import StateRecord
from node.network import Network, get_local_validators, open_network, parse_node
from node.storage.frames import Frame, encode_frame, encode_header, scan
from node.storage.log import LOG_FILE_KIND, MAX_RECORD_BYTES, EntryKind, LogEntry, compute_label
from shardyard import _native
from shardyard.blocks import Block, CertifiedHeader, FinalityProof, Justification, compute_body_hash
from shardyard.codec import decode, encode
from shardyard.consensus.votes import Certificate, VoteKind, compute_vote_message
from shardyard.effects import BlockRecord, CertificateRecord, FinalRecord
from shardyard.errors import DecodeError
from shardyard.ids import ZERO_HASH, Slot
from shardyard.quorum import encode_bitmap


def copy_network(network: Network, folder: Path) -> Network:
    """Return a copy that may be damaged."""
    shutil.copytree(
        network.root, folder / network.root.name, ignore=shutil.ignore_patterns("index", "*.sock")
    )
    return open_network(folder / network.root.name)


def get_log_file(network: Network, node: str) -> Path:
    return network.get_data_dir(node) / "blocks" / "00000000.log"


def read_entries(network: Network, node: str) -> list[LogEntry]:
    with get_log_file(network, node).open("rb") as file:
        return [
            LogEntry(EntryKind(item.kind), item.payload, item.label)
            for item in scan(file.fileno(), 0)
            if isinstance(item, Frame)
        ]


def write_entries(network: Network, node: str, entries: list[LogEntry]) -> None:
    data = bytearray(encode_header(LOG_FILE_KIND, network.genesis.network, 0))
    for entry in entries:
        label = entry.label
        if entry.kind is EntryKind.KERNEL:
            label = b""
            with contextlib.suppress(DecodeError):
                label = compute_label(entry.decode_record())
        data += encode_frame(len(data), 0, entry.kind, entry.payload, label=label)
    get_log_file(network, node).write_bytes(bytes(data))


def rewrite(network: Network, node: str, change) -> int:
    """Rewrite a log; ``change`` takes each record and returns it, another one, or None to drop it. Returns the changes.

    An access list is no record: it comes as its entry.
    """
    entries, changes = [], 0
    for entry in read_entries(network, node):
        record = decode_entry(entry)
        changed = change(record)
        if changed is record:
            entries.append(entry)
            continue
        changes += 1
        if changed is not None:
            is_entry = isinstance(changed, LogEntry)
            entries.append(changed if is_entry else LogEntry(entry.kind, encode(changed), entry.label))
    write_entries(network, node, entries)
    return changes


def decode_entry(entry: LogEntry):
    if entry.kind is EntryKind.NODE:
        return decode(entry.payload, StateRecord, max_bytes=MAX_RECORD_BYTES)
    return entry if entry.kind is EntryKind.ACCESS_LIST else entry.decode_record()


def get_final(network: Network, node: str, height: int = 0) -> tuple[Block, FinalityProof]:
    """Return the final block at ``height``, the last one for 0, with its proof."""
    records = [decode_entry(entry) for entry in read_entries(network, node)]
    finals = {record.height: record for record in records if isinstance(record, FinalRecord)}
    final = finals[height or max(finals)]
    block = next(r.block for r in records if isinstance(r, BlockRecord) and r.block.hash == final.block_hash)
    return block, final.proof


def get_highest_slot(network: Network, node: str) -> int:
    """Return the highest slot that the log of ``node`` has a block or a certificate of, final or not."""
    slots = [0]
    for entry in read_entries(network, node):
        match decode_entry(entry):
            case BlockRecord(block=block):
                slots.append(block.header.slot)
            case CertificateRecord(certificate=certificate):
                slots.append(certificate.slot)
    return max(slots)


def certify(network: Network, node: str, kind: VoteKind, slot: int, block_hash: bytes) -> Certificate:
    """Return a certificate that the whole committee of ``node``'s chain signed."""
    chain, _ = parse_node(node)
    committee = network.genesis.committees[chain]
    indices = get_local_validators(network, node)
    secrets = network.read_validator_secrets(chain, indices)
    message = compute_vote_message(network.genesis.get_domain(chain), kind, Slot(slot), block_hash)
    signatures = _native.bls_sign_many([secrets[index] for index in indices], message)
    return Certificate(
        kind=kind,
        slot=Slot(slot),
        block_hash=block_hash,
        bitmap=encode_bitmap(indices, len(committee)),
        signature=_native.bls_aggregate(signatures),
    )


def append_forged_block(
    network: Network, node: str, content: dict | None = None, body: bytes | None = None, **header
) -> Block:
    """Append a child of the last final block that the whole committee signed, whatever is in it.

    It stands above all slots that were voted on, which are skipped: in one of them it would contradict true votes as well.
    """
    chain, _ = parse_node(node)
    parent, proof = get_final(network, node)
    slot = Slot(get_highest_slot(network, node) + 1)
    committee = network.genesis.committees[chain]
    notarization = proof.notarization if len(proof.path) == 1 else None
    justification = Justification(
        notarization=notarization or certify(network, node, VoteKind.NOTAR, parent.header.slot, parent.hash),
        skips=tuple(
            certify(network, node, VoteKind.SKIP, skipped, ZERO_HASH)
            for skipped in range(parent.header.slot + 1, slot)
        ),
    )
    values = {
        "slot": slot,
        "height": parent.header.height + 1,
        "parent": parent.hash,
        "parent_slot": parent.header.slot,
        "justification_hash": justification.hash,
        "timestamp_ms": parent.header.timestamp_ms + 1,
        "proposer": committee.get_leader(slot),
        "body_hash": compute_body_hash(parent.body if body is None else body),
        "content": msgspec.structs.replace(parent.header.content, **(content or {})),
    }
    forged = msgspec.structs.replace(parent.header, **(values | header))
    block = Block(forged, justification, parent.body if body is None else body, b"", b"")
    append_final(network, node, block)
    return block


def append_final(network: Network, node: str, block: Block) -> None:
    """Append ``block`` and its finality, signed by the whole committee."""
    slot, path = block.header.slot, (CertifiedHeader(block.header, block.justification),)
    certificates = [
        certify(network, node, kind, slot, block.hash) for kind in (VoteKind.NOTAR, VoteKind.FINAL)
    ]
    entries = read_entries(network, node)
    for record in (
        BlockRecord(block),
        FinalRecord(block.header.height, block.hash, FinalityProof(path, *certificates)),
    ):
        entries.append(LogEntry(EntryKind.KERNEL, encode(record)))
    write_entries(network, node, entries)
