"""Faults of disks: full, failing, rotting; records of what was signed that are lost, or older than they should be.

What happens then is what real processes do. A write or sync that fails ends the process at once, and its supervisor
starts it again. A damaged log is refused, and a person replaces it by an empty one, for the other replicas have the chain.
Without its signer's record, or with a damaged one, a node follows and signs nothing; on the beacon it rejoins. An old copy
of the record is noticed by its witness beside the keys, unless a power cut set that back as well: then the node signs again
what it signed before, perhaps otherwise, so whoever restores a copy counts as Byzantine.

What a node's promises rest on is taken only where all who lost it weigh less than a third of their committee.
"""

import random
from collections.abc import Callable
from functools import partial
from typing import Final

from node.sim.invariants import InvariantError
from node.sim.node import SimNode
from node.sim.weights import Weights
from shardyard.ids import ShardId

RESTART_MS: Final = (300, 3_000)
"""How long a supervisor waits before it starts a process that ended by itself."""
MAX_LACKING: Final = 60
"""Batches that an old copy of a signer's record lacks at most."""

Tell = Callable[[str, str, SimNode], None]
Note = Callable[[str, str], None]
Ambush = Callable[[random.Random, SimNode, Callable[[], None]], None]
Later = Callable[[random.Random, tuple[int, int], Callable[[], None]], None]


class DiskFaults:
    """Strikes at disks, and does afterwards what supervisors and people do."""

    def __init__(
        self,
        nodes: list[SimNode],
        weights: Weights,
        chance: random.Random,
        *,
        tell: Tell,
        note: Note,
        later: Later,
        ambush: Ambush,
        restart: Callable[[SimNode], None],
        accuse: Callable[[ShardId, tuple[int, ...]], None],
    ) -> None:
        self._nodes = nodes
        self._weights = weights
        self._chance = chance
        self._tell = tell
        self._note = note
        self._later = later
        self._ambush = ambush
        self._restart = restart
        self._accuse = accuse

    def heal(self) -> None:
        """There is room again, and no disk fails."""
        for node in self._nodes:
            node.disk.repair()
            node.record.repair()

    def fail_stop(self, node: SimNode) -> None:
        """A process has met a disk that fails, and ends; its supervisor starts it again."""
        lost = node.crash()
        self._note("fail-stop", f"{node.name} stops, for its disk failed; {lost} records lost")
        self._later(self._chance, RESTART_MS, partial(self._restart, node))

    def replace_log(self, node: SimNode) -> None:
        """Do what the refusal of a damaged log tells a person to do."""
        if not self._weights.has_failed(node.chain, node.keys):
            raise InvariantError(
                f"I12: {node.name} refuses a log that nobody damaged after it was synced: {node.refusal}"
            )
        self._note("log replaced", f"{node.name} had a damaged log and starts with an empty one")
        node.disk.wipe()
        node.start()

    # Strikes

    def fill(self, chance: random.Random, full_ms: tuple[int, int]) -> None:
        """No room is left for a while (ENOSPC): whatever is written fails."""
        node = chance.choice(self._nodes)

        def begin() -> None:
            node.disk.faults += 1
            node.record.faults += 1
            self._tell("full disk", f"the disk of {node.name} is full", node)
            self._later(chance, full_ms, make_room)

        def make_room() -> None:
            node.disk.faults -= 1
            node.record.faults -= 1

        self._ambush(chance, node, begin)

    def fail_sync(self, chance: random.Random) -> None:
        """The next sync of log or record fails (EIO); what it should have made durable may be there or not."""
        node = chance.choice(self._nodes)
        target = node.disk if chance.random() < 0.5 else node.record

        def begin() -> None:
            target.errors += 1
            self._tell("io error", f"a sync of {node.name} fails", node)

        self._ambush(chance, node, begin)

    def flip_bit(self, chance: random.Random, down_ms: tuple[int, int]) -> None:
        """A bit of what was durable flips while a node is down: in its log, or in its signer's record."""
        is_log = chance.random() < 0.5

        def rot(node: SimNode) -> None:
            place = (node.disk if is_log else node.record).flip_bit(chance)
            what = "log" if is_log else "signer's record"
            self._tell("bit flip", f"{node.name} goes down, a bit flips in its {what} at byte {place}", node)

        self._take_down(chance, down_ms, rot)

    def lose_record(self, chance: random.Random, down_ms: tuple[int, int]) -> None:
        """Somebody removes a signer's record while its node is down."""

        def remove(node: SimNode) -> None:
            node.record.is_missing = True
            self._tell("lost record", f"{node.name} goes down, its signer's record is gone", node)

        self._take_down(chance, down_ms, remove)

    def restore_record(self, chance: random.Random, down_ms: tuple[int, int]) -> None:
        """Somebody puts an older copy of a signer's record in its place while its node is down."""

        def restore(node: SimNode) -> None:
            lacking = node.record.restore_copy(chance, MAX_LACKING)
            self._accuse(node.chain, node.keys)
            text = f"{node.name} goes down, its signer's record lacks the last {lacking} batches"
            self._tell("old record", text, node)

        self._take_down(chance, down_ms, restore)

    def _take_down(
        self, chance: random.Random, down_ms: tuple[int, int], spoil: Callable[[SimNode], None]
    ) -> None:
        """Crash a node that may lose what its promises rest on, spoil it, and start it again later; nobody if none may."""
        victims = [node for node in self._nodes if self._may_lose(node)]
        if not victims:
            return
        node = chance.choice(victims)

        def strike() -> None:
            if self._may_lose(node):  # it may have changed since
                self._weights.fail(node.chain, node.keys)
                node.crash()
                spoil(node)
                self._later(chance, down_ms, partial(self._restart, node))

        self._ambush(chance, node, strike)

    def _may_lose(self, node: SimNode) -> bool:
        is_whole = node.is_up and not node.is_byzantine and bool(node.keys)
        return is_whole and self._weights.can_fail(node.chain, node.keys)
