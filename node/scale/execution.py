"""Transactions that are counted instead of executed: their number, gas, bytes and messages are in the blocks, their work is time.

A transaction stands in its block's body as one byte, so that counts and offsets are real and a run of millions fits into
memory; whoever asks for its size adds the bytes that it stands for. One in so many leaves its shard: its receipt is real, with
a sequence number of its link, and goes the whole way through outbox, crosslink, beacon and inbox. What a block gives is a
function of its parent, its length and its deliveries, so it is computed once for all replicas of a shard.
"""

from hashlib import blake2b

import msgspec

from node.scale.costs import Costs
from node.scale.network import Plan
from shards.policy import ELASTICITY
from shardyard import effects as fx
from shardyard.blocks import Block, ShardBody
from shardyard.codec import encode
from shardyard.events import ExecutionSummary
from shardyard.genesis import Genesis
from shardyard.hashing import TAG_BODY, hash_tagged
from shardyard.ids import ZERO_HASH, Address, Hash32, ShardId
from shardyard.receipts import (
    RECEIPT_VERSION,
    TRANSFER_GAS,
    Origin,
    Receipt,
    ReceiptKind,
    compute_link_summaries,
    compute_outbox_root,
)

_BLOOM = bytes(256)
_VALUE = (10**9).to_bytes(32, "big")
MAX_BLOCK_TRANSACTIONS = 60_000
"""Whose real bytes stay within a block's body."""


class Standing(msgspec.Struct, frozen=True):
    """Where a shard stands after a block: what was included up to there, and the last number on each of its links."""

    first: int
    last: int
    """The block's own transactions are ``first`` to ``last - 1`` of the shard's."""
    sequences: dict[int, int]


class Executed(msgspec.Struct, frozen=True):
    """What a block gives, and how many of its transactions leave the shard."""

    standing: Standing
    summary: ExecutionSummary
    leaving: int
    inbox: tuple[bytes, ...]


