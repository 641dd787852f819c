"""The signer: no signature leaves this process before the record of it is on disk.

Rules S1 to S4 are the kernel's (``shardyard.consensus.signer``); the file, the locks and the keys are here. One record per
process and chain holds the entries of all its keys; a batch of requests costs one sync, and requests that come together
share it. Each key is locked per chain, so that no second process signs with it on this machine.

It refuses to open, and so to sign, when the record is missing although its directory was in use, when it is damaged, and
when its end is whole but wrong: a batch whose signatures may have left would be forgotten. A write or sync that fails ends
the signer for good.
"""

import asyncio
import fcntl
import logging
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, Self

import msgspec

from node.storage.data_dir import SIGNER_FILE_KIND, DataDir
from node.storage.frames import (
    HEADER_BYTES,
    CorruptFileError,
    Frame,
    ScanEnd,
    Tail,
    encode_frame,
    encode_header,
    scan,
    sync_directory,
    verify_header,
    write_all,
)
from shardyard import _native
from shardyard.codec import decode, encode
from shardyard.consensus.signer import SignerEntry, SignerState
from shardyard.consensus.votes import Domain, Vote, compute_vote_message
from shardyard.effects import SignRequest
from shardyard.errors import DecodeError, ShardyardError
from shardyard.events import Signed
from shardyard.ids import describe_shard

COMPACT_ABOVE_BYTES: Final = 1024 * 1024
MAX_BATCH_ENTRIES: Final = 4096
MAX_BATCH_BYTES: Final = 16 * 1024 * 1024
_ENTRIES: Final = 0
_FLOOR: Final = 1

_log = logging.getLogger(__name__)


class SignerRecordError(ShardyardError):
    """The record of what was signed is missing or damaged: nothing may be signed."""


class KeyInUseError(ShardyardError):
    """Another process signs with this key on this chain."""


class SignerFailedError(ShardyardError):
    """Writing the record failed; the process must stop."""


class _Batch(msgspec.Struct, frozen=True, array_like=True):
    entries: tuple[SignerEntry, ...]


class _Waiting(msgspec.Struct):
    request: SignRequest
    answer: Vote | None = None


