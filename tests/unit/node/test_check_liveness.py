"""Liveness is what was seen to grow: a first answer is no growth, and a beacon without books fails the check."""

import asyncio
import itertools

import pytest

from node.checks import liveness, verdict
from node.config import Options
from node.control import ControlError
from node.network import create_network

SILENT = None
ASLEEP = "asleep"
"""An answer that never comes, as of a process that is stopped."""
PATIENCE_S = 30.0
"""For chains that grow: the check ends as soon as it has seen enough."""
LOST_S = 0.3
"""For chains that do not: the check takes all of it."""


@pytest.fixture
def network(home):
    return create_network(home / "mine", Options(name="mine", shards=1, nodes_per_shard=2, seed=5))


@pytest.fixture
def tell(network, monkeypatch):
    """Let each node answer with heights in this order, the last for ever, and the beacon with accepted heights."""
    monkeypatch.setattr(liveness, "POLL_S", 0.001)

    def play(values):
        return itertools.chain(values, itertools.repeat(values[-1]))

    def tell_them(books, **heights):
        told = {network.get_control_path(node.replace("_", "-")): play(row) for node, row in heights.items()}
        accepted = play(books)

        async def ask(path, method, *, timeout_s, **params):
            found = (
                next(accepted) if method == "supply" else next(told[path], SILENT) if path in told else SILENT
            )
            if found is ASLEEP:
                await asyncio.Event().wait()
            if found is SILENT:
                raise ControlError("nobody there")
            return {"height": found} if method == "finals" else {"shards": [{"shard": 0, "height": found}]}

        monkeypatch.setattr(verdict, "ask", ask)

    return tell_them


async def check(network, within_s=PATIENCE_S):
    return await liveness.check_liveness(network, within_s)


async def test_chains_that_grow_are_live(network, tell):
    tell([3, 4], beacon_0=[7, 8, 9], shard_0_0=[5, 6, 7], shard_0_1=[5, 6, 7])
    found = await check(network)
    assert found.held, found.findings
    assert "2 chains made 4 final blocks" in found.words
    assert "the beacon accepted 1 of the shards'" in found.words


async def test_height_of_a_chain_that_was_silent_at_first_is_no_growth(network, tell):
    tell([3, 4], beacon_0=[7, 9], shard_0_0=[SILENT, 500], shard_0_1=[SILENT])
    found = await check(network, LOST_S)
    assert not found.held
    assert any("shard-0: 0 new final blocks" in one and "from height 500" in one for one in found.findings)


async def test_node_ahead_of_those_that_answered_first_is_no_growth(network, tell):
    tell([3, 4], beacon_0=[7, 9], shard_0_0=[2], shard_0_1=[SILENT, 500])
    found = await check(network, LOST_S)
    assert any("shard-0: 0 new final blocks" in one for one in found.findings)


async def test_chain_that_never_answers_stands_still(network, tell):
    tell([3, 4], beacon_0=[7, 9])
    found = await check(network, LOST_S)
    assert any("from an unknown height; 0 of 2 nodes answer" in one for one in found.findings)


async def test_beacon_without_books_fails(network, tell):
    tell([SILENT], beacon_0=[7, 9], shard_0_0=[5, 7], shard_0_1=[5, 7])
    found = await check(network, LOST_S)
    assert not found.held
    assert any("the beacon showed no books" in one for one in found.findings)


async def test_beacon_that_accepts_nothing_fails_by_books_shown_late(network, tell):
    tell([SILENT, 3], beacon_0=[7, 9], shard_0_0=[5, 7], shard_0_1=[5, 7])
    found = await check(network, LOST_S)
    assert found.findings == (found.findings[0],)
    assert "shard-0: the beacon accepted nothing beyond height 3" in found.findings[0]


async def test_beacon_silent_in_the_end_has_accepted_what_it_said_before(network, tell):
    tell([3, 4, SILENT], beacon_0=[7, 8, 9], shard_0_0=[5, 6, 7], shard_0_1=[5, 6, 7])
    found = await check(network)
    assert found.held, found.findings


async def test_node_that_sleeps_holds_up_nobody_and_is_named(network, tell):
    tell([3, 4], beacon_0=[7, 8, 9], shard_0_0=[5, 6, 7], shard_0_1=[ASLEEP])
    found = await check(network)
    assert found.held, found.findings
    assert found.words.endswith("no answer from shard-0-1")


async def test_watch_ends_in_time_when_everybody_sleeps(network, tell):
    tell([ASLEEP], beacon_0=[ASLEEP], shard_0_0=[ASLEEP], shard_0_1=[ASLEEP])
    async with asyncio.timeout(5):
        found = await check(network, LOST_S)
    assert not found.held
    assert found.figures["silent"] == ["beacon-0", "shard-0-0", "shard-0-1"]
    assert found.figures["seconds"] < 1
