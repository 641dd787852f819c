"""What of the beacon a shard keeps: before it can verify it (I14), and in its log."""

import msgspec
import pytest

from shards import inbox as inbox_module
from shards.bundles import MIN_RECEIPT_BYTES
from shardyard.blocks import EMPTY_JUSTIFICATION
from shardyard.codec import encode
from shardyard.consensus.justify import check_block
from shardyard.crosslinks import Bundle
from shardyard.effects import Persist
from shardyard.ids import BEACON
from shardyard.messages import RangeResponse
from tests.unit.shards.world import build_transfer, followed

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


@pytest.mark.parametrize("signature_bytes", [96, 1000])
@pytest.mark.parametrize("is_range", [False, True])
def test_the_log_has_of_a_beacon_block_only_what_is_proven(chain, follower, is_range, signature_bytes):
    """What a liar puts beside header and body would fill the log, and make the audit of an honest node fail."""
    chain.add()
    block, proof = chain.add()
    follower.on_final_block("beacon-0", chain.blocks[1], chain.proofs[1])
    beside = {"signature": bytes(signature_bytes), "beacon_proof": bytes(1000)}
    false = replace(block, justification=EMPTY_JUSTIFICATION, **beside)
    if is_range:
        follower.start()
        outputs = follower.on_range_response("liar", RangeResponse(BEACON, (false,), proof))
    else:
        outputs = follower.on_final_block("liar", false, proof)
    (record,) = (record for item in outputs if isinstance(item, Persist) for record in item.records)
    check_block(record.block, follower._domain, follower._committee)
    assert (record.block.header, record.block.body) == (block.header, block.body)
    assert (record.block.signature, record.block.beacon_proof) == (b"", b"")


def test_i14_the_next_block_is_judged_however_large_it_is(chain, follower, monkeypatch):
    monkeypatch.setattr(inbox_module, "MAX_ANNOUNCED_BYTES", 1)
    assert followed(follower.on_final_block("beacon-0", *chain.add()))


def test_i14_bundles_of_empty_receipts_are_not_kept(chain, follower):
    """A message of 24 MiB holds twelve million of them, which weigh nothing where only bytes are counted."""
    count = follower._genesis.preset.max_bundle_bytes // MIN_RECEIPT_BYTES + 1
    for number in range(3):
        follower.on_bundle("liar", Bundle(bytes((number,)) * 32, 0, 1, (b"",) * count))
    assert len(follower._early) == 0
    smallest = build_transfer()
    assert len(smallest) >= MIN_RECEIPT_BYTES
    follower.on_bundle("beacon-0", Bundle(b"\x09" * 32, 0, 1, (smallest,)))
    assert len(follower._early) == 1


def test_i14_who_was_not_asked_for_a_range_costs_one_proof_a_question(chain, follower, monkeypatch):
    proofs = []
    monkeypatch.setattr(inbox_module, "verify_range", lambda *args: proofs.append(args) or [])
    chain.add()
    follower.start()
    response = RangeResponse(BEACON, (chain.blocks[1],), chain.proofs[1])
    for _ in range(3):
        assert follower.on_range_response("liar", response) == []
    assert len(proofs) == 1
    for number in range(3 * inbox_module.MAX_BEACON_NODES):
        follower.on_range_response(f"liar-{number}", response)
    assert len(proofs) == inbox_module.MAX_BEACON_NODES
    follower.on_range_response("beacon-0", response)
    assert len(proofs) == inbox_module.MAX_BEACON_NODES + 1, "whoever was asked is heard"
    follower.start()
    follower.on_range_response("liar", response)
    assert len(proofs) == inbox_module.MAX_BEACON_NODES + 2, "another question"
