"""What a watcher makes of the mirror: each block once, each message through its stages, nonsense counted."""

from typing import Any

import pytest

from node.cli.watch_model import KEEP_DONE_S, WINDOW_S, WatchModel


def block(shard: int, height: int, **more: int) -> dict[str, Any]:
    return {"kind": "block.final", "chain": f"shard-{shard}", "height": height, "slot": height, **more}


def message(stage: str, **more: int | str) -> dict[str, Any]:
    base = {
        "kind": f"message.{stage}",
        "chain": "shard-0",
        "stage": stage,
        "id": "ab" * 32,
        "receipt": "TRANSFER",
    }
    return {**base, "src": 0, "dst": 1, "value": "1000000000000000000", **more}


def crosslink(shard: int, last_height: int) -> dict[str, Any]:
    return {"kind": "crosslink.final", "chain": f"shard-{shard}", "last_height": last_height, "messages": 0}


@pytest.fixture
def model() -> WatchModel:
    return WatchModel(2)


def test_block_told_by_every_replica_is_seen_once(model: WatchModel) -> None:
    assert model.take(block(0, 5, transactions=3), 0.0)
    assert model.take(block(0, 5, transactions=3), 0.1) == []
    assert model.blocks_seen == 1
    assert model.lanes["shard-0"].latest == 5
    assert model.compute_tps() == 3 / WINDOW_S


def test_transactions_leave_the_rate_when_the_window_has_passed(model: WatchModel) -> None:
    model.take(block(0, 5, transactions=30), 0.0)
    model.prune(WINDOW_S + 0.1)
    assert model.compute_tps() == 0


def test_message_goes_through_its_stages_in_order(model: WatchModel) -> None:
    told = [
        *model.take(message("emitted", height=7), 0.0),
        *model.take(message("beacon-final"), 1.0),
        *model.take(message("delivered", chain="shard-1", height=9), 2.0),
        *model.take(crosslink(1, 8), 3.0),
        *model.take(crosslink(1, 9), 4.0),
    ]
    stages = [line.rpartition(" ")[2] for line in told if line.startswith("message")]
    assert stages == ["emitted", "ordered", "executed", "beacon-final"]
    assert model.messages_done == 1
    model.prune(4.0 + KEEP_DONE_S + 0.1)
    assert model.flights == {}


def test_stage_told_late_or_twice_does_not_turn_a_message_back(model: WatchModel) -> None:
    model.take(message("delivered", chain="shard-1", height=9), 0.0)
    assert model.take(message("emitted", height=7), 1.0) == []
    assert model.flights["ab" * 32].stage == 2


def test_votes_and_certificates_are_counted_by_chain(model: WatchModel) -> None:
    for validator in range(4):
        model.take({"kind": "vote.cast", "chain": "beacon", "validator": validator}, 0.0)
    model.take({"kind": "certificate.formed", "chain": "beacon"}, 0.0)
    assert len(model.lanes["beacon"].votes) == 4
    assert len(model.lanes["beacon"].certificates) == 1


def test_watching_for_long_takes_no_more_memory_also_when_nobody_prunes(model: WatchModel) -> None:
    for second in range(1000):
        model.take({"kind": "vote.cast", "chain": "shard-0"}, second)
        model.take({"kind": "certificate.formed", "chain": "shard-0"}, second)
        model.take(block(0, second + 1, transactions=1), second)
    lane = model.lanes["shard-0"]
    held = [len(lane.votes), len(lane.certificates), len(model._transactions)]
    assert held == [WINDOW_S + 1] * 3


def test_fault_is_told(model: WatchModel) -> None:
    lines = model.take({"kind": "refused", "chain": "shard-1", "reason": "bad signature"}, 0.0)
    assert "bad signature" in lines[0]


@pytest.mark.parametrize(
    "entry",
    [
        {"kind": "block.final", "chain": "shard-0"},
        {"kind": "block.final", "chain": "shard-0", "height": "many"},
        {"kind": "message", "chain": "shard-0", "stage": "emitted", "id": "x"},
        {"kind": "message", "chain": "shard-0"},
        {"kind": "crosslink.final", "chain": "shard-0", "last_height": None},
    ],
)
def test_nonsense_in_the_mirror_is_counted_and_does_no_harm(model: WatchModel, entry: dict[str, Any]) -> None:
    assert model.take(entry, 0.0) == []
    assert model.lanes["shard-0"].faults == 1


def test_entries_of_chains_that_are_not_there_are_passed_over(model: WatchModel) -> None:
    assert model.take(block(9, 5), 0.0) == []
    assert model.take({"kind": "tick"}, 0.0) == []
