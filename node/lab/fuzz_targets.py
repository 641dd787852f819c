"""What is fuzzed: every decoder and every place where bytes of others come in, each with the errors that it may raise.

A target is a function of bytes. It may return, or raise one of its errors; anything else is a finding, and so is what takes
longer than a second or makes the process grow. Targets with a state begin anew after ``RENEW_EVERY`` inputs.
"""

import asyncio
import os
import tempfile
from collections.abc import Callable, Coroutine
from functools import cache
from pathlib import Path
from typing import Any, Final, cast

import msgspec

from crosslink.beacon import BeaconMachine
from crosslink.validity import check_submission
from node.bus.envelope import Opener
from node.bus.topics import decode_topic, verify_topic_of
from node.config import resolve_options
from node.control import answer_line
from node.executor import decode_body
from node.lab import fuzz_seeds as seeds
from node.lab.fuzz_sealed import seal_recipe
from node.refusal import ParamError, build_server_error
from node.rpc.methods import MethodTable, Param
from node.rpc.protocol import Dispatcher, RpcLimits
from node.sim.mock_crypto import MockCrypto
from node.sim.scenario import build_sim_alloc, build_sim_genesis
from node.storage.frames import CorruptFileError, encode_frame, encode_header, scan, verify_header
from shards.replica import ShardReplica
from shardyard import _native
from shardyard.blocks import Block, CertifiedHeader, FinalityProof, Header, Justification
from shardyard.codec import decode, encode
from shardyard.consensus.engine import EngineConfig, EngineMessage, NoBlockSource
from shardyard.consensus.evidence import VoteEvidence, verify_evidence
from shardyard.consensus.proofs import verify_finality_proof
from shardyard.consensus.simplex import SimplexEngine
from shardyard.consensus.votes import Certificate, Vote, verify_certificate
from shardyard.crosslinks import BeaconBody, Bundle, Crosslink, CrosslinkSubmission
from shardyard.effects import Record
from shardyard.emission import verify_outbox
from shardyard.errors import ConfigError, DecodeError, RemoteProtocolError, ShardyardError
from shardyard.events import MessageReceived, Started
from shardyard.ids import BEACON, Hash32, NodeId, ShardId, compute_chain_id
from shardyard.keys import NodeKey
from shardyard.messages import MAX_MESSAGE_BYTES, SubmitCrosslink, decode_message, encode_message
from shardyard.receipts import decode_receipt
from shardyard.validators import ValidatorSet

CRYPTO: Final = MockCrypto()
SHARDS: Final = 2
SHARD: Final = ShardId(0)
PEER: Final = NodeId("shard-0-1")
NOW_MS: Final = 1_700_000_100_000
RENEW_EVERY: Final = 2_000
TOPIC: Final = "sy/dev/node/shard-0-1/shard-0/vote"
NETWORK: Final = Hash32(b"\x66" * 32)
KEY: Final = NodeKey(b"\x07" * 32)
OWNER: Final = b"\x0f" * 32
MAX_RECORD_BYTES: Final = 64 * 1024 * 1024
MAX_BODY_BYTES: Final = 8 * 1024 * 1024


class Target(msgspec.Struct, frozen=True):
    """One way for bytes to come in. ``build`` returns the function, with a fresh state behind it where there is one."""

    name: str
    what: str
    build: Callable[[], Callable[[bytes], object]]
    errors: tuple[type[Exception], ...]
    list_seeds: Callable[[], list[bytes]]
    max_bytes: int = 4096


class BrokenPromiseError(AssertionError):
    """A decoder took what it does not give back."""


def _require(condition: object, words: str) -> None:
    if not condition:
        raise BrokenPromiseError(words)


# Decoders of the kernel

STRUCTS: Final[tuple[type, ...]] = (
    Block,
    Header,
    Justification,
    CertifiedHeader,
    FinalityProof,
    Certificate,
    Vote,
    VoteEvidence,
    Crosslink,
    CrosslinkSubmission,
    Bundle,
    BeaconBody,
    ValidatorSet,
    cast("type", Record),
)


