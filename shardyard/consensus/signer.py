"""What one key may sign: rules S1 to S4 over a map ``(validator, slot) -> {proposed, notar, skip, final}``.

The same rules run twice. The engine keeps a ``SignerState`` of its *intents*, so that a vote handed to the signer counts
before its signature is back; the signer keeps one whose entries are on disk before a signature leaves. Signing again what
was signed already is allowed: that is how own votes return after a restart, with the same bytes.

A slot belongs to one epoch and a position to one committee of that epoch (D2), so the pair names a key of one chain.

Below a floor nothing is signed. There is one for the chain, the last final slot, and one for each key that came from
somewhere else: after an import or a Rejoin it is the highest slot in which the key may have signed what is not on this record.
A key may be blocked besides: it signs nothing until a person resumes it, and its floor is still what it was then.
"""

from collections.abc import Iterable
from typing import Final

import msgspec

from shardyard.consensus.votes import Certificate, VoteKind
from shardyard.effects import SignRequest
from shardyard.errors import LocalProtocolError
from shardyard.ids import GENESIS_SLOT, Hash32

BLOCKED: Final = (1 << 64) - 1
"""In place of a slot, the floor of a key that signs nothing: what it signed elsewhere is unknown."""


class SignerEntry(msgspec.Struct, frozen=True, array_like=True):
    """What one validator has signed in one slot; an empty hash means nothing of that kind."""

    validator: int
    slot: int
    proposed: bytes
    notar: bytes
    skip: bool
    final: bytes


class SignerState:
    """The record of one chain's local keys above ``floor``; at or below it nothing is signed any more."""

    def __init__(self, floor: int = GENESIS_SLOT) -> None:
        self.floor = floor
        self.key_floors: dict[int, int] = {}
        """Floors of single keys in slots, where they are above the chain's; of blocked keys too."""
        self.blocked: set[int] = set()
        """Keys that sign nothing until ``resume``."""
        self._entries: dict[tuple[int, int], SignerEntry] = {}

    def get_entry(self, validator: int, slot: int) -> SignerEntry:
        """Return what ``validator`` signed in ``slot``."""
        found = self._entries.get((validator, slot))
        return found or SignerEntry(
            validator=validator, slot=slot, proposed=b"", notar=b"", skip=False, final=b""
        )

    def explain_refusal(self, request: SignRequest) -> str:
        """Return which rule forbids ``request``, or an empty text when none does."""
        floor = self.get_floor(request.validator)
        if request.slot <= floor:
            return f"D2: slot {request.slot} is not above {floor}"
        return _explain_refusal(self.get_entry(request.validator, request.slot), request)

    def get_floor(self, validator: int) -> int:
        """Return the slot up to which ``validator`` signs nothing; ``BLOCKED`` when it signs nothing at all."""
        return BLOCKED if validator in self.blocked else self.get_known_floor(validator)

    def get_known_floor(self, validator: int) -> int:
        """Return the slot up to which ``validator`` signs nothing, also after it was resumed if it is blocked."""
        return max(self.floor, self.key_floors.get(validator, GENESIS_SLOT))

    def raise_floor(self, validator: int, slot: int) -> None:
        """Let ``validator`` sign only above ``slot``, or nothing if that is ``BLOCKED``; a floor never sinks."""
        if slot == BLOCKED:
            # Beside the floor in slots, not in its place: whoever resumes the key must not come out below that.
            self.blocked.add(validator)
        elif slot > self.get_known_floor(validator):
            self.key_floors[validator] = slot

    def resume(self, validator: int, slot: int) -> None:
        """Let ``validator`` sign again, above ``slot`` and above every floor that it had."""
        self.blocked.discard(validator)
        self.raise_floor(validator, slot)

    def list_floors(self) -> tuple[tuple[int, int], ...]:
        """Return validator and slot of the floors of single keys, in order; ``raise_floor`` with each gives them back."""
        return tuple(
            sorted([*self.key_floors.items(), *((validator, BLOCKED) for validator in self.blocked)])
        )

    def get_newest_slot(self, validator: int) -> int:
        """Return the highest slot in which ``validator`` signed, of those that are not forgotten."""
        signed = (slot for position, slot in self._entries if position == validator)
        return max(signed, default=GENESIS_SLOT)

    def has_signed(self, validator: int, kind: VoteKind, slot: int, block_hash: Hash32) -> bool:
        """Tell whether a vote of ``validator`` is on record, or may be forgotten because its slot is behind a floor."""
        return slot <= self.get_floor(validator) or self.is_on_record(validator, kind, slot, block_hash)

    def is_on_record(self, validator: int, kind: VoteKind, slot: int, block_hash: Hash32) -> bool:
        """Tell whether a vote of ``validator`` is among the entries."""
        entry = self.get_entry(validator, slot)
        match kind:
            case VoteKind.PROPOSE:
                return entry.proposed == block_hash
            case VoteKind.NOTAR:
                return entry.notar == block_hash
            case VoteKind.SKIP:
                return entry.skip
            case VoteKind.FINAL:
                return entry.final == block_hash

    def find_foreign(self, certificate: Certificate, keys: Iterable[int]) -> list[int]:
        """Return those of ``keys`` whose vote is in ``certificate``, which verifies, and not on record."""
        signers = int.from_bytes(certificate.bitmap, "little")
        return [
            validator
            for validator in keys
            if signers >> validator & 1
            and not self.has_signed(validator, certificate.kind, certificate.slot, certificate.block_hash)
        ]

    def check(self, request: SignRequest) -> bool:
        """Tell whether ``request`` may be signed."""
        return not self.explain_refusal(request)

    def record(self, request: SignRequest) -> SignerEntry:
        """Count ``request`` as signed and return the entry to make durable; a refused request is a programmer error."""
        reason = self.explain_refusal(request)
        if reason:
            raise LocalProtocolError(f"signer: got a request that breaks {reason}")
        entry = _apply_request(self.get_entry(request.validator, request.slot), request)
        self._entries[request.validator, request.slot] = entry
        return entry

    def replay(self, entry: SignerEntry) -> None:
        """Take an entry read from disk; later entries of one key and slot replace earlier ones."""
        if entry.slot > self.floor:
            self._entries[entry.validator, entry.slot] = entry

    def entries(self) -> list[SignerEntry]:
        """Return all entries, ordered by slot and validator: what a compacted record holds."""
        return sorted(self._entries.values(), key=lambda entry: (entry.slot, entry.validator))

    def prune(self, floor: int) -> None:
        """Forget slots up to ``floor``, which take no more votes; the memory stays bounded by the unfinalised slots."""
        if floor > self.floor:
            self.floor = floor
            self._entries = {key: entry for key, entry in self._entries.items() if entry.slot > floor}
            self.key_floors = {key: slot for key, slot in self.key_floors.items() if slot > floor}

    def __len__(self) -> int:
        return len(self._entries)


