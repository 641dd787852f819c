"""The engines by name: the one place to add another to."""

from collections.abc import Callable
from typing import Final

from shardyard.consensus.engine import BlockSource, EngineConfig, FinalityEngine
from shardyard.consensus.instant import InstantEngine
from shardyard.consensus.simplex import SimplexEngine
from shardyard.consensus.votes import Crypto
from shardyard.errors import ConfigError

DEFAULT_ENGINE: Final = "simplex"

ENGINES: Final[dict[str, Callable[[EngineConfig, Crypto, BlockSource], FinalityEngine]]] = {
    "simplex": SimplexEngine,
    "instant": InstantEngine,
}


def create_engine(name: str, config: EngineConfig, crypto: Crypto, blocks: BlockSource) -> FinalityEngine:
    """Return the engine ``name``; raises ``ConfigError`` naming the known ones."""
    try:
        engine = ENGINES[name]
    except KeyError:
        raise ConfigError(f"engine: got {name!r}, expected one of {', '.join(sorted(ENGINES))}") from None
    return engine(config, crypto, blocks)
