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
from shards.snapshots import compute_chunk_hash
from shardyard import _native
from shardyard.blocks import Block, CertifiedHeader, FinalityProof, Justification, compute_body_hash
from shardyard.codec import decode, encode
from shardyard.consensus.votes import Certificate, VoteKind, compute_vote_message
from shardyard.effects import BlockRecord, CertificateRecord, FinalRecord, SnapshotRecord
from shardyard.errors import DecodeError
from shardyard.ids import ZERO_HASH, Slot, compute_chain_id
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

    An access list or a chunk is no record: it comes as its entry.
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
    return entry.decode_record() if entry.kind is EntryKind.KERNEL else entry


def get_final(network: Network, node: str, height: int = 0) -> tuple[Block, FinalityProof]:
    """Return the final block at ``height``, the last one for 0, with its proof."""
    records = [decode_entry(entry) for entry in read_entries(network, node)]
    finals = {record.height: record for record in records if isinstance(record, FinalRecord)}
    final = finals[height or max(finals)]
    block = next(r.block for r in records if isinstance(r, BlockRecord) and r.block.hash == final.block_hash)
    return block, final.proof


def keep_finals(network: Network, node: str, last: int) -> None:
    """Forget that blocks above height ``last`` became final."""

    def drop(record):
        return None if isinstance(record, FinalRecord) and record.height > last else record

    assert rewrite(network, node, drop)


def come_by_snapshot(network: Network, node: str, last: int, base: int) -> None:
    """Let the log end at height ``last`` and go on with a snapshot of the block at ``base``, as of a node that was away."""
    block, proof = get_final(network, node, base)
    chunks = list_chunks(network, node, base)
    entries = []
    for entry in read_entries(network, node):
        record = decode_entry(entry)
        if not isinstance(record, FinalRecord) or record.height <= last or record.height > base:
            entries.append(entry)
        elif record.height == base:
            entries += [LogEntry(EntryKind.CHUNK, chunk, compute_chunk_hash(chunk)) for chunk in chunks]
            snapshot = SnapshotRecord(block, proof, tuple(map(compute_chunk_hash, chunks)))
            entries.append(LogEntry(EntryKind.KERNEL, encode(snapshot)))
    write_entries(network, node, entries)


def list_chunks(network: Network, node: str, height: int) -> list[bytes]:
    """Return the chunks of a snapshot of the state after the block at ``height``, made of the diffs in the log."""
    chain, _ = parse_node(node)
    records = [decode_entry(entry) for entry in read_entries(network, node)]
    diffs = {record.block_hash: record.diff for record in records if isinstance(record, StateRecord)}
    core = _native.Core(chain_id=compute_chain_id(chain), shard=chain, history=1)
    core.init_genesis(network.read_alloc())
    core.set_base(network.genesis.get_genesis_block(chain).hash, 0)
    for number in range(1, height + 1):
        header = get_final(network, node, number)[0].header
        assert core.apply_diff(header.hash, number, diffs[header.hash]) == header.shard_content.state_root
        core.finalise(header.hash)
    return core.snapshot()


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
