"""The canonical encoding: MessagePack in array form, one byte string per value.

Rules: structs are arrays in field order; integers take their shortest form; ``bytes`` is ``bin``; there are no maps and no
floats. MessagePack readers accept over-wide integers, so every decode re-encodes what it read and compares: what does not
come back byte for byte is refused (two encodings of one header would be two hashes of one block). A size cap is checked
before anything is allocated.
"""

from typing import Any, TypeVar

import msgspec

from shardyard.errors import DecodeError, TooLargeError

T = TypeVar("T")

_encoder = msgspec.msgpack.Encoder()


_decoders: dict[Any, msgspec.msgpack.Decoder[Any]] = {}


def _get_decoder(kind: Any) -> msgspec.msgpack.Decoder[Any]:
    found = _decoders.get(kind)
    if found is None:
        found = _decoders[kind] = msgspec.msgpack.Decoder(kind)
    return found


def encode(value: object) -> bytes:
    """Return the canonical bytes of ``value``, a struct or a tuple of structs, integers and byte strings."""
    return _encoder.encode(value)


def decode(data: bytes, kind: type[T], *, max_bytes: int) -> T:
    """Return the ``kind`` that ``data`` encodes.

    Raises ``TooLargeError`` above ``max_bytes`` and ``DecodeError`` when the bytes are not canonical.
    """
    if len(data) > max_bytes:
        raise TooLargeError(
            f"{getattr(kind, '__name__', kind)}: got {len(data)} bytes, expected at most {max_bytes}"
        )
    try:
        value: T = _get_decoder(kind).decode(data)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise DecodeError(f"{getattr(kind, '__name__', kind)}: {error}") from error
    if _encoder.encode(value) != data:
        raise DecodeError(
            f"{getattr(kind, '__name__', kind)}: the bytes are not the shortest form of their value"
        )
    return value
