"""Claims about coming by a snapshot: which manifests count, who is named for what, and that everything is bounded."""

import msgspec
import pytest

from shards import snapshots as snapshots_module
from shards.snapshots import (
    ASK_AGAIN_TICKS,
    GATHER_TICKS,
    MAX_ASKED,
    MAX_CHUNK_BYTES,
    MAX_CHUNKS,
    MAX_ROUNDS,
    MAX_SOURCES,
    PATIENCE_TICKS,
    TICKS_PER_CHUNK,
    KeepChunk,
    RestoreState,
    SnapshotFetcher,
    SnapshotGivenUp,
    SnapshotTaken,
    choose_height,
    compute_chunk_hash,
    estimate_height,
)
from shardyard import effects as fx
from shardyard.messages import ChunkRequest, ChunkResponse, SnapshotManifest, SnapshotRequest
from tests.unit.shards.world import CRYPTO, build_genesis, build_shard_header, prove

replace = msgspec.structs.replace
GENESIS = build_genesis(2)
ROOT = b"s" * 32
PEERS = {"shard-0-1": 40, "shard-0-2": 39, "shard-0-3": 40}
CHUNKS = [bytes([index]) * 100 for index in range(20)]


def build_chain(height, **changes):
    blocks = [GENESIS.build_shard_block(0)]
    for _ in range(height):
        blocks.append(build_shard_header(GENESIS, blocks[-1], **changes)[0])
    return blocks


CHAIN = build_chain(8)


def build_manifest(chunks=CHUNKS, block=CHAIN[8]):
    hashes = tuple(compute_chunk_hash(chunk) for chunk in chunks)
    return SnapshotManifest(0, block, prove(GENESIS, block), hashes)


MANIFEST = build_manifest()


@pytest.fixture
def fetcher():
    found = SnapshotFetcher(GENESIS, 0, CRYPTO, 0, lambda _: False)
    found.start(PEERS, 40)
    return found


def sent(outputs, kind):
    return [
        (item.to, item.message)
        for item in outputs
        if isinstance(item, fx.Send) and isinstance(item.message, kind)
    ]


def refused(outputs):
    return [
        (item.data["sender"], item.data["error"], item.data["reason"])
        for item in outputs
        if isinstance(item, fx.Notice)
    ]


def answer(request, chunks=CHUNKS, manifest=MANIFEST):
    return ChunkResponse(0, manifest.id, request.index, chunks[request.index])


def serve(fetcher, outputs, chunks=CHUNKS, limit=1000, liars=()):
    """Answer every request; a liar's chunk is another one. Returns all outputs that were no requests."""
    told, queue = [], list(outputs)
    while queue and limit:
        limit -= 1
        item = queue.pop(0)
        if isinstance(item, fx.Send) and isinstance(item.message, ChunkRequest):
            response = ChunkResponse(0, item.message.snapshot, item.message.index, chunks[item.message.index])
            if item.to in liars:
                response = replace(response, data=b"lie")
            queue += fetcher.on_chunk(item.to, response)
        else:
            told.append(item)
    return told


def choose(fetcher, manifest=MANIFEST, peers=PEERS):
    outputs = []
    for peer in peers:
        outputs += fetcher.on_manifest(peer, manifest)
    return outputs


def test_all_peers_are_asked_for_one_height_that_is_still_ahead_of_them():
    fetcher = SnapshotFetcher(GENESIS, 0, CRYPTO, 0, lambda _: False)
    asked = sent(fetcher.start(PEERS, 40), SnapshotRequest)
    assert {to for to, _ in asked} == set(PEERS)
    assert {message.height for _, message in asked} == {48}
    assert (choose_height(40), choose_height(47), choose_height(48)) == (48, 48, 56)


def test_a_faulty_replica_cannot_raise_the_height():
    assert estimate_height([2**64 - 1, 39, 40], 1) == 40
    assert estimate_height([0, 39, 40], 1) == 39
    assert estimate_height([7], 1) == 7
    assert estimate_height([], 1) == 0


def test_later_rounds_ask_for_a_height_that_is_still_ahead_when_a_block_comes_per_tick(fetcher):
    outputs = []
    for _ in range(2 * ASK_AGAIN_TICKS):
        outputs += fetcher.on_tick()
    heights = [message.height for _, message in sent(outputs, SnapshotRequest)]
    assert heights == [40 + 2 * ASK_AGAIN_TICKS] * 3 + [40 + 3 * ASK_AGAIN_TICKS] * 3


def test_chunks_are_asked_of_all_who_have_the_same_a_few_at_a_time(fetcher):
    requests = sent(choose(fetcher), ChunkRequest)
    loads = {peer: [message.index for to, message in requests if to == peer] for peer in PEERS}
    assert all(len(indices) == MAX_ASKED for indices in loads.values())
    assert sorted(index for indices in loads.values() for index in indices) == list(range(12))


