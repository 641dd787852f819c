"""The index: a cache that says the same as the chain, can be taken back, and can be built again from the log."""

import msgspec
import pytest

from node.index import records, store
from node.index.bloom import BloomQuery, compute_bloom
from node.index.rebuild import IndexRebuilder
from node.index.records import Log
from node.index.store import ChainIndex
from shardyard.blocks import EMPTY_JUSTIFICATION, CertifiedHeader, FinalityProof
from shardyard.codec import encode
from shardyard.consensus.votes import Certificate, VoteKind
from shardyard.effects import (
    BeaconRecord,
    BlockRecord,
    CertificateRecord,
    ExecutionRecord,
    FinalRecord,
    SnapshotRecord,
)
from shardyard.ids import ZERO_HASH
from shardyard.receipts import ReceiptKind
from tests.unit.node.rpc_chain import CAROL, SHARD, RpcChain, build_message, build_transfer

CERTIFICATE = Certificate(VoteKind.FINAL, 1, ZERO_HASH, b"", b"")


async def fill(chain: RpcChain) -> None:
    """Three blocks: a transaction, a transaction and two deliveries, nothing."""
    await chain.send(value=1)
    await chain.make_block()
    await chain.send(value=2)
    await chain.make_block([build_transfer(1, CAROL.address, 5), build_transfer(2, CAROL.address, 6)])
    await chain.make_block()


def dump(index: ChainIndex) -> list[object]:
    """Everything readers can ask of an index."""
    found: list[object] = [index.height]
    for brief in index.iterate_briefs(0, 1 << 40):
        block = index.get_block(brief.height)
        assert block is not None
        places = [index.find_transaction(tx_hash) for tx_hash in block.transaction_hashes]
        messages = [index.get_message(receipt.id) for receipt in block.deliveries]
        found.append((msgspec.structs.astuple(block), brief, places, messages, index.get_height(block.hash)))
    return found


def open_another(chain: RpcChain, place, network=None) -> ChainIndex:
    return ChainIndex(place, network=network or chain.genesis.network, shard=SHARD)


def feed(rebuilder: IndexRebuilder, chain: RpcChain, *, late_results: bool = False) -> None:
    """Give the records that a node's log would hold."""
    header = chain.genesis.beacon_block
    proof = FinalityProof((CertifiedHeader(header.header, EMPTY_JUSTIFICATION),), CERTIFICATE, CERTIFICATE)
    receipts = tuple(receipt for _, _, deliveries, _ in chain.logged for receipt in deliveries)
    rebuilder.take(BeaconRecord(header, proof, ((), receipts[:1], receipts[1:])))
    for block, outcomes, _, outbox in chain.logged:
        results = [
            lambda b=block, o=outcomes: rebuilder.take_outcomes(b.hash, b.header.height, o),
            lambda b=block, o=outbox: rebuilder.take(ExecutionRecord(b.hash, o)),
        ]
        final = [lambda b=block: rebuilder.take(FinalRecord(b.header.height, b.hash, proof))]
        rebuilder.take(BlockRecord(block))
        rebuilder.take(CertificateRecord(CERTIFICATE))
        for step in final + results if late_results else results + final:
            step()
    rebuilder.finish()


async def test_an_index_survives_closing(chain, tmp_path):
    await fill(chain)
    before = dump(chain.index)
    chain.index.close()
    with open_another(chain, tmp_path / "index") as again:
        assert dump(again) == before
    chain.index = open_another(chain, tmp_path / "index")


@pytest.mark.parametrize("late_results", [False, True])
async def test_an_index_can_be_built_again_from_the_log(chain, tmp_path, late_results):
    await fill(chain)
    with open_another(chain, tmp_path / "other") as other:
        feed(IndexRebuilder(other, chain.genesis.build_shard_block(SHARD)), chain, late_results=late_results)
        assert dump(other) == dump(chain.index)


async def test_reading_the_log_again_keeps_what_is_there(chain):
    await fill(chain)
    before = dump(chain.index)
    feed(IndexRebuilder(chain.index, chain.genesis.build_shard_block(SHARD)), chain)
    assert dump(chain.index) == before


async def test_an_index_ahead_of_its_log_is_taken_back(chain):
    await fill(chain)
    before = dump(chain.index)
    lost = chain.logged.pop()
    feed(IndexRebuilder(chain.index, chain.genesis.build_shard_block(SHARD)), chain)
    assert dump(chain.index) == [2, *before[1:-1]]
    assert chain.index.get_height(lost[0].hash) is None


async def test_taking_back_a_block_takes_back_what_it_said_of_messages(chain):
    await fill(chain)
    (delivery, _) = chain.index.get_block(2).deliveries
    assert chain.index.get_message(delivery.id).delivery.height == 2
    chain.index.rollback_to(1)
    assert chain.index.get_message(delivery.id).delivery is None
    assert chain.index.find_transaction(delivery.id) is None
    assert chain.index.height == 1


