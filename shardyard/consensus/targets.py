"""Blocks that are proven final and not yet finalised here: the ends of the path that an engine walks (L5).

A target may be far ahead of what is executed; every valid block on the way to it becomes final, in order of height, with
the target's proof extended by the certified path down to it (A2).
"""

from shardyard.blocks import Block, FinalityProof
from shardyard.consensus.certificates import CertificateStore
from shardyard.consensus.engine import RequestValidation
from shardyard.consensus.proofs import build_certified_header, build_finality_proof, extend_proof
from shardyard.consensus.tree import BlockState, BlockTree, TreeEntry
from shardyard.ids import Hash32


class FinalityTargets:
    """Verified proofs of unfinalised blocks, by block hash; bounded by the tree that must hold the blocks."""

    def __init__(self, tree: BlockTree) -> None:
        self._tree = tree
        self._proofs: dict[Hash32, FinalityProof] = {}

    def add(self, proof: FinalityProof) -> None:
        """Take a verified proof of a block in the tree."""
        self._proofs.setdefault(proof.path[0].header.hash, proof)

    def __contains__(self, block_hash: Hash32) -> bool:
        return block_hash in self._proofs

    def decides(self, slot: int) -> bool:
        """Tell whether what ``slot`` holds is decided already: a block in it or in a later one is proven final."""
        return any(proof.path[0].header.slot >= slot for proof in self._proofs.values())

    def find(self, certificates: CertificateStore) -> None:
        """A2: a held block with NotarCert and FinalCert is proven final."""
        for entry in self._tree.get_entries():
            slot = entry.block.header.slot
            finalization = certificates.get_finalization(slot, entry.block_hash)
            if finalization is None or entry.block_hash in self._proofs:
                continue
            notarization = certificates.get_notarization(slot, entry.block_hash)
            if notarization is not None:
                tip = build_certified_header(entry.block)
                self._proofs[entry.block_hash] = build_finality_proof((), tip, notarization, finalization)

    def get_next(self) -> list[tuple[TreeEntry, FinalityProof]]:
        """Return the valid blocks from the root's child towards the lowest target that can be approached, with proofs."""
        for proof in sorted(self._proofs.values(), key=lambda proof: proof.path[0].header.slot):
            path = self._tree.get_path(proof.path[0].header.hash)
            if not path or path[0].state is not BlockState.VALID:
                continue
            proofs = [proof]
            for entry in reversed(path[:-1]):
                proofs.append(extend_proof(proofs[-1], entry.block))
            ready: list[tuple[TreeEntry, FinalityProof]] = []
            for entry, own in zip(path, reversed(proofs), strict=True):
                if entry.state is not BlockState.VALID:
                    break
                ready.append((entry, own))
            return ready
        return []

    def build_request(self, entry: TreeEntry) -> RequestValidation:
        """Return what the host is asked of a block whose parent is valid, with what is proven final behind it."""
        parent = self._tree.get_parent(entry)
        assert parent is not None, "a validatable block has its parent in the tree"
        return RequestValidation(entry.block, parent, self._get_ahead(entry), entry.source)

    def _get_ahead(self, entry: TreeEntry) -> tuple[Block, ...]:
        for proof in sorted(self._proofs.values(), key=lambda proof: -proof.path[0].header.slot):
            path = self._tree.get_path(proof.path[0].header.hash) or []
            hashes = [above.block_hash for above in path]
            if entry.block_hash in hashes:
                return tuple(above.block for above in path[hashes.index(entry.block_hash) + 1 :])
        return ()

    def prune(self, floor: int) -> None:
        """Forget targets in slots up to ``floor``."""
        self._proofs = {key: held for key, held in self._proofs.items() if held.path[0].header.slot > floor}
