"""The engines by name: the one place to add another to."""

from collections.abc import Callable
from typing import Final

from shardyard.consensus.engine import BlockSource, EngineConfig, FinalityEngine
from shardyard.consensus.instant import InstantEngine
from shardyard.consensus.simplex import SimplexEngine
from shardyard.consensus.votes import Crypto
from shardyard.errors import ConfigError

EngineFactory = Callable[[EngineConfig, Crypto, BlockSource], FinalityEngine]

DEFAULT_ENGINE: Final = "simplex"
ENGINES: Final[dict[str, EngineFactory]] = {"simplex": SimplexEngine, "instant": InstantEngine}


def get_engine(name: str) -> EngineFactory:
    """Return what builds the engine ``name``; raises ``ConfigError`` naming the known ones."""
    try:
        return ENGINES[name]
    except KeyError:
        raise ConfigError(f"engine: got {name!r}, expected one of {', '.join(sorted(ENGINES))}") from None
