"""Claims about one shard's replica: it builds, executes, finalises, follows, recovers, and refuses peers' mistakes."""

from itertools import pairwise

import msgspec
import pytest

from shards.recovery import Recovery
from shards.replica import ShardReplica
from shardyard import effects as fx
from shardyard.blocks import BeaconRef, FinalityProof
from shardyard.codec import decode, encode
from shardyard.consensus.instant import InstantEngine
from shardyard.consensus.simplex import SimplexEngine
from shardyard.consensus.votes import VoteKind, compute_vote_message
from shardyard.errors import LocalProtocolError
from shardyard.events import Built, Executed, MessageReceived, Started, TimerFired
from shardyard.hashing import hash_tagged
from shardyard.ids import BEACON
from shardyard.messages import (
    BundleAnnouncement,
    BundleRequest,
    Certificates,
    CrosslinkRequest,
    FinalBlock,
    Proposal,
    RangeResponse,
    Status,
    SubmitCrosslink,
    Votes,
)
from tests.unit.shards.network import Network
from tests.unit.shards.world import (
    CRYPTO,
    BeaconChain,
    ToyExecutor,
    build_crosslink,
    build_genesis,
    build_ref,
    build_shard_header,
    build_transfer,
    bundle_of,
    certify,
    prove,
)

replace = msgspec.structs.replace


class LogSource:
    """Final blocks read back from a node's log."""

    def __init__(self):
        self.node = None

    def get_final(self, height):
        if self.node is None:
            return None
        blocks = {item.block.hash: item.block for item in self.node.log if isinstance(item, fx.BlockRecord)}
        for item in self.node.log:
            if isinstance(item, fx.FinalRecord) and item.height == height:
                return blocks[item.block_hash], item.proof
        return None


def add_replica(network, name="shard-0-0", keys=range(4), shard=0, engine=SimplexEngine):
    source = LogSource()

    def build():
        return ShardReplica(network.genesis, shard, CRYPTO, tuple(keys), source, build_engine=engine)

    node = network.add(name, shard, build, ToyExecutor(network.genesis, shard))
    source.node = node
    return node


@pytest.fixture
def network():
    return Network(build_genesis())


def tell(network, node, *messages, chain=BEACON, sender="beacon-0"):
    for message in messages:
        node.step(MessageReceived(sender, chain, message))


def height_of(node):
    return node.machine.heads.latest_height


def reach(network, height, *nodes):
    network.run_until(lambda: all(height_of(node) >= height for node in nodes))


def get_finals(node):
    return [data["hash"] for data in node.get_notices("block.final")]


@pytest.mark.parametrize("engine", [SimplexEngine, InstantEngine])
def test_one_process_with_all_keys_makes_a_block_per_block_time(network, engine):
    node = add_replica(network, engine=engine)
    node.start()
    reach(network, 10, node)
    elapsed = network.now_ms - network.genesis.timestamp_ms
    assert 10 * network.genesis.preset.block_time_ms <= elapsed <= 12 * network.genesis.preset.block_time_ms
    heads = node.machine.heads
    assert heads.latest_hash == get_finals(node)[-1]
    assert (heads.finalized_height, heads.tip_height) == (0, heads.latest_height)


def test_four_processes_with_one_key_each_agree(network):
    nodes = [add_replica(network, f"shard-0-{index}", (index,)) for index in range(4)]
    for node in nodes:
        node.start()
    nodes[1].executor.pending = [build_transfer()]
    reach(network, 8, *nodes)
    assert len({tuple(get_finals(node)[:8]) for node in nodes}) == 1
    assert sum(data["transactions"] for data in nodes[0].get_notices("block.final")[:8]) == 1
    assert len({node.executor.states[get_finals(node)[7]][0] for node in nodes}) == 1


@pytest.mark.parametrize("engine", [SimplexEngine, InstantEngine])
def test_a_follower_without_keys_catches_up_and_says_nothing_of_its_own(network, engine):
    node = add_replica(network, engine=engine)
    node.start()
    reach(network, 150, node)
    late = add_replica(network, "shard-0-1", (), engine=engine)
    late.start()
    reach(network, 155, late)
    assert get_finals(late)[:100] == get_finals(node)[:100]
    assert late.machine.assembler.on_tick() == []