class CountedShard:
    """The transactions of one shard: when they are offered, which are in a block, what becomes of them."""

    def __init__(self, genesis: Genesis, shard: ShardId, plan: Plan, costs: Costs) -> None:
        self._shard = shard
        self._plan = plan
        self._costs = costs
        self._preset = genesis.preset
        self._others = genesis.shard_count - 1
        self._cross = plan.cross if self._others else 0.0
        self.standings: dict[Hash32, Standing] = {genesis.build_shard_block(shard).hash: Standing(0, 0, {})}
        """By block hash."""
        self._given: dict[tuple[Hash32, int], Executed] = {}

    @property
    def _rate(self) -> float:
        """Transactions per second that are offered."""
        return self._plan.tps_per_shard

    def get_offered(self, now_us: int) -> int:
        """Return how many transactions clients have offered up to ``now_us``."""
        return int(self._rate * now_us / 1e6)

    def get_due_us(self, index: float) -> float:
        """Return when a transaction was offered."""
        return (index + 1) / self._rate * 1e6

    def count_leaving(self, first: int, last: int) -> int:
        """Return how many of the transactions ``first`` to ``last - 1`` leave the shard: evenly spread."""
        return int(last * self._cross) - int(first * self._cross)

    def build(
        self, env: fx.EnvSpec, inbox: tuple[bytes, ...], max_bytes: int, now_us: int
    ) -> Executed | None:
        """Fill a block on ``env.parent_hash`` with what is offered, up to the gas target; None when the parent is unknown."""
        parent = self.standings.get(env.parent_hash)
        if parent is None:
            return None
        room = max(0, env.gas_limit // ELASTICITY - TRANSFER_GAS * len(inbox)) if max_bytes else 0
        mean = self._costs.gas + self._cross * (self._costs.gas_cross - self._costs.gas)
        size = self._costs.tx_bytes + self._cross * (self._costs.tx_cross_bytes - self._costs.tx_bytes) + 5
        most = min(int(room / mean), int(max_bytes / size), MAX_BLOCK_TRANSACTIONS)
        if self._rate:
            most = min(most, self.get_offered(now_us) - parent.last)
        return self._give(env, parent, max(0, most), inbox)

    def execute(self, effect: fx.Execute) -> Executed | None:
        """Return what a block of somebody else gives; None when its parent is unknown."""
        parent = self.standings.get(effect.env.parent_hash)
        if parent is None:
            return None
        count = effect.block.header.shard_content.transaction_count
        return self._give(effect.env, parent, count, effect.inbox)

    def _give(self, env: fx.EnvSpec, parent: Standing, count: int, inbox: tuple[bytes, ...]) -> Executed:
        key = (env.parent_hash, count)
        known = self._given.get(key)
        if (
            known is not None
            and known.inbox == inbox
            and known.summary.burnt == self._burn(env, known.summary)
        ):
            return known
        first, last = parent.last, parent.last + count
        leaving = self.count_leaving(first, last)
        sequences = dict(parent.sequences)
        outbox = self._emit(int(first * self._cross), leaving, sequences)
        gas = (
            (count - leaving) * self._costs.gas + leaving * self._costs.gas_cross + TRANSFER_GAS * len(inbox)
        )
        root = hash_tagged(TAG_BODY, env.parent_hash + count.to_bytes(8, "big") + b"".join(inbox))
        summary = ExecutionSummary(
            state_root=root,
            transactions_root=root,
            transaction_count=count,
            delivery_count=len(inbox),
            outcomes_root=root,
            outbox_root=compute_outbox_root(compute_link_summaries(outbox)),
            logs_bloom=_BLOOM,
            gas_used=gas,
            burnt=gas * env.base_fee,
            outbox=outbox,
            access_list_hash=ZERO_HASH,
        )
        given = self._given[key] = Executed(Standing(first, last, sequences), summary, leaving, inbox)
        return given

    @staticmethod
    def _burn(env: fx.EnvSpec, summary: ExecutionSummary) -> int:
        return summary.gas_used * env.base_fee

    def _emit(self, first: int, count: int, sequences: dict[int, int]) -> tuple[bytes, ...]:
        """Return the receipts ``first`` to ``first + count - 1`` of this shard, and move their links on."""
        outbox: list[bytes] = []
        for number in range(first, first + count):
            name = b"%d %d %d" % (self._plan.seed, self._shard, number)
            drawn = blake2b(name, digest_size=32).digest()
            dst = (self._shard + 1 + int.from_bytes(drawn[:8], "big") % self._others) % (self._others + 1)
            seq = sequences[dst] = sequences.get(dst, 0) + 1
            account = Address(drawn[:20])
            receipt = Receipt(
                version=RECEIPT_VERSION,
                kind=ReceiptKind.TRANSFER,
                src=self._shard,
                dst=ShardId(dst),
                seq=seq,
                id=Hash32(drawn),
                origin=Origin(Hash32(drawn), account, 0),
                parent_id=ZERO_HASH,
                sender=account,
                target=account,
                value=_VALUE,
                gas_limit=0,
                gas_price=0,
                reply_gas=0,
                refund_to=account,
                deadline=0,
                payload=b"",
            )
            outbox.append(encode(receipt))
        return tuple(outbox)

    def keep(self, block_hash: Hash32, standing: Standing) -> None:
        """Name the state after a block."""
        self.standings[block_hash] = standing

    def compute_hidden_bytes(self, block: Block) -> int:
        """Return the bytes that the transactions of ``block`` stand for, beyond the one each that is there."""
        count = block.header.shard_content.transaction_count
        leaving = round(count * self._cross)
        return (count - leaving) * (self._costs.tx_bytes - 1) + leaving * (self._costs.tx_cross_bytes - 1)


def encode_body(count: int) -> bytes:
    """Return the body of a block of ``count`` transactions, a byte each."""
    return encode(ShardBody(bytes(count), tuple(range(1, count + 1))))
