"""Shards to run contracts on."""

import pytest

from tests.unit.contracts.chain import Chain


@pytest.fixture
def chain() -> Chain:
    """Shard 0 of four."""
    return Chain()


@pytest.fixture
def other() -> Chain:
    """Shard 1 of the same network."""
    return Chain(1)