def decode_struct(data: bytes) -> None:
    """Decode as the kind that the first byte says; what is taken has no other encoding, and a hash."""
    if data:
        value: object = decode(data[1:], STRUCTS[data[0] % len(STRUCTS)], max_bytes=MAX_RECORD_BYTES)
        _require(encode(value) == data[1:], "a value with two encodings was taken")
        found = getattr(value, "hash", None)
        _require(found is None or len(found) == 32, "a hash of another length")


def decode_and_encode_message(data: bytes) -> None:
    """Decode a message; what is taken has no other encoding."""
    _require(encode_message(decode_message(data)) == data, "a message with two encodings was taken")


def verify_proof(data: bytes) -> None:
    """Verify a finality proof of the shard."""
    proof = decode(data, FinalityProof, max_bytes=MAX_MESSAGE_BYTES)
    genesis = build_sim_genesis(SHARDS, 4)
    verify_finality_proof(CRYPTO, genesis.get_domain(SHARD), genesis.committees[SHARD], proof)


def verify_certificate_and_evidence(data: bytes) -> None:
    """Verify a certificate, or evidence, whichever it is."""
    genesis = build_sim_genesis(SHARDS, 4)
    domain, committee = genesis.get_domain(SHARD), genesis.committees[SHARD]
    try:
        evidence = decode(data, VoteEvidence, max_bytes=4096)
    except DecodeError:
        verify_certificate(CRYPTO, domain, committee, decode(data, Certificate, max_bytes=4096))
    else:
        verify_evidence(CRYPTO, domain, committee, evidence)


def verify_receipts(data: bytes) -> None:
    """Judge an outbox of one receipt."""
    receipt = decode_receipt(data)
    preset = build_sim_genesis(SHARDS, 4).preset
    verify_outbox([data], shard=receipt.src, shard_count=SHARDS, preset=preset)


def verify_crosslink(data: bytes) -> None:
    """Judge a crosslink with its bodies."""
    submission = decode(data, CrosslinkSubmission, max_bytes=MAX_MESSAGE_BYTES)
    check_submission(build_sim_genesis(SHARDS, 4), CRYPTO, submission)


# Machines: nothing that a peer sends may raise


def build_engine() -> Callable[[bytes], object]:
    """A finality engine with one local key, in the middle of nothing."""
    genesis = build_sim_genesis(SHARDS, 4)
    config = EngineConfig(
        shard=SHARD,
        domain=genesis.get_domain(SHARD),
        committee=genesis.committees[SHARD],
        local_validators=(0,),
        genesis=genesis.build_shard_block(SHARD),
        block_time_ms=1000,
        delta_ms=500,
    )
    engine = SimplexEngine(config, CRYPTO, NoBlockSource())
    engine.start(NOW_MS)

    def receive(data: bytes) -> None:
        message = decode_message(data)
        if isinstance(message, EngineMessage):
            _step(lambda: engine.on_message(PEER, message, NOW_MS))

    return receive


def build_replica() -> Callable[[bytes], object]:
    """A shard replica that has just started."""
    replica = ShardReplica(
        build_sim_genesis(SHARDS, 4), SHARD, CRYPTO, (0,), NoBlockSource(), build_engine=SimplexEngine
    )
    replica.step(Started(), NOW_MS)
    return lambda data: _hear(replica, data)


def build_beacon() -> Callable[[bytes], object]:
    """A beacon replica that has just started."""
    beacon = BeaconMachine(build_sim_genesis(SHARDS, 4), CRYPTO, (0,), NoBlockSource())
    beacon.step(Started(), NOW_MS)
    return lambda data: _hear(beacon, data)


