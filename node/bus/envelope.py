"""Envelopes: what travels on the bus is signed, sequenced, compressed and cut into chunks.

Wire form: a fixed header (version, flags, incarnation, sequence, part, parts, length of the decoded message), 64 bytes
of Ed25519 signature, then the payload. The sender stands in the topic, not in the envelope. The signature covers the
network, the topic, the header and a SHA-256 digest of the payload: a broker can therefore neither move an envelope to
another topic, chain or network, nor cut it.

Replay: a sender counts its envelopes within an incarnation (one life of its process; each is greater than the last). A
receiver keeps, per sender, the incarnation and a sliding window of the sequences seen. Older incarnations, repeats and
what fell out of the window are refused *before* any signature is checked.

Limits: chunks above 256 KB, zstd above 4 KB. The decoded length is in the signed header, checked against the cap and
against the zstd frame before anything is allocated, so a compressed bomb costs its reader nothing. Chunks wait in a
buffer bounded per sender and in all.
"""

import hashlib
import struct
import threading
from collections import OrderedDict
from collections.abc import Mapping
from typing import Final

import msgspec
import zstandard
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from shardyard.errors import DecodeError, RemoteProtocolError, TooLargeError
from shardyard.hashing import TAG_ENVELOPE
from shardyard.ids import Hash32, NodeId
from shardyard.keys import NodeKey
from shardyard.messages import MAX_MESSAGE_BYTES

