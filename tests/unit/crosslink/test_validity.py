"""X4, X5, X11: every claim of a crosslink has a test in which a planted lie is refused, and nothing but it."""

import msgspec
import pytest
from crosslink_test_model import ETHER, SHARD_SUPPLY, Send, World, certify, prove

from crosslink.validity import AheadError, check_submission, verify_submission
from shardyard.blocks import BeaconRef, BlockKind
from shardyard.consensus.votes import VoteKind
from shardyard.errors import InvalidCrosslinkError, RemoteProtocolError
from shardyard.ids import BEACON
from shardyard.receipts import U256_MAX, ReceiptKind, count_deliveries

replace = msgspec.structs.replace


def verify(world, submission):
    return verify_submission(world.genesis, world.crypto, world.state, submission, world.find_ref)


def refuse(world, submission, match):
    with pytest.raises(RemoteProtocolError, match=match):
        verify(world, submission)


def make_plain(world, shard=0):
    """Two honest blocks with messages to both other shards."""
    model = world.shards[shard]
    others = [dst for dst in range(len(world.shards)) if dst != shard]
    model.make_block([Send(dst, value=ETHER) for dst in others])
    model.make_block([Send(others[0], value=2 * ETHER)], burnt=5)
    return model.build_submission()


def test_honest_submission_is_valid(world):
    checked = verify(world, make_plain(world))
    assert [(bundle.dst, len(bundle.receipts)) for bundle in checked.bundles] == [(1, 2), (2, 1)]
    assert checked.facts.emitted == 4 * ETHER
    assert checked.facts.burnt_total == 5


CLAIMS = [
    ("shard", 7, "expected a shard below"),
    ("shard", BEACON, "expected a shard below"),
    ("shard", 1, "belongs to another network, shard"),
    ("epoch", 1, "another network, shard, epoch"),
    ("parent", b"\x01" * 32, "got parent"),
    ("parent", b"", "parent that is no hash"),
    ("first_height", 0, "got heights 0..2"),
    ("first_height", 2, "got heights 2..2"),
    ("last_height", 3, "got heights 1..3"),
    ("head_hash", bytes(32), "the head is not that of its last header"),
    ("state_root", bytes(32), "the state root is not that"),
    ("links", (), "its links are not what its receipts give"),
    ("inbox_position", 1, "the inbox position is not that"),
    ("burnt", (4).to_bytes(32, "big"), "expected 5 wei"),
    ("burnt", b"\x05", "expected 5 wei"),
    ("congestion", -1, "congestion"),
    ("base_fee", 1, "the base fee is not that"),
]


@pytest.mark.parametrize(("name", "value", "match"), CLAIMS)
def test_x4_false_claim_is_refused(world, name, value, match):
    submission = make_plain(world)
    refuse(world, replace(submission, crosslink=replace(submission.crosslink, **{name: value})), match)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("first_seq", 2),
        ("last_seq", 3),
        ("link_root", bytes(32)),
        ("count", 3),
        ("escrow", bytes(32)),
        ("bytes", 1),
        ("dst", 2),
    ],
)
def test_x4_false_link_is_refused(world, name, value):
    submission = make_plain(world)
    first, *rest = submission.crosslink.links
    links = (replace(first, **{name: value}), *rest)
    refuse(
        world, replace(submission, crosslink=replace(submission.crosslink, links=links)), "its links are not"
    )


def test_x4_missing_or_extra_bodies_are_refused(world):
    submission = make_plain(world)
    refuse(world, replace(submission, outboxes=submission.outboxes[:1]), "outboxes for 2 headers")
    emptied = (submission.outboxes[0], ())
    refuse(world, replace(submission, outboxes=emptied), "got receipts of root")
    doubled = (submission.outboxes[0], submission.outboxes[1] * 2)
    refuse(world, replace(submission, outboxes=doubled), "got seq")
    swapped = (submission.outboxes[0][::-1], submission.outboxes[1])
    verify(
        world, replace(submission, outboxes=swapped)
    )  # other links interleaved otherwise: the same receipts
    refuse(world, replace(submission, outboxes=((b"\xc1",), ())), "Receipt")


def test_x4_no_headers_or_too_many_are_refused(world):
    submission = make_plain(world)
    refuse(world, replace(submission, headers=(), outboxes=()), "got 0 blocks")
    small = World(max_crosslink_blocks=1)
    refuse(small, make_plain(small), "got 2 blocks, expected 1..1")


