"""What tests of the inbox begin with: an honest beacon of three shards, and shard 1 that follows it."""

import pytest

from shards.inbox import BeaconFollower
from tests.unit.shards.world import CRYPTO, BeaconChain, build_genesis

GENESIS = build_genesis(3)


@pytest.fixture
def chain():
    return BeaconChain(GENESIS)


@pytest.fixture
def follower():
    return BeaconFollower(GENESIS, 1, CRYPTO)