CHUNK_BYTES: Final = 256 * 1024
COMPRESS_ABOVE_BYTES: Final = 4 * 1024
COMPRESSION_LEVEL: Final = 1
REPLAY_WINDOW: Final = 8192
MAX_PARTS: Final = -(-MAX_MESSAGE_BYTES // CHUNK_BYTES) + 1
MAX_ASSEMBLIES_PER_SENDER: Final = 8
MAX_ASSEMBLY_BYTES_PER_SENDER: Final = MAX_MESSAGE_BYTES + CHUNK_BYTES
MAX_ASSEMBLY_BYTES: Final = 4 * MAX_MESSAGE_BYTES

_HEADER: Final = struct.Struct(">BBQQHHI")
_SIGNATURE_BYTES: Final = 64
HEADER_BYTES: Final = _HEADER.size + _SIGNATURE_BYTES
MAX_ENVELOPE_BYTES: Final = HEADER_BYTES + CHUNK_BYTES
_VERSION: Final = 2
_FLAG_ZSTD: Final = 1
_WINDOW_MASK: Final = (1 << REPLAY_WINDOW) - 1


class UnknownSenderError(RemoteProtocolError):
    """The sender is not in the directory of the network."""


class WrongSignatureError(RemoteProtocolError):
    """The signature is not the sender's over this topic, header and payload."""


class ReplayedError(RemoteProtocolError):
    """The envelope was seen before, or is too old to tell."""


class Sealer:
    """Makes the envelopes of one sender. Several threads may seal at once; each message gets sequences of its own."""

    def __init__(self, network: Hash32, key: NodeKey, incarnation: int) -> None:
        self._network = network
        self._key = key
        self._incarnation = incarnation
        self._sequence = 0
        self._numbering = threading.Lock()

    def seal(self, topic: str, message: bytes) -> list[bytes]:
        """Return the envelopes that carry ``message`` by ``topic``: one, or one per chunk.

        Raises ``TooLargeError`` above ``MAX_MESSAGE_BYTES``: no receiver would take it.
        """
        if len(message) > MAX_MESSAGE_BYTES:
            raise TooLargeError(f"message: got {len(message)} bytes, expected at most {MAX_MESSAGE_BYTES}")
        flags, payload = _compress(message)
        parts = max(1, -(-len(payload) // CHUNK_BYTES))
        with self._numbering:
            first = self._sequence
            self._sequence += parts
        view = memoryview(payload)
        return [
            seal_part(
                self._network,
                topic,
                self._key,
                encode_header(flags, self._incarnation, first + part, part, parts, len(message)),
                view[part * CHUNK_BYTES : (part + 1) * CHUNK_BYTES],
            )
            for part in range(parts)
        ]


def encode_header(flags: int, incarnation: int, sequence: int, part: int, parts: int, length: int) -> bytes:
    """Return the fixed header of an envelope; ``length`` is that of the whole message, decoded."""
    return _HEADER.pack(_VERSION, flags, incarnation, sequence, part, parts, length)


def seal_part(network: Hash32, topic: str, key: NodeKey, header: bytes, payload: bytes | memoryview) -> bytes:
    """Return one envelope: ``header`` and ``payload``, signed for ``topic`` whatever they say."""
    signature = key.sign(_compute_signed_bytes(network, topic, header, payload))
    return b"".join((header, signature, payload))


class Opener:
    """Checks envelopes and gives back the messages in them, each at most once."""

    def __init__(self, network: Hash32, directory: Mapping[NodeId, bytes]) -> None:
        self._network = network
        self._keys = {node: Ed25519PublicKey.from_public_bytes(key) for node, key in directory.items()}
        self._windows: dict[NodeId, _Window] = {}
        self._assemblies = _Assemblies()
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_MESSAGE_BYTES)

    @property
    def dropped_assemblies(self) -> int:
        """Messages given up because their chunks stayed away too long."""
        return self._assemblies.dropped

    @property
    def assembly_bytes(self) -> int:
        """Bytes of chunks waiting for the rest of their message."""
        return self._assemblies.total_bytes

    def open(self, sender: NodeId, topic: str, envelope: bytes) -> bytes | None:
        """Return the message that ``envelope`` completes, or None while chunks are missing.

        Raises ``UnknownSenderError``, ``TooLargeError``, ``DecodeError``, ``ReplayedError`` or ``WrongSignatureError``.
        Nothing is remembered of an envelope before its signature has been checked.
        """
        key = self._keys.get(sender)
        if key is None:
            raise UnknownSenderError(f"sender: got {sender[:80]!r}, expected a node of this network")
        part = _decode_part(envelope)
        window = self._windows.get(sender)
        if window is not None:
            window.verify_new(part.incarnation, part.sequence)
        try:
            key.verify(part.signature, _compute_signed_bytes(self._network, topic, part.header, part.payload))
        except InvalidSignature:
            raise WrongSignatureError(f"envelope of {sender}: the signature does not verify") from None
        if window is None:
            window = self._windows[sender] = _Window(part.incarnation)
        if window.mark(part.incarnation, part.sequence):
            self._assemblies.forget(sender)
        if part.parts == 1:
            return self._decompress(part, part.payload)
        payload = self._assemblies.add(sender, topic, part)
        return None if payload is None else self._decompress(part, payload)

    def _decompress(self, part: "_Part", payload: bytes | memoryview) -> bytes:
        if not part.is_compressed:
            if len(payload) != part.length:
                raise DecodeError(f"envelope: got {len(payload)} bytes, expected {part.length}")
            return bytes(payload)
        try:
            # The frame's own header says how much it would allocate: it must say what the signed header says.
            frame = zstandard.get_frame_parameters(payload)
            if frame.content_size != part.length:
                raise DecodeError(f"zstd frame: got {frame.content_size} bytes, expected {part.length}")
            return self._decompressor.decompress(payload, max_output_size=part.length, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise DecodeError(f"zstd frame: {error}") from error


class _Part(msgspec.Struct, frozen=True):
    header: bytes
    is_compressed: bool
    incarnation: int
    sequence: int
    part: int
    parts: int
    length: int
    signature: bytes
    payload: memoryview

    @property
    def group(self) -> int:
        """Sequence of the first chunk: the same for all chunks of one message."""
        return self.sequence - self.part


class _Window:
    """The sequences seen of one sender: a bit each for the last ``REPLAY_WINDOW`` up to the highest."""

    __slots__ = ("_highest", "_incarnation", "_seen")

    def __init__(self, incarnation: int) -> None:
        self._incarnation = incarnation
        self._highest = -1
        self._seen = 0

    def verify_new(self, incarnation: int, sequence: int) -> None:
        if incarnation > self._incarnation or (incarnation == self._incarnation and sequence > self._highest):
            return
        if incarnation < self._incarnation:
            raise ReplayedError(
                f"envelope: got incarnation {incarnation}, expected {self._incarnation} or later"
            )
        age = self._highest - sequence
        if age >= REPLAY_WINDOW or self._seen >> age & 1:
            raise ReplayedError(f"envelope: sequence {sequence} was seen, or is older than the window")

    def mark(self, incarnation: int, sequence: int) -> bool:
        """Remember ``sequence``; tell whether a new incarnation began."""
        begins = incarnation > self._incarnation
        if begins:
            self._incarnation, self._highest, self._seen = incarnation, -1, 0
        ahead = sequence - self._highest
        if ahead > 0:
            # A jump wider than the window clears it; shifting by it would allocate a number that long.
            self._seen = (self._seen << ahead & _WINDOW_MASK | 1) if ahead < REPLAY_WINDOW else 1
            self._highest = sequence
        else:
            self._seen |= 1 << -ahead
        return begins


class _Assembly:
    __slots__ = ("chunks", "size", "topic")

    def __init__(self, topic: str, parts: int) -> None:
        self.topic = topic
        self.chunks: list[memoryview | None] = [None] * parts
        self.size = 0


class _Assemblies:
    """Chunks waiting for the rest of their message; the oldest are given up when a bound is reached."""

    def __init__(self) -> None:
        self._by_sender: dict[NodeId, OrderedDict[int, _Assembly]] = {}
        self._bytes_of: dict[NodeId, int] = {}
        self.total_bytes = 0
        self.dropped = 0

    def add(self, sender: NodeId, topic: str, part: _Part) -> bytes | None:
        waiting = self._by_sender.setdefault(sender, OrderedDict())
        assembly = waiting.get(part.group)
        if assembly is None:
            while len(waiting) >= MAX_ASSEMBLIES_PER_SENDER:
                self._drop(sender, next(iter(waiting)))
            assembly = waiting[part.group] = _Assembly(topic, part.parts)
        if (
            assembly.topic != topic
            or len(assembly.chunks) != part.parts
            or assembly.chunks[part.part] is not None
        ):
            raise DecodeError(f"envelope of {sender}: the chunk does not fit the message it belongs to")
        assembly.chunks[part.part] = part.payload
        assembly.size += len(part.payload)
        self._count(sender, len(part.payload))
        if None not in assembly.chunks:
            self._remove(sender, part.group)
            return b"".join(chunk for chunk in assembly.chunks if chunk is not None)
        self._keep_bounds(sender, part.group)
        return None

    def forget(self, sender: NodeId) -> None:
        """Give up all chunks of ``sender``: its process was restarted and will not send the rest."""
        for group in list(self._by_sender.get(sender, ())):
            self._drop(sender, group)

    def _keep_bounds(self, sender: NodeId, latest: int) -> None:
        while self._bytes_of[sender] > MAX_ASSEMBLY_BYTES_PER_SENDER:
            oldest = next(iter(self._by_sender[sender]))
            self._drop(sender, oldest)
            if oldest == latest:
                return
        # One flooding sender must not push out the chunks of the others: who holds most gives up first.
        while self.total_bytes > MAX_ASSEMBLY_BYTES:
            greediest = max(self._bytes_of, key=lambda node: (self._bytes_of[node], node))
            self._drop(greediest, next(iter(self._by_sender[greediest])))

    def _drop(self, sender: NodeId, group: int) -> None:
        self._remove(sender, group)
        self.dropped += 1

    def _remove(self, sender: NodeId, group: int) -> None:
        assembly = self._by_sender[sender].pop(group)
        self._count(sender, -assembly.size)

    def _count(self, sender: NodeId, change: int) -> None:
        self._bytes_of[sender] = self._bytes_of.get(sender, 0) + change
        self.total_bytes += change


def _compress(message: bytes) -> tuple[int, bytes]:
    if len(message) <= COMPRESS_ABOVE_BYTES:
        return 0, message
    packed = zstandard.ZstdCompressor(level=COMPRESSION_LEVEL, write_content_size=True).compress(message)
    return (_FLAG_ZSTD, packed) if len(packed) < len(message) else (0, message)


def _decode_part(envelope: bytes) -> _Part:
    if len(envelope) > MAX_ENVELOPE_BYTES:
        raise TooLargeError(f"envelope: got {len(envelope)} bytes, expected at most {MAX_ENVELOPE_BYTES}")
    if len(envelope) < HEADER_BYTES:
        raise DecodeError(f"envelope: got {len(envelope)} bytes, expected at least {HEADER_BYTES}")
    version, flags, incarnation, sequence, part, parts, length = _HEADER.unpack_from(envelope)
    if version != _VERSION or flags & ~_FLAG_ZSTD:
        raise DecodeError(
            f"envelope: got version {version} with flags {flags:#x}, expected version {_VERSION}"
        )
    if length > MAX_MESSAGE_BYTES:
        raise TooLargeError(f"message: got {length} bytes, expected at most {MAX_MESSAGE_BYTES}")
    if not 1 <= parts <= MAX_PARTS or part >= parts or part > sequence:
        raise DecodeError(f"envelope: got part {part} of {parts} with sequence {sequence}")
    size = len(envelope) - HEADER_BYTES
    if parts > 1 and (size == 0 or (part < parts - 1 and size != CHUNK_BYTES)):
        raise DecodeError(f"chunk {part} of {parts}: got {size} bytes, expected {CHUNK_BYTES}")
    return _Part(
        header=envelope[: _HEADER.size],
        is_compressed=bool(flags & _FLAG_ZSTD),
        incarnation=incarnation,
        sequence=sequence,
        part=part,
        parts=parts,
        length=length,
        signature=envelope[_HEADER.size : HEADER_BYTES],
        payload=memoryview(envelope)[HEADER_BYTES:],
    )


def _compute_signed_bytes(network: Hash32, topic: str, header: bytes, payload: bytes | memoryview) -> bytes:
    # The payload enters as a digest, because Ed25519 reads its message twice; by SHA-256, which processors have in hardware.
    digest = hashlib.sha256(payload).digest()
    place = topic.encode()
    return b"".join((TAG_ENVELOPE, network, len(place).to_bytes(2, "big"), place, header, digest))
