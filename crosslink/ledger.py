"""The beacon's states, one per block that may still become final, and what a beacon block must be to extend one (X4, X5).

A beacon block is valid iff its body is canonical, its crosslinks stand in visit order, at most one for each shard, each of
them is valid on the state of the parent, and the header commits to the state that follows. Bodies that are not here
make a block *pending*, not invalid (X10, L2). States of unfinalised blocks are computed when asked for and cached; the
final state is the one that counts.
"""

from collections.abc import Callable, Sequence
from typing import Final

from crosslink.availability import BodyStore
from crosslink.state import BeaconState, CrosslinkFacts, apply_crosslinks, build_genesis_state
from crosslink.validity import FindRef, verify_position
from shardyard.blocks import BeaconContent, BeaconRef, Block, BlockKind, compute_body_hash
from shardyard.codec import decode, encode
from shardyard.consensus.votes import Crypto
from shardyard.crosslinks import BeaconBody, Crosslink, compute_crosslinks_root, compute_visit_order
from shardyard.errors import InvalidBlockError, InvalidCrosslinkError, LocalProtocolError, RemoteProtocolError
from shardyard.genesis import Genesis
from shardyard.ids import BEACON, Hash32, ShardId
from shardyard.rejoins import Rejoin, verify_rejoins

MAX_CACHED_STATES: Final = 128
MAX_CACHED_REFS: Final = 4096

GetBlock = Callable[[Hash32], Block | None]
GetFinalBlock = Callable[[int], Block | None]


def build_beacon_ref(block: Block) -> BeaconRef:
    """Return how a shard block refers to the beacon block ``block`` (X0)."""
    return BeaconRef(height=block.header.height, hash=block.hash, epoch=block.header.epoch)


def read_body(genesis: Genesis, block: Block) -> BeaconBody:
    """Return the crosslinks of a beacon block; raises ``InvalidBlockError`` unless header and body agree."""
    name = f"beacon block {block.header.height}"
    content = block.header.content
    if not isinstance(content, BeaconContent) or block.header.kind is not BlockKind.NORMAL:
        raise InvalidBlockError(f"{name}: got the content of a shard or a kind that is not NORMAL")
    if compute_body_hash(block.body) != block.header.body_hash:
        raise InvalidBlockError(f"{name}: the body is not the one its header commits to")
    try:
        body = decode(block.body, BeaconBody, max_bytes=genesis.preset.max_body_bytes)
    except RemoteProtocolError as error:
        raise InvalidBlockError(f"{name}: {error}") from error
    if content.crosslink_count != len(body.crosslinks):
        raise InvalidBlockError(
            f"{name}: got {content.crosslink_count} crosslinks, expected {len(body.crosslinks)}"
        )
    if content.crosslinks_root != compute_crosslinks_root(body.crosslinks):
        raise InvalidBlockError(f"{name}: the crosslinks root is not that of its body")
    if content.registry_root != genesis.committees[BEACON].root:
        raise InvalidBlockError(f"{name}: the registry root is not that of the registry")
    _verify_visit_order(genesis, block.header.height, body.crosslinks)
    return body


def _verify_visit_order(genesis: Genesis, height: int, crosslinks: Sequence[Crosslink]) -> None:
    order = iter(compute_visit_order(height, genesis.shard_count))
    for crosslink in crosslinks:
        if (
            crosslink.shard not in order
        ):  # consumes the iterator: unknown, repeated or out of turn all fail here
            raise InvalidBlockError(
                f"beacon block {height}: shard {crosslink.shard} stands out of visit order or twice"
            )


