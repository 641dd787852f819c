"""What may be asked of the laboratory, what follows for each process, and what is said of what may not."""

import pytest

from node.bus.faults import CERTAIN, Mode
from node.cli.root import run
from node.config import Options
from node.launcher.faults import (
    FaultBook,
    FaultError,
    FaultRequest,
    Kind,
    compute_node_faults,
    list_warnings,
    parse_side,
)
from node.launcher.laboratory import Laboratory
from node.network import create_network

SHARD_0 = tuple(f"shard-0-{number}" for number in range(4))


@pytest.fixture
def network(home):
    return create_network(home / "lab", Options(name="lab", shards=2, nodes_per_shard=4, seed=5))


@pytest.fixture
def book(network):
    return FaultBook(network)


def ask(book, kind, *nodes, **more):
    return book.add(FaultRequest(kind=kind, nodes=nodes, **more))


def rules_of(book, node):
    return compute_node_faults(book.faults, node)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("shard-0-1", ("shard-0-1",)),
        ("shard-0", SHARD_0),
        ("beacon", ("beacon-0",)),
        ("shard-*-3", ("shard-0-3", "shard-1-3")),
        ("shard-0-2, shard-0-1,shard-0-2", ("shard-0-2", "shard-0-1")),
    ],
)
def test_sides_are_written_as_on_the_bus(network, text, found):
    assert parse_side(text, network.nodes) == found
    assert len(parse_side("all", network.nodes)) == 9


@pytest.mark.parametrize("text", ["shard-0-9", "shard-7", "moon", "shard-0-1,nobody", "", ","])
def test_unknown_node_is_refused_with_those_that_are_known(network, text):
    with pytest.raises(FaultError, match=r"expected (one of beacon-0, shard-0-0|names joined)"):
        parse_side(text, network.nodes)


def test_partition_cuts_both_ways_and_leaves_each_side_whole(book):
    ask(book, Kind.PARTITION, "shard-0-0", "shard-0-1")
    (rule,) = rules_of(book, "shard-0-0").links
    assert (rule.lost, len(rule.senders)) == (CERTAIN, 7)
    assert "shard-0-1" not in rule.senders
    (rule,) = rules_of(book, "beacon-0").links
    assert rule.senders == ("shard-0-0", "shard-0-1")


def test_one_way_partition_is_heard_from_one_end(book):
    ask(book, Kind.PARTITION, "shard-0-0", others=("shard-0-1",), is_one_way=True)
    assert rules_of(book, "shard-0-0").count == 0
    assert rules_of(book, "shard-0-1").links[0].senders == ("shard-0-0",)
    assert rules_of(book, "shard-0-2").count == 0


def test_delay_without_another_side_is_on_every_link_of_the_node(book):
    ask(book, Kind.DELAY, "shard-0-0", "shard-0-1", delay_ms=200, jitter_ms=50)
    (rule,) = rules_of(book, "shard-0-0").links
    assert len(rule.senders) == 8
    assert (rule.lost, rule.delay_ms, rule.jitter_ms) == (0, 200, 50)
    assert rules_of(book, "shard-1-0").links[0].senders == ("shard-0-0", "shard-0-1")


def test_faults_add_up_and_heal_one_by_one(book):
    first = ask(book, Kind.SLOW_DISK, "shard-0-0", delay_ms=100)
    ask(book, Kind.SLOW_DISK, "shard-0-0", delay_ms=20)
    ask(book, Kind.LOSS, "shard-0-0", lost=300)
    assert (rules_of(book, "shard-0-0").disk_delay_ms, rules_of(book, "shard-0-0").count) == (120, 2)
    assert book.remove(first.id) == first
    assert rules_of(book, "shard-0-0").disk_delay_ms == 20
    assert ask(book, Kind.KILL, "shard-0-1").id == 4  # numbers are never used again


@pytest.mark.parametrize(
    ("kind", "more", "words"),
    [
        (Kind.PARTITION, {"others": ("shard-0-0",)}, "shard-0-0 stands on both sides"),
        (Kind.PARTITION, {"others": ("nobody",)}, "node: got 'nobody', expected one of beacon-0"),
        (Kind.DELAY, {}, "delay: got no time"),
        (Kind.DELAY, {"delay_ms": 10**9}, "expected 0 to 600000"),
        (Kind.LOSS, {}, "loss: got 0 %"),
        (Kind.LOSS, {"lost": 1001}, "at most 100"),
        (Kind.SLOW_DISK, {}, "slow-disk: got no time"),
        (Kind.KILL, {"for_ms": -1}, "duration: got -1 ms"),
        (Kind.KILL, {"for_ms": 10**12}, "duration: got 1000000000000 ms, expected 1 to 604800000"),
        (
            Kind.BYZANTINE,
            {"mode": Mode.SILENT, "delay_ms": 200},
            "by: got 200 ms for silent, expected it with late",
        ),
        (Kind.BYZANTINE, {}, "mode: got none, expected one of silent, equivocate"),
        (Kind.BYZANTINE, {"mode": Mode.LATE, "validators": (2,)}, r"got \[2\], expected some of \[0\]"),
    ],
)
def test_fault_that_makes_no_sense_is_refused_and_not_noted(book, kind, more, words):
    with pytest.raises(FaultError, match=words):
        ask(book, kind, "shard-0-0", **more)
    assert book.faults == []


