"""The mempool's journal: every transaction that was answered with its hash survives the death of the process.

``append`` returns after a batched ``write``, which survives SIGKILL; with ``is_synced`` also after the sync, which
survives power loss. When the file has grown well beyond what is still pending it is written anew and renamed. Opening it
gives back every transaction that can be read, also behind damage, because each one is worth having.
"""

import asyncio
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, Self

import msgspec

from node.storage.frames import (
    HEADER_BYTES,
    CorruptFileError,
    Frame,
    encode_frame,
    encode_header,
    salvage,
    sync_directory,
    verify_header,
    write_all,
)
from shardyard.codec import decode, encode
from shardyard.errors import DecodeError, ShardyardError

JOURNAL_FILE_KIND: Final = 3
COMPACT_ABOVE_BYTES: Final = 16 * 1024 * 1024
MAX_BATCH_BYTES: Final = 4 * 1024 * 1024
"""Transactions of one frame; a torn end loses at most the batch that was never answered."""
_TRANSACTIONS: Final = 0


class JournalFailedError(ShardyardError):
    """A write failed; no transaction may be answered any more."""


class MempoolJournal:
    """The journal at ``path``; ``pending`` holds what was read when it was opened."""

    def __init__(
        self,
        path: Path,
        owner: bytes,
        *,
        is_synced: bool = False,
        compact_above_bytes: int = COMPACT_ABOVE_BYTES,
    ) -> None:
        """``owner`` is the hash of the genesis. Raises ``OSError``; a journal of another network is put aside."""
        self._path = path
        self._owner = owner
        self._is_synced = is_synced
        self._compact_above_bytes = compact_above_bytes
        self._get_live: Callable[[], Iterable[bytes]] | None = None
        self._failure: BaseException | None = None
        self._writing = asyncio.Lock()
        self._waiting: list[bytes] = []
        self._appended = 0
        self._written = 0
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="mempool-journal")
        self.pending: list[bytes] = self._read()
        self._descriptor = -1
        self._end = 0
        self._rewrite(self.pending)
        self._live_bytes = self._end

    def attach(self, get_live: Callable[[], Iterable[bytes]]) -> None:
        """Tell where the raw transactions that are still pending come from when the journal is written anew."""
        self._get_live = get_live

    @property
    def size(self) -> int:
        """Bytes in the file."""
        return self._end

    async def append(self, transactions: Sequence[bytes]) -> None:
        """Return when ``transactions`` survive the death of this process; calls that come together share a write.

        Raises ``JournalFailedError``: then, and from then on, nothing may be answered.
        """
        self._waiting.extend(transactions)
        self._appended += len(transactions)
        target = self._appended
        async with self._writing:
            self._verify_alive()
            if self._written >= target:
                return
            batch, self._waiting = self._waiting, []
            reached = self._appended
            await self._run(self._write, batch)
            self._written = reached
            if self._end > self._compact_above_bytes and self._end > 2 * self._live_bytes and self._get_live:
                await self._run(self._compact, list(self._get_live()))

    async def _run(self, work: Callable[[list[bytes]], None], transactions: list[bytes]) -> None:
        future = asyncio.get_running_loop().run_in_executor(self._writer, work, transactions)
        try:
            await asyncio.shield(future)
        except asyncio.CancelledError:
            await asyncio.wait([future])
            self._failure = self._failure or future.exception()
            raise
        except OSError as error:
            self._failure = error
            self._verify_alive()

    def _verify_alive(self) -> None:
        if self._failure is not None:
            raise JournalFailedError(
                f"{self._path}: {self._failure}; try: make room and restart"
            ) from self._failure

    def _write(self, transactions: list[bytes]) -> None:
        frames = []
        for batch in _split(transactions):
            frame = encode_frame(self._end, 0, _TRANSACTIONS, encode(batch))
            frames.append(frame)
            self._end += len(frame)
        write_all(self._descriptor, b"".join(frames))
        if self._is_synced:
            os.fdatasync(self._descriptor)

    def _compact(self, live: list[bytes]) -> None:
        self._rewrite(live)
        self._live_bytes = self._end

    def _rewrite(self, transactions: Sequence[bytes]) -> None:
        """Put a new file with ``transactions`` in place of the old one; a crash leaves one of the two."""
        staged = self._path.with_suffix(".new")
        descriptor = os.open(staged, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            end = HEADER_BYTES
            write_all(descriptor, encode_header(JOURNAL_FILE_KIND, self._owner, 0))
            for batch in _split(transactions):
                frame = encode_frame(end, 0, _TRANSACTIONS, encode(batch))
                write_all(descriptor, frame)
                end += len(frame)
            os.fsync(descriptor)
            staged.replace(self._path)
            sync_directory(self._path.parent)
        except BaseException:
            os.close(descriptor)
            raise
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor, self._end = descriptor, end

    def _read(self) -> list[bytes]:
        try:
            descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return []
        try:
            verify_header(descriptor, JOURNAL_FILE_KIND, self._owner, 0, str(self._path))
            return [raw for frame in salvage(descriptor, 0) for raw in _decode_batch(frame)]
        except CorruptFileError:
            # The frames' checksums still vouch for whatever can be read of them, unless it is another network's.
            self._path.replace(self._path.with_suffix(".damaged"))
            return []
        finally:
            os.close(descriptor)

    def close(self) -> None:
        """Close the file."""
        self._writer.shutdown(wait=True)
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        self._failure = self._failure or JournalFailedError("the journal was closed")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class _Batch(msgspec.Struct, frozen=True, array_like=True):
    transactions: tuple[bytes, ...]


def _split(transactions: Sequence[bytes]) -> Iterator[_Batch]:
    batch: list[bytes] = []
    size = 0
    for raw in transactions:
        if batch and size + len(raw) > MAX_BATCH_BYTES:
            yield _Batch(tuple(batch))
            batch, size = [], 0
        batch.append(raw)
        size += len(raw)
    if batch:
        yield _Batch(tuple(batch))


def _decode_batch(frame: Frame) -> tuple[bytes, ...]:
    try:
        return decode(frame.payload, _Batch, max_bytes=2 * MAX_BATCH_BYTES).transactions
    except DecodeError:
        return ()