class Ledger:
    """Final state, states of unfinalised blocks, and the references that shards may make to them."""

    def __init__(
        self,
        genesis: Genesis,
        crypto: Crypto,
        bodies: BodyStore,
        get_block: GetBlock,
        get_final_block: GetFinalBlock,
    ) -> None:
        self._genesis = genesis
        self._crypto = crypto
        self._bodies = bodies
        self._get_block = get_block
        self._get_final_block = get_final_block
        self.final_block = genesis.beacon_block
        self.final_state = build_genesis_state(genesis)
        self._states: dict[Hash32, BeaconState] = {}
        self._read: tuple[Block, BeaconBody] | None = None
        """The block whose body was read last."""
        self._refs: dict[int, BeaconRef] = {0: build_beacon_ref(genesis.beacon_block)}

    def get_state(self, block: Block) -> BeaconState | None:
        """Return the state after ``block``; None while bodies or ancestors are missing or it left the final chain.

        Raises ``InvalidBlockError`` when a block on the way is invalid.
        """
        path: list[Block] = []
        state = self._lookup(block.hash)
        while state is None:
            if block.header.height <= self.final_block.header.height:
                return None
            path.append(block)
            parent = self._get_block(block.header.parent)
            if parent is None:
                return None
            block = parent
            state = self._lookup(block.hash)
        for child in reversed(path):
            if self.find_missing(child):
                return None
            state = self.execute(block, state, child)
            block = child
        return state

    def find_missing_above_final(self, block: Block) -> list[Crosslink]:
        """Return the crosslinks without bodies that keep the state of ``block`` from being computed."""
        missing: list[Crosslink] = []
        while block.header.height > self.final_block.header.height and self._lookup(block.hash) is None:
            missing += self.find_missing(block)
            parent = self._get_block(block.header.parent)
            if parent is None:
                break
            block = parent
        return missing

    def _lookup(self, block_hash: Hash32) -> BeaconState | None:
        if block_hash == self.final_block.hash:
            return self.final_state
        return self._states.get(block_hash)

    def read_crosslinks(self, block: Block) -> tuple[Crosslink, ...]:
        """Return the crosslinks of ``block``; raises ``InvalidBlockError``."""
        return self.read_body(block).crosslinks

    def read_body(self, block: Block) -> BeaconBody:
        """Return the body of ``block``; raises ``InvalidBlockError``. One block is asked about several times in a row."""
        # Compared is the object: a hash does not say what the body holds.
        if self._read is None or self._read[0] is not block:
            self._read = block, read_body(self._genesis, block)
        return self._read[1]

    def find_missing(self, block: Block) -> list[Crosslink]:
        """Return the crosslinks of ``block`` whose bodies are not held; raises ``InvalidBlockError``."""
        return [crosslink for crosslink in self.read_crosslinks(block) if crosslink.hash not in self._bodies]

    def execute(self, parent: Block, before: BeaconState, block: Block) -> BeaconState:
        """Return the state after ``block``, all bodies of which are held; raises ``InvalidBlockError``."""
        body = self.read_body(block)
        committee = self._genesis.committees[BEACON]
        verify_rejoins(self._crypto, self._genesis.get_domain(BEACON), committee, body.rejoins)
        find_ref = self.build_find_ref(parent)
        accepted: list[CrosslinkFacts] = []
        for crosslink in body.crosslinks:
            checked = self._bodies.get(crosslink.hash)
            assert checked is not None, "callers ask find_missing first"
            try:
                verify_position(self._genesis, before, checked.facts, find_ref)
            except InvalidCrosslinkError as error:  # X4: a beacon block with an invalid crosslink is invalid
                raise InvalidBlockError(f"beacon block {block.header.height}: {error}") from error
            accepted.append(checked.facts)
        after = apply_crosslinks(before, accepted)
        root = after.compute_root()
        if root != block.header.beacon_content.state_root or after.height != block.header.height:
            raise InvalidBlockError(
                f"beacon block {block.header.height}: got state root "
                f"{block.header.beacon_content.state_root.hex()}, expected {root.hex()}"
            )
        self._remember(block.hash, after)
        return after

    def build(
        self, parent: Block, before: BeaconState, rejoins: Sequence[Rejoin] = ()
    ) -> tuple[BeaconContent, bytes, list[CrosslinkFacts]]:
        """Return content and body of a block on ``parent`` with every crosslink that is valid there, and its facts.

        ``rejoins`` are verified, ordered by validator and few enough.
        """
        height = parent.header.height + 1
        find_ref = self.build_find_ref(parent)
        accepted: list[CrosslinkFacts] = []
        for shard in compute_visit_order(height, self._genesis.shard_count):
            facts = self._choose(before, shard, find_ref)
            if facts is not None:
                accepted.append(facts)
        crosslinks = tuple(facts.crosslink for facts in accepted)
        content = BeaconContent(
            crosslinks_root=compute_crosslinks_root(crosslinks),
            crosslink_count=len(crosslinks),
            state_root=apply_crosslinks(before, accepted).compute_root(),
            registry_root=self._genesis.committees[BEACON].root,
        )
        return content, encode(BeaconBody(crosslinks, tuple(rejoins))), accepted

    def _choose(self, before: BeaconState, shard: ShardId, find_ref: FindRef) -> CrosslinkFacts | None:
        for checked in self._bodies.get_children(shard, before.shards[shard].crosslink):
            try:
                verify_position(self._genesis, before, checked.facts, find_ref)
            except InvalidCrosslinkError:
                continue  # X4: leaders omit what is invalid
            return checked.facts
        return None

    def build_find_ref(self, parent: Block) -> FindRef:
        """Return a finder of beacon references on the chain that ends in ``parent``: the same for every voter."""
        above: dict[int, BeaconRef] = {}
        block: Block | None = parent
        while block is not None and block.header.height > self.final_block.header.height:
            above[block.header.height] = build_beacon_ref(block)
            block = self._get_block(block.header.parent)

        def find(height: int) -> BeaconRef | None:
            if height > parent.header.height:
                return None
            return above.get(height) or self._find_final_ref(height)

        return find

    def _find_final_ref(self, height: int) -> BeaconRef | None:
        ref = self._refs.get(height)
        if ref is None and 0 <= height <= self.final_block.header.height:
            block = self._get_final_block(height)
            ref = build_beacon_ref(block) if block is not None else None
        return ref

    def apply_final(self, block: Block) -> list[CrosslinkFacts]:
        """Make ``block``, the next final one with all bodies held, the final state; return what it accepted.

        Raises ``LocalProtocolError`` when the committee finalised what this process holds to be invalid.
        """
        if block.header.parent != self.final_block.hash:
            raise LocalProtocolError(
                f"final beacon block {block.header.height} does not follow {self.final_block.header.height}"
            )
        try:
            after = self._lookup(block.hash) or self.execute(self.final_block, self.final_state, block)
        except InvalidBlockError as error:
            raise LocalProtocolError(f"the beacon finalised an invalid block: {error}") from error
        crosslinks = self.read_body(block).crosslinks
        accepted = [crosslink.hash for crosslink in crosslinks]
        facts = [checked.facts for key in accepted if (checked := self._bodies.get(key)) is not None]
        self.final_block, self.final_state = block, after
        self._states = {key: state for key, state in self._states.items() if state.height > after.height}
        self._refs[after.height] = build_beacon_ref(block)
        if len(self._refs) > MAX_CACHED_REFS:
            del self._refs[next(iter(self._refs))]
        self._bodies.on_final(after, accepted)
        return facts

    def forget(self, block_hash: Hash32) -> None:
        """Drop the state of a block that can never become final."""
        self._states.pop(block_hash, None)

    def _remember(self, block_hash: Hash32, state: BeaconState) -> None:
        self._states[block_hash] = state
        if len(self._states) > MAX_CACHED_STATES:  # computed again when asked for
            del self._states[next(iter(self._states))]
