"""The Yellow Paper's 2048-bit bloom filter over addresses and topics of logs.

A filter is handled as one big integer, so that "may this block hold what is asked for" is one AND per alternative.
"""

from collections.abc import Iterable, Sequence
from functools import lru_cache

from node.index.records import Log
from shardyard._native import keccak256

BLOOM_BYTES = 256


@lru_cache(maxsize=4096)
def compute_bits(item: bytes) -> int:
    """Return the three bits of one address or topic."""
    digest = keccak256(item)
    bits = 0
    for offset in (0, 2, 4):
        bits |= 1 << (int.from_bytes(digest[offset : offset + 2], "big") & 2047)
    return bits


def compute_bloom(logs: Iterable[Log]) -> bytes:
    """Return the filter over ``logs``, 256 bytes."""
    bits = 0
    for log in logs:
        bits |= compute_bits(log.address)
        for topic in log.topics:
            bits |= compute_bits(topic)
    return bits.to_bytes(BLOOM_BYTES, "big")


class BloomQuery:
    """What a block's filter must show before its logs are worth reading: any of the alternatives at each place."""

    def __init__(self, addresses: Sequence[bytes], topics: Sequence[Sequence[bytes] | None]) -> None:
        places = [addresses, *(topic for topic in topics if topic)]
        self._places = [tuple(compute_bits(item) for item in place) for place in places if place]

    def may_match(self, bloom: bytes) -> bool:
        """Tell whether a block with this filter can hold a wanted log; false means certainly not."""
        bits = int.from_bytes(bloom, "big")
        return all(any(bits & wanted == wanted for wanted in place) for place in self._places)