class Signer:
    """Signs for the local validators of one chain."""

    def __init__(
        self,
        directory: DataDir,
        domain: Domain,
        secrets: Mapping[int, bytes],
        *,
        lock_dir: Path,
        compact_above_bytes: int = COMPACT_ABOVE_BYTES,
    ) -> None:
        """``secrets`` maps positions in the committee of ``domain`` to BLS secrets; ``lock_dir`` is the same for all
        processes that may hold these keys.

        Raises ``SignerRecordError``, ``KeyInUseError`` or ``OSError``.
        """
        self.counters: Counter[str] = Counter()
        self._path = directory.signer_path
        self._owner = directory.owner
        self._domain = domain
        self._secrets = dict(secrets)
        self._compact_above_bytes = compact_above_bytes
        self._state = SignerState()
        self._failure: BaseException | None = None
        self._waiting: list[_Waiting] = []
        self._turn = asyncio.Lock()
        self._locks: list[int] = []
        self._descriptor = -1
        self._end = HEADER_BYTES
        try:
            self._lock_keys(lock_dir)
            self._open()
        except BaseException:
            self._close_descriptors()
            raise
        self._worker = ThreadPoolExecutor(
            max_workers=1, thread_name_prefix=f"{describe_shard(domain.shard)}-signer"
        )

    @property
    def floor(self) -> int:
        """At and below this slot nothing is signed any more."""
        return self._state.floor

    async def sign(self, requests: Sequence[SignRequest]) -> Signed:
        """Return the votes for those of ``requests`` that the rules allow, once their record is on disk.

        Raises ``SignerFailedError`` when it cannot be written.
        """
        own = [_Waiting(request) for request in requests]
        self._waiting.extend(own)
        async with self._turn:
            self._verify_alive()
            batch, self._waiting = self._waiting, []
            if batch:
                await self._run_batch(batch)
        return Signed(tuple(item.answer for item in own if item.answer is not None))

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
            self._failure = error
            self._verify_alive()

    def _verify_alive(self) -> None:
        if self._failure is not None:
            raise SignerFailedError(
                f"{self._path}: {self._failure}; this process must stop before it signs again"
            ) from self._failure

    def _serve(self, batch: Sequence[_Waiting]) -> None:
        """Check, record, sync, then sign; runs in the signer's thread."""
        allowed: list[_Waiting] = []
        changed: dict[tuple[int, int], SignerEntry] = {}
        for item in batch:
            request = item.request
            if reason := self._explain_refusal(request):
                self.counters["refused"] += 1
                _log.warning("%s: refused to sign: %s", describe_shard(self._domain.shard), reason)
                continue
            before = self._state.get_entry(request.validator, request.slot)
            entry = self._state.record(request)
            if entry != before:
                changed[entry.validator, entry.slot] = entry
            allowed.append(item)
        if changed:
            self._write(_ENTRIES, encode(_Batch(tuple(changed.values()))))
        self._sign(allowed)
        if self._end > self._compact_above_bytes:
            self._compact()

    def _explain_refusal(self, request: SignRequest) -> str:
        if request.validator not in self._secrets:
            return f"validator {request.validator} is not one of this process"
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

    # --- the record ---

    def _write(self, kind: int, payload: bytes) -> None:
        # Every frame says that all before it was synced, because a batch is synced before the next one begins.
        frame = encode_frame(self._end, 0, kind, payload, synced=self._end)
        write_all(self._descriptor, frame)
        os.fdatasync(self._descriptor)
        self._end += len(frame)

    def _compact(self) -> None:
        """Write the record anew without pruned slots; a crash leaves the old file or the new one, both whole."""
        staged = self._path.with_suffix(".new")
        descriptor = os.open(staged, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            end = HEADER_BYTES
            write_all(descriptor, encode_header(SIGNER_FILE_KIND, self._owner, 0))
            for kind, payload in self._encode_state():
                frame = encode_frame(end, 0, kind, payload)
                write_all(descriptor, frame)
                end += len(frame)
            os.fsync(descriptor)
            staged.replace(self._path)
            sync_directory(self._path.parent)
        except BaseException:
            os.close(descriptor)
            raise
        os.close(self._descriptor)
        self._descriptor, self._end = descriptor, end
        # What is still needed may be large by itself: do not write it anew for every batch.
        self._compact_above_bytes = max(self._compact_above_bytes, 2 * end)

    def _encode_state(self) -> Iterator[tuple[int, bytes]]:
        yield _FLOOR, self._state.floor.to_bytes(8, "big")
        entries = self._state.entries()
        for start in range(0, len(entries), MAX_BATCH_ENTRIES):
            yield _ENTRIES, encode(_Batch(tuple(entries[start : start + MAX_BATCH_ENTRIES])))

    def _open(self) -> None:
        try:
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
        except FileNotFoundError:
            raise SignerRecordError(
                f"{self._path}: missing, although its directory was in use; what was signed is unknown. {_WAYS_OUT}"
            ) from None
        try:
            if not verify_header(self._descriptor, SIGNER_FILE_KIND, self._owner, 0, str(self._path)):
                raise SignerRecordError(f"{self._path}: it lost its beginning. {_WAYS_OUT}")
            for item in scan(self._descriptor, 0):
                if isinstance(item, Frame):
                    self._replay(item)
                else:
                    self._cut_tail(item)
        except (CorruptFileError, DecodeError) as error:
            raise SignerRecordError(f"{error}. {_WAYS_OUT}") from error

    def _replay(self, frame: Frame) -> None:
        if frame.kind == _FLOOR:
            self._state.prune(int.from_bytes(frame.payload, "big"))
            return
        for entry in decode(frame.payload, _Batch, max_bytes=MAX_BATCH_BYTES).entries:
            self._state.replay(entry)

    def _cut_tail(self, end: ScanEnd) -> None:
        if end.tail in {Tail.DAMAGED, Tail.CORRUPT}:
            raise SignerRecordError(f"{self._path}: damaged at offset {end.offset}. {_WAYS_OUT}")
        if end.tail is Tail.TORN:
            # This batch was never synced, so none of its signatures has left.
            os.ftruncate(self._descriptor, end.offset)
            os.fsync(self._descriptor)
        self._end = end.offset

    def _lock_keys(self, lock_dir: Path) -> None:
        lock_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        for secret in self._secrets.values():
            name = f"{_native.bls_public_key(secret).hex()[:40]}-{describe_shard(self._domain.shard)}.lock"
            descriptor = os.open(lock_dir / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            self._locks.append(descriptor)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise KeyInUseError(
                    f"{lock_dir / name}: another process signs with this key on {describe_shard(self._domain.shard)}; "
                    "try: shardyard status"
                ) from None

    def close(self) -> None:
        """Give the record and the keys back."""
        self._worker.shutdown(wait=True)
        self._failure = self._failure or SignerFailedError("the signer was closed")
        self._close_descriptors()

    def _close_descriptors(self) -> None:
        for descriptor in (*self._locks, self._descriptor):
            if descriptor >= 0:
                os.close(descriptor)
        self._locks.clear()
        self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


_WAYS_OUT: Final = "Try: restore it, or shardyard up --fresh to start the network anew"
