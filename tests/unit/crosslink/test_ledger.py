"""What a beacon block must be, the order of receipts that follows from it, and supply at every cut."""

import msgspec
import pytest
from crosslink_test_model import ETHER, SHARD_SUPPLY, Send, World, build_beacon_block

from crosslink.state import (
    apply_crosslinks,
    build_genesis_state,
    check_supply,
    encode_entry,
    get_available,
    sort_by_visit,
)
from crosslink.validity import check_submission
from shardyard.blocks import BeaconContent
from shardyard.codec import decode, encode
from shardyard.crosslinks import BeaconBody, compute_crosslinks_root
from shardyard.errors import InvalidBlockError, LocalProtocolError, SupplyError
from shardyard.ids import BEACON, ZERO_HASH
from shardyard.merkle import compute_proof, compute_root, verify_proof
from shardyard.receipts import ReceiptKind

replace = msgspec.structs.replace


def submit_all(world):
    """Every shard sends one message to every other."""
    count = len(world.shards)
    for shard, model in enumerate(world.shards):
        model.make_block([Send(dst, value=ETHER) for dst in range(count) if dst != shard])
        world.submit(shard)


def build_block(world, crosslinks, **changes):
    """A beacon block with exactly ``crosslinks``, whatever they are, on the final block."""
    parent = world.ledger.final_block
    content, _, _ = world.ledger.build(parent, world.state)
    content = replace(
        content, crosslinks_root=compute_crosslinks_root(crosslinks), crosslink_count=len(crosslinks)
    )
    body = encode(BeaconBody(crosslinks=tuple(crosslinks)))
    return build_beacon_block(world.genesis, world.crypto, parent, replace(content, **changes), body)


def execute(world, block):
    return world.ledger.execute(world.ledger.final_block, world.state, block)


def refuse(world, block, match):
    with pytest.raises(InvalidBlockError, match=match):
        execute(world, block)


def test_x5_leader_visits_shards_from_height_modulo_count_on(world):
    submit_all(world)
    body = decode(world.make_beacon_block().body, BeaconBody, max_bytes=1 << 20)
    assert [crosslink.shard for crosslink in body.crosslinks] == [1, 2, 0]
    assert [batch.src for batch in world.state.shards[0].inbox.batches] == [1, 2]
    assert [batch.src for batch in world.state.shards[2].inbox.batches] == [1, 0]


def test_x5_inbox_order_is_height_then_visit_then_seq(world):
    for _ in range(3):
        submit_all(world)
        world.make_beacon_block()
    batches = world.state.shards[0].inbox.batches
    assert [(batch.beacon_height, batch.src) for batch in batches] == [
        (1, 1),
        (1, 2),
        (2, 2),
        (2, 1),
        (3, 1),
        (3, 2),
    ]
    assert [batch.first_position for batch in batches] == [1, 2, 3, 4, 5, 6]


def test_x5_every_reader_of_the_same_blocks_computes_the_same_order(world):
    reader = World()
    for _ in range(4):
        submit_all(world)
        block = world.make_beacon_block()
        crosslinks = decode(block.body, BeaconBody, max_bytes=1 << 20).crosslinks
        held = [world.bodies.get(crosslink.hash).submission for crosslink in crosslinks]
        for submission in reversed(held):  # bodies arrive in another order
            reader.bodies.add(check_submission(reader.genesis, reader.crypto, submission))
        reader.blocks[block.header.height] = block
        reader.ledger.apply_final(block)
    assert reader.state == world.state
    assert reader.state.compute_root() == world.state.compute_root()


def test_x4_block_with_an_invalid_crosslink_is_invalid(world):
    world.shards[0].make_block([Send(1, value=SHARD_SUPPLY + 1)])
    overspent = world.submit(0)
    assert (
        world.ledger.build(world.ledger.final_block, world.state)[0].crosslink_count == 0
    )  # leaders omit it
    refuse(world, build_block(world, [overspent.crosslink]), "spends 1 wei more")


