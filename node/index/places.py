"""Where transactions stand: sorted runs of records, one for each block at first, merged by eights into larger ones.

Hashes are spread evenly, so a tree with a key for each has every page rewritten by every full block; a run is written once
in order, and again each time it is merged. A record is the first 16 bytes of a hash, height and position. A look-up tries
the runs from the newest on, each by halving.
"""

import struct
from bisect import bisect_left
from collections.abc import Iterable
from typing import Any, Final

import lmdb
import msgspec

from shardyard import _native
from shardyard.ids import Height

KEY_BYTES: Final = 16
RECORD_BYTES: Final = 24
FANOUT: Final = 8
MAX_RUN_BYTES: Final = 32 * 1024 * 1024
"""Runs whose sum is larger stay as they are: what is merged is held in memory."""
MAX_SCANNED_BYTES: Final = 32 * 1024 * 1024
"""What is read of the newest runs, whole, to find many transactions at once: of the last 1.4 million."""
_RUN = struct.Struct(">QQB")
_NUMBERS = struct.Struct(">II")


class Place(msgspec.Struct, frozen=True):
    """Where a transaction or delivery stands."""

    height: Height
    position: int


class Run(msgspec.Struct, frozen=True):
    """A run of the blocks from ``first`` to ``last``, ``level`` times merged."""

    first: int
    last: int
    level: int
    size: int

    @property
    def key(self) -> bytes:
        """Its key in the table."""
        return _RUN.pack(self.first, self.last, self.level)


class PlaceRuns:
    """The runs in one table of an index. Reads from any thread, writes from one at a time."""

    def __init__(self, env: lmdb.Environment, table: Any) -> None:
        self._env = env
        self._table = table
        self._runs: tuple[Run, ...] = ()
        """In order of height."""
        self.reload()

    def reload(self) -> None:
        """Read which runs there are."""
        with self._env.begin(db=self._table, buffers=True) as txn:
            self._runs = tuple(_build_run(bytes(key), len(value)) for key, value in txn.cursor())

    def use(self, runs: tuple[Run, ...]) -> None:
        """Look up in ``runs``, which ``append`` returned and whose transaction is committed."""
        self._runs = runs

    def append(self, txn: lmdb.Transaction, height: int, hashes: bytes) -> tuple[Run, ...]:
        """Add a block's transactions (32 bytes each, by position) and merge what is due; returns the runs after it."""
        if not hashes:
            return self._runs
        data = _native.build_run(hashes, height)
        runs = [*self._runs, Run(height, height, 0, len(data))]
        txn.put(runs[-1].key, data, db=self._table)
        while _is_merge_due(runs[-FANOUT:]):
            parts, runs = runs[-FANOUT:], runs[:-FANOUT]
            data = _native.merge_runs([self._read(txn, part) for part in parts], height)
            for part in parts:
                txn.delete(part.key, db=self._table)
            runs.append(Run(parts[0].first, parts[-1].last, parts[0].level + 1, len(data)))
            txn.put(runs[-1].key, data, db=self._table)
        return tuple(runs)

    def _read(self, txn: lmdb.Transaction, run: Run) -> bytes:
        data = txn.get(run.key, db=self._table)
        assert data is not None, "the runs are those of the table"
        return bytes(data)

    def cut(self, height: int) -> None:
        """Forget everything above ``height``."""
        with self._env.begin(write=True) as txn:
            for run in self._runs:
                if run.last <= height:
                    continue
                data = self._read(txn, run)
                txn.delete(run.key, db=self._table)
                if run.first <= height and (kept := _native.merge_runs([data], height)):
                    txn.put(_RUN.pack(run.first, height, run.level), kept, db=self._table)
        self.reload()

    def find(self, tx_hash: bytes) -> Place | None:
        """Return where a transaction stands, None when no block has it."""
        wanted = tx_hash[:KEY_BYTES]
        with self._env.begin(db=self._table, buffers=True) as txn:
            cursor = txn.cursor()
            if not cursor.last():
                return None
            # The table's own list of runs: ours may be newer than what this reader sees.
            for data in cursor.iterprev(keys=False, values=True):
                if (place := _find_in_run(memoryview(data), wanted)) is not None:
                    return place
        return None

    def find_recent(self, tx_hashes: Iterable[bytes]) -> set[bytes]:
        """Return those of ``tx_hashes`` that stand in the newest blocks, as far back as ``MAX_SCANNED_BYTES`` of runs reach."""
        wanted = {tx_hash[:KEY_BYTES]: tx_hash for tx_hash in tx_hashes}
        found: set[bytes] = set()
        scanned = 0
        with self._env.begin(db=self._table) as txn:
            cursor = txn.cursor()
            if not cursor.last():
                return found
            for data in cursor.iterprev(keys=False, values=True):
                keys = (data[at : at + KEY_BYTES] for at in range(0, len(data), RECORD_BYTES))
                found.update(wanted[key] for key in keys if key in wanted)
                scanned += len(data)
                if len(found) == len(wanted) or scanned >= MAX_SCANNED_BYTES:
                    break
        return found


def _build_run(key: bytes, size: int) -> Run:
    first, last, level = _RUN.unpack(key)
    return Run(first, last, level, size)


def _find_in_run(data: memoryview, wanted: bytes) -> Place | None:
    def read_key(index: int) -> bytes:
        return bytes(data[RECORD_BYTES * index : RECORD_BYTES * index + KEY_BYTES])

    count = len(data) // RECORD_BYTES
    index = bisect_left(range(count), wanted, key=read_key)
    if index == count or read_key(index) != wanted:
        return None
    at = RECORD_BYTES * index + KEY_BYTES
    height, position = _NUMBERS.unpack(data[at : at + _NUMBERS.size])
    return Place(Height(height), position)


def _is_merge_due(runs: list[Run]) -> bool:
    levels = {run.level for run in runs}
    return len(runs) == FANOUT and len(levels) == 1 and sum(run.size for run in runs) <= MAX_RUN_BYTES