def test_x4_headers_must_be_a_dense_chain_of_the_shard(world):
    submission = make_plain(world)
    first, second = submission.headers

    def with_first(**changes):
        return replace(submission, headers=(replace(first, **changes), second))

    for changes in ({"version": 2}, {"network": bytes(32)}, {"kind": BlockKind.SEAL}, {"slot": 1 << 32}):
        refuse(world, with_first(**changes), "another network, shard, epoch or kind")
    refuse(world, with_first(height=2), "got height 2, expected 1")
    refuse(world, with_first(timestamp_ms=7), "is not a child of the one before")
    refuse(
        world,
        with_first(content=world.genesis.beacon_block.header.content),
        "not a child|content of a beacon",
    )


def test_x4_content_of_a_beacon_block_in_a_lone_header_is_refused(world):
    model = world.shards[0]
    made = model.make_block()
    submission = model.build_submission()
    header = replace(made.header, content=world.genesis.beacon_block.header.content)
    refuse(world, replace(submission, headers=(header,)), "content of a beacon block")


def test_x4_proof_of_another_block_is_refused(world):
    submission = make_plain(world)
    earlier = world.shards[0].pending[0]
    proof = prove(world.genesis, world.crypto, earlier.header, earlier.justification)
    refuse(world, replace(submission, proof=proof), "proof is of another block")


def test_x4_proof_without_quorum_is_refused(world):
    submission = make_plain(world)
    head = world.shards[0].pending[-1]
    proof = prove(world.genesis, world.crypto, head.header, head.justification, signers=[0, 1])
    refuse(world, replace(submission, proof=proof), "expected at least")


def test_x4_proof_by_another_committee_is_refused(world):
    submission = make_plain(world)
    head = world.shards[0].pending[-1].header
    foreign = certify(world.genesis, world.crypto, 1, VoteKind.FINAL, head.slot, head.hash)
    proof = replace(submission.proof, finalization=foreign)
    refuse(world, replace(submission, proof=proof), "does not verify")


def test_x4_crosslink_without_its_predecessor_is_refused(world):
    model = world.shards[0]
    make_plain(world)
    later = model.build_submission(model.pending[1:])
    refuse(world, later, "got first height 2, expected 1")


def test_x4_second_crosslink_continues_heights_seqs_and_parent(world):
    make_plain(world)
    world.submit(0)
    world.make_beacon_block()
    model = world.shards[0]
    model.make_block([Send(1, value=1)])
    follow_up = model.build_submission()
    assert follow_up.crosslink.links[0].first_seq == 3
    verify(world, follow_up)
    unlinked = replace(follow_up, crosslink=replace(follow_up.crosslink, parent=bytes(32)))
    refuse(world, unlinked, "got parent")


def test_x4_block_on_another_head_is_refused(world):
    make_plain(world)
    world.submit(0)
    world.make_beacon_block()
    fork = World().shards[0]  # the same shard, with other blocks below
    fork.make_block()
    fork.make_block()
    fork.pending.clear()
    fork.make_block()
    fork.last_crosslink = world.shards[0].last_crosslink
    refuse(world, fork.build_submission(), "not a child of the last head")


@pytest.mark.parametrize("first_seq", [1, 4])
def test_x4_gap_or_repetition_between_crosslinks_is_refused(world, first_seq):
    make_plain(world)
    world.submit(0)
    world.make_beacon_block()
    model = world.shards[0]
    model.last_seqs[1] = first_seq - 1
    model.make_block([Send(1, value=1)])
    refuse(world, model.build_submission(), f"got first seq {first_seq}, expected 3")