def test_x4_two_crosslinks_of_one_shard_or_out_of_turn_are_invalid(world):
    submit_all(world)
    open_ones = [world.bodies.get_children(shard, ZERO_HASH)[0].facts.crosslink for shard in (0, 1, 2)]
    zero, one, two = open_ones
    refuse(world, build_block(world, [one, one]), "out of visit order or twice")
    refuse(world, build_block(world, [zero, one]), "out of visit order")
    refuse(world, build_block(world, [replace(one, shard=9)]), "out of visit order")
    execute(world, build_block(world, [one, two, zero]))


def test_header_that_lies_about_its_body_is_invalid(world):
    submit_all(world)
    crosslinks = [world.bodies.get_children(shard, ZERO_HASH)[0].facts.crosslink for shard in (1, 2, 0)]
    execute(world, build_block(world, crosslinks))
    refuse(world, build_block(world, crosslinks, crosslink_count=2), "got 2 crosslinks")
    refuse(world, build_block(world, crosslinks, crosslinks_root=bytes(32)), "crosslinks root")
    refuse(world, build_block(world, crosslinks, state_root=bytes(32)), "got state root")
    refuse(world, build_block(world, crosslinks, registry_root=bytes(32)), "registry root")
    block = build_block(world, crosslinks)
    refuse(world, replace(block, body=b"\x91\x90"), "not the one its header commits to")
    shard_content = world.shards[0].head.content
    refuse(world, replace(block, header=replace(block.header, content=shard_content)), "content of a shard")


@pytest.mark.parametrize("body", [b"", b"\xc0", b"\x91\x91\x01", b"\x92\x90\x90", b"\xdc\x00\x01\x90"])
def test_garbage_body_is_invalid_even_if_committed_to(world, body):
    content = BeaconContent(
        crosslinks_root=ZERO_HASH,
        crosslink_count=0,
        state_root=ZERO_HASH,
        registry_root=world.genesis.committees[BEACON].root,
    )
    refuse(
        world,
        build_beacon_block(world.genesis, world.crypto, world.ledger.final_block, content, body),
        "BeaconBody|state root",
    )


def test_x10_missing_bodies_are_missing_not_invalid(world):
    submit_all(world)
    block = world.make_beacon_block()
    stranger = World()
    assert [crosslink.shard for crosslink in stranger.ledger.find_missing(block)] == [1, 2, 0]
    assert stranger.ledger.get_state(block) is None
    assert [crosslink.shard for crosslink in stranger.ledger.find_missing_above_final(block)] == [1, 2, 0]


def test_states_of_unfinalised_blocks_are_computed_on_demand(world):
    submit_all(world)
    parent = world.ledger.final_block
    content, body, _ = world.ledger.build(parent, world.state)
    first = build_beacon_block(world.genesis, world.crypto, parent, content, body)
    world.blocks[1] = first
    state = world.ledger.get_state(first)
    content, body, accepted = world.ledger.build(first, state)
    assert accepted == []  # nothing is included twice on one chain
    second = build_beacon_block(world.genesis, world.crypto, first, content, body)
    world.blocks[2] = second
    world.ledger._states.clear()
    assert world.ledger.get_state(second).height == 2
    assert world.state.height == 0
    world.ledger.apply_final(first)
    world.ledger.apply_final(second)
    assert world.state.height == 2


def test_final_blocks_apply_in_order_only(world):
    submit_all(world)
    block = world.make_beacon_block()
    with pytest.raises(LocalProtocolError, match="does not follow"):
        world.ledger.apply_final(block)


def test_genesis_state_holds_all_wei_on_shards(world):
    state = build_genesis_state(world.genesis)
    table = state.get_supply()
    assert table.total == table.genesis == 3 * SHARD_SUPPLY
    assert table.in_flight == (0, 0, 0)


