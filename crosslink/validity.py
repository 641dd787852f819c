"""When a crosslink is valid (X4, X5, X11): every claim of it but congestion is computed again, and none is believed.

Two halves. ``check_submission`` needs nothing but genesis: shape, the chain of headers, the finality proof of its head, and
that receipts, roots, sums and sequences agree; its result holds for ever and is computed once. ``verify_position`` is cheap
and compares that result with the beacon's state before the block that would carry it: parent, heights, beacon references,
inbox positions and supply. Congestion (X9) is a hint: nobody checks or uses it. Whatever is wrong raises
``RemoteProtocolError``; nothing else may come out of this module, for nothing a shard sends can halt the beacon.
"""

from collections.abc import Callable, Sequence
from itertools import islice, pairwise

import msgspec

from crosslink.state import (
    BeaconState,
    BlockStep,
    CrosslinkFacts,
    EmittedLink,
    ShardEntry,
    compute_balance,
    get_available,
    iterate_pending,
)
from shardyard.blocks import BeaconRef, BlockKind, Header, ShardContent
from shardyard.consensus.proofs import verify_finality_proof
from shardyard.consensus.votes import Crypto
from shardyard.crosslinks import Bundle, Crosslink, CrosslinkSubmission
from shardyard.emission import verify_outbox
from shardyard.errors import InvalidCrosslinkError, SupplyError
from shardyard.genesis import Genesis
from shardyard.ids import ShardId, compute_epoch
from shardyard.receipts import (
    LinkSummary,
    Receipt,
    compute_delivery_gas,
    compute_escrow,
    compute_outbox_root,
    count_deliveries,
    decode_receipt,
    summarise_links,
)

HEADER_VERSION = 1
_U64_MAX = (1 << 64) - 1
FindRef = Callable[[int], BeaconRef | None]
"""Returns the beacon block of a height on the chain at hand, or None above its tip."""
Entries = list[tuple[bytes, Receipt]]


class AheadError(InvalidCrosslinkError):
    """The crosslink refers to a beacon block above the tip at hand: wrong here, perhaps right one block later."""


class CheckedSubmission(msgspec.Struct, frozen=True):
    """A submission that is right in itself, with its facts and its bundles, one per destination."""

    submission: CrosslinkSubmission
    facts: CrosslinkFacts
    bundles: tuple[Bundle, ...]
    size: int
    """Bytes of receipts."""


def check_submission(genesis: Genesis, crypto: Crypto, submission: CrosslinkSubmission) -> CheckedSubmission:
    """Return the facts of ``submission``; raises ``RemoteProtocolError`` unless it is right in itself.

    Cheap checks come first and signatures before bodies, so that garbage costs its sender more than its reader.
    """
    crosslink = submission.crosslink
    _verify_shape(genesis, submission)
    _verify_headers(genesis, crosslink, submission.headers)
    _verify_head(crosslink, submission.headers[-1])
    proven = verify_finality_proof(
        crypto,
        genesis.get_domain(crosslink.shard),
        genesis.committees[crosslink.shard],
        submission.proof,
    )
    if proven.hash != crosslink.head_hash:
        raise InvalidCrosslinkError(f"{_describe(crosslink)}: the finality proof is of another block")
    return check_bodies(genesis, submission)


def check_bodies(genesis: Genesis, submission: CrosslinkSubmission) -> CheckedSubmission:
    """Return the facts of a submission whose headers are known to be final, checking its bodies against them."""
    entries: Entries = []
    for header, outbox in zip(submission.headers, submission.outboxes, strict=True):
        entries += _verify_block_outbox(genesis, header, outbox)
    _verify_links(submission.crosslink, entries)
    return _gather(submission, entries)


def read_bodies(submission: CrosslinkSubmission) -> CheckedSubmission:
    """Return the facts of a submission from this process's own log, where only checked ones come (S5)."""
    return _gather(
        submission, [(data, decode_receipt(data)) for outbox in submission.outboxes for data in outbox]
    )


def _gather(submission: CrosslinkSubmission, entries: Entries) -> CheckedSubmission:
    crosslink = submission.crosslink
    received: dict[ShardId, Entries] = {link.dst: [] for link in crosslink.links}
    for entry in entries:
        received[entry[1].dst].append(entry)
    crosslink_hash = crosslink.hash
    facts = CrosslinkFacts(
        crosslink=crosslink,
        hash=crosslink_hash,
        first_parent=submission.headers[0].parent,
        steps=tuple(_read_step(header) for header in submission.headers),
        first_seqs=tuple((link.dst, link.first_seq) for link in crosslink.links),
        links=tuple(_build_link(link, received[link.dst]) for link in crosslink.links),
        burnt_total=int.from_bytes(submission.headers[-1].shard_content.burnt, "big"),
    )
    bundles = tuple(
        Bundle(
            crosslink=crosslink_hash, src=crosslink.shard, dst=dst, receipts=tuple(data for data, _ in group)
        )
        for dst, group in received.items()
    )
    size = sum(len(data) for data, _ in entries)
    return CheckedSubmission(submission=submission, facts=facts, bundles=bundles, size=size)


