"""What a key has signed, in the interchange form of EIP-3076, so that it can move to another machine (K5).

One file speaks of one chain. ``genesis_validators_root`` is the hash of that chain's block at height 0, which commits to
the network's genesis and to the chain. Slots are slots. A leader's signature over its block is a *signed block*; NOTAR,
SKIP and FINAL are *signed attestations* whose source and target are both their slot, because a vote here spans no epochs.
``signing_root`` is what was signed (D1). The complete form adds to each vote its ``kind`` and ``block_hash``, without
which it could not be signed again after the move; whoever does not know these two reads the rest. ``record_number``
beside the genesis is the number of the record's last frame: what a lost record is begun anew from must not be older.

Importing merges and never lowers anything. A complete entry joins the record. Where record and file know different hashes
of one vote, and for every slot of the minimal form, the key's floor rises to that slot.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

import msgspec

from shardyard.consensus.signer import BLOCKED, SignerEntry, SignerState
from shardyard.consensus.votes import Domain, VoteKind, compute_vote_message
from shardyard.errors import ConfigError
from shardyard.ids import ZERO_HASH, Hash32, describe_shard

FORMAT_VERSION: Final = "5"
MAX_FILE_BYTES: Final = 64 * 1024 * 1024
MAX_SLOT: Final = 1 << 48
"""No chain gets there: a slot beyond it is a slip of the pen, and would silence its key for good."""
MAX_RECORD_NUMBER: Final = 1 << 48
"""A record is numbered on above the one that it took, in 64 bits."""
HASH_BYTES: Final = 32
KEY_BYTES: Final = 48


class InterchangeError(ConfigError):
    """The file is not one that may be imported here."""


class Metadata(msgspec.Struct, frozen=True):
    """Whose chain it is about."""

    interchange_format_version: str
    genesis_validators_root: str
    record_number: int = 0
    """Of the last frame of the record that was exported; 0 where other tools do not tell."""


class SignedBlock(msgspec.Struct, frozen=True, omit_defaults=True):
    """A block that its leader signed."""

    slot: str
    signing_root: str = ""
    block_hash: str = ""


class SignedAttestation(msgspec.Struct, frozen=True, omit_defaults=True):
    """A vote."""

    source_epoch: str
    target_epoch: str
    signing_root: str = ""
    kind: str = ""
    block_hash: str = ""


class KeyHistory(msgspec.Struct, frozen=True):
    """What one key has signed."""

    pubkey: str
    signed_blocks: list[SignedBlock]
    signed_attestations: list[SignedAttestation]


class Interchange(msgspec.Struct, frozen=True):
    """A whole file."""

    metadata: Metadata
    data: list[KeyHistory]


class Merge(NamedTuple):
    """What an import did to one key."""

    validator: int
    added: int
    """Entries that are new or know more now."""
    floor: int
    """At and below it the key signs nothing; 0 when only the chain's own floor counts, ``BLOCKED`` while it signs nothing."""


def build_interchange(
    domain: Domain,
    genesis_hash: Hash32,
    keys: Mapping[int, bytes],
    state: SignerState,
    *,
    record_number: int,
    is_minimal: bool,
) -> bytes:
    """Return the file about ``keys``, validator to public key, as JSON.

    ``state`` is of a record whose last frame is ``record_number``. Blocked keys are left out (``list_blocked``).
    Raises ``InterchangeError`` when no key is left.
    """
    blocked = list_blocked(keys, state)
    if len(blocked) == len(keys):
        raise InterchangeError(
            f"export: got {len(keys)} keys, {len(blocked)} of them silent for good, expected one that is not; try: "
            "shardyard validator resume, as long as other keys of the chain have a quorum, or shardyard validator list, "
            "which shows who has which keys"
        )
    entries = state.entries()
    data = [
        _build_minimal(public_key, state, validator)
        if is_minimal
        else _build_complete(domain, public_key, state.get_floor(validator), entries, validator)
        for validator, public_key in sorted(keys.items())
        if validator not in blocked
    ]
    found = Interchange(Metadata(FORMAT_VERSION, _hex(genesis_hash), record_number), data)
    return msgspec.json.format(msgspec.json.encode(found), indent=1) + b"\n"


def list_blocked(keys: Iterable[int], state: SignerState) -> list[int]:
    """Return those of ``keys`` that sign nothing until a person resumes them."""
    return [validator for validator in sorted(keys) if state.get_floor(validator) == BLOCKED]


