"""What a person may decide about a network, and where each decision came from.

Order of precedence: command-line flags, ``SHARDYARD_*`` variables, ``./shardyard.toml`` (or the file given by ``-c``), defaults.
An unknown key is an error that names the nearest known one; a value of the wrong type says what was got and what was
expected. Numbers that decide validity are not here: they are presets of the kernel.
"""

import contextlib
import difflib
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from shardyard.errors import ConfigError
from shardyard.preset import PRESETS

ENV_PREFIX = "SHARDYARD_"
DEFAULT_FILE = Path("shardyard.toml")
ENV_OTHER = frozenset({"HOME", "NODE", "DEBUG", "FIXTURES", "SCHEDULE", "SCHEDULES"})
"""Variables with our prefix that are not options: where data is, what marks a node, what our tracebacks and tests read."""

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")
_NAMELESS: Final = re.compile(
    r"\bshardyard (?:(?:tx|contract|block|shard|fault|check|node|validator|accounts|load) [a-z][a-z-]*"
    r"|logs [a-z][a-z0-9-]*|(?:up|down|status|watch|logs|doctor|reset|env|accounts|faucet|explain|audit)\b)"
    r"(?: --(?!name\b|help\b)[a-z-]+(?: \d+)?)*\b(?![^,;`()\n]* --(?:name|help)\b)"
)
"""What files and nodes advise, who do not know their network: typed as it stands, it would ask, or delete, another one."""
MAX_SHARDS = 256
MAX_NODES_PER_SHARD = 16
MAX_FOLLOWERS = 16
MAX_VALIDATORS = 64
MAX_SEED = (1 << 64) - 1


SNAPSHOT_DISTANCE: Final = 1024


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The options of one network."""

    name: str = "dev"
    shards: int = 4
    nodes_per_shard: int = 1
    """Processes per shard that run its validators."""
    followers: int = 0
    """Processes per shard that hold no keys: they follow, verify, execute and serve JSON-RPC."""
    validators: int = 4
    """Validators per shard."""
    preset: str = "devnet"
    block_time_ms: int = 0
    """0 keeps the preset's."""
    broker: str = "auto"
    """``auto`` (embedded), ``embedded``, ``mosquitto`` or an ``mqtt://`` URL."""
    port_base: int = 8545
    """JSON-RPC port of shard 0; 0 picks free ports for everything."""
    broker_port: int = 18545
    executors: int = 0
    """Executor threads per shard; 0 means ``max(1, cores // shards)``."""
    sync_mempool: bool = False
    seed: int = 0
    """0 draws fresh keys; any other number derives them, so that runs repeat."""
    balance: str = "10000ether"
    snapshot_distance: int = SNAPSHOT_DISTANCE
    """Blocks behind from which a replica comes by a snapshot of the state instead of executing them."""

    @property
    def replicas(self) -> int:
        """Processes per shard, those without keys included."""
        return self.nodes_per_shard + self.followers


def _nearest(key: str, known: list[str]) -> str:
    found = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f"; try: {found[0]}" if found else f"; known keys: {', '.join(known)}"


def _check_keys(keys: list[str], where: str) -> None:
    known = list(Options.__struct_fields__)
    for key in keys:
        if key not in known:
            raise ConfigError(f"{where}: unknown key {key!r}{_nearest(key, known)}")


def read_file(path: Path) -> dict[str, Any]:
    """Return the options in a TOML file; raises ``ConfigError`` for unknown keys and bad syntax."""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; try: a path to a TOML file") from error
    except (ValueError, RecursionError) as error:
        # Bad TOML, bytes that are no UTF-8, numbers of thousands of digits, brackets within brackets.
        raise ConfigError(f"{path}: {error}; try: key = value lines as in shardyard config show") from error
    _check_keys(list(values), str(path))
    return values


def read_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    """Return the options among the ``SHARDYARD_*`` variables."""
    values: dict[str, Any] = {}
    for variable, text in environ.items():
        if not variable.startswith(ENV_PREFIX) or variable.removeprefix(ENV_PREFIX) in ENV_OTHER:
            continue
        key = variable.removeprefix(ENV_PREFIX).lower()
        _check_keys([key], variable)
        values[key] = text
    return values


