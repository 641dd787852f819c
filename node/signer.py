"""The signer: no signature leaves this process before the record of it is on disk.

Rules S1 to S4 are the kernel's (``shardyard.consensus.signer``), the file is ``node.storage.signer_record``'s; the keys
and their locks are here. A batch of requests costs one sync, and requests that come together share it.

Four things keep a key silent while the node goes on to follow its chain. Its *record* is lost (missing, damaged or old):
nothing is signed, on the beacon until a Rejoin is final. The *watch* after a start is not over (``node.doppelganger``):
requests wait. A vote of the key was seen that is *not on record*: somebody else signs with it, and it signs no more here.
Its *floor* is not passed yet. While the record is lost, foreign votes cannot be told from own ones; the newest of each key
is remembered, and once its Rejoin is final, a vote above that block's slot was somebody else's.
A write or sync that fails ends the signer, and its process, for good.
"""

import asyncio
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, Self

import msgspec

from node.storage.data_dir import DataDir
from node.storage.key_locks import KeyInUseError, KeyLocks
from node.storage.signer_record import (
    COMPACT_ABOVE_BYTES,
    SignerRecord,
    SignerRecordError,
    Witness,
    create_record,
    salvage_record,
)
from shardyard import _native
from shardyard.consensus.signer import BLOCKED, SignerEntry, SignerState
from shardyard.consensus.votes import Certificate, Domain, Vote, compute_vote_message
from shardyard.effects import CertificateRecord, FinalRecord, Record, SignRequest, SnapshotRecord
from shardyard.errors import ShardyardError
from shardyard.events import Signed
from shardyard.ids import GENESIS_SLOT, describe_shard
from shardyard.rejoins import NONCE_BYTES, Rejoin, compute_rejoin_message

__all__ = ["KeyInUseError", "Signer", "SignerFailedError", "SignerRecordError", "build_witness"]

MAX_REFUSALS_LOGGED: Final = 32
"""Refusals written to the log, each a line; after that they are only counted."""

BLOCKED_REASON: Final = (
    "a key is blocked on record: an import did not name it, or another process was seen to sign with it; when no other "
    "process has it any more: shardyard validator resume, as long as other keys of the chain have a quorum"
)

_log = logging.getLogger(__name__)


class SignerFailedError(ShardyardError):
    """Writing the record failed; the process must stop."""


class _Waiting(msgspec.Struct):
    request: SignRequest
    answer: Vote | None = None


def build_witness(directory: Path, domain: Domain, secrets: Iterable[bytes]) -> Witness:
    """Return the witness of the keys in ``secrets`` on the chain of ``domain``."""
    chain = describe_shard(domain.shard)
    return Witness(
        directory / f"{chain}-{_native.bls_public_key(secret).hex()[:40]}.seen" for secret in secrets
    )


