"""Finality proofs as files: what a light client keeps, hands on, and verifies with nothing but a genesis.

A file is one JSON object (docs/protocol.md, "Proof files")::

    format    "shardyard/finality-proof/1"
    chain     "beacon" or "shard-N"
    height    of the proven block
    hash      of the proven block, 0x and 64 digits
    network   hash of the genesis, 0x and 64 digits
    genesis   the genesis in canonical bytes, 0x and hex
    proof     the ``FinalityProof`` (A2) in canonical bytes, 0x and hex

Only ``proof`` and ``genesis`` are used to verify; the rest says what the file claims, and must be what they give. A genesis
in the file names its own committees: whoever trusts nobody compares its hash with one that they know.
"""

import re
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from shardyard import _native
from shardyard.blocks import FinalityProof, Header
from shardyard.codec import decode, encode
from shardyard.consensus.proofs import verify_finality_proof
from shardyard.errors import DecodeError, InvalidProofError, ShardyardError
from shardyard.genesis import Genesis
from shardyard.ids import BEACON, Hash32, ShardId, describe_shard
from shardyard.keys import BlsCrypto
from shardyard.messages import MAX_MESSAGE_BYTES
from shardyard.quorum import decode_bitmap, sum_stake

T = TypeVar("T")

FORMAT: Final = "shardyard/finality-proof/1"
MAX_GENESIS_BYTES: Final = 16 * 1024 * 1024
MAX_FILE_BYTES: Final = 2 * (MAX_MESSAGE_BYTES + MAX_GENESIS_BYTES) + 4096
_SHARD: Final = re.compile(r"shard-(0|[1-9][0-9]{0,9})")


class UnreadableProofError(ShardyardError):
    """A file is no proof file: it cannot be judged at all."""


class ProofDocument(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A proof file as it stands on disk."""

    format: str
    chain: str
    height: int
    hash: str
    network: str
    genesis: str
    proof: str


class Proven(msgspec.Struct, frozen=True):
    """What a proof file proves, and by how much."""

    chain: ShardId
    header: Header
    tip: Header
    signers: int
    """Validators that finalised the tip."""
    committee: int
    stake: int
    total_stake: int


def build_document(genesis: Genesis, header: Header, proof: FinalityProof) -> ProofDocument:
    """Return the file that proves ``header`` by ``proof``."""
    return ProofDocument(
        format=FORMAT,
        chain=describe_shard(header.shard),
        height=header.height,
        hash="0x" + header.hash.hex(),
        network="0x" + genesis.network.hex(),
        genesis="0x" + encode(genesis).hex(),
        proof="0x" + encode(proof).hex(),
    )


def write_document(path: Path, document: ProofDocument) -> None:
    """Write a proof file."""
    path.write_bytes(msgspec.json.format(msgspec.json.encode(document), indent=1) + b"\n")


def read_document(path: Path) -> ProofDocument:
    """Return the proof file at ``path``; raises ``UnreadableProofError`` for anything else, ``OSError`` for no file."""
    with path.open("rb") as file:
        data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise UnreadableProofError(f"{path}: got more than {MAX_FILE_BYTES} bytes, expected a proof file")
    try:
        document = msgspec.json.decode(data, type=ProofDocument)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise UnreadableProofError(
            f"{path}: got {len(data)} bytes that are no proof file ({error}), expected JSON with format {FORMAT}"
        ) from error
    if document.format != FORMAT:
        raise UnreadableProofError(f"{path}: got format {document.format[:60]!r}, expected {FORMAT}")
    return document


def read_genesis_file(path: Path) -> Genesis:
    """Return the genesis in ``path`` (``genesis.bin`` of a network); raises ``UnreadableProofError`` or ``OSError``."""
    with path.open("rb") as file:
        data = file.read(MAX_GENESIS_BYTES + 1)
    try:
        return decode(data, Genesis, max_bytes=MAX_GENESIS_BYTES)
    except DecodeError as error:
        raise UnreadableProofError(
            f"{path}: got no genesis ({error}), expected a network's genesis.bin"
        ) from error


def verify_document(document: ProofDocument, genesis: Genesis | None = None) -> Proven:
    """Verify a proof file by ``genesis``, or by the one in the file.

    Raises ``UnreadableProofError`` when its parts are not what they should be, ``InvalidProofError`` when they prove nothing.
    """
    embedded = _decode(document.genesis, Genesis, "genesis", MAX_GENESIS_BYTES)
    proof = _decode(document.proof, FinalityProof, "proof", MAX_MESSAGE_BYTES)
    chain = _parse_chain(document.chain)
    claimed = _parse_hash(document.network, "network")
    if embedded.network != claimed:
        raise InvalidProofError(
            f"genesis: the one in the file has hash 0x{embedded.network.hex()}, the file says {document.network}"
        )
    if genesis is not None and genesis.network != claimed:
        raise InvalidProofError(
            f"genesis: got a proof of network {document.network}, expected 0x{genesis.network.hex()}"
        )
    trusted = genesis or embedded
    if chain not in trusted.committees:
        raise InvalidProofError(
            f"chain: got {document.chain}, expected beacon or shard-0 to shard-{trusted.shard_count - 1}"
        )
    committee = trusted.committees[chain]
    if not committee.validators:
        raise InvalidProofError(
            f"genesis: got no validators of {document.chain}, expected one at least, who proves its blocks; "
            "try: --genesis with one that you trust"
        )
    try:
        header = verify_finality_proof(BlsCrypto(), trusted.get_domain(chain), committee, proof)
    except _native.BlsError as error:
        raise InvalidProofError(
            f"genesis: got keys of {document.chain} that do not count ({error}), expected each with its proof of "
            "possession; try: --genesis with one that you trust"
        ) from error
    if header.height != document.height or header.hash != _parse_hash(document.hash, "hash"):
        raise InvalidProofError(
            f"block: the file says {document.hash} at height {document.height}, "
            f"its proof is of 0x{header.hash.hex()} at height {header.height}"
        )
    signers = decode_bitmap(proof.finalization.bitmap, len(committee))
    return Proven(
        chain=chain,
        header=header,
        tip=proof.path[-1].header,
        signers=len(signers),
        committee=len(committee),
        stake=sum_stake(signers, committee.stakes),
        total_stake=committee.total_stake,
    )


def _decode(text: str, kind: type[T], name: str, max_bytes: int) -> T:
    try:
        return decode(bytes.fromhex(text.removeprefix("0x")), kind, max_bytes=max_bytes)
    except (ValueError, DecodeError) as error:
        raise UnreadableProofError(
            f"{name}: got {len(text)} characters that are no {kind.__name__} ({error}); the file is damaged or cut"
        ) from error


def _parse_hash(text: str, name: str) -> Hash32:
    if re.fullmatch(r"0x[0-9a-f]{64}", text) is None:
        raise UnreadableProofError(f"{name}: got {text[:80]!r}, expected 0x and 64 hexadecimal digits")
    return Hash32(bytes.fromhex(text[2:]))


def _parse_chain(text: str) -> ShardId:
    if text == describe_shard(BEACON):
        return BEACON
    found = _SHARD.fullmatch(text)
    if found is None:
        raise UnreadableProofError(f"chain: got {text[:60]!r}, expected beacon or shard-N")
    return ShardId(int(found[1]))
