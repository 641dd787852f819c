"""The mirror for people: what happens on a chain, as small JSON, below ``sy/<net>/watch/<chain>/<stream>``.

Streams: ``blocks``, ``votes``, ``certificates``, ``crosslinks``, ``messages`` and ``faults``. QoS 0, never read by a
node, dropped first when anything is scarce. Hashes and signatures are hex; every entry says ``kind``, ``chain`` and the
``node`` that saw it. One message's life can be followed by its ``id`` through its ``stage`` s.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Final, Protocol

from shardyard.effects import Notice
from shardyard.errors import DecodeError
from shardyard.ids import NodeId, ShardId, describe_shard
from shardyard.messages import Certificates, Message, Proposal, Votes
from shardyard.receipts import decode_receipt

MAX_TEXT: Final = 400
MAX_RECEIPTS: Final = 64
"""Messages of one block that are mirrored one by one; the block's entry still counts them all."""

_STREAM_OF_PREFIX: Final = {
    "block": "blocks",
    "beacon": "blocks",
    "build": "blocks",
    "vote": "votes",
    "certificate": "certificates",
    "slot": "certificates",
    "crosslink": "crosslinks",
    "message": "messages",
}
_FAULTS: Final = "faults"

WatchData = dict[str, int | str]


class Watchable(Protocol):
    """What a mirror needs of a bus."""

    @property
    def node_id(self) -> NodeId:
        """Name under which it publishes."""
        ...

    def mirror(self, suffix: str, data: Mapping[str, int | str]) -> None:
        """Queue ``data`` for people."""
        ...


class WatchMirror:
    """Turns notices into entries of the mirror."""

    def __init__(self, bus: Watchable) -> None:
        self._bus = bus

    def publish(self, notice: Notice) -> None:
        """Mirror one notice."""
        self._bus.mirror(*describe_notice(self._bus.node_id, notice))

    def publish_receipts(self, chain: ShardId, stage: str, receipts: Sequence[bytes], height: int) -> None:
        """Mirror that encoded ``receipts`` reached ``stage`` (emitted, delivered) in final block ``height`` of ``chain``."""
        for data in receipts[:MAX_RECEIPTS]:
            try:
                receipt = decode_receipt(data)
            except DecodeError:
                continue
            self._bus.mirror(
                f"{describe_shard(chain)}/messages",
                {
                    "kind": f"message.{stage}",
                    "chain": describe_shard(chain),
                    "node": self._bus.node_id,
                    "stage": stage,
                    "id": receipt.id.hex(),
                    "receipt": receipt.kind.name,
                    "src": receipt.src,
                    "dst": receipt.dst,
                    "seq": receipt.seq,
                    "value": str(int.from_bytes(receipt.value, "big")),
                    "height": height,
                },
            )


def describe_notice(node: NodeId, notice: Notice) -> tuple[str, WatchData]:
    """Return below which topic ``notice`` is mirrored by ``node``, and as what.

    A notice about another chain than the node's own stays in the node's part of the mirror: no node may write in
    another's. The chain it is about stands in the entry.
    """
    prefix = notice.kind.partition(".")[0]
    stream = _STREAM_OF_PREFIX.get(prefix, _FAULTS)
    if notice.kind.endswith((".invalid", ".refused")):
        stream = _FAULTS
    data: WatchData = {"kind": notice.kind, "chain": describe_shard(notice.shard), "node": node}
    for key, value in notice.data.items():
        # ``kind`` of a notice about a receipt is the receipt's kind.
        data["receipt" if key == "kind" else key] = _to_json(value)
    return f"{get_own_part(node)}/{stream}", data


def describe_message(node: NodeId, chain: ShardId, message: Message) -> Iterator[tuple[str, WatchData]]:
    """Yield what the mirror shows of a message that ``node`` publishes on its own chain."""
    part, base = get_own_part(node), {"chain": describe_shard(chain), "node": node}
    match message:
        case Proposal(block):
            header = block.header
            yield (
                f"{part}/blocks",
                {
                    "kind": "block.proposed",
                    **base,
                    "height": header.height,
                    "hash": block.hash.hex(),
                    "slot": header.slot,
                    "proposer": header.proposer,
                    "body_bytes": len(block.body),
                },
            )
        case Votes(votes):
            for vote in votes:
                yield (
                    f"{part}/votes",
                    {
                        "kind": "vote.cast",
                        **base,
                        "vote": vote.kind.name,
                        "slot": vote.slot,
                        "hash": vote.block_hash.hex(),
                        "validator": vote.validator,
                    },
                )
        case Certificates(certificates):
            for certificate in certificates:
                yield (
                    f"{part}/certificates",
                    {
                        "kind": "certificate.formed",
                        **base,
                        "certificate": certificate.kind.name,
                        "slot": certificate.slot,
                        "hash": certificate.block_hash.hex(),
                        "signers": certificate.bitmap.hex(),
                    },
                )
        case _:
            return


def get_own_part(node: NodeId) -> str:
    """Return the part of the mirror that ``node`` may write: the name of its chain (``node.bus.access``)."""
    return node.rpartition("-")[0]


def _to_json(value: int | str | bytes) -> int | str:
    if isinstance(value, bytes):
        return value.hex()[:MAX_TEXT]
    if isinstance(value, str):
        return value[:MAX_TEXT]
    # Numbers above 2^53 lose digits in what reads JSON as JavaScript does: wei and slots are text then.
    return value if abs(value) < 1 << 53 else str(value)
