"""Claims about execution policy: each rule of a header refuses the one lie planted against it."""

import msgspec
import pytest

from shards.policy import (
    MAX_BASE_FEE,
    compute_base_fee,
    verify_body,
    verify_emission,
    verify_header,
    verify_results,
)
from shardyard.blocks import BeaconRef, BlockKind, ShardBody, compute_body_hash
from shardyard.codec import encode
from shardyard.errors import InvalidBlockError
from shardyard.receipts import compute_link_summaries, compute_outbox_root
from tests.unit.shards.world import (
    EMPTY_SUMMARY,
    BeaconChain,
    build_genesis,
    build_receipt,
    build_ref,
    build_shard_header,
)

replace = msgspec.structs.replace
GENESIS = build_genesis()
PARENT, _ = build_shard_header(GENESIS, GENESIS.build_shard_block(0))
BLOCK, ENV = build_shard_header(GENESIS, PARENT)
HEADER = BLOCK.header
DAY_MS = 24 * 3600 * 1000


def content_with(**changes):
    return {"content": replace(HEADER.content, **changes)}


def test_an_honest_block_is_valid():
    verify_header(GENESIS, PARENT.header, HEADER)
    verify_body(GENESIS.preset, BLOCK)
    verify_results(GENESIS, PARENT.header, HEADER, ENV, EMPTY_SUMMARY)


@pytest.mark.parametrize(
    ("lie", "word"),
    [
        ({"version": 2}, "version"),
        ({"network": bytes(32)}, "network"),
        ({"shard": 1}, "shard"),
        ({"epoch": 1}, "epoch"),
        ({"kind": BlockKind.SEAL}, "kind"),
        ({"height": HEADER.height + 1}, "height"),
        ({"parent": bytes(32)}, "parent"),
        ({"parent_slot": 0}, "parent slot"),
        ({"slot": PARENT.header.slot}, "slot"),
        ({"proposer": (HEADER.proposer + 1) % 4}, "proposer"),
        ({"timestamp_ms": PARENT.header.timestamp_ms}, "timestamp"),
        ({"timestamp_ms": PARENT.header.timestamp_ms + DAY_MS + 1}, "timestamp"),
        ({"content": GENESIS.beacon_block.header.content}, "content"),
        (content_with(gas_limit=1), "gas limit"),
        (content_with(base_fee=HEADER.content.base_fee + 1), "base fee"),
        (content_with(beneficiary=bytes(20)), "beneficiary"),
        (content_with(prevrandao=bytes(32)), "prevrandao"),
        (content_with(snapshot_root=b"a" * 32), "snapshot root"),
        (content_with(inbox_position=1), "inbox position"),
        (content_with(delivery_count=1), "inbox position"),
    ],
)
def test_a_header_with_one_lie_is_refused_for_it(lie, word):
    with pytest.raises(InvalidBlockError, match=f"^{word}: "):
        verify_header(GENESIS, PARENT.header, replace(HEADER, **lie))


def test_a_timestamp_may_advance_by_the_largest_step():
    block, _ = build_shard_header(GENESIS, PARENT, step_ms=DAY_MS)
    verify_header(GENESIS, PARENT.header, block.header)  # P4


def test_x0_the_beacon_reference_never_moves_back_or_sideways():
    chain = BeaconChain(GENESIS)
    chain.add()
    chain.add()
    refs = [build_ref(block) for block in chain.blocks]
    parent, _ = build_shard_header(GENESIS, PARENT, beacon_ref=refs[1])
    for ref in refs[1:]:
        block, _ = build_shard_header(GENESIS, parent, beacon_ref=ref)
        verify_header(GENESIS, parent.header, block.header)
    for ref in (refs[0], BeaconRef(height=1, hash=b"x" * 32, epoch=0), replace(refs[1], epoch=1)):
        block, _ = build_shard_header(GENESIS, parent, beacon_ref=ref)
        with pytest.raises(InvalidBlockError, match=r"^beacon_ref: "):
            verify_header(GENESIS, parent.header, block.header)


@pytest.mark.parametrize(
    "field",
    [
        "state_root",
        "transactions_root",
        "outcomes_root",
        "outbox_root",
        "logs_bloom",
        "burnt",
        "transaction_count",
        "gas_used",
        "access_list_hash",
    ],
)
def test_a_result_that_execution_does_not_confirm_is_refused(field):
    truth = getattr(HEADER.content, field)
    lie = truth + 1 if isinstance(truth, int) else b"!" * len(truth)
    header = replace(HEADER, **content_with(**{field: lie}))
    with pytest.raises(InvalidBlockError, match=field.replace("_", " ")):
        verify_results(GENESIS, PARENT.header, header, ENV, EMPTY_SUMMARY)


@pytest.mark.parametrize(
    ("body", "word"),
    [
        (b"", "body"),
        (b"\xff", "body"),
        (encode(ShardBody(b"ab", (1,))), "body length"),
        (encode(ShardBody(b"ab", (2, 1))), "transaction count"),
        (encode(ShardBody(b"a", (0,))), "body"),
        (encode(ShardBody(b"a", (-1,))), "body"),
        (encode(ShardBody(bytes(200_000), (200_000,))), "body"),
        (encode(ShardBody(bytes(9 << 20), tuple(range(1 << 16, 9 << 20, 1 << 16)))), "body"),
    ],
)
def test_a_body_that_is_not_sound_is_refused(body, word):
    content = replace(HEADER.content, transaction_count=1)
    header = replace(HEADER, content=content, body_hash=compute_body_hash(body))
    with pytest.raises(InvalidBlockError, match=f"^{word}: "):
        verify_body(GENESIS.preset, replace(BLOCK, header=header, body=body))


def test_a_body_the_header_does_not_name_is_refused():
    with pytest.raises(InvalidBlockError, match=r"^body hash: "):
        verify_body(GENESIS.preset, replace(BLOCK, body=encode(ShardBody(b"a", (1,)))))


def summary_with(receipts):
    root = compute_outbox_root(compute_link_summaries(receipts))
    return replace(EMPTY_SUMMARY, outbox=tuple(receipts), outbox_root=root)


def test_a_block_that_emits_more_than_a_crosslink_carries_is_refused():
    payload = bytes(16 * 1024)
    fits = [build_receipt(seq=seq, payload=payload) for seq in range(1, 11)]
    verify_emission(GENESIS, 0, summary_with(fits))
    small = build_genesis(max_bundle_bytes=150_000)
    with pytest.raises(InvalidBlockError, match="outbox: "):
        verify_emission(small, 0, summary_with(fits))


def test_receipts_that_the_outbox_root_does_not_cover_are_refused():
    summary = replace(summary_with([build_receipt()]), outbox=(build_receipt(value=2),))
    with pytest.raises(InvalidBlockError, match="outbox root"):
        verify_emission(GENESIS, 0, summary)


def test_the_base_fee_follows_eip_1559():
    full = HEADER.content
    half = full.gas_limit // 2
    fee = 1_000_000_000
    for used, expected in (
        (half, fee),
        (full.gas_limit, fee * 9 // 8),
        (0, fee * 7 // 8),
        (half + 1, fee + fee // half // 8),
    ):
        assert compute_base_fee(replace(full, gas_used=used, base_fee=fee), 7) == expected
    assert compute_base_fee(replace(full, gas_used=half + 1, base_fee=7), 7) == 8  # at least one wei up
    assert compute_base_fee(replace(full, gas_used=0, base_fee=7), 7) == 7
    assert compute_base_fee(replace(full, gas_used=full.gas_limit, base_fee=MAX_BASE_FEE), 7) == MAX_BASE_FEE