def test_a_node_that_restarts_stands_where_it_stood_and_goes_on(network):
    node = add_replica(network)
    node.start()
    chain = BeaconChain(network.genesis)
    receipts = [build_transfer(src=1, dst=0, seq=seq) for seq in (1, 2)]
    crosslink = build_crosslink(1, receipts)
    reach(network, 3, node)
    tell(
        network,
        node,
        FinalBlock(*chain.add(crosslink)),
        BundleAnnouncement(bundle_of(crosslink, receipts, 0)),
    )
    reach(network, 6, node)
    before, view = node.machine.heads, node.machine.follower.head
    node.stop()
    node.start()
    after = node.machine.heads
    assert (after.latest_height, after.latest_hash) == (before.latest_height, before.latest_hash)
    assert node.machine.follower.head == view
    assert node.machine._base.shard_content.inbox_position == 2
    reach(network, before.latest_height + 3, node)


def test_final_blocks_that_were_not_executed_before_the_restart_are_executed_after_it(network):
    node = add_replica(network)
    node.start()
    reach(network, 6, node)
    finals = get_finals(node)
    executed = [item for item in node.log if isinstance(item, fx.ExecutionRecord)]
    lost = {record.block_hash for record in executed} - set(finals[:3])
    node.log = [
        item for item in node.log if not (isinstance(item, fx.ExecutionRecord) and item.block_hash in lost)
    ]
    node.stop()
    node.executor.states = {key: state for key, state in node.executor.states.items() if key not in lost}
    node.notices = []
    machine = node.build_machine()
    machine.recover(tuple(node.log))
    assert machine.recovered_height == 3
    node.start()
    reach(network, 8, node)
    assert get_finals(node)[: len(finals) - 3] == finals[3:]


def test_recovery_of_a_prefix_of_the_log_gives_heads_of_the_same_chain(network):
    node = add_replica(network)
    node.start()
    reach(network, 6, node)
    finals = [None, *get_finals(node)]
    heights = []
    for size in range(len(node.log) + 1):
        machine = node.build_machine()
        machine.recover(tuple(node.log[:size]))
        heads = machine.heads
        heights.append(heads.latest_height)
        assert heads.latest_height == 0 or heads.latest_hash == finals[heads.latest_height]
    assert heights == sorted(heights)
    assert heights[-1] == len(finals) - 1


def test_a_log_is_taken_record_by_record(network):
    """What is kept while it is read does not grow with it: blocks are folded in as soon as the log has what they rest on."""
    node = add_replica(network)
    node.start()
    reach(network, 20, node)
    node.stop()
    final, behind, folded = 0, [], []

    def read():
        nonlocal final
        for record in node.log:
            if isinstance(record, fx.FinalRecord):
                final = record.height
            yield record
            behind.append(final - len(folded))

    machine = node.build_machine()
    machine.recover(read(), on_folded=lambda header: folded.append(header.height))
    assert folded == list(range(1, machine.recovered_height + 1))
    assert len(folded) >= 20
    assert max(behind) <= 1


def test_results_of_blocks_that_were_built_in_vain_are_forgotten(network):
    """Their outboxes are in the log and they are not: their slots were over."""
    node = add_replica(network)
    node.start()
    reach(network, 20, node)
    node.stop()
    machine = node.build_machine()
    recovery = Recovery(
        machine.engine,
        machine.follower,
        base=None,
        begin_after=machine._candidates.advance,
        follow=machine._follow,
        fold=machine._fold,
    )
    kept = []
    for number, record in enumerate(node.log):
        recovery.take(fx.ExecutionRecord(hash_tagged(b"vain", number.to_bytes(4, "big")), (b"receipt",)))
        recovery.take(record)
        kept.append(len(recovery._outboxes))
    assert machine.recovered_height >= 20
    assert max(kept) < len(node.log) // 4