def resolve_options(
    flags: Mapping[str, Any], environ: Mapping[str, str], file: Path | None
) -> tuple[Options, dict[str, str]]:
    """Return the options in force and, for each, where it came from.

    ``flags`` holds only what was given. Raises ``ConfigError`` naming the source of a bad value.
    """
    if file is None and DEFAULT_FILE.exists():
        file = DEFAULT_FILE
    layers: list[tuple[str, Mapping[str, Any]]] = []
    if file is not None:
        layers.append((str(file), read_file(file)))
    layers.append(("environment", read_environment(environ)))
    layers.append(("flag", {key: value for key, value in flags.items() if value is not None}))
    values: dict[str, Any] = {}
    origin = dict.fromkeys(Options.__struct_fields__, "default")
    for source, layer in layers:
        _check_keys(list(layer), source)
        for key, value in layer.items():
            _convert({key: value}, _describe_place(source, key))
            values[key] = value
            origin[key] = source
    options = _convert(values, "options")
    check_options(options)
    return options, origin


def _describe_place(source: str, key: str) -> str:
    """Return what a person has to look at to repair the value of ``key``."""
    match source:
        case "environment":
            return ENV_PREFIX + key.upper()
        case "flag":
            return "--" + key.removesuffix("_ms").replace("_", "-")
        case _:
            return f"{source}: {key}"


_TYPE_WORDS = {"int": "a whole number", "bool": "true or false", "str": "text"}


def _convert(values: dict[str, Any], place: str) -> Options:
    try:
        return msgspec.convert(values, Options, strict=False)
    except msgspec.ValidationError as error:
        key = str(error).rpartition("`$.")[2].rstrip("`")
        kind = str(Options.__annotations__.get(key, str).__name__)
        wanted = _TYPE_WORDS.get(kind, kind)
        raise ConfigError(
            f"{place}: got {values.get(key)!r}, expected {wanted}; try: shardyard config show"
        ) from error


def check_options(options: Options) -> None:
    """Raise ``ConfigError`` for options outside their range."""
    for key, low, high in (
        ("shards", 1, MAX_SHARDS),
        ("nodes_per_shard", 1, MAX_NODES_PER_SHARD),
        ("followers", 0, MAX_FOLLOWERS),
        ("validators", 1, MAX_VALIDATORS),
        ("port_base", 0, 65_000),
        ("broker_port", 0, 65_535),
        ("executors", 0, 1024),
        ("snapshot_distance", 1, 1 << 32),
        ("seed", 0, MAX_SEED),
    ):
        value = getattr(options, key)
        if not low <= value <= high:
            raise ConfigError(f"{key}: got {value}, expected {low}..{high}")
    if options.block_time_ms != 0 and not 50 <= options.block_time_ms <= 60_000:
        raise ConfigError(
            f"block_time_ms: got {options.block_time_ms}, expected 50..60000, or 0 for the preset's"
        )
    if options.preset not in PRESETS:
        raise ConfigError(
            f"preset: got {options.preset!r}, expected one of {', '.join(PRESETS)}; try: devnet"
        )
    if options.nodes_per_shard > options.validators:
        raise ConfigError(
            f"nodes_per_shard: got {options.nodes_per_shard}, expected at most the {options.validators} validators of a shard"
        )
    check_name(options.name)
    if options.broker not in {"auto", "embedded", "mosquitto"} and "://" not in options.broker:
        raise ConfigError(
            f"broker: got {options.broker!r}, expected auto, embedded, mosquitto or a URL such as mqtt://host:1883"
        )


def check_name(name: str) -> None:
    """Raise ``ConfigError`` unless ``name`` can name a network: it becomes a folder and a level of a topic."""
    if _NAME.fullmatch(name) is None:
        raise ConfigError(
            f"name: got {name!r}, expected 1 to 32 of a-z, 0-9 and -, not beginning with -; try: --name dev"
        )


def get_default_name() -> str:
    """Return the network that a command means when it is not told: the one that ``up`` would start here."""
    found = os.environ.get(f"{ENV_PREFIX}NAME")
    if found is None and DEFAULT_FILE.exists():
        found = read_file(DEFAULT_FILE).get("name")
    return str(found or Options().name)


def get_name_flag(name: str) -> str:
    """Return what a command line needs to mean the network ``name``, in this shell and in another one."""
    with contextlib.suppress(ConfigError):
        if name == Options().name == get_default_name():
            return ""
    return f" --name {name}"


def name_network(text: str, name: str) -> str:
    """Return ``text`` with the network ``name`` in those of its commands that name none, and would mean another one."""
    return _NAMELESS.sub(lambda found: f"{found[0]}{get_name_flag(name)}", text)


def get_home() -> Path:
    """Return where all data lives: ``SHARDYARD_HOME`` when it is set, else the user's data directory."""
    home = os.environ.get("SHARDYARD_HOME")
    if home:
        return Path(home).expanduser().resolve()
    import platformdirs

    return Path(platformdirs.user_data_dir("shardyard"))