def _build_link(link: LinkSummary, entries: Entries) -> EmittedLink:
    return EmittedLink(
        dst=link.dst,
        last_seq=link.last_seq,
        root=link.link_root,
        escrows=tuple(compute_escrow(receipt) for _, receipt in entries),
        gas=tuple(compute_delivery_gas(receipt) for _, receipt in entries),
    )


def verify_position(genesis: Genesis, state: BeaconState, facts: CrosslinkFacts, find_ref: FindRef) -> None:
    """Raise ``InvalidCrosslinkError`` unless a beacon block on ``state`` may carry the crosslink of ``facts``."""
    crosslink = facts.crosslink
    entry = state.shards[crosslink.shard]
    name = _describe(crosslink)
    if crosslink.parent != entry.crosslink:
        raise InvalidCrosslinkError(
            f"{name}: got parent {crosslink.parent.hex()}, expected {entry.crosslink.hex()}"
        )
    if crosslink.first_height != entry.last_height + 1:
        raise InvalidCrosslinkError(
            f"{name}: got first height {crosslink.first_height}, expected {entry.last_height + 1}"
        )
    if facts.first_parent != entry.head_hash:
        raise InvalidCrosslinkError(f"{name}: the first header is not a child of the last head")
    for dst, first_seq in facts.first_seqs:
        if first_seq != entry.last_seqs[dst] + 1:
            raise InvalidCrosslinkError(
                f"{name}: link to {dst}: got first seq {first_seq}, expected {entry.last_seqs[dst] + 1}"
            )
    _verify_deliveries(entry, facts, find_ref, genesis.preset.inbox_gas)
    _verify_supply(entry, facts)


def verify_submission(
    genesis: Genesis, crypto: Crypto, state: BeaconState, submission: CrosslinkSubmission, find_ref: FindRef
) -> CheckedSubmission:
    """Return the facts of ``submission`` when a beacon block on ``state`` may carry it (X4, X11)."""
    checked = check_submission(genesis, crypto, submission)
    verify_position(genesis, state, checked.facts, find_ref)
    return checked


def _describe(crosslink: Crosslink) -> str:
    return f"crosslink of shard {crosslink.shard} up to {crosslink.last_height}"


def _verify_shape(genesis: Genesis, submission: CrosslinkSubmission) -> None:
    crosslink = submission.crosslink
    name = _describe(crosslink)
    if not 0 <= crosslink.shard < genesis.shard_count:
        raise InvalidCrosslinkError(f"{name}: expected a shard below {genesis.shard_count}")
    count = len(submission.headers)
    if not 1 <= count <= genesis.preset.max_crosslink_blocks:
        raise InvalidCrosslinkError(
            f"{name}: got {count} blocks, expected 1..{genesis.preset.max_crosslink_blocks}"
        )
    if len(submission.outboxes) != count:
        raise InvalidCrosslinkError(f"{name}: got {len(submission.outboxes)} outboxes for {count} headers")
    if crosslink.first_height < 1 or crosslink.last_height != crosslink.first_height + count - 1:
        raise InvalidCrosslinkError(
            f"{name}: got heights {crosslink.first_height}..{crosslink.last_height} for {count} headers"
        )
    size = sum(len(data) for outbox in submission.outboxes for data in outbox)
    if size > genesis.preset.max_bundle_bytes:  # X10
        raise InvalidCrosslinkError(
            f"{name}: got {size} bytes of receipts, expected at most {genesis.preset.max_bundle_bytes}"
        )
    if crosslink.congestion < 0 or len(crosslink.parent) != 32:
        raise InvalidCrosslinkError(
            f"{name}: got congestion {crosslink.congestion} or a parent that is no hash"
        )


def _verify_headers(genesis: Genesis, crosslink: Crosslink, headers: Sequence[Header]) -> None:
    name = _describe(crosslink)
    for offset, header in enumerate(headers):
        expected = (HEADER_VERSION, genesis.network, crosslink.shard, crosslink.epoch, BlockKind.NORMAL)
        got = (header.version, header.network, header.shard, header.epoch, header.kind)
        if got != expected or compute_epoch(header.slot) != header.epoch:
            raise InvalidCrosslinkError(
                f"{name}: header {offset} belongs to another network, shard, epoch or kind"
            )
        if header.height != crosslink.first_height + offset:
            raise InvalidCrosslinkError(
                f"{name}: got height {header.height}, expected {crosslink.first_height + offset}"
            )
        if offset and header.parent != headers[offset - 1].hash:
            raise InvalidCrosslinkError(f"{name}: header {header.height} is not a child of the one before")
        if not isinstance(header.content, ShardContent):
            raise InvalidCrosslinkError(f"{name}: header {header.height} has the content of a beacon block")
    _verify_monotone(name, [header.shard_content for header in headers])