def _build_minimal(public_key: bytes, state: SignerState, validator: int) -> KeyHistory:
    slot = str(max(state.get_floor(validator), state.get_newest_slot(validator)))
    return KeyHistory(_hex(public_key), [SignedBlock(slot)], [SignedAttestation(slot, slot)])


def _build_complete(
    domain: Domain, public_key: bytes, floor: int, entries: Iterable[SignerEntry], validator: int
) -> KeyHistory:
    # The floor goes along as an entry of the minimal form: at and below it anything may have been signed.
    blocks = [SignedBlock(str(floor))]
    votes = [SignedAttestation(str(floor), str(floor))]
    for entry in entries:
        if entry.validator != validator or entry.slot <= floor:
            continue
        slot = str(entry.slot)
        if entry.proposed:
            root = _hex(compute_vote_message(domain, VoteKind.PROPOSE, entry.slot, entry.proposed))
            blocks.append(SignedBlock(slot, root, _hex(entry.proposed)))
        for kind, block_hash in (
            (VoteKind.NOTAR, entry.notar),
            (VoteKind.SKIP, ZERO_HASH if entry.skip else b""),
            (VoteKind.FINAL, entry.final),
        ):
            if block_hash:
                root = _hex(compute_vote_message(domain, kind, entry.slot, block_hash))
                votes.append(SignedAttestation(slot, slot, root, kind.name, _hex(block_hash)))
    return KeyHistory(_hex(public_key), blocks, votes)


def read_interchange(data: bytes, genesis_hash: Hash32, name: str) -> Interchange:
    """Return the file in ``data``; ``name`` is what errors call it.

    Raises ``InterchangeError`` for what is no such file, another version, or about another chain.
    """
    if len(data) > MAX_FILE_BYTES:
        raise InterchangeError(f"{name}: got {len(data)} bytes, expected at most {MAX_FILE_BYTES}; {_TRY}")
    try:
        found = msgspec.json.decode(data, type=Interchange)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise InterchangeError(f"{name}: no EIP-3076 interchange file ({error}); {_TRY}") from error
    version, root = found.metadata.interchange_format_version, found.metadata.genesis_validators_root
    if version != FORMAT_VERSION:
        raise InterchangeError(
            f"{name}: got interchange format {version[:40]!r}, expected {FORMAT_VERSION!r}; {_TRY}"
        )
    if not 0 <= found.metadata.record_number <= MAX_RECORD_NUMBER:
        raise InterchangeError(
            f"{name}: got record number {found.metadata.record_number}, expected 0 to {MAX_RECORD_NUMBER}; {_TRY}"
        )
    if root.lower() != _hex(genesis_hash):
        raise InterchangeError(
            f"{name}: got genesis {root[:66]!r}, expected {_hex(genesis_hash)}: the file is about another "
            "network or another chain of this one; try: shardyard validator list"
        )
    return found


def verify_is_newest(found: Interchange, witnessed: int, name: str, *, otherwise: str) -> None:
    """Raise ``InterchangeError`` if the lost record went on after ``found``: its witness has seen entry ``witnessed``.

    ``otherwise`` is what to try without a newer file (``node.remedies``).
    """
    number = found.metadata.record_number
    if number < witnessed:
        raise InterchangeError(
            f"{name}: it ends with entry {number}, but the keys were used up to entry {witnessed} of the record that "
            f"is lost: what they signed in between is in neither; try: an export made after that; without one: {otherwise}"
        )


def merge_interchange(
    found: Interchange, domain: Domain, keys: Mapping[int, bytes], state: SignerState, name: str
) -> list[Merge]:
    """Merge ``found`` into ``state``; return what became of each key that it names and that is here.

    Everything is read before anything is merged. Raises ``InterchangeError``, also when no key of the file is here.
    """
    positions = {public_key: validator for validator, public_key in keys.items()}
    histories: list[tuple[int, list[tuple[int, VoteKind | None, bytes]]]] = []
    for history in found.data:
        validator = positions.get(_parse_bytes(history.pubkey, KEY_BYTES, name))
        if validator is not None:
            histories.append((validator, _parse_history(history, domain, name)))
    if not histories:
        raise InterchangeError(
            f"{name}: got {len(found.data)} keys, none of which this node has; try: shardyard validator list"
        )
    return [_merge_key(state, validator, votes) for validator, votes in histories]


