"""Bodies: which submissions the beacon holds, serves, drops and misses (X10).

A submission is *open* until a final beacon block carries it, then *accepted* until all receipts in it are consumed by
final crosslinks, then *history*, kept while a byte budget lasts for replicas that were away. Only checked submissions
come in, so nobody but a shard's own committee can fill its share. Open ones that no vote rests on are at most
``MAX_OPEN_PER_SHARD`` for each shard, the least useful giving way.
"""

from collections import OrderedDict
from collections.abc import Iterable
from typing import Final, Protocol

from crosslink.state import BeaconState, CrosslinkFacts
from crosslink.validity import CheckedSubmission
from shardyard.crosslinks import Bundle, Crosslink, CrosslinkSubmission
from shardyard.ids import Hash32, ShardId

MAX_OPEN_PER_SHARD: Final = 8
MAX_HISTORY_BYTES: Final = 64 * 1024 * 1024
MAX_HISTORY_COUNT: Final = 4096
_SUBMISSION_OVERHEAD: Final = 4096
"""Bytes a submission is taken to cost beside its receipts: headers and proof."""


class SubmissionSource(Protocol):
    """Submissions that the machine no longer holds: the block log in processes, a dict in simulation."""

    def get_submission(self, crosslink: Hash32) -> CrosslinkSubmission | None:
        """Return the submission behind ``crosslink``, or None when the log has none."""
        ...


class NoSubmissionSource:
    """A source that holds nothing: old bodies are then served from memory alone."""

    def get_submission(self, crosslink: Hash32) -> CrosslinkSubmission | None:
        """Return None."""
        del crosslink
        return None


class BodyStore:
    """Checked submissions by crosslink hash."""

    def __init__(self) -> None:
        self._open: OrderedDict[Hash32, CheckedSubmission] = OrderedDict()
        self._accepted: OrderedDict[Hash32, CheckedSubmission] = OrderedDict()
        self._history: OrderedDict[Hash32, CheckedSubmission] = OrderedDict()
        self._history_bytes = 0
        self._logged: set[Hash32] = set()
        self._wanted: set[Hash32] = set()

    def __contains__(self, crosslink: Hash32) -> bool:
        return self.get(crosslink) is not None

    def get(self, crosslink: Hash32) -> CheckedSubmission | None:
        """Return the submission behind ``crosslink`` if it is held."""
        for shelf in (self._open, self._accepted, self._history):
            found = shelf.get(crosslink)
            if found is not None:
                return found
        return None

    def get_bundle(self, crosslink: Hash32, dst: ShardId) -> Bundle | None:
        """Return the receipts of ``crosslink`` to ``dst`` if they are held and there are any."""
        checked = self.get(crosslink)
        if checked is None:
            return None
        return next((bundle for bundle in checked.bundles if bundle.dst == dst), None)

    def get_children(self, shard: ShardId, parent: Hash32) -> list[CheckedSubmission]:
        """Return the open submissions of ``shard`` that follow ``parent``, the longest first."""
        children = [
            checked
            for checked in self._open.values()
            if checked.facts.crosslink.shard == shard and checked.facts.crosslink.parent == parent
        ]
        return sorted(
            children, key=lambda checked: (-checked.facts.crosslink.last_height, checked.facts.hash)
        )

    def add(self, checked: CheckedSubmission, *, is_wanted: bool = False) -> None:
        """Hold ``checked`` as open, within the bounds; one that is wanted by name, or in the log, passes by them.

        Parent and congestion are signed by nobody, so one range of blocks has as many valid submissions as somebody cares
        to send: one for each parent is enough.
        """
        facts = checked.facts
        # What the log has was in a block that a vote may rest on.
        is_named = is_wanted or facts.hash in self._logged
        if facts.hash in self or (not is_named and self.has_twin(facts.crosslink)):
            return
        self._open[facts.hash] = checked
        if is_wanted:
            self._wanted.add(facts.hash)
        self._shrink(facts.crosslink.shard)

    def has_twin(self, crosslink: Crosslink) -> bool:
        """Tell whether an open submission covers the same blocks after the same parent."""
        return any(
            (held.facts.crosslink.parent, held.facts.crosslink.head_hash)
            == (crosslink.parent, crosslink.head_hash)
            for held in self._open.values()
        )

    def _shrink(self, shard: ShardId) -> None:
        """Let the submission give way that begins furthest ahead, and of those the shortest: it is of least use."""
        loose = [
            held
            for key, held in self._open.items()
            if held.facts.crosslink.shard == shard and key not in self._logged and key not in self._wanted
        ]
        if len(loose) > MAX_OPEN_PER_SHARD:
            worst = max(
                loose,
                key=lambda held: (
                    held.facts.crosslink.first_height,
                    -held.facts.crosslink.last_height,
                    held.facts.hash,
                ),
            )
            del self._open[worst.facts.hash]

    def take_unlogged(self, crosslinks: Iterable[Hash32]) -> list[CrosslinkSubmission]:
        """Return those of ``crosslinks`` that are not in the log yet, and count them as logged from now on (S5)."""
        fresh = []
        for crosslink in crosslinks:
            checked = self.get(crosslink)
            if checked is not None and crosslink not in self._logged:
                self._logged.add(crosslink)
                fresh.append(checked.submission)
        return fresh

    def mark_logged(self, crosslink: Hash32) -> None:
        """Note that the log has ``crosslink``."""
        self._logged.add(crosslink)

    def on_final(self, state: BeaconState, accepted: Iterable[Hash32]) -> None:
        """Move what became final, retire what is consumed, drop what can never become final any more."""
        for key in accepted:
            if key in self._open:
                self._accepted[key] = self._open.pop(key)
        waiting = {batch.crosslink for entry in state.shards for batch in entry.inbox.batches}
        for key in [key for key in self._accepted if key not in waiting]:
            self._retire(self._accepted.pop(key))
        for key in [key for key, held in self._open.items() if _is_overtaken(state, held.facts)]:
            del self._open[key]
            self._logged.discard(key)
        self._wanted &= self._open.keys()

    def _retire(self, checked: CheckedSubmission) -> None:
        self._history[checked.facts.hash] = checked
        self._history_bytes += checked.size + _SUBMISSION_OVERHEAD
        while self._history_bytes > MAX_HISTORY_BYTES or len(self._history) > MAX_HISTORY_COUNT:
            key, oldest = self._history.popitem(last=False)
            self._history_bytes -= oldest.size + _SUBMISSION_OVERHEAD
            self._logged.discard(key)


def _is_overtaken(state: BeaconState, facts: CrosslinkFacts) -> bool:
    """Tell whether no block on ``state`` or later can carry the crosslink: its blocks are covered, or it follows another one.

    Whoever has the blocks can name any parent: early submissions that turn out to follow none would keep the next one out.
    """
    crosslink = facts.crosslink
    entry = state.shards[crosslink.shard]
    is_next = crosslink.first_height == entry.last_height + 1
    return crosslink.first_height <= entry.last_height or (is_next and crosslink.parent != entry.crosslink)
