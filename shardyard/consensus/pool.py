"""The pool of votes: collected unverified, verified in one batch when they could complete a quorum.

Membership, slot window and duplicates are checked by arithmetic before any pairing (1.2 ms each). A vote that contradicts
another of the same validator is verified at once, both of them: either one is forged and goes, or the pair is evidence.
Bad signatures count against the node that sent them; a node with too many is not listened to until a block is final.

Bounds: per slot and validator one SKIP and two hashes each of NOTAR and FINAL; slots above the window are refused.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from shardyard.consensus.evidence import VoteEvidence, is_slashable
from shardyard.consensus.strikes import Strikes
from shardyard.consensus.votes import (
    Certificate,
    Crypto,
    Domain,
    Vote,
    VoteKind,
    build_certificate,
    compute_vote_message,
)
from shardyard.ids import ZERO_HASH, Hash32, NodeId
from shardyard.validators import SIGNATURE_BYTES, ValidatorSet

MAX_ITEMS = 1024
"""Votes or certificates read from one message."""
MAX_HASHES = 2
"""Hashes kept per validator, slot and kind: the second one is evidence, a third one only noise."""
MAX_EVIDENCE = 256
"""Pairs of evidence reported between two final blocks."""

BucketKey = tuple[VoteKind, Hash32]


@dataclass(slots=True)
class _Entry:
    vote: Vote
    sender: NodeId | None
    verified: bool


@dataclass(slots=True)
class _SlotVotes:
    buckets: dict[BucketKey, dict[int, _Entry]] = field(default_factory=dict)
    by_validator: dict[int, list[_Entry]] = field(default_factory=dict)
    certified: set[BucketKey] = field(default_factory=set)


class VotePool:
    """Votes above the last final slot."""

    def __init__(self, crypto: Crypto, domain: Domain, committee: ValidatorSet) -> None:
        self._crypto = crypto
        self._domain = domain
        self._committee = committee
        self._slots: dict[int, _SlotVotes] = {}
        self._strikes = Strikes()
        """Of those who sent forged votes."""
        self._reported: set[tuple[int, int, VoteKind, VoteKind]] = set()
        self._evidence: list[VoteEvidence] = []

    def add(self, vote: Vote, sender: NodeId | None) -> Certificate | None:
        """Take ``vote`` (``sender`` None: an own one, signed here) and return the certificate it completes, if any."""
        if not self._is_acceptable(vote, sender):
            return None
        slot = self._slots.get(vote.slot)
        if slot is None:
            slot = self._slots[vote.slot] = _SlotVotes()
        key = (vote.kind, vote.block_hash)
        present = slot.buckets.get(key, {}).get(vote.validator)
        if present is not None and (present.vote.signature == vote.signature or present.verified):
            return None
        entry = _Entry(vote=vote, sender=sender, verified=sender is None)
        if not self._settle_contradictions(slot, entry):
            return None
        slot.buckets.setdefault(key, {})[vote.validator] = entry
        slot.by_validator.setdefault(vote.validator, []).append(entry)
        return self._try_certify(slot, key)

    def mark_certified(self, certificate: Certificate) -> None:
        """Stop forming the certificate that arrived complete."""
        slot = self._slots.get(certificate.slot)
        if slot is not None:
            slot.certified.add((certificate.kind, certificate.block_hash))

    @property
    def has_evidence(self) -> bool:
        """Whether ``take_evidence`` would return any."""
        return bool(self._evidence)

    def take_evidence(self) -> list[VoteEvidence]:
        """Return the evidence found since the last call."""
        found, self._evidence = self._evidence, []
        return found

    def prune(self, floor: int) -> None:
        """Forget slots up to ``floor``, and give every sender a clean sheet."""
        for slot in [slot for slot in self._slots if slot <= floor]:
            del self._slots[slot]
        self._strikes.clear()
        self._reported = {key for key in self._reported if key[1] > floor}

    def __len__(self) -> int:
        return sum(len(entries) for slot in self._slots.values() for entries in slot.by_validator.values())

    def _is_acceptable(self, vote: Vote, sender: NodeId | None) -> bool:
        if vote.kind is VoteKind.PROPOSE or not 0 <= vote.validator < len(self._committee):
            return False
        if len(vote.block_hash) != len(ZERO_HASH) or len(vote.signature) != SIGNATURE_BYTES:
            return False
        if (vote.kind is VoteKind.SKIP) != (vote.block_hash == ZERO_HASH):
            return False
        return sender is None or not self._strikes.is_muted(sender)

    def _settle_contradictions(self, slot: _SlotVotes, entry: _Entry) -> bool:
        """Tell whether ``entry`` may be kept; verify it and its rivals when they cannot both be honest."""
        own = slot.by_validator.get(entry.vote.validator, [])
        rivals = [
            other
            for other in own
            if is_slashable(other.vote, entry.vote)
            or (other.vote.kind is entry.vote.kind and other.vote.block_hash == entry.vote.block_hash)
        ]
        if not rivals:
            return True
        self._verify(slot, [other for other in (*rivals, entry) if not other.verified])
        if not entry.verified:
            return False
        for other in rivals:
            if other.verified and is_slashable(other.vote, entry.vote):
                self._report(other.vote, entry.vote)
        same_kind = [other for other in own if other.vote.kind is entry.vote.kind and other.verified]
        return len(same_kind) < MAX_HASHES

    def _report(self, first: Vote, second: Vote) -> None:
        key = (first.validator, first.slot, first.kind, second.kind)
        if key not in self._reported and len(self._reported) < MAX_EVIDENCE:
            self._reported.add(key)
            self._evidence.append(VoteEvidence(first, second))

    def _try_certify(self, slot: _SlotVotes, key: BucketKey) -> Certificate | None:
        bucket = slot.buckets[key]
        if key in slot.certified or not self._has_quorum(bucket):
            return None
        self._verify(slot, [entry for entry in bucket.values() if not entry.verified])
        if not self._has_quorum(bucket):
            return None
        slot.certified.add(key)
        return build_certificate(self._crypto, self._committee, [entry.vote for entry in bucket.values()])

    def _has_quorum(self, bucket: dict[int, _Entry]) -> bool:
        stakes = self._committee.stakes
        return sum(stakes[validator] for validator in bucket) >= self._committee.quorum

    def _verify(self, slot: _SlotVotes, entries: Sequence[_Entry]) -> None:
        """Verify ``entries`` in one batch; drop what fails and count it against its sender."""
        if not entries:
            return
        items = [
            (entry.vote.validator, self._compute_message(entry.vote), entry.vote.signature)
            for entry in entries
        ]
        for entry, valid in zip(entries, self._crypto.verify_votes(self._committee, items), strict=True):
            entry.verified = valid
            if not valid:
                self._drop(slot, entry)

    def _drop(self, slot: _SlotVotes, entry: _Entry) -> None:
        bucket = slot.buckets.get((entry.vote.kind, entry.vote.block_hash), {})
        if bucket.get(entry.vote.validator) is entry:
            del bucket[entry.vote.validator]
        kept = slot.by_validator.get(entry.vote.validator, [])
        if entry in kept:
            kept.remove(entry)
        if entry.sender is not None:
            self._strikes.count(entry.sender)

    def _compute_message(self, vote: Vote) -> bytes:
        return compute_vote_message(self._domain, vote.kind, vote.slot, vote.block_hash)
