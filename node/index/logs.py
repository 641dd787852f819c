"""Finding logs: blocks are passed over by their bloom, the rest is read and matched; ranges and results are capped.

The caps speak in the words that public endpoints use, because libraries split their ranges when they read them.
"""

from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Final

import msgspec

from node.index.bloom import BloomQuery
from node.index.records import IndexedBlock, Log
from node.index.store import ChainIndex

MAX_BLOCK_RANGE: Final = 10_000
MAX_LOGS: Final = 20_000
"""Logs in one answer."""


class LogLimitError(Exception):
    """A query that asks for too much; the text is for the client."""


class LogPattern:
    """Which logs are wanted: any of ``addresses`` (none: all), and per topic place any of the alternatives."""

    def __init__(
        self, addresses: Sequence[bytes] = (), topics: Sequence[Sequence[bytes] | None] = ()
    ) -> None:
        self._addresses = frozenset(addresses)
        self._topics = tuple(frozenset(topic) if topic else None for topic in topics)
        self.bloom = BloomQuery(addresses, topics)

    @property
    def key(self) -> Hashable:
        """Equal for patterns that want the same logs."""
        return self._addresses, self._topics

    def matches(self, log: Log) -> bool:
        """Tell whether ``log`` is wanted."""
        if self._addresses and log.address not in self._addresses:
            return False
        if len(self._topics) > len(log.topics):
            return False
        return all(
            wanted is None or topic in wanted for wanted, topic in zip(self._topics, log.topics, strict=False)
        )


class FoundLog(msgspec.Struct, frozen=True):
    """A log with its place: ``position`` of its transaction, ``index`` within the block."""

    block: IndexedBlock
    position: int
    index: int
    log: Log


def find_logs_in_block(block: IndexedBlock, pattern: LogPattern) -> Iterator[FoundLog]:
    """Yield the wanted logs of one block, in order."""
    if not pattern.bloom.may_match(block.content.logs_bloom):
        return
    for position, outcome in enumerate(block.outcomes):
        start = block.first_log_index[position]
        for offset, log in enumerate(outcome.logs):
            if pattern.matches(log):
                yield FoundLog(block, position, start + offset, log)


def find_logs(
    index: ChainIndex,
    pattern: LogPattern,
    first: int,
    last: int,
    *,
    should_stop: Callable[[], bool] = lambda: False,
) -> Iterator[FoundLog]:
    """Yield the wanted logs of the blocks from ``first`` to ``last``, both included, in order.

    No block is held longer than its logs are looked at, and of these one at a time. Raises ``LogLimitError`` above
    ``MAX_BLOCK_RANGE`` blocks, and ends early when ``should_stop``, which is asked before each block, says so.
    """
    if last - first >= MAX_BLOCK_RANGE:
        raise LogLimitError(f"exceed maximum block range: {MAX_BLOCK_RANGE}")
    heights = [
        brief.height for brief in index.iterate_briefs(first, last) if pattern.bloom.may_match(brief.bloom)
    ]
    for height in heights:
        if should_stop():
            return
        block = index.get_block(height)
        if block is not None:
            yield from find_logs_in_block(block, pattern)