def test_i1_planted_leak_is_caught(world):
    state = world.state
    entry = replace(state.shards[0], balance=state.shards[0].balance - 1)
    with pytest.raises(SupplyError, match="expected"):
        check_supply(replace(state, shards=(entry, *state.shards[1:])))


def test_i1_planted_debt_is_caught_though_the_sum_is_right(world):
    first, second, third = world.state.shards
    debtor = replace(first, balance=-1)
    creditor = replace(second, balance=second.balance + first.balance + 1)
    with pytest.raises(SupplyError, match="negative"):
        check_supply(replace(world.state, shards=(debtor, creditor, third)))


def test_i1_is_checked_whenever_crosslinks_are_applied(world):
    model = world.shards[0]
    model.make_block([Send(1, value=SHARD_SUPPLY + 1)])
    checked = check_submission(world.genesis, world.crypto, model.build_submission())
    with pytest.raises(SupplyError, match="negative"):
        apply_crosslinks(world.state, [checked.facts])


def test_x0_a_reference_above_the_block_at_hand_is_not_found(world):
    world.make_beacon_block()
    find_ref = world.ledger.build_find_ref(world.genesis.beacon_block)
    assert find_ref(0).hash == world.genesis.beacon_block.hash
    assert find_ref(1) is None
    assert find_ref(-1) is None


def test_x11_refunds_and_burns_keep_the_sum(world):
    call = Send(1, kind=ReceiptKind.CALL, gas_limit=50_000, gas_price=3, reply_gas=20_000, value=ETHER)
    world.shards[0].make_block([call])
    world.submit(0)
    world.make_beacon_block()
    refund = (50_000 - 30_000) * 3
    result = Send(0, kind=ReceiptKind.RESULT, gas_limit=20_000, gas_price=3, value=refund)
    world.shards[1].make_block([result], beacon_ref=world.tip_ref, burnt=30_000 * 3)
    world.submit(1)
    world.make_beacon_block()
    table = world.state.get_supply()
    assert table.total == table.genesis
    assert table.burnt == (0, 90_000, 0)
    assert table.in_flight == (refund + 60_000, 0, 0)
    assert table.balances[1] == SHARD_SUPPLY + ETHER


def test_available_position_counts_what_the_reference_shows(world):
    submit_all(world)
    world.make_beacon_block()
    submit_all(world)
    world.make_beacon_block()
    inbox = world.state.shards[0].inbox
    assert [get_available(inbox, height) for height in (0, 1, 2, 9)] == [0, 2, 4, 4]


def test_state_is_never_changed_in_place(world):
    submit_all(world)
    before, root = world.state, world.state.compute_root()
    facts = [world.bodies.get_children(shard, ZERO_HASH)[0].facts for shard in (0, 1, 2)]
    after = apply_crosslinks(before, sort_by_visit(1, 3, facts))
    assert before.compute_root() == root != after.compute_root()


def test_one_shard_entry_can_be_proven_from_the_state_root(world):
    submit_all(world)
    world.make_beacon_block()
    leaves = [encode_entry(entry) for entry in world.state.shards]
    verify_proof(leaves[1], compute_proof(leaves, 1), compute_root(leaves))


def test_state_root_covers_every_field_of_an_entry(world):
    submit_all(world)
    world.make_beacon_block()
    entry = world.state.shards[0]
    inbox = entry.inbox
    changed = [
        replace(entry, **{name: value})
        for name, value in {
            "crosslink": bytes(32),
            "last_height": 9,
            "head_hash": bytes(32),
            "state_root": bytes(32),
            "balance": 1,
            "burnt": 1,
            "base_fee": 1,
            "last_seqs": (9, 9, 9),
            "beacon_ref": replace(entry.beacon_ref, height=5),
        }.items()
    ] + [
        replace(entry, inbox=replace(inbox, **{name: value}))
        for name, value in {"length": 9, "position": 1, "in_flight": 1, "commitment": bytes(32)}.items()
    ]
    assert len({encode_entry(each) for each in [entry, *changed]}) == 1 + len(changed)
