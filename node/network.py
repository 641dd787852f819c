"""A named network on disk: its genesis, its keys, who is who on the bus, and where every process keeps its data.

Layout below ``<home>/<name>``::

    network.json       what the network is (format version, options, chain of genesis)
    genesis.bin        canonical bytes of the genesis
    alloc.json         the state every shard starts from
    directory.json     node id -> Ed25519 public key: whom a node believes
    keys/              0700: validators.json, <node>.key, broker.json (all 0600)
    data/<node>/       block log, signer log, mempool journal, index
    logs/<node>.log
    endpoints.json     ports and URLs, rewritten at every start
    launcher.lock      held while a launcher lives; beside it launcher.run names the folder of its control sockets

The parameters of an existing network never change: opening it with others is refused with the two ways out.
"""

import contextlib
import hashlib
import json
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec

from node.bus.access import OBSERVER, create_passwords
from node.config import Options
from node.genesis_alloc import build_alloc, encode_alloc, get_dev_balances
from shardyard import _native
from shardyard.codec import decode, encode
from shardyard.errors import ConfigError, DecodeError
from shardyard.genesis import Genesis, ShardGenesis
from shardyard.ids import BEACON, Address, Hash32, NodeId, ShardId, compute_chain_id
from shardyard.keys import NodeKey
from shardyard.preset import Preset, get_preset
from shardyard.validators import Validator

FORMAT_VERSION = 3
STAKE_WEI = 32 * 10**18
MAX_GENESIS_BYTES = 16 * 1024 * 1024
MAX_WEI = (1 << 256) - 1
MAX_SOCKET_PATH_BYTES = 103
"""What every system takes as the name of a Unix socket."""
_LONGEST_SOCKET = "shard-255-31.sock"
_RUN_RECORD = "launcher.run"
_MAX_AMOUNT_CHARACTERS = 100
"""More than any amount needs; beyond some thousand digits the interpreter refuses to count."""
_FIXED_OPTIONS = (
    "shards",
    "nodes_per_shard",
    "followers",
    "validators",
    "preset",
    "block_time_ms",
    "seed",
    "balance",
)
"""Options that are part of what a network is; the others may differ from start to start."""


class NetworkMissingError(ConfigError):
    """There is no such network, or it has never been started."""


class NetworkUnreadableError(ConfigError):
    """Its files are damaged, or of another format. A process that meets it refuses to start, as for any bad configuration."""


class _Endpoints(msgspec.Struct):
    """What ``endpoints.json`` has at least."""

    shards: list[dict[str, Any]]