def _verify_monotone(name: str, contents: Sequence[ShardContent]) -> None:
    for content in contents:
        if len(content.burnt) != 32:
            raise InvalidCrosslinkError(f"{name}: got burnt wei in {len(content.burnt)} bytes, expected 32")
    for before, after in pairwise(contents):
        if after.burnt < before.burnt:
            raise InvalidCrosslinkError(f"{name}: wei burnt since genesis became fewer")


def _verify_head(crosslink: Crosslink, head: Header) -> None:
    content = head.shard_content
    claims = (
        ("head", crosslink.head_hash, head.hash),
        ("state root", crosslink.state_root, content.state_root),
        ("inbox position", crosslink.inbox_position, content.inbox_position),
        ("base fee", crosslink.base_fee, content.base_fee),
    )
    for what, got, expected in claims:
        if got != expected:
            raise InvalidCrosslinkError(f"{_describe(crosslink)}: the {what} is not that of its last header")
    if not 0 <= crosslink.base_fee <= _U64_MAX or len(crosslink.state_root) != 32:
        # The base fee becomes the floor of messages on every other shard.
        raise InvalidCrosslinkError(
            f"{_describe(crosslink)}: got base fee {crosslink.base_fee} or no state root"
        )


def _verify_block_outbox(genesis: Genesis, header: Header, outbox: Sequence[bytes]) -> Entries:
    entries, links = verify_outbox(
        outbox, shard=header.shard, shard_count=genesis.shard_count, preset=genesis.preset
    )
    root = compute_outbox_root(links)
    if root != header.shard_content.outbox_root:
        raise InvalidCrosslinkError(
            f"block {header.height} of shard {header.shard}: got receipts of root {root.hex()}, "
            f"expected {header.shard_content.outbox_root.hex()}"
        )
    return entries


def _verify_links(crosslink: Crosslink, entries: Entries) -> None:
    try:
        links = summarise_links(entries)
    except SupplyError as error:
        raise InvalidCrosslinkError(str(error)) from error
    if links != crosslink.links:  # counts, roots, sums, sizes and sequences, all at once
        raise InvalidCrosslinkError(f"{_describe(crosslink)}: its links are not what its receipts give")


def _read_step(header: Header) -> BlockStep:
    content = header.shard_content
    return BlockStep(
        beacon_ref=content.beacon_ref,
        inbox_position=content.inbox_position,
        delivery_count=content.delivery_count,
    )


def _verify_deliveries(entry: ShardEntry, facts: CrosslinkFacts, find_ref: FindRef, inbox_gas: int) -> None:
    """Walk the blocks as their executor did: each takes exactly what X5 gives it of what its reference shows it."""
    name = _describe(facts.crosslink)
    start = entry.inbox.position
    # One more than claimed shows whether another was due; no claim makes this list longer than the inbox.
    claimed = min(facts.crosslink.inbox_position, entry.inbox.length) - start
    pending = [gas for _, gas in islice(iterate_pending(entry.inbox), max(0, claimed) + 1)]
    position = start
    ref = entry.beacon_ref
    for step in facts.steps:
        if step.beacon_ref != ref:
            _verify_ref(name, ref, step.beacon_ref, find_ref)
            ref = step.beacon_ref
        offered = pending[position - start : get_available(entry.inbox, ref.height) - start]
        taken = count_deliveries(offered, inbox_gas)
        if (step.inbox_position, step.delivery_count) != (position + taken, taken):
            raise InvalidCrosslinkError(
                f"{name}: got inbox position {step.inbox_position} after {step.delivery_count} deliveries, "
                f"expected {position + taken} after {taken}"
            )
        position += taken


def _verify_ref(name: str, before: BeaconRef, ref: BeaconRef, find_ref: FindRef) -> None:
    if ref.height <= before.height:  # X0: never below its parent's
        raise InvalidCrosslinkError(f"{name}: got beacon reference {ref.height} after {before.height}")
    found = find_ref(ref.height)
    if found is None:
        raise AheadError(f"{name}: beacon reference {ref.height} is above the tip")
    if found != ref:
        raise InvalidCrosslinkError(f"{name}: beacon reference {ref.height} is not on the beacon's chain")


def _verify_supply(entry: ShardEntry, facts: CrosslinkFacts) -> None:
    crosslink = facts.crosslink
    name = _describe(crosslink)
    burnt = facts.burnt_total - entry.burnt
    if burnt < 0 or burnt.to_bytes(32, "big") != crosslink.burnt:
        raise InvalidCrosslinkError(f"{name}: got burnt {crosslink.burnt.hex()}, expected {burnt} wei")
    balance = compute_balance(entry, facts)
    if balance < 0:  # X11: the firewall
        raise InvalidCrosslinkError(f"{name}: the shard spends {-balance} wei more than it has")