def test_partition_with_nobody_on_the_other_side_is_refused(network, book):
    with pytest.raises(FaultError, match="one side has all nodes"):
        ask(book, Kind.PARTITION, *network.nodes)


def test_lone_process_of_a_chain_cannot_lie_to_anybody(book):
    with pytest.raises(FaultError, match="no other process would hear it lie"):
        ask(book, Kind.BYZANTINE, "beacon-0", mode=Mode.SILENT)


def test_validator_lies_in_one_way_at_a_time(book):
    fault = ask(book, Kind.BYZANTINE, "shard-0-0", mode=Mode.LATE)
    assert (fault.request.validators, fault.request.delay_ms) == ((0,), 3000)
    with pytest.raises(FaultError, match=f"already; try: shardyard fault heal {fault.id} --name lab"):
        ask(book, Kind.BYZANTINE, "shard-0-0", mode=Mode.SILENT)


def test_broker_can_be_killed_and_is_no_end_of_a_link(book):
    assert ask(book, Kind.KILL, "broker").describe() == "broker"
    with pytest.raises(FaultError, match="got 'broker'"):
        ask(book, Kind.DELAY, "broker", delay_ms=10)


def test_a_third_of_the_stake_is_warned_of(network, book):
    ask(book, Kind.KILL, "shard-0-0")
    assert list_warnings(network, book.faults) == []
    ask(book, Kind.BYZANTINE, "shard-0-1", mode=Mode.EQUIVOCATE)
    (warning,) = list_warnings(network, book.faults)
    assert warning.startswith("shard-0: 2 of 4 validators are there and honest, fewer than a quorum")
    ask(book, Kind.BYZANTINE, "shard-0-2", mode=Mode.SILENT)
    (warning,) = list_warnings(network, book.faults)
    assert "2 of 4 validators are Byzantine, a third of the stake or more" in warning


def test_unknown_number_is_refused_with_those_that_hold(book):
    with pytest.raises(FaultError, match="none, no fault holds"):
        book.get(1)
    ask(book, Kind.KILL, "broker")
    with pytest.raises(FaultError, match="got 7, expected one of 1"):
        book.get(7)


async def test_request_that_is_no_fault_is_refused_by_the_laboratory(network):
    laboratory = Laboratory(network, {})
    for params in ({}, {"kind": "flood", "nodes": ["shard-0-0"]}, {"kind": "kill", "nodes": 7}, {"more": 1}):
        with pytest.raises(FaultError, match=r"^fault: "):
            await laboratory.methods["fault"](params)
    with pytest.raises(FaultError, match="got 3, expected one of none"):
        await laboratory.methods["heal"]({"faults": [3]})
    assert await laboratory.methods["heal"]({}) == {"healed": [], "untold": []}


@pytest.mark.parametrize("text", ["0s", "0ms", "0", "-1s", "0.0001s"])
def test_duration_of_nothing_is_refused_and_does_not_last_for_ever(network, capsys, text):
    for words in ("kill shard-0-0 --for", "byzantine shard-0-0 late --by"):
        assert run(["fault", *words.split(), text, "--name", "lab"]) == 2
        assert f"duration: got {text!r}, expected 1ms or more" in capsys.readouterr().err


def test_duration_beyond_a_week_is_refused_as_it_was_written(network, capsys):
    assert run(["fault", "kill", "shard-0-0", "--for", "1e300s", "--name", "lab"]) == 2
    assert "duration: got '1e300s', expected at most 604800s" in capsys.readouterr().err


def test_time_for_a_mode_that_has_none_is_refused(network, capsys):
    words = "fault byzantine shard-0-0 silent --by 200ms --name lab"
    assert run(words.split()) == 2
    told = capsys.readouterr().err
    assert (
        "by: got 200 ms for silent, expected it with late alone\ntry: shardyard fault byzantine --help"
        in told
    )


@pytest.mark.parametrize("text", ["inf", "nan", "1e999", "soon"])
def test_duration_that_is_no_number_of_seconds_is_usage_everywhere(home, text, capsys):
    create_network(home / "lab", Options(name="lab", seed=5))
    assert run(["fault", "kill", "shard-0-0", "--for", text, "--name", "lab"]) == 2
    assert run(["up", "--block-time", text, "--name", "lab"]) == 2
    assert capsys.readouterr().err.count(f"duration: got '{text}', expected for example 1s or 250ms") == 2


@pytest.mark.parametrize("percent", ["nan", "inf", "0", "0.04", "100.1"])
def test_share_of_messages_that_cannot_be_lost_is_usage(home, percent, capsys):
    create_network(home / "lab", Options(name="lab", seed=5))
    assert run(["fault", "loss", "all", "--percent", percent, "--name", "lab"]) == 2
    assert f"percent: got {percent}, expected 0.1 to 100" in capsys.readouterr().err
