"""Envelopes: authentic, once, bounded."""

import os
import struct

import pytest
import zstandard

from node.bus import envelope as wire
from node.bus.envelope import (
    CHUNK_BYTES,
    HEADER_BYTES,
    MAX_ASSEMBLIES_PER_SENDER,
    REPLAY_WINDOW,
    Opener,
    ReplayedError,
    Sealer,
    UnknownSenderError,
    WrongSignatureError,
)
from shardyard.errors import DecodeError, RemoteProtocolError, TooLargeError
from shardyard.ids import Hash32, NodeId
from shardyard.keys import NodeKey
from shardyard.messages import MAX_MESSAGE_BYTES

NETWORK = Hash32(b"n" * 32)
ALICE = NodeId("shard-0-0")
KEY = NodeKey(b"a" * 32)
TOPIC = "sy/devnet/node/shard-0-0/shard-0/vote"


def build_pair(incarnation=1):
    return Sealer(NETWORK, KEY, incarnation), Opener(NETWORK, {ALICE: KEY.public_key})


def open_all(opener, envelopes, topic=TOPIC):
    found = [opener.open(ALICE, topic, envelope) for envelope in envelopes]
    return [message for message in found if message is not None]


@pytest.mark.parametrize("size", [0, 1, 4096, 4097, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES + 17])
@pytest.mark.parametrize("fill", [bytes, os.urandom], ids=["zeros", "noise"])
def test_a_message_of_any_size_comes_back_whole(size, fill):
    sealer, opener = build_pair()
    message = fill(size)
    assert open_all(opener, sealer.seal(TOPIC, message)) == [message]
    assert opener.assembly_bytes == 0


def test_chunks_may_come_in_any_order():
    sealer, opener = build_pair()
    message = os.urandom(4 * CHUNK_BYTES)
    assert open_all(opener, reversed(sealer.seal(TOPIC, message))) == [message]


def test_a_large_message_is_compressed():
    sealer, _ = build_pair()
    (envelope,) = sealer.seal(TOPIC, bytes(MAX_MESSAGE_BYTES))
    assert len(envelope) < 10_000


def test_a_message_above_the_cap_is_not_sealed():
    with pytest.raises(TooLargeError):
        build_pair()[0].seal(TOPIC, bytes(MAX_MESSAGE_BYTES + 1))


@pytest.mark.parametrize("position", range(HEADER_BYTES + 20))
def test_a_flipped_bit_anywhere_is_refused(position):
    sealer, opener = build_pair()
    (envelope,) = sealer.seal(TOPIC, b"twenty bytes payload")
    broken = bytearray(envelope)
    broken[position] ^= 0x40
    with pytest.raises(RemoteProtocolError):
        opener.open(ALICE, TOPIC, bytes(broken))
    assert opener.open(ALICE, TOPIC, envelope) == b"twenty bytes payload"


def test_an_envelope_is_bound_to_its_topic_and_network():
    sealer, opener = build_pair()
    (envelope,) = sealer.seal(TOPIC, b"vote")
    with pytest.raises(WrongSignatureError):
        opener.open(ALICE, TOPIC.replace("shard-0/vote", "shard-1/vote"), envelope)
    with pytest.raises(WrongSignatureError):
        Opener(Hash32(b"m" * 32), {ALICE: KEY.public_key}).open(ALICE, TOPIC, envelope)


def test_a_stranger_and_an_impostor_are_refused():
    _, opener = build_pair()
    (forged,) = Sealer(NETWORK, NodeKey(b"m" * 32), 1).seal(TOPIC, b"vote")
    with pytest.raises(WrongSignatureError):
        opener.open(ALICE, TOPIC, forged)
    with pytest.raises(UnknownSenderError):
        opener.open(NodeId("mallory"), TOPIC, forged)


def test_a_replay_is_refused_in_any_order():
    sealer, opener = build_pair()
    envelopes = [sealer.seal(TOPIC, bytes([number]))[0] for number in range(5)]
    for number in (3, 0, 4, 2, 1):
        assert opener.open(ALICE, TOPIC, envelopes[number]) == bytes([number])
    for envelope in envelopes:
        with pytest.raises(ReplayedError):
            opener.open(ALICE, TOPIC, envelope)


def test_what_fell_out_of_the_window_is_refused():
    sealer, opener = build_pair()
    (old,) = sealer.seal(TOPIC, b"old")
    sealer._sequence += REPLAY_WINDOW
    (new,) = sealer.seal(TOPIC, b"new")
    assert opener.open(ALICE, TOPIC, new) == b"new"
    with pytest.raises(ReplayedError):
        opener.open(ALICE, TOPIC, old)


def test_a_jump_to_the_last_sequence_costs_no_memory():
    sealer, opener = build_pair()
    open_all(opener, sealer.seal(TOPIC, b"first"))
    sealer._sequence = (1 << 64) - 1
    assert open_all(opener, sealer.seal(TOPIC, b"last")) == [b"last"]
    assert opener._windows[ALICE]._seen.bit_length() <= REPLAY_WINDOW


