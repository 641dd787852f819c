"""I1, I2, I3, X5 under generated message flows over three shards: supply at every cut, one order for every reader."""

from crosslink_test_model import SHARD_SUPPLY, Send, World
from hypothesis import given, settings
from hypothesis import strategies as st

from crosslink.state import check_supply, get_available, iterate_pending
from crosslink.validity import check_submission
from shardyard.codec import decode
from shardyard.crosslinks import BeaconBody
from shardyard.receipts import ReceiptKind, compute_escrow

SHARDS = 3
MAX_VALUE = SHARD_SUPPLY // 1000

transfers = st.builds(Send, dst=st.integers(0, 1), value=st.integers(0, MAX_VALUE))
calls = st.builds(
    Send,
    dst=st.integers(0, 1),
    value=st.integers(0, MAX_VALUE),
    kind=st.sampled_from([ReceiptKind.CALL, ReceiptKind.RESULT, ReceiptKind.BOUNCE]),
    gas_limit=st.sampled_from([0, 21_000, 150_000, 299_999]),
    gas_price=st.integers(0, 10**10),
    reply_gas=st.integers(0, 100_000),
)
blocks = st.tuples(
    st.lists(transfers | calls, max_size=4),
    st.booleans(),  # whether the block moves to the newest beacon reference
    st.integers(0, 10**9),  # wei burnt
)
rounds = st.lists(
    st.tuples(
        *(st.lists(blocks, max_size=3) for _ in range(SHARDS)),
        st.lists(st.booleans(), min_size=3, max_size=3),
    ),
    min_size=1,
    max_size=6,
)


def play(world, plan):
    """Let every shard make its blocks and submit when it is said to, then make one beacon block; yield each round."""
    for *by_shard, submits in plan:
        for shard, made in enumerate(by_shard):
            model = world.shards[shard]
            for sends, is_fresh, burnt in made:
                ref = world.tip_ref if is_fresh else None
                model.make_block([aim(send, shard) for send in sends], beacon_ref=ref, burnt=burnt)
            if submits[shard] and model.pending:
                world.submit(shard)
        yield world.make_beacon_block()


def aim(send, shard):
    """Point ``send`` at one of the two other shards; a reply has no reply gas."""
    is_reply = send.kind in {ReceiptKind.RESULT, ReceiptKind.BOUNCE}
    return Send(
        dst=(shard + 1 + send.dst) % SHARDS,
        value=send.value,
        kind=send.kind,
        gas_limit=send.gas_limit,
        gas_price=send.gas_price,
        reply_gas=0 if is_reply else send.reply_gas,
    )


def build_world():
    return World(
        SHARDS, block_time_ms=1, max_receipt_gas=300_000
    )  # 300,000 gas of inbox per block: queues form


@settings(max_examples=40)
@given(rounds)
def test_i1_supply_holds_at_every_cut_and_no_honest_crosslink_is_refused(plan):
    world = build_world()
    for _, (*_, submits) in zip(play(world, plan), plan, strict=True):
        table = world.state.get_supply()
        assert table.total == table.genesis == SHARDS * SHARD_SUPPLY
        check_supply(world.state)
        for shard, is_submitted in enumerate(submits):
            model = world.shards[shard]
            assert not (is_submitted and model.pending), "an honest crosslink was left out"
            if not model.pending:  # the beacon's sum from bodies is the shard's own
                assert world.state.shards[shard].balance == model.balance
    for shard, entry in enumerate(world.state.shards):
        in_flight = world.shards[shard].inbox[entry.inbox.position :]
        assert entry.inbox.in_flight == sum(compute_escrow(receipt) for _, receipt in in_flight)
        assert entry.inbox.length == len(world.shards[shard].inbox)


@settings(max_examples=40)
@given(rounds, st.randoms(use_true_random=False))
def test_x5_order_is_the_same_for_every_reader_whatever_order_bodies_arrive_in(plan, shuffler):
    world, reader = build_world(), build_world()
    for block in play(world, plan):
        crosslinks = list(decode(block.body, BeaconBody, max_bytes=1 << 20).crosslinks)
        shuffler.shuffle(crosslinks)
        for crosslink in crosslinks:
            submission = world.bodies.get(crosslink.hash).submission
            reader.bodies.add(check_submission(reader.genesis, reader.crypto, submission))
        reader.blocks[block.header.height] = block
        reader.ledger.apply_final(block)
        assert reader.state == world.state
        assert reader.state.compute_root() == block.header.beacon_content.state_root


@settings(max_examples=40)
@given(rounds)
def test_i2_i3_every_link_is_dense_and_in_order_in_every_inbox(plan):
    world = build_world()
    for _ in play(world, plan):
        pass
    for model in world.shards:
        for src in range(SHARDS):
            seqs = [receipt.seq for _, receipt in model.inbox if receipt.src == src]
            assert seqs == list(range(1, len(seqs) + 1))
            assert world.state.shards[src].last_seqs[model.shard] == len(seqs)


@settings(max_examples=40)
@given(rounds)
def test_pending_escrows_are_exactly_what_is_not_consumed(plan):
    world = build_world()
    for _ in play(world, plan):
        for entry in world.state.shards:
            pending = list(iterate_pending(entry.inbox))
            assert len(pending) == entry.inbox.length - entry.inbox.position
            assert all(batch.last_position > entry.inbox.position for batch in entry.inbox.batches)
            assert sum(escrow for escrow, _ in pending) == entry.inbox.in_flight
            assert get_available(entry.inbox, world.state.height) == entry.inbox.length
