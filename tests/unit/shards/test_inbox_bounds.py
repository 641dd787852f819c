"""I14: what of the beacon a shard keeps before it can verify it."""

import msgspec

from shards import inbox as inbox_module
from shardyard.codec import encode
from shardyard.ids import BEACON
from shardyard.messages import RangeResponse
from tests.unit.shards.world import followed

replace = msgspec.structs.replace


def test_i14_announced_blocks_that_are_not_verified_are_bounded_in_bytes(chain, follower, monkeypatch):
    """One peer could have a shard keep 63 messages of the greatest length for as long as the beacon takes to come so far."""
    pairs = [chain.add() for _ in range(8)]
    monkeypatch.setattr(inbox_module, "MAX_ANNOUNCED_BYTES", 2500)
    for block, proof in pairs[1:]:
        follower.on_final_block("liar", replace(block, body=bytes(1000)), proof)
    kept = [item.block for item in follower._ahead.values()]
    assert 0 < sum(len(encode(block)) for block in kept) <= 2500
    # What is next is taken whatever is kept, and what the liar sent costs no more than asking.
    assert followed(follower.on_final_block("beacon-0", *pairs[0]))
    follower.start()
    response = RangeResponse(BEACON, tuple(chain.blocks[2:]), chain.proofs[-1])
    assert len(followed(follower.on_range_response("beacon-0", response))) == 7


def test_i14_the_next_block_is_judged_however_large_it_is(chain, follower, monkeypatch):
    monkeypatch.setattr(inbox_module, "MAX_ANNOUNCED_BYTES", 1)
    assert followed(follower.on_final_block("beacon-0", *chain.add()))