def test_a_new_incarnation_ends_the_old_one():
    first, opener = build_pair(incarnation=7)
    (before,) = first.seal(TOPIC, b"before")
    (late,) = first.seal(TOPIC, b"late")
    assert opener.open(ALICE, TOPIC, before) == b"before"
    (after,) = Sealer(NETWORK, KEY, 8).seal(TOPIC, b"after")
    assert opener.open(ALICE, TOPIC, after) == b"after"
    with pytest.raises(ReplayedError):
        opener.open(ALICE, TOPIC, late)


def test_a_forged_sequence_does_not_move_the_window():
    sealer, opener = build_pair()
    (forged,) = Sealer(NETWORK, NodeKey(b"m" * 32), 99).seal(TOPIC, b"forged")
    with pytest.raises(WrongSignatureError):
        opener.open(ALICE, TOPIC, forged)
    assert open_all(opener, sealer.seal(TOPIC, b"honest")) == [b"honest"]


def seal_raw(payload, *, flags=1, length, part=0, parts=1, sequence=0):
    """Seal what an honest sender would not: a header that lies about its payload, with a true signature."""
    header = wire.encode_header(flags, 1, sequence, part, parts, length)
    return wire.seal_part(NETWORK, TOPIC, KEY, header, payload)


@pytest.mark.parametrize(
    ("payload", "flags", "length"),
    [
        (zstandard.compress(bytes(50 * 1024 * 1024)), 1, 1000),
        (zstandard.ZstdCompressor(write_content_size=False).compress(bytes(10_000)), 1, 10_000),
        (zstandard.compress(b"x") + b"trailing", 1, 1),
        (b"no zstd at all", 1, 100),
        (b"", 1, 0),
        (b"raw", 0, 4),
    ],
    ids=["bomb", "no-size", "trailing", "garbage", "empty", "short"],
)
def test_a_payload_that_is_not_what_its_header_says_is_refused(payload, flags, length):
    _, opener = build_pair()
    with pytest.raises(DecodeError):
        opener.open(ALICE, TOPIC, seal_raw(payload, flags=flags, length=length))


def test_a_frame_that_announces_gigabytes_is_refused_before_allocation():
    frame = struct.pack("<IBBQ", 0xFD2FB528, 0xC0, 0x58, 1 << 40) + b"\x01\x00\x00"
    _, opener = build_pair()
    with pytest.raises(DecodeError):
        opener.open(ALICE, TOPIC, seal_raw(frame, length=MAX_MESSAGE_BYTES))


def test_a_length_above_the_cap_is_refused():
    _, opener = build_pair()
    with pytest.raises(TooLargeError):
        opener.open(ALICE, TOPIC, seal_raw(b"x", length=MAX_MESSAGE_BYTES + 1))
    with pytest.raises(TooLargeError):
        opener.open(ALICE, TOPIC, bytes(wire.MAX_ENVELOPE_BYTES + 1))


@pytest.mark.parametrize("data", [b"", b"\x01", bytes(HEADER_BYTES), b"\xff" * HEADER_BYTES, os.urandom(500)])
def test_garbage_is_refused(data):
    _, opener = build_pair()
    with pytest.raises(RemoteProtocolError):
        opener.open(ALICE, TOPIC, data)


def test_unfinished_messages_are_bounded_per_sender_and_in_all():
    nodes = {NodeId(f"shard-{number}-0"): NodeKey(bytes([number + 1]) * 32) for number in range(8)}
    opener = Opener(NETWORK, {node: key.public_key for node, key in nodes.items()})
    body = os.urandom(15 * CHUNK_BYTES)
    for node, key in nodes.items():
        sealer = Sealer(NETWORK, key, 1)
        for _ in range(12):
            for envelope in sealer.seal(TOPIC, body)[:-1]:
                assert opener.open(node, TOPIC, envelope) is None
            assert len(opener._assemblies._by_sender[node]) <= MAX_ASSEMBLIES_PER_SENDER
            assert opener._assemblies._bytes_of[node] <= wire.MAX_ASSEMBLY_BYTES_PER_SENDER
        assert opener.assembly_bytes <= wire.MAX_ASSEMBLY_BYTES
    assert opener.dropped_assemblies > 0


def test_a_restart_gives_up_the_chunks_of_the_life_before():
    sealer, opener = build_pair(incarnation=1)
    opener.open(ALICE, TOPIC, sealer.seal(TOPIC, os.urandom(3 * CHUNK_BYTES))[0])
    assert opener.assembly_bytes == CHUNK_BYTES
    open_all(opener, Sealer(NETWORK, KEY, 2).seal(TOPIC, b"again"))
    assert opener.assembly_bytes == 0


def test_chunks_of_two_messages_do_not_mix():
    _, opener = build_pair()
    chunk = os.urandom(CHUNK_BYTES)
    assert opener.open(ALICE, TOPIC, seal_raw(chunk, flags=0, length=1, part=0, parts=2, sequence=0)) is None
    with pytest.raises(DecodeError):
        opener.open(ALICE, TOPIC, seal_raw(b"x", flags=0, length=1, part=2, parts=3, sequence=2))
    with pytest.raises(DecodeError):  # whole now, but not as long as the header said
        opener.open(ALICE, TOPIC, seal_raw(b"x", flags=0, length=1, part=1, parts=2, sequence=1))
    assert opener.assembly_bytes == 0
