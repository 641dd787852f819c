"""A shard under generated disorder: any order of beacon messages gives one inbox, and no bytes of a peer raise."""

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.inbox import BUNDLE_TIMER, FOLLOW_TIMER, BeaconFollower
from shards.replica import ShardReplica
from shardyard import effects as fx
from shardyard.consensus.engine import NoBlockSource
from shardyard.consensus.simplex import SimplexEngine
from shardyard.events import MessageReceived, Started
from shardyard.ids import BEACON
from shardyard.messages import (
    BlockRequest,
    BlockResponse,
    BundleAnnouncement,
    BundleRequest,
    Certificates,
    CrosslinkRequest,
    FinalBlock,
    Message,
    Proposal,
    RangeRequest,
    RangeResponse,
    Status,
)
from tests.unit.shards.world import (
    CRYPTO,
    GENESIS_MS,
    BeaconChain,
    build_crosslink,
    build_genesis,
    build_shard_header,
    build_transfer,
    bundle_of,
    certify,
    prove,
)

GENESIS = build_genesis(3)
HEIGHT = 6


def build_traffic():
    """Six beacon blocks with receipts from shards 0 and 2 to shard 1; returns chain, bundles and the inbox they give."""
    chain, bundles, inbox = BeaconChain(GENESIS), [], []
    parents, seqs = {0: bytes(32), 2: bytes(32)}, {0: 1, 2: 1}
    for height in range(1, HEIGHT + 1):
        crosslinks = []
        for src in (0, 2) if height % 2 else (2, 0):
            receipts = [build_transfer(src, 1, seqs[src] + offset) for offset in range((height + src) % 3)]
            seqs[src] += len(receipts)
            crosslink = build_crosslink(src, receipts, parent=parents[src], last_height=height)
            parents[src] = crosslink.hash
            crosslinks.append(crosslink)
            inbox += receipts
            if receipts:
                bundles.append(bundle_of(crosslink, receipts))
        chain.add(*crosslinks)
    return chain, bundles, tuple(inbox)


CHAIN, BUNDLES, INBOX = build_traffic()


def serve(follower, outputs):
    """Answer what the follower asks, as beacon and source do."""
    queue = list(outputs)
    while queue:
        item = queue.pop(0)
        if not isinstance(item, fx.Send):
            continue
        if isinstance(item.message, RangeRequest):
            blocks = tuple(CHAIN.blocks[item.message.first_height : item.message.first_height + 2])
            proof = CHAIN.proofs[blocks[-1].header.height] if blocks else None
            queue += follower.on_range_response(item.to, RangeResponse(BEACON, blocks, proof))
        elif isinstance(item.message, BundleRequest):
            wanted = (item.message.crosslink, item.message.dst)
            bundle = next(found for found in BUNDLES if (found.crosslink, found.dst) == wanted)
            queue += follower.on_bundle(item.to, bundle)


@given(st.lists(st.integers(0, HEIGHT + len(BUNDLES) - 1), max_size=40))
def test_x5_any_order_loss_and_repetition_gives_the_same_inbox(script):
    follower = BeaconFollower(GENESIS, 1, CRYPTO)
    for index in script:
        if index < HEIGHT:
            follower.on_final_block("beacon-0", CHAIN.blocks[index + 1], CHAIN.proofs[index + 1])
        else:
            follower.on_bundle("beacon-0", BUNDLES[index - HEIGHT])
        length = follower.head.inbox_length
        assert follower.select_deliveries(0, follower.head) == INBOX[:length]
    for _ in range(3 * HEIGHT):
        serve(follower, follower.on_timer(FOLLOW_TIMER))
        serve(follower, follower.on_timer(BUNDLE_TIMER))
    assert follower.head.ref.height == HEIGHT
    assert follower.select_deliveries(0, follower.head) == INBOX


SHARD_BLOCK, _ = build_shard_header(GENESIS, GENESIS.build_shard_block(1))
SEEDS = [
    FinalBlock(CHAIN.blocks[1], CHAIN.proofs[1]),
    FinalBlock(SHARD_BLOCK, prove(GENESIS, SHARD_BLOCK)),
    Proposal(SHARD_BLOCK),
    Proposal(SHARD_BLOCK, b"\xc0"),
    RangeResponse(BEACON, tuple(CHAIN.blocks[1:3]), CHAIN.proofs[2]),
    RangeResponse(1, (SHARD_BLOCK,), prove(GENESIS, SHARD_BLOCK)),
    BlockResponse(1, (SHARD_BLOCK,), (certify(GENESIS, 1, 1, 1, SHARD_BLOCK.hash),)),
    Certificates((certify(GENESIS, 1, 1, 1, SHARD_BLOCK.hash), certify(GENESIS, 1, 2, 1, bytes(32)))),
    BundleAnnouncement(BUNDLES[0]),
    BundleRequest(BUNDLES[0].crosslink, 1, 0),
    CrosslinkRequest(BUNDLES[0].crosslink),
    BlockRequest(1, (SHARD_BLOCK.hash,)),
    RangeRequest(1, 1, 5),
    Status(BEACON, 9, 9, bytes(32)),
    Status(1, 9, 9, bytes(32)),
]
wild = st.one_of(
    st.integers(-2, 3),
    st.sampled_from([-(1 << 63), (1 << 64) - 1, 1 << 32, BEACON]),
    st.binary(max_size=40),
    st.none(),
    st.just([]),
)


def list_places(tree, path=()):
    """Return the paths of all leaves of a decoded message."""
    if not isinstance(tree, list) or not tree:
        return [path]
    return [place for index, item in enumerate(tree) for place in list_places(item, (*path, index))]


def change(tree, path, value):
    if not path:
        return value
    copy = list(tree)
    copy[path[0]] = change(copy[path[0]], path[1:], value)
    return copy


TREES = [msgspec.msgpack.decode(msgspec.msgpack.encode(seed)) for seed in SEEDS]
PLACES = [list_places(tree) for tree in TREES]


@st.composite
def changed_messages(draw):
    """A message in which up to two leaves are not what they were, that still decodes."""
    index = draw(st.integers(0, len(SEEDS) - 1))
    tree = TREES[index]
    for _ in range(draw(st.integers(0, 2))):
        tree = change(tree, draw(st.sampled_from(PLACES[index])), draw(wild))
    try:
        return msgspec.msgpack.decode(msgspec.msgpack.encode(tree), type=Message)
    except (msgspec.ValidationError, IndexError):
        return SEEDS[index]


@settings(max_examples=200)
@given(st.lists(st.tuples(changed_messages(), st.sampled_from([0, 1, BEACON])), min_size=1, max_size=8))
def test_i14_no_message_of_a_peer_makes_the_machine_raise(script):
    machine = ShardReplica(GENESIS, 1, CRYPTO, (0,), NoBlockSource(), build_engine=SimplexEngine)
    machine.step(Started(), GENESIS_MS)
    for message, chain in script:
        machine.step(MessageReceived("shard-1-1", chain, message), GENESIS_MS + 50)