def _explain_refusal(entry: SignerEntry, request: SignRequest) -> str:
    wanted = request.block_hash
    match request.kind:
        case VoteKind.PROPOSE:  # S4
            return "" if entry.proposed in {b"", wanted} else "S4: another block was proposed in this slot"
        case VoteKind.NOTAR:  # S1
            if entry.notar not in {b"", wanted}:
                return "S1: another block was notarized in this slot"
            if entry.skip and not entry.notar:
                # Nothing needs such a vote, and a Rejoin rests on its absence (shardyard/rejoins.py).
                return "S1: this slot was skipped before"
            return "" if entry.final in {b"", wanted} else "S1: another block was finalized in this slot"
        case VoteKind.SKIP:  # S2
            return "S2: a block was finalized in this slot" if entry.final else ""
        case VoteKind.FINAL:  # S3
            if entry.skip:
                return "S3: this slot was skipped"
            if entry.notar != wanted:
                return "S3: the block was not notarized by this key"
            return "" if entry.final in {b"", wanted} else "S3: another block was finalized in this slot"


def _apply_request(entry: SignerEntry, request: SignRequest) -> SignerEntry:
    match request.kind:
        case VoteKind.PROPOSE:
            return msgspec.structs.replace(entry, proposed=request.block_hash)
        case VoteKind.NOTAR:
            return msgspec.structs.replace(entry, notar=request.block_hash)
        case VoteKind.SKIP:
            return msgspec.structs.replace(entry, skip=True)
        case VoteKind.FINAL:
            return msgspec.structs.replace(entry, final=request.block_hash)
