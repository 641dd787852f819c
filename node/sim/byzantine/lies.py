"""What a bad proposer can say of a block, one lie at a time, and why honest validators refuse each.

A lie changes one thing about a good block and leaves everything else as it was, so that nothing but the one check that
stands against it can refuse it; where a hash commits to what is changed, the hash follows. ``reason`` is a part of the
text with which honest nodes refuse, or call invalid, what came of it.
"""

from collections.abc import Callable
from typing import Final

import msgspec

from shardyard.blocks import (
    BeaconContent,
    Block,
    BlockKind,
    Header,
    Justification,
    ShardContent,
    compute_body_hash,
)
from shardyard.codec import decode, encode
from shardyard.consensus.votes import Certificate, VoteKind
from shardyard.crosslinks import BeaconBody, compute_crosslinks_root
from shardyard.hashing import TAG_VOTE, hash_tagged
from shardyard.ids import ZERO_HASH, Address, Hash32, Height, Slot
from shardyard.validators import SIGNATURE_BYTES

Change = Callable[[Block], Block | None]
"""Returns the changed block, its header still to be signed; None where the lie cannot be told of this block."""
MAX_BODY_BYTES: Final = 1 << 24
MAX_STEP_MS: Final = 25 * 3600 * 1000
"""P4: more than a block may be after its parent."""


class Lie(msgspec.Struct, frozen=True):
    """One way in which a proposal can be bad."""

    name: str
    change: Change
    reason: str
    """Part of what honest nodes say when they refuse it."""
    keeps_signature: bool = False
    """The lie is about the signature itself: the proposer does not sign again."""


def _other(value: bytes) -> bytes:
    return hash_tagged(TAG_VOTE, value)[: len(value)]


def _change_header(field: str, change: Callable[[Header], object]) -> Change:
    def apply(block: Block) -> Block:
        header = msgspec.structs.replace(block.header, **{field: change(block.header)})
        return msgspec.structs.replace(block, header=header)

    return apply


def _change_shard(**changes: Callable[[ShardContent], object]) -> Change:
    """Change fields of a shard's content; of a beacon block this lie cannot be told."""

    def apply(block: Block) -> Block | None:
        content = block.header.content
        if not isinstance(content, ShardContent):
            return None
        values = {field: change(content) for field, change in changes.items()}
        return _with_content(block, msgspec.structs.replace(content, **values))

    return apply


def _change_beacon(**changes: Callable[[BeaconContent], object]) -> Change:
    def apply(block: Block) -> Block | None:
        content = block.header.content
        if not isinstance(content, BeaconContent):
            return None
        values = {field: change(content) for field, change in changes.items()}
        return _with_content(block, msgspec.structs.replace(content, **values))

    return apply


def _with_content(block: Block, content: ShardContent | BeaconContent) -> Block:
    return msgspec.structs.replace(block, header=msgspec.structs.replace(block.header, content=content))


def _with_justification(block: Block, justification: Justification) -> Block:
    header = msgspec.structs.replace(block.header, justification_hash=justification.hash)
    return msgspec.structs.replace(block, header=header, justification=justification)


def _change_notarization(change: Callable[[Certificate], Certificate | None]) -> Change:
    def apply(block: Block) -> Block | None:
        notarization = block.justification.notarization
        if notarization is None:
            return None
        changed = msgspec.structs.replace(block.justification, notarization=change(notarization))
        return _with_justification(block, changed)

    return apply


def _add_skip(block: Block) -> Block | None:
    """Claim that the parent's own slot was skipped as well."""
    notarization = block.justification.notarization
    if notarization is None:
        return None
    skip = msgspec.structs.replace(notarization, kind=VoteKind.SKIP, block_hash=Hash32(ZERO_HASH))
    return _with_justification(block, Justification(notarization, (skip, *block.justification.skips)))


def _leave_out_slot(block: Block) -> Block | None:
    """Claim to follow the parent's slot one slot earlier, as if no SkipCert were needed between."""
    header = block.header
    if header.parent_slot < 2:
        return None
    changed = msgspec.structs.replace(header, parent_slot=Slot(header.parent_slot - 1))
    return msgspec.structs.replace(block, header=changed)


def _with_body(change: Callable[[bytes], bytes], *, is_committed: bool, is_beacon: bool | None) -> Change:
    def apply(block: Block) -> Block | None:
        if is_beacon is not None and isinstance(block.header.content, BeaconContent) is not is_beacon:
            return None
        body = change(block.body)
        header = block.header
        if is_committed:
            header = msgspec.structs.replace(header, body_hash=compute_body_hash(body))
        return msgspec.structs.replace(block, header=header, body=body)

    return apply


