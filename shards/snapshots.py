"""Coming by a snapshot: which manifest is believed, which chunk is asked of whom, and who is passed over.

A replica that is far behind asks its peers for the state at one height that lies a little ahead (G2), so that all of them cut
the same snapshot. A manifest counts with the finality proof of its block alone (A2, G3). Peers with the same manifest form a
*source*; chunks are asked of all of them at once, a few at a time. A chunk is compared with the manifest's hash as it comes,
so a wrong one names its sender, who is passed over. The whole is compared with the state root of the block's header: if
that fails the manifest was a lie, and everybody who sent it is named. Answers that nobody asked for are refused.

Bounds: ``MAX_SOURCES`` manifests of ``MAX_CHUNKS`` chunks each, ``MAX_PEERS`` peers, ``MAX_ASKED`` chunks under way per peer,
``MAX_KEPT_CHUNKS`` for the disk.
"""

from collections.abc import Callable, Collection, Iterable
from typing import Final

import msgspec

from shardyard.consensus.justify import check_block
from shardyard.consensus.proofs import verify_finality_proof
from shardyard.consensus.votes import Crypto
from shardyard.effects import Effect, Notice, Send, SnapshotRecord
from shardyard.errors import (
    InvalidBlockError,
    InvalidProofError,
    RemoteProtocolError,
    TooLargeError,
    UnsolicitedError,
)
from shardyard.genesis import Genesis
from shardyard.hashing import TAG_SNAPSHOT, hash_tagged
from shardyard.ids import Hash32, Height, NodeId, ShardId
from shardyard.messages import ChunkRequest, ChunkResponse, SnapshotManifest, SnapshotRequest

SNAPSHOT_HEIGHTS: Final = 8
"""Snapshots are cut at multiples of this height, so that several replicas have the same one."""
MAX_CHUNKS: Final = 4_096
"""4 GiB of state, which a replica keeps in memory."""
MAX_CHUNK_BYTES: Final = 1 << 20
MAX_PEERS: Final = 16
MAX_SOURCES: Final = 4
MAX_ASKED: Final = 4
ASK_AGAIN_TICKS: Final = 8
"""Ticks after which a chunk is asked of somebody else, and a manifest once more."""
GATHER_TICKS: Final = 2
"""Ticks after the first manifest in which others with the same may still come."""
MAX_KEPT_CHUNKS: Final = 2 * MAX_CHUNKS
"""Chunks that one attempt gives to the disk, those of manifests that were lies included."""
MAX_ROUNDS: Final = 8
"""Times manifests are asked for, or a silent source is left, before the blocks are fetched instead, one by one."""
PATIENCE_TICKS: Final = 32
"""Ticks a source may take for its first chunk; it is left when they are used up."""
TICKS_PER_CHUNK: Final = 4
"""Ticks a chunk gives back, up to ``PATIENCE_TICKS``: who sends slower than that on the average is as good as silent."""


class KeepChunk(msgspec.Struct, frozen=True):
    """A chunk that the manifest names; it may go to the disk."""

    hash: Hash32
    data: bytes


class RestoreState(msgspec.Struct, frozen=True):
    """Every chunk is here: make the state of them and answer with its root."""

    record: SnapshotRecord


class SnapshotTaken(msgspec.Struct, frozen=True):
    """The state is the block's: the chain goes on from here."""

    record: SnapshotRecord


class SnapshotGivenUp(msgspec.Struct, frozen=True):
    """Nobody has a snapshot that holds."""

    reason: str


SnapshotOutput = Effect | KeepChunk | RestoreState | SnapshotTaken | SnapshotGivenUp


class _Source(msgspec.Struct):
    """A manifest and those who sent it."""

    manifest: SnapshotManifest
    peers: list[NodeId]


def compute_chunk_hash(chunk: bytes) -> Hash32:
    """Return what a manifest says of a chunk."""
    return hash_tagged(TAG_SNAPSHOT, chunk)


def estimate_height(heights: Collection[int], faulty: int) -> Height:
    """Return the highest of ``heights`` that ``faulty`` liars cannot have raised: at least one other tells as much.

    With no more than ``faulty`` answers, the lowest; 0 without any.
    """
    if not heights:
        return Height(0)
    return Height(sorted(heights, reverse=True)[min(faulty, len(heights) - 1)])