BAD_RECEIPTS = [
    ({"version": 2}, "got version 2"),
    ({"src": 2}, "got source 2"),
    ({"dst": 0}, "expected another shard"),
    ({"dst": 3}, "expected another shard"),
    ({"dst": BEACON}, "expected another shard"),
    ({"seq": 0}, "seq 0"),
    ({"gas_price": -1}, "outside 64 bits"),
    ({"gas_limit": -1, "gas_price": 10**18}, "outside 64 bits"),
    ({"reply_gas": -1, "gas_price": 1}, "outside 64 bits"),
    ({"deadline": -1}, "outside 64 bits"),
    ({"gas_limit": 16_000_001}, "expected at most 16000000"),
    ({"kind": ReceiptKind.CALL, "reply_gas": 16_000_001}, "expected at most 16000000"),
    ({"value": b"\x01"}, "expected hashes and values of 32 bytes"),
    ({"value": b"\x01" + bytes(32)}, "expected hashes and values of 32 bytes"),
    ({"value": b"\xff" * 32, "kind": ReceiptKind.CALL, "gas_limit": 1, "gas_price": 1}, "at most 256 bits"),
    ({"id": b""}, "expected hashes and values"),
    ({"target": bytes(32)}, "addresses of 20"),
    ({"refund_to": b""}, "addresses of 20"),
    ({"payload": bytes(16385), "kind": ReceiptKind.CALL}, "got a payload of 16385 bytes"),
    ({"payload": bytes(40_000), "kind": ReceiptKind.CALL}, "expected at most 32768"),
    ({"payload": b"x"}, "TRANSFER with gas or a payload"),
    ({"kind": ReceiptKind.DEPOSIT}, "which no shard emits"),
    ({"kind": ReceiptKind.WITHDRAWAL}, "which no shard emits"),
    ({"kind": ReceiptKind.RESULT}, "no parent"),
    ({"kind": ReceiptKind.BOUNCE, "parent_id": b"\x01" * 32, "reply_gas": 1}, "reply gas"),
    ({"kind": ReceiptKind.BOUNCE, "parent_id": b"\x01" * 32, "deadline": 1}, "a deadline"),
]


@pytest.mark.parametrize(("changes", "match"), BAD_RECEIPTS)
def test_x4_poison_receipt_is_refused_though_committed_to(world, changes, match):
    model = world.shards[0]
    model.make_block([Send(1, value=1, changes=changes)])
    refuse(world, model.build_submission(), match)


def test_x2_sum_of_escrows_beyond_256_bits_is_refused(world):
    model = world.shards[0]
    model.make_block([Send(1, value=U256_MAX), Send(1, value=1)])
    refuse(world, model.build_submission(), "more than 256 bits")


def test_x2_sum_over_blocks_beyond_256_bits_is_refused(world):
    model = world.shards[0]
    model.make_block([Send(1, value=U256_MAX)])
    model.make_block([Send(1, value=U256_MAX)])
    refuse(world, model.build_submission(), "more than 256 bits")


def test_x10_more_bytes_than_a_crosslink_carries_is_refused():
    small = World(max_bundle_bytes=700)
    model = small.shards[0]
    for _ in range(4):
        model.make_block([Send(1, value=1)])
    assert sum(link.bytes for link in model.build_submission().crosslink.links) > 700
    refuse(small, model.build_submission(), "expected at most 700")
    verify(small, model.build_submission(model.pending[:2]))


def test_x11_shard_cannot_emit_more_than_it_has(world):
    model = world.shards[0]
    model.make_block([Send(1, value=SHARD_SUPPLY + 1)])
    refuse(world, model.build_submission(), "spends 1 wei more than it has")


def test_x11_shard_cannot_burn_more_than_it_has(world):
    model = world.shards[0]
    model.make_block(burnt=SHARD_SUPPLY + 7)
    refuse(world, model.build_submission(), "spends 7 wei more than it has")


def test_x11_shard_may_emit_all_it_has(world):
    model = world.shards[0]
    model.make_block([Send(1, value=SHARD_SUPPLY)])
    verify(world, model.build_submission())


def test_x11_burnt_never_shrinks_within_a_crosslink(world):
    model = world.shards[0]
    model.make_block(burnt=9)
    model.make_block(burnt=-1)
    refuse(world, model.build_submission(), "became fewer")


def test_x11_burnt_never_shrinks_between_crosslinks(world):
    model = world.shards[0]
    model.make_block(burnt=9)
    world.submit(0)
    world.make_beacon_block()
    model.make_block(burnt=-3)
    refuse(world, model.build_submission(burnt=bytes(32)), "expected -3 wei")


@pytest.mark.parametrize("burnt", [b"", bytes(33)])
def test_x11_malformed_burnt_is_refused(world, burnt):
    model = world.shards[0]
    model.make_block()
    made = model.make_block(burnt=0)
    model.pending[-1].header = replace(made.header, content=replace(made.header.shard_content, burnt=burnt))
    submission = model.build_submission(burnt=bytes(32))
    refuse(world, submission, "expected 32")


