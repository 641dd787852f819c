"""Messages between shards, derived anew: what every shard emitted when its blocks were executed again, in which order the
beacon put it into inboxes, and what every block then had to take (X5).

Nothing here comes from what a node wrote about messages. So a lost, doubled, reordered or invented one shows, wherever
it came from.
"""

from collections.abc import Iterator, Sequence
from itertools import takewhile

import msgspec

from node.audit.findings import Findings, Promise
from shardyard.crosslinks import Crosslink
from shardyard.ids import Hash32
from shardyard.receipts import (
    Receipt,
    compute_delivery_gas,
    compute_escrow,
    count_deliveries,
    decode_receipt,
    summarise_links,
)


class Sent(msgspec.Struct, frozen=True):
    """A message with its encoding."""

    data: bytes
    receipt: Receipt
    escrow: int
    gas: int
    beacon_height: int = 0
    """Beacon block that put it into the inbox."""


class Inbox:
    """Everything ever sent to one shard, in the order of X5. What the beacon saw consumed is no longer kept."""

    def __init__(self) -> None:
        self.length = 0
        self.consumed = 0
        """Position of the last receipt executed by the shard's final blocks."""
        self.pruned = 0
        self._items: list[Sent] = []

    def append(self, item: Sent) -> None:
        """Add the next receipt."""
        self._items.append(item)
        self.length += 1

    def offer(self, position: int, beacon_height: int, inbox_gas: int) -> list[Sent]:
        """Return what a block on ``position`` that refers to ``beacon_height`` must take, no more and no less (X5)."""
        waiting = list(
            takewhile(lambda item: item.beacon_height <= beacon_height, self.list_waiting(position))
        )
        return waiting[: count_deliveries((item.gas for item in waiting), inbox_gas)]

    def list_arrivals(self, beacon_height: int) -> list[bytes]:
        """Return the encoded receipts that the beacon block of ``beacon_height`` added, the newest one."""
        newest: list[bytes] = []
        for item in reversed(self._items):
            if item.beacon_height != beacon_height:
                break
            newest.append(item.data)
        return newest[::-1]

    def list_waiting(self, position: int) -> list[Sent]:
        """Return the receipts after ``position``."""
        return self._items[max(0, position - self.pruned) :]

    def get_waiting_escrow(self, position: int) -> int:
        """Return the wei in receipts after ``position``."""
        return sum(item.escrow for item in self.list_waiting(position))

    def take_escrow(self, position: int) -> int:
        """Return the wei in receipts up to ``position`` that were still kept, and let go of them."""
        count = position - self.pruned
        found = sum(item.escrow for item in self._items[:count])
        del self._items[:count]
        self.pruned = max(self.pruned, position)
        return found


class MessageFlow:
    """Follows all messages of a network while its chains are executed again."""

    def __init__(self, shard_count: int, findings: Findings) -> None:
        self.inboxes = [Inbox() for _ in range(shard_count)]
        self.emitted = 0
        self.delivered = 0
        self._findings = findings
        self._outboxes: list[dict[int, list[Sent]]] = [{} for _ in range(shard_count)]
        self._last_sent: dict[tuple[int, int], int] = {}
        self._last_delivered: dict[tuple[int, int], int] = {}

    def on_executed(
        self, shard: int, height: int, deliveries: Sequence[Sent], outbox: Sequence[bytes]
    ) -> None:
        """Note what a block of ``shard`` consumed and emitted."""
        where = f"shard-{shard} block {height}"
        # A message that names a parent is emitted while that parent is delivered: in the same block (I4).
        parents = {item.receipt.id for item in deliveries}
        for item in deliveries:
            self._on_delivered(shard, item.receipt, where)
        self.inboxes[shard].consumed += len(deliveries)
        items: list[Sent] = []
        for data in outbox:
            receipt = decode_receipt(data)
            self._on_emitted(shard, receipt, parents, where)
            items.append(Sent(data, receipt, compute_escrow(receipt), compute_delivery_gas(receipt)))
        if items:
            self._outboxes[shard][height] = items

    def _on_delivered(self, shard: int, receipt: Receipt, where: str) -> None:
        self.delivered += 1
        self._findings.count(Promise.EXACTLY_ONCE)
        link = (receipt.src, shard)
        last = self._last_delivered.get(link, 0)
        if receipt.dst != shard or receipt.seq <= last:
            self._findings.add(
                Promise.EXACTLY_ONCE,
                where,
                f"seq {receipt.seq} of link {link} was delivered again or elsewhere",
            )
        elif receipt.seq != last + 1:
            self._findings.add(
                Promise.ORDER, where, f"got seq {receipt.seq} of link {link} after {last}"
            )  # I3
        self._last_delivered[link] = max(last, receipt.seq)

    def _on_emitted(self, shard: int, receipt: Receipt, parents: set[Hash32], where: str) -> None:
        self.emitted += 1
        self._findings.count(Promise.ORDER)
        link = (shard, receipt.dst)
        last = self._last_sent.get(link, 0)
        if receipt.src != shard or receipt.seq != last + 1:
            self._findings.add(Promise.ORDER, where, f"emitted seq {receipt.seq} of link {link} after {last}")
        self._last_sent[link] = receipt.seq
        if any(receipt.parent_id) and receipt.parent_id not in parents:
            self._findings.add(Promise.ORDER, where, f"message {receipt.id.hex()} comes without its parent")

    def on_crosslink(self, beacon_height: int, crosslink: Crosslink) -> int:
        """Put the receipts of a crosslink into inboxes, link by link; return the wei that left the shard."""
        shard = crosslink.shard
        outboxes = self._outboxes[shard]
        items = [
            item
            for height in range(crosslink.first_height, crosslink.last_height + 1)
            for item in outboxes.pop(height, ())
        ]
        links = summarise_links((item.data, item.receipt) for item in items)
        self._findings.count(Promise.CROSSLINKS)
        if links != crosslink.links:
            self._findings.add(
                Promise.CROSSLINKS,
                f"beacon block {beacon_height}",
                f"the links of shard {shard} are not what its blocks {crosslink.first_height}..{crosslink.last_height} emit",
            )
        for dst in sorted({item.receipt.dst for item in items}):
            for item in items:
                if item.receipt.dst == dst:
                    self.inboxes[dst].append(msgspec.structs.replace(item, beacon_height=beacon_height))
        return sum(item.escrow for item in items)

    def count_in_flight(self) -> int:
        """Return messages emitted and not delivered at the end of the audit."""
        return self.emitted - self.delivered

    def sum_in_flight(self) -> int:
        """Return the wei in them, those that no crosslink carries yet included."""
        return sum(item.escrow for item in self.iterate_in_flight())

    def iterate_in_flight(self) -> Iterator[Sent]:
        """Yield the messages that wait for a crosslink or in an inbox; one that is neither here nor delivered is lost."""
        for outboxes in self._outboxes:
            for items in outboxes.values():
                yield from items
        for inbox in self.inboxes:
            yield from inbox.list_waiting(inbox.consumed)
