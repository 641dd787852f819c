"""Bundles: what they must be (X3), and those that came before the beacon block that names their root.

These are kept unverified, within caps, until the block is at hand.
"""

from collections.abc import Sequence
from typing import Final

from shardyard.errors import InvalidProofError, RemoteProtocolError
from shardyard.ids import Hash32, ShardId
from shardyard.merkle import compute_root
from shardyard.receipts import LinkSummary, decode_receipt

MAX_EARLY_BUNDLES: Final = 64
MAX_EARLY_BYTES: Final = 32 * 1024 * 1024
MIN_RECEIPT_BYTES: Final = 4 * 32 + 4 * 20
"""No receipt is shorter: it has four hashes or values and four addresses (X1)."""

BundleKey = tuple[Hash32, ShardId]
"""A bundle's crosslink and source."""


class EarlyBundles:
    """Receipts by the bundle they came in, the oldest dropped first when there is no room."""

    def __init__(self, max_bundle_bytes: int) -> None:
        self._max_bundle_bytes = max_bundle_bytes
        self._kept: dict[BundleKey, tuple[bytes, ...]] = {}
        self._bytes = 0

    def keep(self, key: BundleKey, receipts: tuple[bytes, ...]) -> None:
        """Keep a bundle; the first of a key stays, and one that is too large for any is left.

        Millions of empty receipts are too large as well: each costs memory that its bytes do not tell.
        """
        size = sum(len(receipt) for receipt in receipts)
        if key in self._kept or max(size, MIN_RECEIPT_BYTES * len(receipts)) > self._max_bundle_bytes:
            return
        while self._kept and (len(self._kept) >= MAX_EARLY_BUNDLES or self._bytes + size > MAX_EARLY_BYTES):
            self.take(next(iter(self._kept)))
        self._kept[key] = receipts
        self._bytes += size

    def take(self, key: BundleKey) -> tuple[bytes, ...] | None:
        """Return and forget a bundle; None when it is not here."""
        receipts = self._kept.pop(key, None)
        if receipts is not None:
            self._bytes -= sum(len(receipt) for receipt in receipts)
        return receipts

    def __contains__(self, key: BundleKey) -> bool:
        return key in self._kept

    def __len__(self) -> int:
        return len(self._kept)


def verify_bundle(link: LinkSummary, receipts: Sequence[bytes]) -> None:
    """Raise ``RemoteProtocolError`` unless ``receipts`` are what the crosslink says of its link (X3)."""
    if len(receipts) != link.count or compute_root(receipts) != link.link_root:
        raise InvalidProofError(
            f"bundle: got {len(receipts)} receipts of another root, expected {link.count}"
        )
    for offset, data in enumerate(receipts):
        receipt = decode_receipt(data)
        if receipt.dst != link.dst or receipt.seq != link.first_seq + offset:
            raise InvalidProofError(f"bundle: got seq {receipt.seq}, expected {link.first_seq + offset}")


def is_bundle_valid(link: LinkSummary, receipts: Sequence[bytes]) -> bool:
    try:
        verify_bundle(link, receipts)
    except RemoteProtocolError:
        return False
    return True