def _merge_key(
    state: SignerState, validator: int, votes: Iterable[tuple[int, VoteKind | None, bytes]]
) -> Merge:
    added = 0
    floor = 0
    for slot, kind, block_hash in votes:
        if kind is None:
            floor = max(floor, slot)
            continue
        # Of a blocked key too, for which everything counts as signed: a person may resume it, and the file is forgotten then.
        if slot <= state.get_known_floor(validator):
            continue
        if state.is_on_record(validator, kind, slot, Hash32(block_hash)):
            continue
        entry = state.get_entry(validator, slot)
        if _get_hash(entry, kind):
            floor = max(floor, slot)  # two hashes of one vote: nothing more is signed in this slot
            continue
        state.replay(_set_hash(entry, kind, block_hash))
        added += 1
    state.raise_floor(validator, floor)
    is_blocked = validator in state.blocked
    return Merge(validator, added, BLOCKED if is_blocked else state.key_floors.get(validator, 0))


def _get_hash(entry: SignerEntry, kind: VoteKind) -> bytes:
    match kind:
        case VoteKind.PROPOSE:
            return entry.proposed
        case VoteKind.NOTAR:
            return entry.notar
        case VoteKind.FINAL:
            return entry.final
        case VoteKind.SKIP:
            return ZERO_HASH if entry.skip else b""


def _set_hash(entry: SignerEntry, kind: VoteKind, block_hash: bytes) -> SignerEntry:
    match kind:
        case VoteKind.PROPOSE:
            return msgspec.structs.replace(entry, proposed=block_hash)
        case VoteKind.NOTAR:
            return msgspec.structs.replace(entry, notar=block_hash)
        case VoteKind.FINAL:
            return msgspec.structs.replace(entry, final=block_hash)
        case VoteKind.SKIP:
            return msgspec.structs.replace(entry, skip=True)


def _parse_history(
    history: KeyHistory, domain: Domain, name: str
) -> list[tuple[int, VoteKind | None, bytes]]:
    """Return slot, kind and hash of every entry; kind None where the file only says that something was signed."""
    found: list[tuple[int, VoteKind | None, bytes]] = []
    for block in history.signed_blocks:
        kind = VoteKind.PROPOSE.name if block.block_hash else ""
        found.append(_parse_vote(domain, block.slot, kind, block.block_hash, block.signing_root, name))
    for vote in history.signed_attestations:
        slot = str(max(_parse_slot(vote.source_epoch, name), _parse_slot(vote.target_epoch, name)))
        found.append(_parse_vote(domain, slot, vote.kind, vote.block_hash, vote.signing_root, name))
    return found


def _parse_vote(
    domain: Domain, slot_text: str, kind_text: str, hash_text: str, root: str, name: str
) -> tuple[int, VoteKind | None, bytes]:
    slot = _parse_slot(slot_text, name)
    if not kind_text:
        return slot, None, b""
    if kind_text not in VoteKind.__members__:
        raise InterchangeError(
            f"{name}: got kind {kind_text[:20]!r}, expected {', '.join(VoteKind.__members__)}; {_TRY}"
        )
    kind, block_hash = VoteKind[kind_text], _parse_bytes(hash_text, HASH_BYTES, name)
    if root.lower() != _hex(compute_vote_message(domain, kind, slot, block_hash)):
        raise InterchangeError(
            f"{name}: the signing root of {kind.name} in slot {slot} is not that of its hash on "
            f"{describe_shard(domain.shard)}; {_TRY}"
        )
    return slot, kind, block_hash


def _parse_slot(text: str, name: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= 20 and int(text) <= MAX_SLOT):
        raise InterchangeError(f"{name}: got slot {text[:40]!r}, expected 0 to {MAX_SLOT} in decimal; {_TRY}")
    return int(text)


def _parse_bytes(text: str, size: int, name: str) -> bytes:
    try:
        found = bytes.fromhex(text.removeprefix("0x"))
    except ValueError:
        found = b""
    if len(found) != size or not text.startswith("0x"):
        raise InterchangeError(
            f"{name}: got {json.dumps(text[:40])}, expected 0x and {2 * size} hexadecimal digits; {_TRY}"
        )
    return found


def _hex(data: bytes) -> str:
    return "0x" + data.hex()


_TRY: Final = "try: shardyard validator export, where the key was last used"


def summarise(state: SignerState, validator: int) -> dict[str, Any]:
    """Return what a list of keys shows of one: the newest slot it signed in and the slot up to which it signs nothing."""
    return {
        "newest_slot": state.get_newest_slot(validator),
        "floor": describe_floor(state.get_floor(validator)),
    }


def describe_floor(floor: int) -> int | str:
    """Return what people are shown of a floor."""
    return "blocked" if floor == BLOCKED else floor