def test_every_chunk_is_kept_once_and_the_state_made_of_them_counts_by_its_root(fetcher):
    told = serve(fetcher, choose(fetcher))
    kept = [item.data for item in told if isinstance(item, KeepChunk)]
    assert sorted(kept) == sorted(CHUNKS)
    assert isinstance(told[-1], RestoreState)
    assert told[-1].record.chunks == MANIFEST.chunks
    (taken,) = fetcher.on_root(ROOT)
    assert isinstance(taken, SnapshotTaken)
    assert taken.record.block == replace(CHAIN[8], signature=b"")


def test_what_is_not_proven_of_a_snapshots_block_is_not_kept(fetcher):
    beside = replace(CHAIN[8], signature=bytes(96), beacon_proof=bytes(1000))
    serve(fetcher, choose(fetcher, replace(MANIFEST, block=beside)))
    (taken,) = fetcher.on_root(ROOT)
    assert taken.record.block == replace(CHAIN[8], signature=b"", beacon_proof=b"")


def test_a_wrong_chunk_names_its_sender_who_is_passed_over(fetcher):
    told = serve(fetcher, choose(fetcher), liars={"shard-0-2"})
    ((sender, error, reason),) = refused(told)
    assert (sender, error) == ("shard-0-2", "InvalidProofError")
    assert "of the snapshot of block 8" in reason
    assert isinstance(told[-1], RestoreState)
    assert b"lie" not in [item.data for item in told if isinstance(item, KeepChunk)]
    assert fetcher.on_chunk("shard-0-2", ChunkResponse(0, MANIFEST.id, 0, CHUNKS[0])) == []
    assert fetcher.on_manifest("shard-0-2", MANIFEST) == []


def test_when_all_lie_nobody_is_left(fetcher):
    told = serve(fetcher, choose(fetcher), liars=PEERS)
    assert {sender for sender, _, _ in refused(told)} == set(PEERS)
    assert isinstance(told[-1], SnapshotGivenUp)


def test_a_manifest_with_another_root_names_all_who_sent_it_and_the_next_is_tried(fetcher):
    lie = build_manifest([b"other state"])
    fetcher.on_manifest("shard-0-1", lie)
    fetcher.on_manifest("shard-0-2", lie)
    told = serve(fetcher, fetcher.on_manifest("shard-0-3", MANIFEST), [b"other state"])
    assert isinstance(told[-1], RestoreState)
    outputs = fetcher.on_root(b"x" * 32)
    assert [sender for sender, _, _ in refused(outputs)] == ["shard-0-1", "shard-0-2"]
    assert all("78" * 32 in reason for _, _, reason in refused(outputs))
    told = serve(fetcher, outputs)
    assert isinstance(told[-1], RestoreState)
    assert isinstance(fetcher.on_root(ROOT)[0], SnapshotTaken)


def test_chunks_that_make_no_state_are_the_manifests_fault(fetcher):
    told = serve(fetcher, choose(fetcher))
    assert isinstance(told[-1], RestoreState)
    outputs = fetcher.on_root(None, "snapshot names an entry twice")
    assert len(refused(outputs)) == 3
    assert "names an entry twice" in refused(outputs)[0][2]


OTHER_CHAIN = build_chain(8, step_ms=2000)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda good: replace(good, proof=prove(GENESIS, CHAIN[7])), "InvalidProofError"),
        (lambda good: replace(good, block=OTHER_CHAIN[8]), "InvalidProofError"),
        (
            lambda good: replace(
                good,
                proof=replace(good.proof, finalization=replace(good.proof.finalization, signature=bytes(96))),
            ),
            "InvalidProofError",
        ),
        (lambda good: replace(good, proof=replace(good.proof, path=())), "InvalidProofError"),
        (lambda good: replace(good, chunks=()), "TooLargeError"),
        (lambda good: replace(good, chunks=(b"h" * 32,) * (MAX_CHUNKS + 1)), "TooLargeError"),
        (lambda good: replace(good, shard=1), "InvalidBlockError"),
        (lambda good: replace(good, block=replace(good.block, body=b"other")), "InvalidBlockError"),
        (lambda good: replace(good, block=CHAIN[0]), "InvalidBlockError"),
    ],
)
def test_a_manifest_without_a_proof_of_its_block_counts_for_nothing(fetcher, change, error):
    outputs = fetcher.on_manifest("shard-0-1", change(MANIFEST))
    assert [(sender, kind) for sender, kind, _ in refused(outputs)] == [("shard-0-1", error)]
    assert fetcher.progress["chunks"] == 0


