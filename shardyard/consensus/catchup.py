"""What to ask of whom when something is missing: blocks by hash (L9, L10) and ranges of final blocks.

Both ask one peer at a time, go on to the next after a timeout, which doubles once all were asked in vain, and know whom they
asked for what: an answer that nobody asked for is refused before anything of it is verified or kept.
"""

from dataclasses import dataclass, field

from shardyard.ids import Hash32, NodeId

MAX_WANTED = 64
"""Blocks asked for by hash at a time; what is missing beyond that is asked for when these have come."""
MAX_VOTED = 4
"""Proposals asked for at a time because somebody voted for them: votes are not verified before there are enough of them."""
MAX_PEERS = 64
"""Peers remembered as possible sources."""
MAX_ROUNDS_DOUBLED = 5
"""The timeout of a fetch doubles this often at most, after each round of all peers: who has the block may come last."""
MAX_RANGES_DOUBLED = 3
"""That of a range: its answer counts when it comes late as well, and a network that heals is not to be waited for."""


class Peers:
    """Nodes heard on this chain, in order of first appearance."""

    def __init__(self) -> None:
        self._nodes: dict[NodeId, None] = {}

    def note(self, node: NodeId) -> None:
        """Remember ``node``; beyond the cap newcomers are not remembered."""
        if len(self._nodes) < MAX_PEERS:
            self._nodes.setdefault(node)

    def pick(self, attempt: int, first: NodeId | None) -> tuple[NodeId, int] | None:
        """Return whom to ask at ``attempt``, ``first`` at first and then the others in turn, and the round that this is."""
        order = [*([first] if first is not None else []), *(node for node in self._nodes if node != first)]
        return (order[attempt % len(order)], attempt // len(order)) if order else None


@dataclass(slots=True)
class _Want:
    source: NodeId | None
    slot: int
    attempt: int = 0
    wait_ms: int = 0
    asked: set[NodeId] = field(default_factory=set)
    is_voted: bool = False
    """Nothing but a vote speaks for this block."""


class Fetcher:
    """L9: missing ancestry and certified blocks, by hash; a fetch survives a SKIP and ends with its slot's finality."""

    def __init__(self, peers: Peers, timeout_ms: int) -> None:
        self._peers = peers
        self._timeout_ms = timeout_ms
        self._wanted: dict[Hash32, _Want] = {}

    def want(self, block_hash: Hash32, slot: int, source: NodeId | None, delay_ms: int = 0) -> None:
        """Ask for a block after ``delay_ms``, during which it may still arrive by itself, and from ``source`` first."""
        want = self._wanted.get(block_hash)
        if want is not None:
            want.is_voted = False
            if want.attempt == 0:
                want.wait_ms = min(want.wait_ms, delay_ms)
        elif len(self._wanted) < MAX_WANTED:
            self._wanted[block_hash] = _Want(source=source, slot=slot, wait_ms=delay_ms)

    def want_voted(self, block_hash: Hash32, slot: int, source: NodeId, delay_ms: int) -> bool:
        """Ask likewise for a block that ``source`` voted for; tell whether this is new, and not one too many."""
        voted = sum(want.is_voted for want in self._wanted.values())
        if block_hash in self._wanted or voted >= MAX_VOTED:
            return False
        self._wanted[block_hash] = _Want(source=source, slot=slot, wait_ms=delay_ms, is_voted=True)
        return True

    def is_voted(self, block_hash: Hash32) -> bool:
        """Tell whether this block is asked for because of votes alone."""
        want = self._wanted.get(block_hash)
        return want is not None and want.is_voted

    def is_asked(self, block_hash: Hash32, sender: NodeId) -> bool:
        """Tell whether ``sender`` was asked for this block."""
        want = self._wanted.get(block_hash)
        return want is not None and sender in want.asked

    def pass_over(self, block_hash: Hash32, sender: NodeId) -> None:
        """Take no more answers of ``sender`` for this block until it is asked again."""
        want = self._wanted.get(block_hash)
        if want is not None:
            want.asked.discard(sender)

    def drop(self, block_hash: Hash32) -> None:
        """End the fetch of a block that has come, or that is no longer needed."""
        self._wanted.pop(block_hash, None)

    def prune(self, floor: int) -> None:
        """End the fetches of slots up to ``floor``."""
        self._wanted = {key: want for key, want in self._wanted.items() if want.slot > floor}

    def poll(self, elapsed_ms: int) -> dict[NodeId, list[Hash32]]:
        """Return what to ask of whom now, ``elapsed_ms`` after the last poll."""
        requests: dict[NodeId, list[Hash32]] = {}
        for block_hash, want in self._wanted.items():
            want.wait_ms -= elapsed_ms
            if want.wait_ms > 0:
                continue
            picked = self._peers.pick(want.attempt, want.source)
            if picked is None:
                continue
            peer, rounds = picked
            want.wait_ms = self._timeout_ms << min(rounds, MAX_ROUNDS_DOUBLED)
            want.attempt += 1
            want.asked.add(peer)
            requests.setdefault(peer, []).append(block_hash)
        return requests

    def __len__(self) -> int:
        return len(self._wanted)


class RangeSync:
    """Who claims to be ahead, and the range requests that may still be answered.

    One request is waited for at a time. When it was waited for in vain another peer is asked, and the first may still answer:
    where an answer takes longer than the timeout, it is the only one that ever comes.
    """

    def __init__(self) -> None:
        self._claims: dict[NodeId, int] = {}
        self._asked: dict[NodeId, tuple[int, int]] = {}
        """By peer: the highest block asked for first, and how many answers it owes."""
        self._awaited: NodeId | None = None
        self._last: NodeId | None = None
        self._misses = 0
        """Requests in a row that were waited for in vain."""

    def note(self, node: NodeId, height: int) -> None:
        """Remember that ``node`` says its final height is ``height``."""
        if node in self._claims or len(self._claims) < MAX_PEERS:
            self._claims[node] = height

    def get_lag(self, final_height: int) -> int:
        """Return by how many blocks the best claim is ahead."""
        return max(0, max(self._claims.values(), default=0) - final_height)

    @property
    def is_waiting(self) -> bool:
        """Whether a request is under way."""
        return self._awaited is not None

    @property
    def rounds(self) -> int:
        """How often as many requests as there are peers were waited for in vain: so often the timeout doubles."""
        return min(self._misses // max(1, len(self._claims)), MAX_RANGES_DOUBLED)

    def choose(self, final_height: int) -> NodeId | None:
        """Return whom to ask for the blocks after ``final_height`` and count the request as under way."""
        if self._awaited is not None:
            return None
        ahead = [node for node, height in self._claims.items() if height > final_height]
        if not ahead:
            return None
        ahead = [node for node in ahead if node not in self._asked] or ahead  # they may still answer
        start = ahead.index(self._last) + 1 if self._last in ahead else 0
        node = ahead[start % len(ahead)]
        self.ask(node, final_height)
        return node

    def ask(self, node: NodeId, final_height: int) -> None:
        """Count a request to ``node`` for the blocks after ``final_height`` as under way."""
        self._last = self._awaited = node
        _, owed = self._asked.get(node, (0, 0))
        self._asked[node] = (final_height + 1, owed + 1)

    def accept(self, sender: NodeId) -> int | None:
        """End a request that ``sender`` answers and return the height it asked from at most; None if nothing was asked."""
        first, owed = self._asked.pop(sender, (0, 0))
        if owed > 1:
            self._asked[sender] = (first, owed - 1)
        return first if owed else None

    def settle(self) -> None:
        """Wait for no answer any more: one came that is of use, or that says it has none. Timeouts are short again."""
        self._awaited = self._last = None
        self._misses = 0

    def give_up(self) -> None:
        """Wait no longer for the request under way; the next one goes to another peer."""
        self._misses += self._awaited is not None
        self._awaited = None

    def forget(self, node: NodeId) -> None:
        """Drop the claim of a node that did not keep it."""
        self._claims.pop(node, None)