class Signer:
    """Signs for the local validators of one chain."""

    def __init__(
        self,
        directory: DataDir,
        domain: Domain,
        secrets: Mapping[int, bytes],
        *,
        lock_dir: Path,
        witness_dir: Path | None = None,
        follows_without_record: bool = False,
        ways_back: str = "",
        compact_above_bytes: int = COMPACT_ABOVE_BYTES,
    ) -> None:
        """``secrets`` maps positions in the committee of ``domain`` to BLS secrets; ``lock_dir`` is the same for all
        processes that may hold these keys, ``witness_dir`` lies beside the keys. ``ways_back`` is what to try when the
        record is lost (``node.remedies``).

        Raises ``SignerRecordError``, unless the signer ``follows_without_record``; ``KeyInUseError`` or ``OSError``.
        """
        self.counters: Counter[str] = Counter()
        self.reason = ""
        """Why nothing is signed although nothing failed; empty when the record is sound."""
        self.stopped: dict[int, str] = {}
        """Keys that somebody else signs with, and what shows it."""
        self._directory = directory
        self._domain = domain
        self._secrets = dict(secrets)
        self._ways_back = ways_back
        self._state = SignerState()
        self._record: SignerRecord | None = None
        self._nonce = b""
        self._rejoined: dict[int, int] = {}
        """Keys whose Rejoin of this life is beacon-final, and the slot of the block that carries it."""
        self._unexplained: dict[int, tuple[int, str]] = {}
        """The newest vote per key that was seen while the record is lost: its slot, and what shows it."""
        self._watch_s = 0.0
        self._failure: BaseException | None = None
        self._waiting: list[_Waiting] = []
        self._turn = asyncio.Lock()
        self._released = asyncio.Event()
        self._released.set()
        self._locks = KeyLocks(lock_dir, domain, self._secrets.values(), directory.path)
        try:
            paths = () if witness_dir is None else self._secrets.values()
            self._witness = build_witness(witness_dir or Path(), domain, paths)
            try:
                self._record = SignerRecord(directory, self._witness, compact_above_bytes=compact_above_bytes)
                self._state = self._record.state
            except SignerRecordError as error:
                if not follows_without_record:
                    raise
                self._state = salvage_record(directory.signer_path, directory.owner)
                self.lose_record(str(error))
        except BaseException:
            self._locks.close()
            raise
        self._worker = ThreadPoolExecutor(
            max_workers=1, thread_name_prefix=f"{describe_shard(domain.shard)}-signer"
        )

    @property
    def floor(self) -> int:
        """At and below this slot nothing is signed any more."""
        return self._state.floor

    @property
    def is_unused(self) -> bool:
        """Tell whether nothing is on record: the keys are new here."""
        return self._record is None or self._record.number == 0

    @property
    def state(self) -> SignerState:
        """What is on record; its owner alone changes it."""
        return self._state

    @property
    def validators(self) -> list[int]:
        """Positions whose keys are here."""
        return list(self._secrets)

    def describe(self) -> dict[str, Any]:
        """Return what people may want to know: how many keys sign, and why the others do not."""
        blocked = [key for key in self._secrets if self._state.get_floor(key) == BLOCKED]
        silent = len(self._secrets) if self.reason else len({*self.stopped, *blocked})
        state = "signing" if silent < len(self._secrets) else "following only"
        if not self._released.is_set() and not self.reason:
            state = "watching for other processes with these keys"
        reasons = [
            self.reason,
            *self.stopped.values(),
            *(BLOCKED_REASON for key in blocked if key not in self.stopped),
        ]
        return {
            "state": state,
            "keys": len(self._secrets),
            "silent": silent,
            "floors": {
                str(key): self._state.get_floor(key)
                for key in self._secrets
                if not self.reason and key not in self.stopped and key not in blocked
            },
            "reason": "; ".join(dict.fromkeys(reason for reason in reasons if reason)) or "-",
        }

    # --- what keeps keys silent ---

    def lose_record(self, reason: str) -> None:
        """Sign nothing from now on: what was signed before is not known."""
        if self._record is not None:
            self._record.close()
            self._record = None
        self.reason = f"{reason}; try: {self._ways_back}" if self._ways_back else reason
        self._nonce = os.urandom(NONCE_BYTES)
        _log.error(
            "%s: this node follows and signs nothing: %s", describe_shard(self._domain.shard), self.reason
        )

    def begin_cover_check(self) -> Callable[[Record], None]:
        """K1: return what compares the record with the chain's own log; it is to see each record, before anything is signed.

        A certificate with a newer vote of a local key means that the record is an old copy.
        """
        newest = {
            key: max(self._state.get_newest_slot(key), self._state.get_floor(key)) for key in self._secrets
        }

        def check(record: Record) -> None:
            for certificate in list_certificates((record,)):
                signers = int.from_bytes(certificate.bitmap, "little")
                for key, slot in newest.items():
                    if not self.reason and signers >> key & 1 and certificate.slot > slot:
                        self.lose_record(
                            f"the record ends at slot {slot} for validator {key}, but the chain's log has its "
                            f"{certificate.kind.name} vote of slot {certificate.slot}: the record is an old copy, or the "
                            "key is used elsewhere"
                        )

        return check

    def take_records(self, records: Iterable[Record]) -> None:
        """K3: look through certificates, verified by the engine, for votes of local keys that were not given here."""
        for certificate in list_certificates(records):
            for key in self._state.find_foreign(certificate, self._secrets):
                self.stop_key(
                    key,
                    certificate.slot,
                    f"a certificate has its {certificate.kind.name} vote of slot {certificate.slot}",
                )

    def stop_key(self, validator: int, slot: int, evidence: str) -> None:
        """Sign nothing more with the key of ``validator``: another process does, as its vote of ``slot`` shows.

        ``sign`` gives no vote of it from now on, not even one that the signer's thread is about to make.
        While the record is lost the vote may be an own one of before; it is judged when the Rejoin is final.
        """
        if validator in self.stopped:
            return
        if self.reason:
            if slot > self._unexplained.get(validator, (GENESIS_SLOT, ""))[0]:
                self._unexplained[validator] = (slot, evidence)
            return
        self.stopped[validator] = (
            f"validator {validator}: {evidence}, which is not on record here: another process signs with this key, "
            "or the record is an old copy; it signs no more here, also after a restart; try: leave the key to the other "
            "process, or stop it for good, then shardyard validator resume, as long as other keys of the chain have a quorum"
        )
        _log.error("%s: %s", describe_shard(self._domain.shard), self.stopped[validator])
        self._worker.submit(self._block, validator)

    def _block(self, validator: int) -> None:
        """Let ``validator`` sign nothing after a restart either; a failure ends the signer, as with a batch.

        In the signer's thread: a batch finds a request allowed and records it, and no floor may rise between the two.
        """
        try:
            self._state.raise_floor(validator, BLOCKED)
            if self._record is not None:
                self._record.append_floors(self._state.list_floors())
        except Exception as error:  # noqa: BLE001
            self._failure = self._failure or error

    def may_be_news(self, validator: int, slot: int) -> bool:
        """Tell whether a vote of ``validator`` in ``slot`` that is not on record would change anything."""
        if self.reason:
            return slot > self._unexplained.get(validator, (GENESIS_SLOT, ""))[0]
        return validator not in self.stopped

    def watch_after_rejoin(self, seconds: float) -> None:
        """Let requests wait for ``seconds`` when the record begins anew."""
        self._watch_s = seconds

    def hold(self) -> None:
        """Let requests wait until ``release``."""
        self._released.clear()

    def release(self) -> None:
        """Serve what waits."""
        self._released.set()

    # --- signing ---

    async def sign(self, requests: Sequence[SignRequest]) -> Signed:
        """Return the votes for those of ``requests`` that the rules allow, once their record is on disk.

        Raises ``SignerFailedError`` when it cannot be written.
        """
        await self._released.wait()
        own = [_Waiting(request) for request in requests]
        self._waiting.extend(own)
        async with self._turn:
            self._verify_alive()
            batch, self._waiting = self._waiting, []
            if batch:
                await self._run_batch(batch)
        return Signed(tuple(answer for item in own if (answer := self._take_answer(item)) is not None))

    def _take_answer(self, item: _Waiting) -> Vote | None:
        """Return the vote that leaves; called where ``stop_key`` is, in the loop's thread, so no stop comes between."""
        if item.answer is not None and item.request.validator in self.stopped:
            # Stopped while its batch was served: what is on record binds the key, and the signature stays here.
            self._count_refusal(self.stopped[item.request.validator])
            return None
        return item.answer

    async def _run_batch(self, batch: list[_Waiting]) -> None:
        work = asyncio.get_running_loop().run_in_executor(self._worker, self._serve, batch)
        try:
            await asyncio.shield(work)
        except asyncio.CancelledError:
            # The thread goes on whatever becomes of the caller; the next batch must find it finished.
            await asyncio.wait([work])
            self._failure = self._failure or work.exception()
            raise
        except Exception as error:  # noqa: BLE001
            # Whatever it was, memory may now be ahead of the disk: only a new process reads the record again.
            self._failure = self._failure or error
            self._verify_alive()

    def _verify_alive(self) -> None:
        if self._failure is not None:
            raise SignerFailedError(
                f"{self._directory.signer_path}: {self._failure}; this process must stop before it signs again"
            ) from self._failure

    def _serve(self, batch: Sequence[_Waiting]) -> None:
        """Check, record, sync, then sign; runs in the signer's thread."""
        # A floor may have been written, and failed, since the batch was handed over.
        self._verify_alive()
        record = self._record
        allowed: list[_Waiting] = []
        changed: dict[tuple[int, int], SignerEntry] = {}
        for item in batch:
            request = item.request
            if record is None or (reason := self._explain_refusal(request)):
                self._count_refusal("" if record is None else reason)
                continue
            before = self._state.get_entry(request.validator, request.slot)
            entry = self._state.record(request)
            if entry != before:
                changed[entry.validator, entry.slot] = entry
            allowed.append(item)
        if changed and record is not None:
            record.append(tuple(changed.values()))
        self._sign(allowed)

    def _count_refusal(self, reason: str) -> None:
        self.counters["refused"] += 1
        if reason and self.counters["refused"] <= MAX_REFUSALS_LOGGED:
            _log.warning("%s: refused to sign: %s", describe_shard(self._domain.shard), reason)

    def _explain_refusal(self, request: SignRequest) -> str:
        if request.validator not in self._secrets:
            return f"validator {request.validator} is not one of this process"
        if request.validator in self.stopped:
            return self.stopped[request.validator]
        # The rules judge kind, slot and hash; the signature covers the message: they must be one and the same.
        expected = compute_vote_message(self._domain, request.kind, request.slot, request.block_hash)
        if request.message != expected:
            return f"D1: the message of slot {request.slot} says something else than the request"
        return self._state.explain_refusal(request)

    def _sign(self, allowed: Sequence[_Waiting]) -> None:
        groups: dict[bytes, list[_Waiting]] = {}
        for item in allowed:
            groups.setdefault(item.request.message, []).append(item)
        for message, items in groups.items():
            secrets = [self._secrets[item.request.validator] for item in items]
            for item, signature in zip(items, _native.bls_sign_many(secrets, message), strict=True):
                request = item.request
                item.answer = Vote(
                    kind=request.kind,
                    slot=request.slot,
                    block_hash=request.block_hash,
                    validator=request.validator,
                    signature=signature,
                )
                self.counters["signed"] += 1

    async def prune(self, final_slot: int) -> None:
        """Forget the slots up to ``final_slot``, which take no more votes; nothing is ever signed there again."""
        async with self._turn:
            self._verify_alive()
            self._state.prune(final_slot)

    # --- a lost record ---

    def build_rejoins(self) -> tuple[Rejoin, ...]:
        """Return a Rejoin per key while the record is lost, all with this life's nonce; none otherwise."""
        if not self.reason:
            return ()
        found = []
        for validator, secret in self._secrets.items():
            message = compute_rejoin_message(self._domain, validator, self._nonce)
            (signature,) = _native.bls_sign_many([secret], message)
            found.append(Rejoin(validator, self._nonce, signature))
        return tuple(found)

    async def on_final(self, slot: int, rejoins: Sequence[Rejoin]) -> None:
        """Take a final beacon block: forget its slot, and sign again above it when all keys here have rejoined."""
        await self.prune(slot)
        if not self.reason:
            return
        for rejoin in rejoins:
            if rejoin.nonce == self._nonce:
                self._rejoined.setdefault(rejoin.validator, slot)
        if not self._rejoined.keys() >= self._secrets.keys():
            return
        if self._watch_s:
            # Whatever asked before this is served, and refused, before the record begins: turns are taken in order.
            self.hold()
            asyncio.get_running_loop().call_later(self._watch_s, self.release)
        async with self._turn:
            work = asyncio.get_running_loop().run_in_executor(self._worker, self._begin_record, slot)
            self._record = await work
            self._state = self._record.state
            self.reason = ""
            self._judge_unexplained()
        _log.warning(
            "%s: validators %s rejoined and sign above slot %d",
            describe_shard(self._domain.shard),
            self.validators,
            slot,
        )

    def _judge_unexplained(self) -> None:
        """Stop the keys with a vote above the slot of their Rejoin's block, where none of their own can be (K2)."""
        found, self._unexplained = self._unexplained, {}
        for validator, (slot, evidence) in found.items():
            if slot > self._rejoined[validator]:
                self.stop_key(validator, slot, evidence)

    def _begin_record(self, slot: int) -> SignerRecord:
        state = SignerState(slot)
        # Whoever was seen to sign with a key does not end with our record, nor does what a person said of one.
        for validator, floor in self._state.list_floors():
            state.raise_floor(validator, floor)
        create_record(self._directory, state, self._witness)
        return SignerRecord(self._directory, self._witness)

    def close(self) -> None:
        """Give the record and the keys back."""
        self._worker.shutdown(wait=True)
        self._failure = self._failure or SignerFailedError("the signer was closed")
        if self._record is not None:
            self._record.close()
        self._witness.close()
        self._locks.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def list_certificates(records: Iterable[Record]) -> list[Certificate]:
    """Return the certificates in records of a chain's log, in order."""
    found: list[Certificate] = []
    for record in records:
        match record:
            case CertificateRecord(certificate):
                found.append(certificate)
            case FinalRecord(proof=proof) | SnapshotRecord(proof=proof):
                found += (proof.notarization, proof.finalization)
            case _:
                pass
    return found