async def test_an_index_of_another_network_starts_empty(chain, tmp_path):
    await fill(chain)
    chain.index.close()
    with open_another(chain, tmp_path / "index", network=bytes(32)) as other:
        assert other.height == -1
    chain.index = open_another(chain, tmp_path / "index")
    assert chain.index.height == -1


@pytest.mark.parametrize("garbage", [b"", b"garbage" * 1000, bytes(8192)])
async def test_a_file_that_cannot_be_read_is_begun_anew(chain, tmp_path, garbage):
    place = tmp_path / "broken"
    place.mkdir()
    (place / "data.mdb").write_bytes(garbage)
    with open_another(chain, place) as index:
        assert index.height == -1


async def test_heights_are_dense(chain):
    await fill(chain)
    with pytest.raises(ValueError, match="expected 4"):
        chain.index.append(chain.index.get_block(2))


async def test_the_logs_bloom_of_the_executor_is_ours(chain):
    from tests.unit.node.test_rpc_methods import call_data, deploy

    address = await deploy(chain, "counter")
    await chain.send(to=address, data=call_data("increment()"), gas=200_000)
    await chain.make_block()
    block = chain.index.get_block(2)
    assert any(outcome.logs for outcome in block.outcomes)
    assert compute_bloom([log for o in block.outcomes for log in o.logs]) == block.content.logs_bloom


def test_a_bloom_query_never_misses_and_passes_over_most():
    log = Log(bytes([1]) * 20, (bytes([2]) * 32,), b"")
    bloom = compute_bloom([log])
    assert BloomQuery([log.address], [None, []]).may_match(bloom)
    assert BloomQuery([bytes(20), log.address], [[bytes(32), log.topics[0]]]).may_match(bloom)
    assert not BloomQuery([bytes(20)], []).may_match(bloom)
    assert not BloomQuery([log.address], [[bytes(32)]]).may_match(bloom)
    assert BloomQuery([], []).may_match(bytes(256))


def test_places_are_found_in_merged_runs_and_forgotten_with_their_blocks(tmp_path):
    import lmdb

    from node.index.places import FANOUT, PlaceRuns
    from shardyard._native import keccak256

    env = lmdb.open(str(tmp_path / "runs"), max_dbs=1)
    table = env.open_db(b"runs")
    runs = PlaceRuns(env, table)
    blocks = {
        height: [keccak256(bytes([height, position])) for position in range(height % 5)]
        for height in range(1, 3 * FANOUT * FANOUT)
    }
    for height, hashes in blocks.items():
        with env.begin(write=True) as txn:
            found = runs.append(txn, height, b"".join(hashes))
        runs.use(found)

    def list_places(hashes):
        places = [runs.find(tx_hash) for tx_hash in hashes]
        return [(place.height, place.position) if place else None for place in places]

    for height, hashes in blocks.items():
        assert list_places(hashes) == [(height, position) for position in range(len(hashes))]
    with env.begin() as txn:
        assert txn.stat(table)["entries"] <= 3 * FANOUT
    assert runs.find(bytes(32)) is None
    hashes = [*blocks[19], *blocks[99], *blocks[101]]
    assert runs.find_recent([*hashes, bytes(32)]) == set(hashes)
    assert runs.find_recent([]) == set()
    runs.cut(100)
    assert runs.find_recent(hashes) == {*blocks[19], *blocks[99]}
    assert list_places(blocks[99]) == [(99, position) for position in range(4)]
    assert list_places(blocks[101]) == [None]
    PlaceRuns(env, table)
    env.close()


@pytest.mark.parametrize("is_begun_before", [False, True])
async def test_an_index_that_begins_at_a_snapshot_knows_what_follows_it(chain, tmp_path, is_begun_before):
    await fill(chain)
    first, *rest = chain.logged
    proof = FinalityProof(
        (CertifiedHeader(chain.genesis.beacon_block.header, EMPTY_JUSTIFICATION),), CERTIFICATE, CERTIFICATE
    )
    snapshot = SnapshotRecord(first[0], proof, ())

    def rebuild(index):
        rebuilder = IndexRebuilder(index, chain.genesis.build_shard_block(SHARD), base=1)
        rebuilder.take(snapshot)
        receipts = tuple(receipt for _, _, deliveries, _ in rest for receipt in deliveries)
        rebuilder.take(BeaconRecord(chain.genesis.beacon_block, proof, (receipts,)))
        for block, outcomes, _, outbox in rest:
            rebuilder.take(BlockRecord(block))
            rebuilder.take_outcomes(block.hash, block.header.height, outcomes)
            rebuilder.take(ExecutionRecord(block.hash, outbox))
            rebuilder.take(FinalRecord(block.header.height, block.hash, proof))
        rebuilder.finish()

    index = open_another(chain, tmp_path / "another")
    if is_begun_before:
        feed(IndexRebuilder(index, chain.genesis.build_shard_block(SHARD)), chain)
    rebuild(index)
    assert index.first_height == 2
    assert index.height == 3
    assert index.get_hash(1) == first[0].hash
    assert index.get_block(1).transaction_count == 0  # what it did was not executed here
    assert index.get_block(2) == chain.backend.index.get_block(2)
    assert index.find_transaction(index.get_block(2).transaction_hashes[0]) is not None
    rebuild(index)  # the next start finds it as it is
    assert (index.first_height, index.height) == (2, 3)
    index.rollback_to(1)
    assert (index.first_height, index.height) == (2, 1)
    index.rollback_to(0)
    assert (index.first_height, index.height) == (1, -1)
    index.close()


