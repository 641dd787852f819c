"""The canonical encoding: one byte string per value, refused before anything is allocated when it is too long."""

import msgspec
import pytest

from shardyard.codec import decode, encode
from shardyard.errors import DecodeError, TooLargeError


class Pair(msgspec.Struct, frozen=True, array_like=True):
    number: int
    data: bytes


GOOD = encode(Pair(5, b"ab"))


def test_what_is_encoded_is_decoded():
    assert bytes.fromhex("9205c4026162") == GOOD
    assert decode(GOOD, Pair, max_bytes=6) == Pair(5, b"ab")


@pytest.mark.parametrize(
    "data",
    [
        "92cc05c4026162",  # the number in two bytes
        "92cf0000000000000005c4026162",  # the number in nine
        "9205c500026162",  # the length in two bytes
        "dc000205c4026162",  # the array's length in two bytes
        "9305c4026162c0",  # one field more
        "9105",  # one field less
        "9205a26162",  # text for bytes
        "92cb4014000000000000c4026162",  # a float
        "9205c4026162c0",  # something behind it
        "9205c4036162",  # cut
        "",
    ],
)
def test_what_is_not_the_shortest_form_of_its_value_is_refused(data):
    with pytest.raises(DecodeError):
        decode(bytes.fromhex(data), Pair, max_bytes=100)


def test_what_is_too_long_is_refused_by_its_length():
    with pytest.raises(TooLargeError, match="got 6 bytes, expected at most 5"):
        decode(GOOD, Pair, max_bytes=5)


def test_nesting_without_end_is_refused():
    with pytest.raises(DecodeError):
        decode(b"\x93" + GOOD[1:] + b"\x91" * 100_000 + b"\xc0", Pair, max_bytes=1 << 20)
