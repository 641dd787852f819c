"""Claims about following the beacon from a snapshot on (G5): the inbox is the same, and what was consumed is not fetched."""

import pytest

from shards import inbox as inbox_module
from shards.inbox import BeaconFollower
from shardyard import effects as fx
from tests.unit.shards.test_inbox import GENESIS, announce
from tests.unit.shards.world import (
    CRYPTO,
    build_crosslink,
    build_ref,
    build_transfer,
    bundle_of,
    followed,
)


def follow_all(chain, follower, pairs):
    for pair, bundles in pairs:
        announce(follower, pair)
        for bundle in bundles:
            follower.on_bundle("beacon-0", bundle)


def build_traffic(chain):
    """Three beacon blocks that bring the shard two, three and one receipts; one of the crosslinks is not for it."""
    receipts = [build_transfer(dst=1, seq=seq) for seq in range(1, 7)]
    parts = [receipts[:2], receipts[2:5], receipts[5:]]
    pairs = []
    for part in parts:
        crosslink = build_crosslink(0, part)
        pairs.append((chain.add(crosslink, build_crosslink(2)), [bundle_of(crosslink, part)]))
    return receipts, pairs


@pytest.mark.parametrize("position", range(7))
def test_a_shard_that_came_by_a_snapshot_reads_the_same_inbox_from_its_position_on(chain, follower, position):
    receipts, pairs = build_traffic(chain)
    follow_all(chain, follower, pairs)
    late = BeaconFollower(GENESIS, 1, CRYPTO)
    late.skip_to(build_ref(chain.blocks[3]), position)
    log, wanted = [], []
    for pair, (bundle,) in pairs:
        outputs = announce(late, pair)
        if not followed(outputs):
            wanted.append(bundle)
            outputs = [*outputs, *late.on_bundle("beacon-0", bundle)]
        log += [record for item in outputs if isinstance(item, fx.Persist) for record in item.records]
    assert late.head == follower.head
    assert late.select_deliveries(position, late.head) == tuple(receipts[position:])
    # What it had consumed wholly was never asked for.
    assert len(wanted) == sum(position < end for end in (2, 5, 6))
    again = BeaconFollower(GENESIS, 1, CRYPTO)
    again.skip_to(build_ref(chain.blocks[3]), position)
    for record in log:
        again.recover(record)
    assert again.head == late.head
    assert again.select_deliveries(position, again.head) == tuple(receipts[position:])


@pytest.mark.parametrize("known", range(4))
@pytest.mark.parametrize("position", [0, 1, 4, 6])
def test_a_snapshot_may_come_while_some_of_the_beacon_is_followed(chain, follower, position, known):
    receipts, pairs = build_traffic(chain)
    follow_all(chain, follower, pairs[:known])
    follower.skip_to(build_ref(chain.blocks[3]), position)
    follow_all(chain, follower, pairs[known:])
    assert follower.head.inbox_length == 6
    assert follower.select_deliveries(position, follower.head) == tuple(receipts[position:])
    assert follower.get_view(3) == follower.head
    assert follower.get_view(2) is None


def test_views_below_a_snapshot_are_not_kept_and_do_not_pause_the_follower(chain, follower, monkeypatch):
    monkeypatch.setattr(inbox_module, "MAX_VIEWS", 4)
    pairs = [chain.add() for _ in range(20)]
    follower.skip_to(build_ref(chain.blocks[18]), 0)
    for pair in pairs:
        announce(follower, pair)
    assert follower.head.ref.height == 20
