"""What the beacon remembers of the shards, and the supply firewall around each of them (X5, X11).

The state holds one entry per shard: its last crosslink, the wei on it, and its inbox, the receipts sent to it that it has
not consumed yet. A crosslink moves wei by one identity, ``B' = B + escrow(consumed) - escrow(emitted) - burnt``, computed
here from bodies, never from what the shard says of its balances. So at every beacon height the wei on shards, in flight
and burnt add up to genesis (I1), and a captured shard can lose only what it owned.

Values never change in place: ``apply_crosslinks`` returns a new state that shares what stayed the same, and several
unfinalised beacon blocks can stand on one parent.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import msgspec

from shardyard.blocks import BeaconRef
from shardyard.codec import encode
from shardyard.crosslinks import Crosslink, compute_visit_order
from shardyard.errors import SupplyError
from shardyard.genesis import Genesis
from shardyard.hashing import TAG_BEACON_STATE, hash_struct
from shardyard.ids import ZERO_HASH, Hash32, Height, ShardId
from shardyard.merkle import compute_root


class EmittedLink(msgspec.Struct, frozen=True):
    """Receipts of one crosslink to one destination, in seq order: escrow (wei) and delivery gas of each."""

    dst: ShardId
    last_seq: int
    root: Hash32
    escrows: tuple[int, ...]
    gas: tuple[int, ...]


class BlockStep(msgspec.Struct, frozen=True):
    """What one shard block did to its inbox: the beacon block it refers to, the position it reached, how many it took."""

    beacon_ref: BeaconRef
    inbox_position: int
    delivery_count: int


class CrosslinkFacts(msgspec.Struct, frozen=True):
    """A crosslink whose bodies were checked, reduced to what moves the beacon's state."""

    crosslink: Crosslink
    hash: Hash32
    first_parent: Hash32
    """Parent of the first header: must be the head of the crosslink before."""
    steps: tuple[BlockStep, ...]
    first_seqs: tuple[tuple[ShardId, int], ...]
    links: tuple[EmittedLink, ...]
    burnt_total: int
    """Wei the shard has burnt since genesis, by its head."""

    @property
    def emitted(self) -> int:
        """Wei that leave the shard."""
        return sum(sum(link.escrows) for link in self.links)


class Batch(msgspec.Struct, frozen=True):
    """Receipts that one crosslink put into an inbox; positions count all receipts ever put there, from 1."""

    beacon_height: Height
    crosslink: Hash32
    src: ShardId
    first_position: int
    escrows: tuple[int, ...]
    gas: tuple[int, ...]

    @property
    def last_position(self) -> int:
        """Position of the last receipt."""
        return self.first_position + len(self.escrows) - 1


class Inbox(msgspec.Struct, frozen=True):
    """Receipts to one shard in the order of X5: ``length`` were sent, ``position`` of them consumed."""

    length: int
    position: int
    in_flight: int
    """Wei in the receipts not yet consumed."""
    commitment: Hash32
    """Hash chain over everything ever put here, so that the state root covers the order."""
    batches: tuple[Batch, ...]
    """Oldest first; those wholly consumed are gone."""


class ShardEntry(msgspec.Struct, frozen=True):
    """One shard as of its last crosslink; ``balance`` and ``burnt`` in wei, ``base_fee`` in wei per gas."""

    crosslink: Hash32
    last_height: Height
    head_hash: Hash32
    state_root: Hash32
    balance: int
    burnt: int
    base_fee: int
    beacon_ref: BeaconRef
    last_seqs: tuple[int, ...]
    """Last seq sent, by destination."""
    inbox: Inbox


class SupplyTable(msgspec.Struct, frozen=True):
    """Where all wei are at one beacon height."""

    genesis: int
    balances: tuple[int, ...]
    in_flight: tuple[int, ...]
    """By destination."""
    burnt: tuple[int, ...]

    @property
    def total(self) -> int:
        """Wei on shards, in flight and burnt; equals ``genesis`` (I1)."""
        return sum(self.balances) + sum(self.in_flight) + sum(self.burnt)


class BeaconState(msgspec.Struct, frozen=True):
    """The beacon's state after one of its blocks."""

    height: Height
    supply: int
    """Wei at genesis."""
    shards: tuple[ShardEntry, ...]

    def compute_root(self) -> Hash32:
        """Return what a beacon header says of this state: a tree over the entries, so that one of them can be proven."""
        entries = compute_root([encode_entry(entry) for entry in self.shards])
        return hash_struct(TAG_BEACON_STATE, (self.height, _encode_wei(self.supply), entries))

    def get_supply(self) -> SupplyTable:
        """Return where all wei are."""
        return SupplyTable(
            genesis=self.supply,
            balances=tuple(entry.balance for entry in self.shards),
            in_flight=tuple(entry.inbox.in_flight for entry in self.shards),
            burnt=tuple(entry.burnt for entry in self.shards),
        )


def _encode_wei(amount: int) -> bytes:
    return amount.to_bytes(40, "big")  # sums of 256-bit values over shards need more than 32 bytes


def encode_entry(entry: ShardEntry) -> bytes:
    """Return the leaf of ``entry`` in the state root."""
    inbox = entry.inbox
    return encode(
        (
            entry.crosslink,
            entry.last_height,
            entry.head_hash,
            entry.state_root,
            _encode_wei(entry.balance),
            _encode_wei(entry.burnt),
            entry.base_fee,
            entry.beacon_ref,
            entry.last_seqs,
            (inbox.length, inbox.position, _encode_wei(inbox.in_flight), inbox.commitment),
        )
    )