def test_a_manifest_below_what_is_here_is_refused():
    fetcher = SnapshotFetcher(GENESIS, 0, CRYPTO, 8, lambda _: False)
    fetcher.start(PEERS, 40)
    assert refused(fetcher.on_manifest("shard-0-1", MANIFEST))


def test_unsolicited_answers_are_refused(fetcher):
    assert refused(fetcher.on_manifest("shard-1-0", MANIFEST))[0][1] == "UnsolicitedError"
    assert refused(fetcher.on_chunk("shard-0-1", ChunkResponse(0, MANIFEST.id, 0, CHUNKS[0])))
    requests = sent(choose(fetcher), ChunkRequest)
    peer, request = requests[0]
    other = next(name for name in PEERS if name != peer)
    for sender, response in (
        (other, answer(request)),
        (peer, replace(answer(request), snapshot=b"o" * 32)),
        (peer, replace(answer(request), index=19)),
        (peer, replace(answer(request), index=-1)),
        (peer, replace(answer(request), index=10**6)),
    ):
        assert refused(fetcher.on_chunk(sender, response))[0][1] == "UnsolicitedError"
    assert not refused(fetcher.on_chunk(peer, answer(request)))
    assert refused(fetcher.on_chunk(peer, answer(request)))  # once


def test_only_what_was_asked_of_its_sender_is_awaited(fetcher):
    assert fetcher.is_awaited("shard-0-1", MANIFEST)
    assert not fetcher.is_awaited("shard-1-0", MANIFEST)
    requests = sent(choose(fetcher), ChunkRequest)
    peer, request = requests[0]
    other = next(name for name in PEERS if name != peer)
    assert fetcher.is_awaited(peer, answer(request))
    assert not fetcher.is_awaited(other, answer(request))
    assert not fetcher.is_awaited(peer, replace(answer(request), snapshot=b"o" * 32))
    assert not fetcher.is_awaited(peer, replace(answer(request), index=19))
    told = serve(fetcher, [fx.Send(to, message) for to, message in requests])
    assert isinstance(told[-1], RestoreState)
    assert not fetcher.is_awaited(peer, MANIFEST)  # while the state is made nothing piles up


def test_lies_fill_no_disk(fetcher, monkeypatch):
    monkeypatch.setattr(snapshots_module, "MAX_KEPT_CHUNKS", 30)
    lie = build_manifest([bytes([index]) * 50 for index in range(20)])
    fetcher.on_manifest("shard-0-1", lie)
    fetcher.on_manifest("shard-0-2", lie)
    told = serve(fetcher, fetcher.on_manifest("shard-0-3", MANIFEST), [bytes([i]) * 50 for i in range(20)])
    told += serve(fetcher, fetcher.on_root(b"x" * 32))
    assert sum(isinstance(item, KeepChunk) for item in told) == 30
    assert any(isinstance(item, SnapshotGivenUp) for item in told)


def test_a_chunk_beyond_the_cap_is_refused_even_with_its_hash(fetcher):
    large = [bytes(MAX_CHUNK_BYTES + 1)]
    manifest = build_manifest(large)
    ((peer, request),) = sent(choose(fetcher, manifest), ChunkRequest)
    assert refused(fetcher.on_chunk(peer, ChunkResponse(0, manifest.id, request.index, large[0])))


def test_what_an_earlier_attempt_left_is_not_asked_again():
    held = {compute_chunk_hash(chunk) for chunk in CHUNKS[:15]}
    fetcher = SnapshotFetcher(GENESIS, 0, CRYPTO, 0, held.__contains__)
    fetcher.start(PEERS, 40)
    told = serve(fetcher, choose(fetcher))
    assert [item.data for item in told if isinstance(item, KeepChunk)] == CHUNKS[15:]
    assert isinstance(told[-1], RestoreState)


def test_the_chunks_of_a_silent_peer_are_asked_of_the_others(fetcher):
    requests = sent(choose(fetcher), ChunkRequest)
    silent = requests[0][0]
    waiting = [item for item in requests if item[0] != silent]
    for peer, request in waiting:
        waiting += sent(fetcher.on_chunk(peer, answer(request)), ChunkRequest) if peer != silent else []
        waiting = [item for item in waiting if item[0] != silent]
    told = []
    for _ in range(3 * ASK_AGAIN_TICKS):
        told += serve(fetcher, [item for item in fetcher.on_tick() if getattr(item, "to", "") != silent])
    assert any(isinstance(item, RestoreState) for item in told)
    assert not refused(told)