def test_recovery_goes_on_from_the_last_snapshot(network):
    """What the log has of blocks before it is passed over, but for the beacon's."""
    node = add_replica(network)
    node.start()
    reach(network, 8, node)
    node.stop()
    blocks = {item.block.hash: item.block for item in node.log if isinstance(item, fx.BlockRecord)}
    proofs = {item.height: item for item in node.log if isinstance(item, fx.FinalRecord)}
    first, second = (
        fx.SnapshotRecord(blocks[proofs[height].block_hash], proofs[height].proof, ()) for height in (2, 5)
    )
    later = {key for key, block in blocks.items() if block.header.height > 5}

    def is_later(record):
        match record:
            case fx.BlockRecord(block):
                return block.hash in later
            case fx.ExecutionRecord(block_hash) | fx.FinalRecord(_, block_hash):
                return block_hash in later
            case _:
                return False

    early = [record for record in node.log if not is_later(record)]
    half = len(early) // 2
    log = [*early[:half], first, *early[half:], second, *filter(is_later, node.log)]
    folded = []
    machine = node.build_machine()
    machine.recover(log, base=second.block.header, on_folded=lambda header: folded.append(header.height))
    whole = node.build_machine()
    whole.recover(node.log)
    assert machine.heads == whole.heads
    assert machine.follower.head == whole.follower.head
    assert folded == list(range(6, whole.recovered_height + 1))


def test_a_log_with_a_snapshot_behind_the_last_one_is_refused(network):
    node = add_replica(network)
    node.start()
    reach(network, 3, node)
    blocks = {item.block.hash: item.block for item in node.log if isinstance(item, fx.BlockRecord)}
    final = next(item for item in node.log if isinstance(item, fx.FinalRecord))
    snapshot = fx.SnapshotRecord(blocks[final.block_hash], final.proof, ())
    with pytest.raises(LocalProtocolError, match="snapshot of block 1 behind"):
        node.build_machine().recover([*node.log, snapshot])


def test_x5_receipts_are_delivered_once_in_order_as_soon_as_their_beacon_block_is_followed(network):
    nodes = [add_replica(network, f"shard-0-{index}", (index,)) for index in range(4)]
    for node in nodes:
        node.start()
    chain = BeaconChain(network.genesis)
    receipts = [build_transfer(src=1, dst=0, seq=seq) for seq in range(1, 6)]
    first, second = build_crosslink(1, receipts[:2]), build_crosslink(1, receipts[2:])
    blocks = [FinalBlock(*chain.add(first)), FinalBlock(*chain.add(second))]
    bundles = [
        BundleAnnouncement(bundle_of(first, receipts[:2], 0)),
        BundleAnnouncement(bundle_of(second, receipts[2:], 0)),
    ]
    for node in nodes:
        tell(network, node, *blocks, *bundles, *blocks, *bundles)
    reach(network, 5, *nodes)
    for node in nodes:
        delivered = [receipt for block in get_finals(node) for receipt in node.executor.delivered[block]]
        assert delivered == receipts
        assert node.machine._base.shard_content.beacon_ref == build_ref(chain.blocks[2])


def test_a_voter_that_lacks_the_beacon_block_waits_and_votes_when_it_comes(network):
    nodes = [add_replica(network, f"shard-0-{index}", (index,)) for index in range(4)]
    for node in nodes:
        node.start()
    chain = BeaconChain(network.genesis)
    announced = FinalBlock(*chain.add())
    reach(network, 1, *nodes)
    for node in nodes[:2]:
        tell(network, node, announced)
    network.run_for(300)
    assert not any(node.get_notices("block.invalid") for node in nodes)  # L2: pending, not invalid
    for node in nodes[2:]:
        tell(network, node, announced)
    before = max(height_of(node) for node in nodes)
    reach(network, before + 3, *nodes)
    assert all(node.machine._base.shard_content.beacon_ref.height == 1 for node in nodes)


def test_x0_a_proposal_on_another_beacon_block_of_that_height_is_invalid(network):
    node = add_replica(network, keys=(0,))
    node.start()
    chain = BeaconChain(network.genesis)
    tell(network, node, FinalBlock(*chain.add()))
    lie = BeaconRef(height=1, hash=b"x" * 32, epoch=0)
    block = propose(network, lambda content: replace(content, beacon_ref=lie))
    tell(network, node, Proposal(block), chain=0, sender="shard-0-1")
    (data,) = node.get_notices("block.invalid")[:1]
    assert data["reason"].startswith("beacon_ref: ")