def choose_height(known_height: int) -> Height:
    """Return the height of the next snapshot that peers at ``known_height`` have still ahead of them."""
    return Height((known_height // SNAPSHOT_HEIGHTS + 1) * SNAPSHOT_HEIGHTS)


class SnapshotFetcher:
    """One attempt to come by a snapshot. Time comes as ticks, of about a second or a block time."""

    def __init__(
        self,
        genesis: Genesis,
        shard: ShardId,
        crypto: Crypto,
        own_height: int,
        has_chunk: Callable[[Hash32], bool],
    ) -> None:
        """``has_chunk`` tells what an earlier attempt left on disk."""
        self._genesis = genesis
        self._shard = shard
        self._crypto = crypto
        self._own_height = own_height
        self._has_chunk = has_chunk
        self._peers: list[NodeId] = []
        self._banned: set[NodeId] = set()
        self._known_height = 0
        self._asked_for = Height(0)
        self._sources: dict[Hash32, _Source] = {}
        self._chosen: _Source | None = None
        self._is_restoring = False
        self._missing: list[int] = []
        self._asked: dict[int, tuple[NodeId, int]] = {}
        """Chunks under way: of whom, and since which tick."""
        self._tick = 0
        self._since = 0
        self._rounds = 0
        self._kept = 0
        self._patience = PATIENCE_TICKS
        self._left: set[Hash32] = set()
        """Manifests whose senders fell silent; others are preferred. At most one a round."""

    @property
    def progress(self) -> dict[str, int]:
        """What people may see of it."""
        manifest = None if self._chosen is None else self._chosen.manifest
        total = 0 if manifest is None else len(manifest.chunks)
        return {
            "height": self._asked_for if manifest is None else manifest.block.header.height,
            "chunks": total,
            "missing": len(self._missing) + len(self._asked) if manifest is not None else 0,
            "peers": 0 if self._chosen is None else len(self._chosen.peers),
            "refused": len(self._banned),
        }

    def start(self, peers: Iterable[NodeId], known_height: int) -> list[SnapshotOutput]:
        """Ask ``peers``, of whom an honest one is at ``known_height``, for their manifests."""
        self._peers = list(peers)[:MAX_PEERS]
        self._known_height = known_height
        return self._ask_manifests()

    def is_awaited(self, sender: NodeId, answer: SnapshotManifest | ChunkResponse) -> bool:
        """Tell whether ``answer`` could be of use, so that nothing else needs to be kept until its turn."""
        if sender in self._banned or sender not in self._peers or self._is_restoring:
            return False
        if isinstance(answer, SnapshotManifest):
            return True
        asked = self._asked.get(answer.index)
        return (
            asked is not None
            and asked[0] == sender
            and self._chosen is not None
            and answer.snapshot == self._chosen.manifest.id
        )

    def on_manifest(self, sender: NodeId, manifest: SnapshotManifest) -> list[SnapshotOutput]:
        """Take a manifest; what is wrong with it names its sender."""
        if sender in self._banned:
            return []  # it is passed over
        if sender not in self._peers:
            return [self._refuse(sender, UnsolicitedError(f"manifest: {sender} was not asked for one"))]
        key = manifest.id
        try:
            if key not in self._sources:
                self._verify_manifest(manifest)
        except RemoteProtocolError as error:
            return self._ban(sender, error)
        is_first = not self._sources
        self._forget_manifests_of(sender, key)
        source = self._sources.get(key)
        if source is None:
            if len(self._sources) >= MAX_SOURCES:
                return []
            source = self._sources[key] = _Source(manifest, [])
        if sender not in source.peers:
            source.peers.append(sender)
        if is_first:
            self._since = self._tick
        heard = {peer for found in self._sources.values() for peer in found.peers}
        if len(heard) == len(self._peers) - len(self._banned) and self._chosen is None:
            return self._choose()  # everybody is here
        return self._ask_chunks() if source is self._chosen else []

    def on_chunk(self, sender: NodeId, response: ChunkResponse) -> list[SnapshotOutput]:
        """Take a chunk that was asked for."""
        if sender in self._banned:
            return []
        source = self._chosen
        asked = self._asked.get(response.index)
        if source is None or asked is None or asked[0] != sender or response.snapshot != source.manifest.id:
            return [
                self._refuse(
                    sender, UnsolicitedError(f"chunk {response.index}: {sender} was not asked for it")
                )
            ]
        expected = source.manifest.chunks[response.index]
        if len(response.data) > MAX_CHUNK_BYTES or compute_chunk_hash(response.data) != expected:
            error = InvalidProofError(
                f"chunk {response.index} of the snapshot of block {source.manifest.block.header.height}: got "
                f"{len(response.data)} bytes of another hash, expected {expected.hex()[:16]}…"
            )
            return self._ban(sender, error)
        del self._asked[response.index]
        self._patience = min(PATIENCE_TICKS, self._patience + TICKS_PER_CHUNK)
        if self._kept >= MAX_KEPT_CHUNKS:
            return [SnapshotGivenUp(f"{self._kept} chunks came, and no state that holds")]
        self._kept += 1
        return [KeepChunk(expected, response.data), *self._ask_chunks()]

    def on_tick(self) -> list[SnapshotOutput]:
        """Let time pass: choose a source, ask again, leave one that fell silent, give up."""
        self._tick += 1
        if self._is_restoring:
            return []
        if self._chosen is None:
            if self._sources and self._tick - self._since >= GATHER_TICKS:
                return self._choose()
            if not self._sources and self._tick - self._since >= ASK_AGAIN_TICKS:
                return self._ask_manifests()
            return []
        self._patience -= 1
        if self._patience <= 0:
            return self._leave_source()
        late = [index for index, (_, since) in self._asked.items() if self._tick - since >= ASK_AGAIN_TICKS]
        for index in late:
            peer, _ = self._asked.pop(index)
            self._missing.append(index)
            if peer in self._chosen.peers:  # to the end of the line: it may be gone
                self._chosen.peers.remove(peer)
                self._chosen.peers.append(peer)
        return [*self._remind(), *self._ask_chunks()]

    def _leave_source(self) -> list[SnapshotOutput]:
        """Turn away from a source that sends no chunks: its peers restarted, hold it no more, or never meant to send them."""
        source = self._chosen
        assert source is not None, "only a chosen source is asked for chunks"
        key = source.manifest.id
        del self._sources[key]
        self._left.add(key)
        self._chosen = None
        self._asked.clear()
        if not self._sources:
            return self._ask_manifests()
        self._rounds += 1
        if self._rounds > MAX_ROUNDS:
            return [SnapshotGivenUp(f"no source sent all its chunks in {MAX_ROUNDS} rounds")]
        return self._choose()

    def _forget_manifests_of(self, sender: NodeId, key: Hash32) -> None:
        """Let ``sender`` stand behind one manifest, beside the one that is being fetched: nobody fills all places alone."""
        for other, source in list(self._sources.items()):
            if other != key and source is not self._chosen and sender in source.peers:
                source.peers.remove(sender)
                if not source.peers:
                    del self._sources[other]

    def _remind(self) -> list[SnapshotOutput]:
        """Ask those for their manifest who did not answer yet: the bus loses messages, and more sources are faster."""
        if self._tick % ASK_AGAIN_TICKS:
            return []
        heard = {peer for found in self._sources.values() for peer in found.peers}
        silent = [peer for peer in self._peers if peer not in heard and peer not in self._banned]
        return [Send(peer, SnapshotRequest(self._shard, self._asked_for)) for peer in silent]

    def on_root(self, root: bytes | None, reason: str = "") -> list[SnapshotOutput]:
        """Take the root of the state made of all chunks, or why none could be made."""
        source = self._chosen
        assert source is not None, "a root answers RestoreState"
        self._is_restoring = False
        header = source.manifest.block.header
        expected = header.shard_content.state_root
        if root == expected:
            return [SnapshotTaken(self._build_record(source))]
        got = reason if root is None else f"the root {root.hex()}"
        error = InvalidProofError(
            f"snapshot of block {header.height}: got {got}, expected {expected.hex()} as the header says"
        )
        self._chosen = None
        del self._sources[source.manifest.id]
        refusals: list[SnapshotOutput] = [self._pass_over(peer, error) for peer in source.peers]
        return refusals + self._turn_to_others()

    def _verify_manifest(self, manifest: SnapshotManifest) -> None:
        block, proof = manifest.block, manifest.proof
        domain, committee = self._genesis.get_domain(self._shard), self._genesis.committees[self._shard]
        if not 1 <= len(manifest.chunks) <= MAX_CHUNKS:
            raise TooLargeError(f"manifest: got {len(manifest.chunks)} chunks, expected 1 to {MAX_CHUNKS}")
        if manifest.shard != self._shard or block.header.height <= self._own_height:
            raise InvalidBlockError(
                f"manifest: got block {block.header.height} of shard {block.header.shard}, "
                f"expected one of shard {self._shard} above {self._own_height}"
            )
        if not proof.path or proof.path[0].header.hash != block.hash:
            raise InvalidProofError("manifest: the proof is of another block")
        verify_finality_proof(self._crypto, domain, committee, proof)
        check_block(block, domain, committee)

    def _build_record(self, source: _Source) -> SnapshotRecord:
        manifest = source.manifest
        # X0, L12: what its sender put beside header, justification and body is not verified, and would be passed on.
        block = msgspec.structs.replace(manifest.block, signature=b"", beacon_proof=b"")
        return SnapshotRecord(block, manifest.proof, manifest.chunks)

    def _ask_manifests(self) -> list[SnapshotOutput]:
        self._rounds += 1
        self._since = self._tick
        peers = [peer for peer in self._peers if peer not in self._banned]
        if not peers:
            return [SnapshotGivenUp("no peer is left that could have a snapshot")]
        if self._rounds > MAX_ROUNDS:
            return [SnapshotGivenUp(f"no manifest came in {MAX_ROUNDS} rounds")]
        # A tick is about a block time: what was ahead of the peers in the first round is behind them in later ones.
        self._asked_for = choose_height(self._known_height + self._tick)
        return [Send(peer, SnapshotRequest(self._shard, self._asked_for)) for peer in peers]

    def _choose(self) -> list[SnapshotOutput]:
        """Turn to the source with most peers, the newest of them; to one that was left before only when there is no other."""
        _, self._chosen = max(
            self._sources.items(),
            key=lambda found: (
                found[0] not in self._left,
                len(found[1].peers),
                found[1].manifest.block.header.height,
            ),
        )
        self._asked.clear()
        self._patience = PATIENCE_TICKS
        chunks = self._chosen.manifest.chunks
        self._missing = [index for index in range(len(chunks)) if not self._has_chunk(chunks[index])]
        self._missing.reverse()
        return self._ask_chunks()

    def _ask_chunks(self) -> list[SnapshotOutput]:
        source = self._chosen
        if source is None or self._is_restoring:
            return []
        if not self._missing and not self._asked:
            self._is_restoring = True
            return [RestoreState(self._build_record(source))]
        outputs: list[SnapshotOutput] = []
        load = dict.fromkeys(source.peers, 0)
        for peer, _ in self._asked.values():
            load[peer] = load.get(peer, 0) + 1
        while self._missing and load:
            peer = min(load, key=lambda found: load[found])  # the first of those with least to do
            if load[peer] >= MAX_ASKED:
                break
            index = self._missing.pop()
            self._asked[index] = (peer, self._tick)
            load[peer] += 1
            outputs.append(Send(peer, ChunkRequest(self._shard, source.manifest.id, index)))
        return outputs

    def _ban(self, peer: NodeId, error: RemoteProtocolError) -> list[SnapshotOutput]:
        """Pass ``peer`` over from now on, and go on with the others."""
        refusal = self._pass_over(peer, error)
        return [refusal, *(self._ask_chunks() if self._chosen is not None else self._turn_to_others())]

    def _turn_to_others(self) -> list[SnapshotOutput]:
        return self._choose() if self._sources else self._ask_manifests()

    def _pass_over(self, peer: NodeId, error: RemoteProtocolError) -> Notice:
        """Believe nothing of ``peer`` any more; what it was asked for is missing again."""
        self._banned.add(peer)
        for index in [index for index, (asked, _) in self._asked.items() if asked == peer]:
            del self._asked[index]
            self._missing.append(index)
        for key, source in list(self._sources.items()):
            if peer in source.peers:
                source.peers.remove(peer)
            if not source.peers:
                del self._sources[key]
        if self._chosen is not None and not self._chosen.peers:
            self._chosen = None
        return self._refuse(peer, error)

    def _refuse(self, sender: NodeId, error: RemoteProtocolError) -> Notice:
        data: dict[str, int | str | bytes] = {
            "sender": sender,
            "error": type(error).__name__,
            "reason": str(error),
        }
        return Notice("refused", self._shard, data)