def _hear(machine: ShardReplica | BeaconMachine, data: bytes) -> None:
    """The first byte says on whose topic the message came."""
    message = decode_message(data[1:])  # what comes out of here is the edge's to refuse
    chain = (SHARD, ShardId(1), BEACON)[data[0] % 3]
    _step(lambda: machine.step(MessageReceived(PEER, chain, message), NOW_MS))


def _step(act: Callable[[], object]) -> None:
    """Machines refuse by notice: an error that comes out of one is a finding, whatever its type."""
    try:
        act()
    except Exception as error:
        raise BrokenPromiseError(f"a machine raised {type(error).__name__}: {error}") from error


# The bus


def build_opener() -> Callable[[bytes], object]:
    """The receiver of envelopes, given raw bytes."""
    opener = Opener(NETWORK, {PEER: KEY.public_key})
    return lambda data: opener.open(PEER, TOPIC, data)


def build_sealed() -> Callable[[bytes], object]:
    """The receiver of envelopes whose signature verifies, whatever else they say."""
    opener = Opener(NETWORK, {PEER: KEY.public_key})
    return lambda data: opener.open(PEER, TOPIC, seal_recipe(NETWORK, TOPIC, KEY, data))


def build_topic() -> Callable[[bytes], object]:
    """Topics, each taken apart and compared with a message."""
    messages = seeds.list_messages()

    def read(data: bytes) -> None:
        topic = decode_topic(data.decode("utf-8", "surrogateescape"))
        verify_topic_of(topic, messages[len(data) % len(messages)])

    return read


# The shell


@cache
def _get_loop() -> asyncio.AbstractEventLoop:
    return asyncio.new_event_loop()


def _wait(work: Coroutine[Any, Any, Any]) -> Any:
    return _get_loop().run_until_complete(work)


async def _handle(method: str, params: dict[str, Any]) -> Any:
    if method == "kill":
        raise ShardyardError("no")
    return [method, sorted(params)]


def read_control_line(data: bytes) -> None:
    """Answer a line of the control socket; the answer is JSON in any case."""
    answer = msgspec.json.decode(_wait(answer_line(_handle, data)))
    _require(set(answer) in ({"result"}, {"error"}), "an answer that is none")


RPC_METHODS: Final = MethodTable()


def _read_number(value: Any) -> int:
    if not isinstance(value, int):
        raise ParamError("not a number")
    return value


@RPC_METHODS.method("echo", Param(_read_number), Param(_read_number, 7))
def _echo(_: object, first: int, second: int) -> list[int]:
    return [first, second]


@RPC_METHODS.method("refuse")
def _refuse(_: object) -> None:
    raise build_server_error("no")


async def _submit(_: object, submission: _native.Submission) -> bytes:
    return submission.encode_refusal(-32000, "no")


def build_rpc() -> Callable[[bytes], object]:
    """JSON-RPC bodies, with the native reader of transactions in front: an answer is JSON and no internal error."""
    dispatcher = Dispatcher(RPC_METHODS, RpcLimits(), _submit)

    def answer(data: bytes) -> None:
        text = _wait(dispatcher.answer(data, None))
        if text is not None:
            found = msgspec.json.decode(text)
            for item in found if isinstance(found, list) else [found]:
                _require(item.get("error", {}).get("code") != -32603, "an internal error")

    return answer


@cache
def _get_core() -> _native.Core:
    core = _native.Core(chain_id=compute_chain_id(SHARD), shard=SHARD)
    core.init_genesis(build_sim_alloc(SHARDS))
    core.set_base(build_sim_genesis(SHARDS, 4).build_shard_block(SHARD).hash, 0)
    return core


def read_native_submission(data: bytes) -> None:
    """Read a body of nothing but transactions natively, and what is in it."""
    submission = _native.read_submission(data, 1000)
    if submission is not None:
        batch = _get_core().prepare_submissions([submission])
        _require(len(batch) == len(submission), "transactions got lost")
        submission.encode_request(0, len(submission))