class Network(msgspec.Struct, frozen=True):
    """An opened network."""

    root: Path
    options: Options
    genesis: Genesis
    directory: dict[NodeId, bytes]

    @property
    def nodes(self) -> list[NodeId]:
        """Every consensus node: the beacon, then the replicas of each shard."""
        return list_nodes(self.options)

    @property
    def run_dir(self) -> Path:
        """Where the control sockets are: where the launcher says, for another shell may have another ``TMPDIR``.

        While no launcher has said it, where one that started here and now would put them.
        """
        with contextlib.suppress(OSError):
            found = Path((self.root / _RUN_RECORD).read_text(encoding="utf-8", errors="surrogateescape"))
            if found.is_absolute() and found.name == compute_run_dir(self.root).name:
                return found  # of a copied network it would be where the original has them
        return compute_run_dir(self.root)

    def record_run_dir(self) -> Path:
        """Note and return where the control sockets are from now on; for the launcher, which holds the lock."""
        found = compute_run_dir(self.root)
        write_text(self.root / _RUN_RECORD, str(found))
        return found

    def forget_run_dir(self) -> None:
        """Take back what ``record_run_dir`` noted: nobody answers there any more."""
        (self.root / _RUN_RECORD).unlink(missing_ok=True)

    @property
    def witness_dir(self) -> Path:
        """Where it stands, beside the keys, how far the signers' records went."""
        return self.root / "keys" / "witness"

    def get_control_path(self, node: str) -> Path:
        """Return the control socket of ``node`` or of ``launcher``."""
        return self.run_dir / f"{node}.sock"

    def get_data_dir(self, node: str) -> Path:
        """Return the data directory of ``node``."""
        return self.root / "data" / node

    def get_log_path(self, node: str) -> Path:
        """Return the log file of ``node``."""
        return self.root / "logs" / f"{node}.log"

    def read_alloc(self) -> bytes:
        """Return the first state of every shard, as ``Core.init_genesis`` takes it."""
        return (self.root / "alloc.json").read_bytes()

    def read_node_key(self, node: str) -> NodeKey:
        """Return the bus identity of ``node``; raises ``NetworkUnreadableError`` when its file is damaged or missing."""
        name, expected = f"{node}.key", "64 hexadecimal digits"
        text = self._read_key_file(name, expected).strip()
        try:
            key = NodeKey(bytes.fromhex(text))
        except ValueError:
            raise self._refuse_key_file(name, _describe_text(text), expected) from None
        if key.public_key != self.directory.get(NodeId(node)):
            raise self._refuse_key_file(name, "another key", "the one of directory.json")
        return key

    def read_validator_secrets(self, chain: ShardId, positions: Iterable[int]) -> dict[int, bytes]:
        """Return the BLS secrets of the validators at ``positions`` in the committee of ``chain``.

        A follower has no positions, and does not so much as open the file. Raises ``NetworkUnreadableError`` when it is damaged
        or missing.
        """
        wanted = tuple(positions)
        if not wanted:
            return {}
        name, expected = "validators.json", f"{len(self.genesis.validators)} secrets of 64 hexadecimal digits"
        text = self._read_key_file(name, expected)
        first = 0 if chain == BEACON else chain * self.genesis.preset.validators_per_shard
        try:
            keys = msgspec.json.decode(text, type=list[str])
            found = {position: bytes.fromhex(keys[first + position]) for position in wanted}
        except (msgspec.MsgspecError, ValueError, IndexError):
            raise self._refuse_key_file(name, _describe_text(text), expected) from None
        for position, secret in found.items():
            if not _is_secret_of(secret, self.genesis.validators[first + position]):
                raise self._refuse_key_file(
                    name,
                    f"another secret of validator {first + position}",
                    "the one whose key is in genesis.bin",
                )
        return found

    def read_broker_passwords(self) -> dict[str, str]:
        """Return the broker password of every node and of the observer.

        Raises ``NetworkUnreadableError`` when their file is damaged or missing.
        """
        name, expected = "broker.json", "a password for every node and the observer"
        text = self._read_key_file(name, expected)
        try:
            passwords = msgspec.json.decode(text, type=dict[str, str])
        except msgspec.MsgspecError:
            raise self._refuse_key_file(name, _describe_text(text), expected) from None
        if missing := {*self.directory, OBSERVER} - passwords.keys():
            raise self._refuse_key_file(name, f"none for {', '.join(sorted(missing))}", expected)
        return passwords

    def _read_key_file(self, name: str, expected: str) -> str:
        try:
            return (self.root / "keys" / name).read_text(encoding="utf-8")
        except FileNotFoundError:
            raise self._refuse_key_file(name, "no such file", expected) from None
        except UnicodeDecodeError:
            raise self._refuse_key_file(name, "bytes that are no text", expected) from None

    def _refuse_key_file(self, name: str, got: str, expected: str) -> NetworkUnreadableError:
        """Return what is said of a key file; none of what is in it, for logs are read by others."""
        return NetworkUnreadableError(
            f"{self.root / 'keys' / name}: got {got}, expected {expected}; try: put back a copy of it, "
            f"or shardyard up --fresh --name {self.root.name}, which makes new keys and begins a new chain"
        )

    def read_endpoints(self) -> dict[str, Any]:
        """Return the endpoints of the last start; raises ``ConfigError`` when the network never ran, or they are damaged."""
        path, name = self.root / "endpoints.json", self.options.name
        try:
            endpoints: dict[str, Any] = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
            msgspec.convert(endpoints, _Endpoints)
        except OSError as error:
            raise NetworkMissingError(
                f"network {name!r} has never been started; try: shardyard up --name {name}"
            ) from error
        except msgspec.MsgspecError as error:
            raise NetworkUnreadableError(
                f"{path}: got a damaged file ({error}), expected the endpoints of the last start; "
                f"try: shardyard down --name {name}, then shardyard up --name {name}, which writes it anew"
            ) from error
        return endpoints