def _repeat_crosslink(block: Block) -> Block | None:
    """Carry a shard's crosslink twice, roots and counts in order."""
    content = block.header.content
    if not isinstance(content, BeaconContent):
        return None
    crosslinks = decode(block.body, BeaconBody, max_bytes=MAX_BODY_BYTES).crosslinks
    if not crosslinks:
        return None
    doubled = (*crosslinks, crosslinks[-1])
    body = encode(BeaconBody(crosslinks=doubled))
    changed = msgspec.structs.replace(
        content, crosslink_count=len(doubled), crosslinks_root=compute_crosslinks_root(doubled)
    )
    header = msgspec.structs.replace(block.header, content=changed, body_hash=compute_body_hash(body))
    return msgspec.structs.replace(block, header=header, body=body)


def _refer_back(block: Block) -> Block | None:
    """Refer to an older beacon block than the parent does (X0)."""
    content = block.header.content
    if not isinstance(content, ShardContent) or content.beacon_ref.height < 3:
        return None
    ref = msgspec.structs.replace(content.beacon_ref, height=Height(content.beacon_ref.height - 3))
    return _with_content(block, msgspec.structs.replace(content, beacon_ref=ref))


def _refer_aside(block: Block) -> Block | None:
    """Refer to a beacon block that does not exist at a height that does."""
    content = block.header.content
    if not isinstance(content, ShardContent) or not content.beacon_ref.height:
        return None
    ref = msgspec.structs.replace(content.beacon_ref, hash=Hash32(_other(content.beacon_ref.hash)))
    return _with_content(block, msgspec.structs.replace(content, beacon_ref=ref))


def _shift(field: str, step: int) -> Callable[[ShardContent], int]:
    return lambda content: int(getattr(content, field)) + step


def _replace_hash(field: str) -> Callable[[ShardContent], bytes]:
    return lambda content: _other(getattr(content, field))


def _burn(content: ShardContent) -> bytes:
    return (int.from_bytes(content.burnt, "big") + 1).to_bytes(32, "big")