def prepare_transactions(data: bytes) -> None:
    """Read one transaction, and two that share the bytes."""
    half = len(data) // 2
    batch = _get_core().prepare(data, (0, half, len(data)))
    for index in range(len(batch)):
        if batch.error(index) is None:
            batch.describe(index)
    _require(len(batch.hashes) == 32 * len(batch), "hashes got lost")


def read_config(data: bytes) -> None:
    """Read a configuration file."""
    path = _get_file()
    path.write_bytes(data)
    resolve_options({}, {}, path)


@cache
def _get_file() -> Path:
    return Path(tempfile.mkdtemp(prefix="shardyard-fuzz-")) / "network.toml"


@cache
def _get_descriptor() -> int:
    return os.memfd_create("fuzz")


def scan_frames(data: bytes) -> None:
    """Scan a log whose content is given, behind a sound header or without it."""
    descriptor = _get_descriptor()
    image = encode_header(1, OWNER, 0) + data[1:] if data[:1] == b"\0" else data
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, image, 0)
    if verify_header(descriptor, 1, OWNER, 0, "fuzz"):
        list(scan(descriptor, 0))


def list_frame_seeds() -> list[bytes]:
    """Two frames behind a header, whole and torn."""
    head = encode_header(1, OWNER, 0)
    first = encode_frame(len(head), 0, 1, b"payload", label=b"label")
    second = encode_frame(len(head) + len(first), 0, 2, b"x" * 100)
    return [b"\0" + first + second, b"\0" + first + second[:-3], head + first, b""]


# Native readers


def read_native(data: bytes) -> None:
    """Hand bytes to the native readers of access lists, outcomes, diffs, snapshots, keys, signatures and proofs."""
    kind, rest = (data[0] % 6, data[1:]) if data else (0, b"")
    match kind:
        case 0:
            _native.decode_access_list(rest)
        case 1:
            _native.read_outcome_hashes(rest)
        case 2:
            _native.Core(chain_id=1, shard=0).apply_diff(bytes(32), 1, rest)
        case 3:
            _native.Core(chain_id=1, shard=0).restore([rest])
        case 4:
            _native.BlsKeySet([rest[:48]], [rest[48:144]]).verify(rest[144:145], rest, rest[145:])
        case _:
            _native.verify_merkle_proof(rest[:32], [(True, rest[32:64]), (False, rest[64:])], rest[:32])


def build_stateless(function: Callable[[bytes], object]) -> Callable[[], Callable[[bytes], object]]:
    """Return a builder of a function that has no state."""
    return lambda: function


def list_struct_seeds() -> list[bytes]:
    """Return a seed for every kind of struct that the run has."""
    found: list[tuple[object, type]] = [(block, Block) for block in seeds.list_blocks()]
    found += [(block.header, Header) for block in seeds.list_blocks()[:2]]
    found += [(block.justification, Justification) for block in seeds.list_blocks()[:2]]
    found += [(proof, FinalityProof) for proof in seeds.list_proofs()]
    found += [(pair, VoteEvidence) for pair in seeds.list_evidence()]
    found += [
        (record, cast("type", Record)) for kept in seeds.harvest().records.values() for record in kept[:2]
    ]
    return [
        bytes((STRUCTS.index(kind),)) + data
        for value, kind in found
        if len(data := encode(value)) <= seeds.MAX_SEED_BYTES
    ]


def list_message_seeds() -> list[bytes]:
    """Return encoded messages."""
    return seeds.encode_all(seeds.list_messages())


def list_machine_seeds() -> list[bytes]:
    """Return encoded messages behind the byte that says on which chain they came."""
    return [bytes((chain,)) + data for data in list_message_seeds() for chain in (0, 2)]


