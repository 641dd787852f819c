"""Claims about crosslinks: what one covers, when it is offered, and how long its receipts stay available."""

import msgspec
import pytest

from shards import outbox as outbox_module
from shards.outbox import CrosslinkAssembler
from shardyard import effects as fx
from shardyard.blocks import FinalityProof
from shardyard.messages import BundleAnnouncement, BundleRequest, SubmitCrosslink
from shardyard.receipts import compute_link_summaries, compute_outbox_root
from tests.unit.shards.world import (
    EMPTY_SUMMARY,
    build_crosslink,
    build_genesis,
    build_shard_header,
    build_transfer,
    prove,
)

replace = msgspec.structs.replace


class Shard:
    """A shard's final chain and its assembler."""

    def __init__(self, *, keys=range(4), **changes):
        self.genesis = build_genesis(3, **changes)
        self.blocks = [self.genesis.build_shard_block(0)]
        self.assembler = CrosslinkAssembler(self.genesis, 0, self.find, tuple(keys))
        self.next_seq = {1: 1, 2: 1}
        self.beacon_height = 0

    def find(self, height):
        if not 0 < height < len(self.blocks):
            return None
        return self.blocks[height].header, prove(self.genesis, self.blocks[height])

    def finalise(self, *destinations, size=0):
        outbox = []
        for dst in destinations:
            outbox.append(build_transfer(dst=dst, seq=self.next_seq[dst]))
            self.next_seq[dst] += 1
        root = compute_outbox_root(compute_link_summaries(outbox))
        summary = replace(EMPTY_SUMMARY, outbox=tuple(outbox), outbox_root=root)
        block, _ = build_shard_header(self.genesis, self.blocks[-1], summary=summary)
        self.blocks.append(block)
        self.assembler.on_final(block.header, outbox, congestion=size)
        return outbox

    def offer(self):
        return [item.message.submission for item in self.assembler.offer() if isinstance(item, fx.Broadcast)]

    def beacon(self, *crosslinks):
        self.beacon_height += 1
        self.assembler.on_beacon_block(self.beacon_height, crosslinks)


def ask(shard, crosslink, dst):
    request = BundleRequest(crosslink.hash, 0, dst)
    effects = shard.assembler.on_bundle_request("beacon-0", request)
    return [item.message.bundle.receipts for item in effects if isinstance(item.message, BundleAnnouncement)]


def test_a_crosslink_covers_the_final_blocks_after_the_last_accepted_one():
    shard = Shard()
    first = shard.finalise(1, 2) + shard.finalise(1)
    (offer,) = shard.offer()
    crosslink = offer.crosslink
    assert (crosslink.first_height, crosslink.last_height, crosslink.parent) == (1, 2, bytes(32))
    assert crosslink.links == compute_link_summaries(first)
    assert crosslink.burnt == (14).to_bytes(32, "big")
    assert isinstance(offer.proof, FinalityProof)
    shard.finalise(2)
    shard.beacon(crosslink)
    (later,) = shard.offer()
    assert (later.crosslink.first_height, later.crosslink.last_height) == (3, 3)
    assert later.crosslink.parent == crosslink.hash
    assert later.crosslink.burnt == (7).to_bytes(32, "big")


def test_one_crosslink_is_in_flight_until_the_beacon_moved_on_without_it():
    shard = Shard()
    shard.finalise()
    assert len(shard.offer()) == 1
    shard.finalise()
    assert shard.offer() == []
    shard.beacon()
    assert shard.offer() == []
    shard.beacon()
    (offer,) = shard.offer()
    assert offer.crosslink.last_height == 2


def test_what_is_in_flight_is_said_again_by_timer():
    shard = Shard()
    assert shard.assembler.on_tick() == []
    shard.finalise()
    (offer,) = shard.offer()
    assert shard.assembler.on_tick() == [fx.Broadcast(SubmitCrosslink(offer))]


def test_x14_replicas_that_are_not_first_hold_the_crosslink_and_offer_it_when_the_first_were_not_heard():
    shards = [Shard(keys=(key,)) for key in range(4)]
    for shard in shards:
        shard.finalise(1)
    offers = [shard.offer() for shard in shards]
    assert [len(found) for found in offers] == [1, 1, 0, 0]
    key = offers[0][0].crosslink.hash
    assert all(len(shard.assembler.on_crosslink_request("beacon-0", key)) == 1 for shard in shards)
    assert [len(shard.assembler.on_tick()) for shard in shards] == [0, 0, 1, 1]


def test_x14_an_accepted_crosslink_gives_the_next_one_its_first_turn():
    shards = [Shard(keys=(key,)) for key in range(4)]
    for shard in shards:
        shard.finalise()
        shard.offer()
        shard.assembler.on_tick()
    (accepted,) = {
        submission.crosslink for shard in shards for submission in shard.assembler._offered.values()
    }
    for shard in shards:
        shard.beacon(accepted)
        shard.finalise()
    first = int.from_bytes(accepted.hash[:8], "big") % 4
    assert {key for key in range(4) if shards[key].offer()} == {first, (first + 1) % 4}