def test_x0_the_log_has_the_proof_of_every_reference_whatever_came_beside_the_block(network, monkeypatch):
    """It is covered by no signature: whoever passes a block on could fill the logs of others, and make their audits fail."""
    nodes = [add_replica(network, f"shard-0-{index}", (index,)) for index in range(4)]
    broadcast = network.broadcast

    def pass_on(sender, message):
        if isinstance(message, Proposal):
            message = replace(message, block=replace(message.block, beacon_proof=bytes(1000)))
        broadcast(sender, message)

    monkeypatch.setattr(network, "broadcast", pass_on)
    for node in nodes:
        node.start()
    chain = BeaconChain(network.genesis)
    for height in (2, 4, 6):
        block, proof = chain.add()
        for node in nodes:
            tell(network, node, FinalBlock(block, proof))
        reach(network, height, *nodes)
    for node in nodes:
        blocks = {
            record.block.hash: record.block for record in node.log if isinstance(record, fx.BlockRecord)
        }
        finals = [blocks[block_hash] for block_hash in get_finals(node)]
        moved = [block for block in finals if block.beacon_proof]
        assert [block.header.shard_content.beacon_ref.height for block in moved] == [1, 2, 3]
        for block in moved:
            proof = decode(block.beacon_proof, FinalityProof, max_bytes=1 << 20)
            assert proof.path[0].header.hash == block.header.shard_content.beacon_ref.hash
            held = node.machine.engine.get_block(block.hash)
            assert held.beacon_proof in (b"", block.beacon_proof)


def propose(network, change, parent=None):
    """A signed block of slot 1 whose content was changed."""
    genesis = network.genesis
    block, _ = build_shard_header(genesis, parent or genesis.build_shard_block(0), step_ms=100)
    block = replace(block, header=replace(block.header, content=change(block.header.content)))
    header = block.header
    message = compute_vote_message(genesis.get_domain(0), VoteKind.PROPOSE, header.slot, header.hash)
    key = genesis.committees[0].validators[header.proposer].public_key
    return replace(block, signature=CRYPTO.sign(key, message))


@pytest.mark.parametrize(
    "change",
    [
        lambda content: replace(content, state_root=b"!" * 32),
        lambda content: replace(content, delivery_count=1, inbox_position=1),
        lambda content: replace(content, gas_limit=1),
        lambda _: build_genesis().beacon_block.header.content,
    ],
)
def test_a_proposal_with_a_lie_gets_no_vote(network, change):
    node = add_replica(network, keys=(0,))
    node.start()
    block = propose(network, change)
    tell(network, node, Proposal(block), chain=0, sender="shard-0-1")
    network.run_for(20)
    assert [data["hash"] for data in node.get_notices("block.invalid")][:1] == [block.hash]
    assert not [record for record in node.log if isinstance(record, fx.BlockRecord)]


def test_a_final_block_that_does_not_execute_to_its_header_halts_the_machine(network):
    node = add_replica(network, keys=())
    node.start()
    block = propose(network, lambda content: replace(content, state_root=b"!" * 32))
    tell(network, node, FinalBlock(block, prove(network.genesis, block)), chain=0, sender="shard-0-1")
    network.run_for(50)
    halts = node.get_notices("halted") + node.get_notices("engine.halted")
    assert halts[0]["hash"] == block.hash
    assert height_of(node) == 0


def test_the_transactions_of_a_block_reach_the_beacon_as_a_crosslink(network):
    node = add_replica(network)
    heard = []
    network.is_lost = lambda _sender, _to, message: heard.append(message)
    network.add("beacon-0", BEACON, None)
    node.executor.pending = [build_transfer(), build_transfer(seq=9)]
    node.start()
    reach(network, 3, node)
    offers = [message.submission for message in heard if isinstance(message, SubmitCrosslink)]
    assert len(offers) == 1  # one in flight
    assert [len(outbox) for outbox in offers[0].outboxes] == [2]
    link = offers[0].crosslink.links[0]
    assert (link.dst, link.first_seq, link.last_seq) == (1, 1, 2)
    tell(network, node, CrosslinkRequest(offers[0].crosslink.hash))
    assert sum(isinstance(message, SubmitCrosslink) for message in heard) == 2


def test_stale_completions_and_unknown_timers_do_nothing(network):
    node = add_replica(network)
    node.start()
    reach(network, 2, node)
    for event in (Built(999, b"", None), Executed(b"?" * 32, None, "x"), TimerFired("engine.slot.1")):
        assert node.machine.step(event, network.now_ms) == []


