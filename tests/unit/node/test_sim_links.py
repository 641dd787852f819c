"""The simulated network: published distances, jitter with a tail, links that are busy, and a broker that forgets."""

import random
from collections import Counter
from itertools import pairwise, product
from statistics import median
from types import SimpleNamespace

import msgspec
import pytest

from node.bus.topics import CLASS_OF
from node.runtime import list_subscriptions
from node.scale.world import _is_heard
from node.sim.bus import SimBus, _is_subscribed
from node.sim.clock import Clock
from node.sim.links import ENVELOPE_BYTES, MAX_BACKLOG_MS, TABLES, TAIL_STEPS, Links, get_table
from node.sim.scenario import FaultProfile
from shardyard.blocks import EMPTY_JUSTIFICATION, Block
from shardyard.errors import ConfigError
from shardyard.ids import BEACON, NodeId, ShardId
from shardyard.messages import Proposal, Status, encode_message

STATUS = Status(ShardId(0), 1, 1, bytes(32))


class Ear:
    """A node that only hears."""

    def __init__(self, name, clock, chain=0):
        self.name, self.chain, self._clock = NodeId(name), ShardId(chain), clock
        self.heard = []

    def receive(self, event):
        assert event.chain in {self.chain, BEACON}
        self.heard.append((self._clock.now_ms, event.sender, event.message))


def build_bus(nodes=3, **changes):
    clock = Clock(random.Random(1))
    bus = SimBus(clock, random.Random(2), FaultProfile(**({"latency_ms": (0, 0)} | changes)))
    ears = [Ear(f"n{index}", clock) for index in range(nodes)]
    for ear in ears:
        bus.join(ear)
    return clock, bus, ears


@pytest.mark.parametrize("name", TABLES)
def test_tables_are_square_positive_and_nearly_symmetric(name):
    table = TABLES[name]
    assert len(table.round_trip_ms) == len(table.regions) == len(set(table.regions))
    for row, times in enumerate(table.round_trip_ms):
        assert len(times) == len(table.regions)
        assert all(time > 0 for time in times)
        assert all(abs(time - table.round_trip_ms[column][row]) <= 4 for column, time in enumerate(times))


def test_an_unknown_table_is_refused_with_those_there_are():
    with pytest.raises(ConfigError, match=r"got 'mars', expected one of lan, continent, world"):
        get_table("mars")
    with pytest.raises(ConfigError, match="mars"):
        build_bus(regions="mars")


def test_one_way_is_half_a_round_trip_between_the_regions_of_two_nodes():
    links = Links(random.Random(3), "world", 0, 0)
    names = [NodeId(f"n{index}") for index in range(10)]
    for name in names:
        links.place(name)
    table = TABLES["world"]
    assert {links.get_region(name) for name in names} == set(table.regions)
    for one in names:
        for other in names:
            row, column = (table.regions.index(links.get_region(name)) for name in (one, other))
            assert links.draw_latency(one, other) == round(table.round_trip_ms[row][column] / 2)


def test_jitter_has_its_scale_as_median_and_a_tail_of_dozens():
    links = Links(random.Random(3), "", 10, 0)
    drawn = [links.draw_latency(NodeId("a"), NodeId("b")) for _ in range(4000)]
    assert 8 <= median(drawn) <= 12
    assert min(drawn) == 0
    assert 300 < max(drawn) <= 10 * TAIL_STEPS


def test_a_big_proposal_takes_its_time_up_once_and_down_for_everybody():
    clock, bus, ears = build_bus(bandwidth=100_000)
    header = None
    block = Block(header, EMPTY_JUSTIFICATION, bytes(50_000), b"", b"")
    proposal = Proposal(block)
    size = len(encode_message(proposal)) + ENVELOPE_BYTES
    bus.publish(ears[0], proposal)
    clock.run_until(10_000)
    expected = 2 * size * 1000 // 100_000
    for ear in ears[1:]:
        assert [at for at, _, _ in ear.heard] == [pytest.approx(expected, abs=2)], (
            "up once, then down each link"
        )


def test_messages_of_one_sender_queue_up_on_its_link_and_overflow_at_last():
    clock, bus, ears = build_bus(nodes=2, bandwidth=1_000)
    size = len(encode_message(STATUS)) + ENVELOPE_BYTES
    count = 2 * MAX_BACKLOG_MS // size
    for _ in range(count):
        bus.publish(ears[0], STATUS)
    assert bus.counters["overflown"] > count // 4
    clock.run_until(60_000)
    times = [at for at, _, _ in ears[1].heard]
    assert len(times) == count - bus.counters["overflown"]
    assert all(later - earlier >= size - 1 for earlier, later in pairwise(times))


def test_a_broker_that_dies_takes_what_is_on_its_way_along():
    clock, bus, ears = build_bus(latency_ms=(100, 100))
    bus.publish(ears[0], STATUS)
    clock.run_until(50)
    bus.go_down()
    bus.publish(ears[0], STATUS)
    bus.heal()
    bus.publish(ears[0], STATUS)
    clock.run_until(500)
    assert [at for at, _, _ in ears[1].heard] == [150]


def test_a_node_without_session_neither_speaks_nor_hears():
    clock, bus, ears = build_bus()
    bus.lose_session(ears[0].name)
    for ear in ears:
        bus.publish(ear, STATUS)
    clock.run_until(10)
    assert ears[0].heard == []
    assert [sender for _, sender, _ in ears[1].heard] == ["n2"]
    assert bus.counters["lost"] == 4


def test_a_short_queue_holds_so_many_messages_and_drops_the_rest():
    clock, bus, ears = build_bus(latency_ms=(20, 20))
    bus.shorten(ears[1].name, 3)
    for _ in range(10):
        bus.publish(ears[0], STATUS)
    clock.run_until(15)
    bus.publish(ears[0], STATUS)
    clock.run_until(100)
    assert len(ears[1].heard) == 3
    assert len(ears[2].heard) == 11
    assert bus.counters["overflown"] == 8
    bus.publish(ears[0], STATUS)
    clock.run_until(200)
    assert len(ears[1].heard) == 4, "there is room again"


def test_a_cut_may_be_of_one_direction():
    clock, bus, ears = build_bus()
    bus.cut([(ears[0].name, ears[1].name)])
    bus.publish(ears[0], STATUS)
    bus.publish(ears[1], STATUS)
    clock.run_until(10)
    assert [sender for _, sender, _ in ears[0].heard] == ["n1"]
    assert ears[1].heard == []


def test_losses_and_copies_come_as_often_as_they_should():
    clock, bus, ears = build_bus(nodes=2, drop=0.2, duplicate=0.3, latency_ms=(1, 50))
    for _ in range(3000):
        bus.publish(ears[0], STATUS)
    clock.run_until(100)
    assert 500 < bus.counters["lost"] < 700
    assert 2900 < len(ears[1].heard) < 3350
    assert len(Counter(at for at, _, _ in ears[1].heard)) == 50


@pytest.mark.parametrize("kind", CLASS_OF, ids=lambda kind: kind.__name__)
def test_the_simulated_broker_delivers_what_real_nodes_subscribe_to(kind):
    chains = [BEACON, ShardId(0), ShardId(1), ShardId(2)]
    for sender, destination in product(chains, chains[1:]):
        fields = dict.fromkeys(field.name for field in msgspec.structs.fields(kind))
        message = kind(
            **fields | ({"bundle": SimpleNamespace(dst=destination)} if "bundle" in fields else {})
        )
        heard = {chain for chain in chains if _is_heard(list_subscriptions(chain), sender, message)}
        assert {chain for chain in chains if _is_subscribed(chain, sender, message)} == heard