TARGETS: Final[tuple[Target, ...]] = (
    Target(
        "message",
        "messages of the bus, decoded",
        build_stateless(decode_and_encode_message),
        (RemoteProtocolError,),
        list_message_seeds,
    ),
    Target(
        "struct",
        "blocks, certificates, proofs, crosslinks, bundles, records of the block log",
        build_stateless(decode_struct),
        (RemoteProtocolError,),
        list_struct_seeds,
    ),
    Target(
        "proof",
        "finality proofs, verified",
        build_stateless(verify_proof),
        (RemoteProtocolError,),
        lambda: seeds.encode_all(seeds.list_proofs()),
    ),
    Target(
        "certificate",
        "certificates and evidence, verified",
        build_stateless(verify_certificate_and_evidence),
        (RemoteProtocolError,),
        lambda: seeds.encode_all(
            [*seeds.list_evidence(), *(proof.finalization for proof in seeds.list_proofs()[:2])]
        ),
    ),
    Target(
        "receipt",
        "receipts, decoded and judged",
        build_stateless(verify_receipts),
        (RemoteProtocolError,),
        seeds.list_receipts,
    ),
    Target(
        "submission",
        "crosslinks with their bodies, judged",
        build_stateless(verify_crosslink),
        (RemoteProtocolError,),
        lambda: seeds.encode_all(
            message.submission for message in seeds.list_messages() if isinstance(message, SubmitCrosslink)
        ),
        max_bytes=16_384,
    ),
    Target(
        "body",
        "bodies of shard blocks",
        build_stateless(lambda data: decode_body(data, MAX_BODY_BYTES)),
        (RemoteProtocolError,),
        lambda: [block.body for block in seeds.list_blocks()],
    ),
    Target(
        "engine", "what peers send to a finality engine", build_engine, (DecodeError,), list_message_seeds
    ),
    Target("replica", "what peers send to a shard", build_replica, (DecodeError,), list_machine_seeds),
    Target("beacon", "what peers send to the beacon", build_beacon, (DecodeError,), list_machine_seeds),
    Target(
        "envelope",
        "envelopes of the bus",
        build_opener,
        (RemoteProtocolError,),
        lambda: seeds.list_envelopes(NETWORK, TOPIC, KEY),
    ),
    Target(
        "sealed",
        "envelopes whose signature verifies",
        build_sealed,
        (RemoteProtocolError,),
        seeds.list_recipes,
    ),
    Target("topic", "MQTT topics", build_topic, (DecodeError,), lambda: list(seeds.TOPICS), 256),
    Target(
        "control",
        "lines of the control socket",
        build_stateless(read_control_line),
        (),
        lambda: list(seeds.CONTROL_LINES),
    ),
    Target("rpc", "JSON-RPC bodies", build_rpc, (), seeds.list_rpc_bodies),
    Target(
        "ingress",
        "JSON-RPC bodies of nothing but transactions, read natively",
        build_stateless(read_native_submission),
        (),
        seeds.list_rpc_bodies,
    ),
    Target(
        "transaction",
        "signed transactions, read natively",
        build_stateless(prepare_transactions),
        (),
        seeds.list_transactions,
        1024,
    ),
    Target(
        "config",
        "configuration files",
        build_stateless(read_config),
        (ConfigError,),
        lambda: list(seeds.CONFIG_FILES),
        1024,
    ),
    Target("frames", "files of frames", build_stateless(scan_frames), (CorruptFileError,), list_frame_seeds),
    Target(
        "native",
        "access lists, outcomes, diffs, snapshots, keys and signatures, read natively",
        build_stateless(read_native),
        (_native.CoreError, _native.BlsError),
        lambda: [bytes((kind,)) + data for kind in range(6) for data in (*seeds.ACCESS_LISTS, bytes(160))],
    ),
)


def get_target(name: str) -> Target:
    """Return a target by its name; raises ``ConfigError`` for another."""
    for target in TARGETS:
        if target.name == name:
            return target
    raise ConfigError(
        f"target: got {name!r}, expected one of {', '.join(target.name for target in TARGETS)}; try: --only message"
    )
