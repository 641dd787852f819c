"""How addresses are written for people: with the checksum of EIP-55."""

from shardyard import _native


def to_checksum(address: bytes) -> str:
    """Return the 20 bytes of ``address`` in EIP-55 form."""
    text = address.hex()
    digest = _native.keccak256(text.encode()).hex()
    return "0x" + "".join(c.upper() if int(d, 16) >= 8 else c for c, d in zip(text, digest, strict=False))
