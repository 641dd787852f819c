"""The mempool's journal: every transaction that was answered with its hash survives the death of the process.

A frame holds the transactions of one group, encoded as a block's body is: one blob, and the end of each.
``append`` returns after a batched ``write``, which survives SIGKILL; with ``is_synced`` also after the sync, which
survives power loss. When the file has grown well beyond what is still pending it is written anew and renamed. Opening it
gives back every transaction that can be read, also behind damage, because each one is worth having.
"""

import asyncio
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, Self

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
from shardyard.blocks import ShardBody
from shardyard.codec import decode, encode
from shardyard.errors import DecodeError, ShardyardError

JOURNAL_FILE_KIND: Final = 3
COMPACT_ABOVE_BYTES: Final = 16 * 1024 * 1024
MAX_BODY_BYTES: Final = 4 * 1024 * 1024
"""Transactions of a frame that is written anew; a torn end loses at most the group that was never answered."""
_MAX_FRAME_BYTES: Final = 64 * 1024 * 1024
_BODY: Final = 1


class JournalFailedError(ShardyardError):
    """A write failed; no transaction may be answered any more."""


class MempoolJournal:
    """The journal at ``path``; ``take_pending`` gives what was read when it was opened."""

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
        self._get_live: Callable[[], Sequence[bytes]] | None = None
        self._failure: BaseException | None = None
        self._writing = asyncio.Lock()
        self._waiting: list[bytes] = []
        self._appended = 0
        self._written = 0
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="mempool-journal")
        self._pending = self._read()
        self._descriptor = -1
        self._end = 0
        self._rewrite(encode_bodies(self._pending))
        self._live_bytes = 0
        """Bytes when it was last written with what is pending only; of what was read most may have been included."""

    def take_pending(self) -> list[bytes]:
        """Return every transaction that was read when the journal was opened, once: it is not kept in memory."""
        taken, self._pending = self._pending, []
        return taken

    def attach(self, get_live: Callable[[], Sequence[bytes]]) -> None:
        """Tell where the transactions that are still pending, as encoded bodies, come from when it is written anew."""
        self._get_live = get_live

    @property
    def size(self) -> int:
        """Bytes in the file."""
        return self._end

    async def append(self, body: bytes) -> None:
        """Return when the transactions of ``body`` survive the death of this process; calls that come together share a
        write.

        Raises ``JournalFailedError``: then, and from then on, nothing may be answered.
        """
        self._waiting.append(body)
        self._appended += 1
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
                await self._run(self._compact, self._get_live())

    async def _run(self, work: Callable[[Sequence[bytes]], None], bodies: Sequence[bytes]) -> None:
        future = asyncio.get_running_loop().run_in_executor(self._writer, work, bodies)
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

    def _write(self, bodies: Sequence[bytes]) -> None:
        frames = []
        for body in bodies:
            frame = encode_frame(self._end, 0, _BODY, body)
            frames.append(frame)
            self._end += len(frame)
        write_all(self._descriptor, b"".join(frames))
        if self._is_synced:
            os.fdatasync(self._descriptor)

    def _compact(self, live: Sequence[bytes]) -> None:
        self._rewrite(live)
        self._live_bytes = self._end

    def _rewrite(self, bodies: Sequence[bytes]) -> None:
        """Put a new file with ``bodies`` in place of the old one; a crash leaves one of the two."""
        staged = self._path.with_suffix(".new")
        descriptor = os.open(staged, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            end = HEADER_BYTES
            write_all(descriptor, encode_header(JOURNAL_FILE_KIND, self._owner, 0))
            for body in bodies:
                frame = encode_frame(end, 0, _BODY, body)
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
            return [raw for frame in salvage(descriptor, 0) for raw in _decode_body(frame)]
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


def encode_bodies(transactions: Sequence[bytes]) -> list[bytes]:
    """Return raw ``transactions`` in their order, as encoded bodies of at most ``MAX_BODY_BYTES`` each."""
    bodies: list[bytes] = []
    batch: list[bytes] = []
    ends: list[int] = []
    for raw in transactions:
        if ends and ends[-1] + len(raw) > MAX_BODY_BYTES:
            bodies.append(encode(ShardBody(b"".join(batch), tuple(ends))))
            batch, ends = [], []
        batch.append(raw)
        ends.append((ends[-1] if ends else 0) + len(raw))
    if batch:
        bodies.append(encode(ShardBody(b"".join(batch), tuple(ends))))
    return bodies


def _decode_body(frame: Frame) -> list[bytes]:
    if frame.kind != _BODY:
        return []
    try:
        body = decode(frame.payload, ShardBody, max_bytes=_MAX_FRAME_BYTES)
    except DecodeError:
        return []
    starts = (0, *body.ends)
    return [body.raw[start:end] for start, end in zip(starts, body.ends, strict=False)]
