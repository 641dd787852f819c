"""Quorum arithmetic over integer stake: ``q = floor(2W/3) + 1`` (docs/protocol.md, Finality).

Heads are never counted. Two quorums share more than a third of the stake, which is what makes conflicts slashable.
"""

from collections.abc import Iterable, Sequence

from shardyard.errors import InvalidCertificateError


def compute_quorum(total_stake: int) -> int:
    """Return the least stake that forms a quorum of ``total_stake``."""
    return 2 * total_stake // 3 + 1


def is_quorum(stake: int, total_stake: int) -> bool:
    """Tell whether ``stake`` is more than two thirds of ``total_stake``."""
    return 3 * stake > 2 * total_stake


def compute_blocking(total_stake: int) -> int:
    """Return the least stake whose silence prevents every quorum."""
    return total_stake - compute_quorum(total_stake) + 1


def encode_bitmap(indices: Iterable[int], size: int) -> bytes:
    """Return the bitmap with ``indices`` set: least significant bit first, exactly ``ceil(size / 8)`` bytes."""
    bits = 0
    for index in indices:
        if not 0 <= index < size:
            raise ValueError(f"bitmap index: got {index}, expected 0..{size - 1}")
        bits |= 1 << index
    return bits.to_bytes((size + 7) // 8, "little")


def decode_bitmap(bitmap: bytes, size: int) -> list[int]:
    """Return the indices set in ``bitmap``; raises ``InvalidCertificateError`` for a wrong length or stray bits."""
    if len(bitmap) != (size + 7) // 8:
        raise InvalidCertificateError(
            f"bitmap: got {len(bitmap)} bytes, expected {(size + 7) // 8} for {size} validators"
        )
    bits = int.from_bytes(bitmap, "little")
    if bits >> size:
        raise InvalidCertificateError(f"bitmap: got bits beyond validator {size - 1}")
    return [index for index in range(size) if bits >> index & 1]


def sum_stake(indices: Iterable[int], stakes: Sequence[int]) -> int:
    """Return the stake of the validators at ``indices``."""
    return sum(stakes[index] for index in indices)
