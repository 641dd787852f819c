"""Envelopes from recipes: whatever header and payload, with a signature that verifies, so that what follows it is reached."""

import struct
from typing import Final

from node.bus.envelope import encode_header, seal_part
from shardyard.ids import Hash32
from shardyard.keys import NodeKey

_RECIPE: Final = struct.Struct(">BQQHHI")


def encode_recipe(
    flags: int, incarnation: int, sequence: int, part: int, parts: int, length: int, payload: bytes
) -> bytes:
    """Return the bytes from which ``seal_recipe`` makes an envelope."""
    return _RECIPE.pack(flags, incarnation, sequence, part, parts, length) + payload


def seal_recipe(network: Hash32, topic: str, key: NodeKey, recipe: bytes) -> bytes:
    """Return an envelope with the header and the payload that ``recipe`` asks for, signed by ``key``."""
    fields = _RECIPE.unpack(recipe[: _RECIPE.size].ljust(_RECIPE.size, b"\0"))
    return seal_part(network, topic, key, encode_header(*fields), recipe[_RECIPE.size :])
