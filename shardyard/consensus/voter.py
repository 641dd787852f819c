"""What the local keys vote, as intents: the rules S1 to S4 before the signer, and the own votes after it.

An intent counts from the moment it is handed to the signer, not from the moment its signature is back: otherwise FINAL and
SKIP could both be on their way. The signer checks the same rules again over its durable record.
"""

from collections.abc import Iterable, Sequence

from shardyard.consensus.signer import SignerState
from shardyard.consensus.votes import Domain, Vote, VoteKind, compute_vote_message
from shardyard.effects import Sign, SignRequest
from shardyard.ids import ZERO_HASH, Hash32, Slot


class Voter:
    """The local validators of one chain."""

    def __init__(self, domain: Domain, local_validators: tuple[int, ...]) -> None:
        self._domain = domain
        self._local = tuple(sorted(local_validators))
        self._intents = SignerState()
        self._wanted: list[SignRequest] = []
        self._own: dict[tuple[int, int, VoteKind], Vote] = {}

    @property
    def has_keys(self) -> bool:
        """Whether this process votes at all."""
        return bool(self._local)

    def is_local(self, validator: int) -> bool:
        """Tell whether ``validator``'s key is here."""
        return validator in self._local

    def has_skipped(self, validator: int, slot: int) -> bool:
        """Tell whether ``validator`` skipped ``slot``."""
        return self._intents.get_entry(validator, slot).skip

    def propose(self, validator: int, slot: Slot, block_hash: Hash32) -> None:
        """S4: ask for the leader's signature."""
        self._request(VoteKind.PROPOSE, slot, block_hash, [validator])

    def notarize(self, slot: Slot, block_hash: Hash32) -> None:
        """S1: ask for NOTAR of every key that has neither notarized nor skipped in this slot."""
        ready = [key for key in self._local if not self.has_skipped(key, slot)]
        self._request(VoteKind.NOTAR, slot, block_hash, ready)

    def skip(self, slot: Slot) -> None:
        """S2: ask for SKIP of every key that has not finalized in this slot."""
        self._request(VoteKind.SKIP, slot, ZERO_HASH, self._local)

    def finalize(self, slot: Slot, block_hash: Hash32) -> None:
        """S3: ask for FINAL of every key that notarized this block and never skipped; the NotarCert is on record."""
        self._request(VoteKind.FINAL, slot, block_hash, self._local)

    def take_requests(self) -> list[Sign]:
        """Return what the signer is to sign since the last call, as one batch: one fsync."""
        wanted, self._wanted = self._wanted, []
        return [Sign(tuple(wanted))] if wanted else []

    def keep(self, votes: Iterable[Vote]) -> None:
        """Keep own votes for the rebroadcast at a standstill."""
        for vote in votes:
            self._own[vote.validator, vote.slot, vote.kind] = vote

    def get_own_votes(self, first: int = 0) -> Sequence[Vote]:
        """Return the own votes above the last final slot, by slot, from slot ``first`` on."""
        keys = [key for key in self._own if key[1] >= first]
        return [self._own[key] for key in sorted(keys, key=lambda key: (key[1], key[0], key[2]))]

    def prune(self, floor: int) -> None:
        """Forget slots up to ``floor``."""
        self._intents.prune(floor)
        self._own = {key: vote for key, vote in self._own.items() if key[1] > floor}

    def _request(self, kind: VoteKind, slot: Slot, block_hash: Hash32, validators: Iterable[int]) -> None:
        message = compute_vote_message(self._domain, kind, slot, block_hash)
        for validator in validators:
            request = SignRequest(
                kind=kind, slot=slot, block_hash=block_hash, validator=validator, message=message
            )
            before = self._intents.get_entry(validator, slot)
            if self._intents.check(request) and self._intents.record(request) != before:
                self._wanted.append(request)