def test_peers_garbage_is_refused_and_counted_and_the_chain_goes_on(network):
    node = add_replica(network)
    node.start()
    reach(network, 2, node)
    chain = BeaconChain(network.genesis)
    block, proof = chain.add(build_crosslink(1, [build_transfer(src=1, dst=0)]))
    shard_block = propose(network, lambda content: content)
    garbage = [
        FinalBlock(replace(block, body=b"\xc1"), proof),
        FinalBlock(replace(block, header=shard_block.header), proof),
        FinalBlock(replace(shard_block, header=replace(shard_block.header, shard=BEACON)), proof),
        FinalBlock(replace(block, header=replace(block.header, height=1 << 63)), proof),
        RangeResponse(BEACON, (block, block), proof),
        RangeResponse(0, (block,), proof),
        RangeResponse(0, (), None),
        Status(BEACON, 1 << 63, 1 << 63, bytes(32)),
        Status(0, 1 << 63, 1 << 63, b""),
        BundleAnnouncement(bundle_of(build_crosslink(1), [build_transfer(src=1, dst=0)], 0)),
        BundleRequest(b"", 0, 77),
        CrosslinkRequest(b""),
        Proposal(block),
        Proposal(replace(shard_block, signature=b"", body=b"\xff")),
        Votes(()),
        Certificates((certify(network.genesis, 1, 1, 5, bytes(32)),)),
        FinalBlock(shard_block, proof),
    ]
    for message in garbage:
        for topic in (0, 1, BEACON):
            tell(network, node, message, chain=topic, sender="shard-0-9")
    reach(network, 6, node)


def test_effects_are_the_same_for_the_same_events(network):
    def run():
        net = Network(build_genesis())
        node = add_replica(net)
        node.start()
        reach(net, 5, node)
        return encode(tuple(node.log)), [(item.kind, item.data) for item in node.notices]

    assert run() == run()


def test_nothing_waits_for_disk_twice_in_a_row(network):
    machine = add_replica(network).build_machine()
    effects = machine.step(Started(), network.now_ms)
    for before, after in pairwise(effects):
        assert not (isinstance(before, fx.Persist) and isinstance(after, fx.Persist))


def test_x10_a_block_that_would_emit_too_much_is_built_without_transactions_and_the_culprit_named():
    size = len(build_transfer())
    network = Network(build_genesis(max_bundle_bytes=5 * size))
    node = add_replica(network)
    culprit = hash_tagged(b"test", b"culprit")
    heavy = [build_transfer(value=index, tx_hash=culprit) for index in range(4)]
    node.executor.pending = [*heavy, build_transfer(value=8), build_transfer(value=9)]
    node.start()
    reach(network, 3, node)
    finals = node.get_notices("block.final")
    assert [data["transactions"] for data in finals[:3]] == [0, 0, 0]
    assert {data["heaviest"] for data in node.get_notices("build.refused")} == {culprit}
    node.executor.pending = node.executor.pending[4:]
    height = height_of(node)
    reach(network, height + 2, node)
    assert sum(data["transactions"] for data in node.get_notices("block.final")) == 2


@pytest.mark.parametrize("is_late", [False, True])
def test_i5_a_replica_whose_final_block_is_not_the_one_the_beacon_accepted_halts(network, is_late):
    node = add_replica(network)
    node.start()
    if is_late:
        reach(network, 2, node)
    chain = BeaconChain(network.genesis)
    tell(network, node, FinalBlock(*chain.add(build_crosslink(0, last_height=2, head_hash=b"?" * 32))))
    network.run_until(lambda: node.get_notices("halted"))
    assert node.get_notices("halted")[0]["height"] == 2
    assert height_of(node) == 2
    node.stop()
    node.notices = []
    node.start()
    assert node.get_notices("halted")[0]["height"] == 2  # a restart heals nothing


def test_a_crosslink_of_the_own_blocks_moves_finalized(network):
    node = add_replica(network)
    node.start()
    reach(network, 3, node)
    chain = BeaconChain(network.genesis)
    head = get_finals(node)[1]
    tell(network, node, FinalBlock(*chain.add(build_crosslink(0, last_height=2, head_hash=head))))
    heads = node.machine.heads
    assert (heads.finalized_height, heads.finalized_hash) == (2, head)
    reach(network, 5, node)