_OF_HEADERS: Final = (
    Lie("version", _change_header("version", lambda header: header.version + 1), "version"),
    Lie("network", _change_header("network", lambda header: _other(header.network)), "another network"),
    Lie("epoch", _change_header("epoch", lambda header: header.epoch + 1), "epoch"),
    Lie("kind", _change_header("kind", lambda _header: BlockKind.SEAL), "kind"),
    Lie("slot", _change_header("slot", lambda header: header.slot + 1), "proposer"),
    Lie("height up", _change_header("height", lambda header: header.height + 1), "height"),
    Lie("height down", _change_header("height", lambda header: header.height - 1), "height"),
    Lie(
        "parent",
        _change_header("parent", lambda header: _other(header.parent)),
        "NotarCert is not its parent's",
    ),
    Lie("time back", _change_header("timestamp_ms", lambda _header: 1), "timestamp"),
    Lie(
        "time ahead",
        _change_header("timestamp_ms", lambda header: header.timestamp_ms + MAX_STEP_MS),
        "timestamp",
    ),
    Lie("proposer", _change_header("proposer", lambda header: header.proposer + 1), "proposer"),
    Lie(
        "signature",
        lambda block: msgspec.structs.replace(block, signature=bytes(SIGNATURE_BYTES)),
        "signature does not verify",
        keeps_signature=True,
    ),
    Lie(
        "short signature",
        lambda block: msgspec.structs.replace(block, signature=block.signature[:-1]),
        "bytes of signature",
        keeps_signature=True,
    ),
)
_OF_JUSTIFICATIONS: Final = (
    Lie("no certificate", _change_notarization(lambda _certificate: None), "only a child of genesis"),
    Lie(
        "forged certificate",
        _change_notarization(
            lambda certificate: msgspec.structs.replace(certificate, signature=bytes(SIGNATURE_BYTES))
        ),
        "aggregate signature does not verify",
    ),
    Lie(
        "certificate without quorum",
        _change_notarization(
            lambda certificate: msgspec.structs.replace(
                certificate, bitmap=b"\x01" + bytes(len(certificate.bitmap) - 1)
            )
        ),
        "got stake",
    ),
    Lie(
        "another block's certificate",
        _change_notarization(
            lambda certificate: msgspec.structs.replace(
                certificate, block_hash=Hash32(_other(certificate.block_hash))
            )
        ),
        "NotarCert is not its parent's",
    ),
    Lie(
        "FINAL for NOTAR",
        _change_notarization(lambda certificate: msgspec.structs.replace(certificate, kind=VoteKind.FINAL)),
        "NotarCert is not its parent's",
    ),
    Lie("a SkipCert too many", _add_skip, "SkipCerts"),
    Lie("a slot left out", _leave_out_slot, "SkipCerts"),
    Lie(
        "another justification",
        _change_header("justification_hash", lambda header: _other(header.justification_hash)),
        "commits to another one",
    ),
)
_OF_BODIES: Final = (
    Lie(
        "another body",
        _with_body(lambda body: body + b"\x00", is_committed=False, is_beacon=None),
        "body is not the one",
    ),
    Lie("garbage", _with_body(lambda _body: b"\xff" * 9, is_committed=True, is_beacon=False), "body: "),
    Lie(
        "crosslinks garbage",
        _with_body(lambda _body: b"\xff" * 9, is_committed=True, is_beacon=True),
        "BeaconBody",
    ),
)
_OF_SHARDS: Final = (
    Lie("state root", _change_shard(state_root=_replace_hash("state_root")), "state root"),
    Lie(
        "transactions root",
        _change_shard(transactions_root=_replace_hash("transactions_root")),
        "transactions root",
    ),
    Lie(
        "transaction count",
        _change_shard(transaction_count=_shift("transaction_count", 1)),
        "transaction count",
    ),
    Lie("outcomes root", _change_shard(outcomes_root=_replace_hash("outcomes_root")), "outcomes root"),
    Lie("outbox root", _change_shard(outbox_root=_replace_hash("outbox_root")), "outbox root"),
    Lie(
        "logs bloom", _change_shard(logs_bloom=lambda content: b"\x01" + content.logs_bloom[1:]), "logs bloom"
    ),
    Lie("gas limit", _change_shard(gas_limit=_shift("gas_limit", 1)), "gas limit"),
    Lie("gas used up", _change_shard(gas_used=_shift("gas_used", 1)), "gas used"),
    Lie("base fee up", _change_shard(base_fee=_shift("base_fee", 1)), "base fee"),
    Lie("base fee down", _change_shard(base_fee=_shift("base_fee", -1)), "base fee"),
    Lie(
        "beneficiary",
        _change_shard(beneficiary=lambda content: Address(_other(content.beneficiary))),
        "beneficiary",
    ),
    Lie("prevrandao", _change_shard(prevrandao=_replace_hash("prevrandao")), "prevrandao"),
    Lie("inbox position up", _change_shard(inbox_position=_shift("inbox_position", 1)), "inbox position"),
    Lie("inbox position down", _change_shard(inbox_position=_shift("inbox_position", -1)), "inbox position"),
    Lie(
        "a delivery too many",
        _change_shard(inbox_position=_shift("inbox_position", 1), delivery_count=_shift("delivery_count", 1)),
        "deliveries: got",
    ),
    Lie("burnt", _change_shard(burnt=_burn), "burnt"),
    Lie("access list", _change_shard(access_list_hash=_replace_hash("access_list_hash")), "access list hash"),
    Lie("snapshot root", _change_shard(snapshot_root=_replace_hash("access_list_hash")), "snapshot root"),
    Lie("an older beacon block", _refer_back, "beacon_ref"),
    Lie("no beacon block", _refer_aside, "beacon_ref"),
)
_OF_BEACON: Final = (
    Lie(
        "beacon state root",
        _change_beacon(state_root=lambda content: _other(content.state_root)),
        "state root",
    ),
    Lie(
        "registry root",
        _change_beacon(registry_root=lambda content: _other(content.registry_root)),
        "registry root",
    ),
    Lie(
        "crosslinks root",
        _change_beacon(crosslinks_root=lambda content: _other(content.crosslinks_root)),
        "crosslinks root",
    ),
    Lie(
        "crosslink count",
        _change_beacon(crosslink_count=lambda content: content.crosslink_count + 1),
        "crosslinks, expected",
    ),
    Lie("a crosslink twice", _repeat_crosslink, "out of visit order or twice"),
)

LIES: Final = (*_OF_HEADERS, *_OF_JUSTIFICATIONS, *_OF_BODIES, *_OF_SHARDS, *_OF_BEACON)