def build_genesis_state(genesis: Genesis) -> BeaconState:
    """Return the state before the first beacon block: every shard at its block 0 with its genesis wei."""
    count = genesis.shard_count
    empty = Inbox(length=0, position=0, in_flight=0, commitment=ZERO_HASH, batches=())
    entries = []
    for number, shard in enumerate(genesis.shards):
        header = genesis.build_shard_block(ShardId(number)).header
        entries.append(
            ShardEntry(
                crosslink=ZERO_HASH,
                last_height=Height(0),
                head_hash=header.hash,
                state_root=shard.state_root,
                balance=int.from_bytes(shard.supply, "big"),
                burnt=0,
                base_fee=header.shard_content.base_fee,
                beacon_ref=header.shard_content.beacon_ref,
                last_seqs=(0,) * count,
                inbox=empty,
            )
        )
    supply = sum(entry.balance for entry in entries)
    return BeaconState(height=Height(0), supply=supply, shards=tuple(entries))


def get_available(inbox: Inbox, beacon_height: int) -> int:
    """Return up to which position a block that refers to ``beacon_height`` can read ``inbox``."""
    available = inbox.position
    for batch in inbox.batches:
        if batch.beacon_height > beacon_height:
            break
        available = batch.last_position
    return available


def iterate_pending(inbox: Inbox) -> Iterator[tuple[int, int]]:
    """Yield ``(escrow, delivery gas)`` of the receipts not yet consumed, in order."""
    for batch in inbox.batches:
        skip = max(0, inbox.position + 1 - batch.first_position)
        yield from islice(zip(batch.escrows, batch.gas, strict=True), skip, None)


def compute_consumed(inbox: Inbox, position: int) -> int:
    """Return the wei in the receipts from the head of ``inbox`` up to ``position``."""
    return sum(escrow for escrow, _ in islice(iterate_pending(inbox), position - inbox.position))


def compute_balance(entry: ShardEntry, facts: CrosslinkFacts) -> int:
    """Return the shard's wei after the crosslink (X11); negative means that it spends what it never had."""
    consumed = compute_consumed(entry.inbox, facts.crosslink.inbox_position)
    return entry.balance + consumed - facts.emitted - (facts.burnt_total - entry.burnt)


def _consume(inbox: Inbox, position: int) -> Inbox:
    return Inbox(
        length=inbox.length,
        position=position,
        in_flight=inbox.in_flight - compute_consumed(inbox, position),
        commitment=inbox.commitment,
        batches=tuple(batch for batch in inbox.batches if batch.last_position > position),
    )


def _enqueue(inbox: Inbox, height: Height, facts: CrosslinkFacts, link: EmittedLink) -> Inbox:
    batch = Batch(
        beacon_height=height,
        crosslink=facts.hash,
        src=facts.crosslink.shard,
        first_position=inbox.length + 1,
        escrows=link.escrows,
        gas=link.gas,
    )
    step = (inbox.commitment, height, batch.src, len(link.escrows), link.root)
    return Inbox(
        length=inbox.length + len(link.escrows),
        position=inbox.position,
        in_flight=inbox.in_flight + sum(link.escrows),
        commitment=hash_struct(TAG_BEACON_STATE, step),
        batches=(*inbox.batches, batch),
    )


def _advance(entry: ShardEntry, facts: CrosslinkFacts) -> ShardEntry:
    crosslink = facts.crosslink
    last_seqs = list(entry.last_seqs)
    for link in facts.links:
        last_seqs[link.dst] = link.last_seq
    return ShardEntry(
        crosslink=facts.hash,
        last_height=crosslink.last_height,
        head_hash=crosslink.head_hash,
        state_root=crosslink.state_root,
        balance=compute_balance(entry, facts),
        burnt=facts.burnt_total,
        base_fee=crosslink.base_fee,
        beacon_ref=facts.steps[-1].beacon_ref,
        last_seqs=tuple(last_seqs),
        inbox=_consume(entry.inbox, crosslink.inbox_position),
    )


def apply_crosslinks(state: BeaconState, accepted: Sequence[CrosslinkFacts]) -> BeaconState:
    """Return the state after a beacon block with ``accepted``, each verified against ``state``, in visit order (X5).

    Raises ``SupplyError`` when the result would break I1: a fault of this process, never a peer's.
    """
    height = Height(state.height + 1)
    entries = list(state.shards)
    for facts in accepted:
        shard = facts.crosslink.shard
        entries[shard] = _advance(entries[shard], facts)
        for link in facts.links:
            target = entries[link.dst]
            inbox = _enqueue(target.inbox, height, facts, link)
            entries[link.dst] = msgspec.structs.replace(target, inbox=inbox)
    after = BeaconState(height=height, supply=state.supply, shards=tuple(entries))
    check_supply(after)
    return after


def check_supply(state: BeaconState) -> None:
    """Raise ``SupplyError`` unless all wei are where they must be and no shard owes any (I1, X11)."""
    table = state.get_supply()
    if table.total != table.genesis:
        raise SupplyError(
            f"beacon height {state.height}: got {table.total} wei in all, expected {table.genesis}"
        )
    if min((*table.balances, *table.in_flight, *table.burnt), default=0) < 0:
        raise SupplyError(f"beacon height {state.height}: got a negative amount in {table}")


def sort_by_visit(height: int, shard_count: int, accepted: Iterable[CrosslinkFacts]) -> list[CrosslinkFacts]:
    """Return ``accepted`` in the order in which beacon block ``height`` visits their shards (X5)."""
    place = {shard: index for index, shard in enumerate(compute_visit_order(height, shard_count))}
    return sorted(accepted, key=lambda facts: place[facts.crosslink.shard])