async def test_an_index_of_a_snapshot_begins_anew_with_a_log_that_has_none(chain, tmp_path):
    await fill(chain)
    index = open_another(chain, tmp_path / "another")
    first = chain.logged[0][0]
    genesis = chain.backend.index.get_block(0)
    index.begin_at(chain.backend.index.get_block(2), genesis)
    assert (index.first_height, index.get_hash(1)) == (3, None)
    feed(IndexRebuilder(index, chain.genesis.build_shard_block(SHARD)), chain)
    assert (index.first_height, index.height) == (1, 3)
    assert index.get_hash(1) == first.hash
    index.close()


async def test_a_log_with_two_snapshots_leaves_the_index_as_it_is_at_the_next_start(
    chain, tmp_path, monkeypatch
):
    """Blocks of genesis, blocks of a first snapshot, and those of a second one, all in one log."""
    await fill(chain)
    proof = FinalityProof(
        (CertifiedHeader(chain.genesis.beacon_block.header, EMPTY_JUSTIFICATION),), CERTIFICATE, CERTIFICATE
    )
    begun = []
    original = ChainIndex.begin_at
    monkeypatch.setattr(ChainIndex, "begin_at", lambda *args: (begun.append(args[1].height), original(*args)))

    def rebuild(index):
        rebuilder = IndexRebuilder(index, chain.genesis.build_shard_block(SHARD), base=2)
        receipts = tuple(receipt for _, _, deliveries, _ in chain.logged for receipt in deliveries)
        rebuilder.take(BeaconRecord(chain.genesis.beacon_block, proof, (receipts,)))
        for height, (block, outcomes, _, outbox) in enumerate(chain.logged, 1):
            rebuilder.take(BlockRecord(block))
            rebuilder.take_outcomes(block.hash, block.header.height, outcomes)
            rebuilder.take(ExecutionRecord(block.hash, outbox))
            rebuilder.take(FinalRecord(block.header.height, block.hash, proof))
            if height <= 2:
                rebuilder.take(SnapshotRecord(block, proof, ()))
        rebuilder.finish()

    index = open_another(chain, tmp_path / "another")
    rebuild(index)
    assert (begun, index.first_height, index.height) == ([2], 3, 3)
    before = dump(index)
    rebuild(index)
    assert begun == [2]
    assert dump(index) == before
    index.close()


async def test_who_asks_for_the_transactions_of_an_old_block_one_by_one_has_it_decoded_once(
    chain, tmp_path, monkeypatch
):
    for _ in range(20):
        await chain.send()
    await chain.make_block()
    hashes = chain.index.get_block(1).transaction_hashes
    decoded: list[bytes] = []
    decode_outcomes = records.decode_outcomes
    monkeypatch.setattr(
        records, "decode_outcomes", lambda data: decoded.append(data) or decode_outcomes(data)
    )
    chain.index.close()
    with open_another(chain, tmp_path / "index") as again:
        for tx_hash in hashes:
            found = again.find_transaction(tx_hash)
            assert found.block.outcomes[found.position].tx_hash == tx_hash
        assert len(decoded) == 1
        assert again.find_transaction(bytes(32)) is None
        again.rollback_to(0)
        assert again.get_block(1) is None
    chain.index = open_another(chain, tmp_path / "index")


async def test_recent_blocks_are_held_up_to_a_number_of_bytes_messages_included(chain, monkeypatch):
    monkeypatch.setattr(store, "MAX_CACHED_BYTES", 100_000)
    for seq in range(1, 9):
        await chain.make_block([encode(build_message(ReceiptKind.CALL, seq, payload=bytes(16_000)))])
    held = list(chain.index._cache.values())
    assert held[-1].height == 8
    assert sum(len(message) for block in held for message in block.deliveries_data) < 100_000
    assert chain.index.get_block(1).deliveries[0].payload == bytes(16_000)
