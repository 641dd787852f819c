"""Claims about asking for bodies: each once, within bounds, with pauses that grow only while nothing comes."""

import msgspec
import pytest

from crosslink.fetching import FETCH_TIMER, MAX_AHEAD_BYTES, MAX_BACKOFF, MAX_FETCHES, BodyFetcher
from shardyard.crosslinks import Crosslink
from shardyard.effects import Broadcast, CancelTimer, Send, SetTimer
from shardyard.ids import ZERO_HASH
from shardyard.preset import get_preset
from shardyard.receipts import LinkSummary

PRESET = get_preset("test")
ROUND_TRIP_MS = 2 * PRESET.delta_ms
CROSSLINK = Crosslink(
    shard=0,
    epoch=0,
    parent=ZERO_HASH,
    first_height=1,
    last_height=1,
    head_hash=ZERO_HASH,
    state_root=ZERO_HASH,
    links=(),
    inbox_position=0,
    burnt=bytes(32),
    congestion=0,
    base_fee=7,
)


def build(number, size=0):
    link = LinkSummary(1, number, number, ZERO_HASH, 1, bytes(32), size)
    return msgspec.structs.replace(CROSSLINK, first_height=number, last_height=number, links=(link,))


@pytest.fixture
def fetcher():
    return BodyFetcher(PRESET)


def get_asked(effects):
    return [effect.message.crosslink for effect in effects if isinstance(effect, Send)]


def get_pauses(effects):
    return [
        effect.delay_ms for effect in effects if isinstance(effect, SetTimer) and effect.name == FETCH_TIMER
    ]


def test_what_is_missing_is_asked_of_all_and_of_its_shard_once(fetcher):
    effects = fetcher.want([build(1)])
    assert [type(effect) for effect in effects] == [Broadcast, Send, SetTimer]
    assert fetcher.want([build(1)]) == []
    fetcher.on_received(build(1).hash)
    assert fetcher.settle() == [CancelTimer(FETCH_TIMER)]
    assert fetcher.settle() == []


def test_ahead_is_asked_of_one_node_once_and_of_nobody_again_while_that_is_under_way(fetcher):
    fetcher.want([build(1)])
    effects = fetcher.want_ahead([build(1), build(2), build(3)], "beacon-3")
    assert [effect.to for effect in effects] == ["beacon-3"] * 2
    assert get_asked(effects) == [build(2).hash, build(3).hash]
    assert fetcher.want_ahead([build(2)], "beacon-2") == fetcher.want([build(3)]) == []
    assert build(2).hash in fetcher
    fetcher.forget()
    assert get_asked(fetcher.want([build(3)])) == [build(3).hash]


def test_i14_ahead_is_no_more_than_there_is_room_for(fetcher):
    fetcher.want([build(1)])
    assert len(fetcher.want_ahead([build(number) for number in range(2, 99)], "beacon-3")) == MAX_FETCHES - 1
    fetcher.forget()
    half = MAX_AHEAD_BYTES // 2
    assert len(fetcher.want_ahead([build(number, half) for number in range(2, 9)], "beacon-3")) == 2


def test_pauses_grow_while_nothing_comes_and_only_then(fetcher):
    fetcher.want([build(1), build(2), build(3)])
    pauses = [get_pauses(fetcher.schedule())[0] for _ in range(2 * MAX_BACKOFF)]
    assert pauses[0] == 2 * ROUND_TRIP_MS
    assert pauses == sorted(pauses)
    assert pauses[-1] == MAX_BACKOFF * ROUND_TRIP_MS
    fetcher.on_received(build(9).hash)
    assert get_pauses(fetcher.schedule()) == [MAX_BACKOFF * ROUND_TRIP_MS], "nobody waited for that"
    fetcher.on_received(build(1).hash)
    assert get_pauses(fetcher.schedule()) == [ROUND_TRIP_MS]
    assert get_pauses(fetcher.schedule()) == [2 * ROUND_TRIP_MS]
