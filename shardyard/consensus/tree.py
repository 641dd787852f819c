"""The tree of blocks above the last final one.

A block enters with its shape checked; it is *linked* when its parent is in the tree or final, and it may be validated when
its parent is valid. "Parent missing" and "still executing" are pending, never invalid (L2). The tree is bounded by its
engine: two signed proposals per slot, plus what a certificate names, within the window of slots.
"""

from dataclasses import dataclass
from enum import Enum, auto

from shardyard.blocks import Block
from shardyard.consensus.justify import check_link
from shardyard.errors import InvalidBlockError
from shardyard.ids import Hash32, NodeId


class BlockState(Enum):
    """How far a block has come."""

    ORPHAN = auto()
    """Its parent is not held."""
    LINKED = auto()
    """Its parent is held and not yet valid."""
    VALIDATING = auto()
    VALID = auto()
    INVALID = auto()


@dataclass(slots=True)
class TreeEntry:
    """A block and what is known of it."""

    block: Block
    block_hash: Hash32
    source: NodeId | None
    """Who sent it: the first to ask for its parent."""
    state: BlockState = BlockState.ORPHAN
    is_justified: bool = False
    """Every certificate of its justification is verified (S1); blocks of a range answer come without."""
    is_persisted: bool = False
    is_announced: bool = False
    """``BlockNotarized`` went to the host."""


class BlockTree:
    """Unfinalised blocks by hash, with their children."""

    def __init__(self, root: Block, max_step_ms: int) -> None:
        self.root = root
        self._max_step_ms = max_step_ms
        self._entries: dict[Hash32, TreeEntry] = {}
        self._children: dict[Hash32, list[TreeEntry]] = {}

    def get(self, block_hash: Hash32) -> TreeEntry | None:
        """Return the entry of a block."""
        return self._entries.get(block_hash)

    def get_parent(self, entry: TreeEntry) -> Block | None:
        """Return the parent of a block, if it is held."""
        parent = entry.block.header.parent
        if parent == self.root.hash:
            return self.root
        found = self._entries.get(parent)
        return None if found is None else found.block

    def get_at_slot(self, slot: int) -> list[TreeEntry]:
        """Return the blocks of ``slot``."""
        return [entry for entry in self._entries.values() if entry.block.header.slot == slot]

    def get_entries(self) -> list[TreeEntry]:
        """Return all entries in order of arrival."""
        return list(self._entries.values())

    def get_missing_parents(self) -> list[tuple[Hash32, TreeEntry]]:
        """Return what orphans wait for."""
        return [
            (entry.block.header.parent, entry)
            for entry in self._entries.values()
            if entry.state is BlockState.ORPHAN and entry.block.header.parent not in self._entries
        ]

    def add(self, block: Block, source: NodeId | None, *, is_justified: bool) -> TreeEntry:
        """Take a block whose shape is checked and link it and what waited for it.

        Raises ``InvalidBlockError`` when it contradicts its parent; the tree is then as before.
        """
        entry = TreeEntry(block=block, block_hash=block.hash, source=source, is_justified=is_justified)
        if self._is_parent_held(entry):
            self._link(entry)
        self._entries[entry.block_hash] = entry
        self._children.setdefault(block.header.parent, []).append(entry)
        self._link_children(entry)
        return entry

    def get_validatable(self) -> list[TreeEntry]:
        """Return the linked blocks whose parent is valid, in order of arrival."""
        return [
            entry
            for entry in self._entries.values()
            if entry.state is BlockState.LINKED and self._is_parent_valid(entry)
        ]

    def get_path(self, tip: Hash32) -> list[TreeEntry] | None:
        """Return the entries from the child of the root to ``tip``; None when one is missing or the path leads elsewhere."""
        path: list[TreeEntry] = []
        at = tip
        while at != self.root.hash:
            entry = self._entries.get(at)
            if entry is None or entry.state is BlockState.ORPHAN or len(path) > len(self._entries):
                return None
            path.append(entry)
            at = entry.block.header.parent
        path.reverse()
        return path

    def mark_invalid(self, entry: TreeEntry) -> None:
        """Mark a block and its descendants invalid."""
        entry.state = BlockState.INVALID
        for child in self._children.get(entry.block_hash, []):
            self.mark_invalid(child)

    def advance_root(self, entry: TreeEntry) -> list[TreeEntry]:
        """Make ``entry``, a child of the root, the new root; return the blocks that thereby can never become final."""
        assert entry.block.header.parent == self.root.hash, "blocks become final in order of height"
        self.root = entry.block
        self._remove(entry)
        slot = entry.block.header.slot
        dead = [other for other in self._entries.values() if not self._may_descend(other, slot)]
        for other in dead:
            self._remove(other)
        return dead

    def reset(self, root: Block) -> None:
        """Begin anew above ``root``."""
        self.root = root
        self._entries.clear()
        self._children.clear()

    def __len__(self) -> int:
        return len(self._entries)

    def _may_descend(self, entry: TreeEntry, root_slot: int) -> bool:
        """Tell whether ``entry`` is a descendant of the root, or an orphan that may still prove to be one."""
        seen = entry
        while True:
            parent = seen.block.header.parent
            if parent == self.root.hash:
                return True
            above = self._entries.get(parent)
            if above is None:
                return seen.state is BlockState.ORPHAN and seen.block.header.parent_slot > root_slot
            seen = above

    def _remove(self, entry: TreeEntry) -> None:
        self._entries.pop(entry.block_hash, None)
        siblings = self._children.get(entry.block.header.parent, [])
        if entry in siblings:
            siblings.remove(entry)
            if not siblings:
                del self._children[entry.block.header.parent]

    def _is_parent_held(self, entry: TreeEntry) -> bool:
        parent = entry.block.header.parent
        if parent == self.root.hash:
            return True
        found = self._entries.get(parent)
        return found is not None and found.state is not BlockState.ORPHAN

    def _is_parent_valid(self, entry: TreeEntry) -> bool:
        parent = entry.block.header.parent
        if parent == self.root.hash:
            return True
        found = self._entries.get(parent)
        return found is not None and found.state is BlockState.VALID

    def _link(self, entry: TreeEntry) -> None:
        parent = self.get_parent(entry)
        assert parent is not None, "only a block with a held parent is linked"
        check_link(entry.block.header, parent.header, self._max_step_ms)
        above = self._entries.get(parent.hash)
        entry.state = BlockState.INVALID if above and above.state is BlockState.INVALID else BlockState.LINKED

    def _link_children(self, entry: TreeEntry) -> None:
        """Link what waited for ``entry``; an orphan that contradicts its parent turns out to be invalid."""
        waiting = [entry]
        while waiting:
            above = waiting.pop()
            if above.state is BlockState.ORPHAN:
                continue
            for child in self._children.get(above.block_hash, []):
                if child.state is not BlockState.ORPHAN:
                    continue
                try:
                    self._link(child)
                except InvalidBlockError:
                    child.state = BlockState.INVALID
                waiting.append(child)
