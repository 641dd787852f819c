"""Claims about asking for bodies: each once, within bounds, with pauses that grow only while nothing comes."""

import msgspec
import pytest

from crosslink.fetching import FETCH_TIMER, MAX_AHEAD, MAX_AHEAD_BYTES, MAX_BACKOFF, MAX_FETCHES, BodyFetcher
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


def test_ahead_is_asked_of_one_node_and_once_whatever_the_timer_does(fetcher):
    fetcher.want([build(1)])
    effects = fetcher.want_ahead([build(1), build(2), build(3)], "beacon-3")
    assert [effect.to for effect in effects] == ["beacon-3"] * 2
    assert get_asked(effects) == [build(2).hash, build(3).hash]
    fetcher.turn()
    fetcher.want([build(1)])
    assert fetcher.want_ahead([build(2), build(3)], "beacon-2") == []
    assert build(2).hash in fetcher, "an answer that comes late is wanted"


def test_what_was_asked_ahead_is_asked_of_all_when_the_timer_has_fired_since_its_block_waits(fetcher):
    fetcher.want([build(1)])
    fetcher.want_ahead([build(2)], "beacon-3")
    fetcher.on_received(build(1).hash)
    assert fetcher.want([build(2)]) == [], "it may be on its way, and the timer is set"
    fetcher.turn()
    assert get_asked(fetcher.want([build(2)])) == [build(2).hash]


def test_i14_ahead_is_no_more_than_there_is_room_for_and_goes_on_when_there_is(fetcher):
    many = [build(number) for number in range(1, 99)]
    fetcher.want(many[:1])
    first = get_asked(fetcher.want_ahead(many[1:], "beacon-3"))
    assert len(first) == MAX_AHEAD
    for key in first[:10]:
        fetcher.on_received(key)
    assert len(get_asked(fetcher.want_ahead(many[11:], "beacon-3"))) == 10
    # What waits has room of its own.
    assert len(get_asked(fetcher.want(many[60:]))) == MAX_FETCHES - 1


def test_i14_ahead_is_no_larger_than_there_is_room_for(fetcher):
    fetcher.want([build(1)])
    half = MAX_AHEAD_BYTES // 2
    asked = get_asked(fetcher.want_ahead([build(number, half) for number in range(2, 9)], "beacon-3"))
    assert len(asked) == 2
    fetcher.on_received(asked[0])
    assert len(fetcher.want_ahead([build(number, half) for number in range(3, 9)], "beacon-3")) == 1


def test_what_was_asked_ahead_in_vain_takes_no_room_for_ever(fetcher):
    fetcher.want([build(1)])
    fetcher.want_ahead([build(number) for number in range(2, 99)], "liar")
    fetcher.on_received(build(1).hash)
    fetcher.settle()  # nobody waits: whatever was behind it is here, or was none of the chain's
    fetcher.want([build(100)])
    assert len(fetcher.want_ahead([build(number) for number in range(2, 99)], "beacon-3")) == MAX_AHEAD


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
    fetcher.on_received(build(2).hash)
    fetcher.on_received(build(3).hash)
    fetcher.settle()
    assert get_pauses(fetcher.want([build(4)])) == [ROUND_TRIP_MS]
    assert get_pauses(fetcher.schedule()) == [2 * ROUND_TRIP_MS], "what came before does not count"


def test_every_turn_asks_another_replica_of_the_shard_also_while_something_comes(fetcher):
    asked = []
    for turn in range(2 * PRESET.validators_per_shard):
        effects = fetcher.want([build(1), build(10 + turn)])
        asked.append(next(effect.to for effect in effects if isinstance(effect, Send)))
        fetcher.on_received(build(10 + turn).hash)
        fetcher.schedule()
        fetcher.turn()
    assert asked == [f"shard-0-{turn % PRESET.validators_per_shard}" for turn in range(len(asked))]
