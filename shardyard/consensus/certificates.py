"""The certificates of the unfinalised slots, and a verifier that remembers.

A slot is *cleared* once it is notarized, skipped or at or below the final one (L1). Both a NotarCert and a SkipCert may
exist for one slot without any Byzantine vote; that is harmless, since those who skipped do not finalize.
"""

from dataclasses import dataclass, field

from shardyard.consensus.votes import Certificate, Crypto, Domain, VoteKind, verify_certificate
from shardyard.ids import Hash32
from shardyard.validators import ValidatorSet

MAX_REMEMBERED = 1024
"""Verified certificates a verifier remembers."""
MAX_FORKS = 4
"""Certificates of one kind kept per slot: more than one needs a third of the stake to misbehave, and is evidence."""


class CertificateVerifier:
    """Verifies certificates of one committee, each byte string once."""

    def __init__(self, crypto: Crypto, domain: Domain, committee: ValidatorSet) -> None:
        self._crypto = crypto
        self._domain = domain
        self._committee = committee
        self._verified: dict[Certificate, None] = {}

    def verify(self, certificate: Certificate) -> None:
        """Raise ``InvalidCertificateError`` unless ``certificate`` verifies."""
        if certificate not in self._verified:
            verify_certificate(self._crypto, self._domain, self._committee, certificate)
            self.remember(certificate)

    def remember(self, certificate: Certificate) -> None:
        """Count ``certificate`` as verified: it was formed here, or read from the own log."""
        self._verified[certificate] = None
        if len(self._verified) > MAX_REMEMBERED:
            del self._verified[next(iter(self._verified))]


@dataclass(slots=True)
class SlotCertificates:
    """What is certified of one slot."""

    notarizations: dict[Hash32, Certificate] = field(default_factory=dict)
    finalizations: dict[Hash32, Certificate] = field(default_factory=dict)
    skip: Certificate | None = None


class CertificateStore:
    """Verified certificates above the last final slot."""

    def __init__(self) -> None:
        self._slots: dict[int, SlotCertificates] = {}

    def add(self, certificate: Certificate) -> bool:
        """Keep ``certificate``; tell whether it was new."""
        slot = self._slots.setdefault(certificate.slot, SlotCertificates())
        if certificate.kind is VoteKind.SKIP:
            if slot.skip is not None:
                return False
            slot.skip = certificate
            return True
        kept = slot.notarizations if certificate.kind is VoteKind.NOTAR else slot.finalizations
        if certificate.block_hash in kept or len(kept) >= MAX_FORKS:
            return False
        kept[certificate.block_hash] = certificate
        return True

    def has(self, kind: VoteKind, slot: int, block_hash: Hash32) -> bool:
        """Tell whether a certificate of this kind, slot and hash is held."""
        found = self._slots.get(slot)
        if found is None:
            return False
        if kind is VoteKind.SKIP:
            return found.skip is not None
        return block_hash in (found.notarizations if kind is VoteKind.NOTAR else found.finalizations)

    def get_notarization(self, slot: int, block_hash: Hash32) -> Certificate | None:
        """Return the NotarCert of a block."""
        found = self._slots.get(slot)
        return None if found is None else found.notarizations.get(block_hash)

    def get_finalization(self, slot: int, block_hash: Hash32) -> Certificate | None:
        """Return the FinalCert of a block."""
        found = self._slots.get(slot)
        return None if found is None else found.finalizations.get(block_hash)

    def get_notarized(self, slot: int) -> list[Hash32]:
        """Return the hashes notarized in ``slot``."""
        found = self._slots.get(slot)
        return [] if found is None else list(found.notarizations)

    def get_skip(self, slot: int) -> Certificate | None:
        """Return the SkipCert of ``slot``."""
        found = self._slots.get(slot)
        return None if found is None else found.skip

    def is_cleared(self, slot: int) -> bool:
        """L1: tell whether ``slot`` is notarized or skipped."""
        found = self._slots.get(slot)
        return found is not None and (found.skip is not None or bool(found.notarizations))

    def collect(self) -> list[Certificate]:
        """Return all certificates held, ordered by slot (L7)."""
        found: list[Certificate] = []
        for slot in sorted(self._slots):
            entry = self._slots[slot]
            found.extend(entry.notarizations.values())
            found.extend(entry.finalizations.values())
            if entry.skip is not None:
                found.append(entry.skip)
        return found

    def prune(self, floor: int) -> None:
        """Forget slots up to ``floor``."""
        for slot in [slot for slot in self._slots if slot <= floor]:
            del self._slots[slot]

    def __len__(self) -> int:
        return len(self._slots)