def deliver_one(world, gas_limit=100_000):
    """Put two messages of ``gas_limit`` each into the inbox of shard 1; return the reference that shows them."""
    call = Send(1, kind=ReceiptKind.CALL, gas_limit=gas_limit, gas_price=1, value=10)
    world.shards[0].make_block([call, call])
    world.submit(0)
    world.make_beacon_block()
    return world.tip_ref


def test_x2_base_fee_that_no_shard_could_use_as_a_floor_is_refused(world):
    model = world.shards[0]
    model.make_block(base_fee=-1)
    refuse(world, model.build_submission(), "got base fee -1")


def test_x5_inbox_is_consumed_as_far_as_the_reference_shows_it(world):
    ref = deliver_one(world)
    model = world.shards[1]
    model.make_block()  # the old reference shows nothing
    made = model.make_block(beacon_ref=ref)
    assert made.header.shard_content.inbox_position == 2
    verify(world, model.build_submission())


@pytest.mark.parametrize(
    ("taken", "position"), [(0, 0), (1, 1), (3, 3), (2, 1), (1, 2), (2**63, 2**63), (-1, -1)]
)
def test_x5_wrong_inbox_position_is_refused(world, taken, position):
    ref = deliver_one(world)
    model = world.shards[1]
    model.make_block(beacon_ref=ref, inbox_position=position, delivery_count=taken)
    refuse(world, model.build_submission(), "expected 2 after 2|expected 1 after 1")


def test_x5_reading_before_the_reference_shows_it_is_refused(world):
    deliver_one(world)
    model = world.shards[1]
    model.make_block(inbox_position=2, delivery_count=2)
    refuse(world, model.build_submission(), "expected 0 after 0")


def test_x5_inbox_gas_bounds_a_block_and_nothing_is_skipped():
    world = World(block_time_ms=1)  # 300,000 gas of inbox per block
    ref = deliver_one(world, gas_limit=200_000)
    model = world.shards[1]
    assert model.make_block(beacon_ref=ref).header.shard_content.inbox_position == 1
    assert model.make_block().header.shard_content.inbox_position == 2
    verify(world, model.build_submission())


def test_x0_reference_off_the_beacons_chain_is_refused(world):
    deliver_one(world)
    model = world.shards[1]
    model.make_block(beacon_ref=BeaconRef(height=1, hash=b"\x07" * 32, epoch=0))
    refuse(world, model.build_submission(), "is not on the beacon's chain")


def test_x0_reference_above_the_tip_is_only_early(world):
    model = world.shards[1]
    model.make_block(beacon_ref=BeaconRef(height=1, hash=b"\x07" * 32, epoch=0))
    with pytest.raises(AheadError):
        verify(world, model.build_submission())


def test_x0_reference_never_goes_back(world):
    ref = deliver_one(world)
    model = world.shards[1]
    genesis_ref = model.head.shard_content.beacon_ref
    model.make_block(beacon_ref=ref)
    model.make_block(beacon_ref=genesis_ref, inbox_position=2, delivery_count=0)
    refuse(world, model.build_submission(), "got beacon reference 0 after 1")


def test_x5_receipt_that_fills_the_inbox_gas_exactly_is_taken():
    world = World(block_time_ms=1)
    ref = deliver_one(world, gas_limit=150_000)
    model = world.shards[1]
    assert model.make_block(beacon_ref=ref).header.shard_content.inbox_position == 2
    assert count_deliveries([300_000, 0, 1], 300_000) == 2
    verify(world, model.build_submission())


def test_wrong_types_inside_a_submission_are_peer_errors(world):
    submission = make_plain(world)
    for broken in (
        replace(submission, proof=replace(submission.proof, path=())),
        replace(submission, outboxes=((b"",), ())),
        replace(submission, outboxes=((b"\xff" * 100,), ())),
    ):
        with pytest.raises(RemoteProtocolError):
            check_submission(world.genesis, world.crypto, broken)


def test_refusals_carry_their_own_type(world):
    submission = make_plain(world)
    with pytest.raises(InvalidCrosslinkError):
        verify(world, replace(submission, crosslink=replace(submission.crosslink, shard=99)))