def test_one_manifest_is_enough_after_a_moment(fetcher):
    assert fetcher.on_manifest("shard-0-1", MANIFEST) == []
    outputs = []
    for _ in range(GATHER_TICKS):
        outputs += fetcher.on_tick()
    assert {to for to, _ in sent(outputs, ChunkRequest)} == {"shard-0-1"}
    assert {to for to, _ in sent(fetcher.on_manifest("shard-0-2", MANIFEST), ChunkRequest)} == {"shard-0-2"}


def test_when_nobody_answers_it_is_given_up(fetcher):
    outputs = []
    for _ in range(ASK_AGAIN_TICKS * (MAX_ROUNDS + 1)):
        outputs += fetcher.on_tick()
    assert len(sent(outputs, SnapshotRequest)) == 3 * (MAX_ROUNDS - 1)
    assert any(isinstance(item, SnapshotGivenUp) for item in outputs)


def pass_ticks(fetcher, count):
    outputs = []
    for _ in range(count):
        outputs += fetcher.on_tick()
    return outputs


def test_a_source_that_falls_silent_is_left_for_another(fetcher):
    lure = build_manifest([b"never sent"])
    fetcher.on_manifest("shard-0-1", lure)
    assert sent(pass_ticks(fetcher, GATHER_TICKS), ChunkRequest)
    fetcher.on_manifest("shard-0-2", MANIFEST)
    outputs = pass_ticks(fetcher, PATIENCE_TICKS)
    assert ("shard-0-2", MANIFEST.id) in {
        (to, request.snapshot) for to, request in sent(outputs, ChunkRequest)
    }
    fetcher.on_manifest("shard-0-1", lure)  # it lures again, and is not chosen for it
    told = serve(fetcher, [item for item in outputs if getattr(item, "to", "") == "shard-0-2"])
    assert isinstance(told[-1], RestoreState)


def test_after_the_only_source_fell_silent_manifests_are_asked_for_again(fetcher):
    """As when the one server restarts in the middle: it then holds another snapshot."""
    choose(fetcher)
    asked = sent(pass_ticks(fetcher, PATIENCE_TICKS), SnapshotRequest)
    assert {to for to, _ in asked} == set(PEERS)
    told = serve(fetcher, choose(fetcher))
    assert isinstance(told[-1], RestoreState)


def test_a_peer_that_always_lures_and_never_sends_is_given_up(fetcher):
    outputs = []
    for round_number in range(MAX_ROUNDS + 1):
        outputs += fetcher.on_manifest("shard-0-1", build_manifest([bytes([round_number])]))
        outputs += pass_ticks(fetcher, GATHER_TICKS + PATIENCE_TICKS)
    assert any(isinstance(item, SnapshotGivenUp) for item in outputs)


def test_a_source_that_trickles_is_as_good_as_silent():
    chunks = [bytes([index % 256, index // 256]) for index in range(MAX_CHUNKS)]
    manifest = build_manifest(chunks)
    fetcher = SnapshotFetcher(GENESIS, 0, CRYPTO, 0, lambda _: False)
    fetcher.start(["shard-0-1"], 40)
    requests = sent(fetcher.on_manifest("shard-0-1", manifest), ChunkRequest)
    ticks, outputs = 0, []
    while not sent(outputs, SnapshotRequest) and ticks < 4 * PATIENCE_TICKS:
        outputs = pass_ticks(fetcher, 2 * TICKS_PER_CHUNK)
        ticks += 2 * TICKS_PER_CHUNK
        requests = sent(outputs, ChunkRequest) or requests
        fetcher.on_chunk(requests[0][0], answer(requests.pop(0)[1], chunks, manifest))
    assert ticks < 4 * PATIENCE_TICKS


def test_one_peer_cannot_fill_all_places_with_its_manifests(fetcher):
    for number in range(2 * MAX_SOURCES):
        fetcher.on_manifest("shard-0-1", build_manifest([bytes([number])]))
    fetcher.on_manifest("shard-0-2", MANIFEST)
    outputs = fetcher.on_manifest("shard-0-3", MANIFEST)
    assert {to for to, _ in sent(outputs, ChunkRequest)} == {"shard-0-2", "shard-0-3"}


def test_a_peer_that_repeats_its_manifest_does_not_put_off_the_choice(fetcher):
    outputs = []
    for _ in range(GATHER_TICKS + 1):
        outputs += fetcher.on_manifest("shard-0-1", MANIFEST)
        outputs += fetcher.on_tick()
    assert sent(outputs, ChunkRequest)


def test_two_replicas_with_different_proofs_of_one_block_have_one_snapshot():
    other = replace(
        MANIFEST,
        proof=replace(MANIFEST.proof, finalization=replace(MANIFEST.proof.finalization, bitmap=b"\x07")),
    )
    assert other != MANIFEST
    assert other.id == MANIFEST.id
