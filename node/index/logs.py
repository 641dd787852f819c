"""Finding logs: blocks are passed over by their bloom, the rest is read and matched; ranges and results are capped.

The caps speak in the words that public endpoints use, because libraries split their ranges when they read them.
"""

from collections.abc import Iterator, Sequence
from typing import Final

import msgspec

from node.index.bloom import BloomQuery
from node.index.records import IndexedBlock, Log
from node.index.store import ChainIndex

MAX_BLOCK_RANGE: Final = 10_000
MAX_LOGS: Final = 20_000


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


def find_logs(index: ChainIndex, pattern: LogPattern, first: int, last: int) -> list[FoundLog]:
    """Return the wanted logs of the blocks from ``first`` to ``last``, both included.

    Raises ``LogLimitError`` above ``MAX_BLOCK_RANGE`` blocks or ``MAX_LOGS`` logs.
    """
    if last - first >= MAX_BLOCK_RANGE:
        raise LogLimitError(f"exceed maximum block range: {MAX_BLOCK_RANGE}")
    found: list[FoundLog] = []
    heights = [
        brief.height for brief in index.iterate_briefs(first, last) if pattern.bloom.may_match(brief.bloom)
    ]
    for height in heights:
        block = index.get_block(height)
        if block is None:
            continue
        found.extend(find_logs_in_block(block, pattern))
        if len(found) > MAX_LOGS:
            raise LogLimitError(f"query returned more than {MAX_LOGS} results")
    return found