def _describe_text(text: str) -> str:
    return f"{len(text)} characters that are something else" if text else "an empty file"


def _is_secret_of(secret: bytes, validator: Validator) -> bool:
    try:
        return bool(_native.bls_public_key(secret) == validator.public_key)
    except (_native.BlsError, ValueError):
        return False  # of another length, or no number that is a secret


def compute_run_dir(root: Path) -> Path:
    """Return where a launcher of the network at ``root`` that starts here puts its control sockets.

    That is short, because the name of a Unix socket has some hundred bytes; where ``TMPDIR`` is too long, below ``/tmp``.
    """
    digest = hashlib.sha256(str(root).encode()).hexdigest()[:12]
    below = Path(f"shardyard-{os.getuid()}") / digest
    found = Path(tempfile.gettempdir()) / below
    if len(os.fsencode(found / _LONGEST_SOCKET)) <= MAX_SOCKET_PATH_BYTES:
        return found
    return Path("/tmp") / below  # noqa: S108 - create_run_dir sees to it that nobody else may write there


def list_nodes(options: Options) -> list[NodeId]:
    """Return the node ids of a network with ``options``."""
    shards = [
        NodeId(f"shard-{shard}-{replica}")
        for shard in range(options.shards)
        for replica in range(options.replicas)
    ]
    return [NodeId("beacon-0"), *shards]


def parse_node(node: str) -> tuple[ShardId, int]:
    """Return chain and replica number of a node id such as ``shard-2-0`` or ``beacon-0``."""
    kind, _, rest = node.partition("-")
    if kind == "beacon":
        return BEACON, int(rest)
    shard, _, replica = rest.partition("-")
    return ShardId(int(shard)), int(replica)


def get_local_validators(network: Network, node: str) -> tuple[int, ...]:
    """Return the positions, within the committee of the node's chain, of the validators that ``node`` runs.

    Replica ``n`` of ``N`` activates the keys with position ≡ ``n`` mod ``N``; the beacon process runs them all, and the
    replicas from ``N`` on, which only follow, none.
    """
    chain, replica = parse_node(node)
    size = len(network.genesis.committees[chain])
    replicas = 1 if chain == BEACON else network.options.nodes_per_shard
    return tuple(index for index in range(size) if index % replicas == replica)


def _write_private(path: Path, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)


def write_json(path: Path, value: object) -> None:
    """Write ``value`` as JSON so that a reader sees the old file or the new one, never half of it."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write ``text`` so that a reader sees the old file or the new one, after a power failure too. Raises ``OSError``."""
    partial = path.with_suffix(path.suffix + ".part")
    try:
        with partial.open("w", encoding="utf-8", errors="surrogateescape") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise


class _KeySource:
    """Key material: random, or derived from the seed so that a run repeats."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def get(self, label: str) -> bytes:
        if self._seed == 0:
            return secrets.token_bytes(32)
        return hashlib.blake2b(label.encode(), key=self._seed.to_bytes(32, "big"), digest_size=32).digest()


def parse_wei(text: str) -> int:
    """Return the wei in an amount such as ``1ether``, ``20gwei`` or ``123``; raises ``ConfigError``."""
    units = {"ether": 18, "eth": 18, "gwei": 9, "wei": 0, "": 0}
    stripped = text.strip().replace("_", "").lower()
    number = stripped.rstrip("abcdefghijklmnopqrstuvwxyz")
    unit = stripped[len(number) :]
    whole, _, fraction = number.strip().partition(".")
    if (
        unit not in units
        or not (whole or fraction)
        or not (whole + fraction).isdecimal()
        or not stripped.isascii()
        or len(fraction) > units[unit]
    ):
        raise ConfigError(
            f"amount: got {text[:40]!r}, expected for example 1ether, 0.5ether, 20gwei or a number of wei"
        )
    digits = (whole or "0") + fraction.ljust(units[unit], "0")
    if len(digits) > _MAX_AMOUNT_CHARACTERS or int(digits) > MAX_WEI:
        raise ConfigError(f"amount: got {text[:40]!r}, expected less than 2^256 wei; try: 1ether")
    return int(digits)


def build_preset(options: Options) -> Preset:
    """Return the numbers that hold in a network of ``options``; raises ``ConfigError`` for a block time that is too short."""
    preset = get_preset(options.preset)
    preset = msgspec.structs.replace(
        preset,
        validators_per_shard=options.validators,
        block_time_ms=options.block_time_ms or preset.block_time_ms,
    )
    if options.block_time_ms:
        preset = msgspec.structs.replace(
            preset, delta_ms=min(preset.delta_ms, max(50, options.block_time_ms // 2))
        )
    verify_inbox(preset)
    return preset


def build_balances(options: Options) -> dict[Address, int]:
    """Return what development accounts have on every shard; raises ``ConfigError`` for more than there can be."""
    balances = get_dev_balances(parse_wei(options.balance))
    if sum(balances.values()) > MAX_WEI:
        raise ConfigError(
            f"balance: got {options.balance[:40]!r} for each of {len(balances)} accounts, "
            "expected less than 2^256 wei in all; try: --balance 10000ether"
        )
    return balances


def _build_genesis(options: Options, source: _KeySource) -> tuple[Genesis, list[bytes], bytes]:
    preset, balances = build_preset(options), build_balances(options)
    secrets_ = [
        _native.bls_secret_key(source.get(f"validator/{index}"))
        for index in range(options.shards * options.validators)
    ]
    validators = tuple(
        Validator(
            public_key=_native.bls_public_key(secret),
            possession_proof=_native.bls_prove_possession(secret),
            stake=STAKE_WEI // 10**9,
            reward=Address(_native.keccak256(b"reward" + _native.bls_public_key(secret))[12:]),
        )
        for secret in secrets_
    )
    alloc = encode_alloc(build_alloc(shard_count=options.shards, balances=balances))
    shard_genesis = compute_genesis_state(alloc)
    genesis = Genesis(
        version=1,
        name=options.name,
        timestamp_ms=1_700_000_000_000 if options.seed else time.time_ns() // 1_000_000,
        preset=preset,
        validators=validators,
        shards=(shard_genesis,) * options.shards,
    )
    return genesis, secrets_, alloc


def verify_inbox(preset: Preset) -> None:
    """Raise ``ConfigError`` unless the largest receipt fits into a block's inbox gas.

    One that does not is never taken, and no receipt behind it either (X5): it would block its inbox for ever.
    """
    if preset.inbox_gas >= preset.max_receipt_gas:
        return
    smallest_ms = -(-2 * preset.max_receipt_gas // preset.gas_per_ms)
    raise ConfigError(
        f"block_time_ms: got {preset.block_time_ms} with preset {preset.name}, whose blocks then have {preset.inbox_gas} gas "
        f"for messages, expected {smallest_ms} or more, so that one of {preset.max_receipt_gas} gas fits; "
        f"try: --block-time {smallest_ms}ms"
    )


def compute_genesis_state(alloc: bytes) -> ShardGenesis:
    """Return commitment and total wei of the state that ``alloc`` describes; it is the same on every shard."""
    core = _native.Core(chain_id=compute_chain_id(0), shard=0)
    root = core.init_genesis(alloc)
    name = bytes(32)
    core.set_base(name, 0)
    return ShardGenesis(state_root=Hash32(root), supply=core.total_supply(name))


def create_network(
    root: Path, options: Options, *, make_room: Callable[[], object] = lambda: None
) -> Network:
    """Create the network ``options`` at ``root``, where at most an empty folder may be. Half-made ones are never left behind.

    ``make_room`` is called when all is made but its name: what has to go for it, must not go for options that are refused.
    """
    source = _KeySource(options.seed)
    genesis, validator_secrets, alloc = _build_genesis(options, source)
    place = root.resolve()  # nothing can be renamed to a link; where it leads, it can
    place.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{options.name}-", dir=place.parent))
    try:
        for folder in ("keys", "data", "logs"):
            (staging / folder).mkdir(mode=0o700)
        _write_private(
            staging / "keys" / "validators.json", json.dumps([secret.hex() for secret in validator_secrets])
        )
        directory: dict[str, str] = {}
        names = [*list_nodes(options), "launcher"]
        for node in names:
            seed = source.get(f"node/{node}")
            _write_private(staging / "keys" / f"{node}.key", seed.hex())
            directory[node] = NodeKey(seed).public_key.hex()
        # The observer can only read what is meant for everybody, so its password may be guessed.
        passwords = {**create_passwords(names), OBSERVER: OBSERVER}
        _write_private(staging / "keys" / "broker.json", json.dumps(passwords))
        (staging / "alloc.json").write_bytes(alloc)
        (staging / "genesis.bin").write_bytes(encode(genesis))
        write_json(staging / "directory.json", directory)
        write_json(
            staging / "network.json",
            {
                "format": FORMAT_VERSION,
                "network": genesis.network.hex(),
                "options": msgspec.to_builtins(options),
            },
        )
        make_room()
        staging.rename(place)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    return open_network(root)


def open_network(root: Path) -> Network:
    """Return the network at ``root``; raises ``ConfigError`` when it is missing, damaged or of another format."""
    try:
        stamp = json.loads((root / "network.json").read_text())
        if stamp.get("format") != FORMAT_VERSION:
            raise NetworkUnreadableError(
                f"{root}: got data format {stamp.get('format')}, expected {FORMAT_VERSION}; "
                f"try: shardyard up --fresh --name {root.name}, or another --name"
            )
        options = msgspec.convert(stamp["options"], Options)
        genesis = decode((root / "genesis.bin").read_bytes(), Genesis, max_bytes=MAX_GENESIS_BYTES)
        directory = json.loads((root / "directory.json").read_text())
        keys = {NodeId(node): bytes.fromhex(key) for node, key in directory.items()}
        is_of_stamp = genesis.network.hex() == stamp["network"]
    except FileNotFoundError as error:
        if (root / "network.json").exists():
            raise NetworkUnreadableError(
                f"{root}: damaged network files (no {Path(error.filename).name}); "
                f"try: shardyard up --fresh --name {root.name}, or another --name"
            ) from error
        raise _describe_missing(root) from error
    except (DecodeError, msgspec.MsgspecError, AttributeError, KeyError, TypeError, ValueError) as error:
        # JSON of any shape, and bytes that are none.
        raise NetworkUnreadableError(
            f"{root}: damaged network files ({error}); try: shardyard up --fresh --name {root.name}, or another --name"
        ) from error
    if not is_of_stamp:
        raise NetworkUnreadableError(
            f"{root}: genesis.bin is not the one of network.json; "
            f"try: shardyard up --fresh --name {root.name}, or another --name"
        )
    return Network(root=root, options=options, genesis=genesis, directory=keys)


def is_taken(root: Path) -> bool:
    """Tell whether there is anything at ``root``; an empty folder is nothing."""
    return root.exists() and not (root.is_dir() and not any(root.iterdir()))


def _describe_missing(root: Path) -> ConfigError:
    if is_taken(root):
        return ConfigError(
            f"{root} is in use, but not by a network of ours, and is left alone; "
            "try: another --name, or another folder in SHARDYARD_HOME"
        )
    return NetworkMissingError(f"no network {root.name!r} at {root}; try: shardyard up --name {root.name}")


def open_or_create(root: Path, options: Options, *, given: set[str]) -> Network:
    """Open the network at ``root``, or create it.

    ``given`` names the options a person chose; when one of them contradicts the existing network, nothing is touched and
    a ``ConfigError`` offers the two ways out.
    """
    if not is_taken(root):
        return create_network(root, options)
    network = open_network(root)
    for key in _FIXED_OPTIONS:
        wanted, found = getattr(options, key), getattr(network.options, key)
        if key in given and wanted != found:
            raise ConfigError(
                f"network {options.name!r} at {root} has {key} = {found}, not {wanted}; "
                f"try: --fresh to start it anew, or --name for another network beside it"
            )
    changeable = {
        key: getattr(options, key)
        for key in Options.__struct_fields__
        if key in given and key not in _FIXED_OPTIONS
    }
    return msgspec.structs.replace(network, options=msgspec.structs.replace(network.options, **changeable))