def test_x4_a_crosslink_never_covers_more_blocks_than_its_cap():
    shard = Shard()
    for _ in range(70):
        shard.finalise()
    (offer,) = shard.offer()
    assert len(offer.headers) == len(offer.outboxes) == 64
    shard.beacon(offer.crosslink)
    assert len(shard.offer()[0].headers) == 6


def test_x10_a_crosslink_never_carries_more_bytes_than_its_cap():
    size = len(build_transfer(dst=1))
    shard = Shard(max_bundle_bytes=5 * size)
    for _ in range(3):
        shard.finalise(1, 1)
    (offer,) = shard.offer()
    assert offer.crosslink.last_height == 2
    shard.beacon(offer.crosslink)
    assert shard.offer()[0].crosslink.last_height == 3


def test_x10_receipts_stay_until_their_consumption_is_beacon_final():
    shard = Shard()
    shard.finalise(1, 2)
    shard.finalise(1)
    (offer,) = shard.offer()
    crosslink = offer.crosslink
    assert ask(shard, crosslink, 1) == []  # not accepted yet
    other = build_crosslink(2, [build_transfer(src=2, dst=1)])
    shard.beacon(other, crosslink)  # shard 1 gets another's receipt first
    assert [len(receipts) for receipts in ask(shard, crosslink, 1)] == [2]
    assert [len(receipts) for receipts in ask(shard, crosslink, 2)] == [1]
    shard.beacon(build_crosslink(2, inbox_position=1), build_crosslink(1, inbox_position=2))
    assert [len(receipts) for receipts in ask(shard, crosslink, 1)] == [2]
    shard.beacon(build_crosslink(1, inbox_position=3))
    assert ask(shard, crosslink, 1) == []
    assert shard.assembler._bytes == 0


def test_a_bundle_of_a_link_that_is_none_of_the_crosslinks_is_not_looked_for(monkeypatch):
    shard = Shard()
    shard.finalise(1)
    (offer,) = shard.offer()
    shard.beacon(offer.crosslink)
    monkeypatch.setattr(outbox_module, "decode_receipt", lambda _: pytest.fail("read"))
    assert ask(shard, offer.crosslink, 2) == []
    assert ask(shard, offer.crosslink, 99) == []


def test_a_replica_behind_its_own_shard_serves_what_others_offered():
    ahead, behind = Shard(), Shard()
    ahead.finalise(1)
    (offer,) = ahead.offer()
    behind.beacon(offer.crosslink)
    assert ask(behind, offer.crosslink, 1) == []
    behind.finalise(1)
    assert [len(receipts) for receipts in ask(behind, offer.crosslink, 1)] == [1]
    assert behind.offer() == []
    behind.finalise(1)
    assert behind.offer()[0].crosslink.parent == offer.crosslink.hash


def test_replicas_of_a_shard_offer_the_same_crosslink():
    left, right = Shard(), Shard()
    for shard in (left, right):
        shard.finalise(1, 2)
        shard.finalise(2)
    assert left.offer() == right.offer()


def test_a_crosslink_follows_one_that_ends_at_the_snapshots_block():
    shard = Shard()
    shard.finalise(1)
    (first,) = shard.offer()
    shard.beacon(first.crosslink)
    late = CrosslinkAssembler(
        shard.genesis, 0, lambda height: shard.find(height) if height > 1 else None, range(4)
    )
    late.begin_after(shard.blocks[1].header)
    late.on_beacon_block(1, [first.crosslink])
    for _ in range(3):
        outbox = shard.finalise(2)
        late.on_final(shard.blocks[-1].header, outbox, congestion=0)
    (effect,) = late.offer()
    assert effect.message.submission == shard.offer()[0]
    assert effect.message.submission.crosslink.burnt == (21).to_bytes(32, "big")


def test_a_follower_without_keys_offers_nothing():
    shard = Shard(keys=())
    shard.finalise(1)
    assert shard.offer() == []


def test_a_submission_is_served_while_it_may_be_missed():
    shard = Shard()
    shard.finalise(1)
    (offer,) = shard.offer()
    shard.beacon(offer.crosslink)
    served = shard.assembler.on_crosslink_request("beacon-1", offer.crosslink.hash)
    assert served == [fx.Send("beacon-1", SubmitCrosslink(offer))]
    assert shard.assembler.on_crosslink_request("beacon-1", bytes(32)) == []


def test_i14_too_much_waiting_is_told(monkeypatch):
    shard = Shard()
    monkeypatch.setattr(outbox_module, "MAX_OUTBOX_BLOCKS", 3)
    for _ in range(3):
        shard.finalise()
    assert not shard.assembler.is_full
    shard.finalise()
    assert shard.assembler.is_full
    (offer,) = shard.offer()
    shard.beacon(offer.crosslink)
    assert not shard.assembler.is_full
    monkeypatch.setattr(outbox_module, "MAX_OUTBOX_BYTES", 100)
    shard.finalise(1)
    assert shard.assembler.is_full


@pytest.mark.parametrize("heights", [1, 3])
def test_the_congestion_of_a_crosslink_is_that_of_its_head(heights):
    shard = Shard()
    for height in range(1, heights + 1):
        shard.finalise(size=10 * height)
    assert shard.offer()[0].crosslink.congestion == 10 * heights
