"""The journey and the story of a transaction, told from what two shards really answered about a call that bounced."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from node.cli.explain import tell
from node.cli.journey import Journey, trace_journey

RECORDED = json.loads((Path(__file__).parent / "recorded" / "bounced_call.json").read_text())
CALL, BOUNCE = (message["id"] for message in RECORDED["halves"]["1"]["messages"])


class RecordedClient:
    def __init__(self, answer: Any) -> None:
        self.answer = answer
        self.requests = 0

    def request(self, method: str, *params: object) -> Any:
        assert (method, params) == ("shard_getCrossTx", (RECORDED["hash"],))
        self.requests += 1
        return self.answer


class RecordedShards:
    """Four shards, of which 1 and 2 know something."""

    shard_count = 4

    def __init__(self) -> None:
        answers = copy.deepcopy(RECORDED["halves"])
        self.clients = {shard: RecordedClient(answers.get(str(shard))) for shard in range(self.shard_count)}

    def get_client(self, shard: int) -> RecordedClient:
        return self.clients[shard]

    def find(self, shard: int, message: str) -> dict[str, Any]:
        found: dict[str, Any] = next(m for m in self.clients[shard].answer["messages"] if m["id"] == message)
        return found

    def trace(self) -> Journey:
        return trace_journey(self, RECORDED["shard"], RECORDED["hash"])


@pytest.fixture
def shards() -> RecordedShards:
    return RecordedShards()


def test_halves_of_both_shards_become_one_hop_each(shards: RecordedShards) -> None:
    call, bounce = shards.trace().hops
    assert (call.id, call.kind, call.src, call.dst) == (CALL, "CALL", 1, 2)
    assert (bounce.id, bounce.kind, bounce.src, bounce.dst) == (BOUNCE, "BOUNCE", 2, 1)
    for hop in (call, bounce):
        assert hop.emitted is not None
        assert hop.delivered is not None
        assert hop.transit_ms == 2000


def test_only_shards_that_messages_lead_to_are_asked(shards: RecordedShards) -> None:
    shards.trace()
    assert [client.requests for client in shards.clients.values()] == [0, 1, 1, 0]


def test_bounced_journey_is_done_and_not_successful(shards: RecordedShards) -> None:
    journey = shards.trace()
    assert journey.is_done
    assert not journey.is_successful
    assert journey.hops[0].stage == "failed and bounced, beacon-final"


def test_bounce_says_why(shards: RecordedShards) -> None:
    call, bounce = shards.trace().hops
    assert bounce.reason == "the reverter reverts"
    assert call.reason == ""


@pytest.mark.parametrize(
    "missing", ["call's delivery", "bounce's delivery", "beacon", "reply", "transaction"]
)
def test_journey_is_not_done_while_something_is_missing(shards: RecordedShards, missing: str) -> None:
    match missing:
        case "call's delivery":
            shards.find(2, CALL)["delivered"] = None
        case "bounce's delivery":
            shards.find(1, BOUNCE)["delivered"] = None
        case "beacon":
            shards.find(1, BOUNCE)["delivered"]["beaconFinal"] = False
        case "reply":
            for shard, client in shards.clients.items():
                if client.answer:
                    client.answer["messages"] = [m for m in client.answer["messages"] if m["id"] != BOUNCE]
                    assert shards.find(shard, CALL)["reply"]
        case "transaction":
            shards.clients[1].answer["transaction"] = {"stage": "final", "status": 1}
    assert not shards.trace().is_done


def test_transaction_nobody_knows_has_no_hops(shards: RecordedShards) -> None:
    shards.clients[1].answer = None
    journey = shards.trace()
    assert journey.hops == ()
    assert not journey.is_done


def test_local_transaction_is_done_when_the_beacon_has_it(shards: RecordedShards) -> None:
    shards.clients[1].answer["messages"] = []
    journey = shards.trace()
    assert journey.is_done
    assert journey.is_successful


def tell_story(journey: Journey, receipt: dict[str, Any] | None = RECORDED["receipt"]) -> list[str]:
    return tell(RECORDED["shard"], RECORDED["transaction"], receipt, journey)


def test_story_of_a_bounced_call_hop_by_hop(shards: RecordedShards) -> None:
    story = "\n".join(tell_story(shards.trace()))
    assert "(account 0) sent 1.0003 ether to the gateway on shard 1 (nonce 2)." in story
    assert "It succeeded, in block 141 of shard 1 at 14:54:26 UTC, 89,335 gas" in story
    assert (
        "a call of 0xe7f1725E7734CE288F8367e1Bb143E90bb3F0512 on shard 2, from shard 1 carrying 1 ether."
        in story
    )
    assert (
        "+2.0 s: failed there and was rolled back in block 143 of shard 2, 22,901 gas, beacon-final" in story
    )
    assert "because: the reverter reverts" in story
    assert "+4.0 s: executed in block 145 of shard 1" in story
    assert story.endswith("Everything is done and beacon-final; the last effect came 4.0 s after the start.")


def test_story_before_the_beacon_has_it(shards: RecordedShards) -> None:
    shards.find(1, CALL)["emitted"]["beaconFinal"] = False
    shards.find(1, CALL)["reply"] = None
    shards.clients[1].answer["messages"] = [shards.find(1, CALL)]
    shards.clients[2].answer = None
    story = tell_story(shards.trace())
    assert story[-2].strip() == "it waits for the beacon"
    assert story[-1].startswith("It is not over yet")


def test_story_of_a_transaction_that_waits(shards: RecordedShards) -> None:
    assert tell_story(shards.trace(), None)[-1] == "It waits in the mempool: no block has it yet."


def test_story_of_a_reverted_transaction(shards: RecordedShards) -> None:
    shards.clients[1].answer["messages"] = []
    story = tell_story(shards.trace(), {**RECORDED["receipt"], "status": "0x0"})
    assert "reverted: nothing changed but the fee was paid" in story[1]
