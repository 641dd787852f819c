"""Why a block may stand in its slot, and what about a block can be checked without executing it.

A1: a header commits to its justification: the NotarCert of its parent and the SkipCerts of every slot between. D2: a
header's slot and its certificate's slot are equal, a slot names its epoch, genesis' slot takes no votes. The content of a
block (state, receipts, crosslinks) is its host's business.
"""

from collections.abc import Callable

from shardyard.blocks import Block, BlockKind, Header, Justification, compute_body_hash
from shardyard.consensus.votes import Certificate, Domain, VoteKind
from shardyard.errors import InvalidBlockError
from shardyard.ids import GENESIS_SLOT, compute_epoch
from shardyard.validators import SIGNATURE_BYTES, ValidatorSet

MAX_SKIPPED_SLOTS = 65_536
"""Skipped slots between a block and its parent, below the message cap of 24 MiB."""


def check_header(header: Header, domain: Domain, committee: ValidatorSet) -> None:
    """Raise ``InvalidBlockError`` unless ``header`` belongs to this chain, epoch and leader (D1, D2, E1)."""
    if header.version != 1:
        raise InvalidBlockError(f"header: got version {header.version}, expected 1")
    if header.network != domain.network or header.shard != domain.shard:
        raise InvalidBlockError(f"header: got a block of another network or of shard {header.shard}")
    if header.epoch != compute_epoch(header.slot):
        raise InvalidBlockError(
            f"header: got epoch {header.epoch}, expected {compute_epoch(header.slot)}"
        )  # D2
    if header.kind is not BlockKind.NORMAL:
        raise InvalidBlockError(
            f"header: got kind {header.kind.name}, expected NORMAL within one epoch"
        )  # E1
    if not GENESIS_SLOT <= header.parent_slot < header.slot < 1 << 64:
        raise InvalidBlockError(f"header: got slot {header.slot} on parent slot {header.parent_slot}")
    if header.proposer != committee.get_leader(header.slot):
        raise InvalidBlockError(
            f"header of slot {header.slot}: got proposer {header.proposer}, expected {committee.get_leader(header.slot)}"
        )


def check_justification(header: Header, justification: Justification) -> None:
    """Raise ``InvalidBlockError`` unless ``justification`` has the shape that ``header`` needs (A1, S1).

    Certificates are only looked at; ``verify_justification`` verifies them.
    """
    if header.slot - header.parent_slot - 1 > MAX_SKIPPED_SLOTS:
        raise InvalidBlockError(f"header of slot {header.slot}: more than {MAX_SKIPPED_SLOTS} skipped slots")
    if len(justification.skips) != header.slot - header.parent_slot - 1:
        raise InvalidBlockError(
            f"justification of slot {header.slot}: got {len(justification.skips)} SkipCerts, "
            f"expected {header.slot - header.parent_slot - 1}"
        )
    for offset, skip in enumerate(justification.skips, start=1):
        if skip.kind is not VoteKind.SKIP or skip.slot != header.parent_slot + offset:
            raise InvalidBlockError(
                f"justification of slot {header.slot}: expected the SkipCert of every slot between"
            )
    notarization = justification.notarization
    if (notarization is None) != (header.parent_slot == GENESIS_SLOT):
        raise InvalidBlockError(
            f"justification of slot {header.slot}: only a child of genesis needs no NotarCert"
        )
    if notarization is not None and (
        notarization.kind is not VoteKind.NOTAR
        or notarization.slot != header.parent_slot
        or notarization.block_hash != header.parent
    ):
        raise InvalidBlockError(f"justification of slot {header.slot}: the NotarCert is not its parent's")
    if justification.hash != header.justification_hash:
        raise InvalidBlockError(f"justification of slot {header.slot}: the header commits to another one")


def verify_justification(justification: Justification, verify: Callable[[Certificate], None]) -> None:
    """Verify every certificate of ``justification`` with ``verify``, which raises ``InvalidCertificateError``."""
    if justification.notarization is not None:
        verify(justification.notarization)
    for skip in justification.skips:
        verify(skip)


def check_block(block: Block, domain: Domain, committee: ValidatorSet) -> None:
    """Raise ``InvalidBlockError`` unless header, justification and body of ``block`` fit together."""
    check_header(block.header, domain, committee)
    check_justification(block.header, block.justification)
    if compute_body_hash(block.body) != block.header.body_hash:
        raise InvalidBlockError(
            f"block of slot {block.header.slot}: the body is not the one its header names"
        )
    if block.signature and len(block.signature) != SIGNATURE_BYTES:
        raise InvalidBlockError(
            f"block of slot {block.header.slot}: got a signature of {len(block.signature)} bytes"
        )


def check_link(header: Header, parent: Header, max_step_ms: int) -> None:
    """Raise ``InvalidBlockError`` unless ``header`` may follow ``parent`` (D2, P4)."""
    if header.parent != parent.hash or header.parent_slot != parent.slot:
        raise InvalidBlockError(f"header of slot {header.slot}: its parent is another block")
    if header.height != parent.height + 1:
        raise InvalidBlockError(
            f"header of slot {header.slot}: got height {header.height}, expected {parent.height + 1}"
        )
    if not parent.timestamp_ms < header.timestamp_ms <= parent.timestamp_ms + max_step_ms:
        raise InvalidBlockError(  # P4
            f"header of slot {header.slot}: got timestamp {header.timestamp_ms} ms after a parent at "
            f"{parent.timestamp_ms} ms, expected a step of 1 to {max_step_ms} ms"
        )
